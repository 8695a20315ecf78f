package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/felix-mq/felix/loadgen"
	"github.com/felix-mq/felix/loadgen/report"
)

// All combinations are run in each trial.
func TestSweep(t *testing.T) {
	code, stdout, stderr := execute(t, program(t, "--fanout=1,3", "--payload=128B,64", "--trials=2", "--batch=4", "--window=1", "--total=200",
		"--warmup=1ms", "--json"))
	if code != exitOK || stderr != "" {
		t.Fatalf("exit code %d\n%s\n%s", code, stdout, stderr)
	}
	want := [][2]int{{1, 128}, {1, 64}, {3, 128}, {3, 64}}
	lines := strings.Split(strings.TrimSpace(stdout), "\n")
	if len(lines) != 8 {
		t.Fatalf("%d results, want 8", len(lines))
	}
	for i, line := range lines {
		var res loadgen.Result
		if err := json.Unmarshal([]byte(line), &res); err != nil {
			t.Fatal(err)
		}
		if got := [2]int{res.Config.Fanout, res.Config.Payload}; got != want[i%4] {
			t.Errorf("run %d has fanout and payload %v, want %v", i, got, want[i%4])
		}
	}
}

var shortRun = []string{"--batch=4", "--window=1", "--total=400", "--warmup=1ms"}

// Reports are written, plotted and compared. A broker that was a thousand times faster before has become slower.
func TestReports(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "results")
	code, stdout, stderr := execute(t, program(t, append(shortRun, "--fanout=1,2", "--trials=3", "--out", dir)...))
	if code != exitOK || stderr != "" || strings.Count(stdout, "unaccounted 0\n") != 6 || !strings.Contains(stdout, "== 6 of 6  fanout=2\n") {
		t.Fatalf("exit code %d\n%s\n%s", code, stdout, stderr)
	}
	for _, name := range []string{
		"report.json", "trials.csv", "intervals.csv", "fanout-2.deliver.hgrm", "fanout-2.trial-3.hlog", "percentiles.png",
		"fanout-1.timeline.svg", "map.p99.png",
	} {
		if info, err := os.Stat(filepath.Join(dir, name)); err != nil || info.Size() == 0 {
			t.Errorf("%s: %v", name, err)
		}
	}
	file := filepath.Join(dir, "report.json")
	code, stdout, stderr = execute(t, program(t, "compare", file, dir))
	if code != exitOK || stderr != "" || strings.Count(stdout, "no difference") != 7 {
		t.Errorf("exit code %d\n%s\n%s", code, stdout, stderr)
	}

	// Another fanout is another load.
	code, stdout, stderr = execute(t, program(t, append(shortRun, "--fanout=3", "--trials=3", "--compare", dir)...))
	if code != exitUsage || !strings.Contains(stderr, "fanout: 1 and 3") || !strings.Contains(stderr, "--unlike") {
		t.Errorf("exit code %d\n%s\n%s", code, stdout, stderr)
	}
	code, stdout, stderr = execute(t, program(t, append(shortRun, "--fanout=3", "--trials=3", "--compare", dir, "--unlike")...))
	if code != exitOK && code != exitSlower || stderr != "" || !strings.Contains(stdout, "UNLIKE RUNS, compared because --unlike asks for it") {
		t.Errorf("exit code %d\n%s\n%s", code, stdout, stderr)
	}
	// A variable that tunes the broker is known before the runs.
	cmd := program(t, append(shortRun, "--fanout=1", "--trials=3", "--compare", dir)...)
	cmd.Env = append(cmd.Env, "FELIX_QUIC_SPIN=1us")
	code, stdout, stderr = execute(t, cmd)
	if code != exitUsage || !strings.Contains(stderr, "variables: none and FELIX_QUIC_SPIN=1us") || stdout != "" {
		t.Errorf("exit code %d\n%s\n%s", code, stdout, stderr)
	}

	r, err := report.Read(file)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range r.Cells {
		for i := range c.Trials {
			c.Trials[i].Metrics[0].Value = 1e9 + float64(i) // msg/s
		}
	}
	b, err := json.Marshal(r)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, b, 0o600); err != nil {
		t.Fatal(err)
	}
	code, stdout, stderr = execute(t, program(t, append(shortRun, "--fanout=2", "--trials=3", "--compare", dir)...))
	if code != exitSlower || stderr != "" || !strings.Contains(stdout, "\nslower: 3 and 3 trials") {
		t.Errorf("exit code %d\n%s\n%s", code, stdout, stderr)
	}
}

// A run that fails prints no figures and leaves no file.
func TestFailedRun(t *testing.T) {
	dir := t.TempDir()
	code, stdout, stderr := execute(t, program(t, "--payload=65536,128", "--duration=1ns", "--warmup=0", "--out", dir, "--batch=1", "--window=1024"))
	if code != exitFailed || stdout != "" || strings.Count(stderr, "run too small") != 2 {
		t.Errorf("exit code %d\n%s\n%s", code, stdout, stderr)
	}
	if files, err := os.ReadDir(dir); err != nil || len(files) != 0 {
		t.Errorf("%v: %v", files, err)
	}
}

func TestConnect(t *testing.T) {
	code, stdout, stderr := execute(t, program(t, "connect", "--rate=20", "--duration=300ms", "--warmup=0"))
	if code != exitOK || stderr != "" || !strings.Contains(stdout, "connected  6 times") {
		t.Errorf("exit code %d\n%s\n%s", code, stdout, stderr)
	}
}

func TestSoak(t *testing.T) {
	code, stdout, stderr := execute(t, program(t, "soak", "--duration=1s", "--rate=2000", "--interval=10ms", "--processes=2"))
	switch {
	case code == exitOK && stderr == "" && strings.Contains(stdout, "verdict    nothing has grown\n"):
	case code == exitFailed && strings.Contains(stderr, "loadgen: soak: "): // a machine that stood still
	default:
		t.Errorf("exit code %d\n%s\n%s", code, stdout, stderr)
	}
}

func TestCommandLine(t *testing.T) {
	got := commandLine("pubsub", []string{"--token", "secret", "--token=secret", "--ca", "my file"})
	if want := `loadgen pubsub --token … --token=… --ca "my file"`; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

// Each example of a help is a command that its flags accept.
func TestExamplesInHelp(t *testing.T) {
	example := regexp.MustCompile(`(?m)^  loadgen (.*?)(?:  +.*)?$`)
	for _, head := range []string{pubsubHead, cacheHead, connectHead, soakHead} {
		for _, m := range example.FindAllStringSubmatch(head, -1) {
			args := strings.Fields(m[1])
			name := "pubsub"
			if !strings.HasPrefix(args[0], "--") {
				name, args = args[0], args[1:]
			}
			var errs strings.Builder
			c := newCommand(name, &errs, &errs)
			map[string]func(*command){"pubsub": pubsub, "cache": cache, "connect": connect, "soak": soak}[name](c)
			if err := c.flags.Parse(args); err != nil {
				t.Errorf("%s: %v", m[1], err)
			}
		}
	}
}
