package main

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"go.uber.org/goleak"

	"github.com/felix-mq/felix/broker"
	"github.com/felix-mq/felix/conformance"
	"github.com/felix-mq/felix/internal/version"
)

func TestMain(m *testing.M) {
	if wrong, ok := os.LookupEnv(lineProgramEnv); ok {
		os.Exit(lineProgram(os.Stdin, os.Stdout, wrong))
	}
	goleak.VerifyTestMain(m)
}

func runArgs(args ...string) (code int, stdout, stderr string) {
	var out, errs bytes.Buffer
	code = run(args, &out, &errs)
	return code, out.String(), errs.String()
}

func TestUsage(t *testing.T) {
	for _, tc := range []struct {
		name string
		args []string
		code int
		want string
	}{
		{"help", []string{"--help"}, exitOK, "--fixture"},
		{"version", []string{"--version"}, exitOK, "conformance " + version.Get().String()},
		{"nothing", nil, exitUsage, "--addr and --fixture"},
		{"both", []string{"--embedded", "--addr", "x:1"}, exitUsage, "in place of"},
		{"pattern", []string{"--embedded", "--run", "("}, exitUsage, "--run"},
		{"argument", []string{"--embedded", "x"}, exitUsage, `"x"`},
		{"flag", []string{"--nonsense"}, exitUsage, "nonsense"},
		{"client help", []string{"client", "--help"}, exitOK, "--exec"},
		{"client argument", []string{"client", "x"}, exitUsage, `"x"`},
		{"client flag", []string{"client", "--embedded"}, exitUsage, "see conformance client --help"},
		{"client, no case", []string{"client", "--run", "nonsense"}, exitFailed, "no case matches"},
		{"no fixture", []string{"--addr", "127.0.0.1:1", "--fixture", "/nowhere"}, exitUsage, "fixture"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			code, stdout, stderr := runArgs(tc.args...)
			if code != tc.code || !strings.Contains(stdout+stderr, tc.want) {
				t.Errorf("status %d, want %d; no %q in\n%s%s", code, tc.code, tc.want, stdout, stderr)
			}
		})
	}
}

func TestList(t *testing.T) {
	code, stdout, _ := runArgs("--list", "--run", "^RAW-07")
	if code != exitOK || stdout != "RAW-07a unknown flags before auth\nRAW-07b unknown flags after auth\n" {
		t.Errorf("status %d, list\n%s", code, stdout)
	}
}

func TestListClient(t *testing.T) {
	code, stdout, _ := runArgs("client", "--list", "--run", "^IC-(33|59)")
	want := "IC-33 an error acknowledgement, then further publishes: only the one fails\nIC-59 15 MiB item, live and replayed\n"
	if code != exitOK || stdout != want {
		t.Errorf("status %d, list\n%s", code, stdout)
	}
}

func TestEmbedded(t *testing.T) {
	dir := t.TempDir()
	jsonFile, junitFile := filepath.Join(dir, "r.json"), filepath.Join(dir, "r.xml")
	code, stdout, stderr := runArgs("--embedded", "--run", "^RAW-(01|44) ", "--json", jsonFile, "--junit", junitFile)
	if code != exitOK || !strings.Contains(stdout, "1 passed, 0 failed, 1 skipped") {
		t.Errorf("status %d\n%s%s", code, stdout, stderr)
	}
	for _, file := range []string{jsonFile, junitFile} {
		if content, err := os.ReadFile(file); err != nil || !bytes.Contains(content, []byte("RAW-01")) {
			t.Errorf("%s: %v\n%s", file, err, content)
		}
	}
}

// TestAddr judges a broker by its address and a fixture file, and one that was set up otherwise than the fixture says.
func TestAddr(t *testing.T) {
	_, key, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	pem, err := conformance.EncodeKey(key)
	if err != nil {
		t.Fatal(err)
	}
	cfg := broker.DefaultConfig()
	cfg.Bind = "127.0.0.1:0"
	d, err := broker.NewDev(cfg, broker.DevOptions{Streams: []string{"a", "b"}, Key: key})
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- d.Serve(context.Background()) }()
	defer func() {
		if err := d.Shutdown(t.Context()); err != nil {
			t.Errorf("shutdown: %v", err)
		}
		if err := <-served; !errors.Is(err, broker.ErrShutdown) {
			t.Errorf("serve: %v", err)
		}
	}()
	fixture := map[string]any{
		"tenant": d.Tenant, "namespace": d.Namespace, "stream": "a", "other_stream": "b", "cache": d.Cache,
		"signing_key": pem, "kid": broker.DevKeyID, "server_name": "localhost", "ca": string(d.CertPEM),
	}
	judge := func() (int, string) {
		content, err := json.Marshal(fixture)
		if err != nil {
			t.Fatal(err)
		}
		file := filepath.Join(t.TempDir(), "fixture.json")
		if err := os.WriteFile(file, content, 0o600); err != nil {
			t.Fatal(err)
		}
		code, stdout, stderr := runArgs("--addr", d.Addr().String(), "--fixture", file, "--run", "^RAW-28|^RAW-52")
		return code, stdout + stderr
	}
	if code, out := judge(); code != exitOK {
		t.Errorf("status %d\n%s", code, out)
	}
	fixture["cache"] = "nowhere"
	if code, out := judge(); code != exitFailed || !strings.Contains(out, "cache scope not found") {
		t.Errorf("wrong fixture: status %d\n%s", code, out)
	}
	fixture["tenant"] = "nowhere"
	if code, out := judge(); code != exitFailed || !strings.Contains(out, "no use of the broker") {
		t.Errorf("wrong tenant: status %d\n%s", code, out)
	}
}
