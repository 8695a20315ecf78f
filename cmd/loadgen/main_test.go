package main

import (
	"bytes"
	"encoding/json"
	"encoding/pem"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"

	"go.uber.org/goleak"

	"github.com/felix-mq/felix/broker"
	"github.com/felix-mq/felix/internal/version"
	"github.com/felix-mq/felix/loadgen"
)

// asCommand in the environment makes the test binary the command itself, and with it also the broker's process.
const asCommand = "LOADGEN_TEST_AS_COMMAND"

func TestMain(m *testing.M) {
	if os.Getenv(asCommand) != "" {
		main()
		return
	}
	goleak.VerifyTestMain(m)
}

// program returns the command as a process to be.
func program(t *testing.T, args ...string) *exec.Cmd {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), self, args...)
	for _, v := range os.Environ() {
		if !strings.HasPrefix(v, "FELIX_") {
			cmd.Env = append(cmd.Env, v)
		}
	}
	cmd.Env = append(cmd.Env, asCommand+"=1")
	return cmd
}

// telemetryTable is what a build with telemetry adds to standard error.
var telemetryTable = regexp.MustCompile(`(?m)^ +(\w+  +\d.*|(stage|counter)\b.*)\n`)

// execute runs it and returns its exit code and what it printed, telemetry aside.
func execute(t *testing.T, cmd *exec.Cmd) (code int, stdout, stderr string) {
	t.Helper()
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return cmd.ProcessState.ExitCode(), out.String(), telemetryTable.ReplaceAllString(errs.String(), "")
}

var smallRun = []string{"--fanout=4", "--payload=128", "--batch=8", "--window=2", "--total=1000", "--warmup=1ms"}

func TestText(t *testing.T) {
	code, stdout, stderr := execute(t, program(t, smallRun...))
	if code != exitOK || !strings.Contains(stdout, "unaccounted 0\n") || !strings.Contains(stdout, "p999") || stderr != "" {
		t.Errorf("exit code %d\n%s\n%s", code, stdout, stderr)
	}
}

// The first command of the README shows what it promises, here with fewer events.
func TestReadmeCommand(t *testing.T) {
	readme, err := os.ReadFile("../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	command := regexp.MustCompile(`(?m)^go run -pgo=off \./cmd/loadgen (.*?) +#.* p50, p99, p999$`).FindSubmatch(readme)
	if command == nil {
		t.Fatal("there is none")
	}
	code, stdout, stderr := execute(t, program(t, append(strings.Fields(string(command[1])), "--total=100", "--warmup=1ms")...))
	if code != exitOK || !strings.Contains(stdout, "fanout 64") || !strings.Contains(stdout, "p999") {
		t.Errorf("exit code %d\n%s\n%s", code, stdout, stderr)
	}
}

func TestJSON(t *testing.T) {
	for name, args := range map[string][]string{"embedded": nil, "process": {"--processes=2"}} {
		t.Run(name, func(t *testing.T) {
			code, stdout, stderr := execute(t, program(t, append(append(args, "--json"), smallRun...)...))
			if code != exitOK || stderr != "" {
				t.Fatalf("exit code %d\n%s\n%s", code, stdout, stderr)
			}
			var res loadgen.Result
			if err := json.Unmarshal([]byte(stdout), &res); err != nil {
				t.Fatalf("%v in %s", err, stdout)
			}
			if res.Published != 1000 || res.Delivered != 4000 || res.Unaccounted != 0 || res.Broker.Kind != name || res.Config.Window != 2 {
				t.Errorf("got %s", stdout)
			}
		})
	}
}

func TestVariablesTuneTheBroker(t *testing.T) {
	for _, processes := range []string{"1", "2"} {
		cmd := program(t, append([]string{"--json", "--processes=" + processes}, smallRun...)...)
		cmd.Env = append(cmd.Env, "FELIX_SUB_QUEUE_POLICY=drop_old", "FELIX_QUIC_BIND=192.0.2.1:1")
		code, stdout, stderr := execute(t, cmd)
		if code != exitOK || !strings.Contains(stdout, `"policy":"drop_old"`) {
			t.Errorf("%s processes: exit code %d\n%s\n%s", processes, code, stdout, stderr)
		}
	}
}

// An empty variable is not set.
func TestEmptyVariables(t *testing.T) {
	cmd := program(t, append([]string{"--payload=1KiB"}, smallRun[2:]...)...)
	cmd.Env = append(cmd.Env, "FELIX_SUB_QUEUE_POLICY=", "FELIX_QUIC_SPIN=", "FELIX_PROFILE=", "FELIX_LOG_FORMAT=", "FELIX_AUTH_TOKEN=", "FELIX_AUTH_TENANT=")
	if code, stdout, stderr := execute(t, cmd); code != exitOK || stderr != "" || !strings.Contains(stdout, "payload 1024 B") || strings.Contains(stdout, "FELIX_") {
		t.Errorf("exit code %d\n%s\n%s", code, stdout, stderr)
	}
}

func TestExitCodes(t *testing.T) {
	for name, tc := range map[string]struct {
		args  []string
		env   string
		stdin string
		code  int
		want  string // on stderr
	}{
		"help":            {args: []string{"--help"}, code: exitOK, want: "--payload-kind"},
		"unknown flag":    {args: []string{"--fan-out=1"}, code: exitUsage, want: "unknown flag"},
		"argument":        {args: []string{"now"}, code: exitUsage, want: `unexpected argument "now"`},
		"several":         {args: []string{"--fanout=-1", "--payload=3", "--payload-kind=xml"}, code: exitUsage, want: "no room for the stamp"},
		"names the flag":  {args: []string{"--slow-subs=-1"}, code: exitUsage, want: "(--slow-subs)"},
		"names the kind":  {args: []string{"cache", "--get-ratio=2"}, code: exitUsage, want: "(--get-ratio)"},
		"what is longer":  {args: []string{"--total=100"}, code: exitUsage, want: "--duration, --total, --window or --batch"},
		"size":            {args: []string{"--payload=4K"}, code: exitUsage, want: "the units are B, KB"},
		"no size":         {args: []string{"--payload=large"}, code: exitUsage, want: `"large" is not a size`},
		"size in range":   {args: []string{"cache", "--value=4TiB"}, code: exitUsage, want: "out of range"},
		"scenario":        {args: []string{"cahce"}, code: exitUsage, want: "the scenarios are pubsub, cache"},
		"zero":            {args: []string{"--batch=0"}, code: exitUsage, want: "--batch 0"},
		"rate and window": {args: []string{"--rate=10", "--window=8"}, code: exitUsage, want: "exclude each other"},
		"small total":     {args: []string{"--total=100"}, code: exitUsage, want: "run too small"},
		"target flags":    {args: []string{"--insecure"}, code: exitUsage, want: "--insecure needs --addr"},
		"no token":        {args: []string{"--addr=127.0.0.1:1", "--insecure"}, code: exitUsage, want: "token is missing"},
		"two brokers":     {args: []string{"--addr=127.0.0.1:1", "--token=x", "--processes=2"}, code: exitUsage, want: "there is one at"},
		"several brokers": {args: []string{"connect", "--addr=127.0.0.1:1", "--token=x", "--processes=2"}, code: exitUsage, want: "there is one at"},
		"in a list":       {args: []string{"--fanout=1,x"}, code: exitUsage, want: "invalid argument"},
		"one of a list":   {args: []string{"--fanout=1,-2,3"}, code: exitUsage, want: "fanout -2 is not"},
		"not a list":      {args: []string{"--duration=1s,2s"}, code: exitUsage, want: "invalid argument"},
		"trials":          {args: []string{"--trials=0"}, code: exitUsage, want: "--trials 0"},
		"compare":         {args: []string{"--compare=nosuch.json"}, code: exitUsage, want: "nosuch.json"},
		"few trials":      {args: []string{"--compare=nosuch.json", "--trials=2"}, code: exitUsage, want: "--trials of at least 3"},
		"compare one":     {args: []string{"compare", "nosuch.json"}, code: exitUsage, want: "two reports, BASE and THIS, not 1"},
		"compare flag":    {args: []string{"compare", "--mars", "a", "b"}, code: exitUsage, want: "unknown flag"},
		"unlike alone":    {args: []string{"--unlike"}, code: exitUsage, want: "--unlike needs --compare"},
		"compare nothing": {args: []string{"compare", "nosuch.json", "nosuch.json"}, code: exitUsage, want: "nosuch.json"},
		"compare help":    {args: []string{"compare", "--help"}, code: exitOK, want: "Welch"},
		"soak help":       {args: []string{"soak", "--help"}, code: exitOK, want: "25 %"},
		"connect help":    {args: []string{"connect", "--help"}, code: exitOK, want: "handshake"},
		"pubsub help":     {args: []string{"pubsub", "--help"}, code: exitOK, want: "--slow-mode"},
		"connect":         {args: []string{"connect", "--rate=-1"}, code: exitUsage, want: "rate -1"},
		"no such file":    {args: []string{"--addr=127.0.0.1:1", "--token=x", "--ca=nosuch.pem"}, code: exitUsage, want: "nosuch.pem"},
		"environment":     {env: "FELIX_SUB_QUEUE_POLICY=sometimes", code: exitUsage, want: "sometimes"},
		"small duration":  {args: []string{"--payload=65536", "--duration=1ns", "--warmup=0", "--idle-timeout=5m"}, code: exitFailed, want: "run too small"},
		"broker process":  {args: []string{"__child", "broker"}, stdin: `{"Policy":"sometimes"}`, code: exitFailed, want: "sometimes"},
	} {
		t.Run(name, func(t *testing.T) {
			cmd := program(t, tc.args...)
			cmd.Stdin = strings.NewReader(tc.stdin)
			if tc.env != "" {
				cmd.Env = append(cmd.Env, tc.env)
			}
			code, stdout, stderr := execute(t, cmd)
			if code != tc.code || !strings.Contains(stderr, tc.want) || stdout != "" {
				t.Errorf("exit code %d, want %d, and %q on stderr\n%s\n%s", code, tc.code, tc.want, stdout, stderr)
			}
		})
	}
}

func TestVersion(t *testing.T) {
	code, stdout, stderr := execute(t, program(t, "--version"))
	if want := "loadgen " + version.Get().String() + "\n"; code != exitOK || stdout != want {
		t.Errorf("exit code %d, printed %q, want %q\n%s", code, stdout, want, stderr)
	}
}

// TestAddr loads a broker that is already there: with its certificate, with none, and with one that is not its own.
func TestAddr(t *testing.T) {
	dev, err := broker.NewDev(broker.Config{Bind: "127.0.0.1:0"}, broker.DevOptions{Tenant: "acme"})
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- dev.Serve(t.Context()) }()
	defer func() {
		if err := dev.Shutdown(t.Context()); err != nil {
			t.Error(err)
		}
		if err := <-served; !errors.Is(err, broker.ErrShutdown) {
			t.Error(err)
		}
	}()
	ca := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(ca, dev.CertPEM, 0o600); err != nil {
		t.Fatal(err)
	}
	if block, _ := pem.Decode(dev.CertPEM); block == nil {
		t.Fatal("the certificate is not PEM")
	}
	target := func(extra ...string) *exec.Cmd {
		cmd := program(t, append(append([]string{"--addr", dev.Addr().String()}, extra...), smallRun...)...)
		cmd.Env = append(cmd.Env, "FELIX_AUTH_TENANT=acme", "FELIX_AUTH_TOKEN="+dev.Token)
		return cmd
	}
	for name, tc := range map[string]struct {
		cmd  *exec.Cmd
		code int
	}{
		"trusted":      {target("--ca", ca), exitOK},
		"insecure":     {target("--insecure"), exitOK},
		"untrusted":    {target(), exitFailed},
		"no stream":    {target("--insecure", "--stream=nosuch"), exitFailed},
		"other tenant": {target("--insecure", "--tenant=t2"), exitFailed},
	} {
		t.Run(name, func(t *testing.T) {
			code, stdout, stderr := execute(t, tc.cmd)
			if code != tc.code || (code == exitOK) != strings.Contains(stdout, "unaccounted 0\n") {
				t.Errorf("exit code %d, want %d\n%s\n%s", code, tc.code, stdout, stderr)
			}
		})
	}
	for cache, want := range map[string]int{"primary": exitOK, "nosuch": exitFailed} {
		cmd := program(t, append(briefCache, "--addr", dev.Addr().String(), "--ca", ca, "--cache", cache)...)
		cmd.Env = append(cmd.Env, "FELIX_AUTH_TENANT=acme", "FELIX_AUTH_TOKEN="+dev.Token)
		if code, stdout, stderr := execute(t, cmd); code != want || (code == exitOK) != strings.Contains(stdout, "all: n=") {
			t.Errorf("cache %s: exit code %d, want %d\n%s\n%s", cache, code, want, stdout, stderr)
		}
	}
}

// A signal ends the run and the broker's process with it, whenever it comes: Wait returns when both have let go of the
// standard error that they share.
func TestSignal(t *testing.T) {
	cmd := program(t, "--processes=2", "--duration=1h", "--idle-timeout=1h")
	var errs bytes.Buffer
	cmd.Stderr = &errs
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	var exit *exec.ExitError
	if err := cmd.Wait(); !errors.As(err, &exit) {
		t.Errorf("got %v, %s", err, errs.String())
	}
}
