package main

import (
	"bytes"
	"encoding/json"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/felix-mq/felix/broker"
	"github.com/felix-mq/felix/internal/ops"
	"github.com/felix-mq/felix/internal/version"
	"github.com/felix-mq/felix/telemetry"
)

// output collects what a program prints, and tells when a line is there.
type output struct {
	mu    sync.Mutex
	text  bytes.Buffer
	lines chan struct{}
}

func newOutput() *output { return &output{lines: make(chan struct{}, 1000)} }

func (o *output) Write(b []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for range bytes.Count(b, []byte("\n")) {
		select {
		case o.lines <- struct{}{}:
		default: // nobody counts them all
		}
	}
	return o.text.Write(b)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.text.String()
}

func TestServeAndDrain(t *testing.T) {
	t.Setenv("FELIX_QUIC_BIND", "127.0.0.1:0")
	t.Setenv("FELIX_BROKER_METRICS_BIND", "127.0.0.1:0")
	t.Setenv("FELIX_BROKER_PUB_QUEUE_DEPTH", "64")
	t.Setenv("FELIX_QUIK_BIND", "x")
	t.Setenv("FELIX_DEV_KEY_FILE", filepath.Join(t.TempDir(), "key.pem"))
	stdout, stderr := newOutput(), newOutput()
	code := make(chan int, 1)
	go func() { code <- run([]string{"--dev"}, stdout, stderr) }()
	select {
	case <-stdout.lines:
	case c := <-code:
		t.Fatalf("ended with %d: %s", c, stderr)
	case <-time.After(20 * time.Second):
		t.Fatalf("no ready line: %s", stderr)
	}
	var r ready
	if err := json.Unmarshal([]byte(stdout.String()), &r); err != nil || r.Addr == "" || r.Token == "" || r.CACert == "" {
		t.Errorf("ready line %s: %v", stdout, err)
	}
	addr := metricsAddr(t, stderr.String())
	stages := "404 page not found"
	if telemetry.Enabled {
		telemetry.Add(telemetry.BrokerAcks, 1)
		stages = "broker_acks"
	}
	for path, want := range map[string]string{"/metrics": "felix_connections 0\n", "/live": "ok\n", "/ready": "ok\n", broker.StreamsPath: `"stream":"demo"`, "/debug/felix": stages} {
		if body := get(t, "http://"+addr+path); !strings.Contains(body, want) {
			t.Errorf("%s does not contain %q: %.300s", path, want, body)
		}
	}
	if err := healthcheck(ops.Settings{Bind: addr}); err != nil {
		t.Errorf("health check: %v", err)
	}
	for _, want := range []string{"setting has no effect", "FELIX_BROKER_PUB_QUEUE_DEPTH", "unknown variable", "FELIX_QUIK_BIND"} {
		if !strings.Contains(stderr.String(), want) {
			t.Errorf("the log does not say %q: %s", want, stderr)
		}
	}
	terminate(t)
	select {
	case c := <-code:
		if c != exitOK {
			t.Errorf("ended with %d: %s", c, stderr)
		}
	case <-time.After(20 * time.Second):
		t.Fatal("does not end")
	}
}

// terminate sends SIGTERM to this process.
func terminate(t *testing.T) {
	t.Helper()
	self, err := os.FindProcess(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	if err := self.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
}

// TestServeCatalog serves a catalog file, recognized by the names in it, with and without certificate files.
func TestServeCatalog(t *testing.T) {
	cert, key := certificateFiles(t, t.TempDir())
	t.Run("files", func(t *testing.T) {
		if line := serveCatalog(t, "--set=tls_cert_file="+cert, "--set=tls_key_file="+key); line != "" {
			t.Errorf("printed %s", line)
		}
	})
	t.Run("development certificate", func(t *testing.T) {
		var r ready
		if err := json.Unmarshal([]byte(serveCatalog(t)), &r); err != nil || r.Addr == "" || r.CACert == "" || r.Token != "" {
			t.Errorf("printed %+v, %v", r, err)
		}
	})
}

// serveCatalog runs the program until it serves, ends it, and returns what it has printed.
func serveCatalog(t *testing.T, more ...string) string {
	t.Helper()
	args := append([]string{
		"--catalog", write(t, "catalog.yml", validCatalog(t)), "--set=quic_bind=127.0.0.1:0", "--set=metrics_bind=127.0.0.1:0",
	}, more...)
	stdout, stderr := newOutput(), newOutput()
	code := make(chan int, 1)
	go func() { code <- run(args, stdout, stderr) }()
	for !strings.Contains(stderr.String(), "event=metrics_served") {
		select {
		case <-stderr.lines:
		case c := <-code:
			t.Fatalf("ended with %d: %s", c, stderr)
		case <-time.After(20 * time.Second):
			t.Fatalf("does not listen: %s", stderr)
		}
	}
	body := get(t, "http://"+metricsAddr(t, stderr.String())+"/metrics")
	for _, want := range []string{"felix_streams 1\n", "felix_catalog_last_reload_successful 1\n", `felix_cache_entries{cache="sessions",namespace="default",tenant="acme"} 0`} {
		if !strings.Contains(body, want) {
			t.Errorf("%q is not in the metrics", want)
		}
	}
	terminate(t)
	if c := <-code; c != exitOK {
		t.Errorf("ended with %d: %s", c, stderr)
	}
	return stdout.String()
}

// metricsAddr finds the address of the metrics in a log.
func metricsAddr(t *testing.T, log string) string {
	t.Helper()
	_, after, found := strings.Cut(log, "event=metrics_served addr=")
	if !found {
		t.Fatalf("the log does not say where the metrics are: %s", log)
	}
	addr, _, _ := strings.Cut(after, "\n")
	return addr
}

func get(t *testing.T, url string) string {
	t.Helper()
	client := http.Client{Timeout: 20 * time.Second}
	defer client.CloseIdleConnections()
	res, err := client.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	var b bytes.Buffer
	if _, err := b.ReadFrom(res.Body); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func TestUsage(t *testing.T) {
	for _, c := range []struct {
		name string
		args []string
		env  map[string]string
		code int
		want []string
	}{
		{"help", []string{"--help"}, nil, exitOK, []string{"FELIX_QUIC_BIND", "FELIX_RETRY_ABOVE", "--dev", "publish_queue_wait_timeout_ms"}},
		{"unknown flag", []string{"--fast"}, nil, exitUsage, []string{"--fast"}},
		{"argument", []string{"start"}, nil, exitUsage, []string{`"start"`}},
		{"nobody to ask", []string{"--healthcheck"}, map[string]string{"FELIX_BROKER_METRICS_BIND": ""}, exitError, []string{"not ready", "metrics_bind is empty"}},
		{"nobody answers", []string{"--healthcheck"}, map[string]string{"FELIX_BROKER_METRICS_BIND": "127.0.0.1:1"}, exitError, []string{"not ready", "refused"}},
		{"not development", nil, nil, exitUsage, []string{"catalog", "--dev"}},
		{
			"bad values",
			[]string{"--dev"},
			map[string]string{"FELIX_MAX_FRAME_BYTES": "many", "FELIX_SUB_QUEUE_POLICY": "drop_all", "FELIX_AUTH_TIMEOUT_MS": "1"},
			exitUsage,
			[]string{"FELIX_MAX_FRAME_BYTES", "FELIX_SUB_QUEUE_POLICY", "drop_all", "FELIX_AUTH_TIMEOUT_MS"},
		},
		{
			"bad key file",
			[]string{"--dev"},
			map[string]string{"FELIX_DEV_KEY_FILE": "main.go", "FELIX_QUIC_BIND": "127.0.0.1:0"},
			exitUsage,
			[]string{"FELIX_DEV_KEY_FILE", "PEM"},
		},
		{
			"metrics address that is none",
			[]string{"--dev"},
			map[string]string{"FELIX_BROKER_METRICS_BIND": "256.0.0.1:1", "FELIX_QUIC_BIND": "127.0.0.1:0"},
			exitUsage,
			[]string{"FELIX_BROKER_METRICS_BIND"},
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			for name, value := range c.env {
				t.Setenv(name, value)
			}
			stdout, stderr := newOutput(), newOutput()
			if code := run(c.args, stdout, stderr); code != c.code {
				t.Errorf("exit status %d, want %d", code, c.code)
			}
			for _, want := range c.want {
				if !strings.Contains(stderr.String(), want) {
					t.Errorf("it does not say %q: %s", want, stderr)
				}
			}
			if stdout.String() != "" {
				t.Errorf("printed %s", stdout)
			}
		})
	}
}

func TestVersion(t *testing.T) {
	stdout, stderr := newOutput(), newOutput()
	if code := run([]string{"--version"}, stdout, stderr); code != exitOK || stdout.String() != "broker "+version.Get().String()+"\n" {
		t.Errorf("exit status %d, printed %q, %s", code, stdout, stderr)
	}
}

func TestHealthcheckOfADrainingBroker(t *testing.T) {
	draining := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		http.Error(w, "draining", http.StatusServiceUnavailable)
	})
	secure := httptest.NewTLSServer(draining)
	defer secure.Close()
	if err := healthcheck(ops.Settings{Bind: secure.Listener.Addr().String(), TLS: true}); err == nil || !strings.Contains(err.Error(), "draining") {
		t.Errorf("with TLS: %v", err)
	}
	server := httptest.NewServer(draining)
	defer server.Close()
	_, port, _ := net.SplitHostPort(server.Listener.Addr().String())
	for _, addr := range []string{":" + port, "0.0.0.0:" + port, "[::]:" + port} {
		if err := healthcheck(ops.Settings{Bind: addr}); err == nil || !strings.Contains(err.Error(), "503 Service Unavailable: draining") {
			t.Errorf("%s: %v", addr, err)
		}
	}
}
