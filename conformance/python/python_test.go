// Package python_test runs a client in Python, which was written from docs/protocol and testvectors alone, against the
// vectors and against a broker: it shows that these pages say enough.
package python_test

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"github.com/felix-mq/felix/broker"
	"github.com/felix-mq/felix/client"
)

// The test downloads packages, so it runs where somebody asks for it: make test-modules sets this variable.
const asked = "FELIX_TEST_PYTHON"

func TestVectors(t *testing.T) {
	check(t, interpreter(t), "vectors", "../../testvectors")
}

func TestBroker(t *testing.T) {
	python := interpreter(t)
	dev, err := broker.NewDev(broker.Config{Bind: "127.0.0.1:0"}, broker.DevOptions{})
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- dev.Serve(ctx) }()
	t.Cleanup(func() {
		stop()
		if err := <-served; err != nil {
			t.Errorf("broker: %v", err)
		}
	})
	reader, err := dev.Mint("stream.subscribe:*", "cache.read:*")
	if err != nil {
		t.Fatal(err)
	}

	// A subscriber in Go sees what the client in Python publishes.
	c, err := client.Connect(t.Context(), dev.Addr().String(), client.WithTLS(dev.ClientTLS()), client.WithToken(dev.Tenant, dev.Token))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	sub, err := c.Subscribe(t.Context(), dev.Namespace, dev.Streams[0])
	if err != nil {
		t.Fatal(err)
	}
	check(t, python, "broker", dev.Addr().String(), file(t, "ca.pem", string(dev.CertPEM)), dev.Tenant,
		file(t, "token", dev.Token), file(t, "reader", reader))
	batch, err := sub.NextBatch(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for i, item := range batch.Payloads() {
		if want := []string{"hello", ""}; i >= len(want) || string(item) != want[i] {
			t.Errorf("item %d of the first batch is %q", i, item)
		}
	}
}

func file(t *testing.T, name, text string) string {
	t.Helper()
	name = filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}

// check runs check.py.
func check(t *testing.T, python string, args ...string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, python, append([]string{"-B", "check.py"}, args...)...)
	out, err := cmd.CombinedOutput()
	t.Logf("%s", out)
	if err != nil {
		t.Errorf("check.py %s: %v", args[0], err)
	}
}

// interpreter returns a Python that has the packages of requirements.txt, in a virtual environment which the user's
// cache keeps. Where that cannot be had the test is skipped, but fails in CI.
func interpreter(t *testing.T) string {
	t.Helper()
	if os.Getenv(asked) == "" {
		t.Skip("make test-modules runs it")
	}
	missing := func(what string, err error, out []byte) {
		t.Helper()
		if ci, _ := strconv.ParseBool(os.Getenv("CI")); ci {
			t.Fatalf("%s: %v\n%s", what, err, out)
		}
		t.Skipf("%s: %v\n%s", what, err, out)
	}
	python, err := exec.LookPath("python3")
	if err != nil {
		missing("no Python", err, nil)
	}
	version, err := exec.Command(python, "-VV").Output()
	if err != nil {
		missing("Python does not run", err, nil)
	}
	requirements, err := os.ReadFile("requirements.txt")
	if err != nil {
		t.Fatal(err)
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		cache = os.TempDir()
	}
	if err := os.MkdirAll(filepath.Join(cache, "felix"), 0o755); err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(append(version, requirements...))
	dir := filepath.Join(cache, "felix", "python-"+hex.EncodeToString(sum[:8]))
	made := filepath.Join(dir, "bin", "python")
	if _, err := os.Stat(made); err == nil {
		return made
	}
	// It is made next to its place and moved there when it is complete.
	fresh, err := os.MkdirTemp(filepath.Dir(dir), "python-") //nolint:usetesting // a move needs the same file system
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = os.RemoveAll(fresh) }()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	if out, err := exec.CommandContext(ctx, python, "-m", "venv", "--without-pip", fresh).CombinedOutput(); err != nil {
		missing("no virtual environment", err, out)
	}
	// A copy of pip in the environment would take longer than all else.
	pip := exec.CommandContext(ctx, python, "-m", "pip", "--python", filepath.Join(fresh, "bin", "python"), "install", "--quiet",
		"--no-input", "--disable-pip-version-check", "--no-compile", "--retries", "1", "--only-binary", ":all:", "-r", "requirements.txt")
	if out, err := pip.CombinedOutput(); err != nil {
		missing("packages cannot be installed", err, out)
	}
	if err := os.Rename(fresh, dir); err != nil {
		if _, missed := os.Stat(made); missed != nil { // otherwise another run was faster
			t.Fatal(err)
		}
	}
	return made
}
