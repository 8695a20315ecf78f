package ops

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"

	"github.com/felix-mq/felix/internal/certfile"
	"github.com/felix-mq/felix/internal/dev"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func serve(t *testing.T, change func(*Config)) *Server {
	t.Helper()
	registry := prometheus.NewRegistry()
	registry.MustRegister(prometheus.NewGauge(prometheus.GaugeOpts{Name: "felix_test", Help: "Test."}))
	cfg := Config{Settings: Settings{Bind: "127.0.0.1:0"}, Metrics: registry, Log: slog.New(slog.DiscardHandler)}
	change(&cfg)
	s, err := Start(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return s
}

type answer struct {
	status int
	body   string
}

// ask makes a GET request, with a bearer token if there is one.
func ask(t *testing.T, s *Server, path, token string, conf *tls.Config) answer {
	t.Helper()
	transport := &http.Transport{TLSClientConfig: conf}
	defer transport.CloseIdleConnections()
	url := "http://" + s.Addr().String() + path
	if conf != nil {
		url = "https://" + s.Addr().String() + path
	}
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	res, err := (&http.Client{Transport: transport}).Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return answer{res.StatusCode, string(body)}
}

func TestProbes(t *testing.T) {
	var life Lifecycle
	var catalog atomic.Pointer[error]
	missing := errors.New("not read yet")
	catalog.Store(&missing)
	s := serve(t, func(cfg *Config) {
		cfg.Checks = []Check{life.Check(), {"catalog", func() error {
			if err := catalog.Load(); err != nil {
				return *err
			}
			return nil
		}}}
	})
	want := func(state string, answers map[string]answer) {
		t.Helper()
		for path, want := range answers {
			if got := ask(t, s, path, "", nil); got != want {
				t.Errorf("%s: %s answers %+v, want %+v", state, path, got, want)
			}
		}
	}
	alive := answer{200, "ok\n"}
	want("start", map[string]answer{
		"/livez": alive, "/live": alive, "/healthz": alive,
		"/readyz": {503, "lifecycle: starting\ncatalog: not read yet\n"}, "/ready": {503, "draining\n"},
		"/healthz?verbose": {200, "[-]lifecycle: starting\n[-]catalog: not read yet\nok\n"},
	})
	life.Serving()
	want("no catalog", map[string]answer{"/readyz": {503, "catalog: not read yet\n"}, "/ready": {503, "draining\n"}})
	catalog.Store(nil)
	want("serving", map[string]answer{
		"/readyz": alive, "/ready": alive, "/healthz?verbose": {200, "[+]lifecycle ok\n[+]catalog ok\nok\n"},
	})
	life.Draining()
	want("draining", map[string]answer{
		"/livez": alive, "/live": alive, "/healthz": alive, "/readyz": {503, "lifecycle: draining\n"}, "/ready": {503, "draining\n"},
		"/nothing": {404, "404 page not found\n"}, "/debug/pprof/": {404, "404 page not found\n"}, "/debug/felix": {404, "404 page not found\n"},
	})
	if got := ask(t, s, "/metrics", "", nil); got.status != 200 || !strings.Contains(got.body, "felix_test 0\n") {
		t.Errorf("/metrics answers %+v", got)
	}
}

// guarded are the paths that are not open to everybody.
var guarded = []string{"/metrics", "/debug/felix", "/debug/pprof/", "/debug/pprof/heap", "/debug/pprof/cmdline"}

func TestToken(t *testing.T) {
	file := filepath.Join(t.TempDir(), "token")
	write := func(token string) {
		t.Helper()
		if err := os.WriteFile(file, []byte(token), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("secret\n")
	s := serve(t, func(cfg *Config) {
		cfg.TokenFile, cfg.Pprof, cfg.Debug = file, true, http.HandlerFunc(ok)
	})
	for _, path := range guarded {
		for token, want := range map[string]int{"": 401, "secre": 401, "secrets": 401, "secret": 200} {
			if got := ask(t, s, path, token, nil); got.status != want {
				t.Errorf("%s with token %q answers %+v", path, token, got)
			}
		}
	}
	if got := ask(t, s, "/readyz", "", nil); got.status != 200 {
		t.Errorf("a probe needs a token: %+v", got)
	}
	write("other")
	if got := ask(t, s, "/metrics", "other", nil); got.status != 200 {
		t.Errorf("changed token: %+v", got)
	}
	write("")
	for _, token := range []string{"", "other", " "} {
		if got := ask(t, s, "/metrics", token, nil); got.status != 401 {
			t.Errorf("empty token file, token %q: %+v", token, got)
		}
	}
}

func TestClientCertificates(t *testing.T) {
	dir := t.TempDir()
	path := func(name string, content []byte) string {
		name = filepath.Join(dir, name)
		if err := os.WriteFile(name, content, 0o600); err != nil {
			t.Fatal(err)
		}
		return name
	}
	ca, err := dev.NewCA()
	if err != nil {
		t.Fatal(err)
	}
	scrapers, err := dev.NewCA()
	if err != nil {
		t.Fatal(err)
	}
	scraper, err := scrapers.Issue()
	if err != nil {
		t.Fatal(err)
	}
	clientCA := path("ca", scrapers.CertPEM())
	files := certificateOf(t, ca)
	files.ClientCA = clientCA
	source, err := certfile.Load(files, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	s := serve(t, func(cfg *Config) {
		cfg.TLS, cfg.ClientCA, cfg.Certificate, cfg.Pprof, cfg.Debug = true, clientCA, source.TLS(), true, http.HandlerFunc(ok)
	})
	stranger := &tls.Config{RootCAs: ca.Pool(), ServerName: "localhost"}
	known := stranger.Clone()
	known.Certificates = []tls.Certificate{scraper}
	for _, path := range guarded {
		if got := ask(t, s, path, "token", stranger); got.status != 401 {
			t.Errorf("%s without a certificate answers %+v", path, got)
		}
		if got := ask(t, s, path, "", known); got.status != 200 {
			t.Errorf("%s with a certificate answers %+v", path, got)
		}
	}
	if got := ask(t, s, "/readyz", "", stranger); got.status != 200 {
		t.Errorf("a probe needs a certificate: %+v", got)
	}
}

func TestStartErrors(t *testing.T) {
	empty := filepath.Join(t.TempDir(), "empty")
	if err := os.WriteFile(empty, []byte(" \n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name     string
		settings Settings
		want     []string
	}{
		{"address", Settings{Bind: "256.0.0.1:1"}, []string{"FELIX_BROKER_METRICS_BIND"}},
		{"no certificate", Settings{Bind: "127.0.0.1:0", TLS: true, TokenFile: "missing"}, []string{"FELIX_TLS_CERT_FILE", "FELIX_METRICS_TOKEN_FILE", "missing"}},
		{"client authorities without TLS", Settings{Bind: "127.0.0.1:0", ClientCA: "ca"}, []string{"FELIX_METRICS_CLIENT_CA_FILE", "FELIX_METRICS_TLS"}},
		{"no token", Settings{Bind: "127.0.0.1:0", TokenFile: empty}, []string{empty}},
		{"public profiles", Settings{Bind: "0.0.0.0:0", Pprof: true}, []string{"FELIX_PPROF", "FELIX_METRICS_TOKEN_FILE"}},
	} {
		s, err := Start(Config{Settings: c.settings, Metrics: prometheus.NewRegistry(), Log: slog.New(slog.DiscardHandler)})
		if err == nil {
			s.Close()
			t.Errorf("%s: no error", c.name)
			continue
		}
		for _, want := range c.want {
			if !strings.Contains(err.Error(), want) {
				t.Errorf("%s: %v does not say %q", c.name, err, want)
			}
		}
	}
	if s, err := Start(Config{}); s != nil || err != nil {
		t.Errorf("without an address: %v, %v", s, err)
	}
	var log bytes.Buffer
	serve(t, func(cfg *Config) { cfg.Bind, cfg.Log = "0.0.0.0:0", slog.New(slog.NewTextHandler(&log, nil)) })
	if !strings.Contains(log.String(), "metrics are public") {
		t.Errorf("it does not say that everybody can read: %s", log.String())
	}
}

// systemd is notified of readiness, of life as long as there is any, and of the end.
func TestSystemd(t *testing.T) {
	address := filepath.Join(t.TempDir(), "notify")
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: address, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	t.Setenv("NOTIFY_SOCKET", address)
	t.Setenv("WATCHDOG_USEC", "2000")
	// want waits for a state, after any number of others.
	want := func(state, others string) {
		t.Helper()
		b := make([]byte, 100)
		_ = conn.SetReadDeadline(time.Now().Add(20 * time.Second))
		for {
			n, err := conn.Read(b)
			if string(b[:n]) == state {
				return
			}
			if err != nil || string(b[:n]) != others {
				t.Fatalf("told %q, %v, want %q", b[:n], err, state)
			}
		}
	}
	var life Lifecycle
	life.Serving()
	want("READY=1", "")
	ctx, cancel := context.WithCancel(t.Context())
	var looks atomic.Int64
	ended := make(chan error, 1)
	go func() {
		ended <- Watchdog(ctx, func() { looks.Add(1) })
		life.Draining()
	}()
	for range 3 {
		want("WATCHDOG=1", "")
	}
	cancel()
	want("STOPPING=1", "WATCHDOG=1") // reading on: a watchdog that finds the socket full waits
	if err := <-ended; err != nil || looks.Load() < 3 {
		t.Errorf("%v after %d looks", err, looks.Load())
	}
	t.Setenv("WATCHDOG_USEC", "x")
	if err := Watchdog(t.Context(), nil); err == nil {
		t.Error("a bad WATCHDOG_USEC is no error")
	}
}
