// Package ops is what a server shows to those who operate it: probes, metrics and profiles over HTTP, and its state to
// systemd; and how they ask it to read its files again. Begin at [Start], [Lifecycle] and [CatchHangups].
//
//	/livez /live            200 as long as the process answers
//	/readyz /ready          200 when it can serve, otherwise 503; /readyz says why
//	/healthz                200 like /livez; with ?verbose the state of each check of /readyz
//	/metrics                Prometheus
//	/streams                what each stream is doing, if the program says
//	/debug/felix            what the program has to show, if anything
//	/debug/pprof/           profiles, if they are switched on
//
// Probes are open to everybody; the rest can be protected by a bearer token or by client certificates. Whatever
// connects besides, and however slowly it speaks, probes are answered. On loopback only requests for a host of loopback
// are.
package ops

import (
	"bytes"
	"context"
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
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/felix-mq/felix/internal/readfile"
)

// Settings of the HTTP server and of the end.
type Settings struct {
	Bind      string `yaml:"metrics_bind" env:"FELIX_BROKER_METRICS_BIND" is:"address" doc:"TCP address for metrics and probes; empty for none"`
	TokenFile string `env:"FELIX_METRICS_TOKEN_FILE" doc:"file with the bearer token that everything but probes asks for, read at each request; empty asks for none"`
	TLS       bool   `env:"FELIX_METRICS_TLS" doc:"metrics and probes are served over HTTPS, with the certificate of FELIX_TLS_CERT_FILE"`
	ClientCA  string `env:"FELIX_METRICS_CLIENT_CA_FILE" doc:"PEM file of authorities whose client certificates everything but probes asks for, in place of the token if there is one; needs FELIX_METRICS_TLS"`
	Pprof     bool   `env:"FELIX_PPROF" doc:"profiles under /debug/pprof/; beyond loopback they need a token or client certificates"`

	Hosts []string `yaml:"metrics_allowed_hosts" env:"FELIX_METRICS_ALLOWED_HOSTS" doc:"host names that metrics and probes answer to, besides localhost, loopback addresses and their own address; *.NAME for all below a name, * for all. Without any, names are checked on loopback alone"`

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
	maxConns       = 256
	maxLong        = 32 // requests at a time of everything but probes
	maxScrapes     = 4
	maxHeaderBytes = 16 << 10
	maxTokenBytes  = 4 << 10
	headerTimeout  = 5 * time.Second
	readTimeout    = 10 * time.Second
	writeTimeout   = 2 * time.Minute // a profile takes its time
	idleTimeout    = 2 * time.Minute
)

// Server is the running HTTP server. It is a [prometheus.Collector] of metrics about itself, for the registry of
// Config.Metrics. Nil has none.
type Server struct {
	cfg      Config
	listener *conns
	hosts    *hosts
	server   *http.Server
	done     chan struct{}
}

// Start binds the address and serves until [Server.Close]. An address that cannot be bound is an error: a server that
// nobody can watch is not what was asked for. It returns nil and no error if Bind is empty.
func Start(cfg Config) (*Server, error) {
	if cfg.Bind == "" {
		return nil, nil
	}
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	listener, err := net.Listen("tcp", cfg.Bind)
	if err != nil {
		return nil, fmt.Errorf("ops: FELIX_BROKER_METRICS_BIND: %w", err)
	}
	if err := cfg.checkPublic(listener.Addr()); err != nil { // a name can lead elsewhere than a moment ago
		_ = listener.Close()
		return nil, err
	}
	if cfg.open() && !isLoopback(listener.Addr()) {
		cfg.Log.Warn("metrics are public", "addr", listener.Addr().String(), "hint", "FELIX_METRICS_TOKEN_FILE or FELIX_METRICS_CLIENT_CA_FILE")
	}
	s := &Server{cfg: cfg, listener: newConns(listener, maxConns), hosts: newHosts(cfg.Settings, listener), done: make(chan struct{})}
	s.server = &http.Server{
		Handler: s.handler(), MaxHeaderBytes: maxHeaderBytes, ConnContext: connContext,
		ReadHeaderTimeout: headerTimeout, ReadTimeout: readTimeout, WriteTimeout: writeTimeout, IdleTimeout: idleTimeout,
		ErrorLog: log.New(errorLog{cfg.Log}, "", 0), Protocols: new(http.Protocols),
	}
	s.server.Protocols.SetHTTP1(true) // one request at a time on a connection is what its bounds count on
	serve := s.server.Serve
	if cfg.TLS {
		s.server.TLSConfig = optionalClients(cfg.Certificate)
		serve = func(l net.Listener) error { return s.server.ServeTLS(l, "", "") }
	}
	cfg.Log.Info("metrics served", "addr", listener.Addr().String())
	go func() {
		defer close(s.done)
		if err := serve(s.listener); !errors.Is(err, http.ErrServerClosed) {
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

// Validate reports every problem that [Start] would have with the settings, up to binding the address, at once. It
// reads the files and resolves the address, and changes nothing.
func (cfg *Config) Validate() error {
	if cfg.Bind == "" {
		return nil
	}
	var errs []error
	if addr, err := net.ResolveTCPAddr("tcp", cfg.Bind); err != nil {
		errs = append(errs, fmt.Errorf("ops: metrics_bind (FELIX_BROKER_METRICS_BIND): %w", err))
	} else {
		errs = append(errs, cfg.checkPublic(addr))
	}
	if cfg.TLS && cfg.Certificate == nil {
		errs = append(errs, errors.New("ops: metrics_tls (FELIX_METRICS_TLS) needs FELIX_TLS_CERT_FILE and FELIX_TLS_KEY_FILE"))
	}
	if cfg.ClientCA != "" && !cfg.TLS {
		errs = append(errs, errors.New("ops: metrics_client_ca_file (FELIX_METRICS_CLIENT_CA_FILE) needs FELIX_METRICS_TLS"))
	}
	if cfg.TokenFile != "" {
		if _, err := readToken(context.Background(), cfg.TokenFile); err != nil {
			errs = append(errs, fmt.Errorf("ops: metrics_token_file (FELIX_METRICS_TOKEN_FILE): %w", err))
		}
	}
	for _, name := range cfg.Hosts {
		if err := checkHost(name); err != nil {
			errs = append(errs, fmt.Errorf("ops: metrics_allowed_hosts (FELIX_METRICS_ALLOWED_HOSTS): %w", err))
		}
	}
	return errors.Join(errs...)
}

// checkPublic refuses profiles that everybody could read.
func (cfg *Config) checkPublic(addr net.Addr) error {
	if !cfg.Pprof || !cfg.open() || isLoopback(addr) {
		return nil
	}
	return fmt.Errorf("ops: pprof (FELIX_PPROF) on %s would show memory contents to everybody: set FELIX_METRICS_TOKEN_FILE or FELIX_METRICS_CLIENT_CA_FILE, "+
		"or listen on loopback", addr)
}

var evictedDesc = prometheus.NewDesc("felix_http_connections_evicted_total", "Connections to the metrics and probes that were closed unused because there were too many.", nil, nil)

// Describe implements [prometheus.Collector].
func (s *Server) Describe(ch chan<- *prometheus.Desc) { ch <- evictedDesc }

// Collect implements [prometheus.Collector].
func (s *Server) Collect(ch chan<- prometheus.Metric) {
	if s != nil {
		ch <- prometheus.MustNewConstMetric(evictedDesc, prometheus.CounterValue, float64(s.listener.evicted.Load()))
	}
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

func isLoopback(addr net.Addr) bool {
	tcp, ok := addr.(*net.TCPAddr)
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
	probes, long := http.NewServeMux(), http.NewServeMux()
	probes.HandleFunc("GET /livez", ok)
	probes.HandleFunc("GET /live", ok)
	probes.HandleFunc("GET /healthz", s.healthz)
	probes.HandleFunc("GET /readyz", s.readyz)
	probes.HandleFunc("GET /ready", s.ready)
	limited := atMost(maxLong, s.protect(long)) // the token's file is read within the bound, too
	guard := func(path string, h http.Handler) {
		long.Handle("GET "+path, h)
		probes.Handle("GET "+path, limited)
	}
	guard("/metrics", promhttp.HandlerFor(s.cfg.Metrics, promhttp.HandlerOpts{MaxRequestsInFlight: maxScrapes}))
	if s.cfg.Streams != nil {
		guard("/streams", s.cfg.Streams)
	}
	if s.cfg.Debug != nil {
		guard("/debug/felix", s.cfg.Debug)
	}
	if s.cfg.Pprof {
		for path, h := range map[string]http.HandlerFunc{
			"": pprof.Index, "cmdline": pprof.Cmdline, "profile": pprof.Profile, "symbol": pprof.Symbol, "trace": pprof.Trace,
		} {
			guard("/debug/pprof/"+path, h)
		}
	}
	return handled(s.onlyHosts(probes))
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

// ready is readyz with the reference's answer: the same word whatever the reason is
// (docs/start/from-the-reference.md#broker).
func (s *Server) ready(w http.ResponseWriter, r *http.Request) {
	if s.failing() != "" {
		http.Error(w, "draining", http.StatusServiceUnavailable)
		return
	}
	ok(w, r)
}

// healthz is what container health checks ask: they restart what fails, and a broker that drains, or waits for its
// catalog, does not need that.
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
func (cfg *Config) open() bool { return cfg.TokenFile == "" && cfg.ClientCA == "" }

// protect lets those pass who show a certificate or the token, whichever is asked for.
func (s *Server) protect(next http.Handler) http.Handler {
	if s.cfg.open() {
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
	want, err := readToken(r.Context(), s.cfg.TokenFile)
	if err != nil {
		s.cfg.Log.Error("metrics token unreadable", "error", err)
		return false
	}
	return subtle.ConstantTimeCompare([]byte(given), want) == 1
}

func readToken(ctx context.Context, name string) ([]byte, error) {
	b, err := readfile.Read(ctx, name, maxTokenBytes)
	if err != nil {
		return nil, err
	}
	token := bytes.TrimSpace(b)
	if len(token) == 0 {
		return nil, fmt.Errorf("%s: want a token of 1 to %d bytes", name, maxTokenBytes)
	}
	return token, nil
}
