// Package certfile keeps a server's certificate in step with its files: when a renewal replaces the files, handshakes
// from then on show the new certificate. Connections that exist notice nothing.
//
// The files are read every second, and as soon as the system reports a change, and compared with what was read before,
// content by content. That finds a rename over a file, a symbolic link that points to another directory (as Kubernetes
// updates a mounted Secret) and a write in place alike, on every file system: see package filewatch.
//
// A pair that does not load, as between the renames of its two files, changes nothing: the last good one stays, and the
// gauge felix_tls_reload_failing and one line of log say so. All certificates of the file count: one that has expired,
// is not valid yet or does not belong to the chain makes the pair bad. A pair that was refused because of the time is
// tried again when its time has come. Begin at [Load] and [Source.Watch].
package certfile

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/felix-mq/felix/internal/filewatch"
	"github.com/felix-mq/felix/internal/readfile"
)

// Files names the files of a server. All are PEM.
type Files struct {
	Cert     string `env:"FELIX_TLS_CERT_FILE" doc:"PEM file of the certificate and what leads to its authority, read again when it changes"`
	Key      string `env:"FELIX_TLS_KEY_FILE" doc:"PEM file of the certificate's private key, read again when it changes"`
	ClientCA string `env:"FELIX_TLS_CLIENT_CA_FILE" doc:"PEM file of the authorities whose certificates clients have to show, read again when it changes; empty asks for none"`
}

// Every is how often [Source.Watch] looks at the files at least.
const Every = time.Second

// maxFile bounds what is read: a chain is a few KiB.
const maxFile = 1 << 20

// Source is the certificate of a server, as its files have it. Its methods may be called from any goroutine. It is a
// [prometheus.Collector].
type Source struct {
	files Files
	log   *slog.Logger

	current atomic.Pointer[pair]
	failing atomic.Bool
	reloads atomic.Uint64

	mu      sync.Mutex     // held while the files are looked at
	tried   [3][]byte      // contents that were last looked at, nil if they could not be read
	refused *validityError // why, if it was because of the time
}

// pair is what one reading of the files gave. It does not change.
type pair struct {
	cert     tls.Certificate
	notAfter time.Time   // when the first of its certificates expires
	conf     *tls.Config // with client authorities, or nil
}

// Load reads the files. Both Cert and Key must be set. The error names the file that is wrong.
func Load(files Files, log *slog.Logger) (*Source, error) {
	if files.Cert == "" || files.Key == "" {
		return nil, errors.New("certfile: a certificate and its key come together: set FELIX_TLS_CERT_FILE and FELIX_TLS_KEY_FILE")
	}
	s := &Source{files: files, log: log}
	contents, err := s.read(context.Background())
	if err != nil {
		return nil, err
	}
	p, err := s.parse(contents)
	if err != nil {
		return nil, err
	}
	s.tried = contents
	s.current.Store(p)
	return s, nil
}

// TLS returns a configuration that shows the certificate as it is at each handshake, and asks clients for theirs if
// there is an authority for them. Sessions are not resumed then: a client shows its certificate each time, to the
// authorities of that time.
func (s *Source) TLS() *tls.Config {
	conf := &tls.Config{MinVersion: tls.VersionTLS13, GetCertificate: s.certificate}
	if s.files.ClientCA != "" {
		conf.GetConfigForClient = func(*tls.ClientHelloInfo) (*tls.Config, error) { return s.current.Load().conf, nil }
	}
	return conf
}

func (s *Source) certificate(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	return &s.current.Load().cert, nil
}

// Watch looks at the files when they may have changed, and with a period at the latest, until the context ends.
func (s *Source) Watch(ctx context.Context, every time.Duration) {
	names := []string{s.files.Cert, s.files.Key}
	if s.files.ClientCA != "" {
		names = append(names, s.files.ClientCA)
	}
	w := filewatch.New(every, names...)
	defer w.Close()
	s.follow(ctx, w.Wait)
}

// follow looks at the files each time that wait returns, until that fails.
func (s *Source) follow(ctx context.Context, wait func(context.Context) error) {
	for wait(ctx) == nil {
		_ = s.look(ctx, false) // which has been logged
	}
}

// Reload looks at the files now, and reports why what they hold cannot be used. The last good certificate stays then.
// It blocks while the files are read, for 15 seconds at most.
func (s *Source) Reload(ctx context.Context) error { return s.look(ctx, true) }

// look takes what the files hold now if it is new and good. What is bad is said once, until it is something else or,
// with asked, each time.
func (s *Source) look(ctx context.Context, asked bool) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	contents, err := s.read(ctx)
	if ctx.Err() != nil {
		return ctx.Err() // which says nothing of the files
	}
	same := err == nil && equal(contents, s.tried) || err != nil && s.tried[0] == nil
	due := s.refused != nil && s.refused.over(time.Now())
	if same && !due && (!asked || !s.failing.Load()) {
		return nil // as good, as bad or as unreadable as before
	}
	p, err := s.parseRead(contents, err)
	if err != nil { // perhaps the files were exchanged between two reads
		contents, err = s.read(ctx)
		p, err = s.parseRead(contents, err)
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	s.tried, s.refused = contents, nil
	if err != nil {
		_ = errors.As(err, &s.refused)
		s.log.Error("certificate not reloaded", "error", err, "kept_until", s.current.Load().notAfter)
		s.failing.Store(true) // after the line: a reader of the gauge looks for it
		return err
	}
	s.reloads.Add(1)
	s.failing.Store(false)
	s.current.Store(p) // last: a client that gets the new certificate finds the rest
	s.log.Info("certificate reloaded", "file", s.files.Cert, "serial", p.cert.Leaf.SerialNumber.Text(16), "not_after", p.notAfter)
	return nil
}

// parseRead is parse for what read returned.
func (s *Source) parseRead(contents [3][]byte, err error) (*pair, error) {
	if err != nil {
		return nil, err
	}
	return s.parse(contents)
}

func (s *Source) read(ctx context.Context) (contents [3][]byte, err error) {
	for i, f := range []struct{ variable, name string }{
		{"FELIX_TLS_CERT_FILE", s.files.Cert},
		{"FELIX_TLS_KEY_FILE", s.files.Key},
		{"FELIX_TLS_CLIENT_CA_FILE", s.files.ClientCA},
	} {
		if f.name == "" {
			continue
		}
		if contents[i], err = readfile.Read(ctx, f.name, maxFile); err != nil {
			return [3][]byte{}, fmt.Errorf("certfile: %s: %w", f.variable, err)
		}
	}
	return contents, nil
}

func equal(a, b [3][]byte) bool {
	for i := range a {
		if !bytes.Equal(a[i], b[i]) {
			return false
		}
	}
	return true
}

// parse checks all that a handshake would fail of.
func (s *Source) parse(contents [3][]byte) (*pair, error) {
	cert, err := tls.X509KeyPair(contents[0], contents[1])
	if err != nil {
		return nil, fmt.Errorf("certfile: %s with %s: %w", s.files.Cert, s.files.Key, err)
	}
	notAfter, err := checkChain(&cert, time.Now())
	if err != nil {
		return nil, fmt.Errorf("certfile: %s: %w", s.files.Cert, err)
	}
	p := &pair{cert: cert, notAfter: notAfter}
	if s.files.ClientCA != "" {
		clients := x509.NewCertPool()
		if !clients.AppendCertsFromPEM(contents[2]) {
			return nil, fmt.Errorf("certfile: %s holds no certificate", s.files.ClientCA)
		}
		p.conf = &tls.Config{
			MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{cert},
			ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: clients, SessionTicketsDisabled: true,
		}
	}
	return p, nil
}

var (
	expiryDesc  = prometheus.NewDesc("felix_tls_certificate_expiry_timestamp_seconds", "When the first certificate of the chain that is shown to clients expires, in seconds since 1970.", nil, nil)
	failingDesc = prometheus.NewDesc("felix_tls_reload_failing", "1 if the files of the certificate hold none that can be used, and an earlier one is shown.", nil, nil)
	reloadsDesc = prometheus.NewDesc("felix_tls_reloads_total", "Certificates taken from changed files.", nil, nil)
)

// Describe implements [prometheus.Collector].
func (s *Source) Describe(ch chan<- *prometheus.Desc) {
	ch <- expiryDesc
	ch <- failingDesc
	ch <- reloadsDesc
}

// Collect implements [prometheus.Collector].
func (s *Source) Collect(ch chan<- prometheus.Metric) {
	failing := 0.0
	if s.failing.Load() {
		failing = 1
	}
	ch <- prometheus.MustNewConstMetric(expiryDesc, prometheus.GaugeValue, float64(s.current.Load().notAfter.Unix()))
	ch <- prometheus.MustNewConstMetric(failingDesc, prometheus.GaugeValue, failing)
	ch <- prometheus.MustNewConstMetric(reloadsDesc, prometheus.CounterValue, float64(s.reloads.Load()))
}
