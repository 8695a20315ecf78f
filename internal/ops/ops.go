// Package ops is what a server shows to those who operate it: probes, metrics and profiles over HTTP, and its state to
// systemd. Begin at [Start] and [Lifecycle].
//
//	/livez /live            200 as long as the process answers
//	/readyz /ready          200 when it can serve, otherwise 503; /readyz says why
//	/healthz                200 like /livez; with ?verbose the state of each check behind /readyz
//	/metrics                Prometheus
//	/debug/felix            what the program has to show, if anything
//	/debug/pprof/           profiles, if they are switched on
//
// Probes are open to everybody; the rest can be protected by a bearer token or by client certificates.
package ops

import (
	"bytes"
	"crypto/subtle"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log"
	"log/slog"
	"net"
	"net/http"
	"net/http/pprof"
	"os"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"golang.org/x/net/netutil"
)

// Settings of the HTTP server and of the end.
type Settings struct {
	Bind      string `yaml:"metrics_bind" env:"FELIX_BROKER_METRICS_BIND" is:"address" doc:"TCP address for metrics and probes; empty for none"`
	TokenFile string `env:"FELIX_METRICS_TOKEN_FILE" doc:"file with the bearer token that everything but probes asks for, read at each request; empty asks for none"`
	TLS       bool   `env:"FELIX_METRICS_TLS" doc:"metrics and probes are served over HTTPS, with the certificate of FELIX_TLS_CERT_FILE"`
	ClientCA  string `env:"FELIX_METRICS_CLIENT_CA_FILE" doc:"PEM file of authorities whose client certificates everything but probes asks for, in place of the token if there is one; needs FELIX_METRICS_TLS"`
	Pprof     bool   `env:"FELIX_PPROF" doc:"profiles under /debug/pprof/; beyond loopback they need a token or client certificates"`

	DrainDelay time.Duration `env:"FELIX_DRAIN_DELAY_MS" unit:"ms" min:"0s" max:"10m" doc:"time for which a shutdown says that it is not ready, and serves on, before it refuses connections; part of FELIX_SHUTDOWN_DRAIN_TIMEOUT_MS, at most half of it"`
}

// DefaultSettings returns the settings of a server that nobody has told anything.
func DefaultSettings() Settings {
	return Settings{Bind: "127.0.0.1:8080", DrainDelay: 250 * time.Millisecond}
}

// Check is one condition of readiness. Err returns why it is not met, or nil, at once and from any goroutine.
type Check struct {
	Name string
	Err  func() error
}

// Config is what a [Server] serves. It is copied.
type Config struct {
	Settings
	Metrics prometheus.Gatherer
	Checks  []Check      // all have to pass for readiness
	Streams http.Handler // of /streams, or nil: what each stream is doing, for people
	Debug   http.Handler // of /debug/felix, or nil
	// Certificate is the configuration with the server's certificate, needed with Settings.TLS. If it asks for client
	// certificates, it does so with the authorities of Settings.ClientCA.
	Certificate *tls.Config
	Log         *slog.Logger
}

// Bounds of what clients of the HTTP server may cost.
const (
	maxConns       = 64
	maxScrapes     = 4
	maxHeaderBytes = 16 << 10
	maxTokenBytes  = 4 << 10
	readTimeout    = 10 * time.Second
	writeTimeout   = 2 * time.Minute // a profile takes its time
	idleTimeout    = 2 * time.Minute
)

// Server is the running HTTP server.
type Server struct {
	cfg      Config
	listener net.Listener
	server   *http.Server
	done     chan struct{}
}

// Start binds the address and serves until [Server.Close]. An address that cannot be bound is an error: a server that
// nobody can watch is not what was asked for. It returns nil and no error if Bind is empty.
func Start(cfg Config) (*Server, error) {
	if cfg.Bind == "" {
		return nil, nil
	}
	if err := cfg.check(); err != nil {
		return nil, err
	}
	listener, err := net.Listen("tcp", cfg.Bind)
	if err != nil {
		return nil, fmt.Errorf("ops: FELIX_BROKER_METRICS_BIND: %w", err)
	}
	s := &Server{cfg: cfg, listener: listener, done: make(chan struct{})}
	if s.open() && !isLoopback(listener) {
		if cfg.Pprof {
			_ = listener.Close()
			return nil, fmt.Errorf("ops: FELIX_PPROF on %s would show memory contents to everybody: set FELIX_METRICS_TOKEN_FILE or FELIX_METRICS_CLIENT_CA_FILE, "+
				"or listen on loopback", listener.Addr())
		}
		cfg.Log.Warn("metrics are public", "addr", listener.Addr().String(), "hint", "FELIX_METRICS_TOKEN_FILE or FELIX_METRICS_CLIENT_CA_FILE")
	}
	s.server = &http.Server{
		Handler: s.handler(), MaxHeaderBytes: maxHeaderBytes,
		ReadTimeout: readTimeout, WriteTimeout: writeTimeout, IdleTimeout: idleTimeout,
		ErrorLog: log.New(errorLog{cfg.Log}, "", 0),
	}
	limited := netutil.LimitListener(listener, maxConns)
	serve := s.server.Serve
	if cfg.TLS {
		s.server.TLSConfig = optionalClients(cfg.Certificate)
		serve = func(l net.Listener) error { return s.server.ServeTLS(l, "", "") }
	}
	cfg.Log.Info("metrics served", "addr", listener.Addr().String())
	go func() {
		defer close(s.done)
		if err := serve(limited); !errors.Is(err, http.ErrServerClosed) {
			cfg.Log.Error("metrics server ended", "error", err)
		}
	}()
	return s, nil
}

// errorLog takes what package http has to say of requests that fail, as one event.
type errorLog struct{ log *slog.Logger }

func (e errorLog) Write(b []byte) (int, error) {
	e.log.Debug("metrics request failed", "error", string(bytes.TrimSpace(b)))
	return len(b), nil
}

// check reports every problem of the settings at once.
func (cfg *Config) check() error {
	var errs []error
	if cfg.TLS && cfg.Certificate == nil {
		errs = append(errs, errors.New("ops: FELIX_METRICS_TLS needs FELIX_TLS_CERT_FILE and FELIX_TLS_KEY_FILE"))
	}
	if cfg.ClientCA != "" && !cfg.TLS {
		errs = append(errs, errors.New("ops: FELIX_METRICS_CLIENT_CA_FILE needs FELIX_METRICS_TLS"))
	}
	if cfg.TokenFile != "" {
		if _, err := readToken(cfg.TokenFile); err != nil {
			errs = append(errs, fmt.Errorf("ops: FELIX_METRICS_TOKEN_FILE: %w", err))
		}
	}
	return errors.Join(errs...)
}

// Addr returns the address that the server listens on.
func (s *Server) Addr() net.Addr { return s.listener.Addr() }

// Close ends the server and its connections at once, and waits for its goroutine. Closing nil does nothing.
func (s *Server) Close() {
	if s == nil {
		return
	}
	_ = s.server.Close()
	<-s.done
}

func isLoopback(l net.Listener) bool {
	tcp, ok := l.Addr().(*net.TCPAddr)
	return ok && tcp.IP.IsLoopback()
}

// optionalClients turns a demand for client certificates into a wish, because probes have none; protect insists.
func optionalClients(conf *tls.Config) *tls.Config {
	conf = conf.Clone()
	if inner := conf.GetConfigForClient; inner != nil {
		conf.GetConfigForClient = func(info *tls.ClientHelloInfo) (*tls.Config, error) {
			c, err := inner(info)
			if c == nil || err != nil {
				return nil, err
			}
			c = c.Clone()
			c.ClientAuth = tls.VerifyClientCertIfGiven
			return c, nil
		}
	}
	return conf
}

func (s *Server) handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /livez", ok)
	mux.HandleFunc("GET /live", ok)
	mux.HandleFunc("GET /healthz", s.healthz)
	mux.HandleFunc("GET /readyz", s.readyz)
	mux.HandleFunc("GET /ready", s.ready)
	mux.Handle("GET /metrics", s.protect(promhttp.HandlerFor(s.cfg.Metrics, promhttp.HandlerOpts{MaxRequestsInFlight: maxScrapes})))
	if s.cfg.Streams != nil {
		mux.Handle("GET /streams", s.protect(s.cfg.Streams))
	}
	if s.cfg.Debug != nil {
		mux.Handle("GET /debug/felix", s.protect(s.cfg.Debug))
	}
	if s.cfg.Pprof {
		for path, h := range map[string]http.HandlerFunc{
			"": pprof.Index, "cmdline": pprof.Cmdline, "profile": pprof.Profile, "symbol": pprof.Symbol, "trace": pprof.Trace,
		} {
			mux.Handle("GET /debug/pprof/"+path, s.protect(h))
		}
	}
	return mux
}

func ok(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "ok\n") }

// failing describes the checks that fail, one a line.
func (s *Server) failing() string {
	var b strings.Builder
	for _, c := range s.cfg.Checks {
		if err := c.Err(); err != nil {
			fmt.Fprintf(&b, "%s: %v\n", c.Name, err)
		}
	}
	return b.String()
}

func (s *Server) readyz(w http.ResponseWriter, r *http.Request) {
	if why := s.failing(); why != "" {
		http.Error(w, strings.TrimSuffix(why, "\n"), http.StatusServiceUnavailable)
		return
	}
	ok(w, r)
}

// ready is readyz with the reference's answer: the same word whatever the reason is (configuration.md, section 10).
func (s *Server) ready(w http.ResponseWriter, r *http.Request) {
	if s.failing() != "" {
		http.Error(w, "draining", http.StatusServiceUnavailable)
		return
	}
	ok(w, r)
}

// healthz is what container health checks ask: they restart what fails, and a broker that drains, or waits for its
// catalogue, does not need that.
func (s *Server) healthz(w http.ResponseWriter, r *http.Request) {
	if r.URL.Query().Has("verbose") {
		for _, c := range s.cfg.Checks {
			if err := c.Err(); err != nil {
				_, _ = fmt.Fprintf(w, "[-]%s: %v\n", c.Name, err)
			} else {
				_, _ = fmt.Fprintf(w, "[+]%s ok\n", c.Name)
			}
		}
	}
	ok(w, r)
}

// open reports whether everybody may see everything.
func (s *Server) open() bool { return s.cfg.TokenFile == "" && s.cfg.ClientCA == "" }

// protect lets those pass who show a certificate or the token, whichever is asked for.
func (s *Server) protect(next http.Handler) http.Handler {
	if s.open() {
		return next
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if s.cfg.ClientCA != "" && r.TLS != nil && len(r.TLS.VerifiedChains) > 0 || s.cfg.TokenFile != "" && s.bears(r) {
			next.ServeHTTP(w, r)
			return
		}
		w.Header().Set("WWW-Authenticate", "Bearer")
		http.Error(w, "unauthorized", http.StatusUnauthorized)
	})
}

// bears reports whether the request has the token. Its file is read each time, so that the token can be changed.
func (s *Server) bears(r *http.Request) bool {
	given, found := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	if !found {
		return false
	}
	want, err := readToken(s.cfg.TokenFile)
	if err != nil {
		s.cfg.Log.Error("metrics token unreadable", "error", err)
		return false
	}
	return subtle.ConstantTimeCompare([]byte(given), want) == 1
}

func readToken(name string) ([]byte, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	b, err := io.ReadAll(io.LimitReader(f, maxTokenBytes+1))
	if err != nil {
		return nil, err
	}
	token := bytes.TrimSpace(b)
	if len(token) == 0 || len(b) > maxTokenBytes {
		return nil, fmt.Errorf("%s: want a token of 1 to %d bytes", name, maxTokenBytes)
	}
	return token, nil
}
