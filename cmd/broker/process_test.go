package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/felix-mq/felix/client"
	"github.com/felix-mq/felix/internal/dev"
	"github.com/felix-mq/felix/quicx"
)

var (
	drainRounds = flag.Int("drain.rounds", 2, "times that TestDrainUnderLoad ends a broker")
	swaps       = flag.Int("swaps", 3, "times that TestCertificateSwaps replaces the certificate")
)

// asBroker makes this test program a broker.
const asBroker = "TEST_RUN_AS_BROKER"

func TestMain(m *testing.M) {
	if os.Getenv(asBroker) != "" {
		os.Exit(run(os.Args[1:], os.Stdout, os.Stderr))
	}
	goleak.VerifyTestMain(m)
}

// program is a broker in a process of its own.
type program struct {
	ready
	http   string
	cmd    *exec.Cmd
	stderr *output
	exited chan error
}

func startProgram(t *testing.T, env ...string) *program {
	t.Helper()
	return startWith(t, []string{"--dev"}, env...)
}

// startWith is startProgram with other arguments, which have to make the broker print its ready line.
func startWith(t *testing.T, args []string, env ...string) *program {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	p := &program{cmd: exec.Command(self, args...), stderr: newOutput(), exited: make(chan error, 1)}
	p.cmd.Env = append(os.Environ(), asBroker+"=1", "FELIX_QUIC_BIND=127.0.0.1:0", "FELIX_BROKER_METRICS_BIND=127.0.0.1:0",
		"FELIX_HANDSHAKES_PER_PREFIX=-1", "FELIX_SUB_QUEUE_POLICY=block")
	p.cmd.Env = append(p.cmd.Env, env...)
	p.cmd.Stderr = p.stderr
	stdout, err := p.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if p.exited != nil {
			_ = p.cmd.Process.Kill()
			if err := <-p.exited; err == nil {
				t.Error("a broker exited with 0 when it was killed")
			}
		}
	})
	err = json.NewDecoder(stdout).Decode(&p.ready)
	go func() { p.exited <- p.cmd.Wait() }()
	if err != nil {
		t.Fatalf("no ready line: %v\n%s", err, p.stderr)
	}
	// Its log comes through another pipe.
	for deadline := time.Now().Add(20 * time.Second); !strings.Contains(p.stderr.String(), "event=metrics_served") && time.Now().Before(deadline); {
		time.Sleep(time.Millisecond)
	}
	p.http = "http://" + metricsAddr(t, p.stderr.String())
	return p
}

// end sends SIGTERM and returns how the process ended, and when.
func (p *program) end(t *testing.T) (took time.Duration, err error) {
	t.Helper()
	began := time.Now()
	if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-p.exited:
		p.exited = nil
		return time.Since(began), err
	case <-time.After(time.Minute):
		t.Fatalf("does not end:\n%s", p.stderr)
		return 0, nil
	}
}

func (p *program) roots(t *testing.T) *tls.Config {
	t.Helper()
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM([]byte(p.CACert)) {
		t.Fatal("no certificate in the ready line")
	}
	return &tls.Config{RootCAs: pool, ServerName: "localhost"}
}

func (p *program) connect(ctx context.Context, t *testing.T, conf *tls.Config) *client.Client {
	t.Helper()
	c, err := client.Connect(ctx, p.Addr, client.WithTLS(conf), client.WithToken(p.Tenant, p.Token), client.WithWhileDown(client.WhileDownFail))
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// load is publishers and subscriptions of one stream that run until their connections end, and what came of them.
type load struct {
	published atomic.Int64
	clients   []*client.Client
	acked     chan []string
	received  chan map[string]bool
	stop      context.CancelFunc // ends the publishers
	ends      sync.Map           // of error texts with which publishers ended
}

func (p *program) load(ctx context.Context, t *testing.T, conf *tls.Config, publishers, subscribers int) *load {
	t.Helper()
	l := &load{acked: make(chan []string, publishers), received: make(chan map[string]bool, subscribers)}
	for range subscribers {
		c := p.connect(ctx, t, conf)
		l.clients = append(l.clients, c)
		s, err := c.Subscribe(ctx, p.Namespace, p.Streams[0], client.WithoutResume())
		if err != nil {
			t.Fatal(err)
		}
		go func() {
			all := make(map[string]bool)
			for {
				b, err := s.NextBatch(ctx)
				if err != nil {
					l.received <- all
					return
				}
				for _, payload := range b.Payloads() {
					all[string(payload)] = true
				}
			}
		}()
	}
	publishing, stop := context.WithCancel(ctx)
	l.stop = stop
	for i := range publishers {
		c := p.connect(ctx, t, conf)
		l.clients = append(l.clients, c)
		go func() {
			var all []string
			pub := c.Publisher(p.Namespace, p.Streams[0])
			for publishing.Err() == nil {
				payload := fmt.Sprint(i, " ", len(all))
				if err := pub.Publish(ctx, []byte(payload)); err != nil {
					l.ends.Store(err.Error(), true)
					break
				}
				all = append(all, payload)
				l.published.Add(1)
			}
			l.acked <- all
		}()
	}
	return l
}

// account returns how many events were acknowledged, and checks that each came to every subscription. The subscriptions
// have ended, or do so with their clients.
func (l *load) account(t *testing.T) (acked int) {
	t.Helper()
	l.stop()
	var all []string
	for range cap(l.acked) {
		all = append(all, <-l.acked...)
	}
	for range cap(l.received) {
		got := <-l.received
		missing := slices.DeleteFunc(slices.Clone(all), func(e string) bool { return got[e] })
		if len(missing) > 0 {
			t.Errorf("%d of %d acknowledged events are missing: %.200q", len(missing), len(all), missing)
		}
	}
	return len(all)
}

func (l *load) close() {
	for _, c := range l.clients {
		c.Close()
	}
}

// dials makes one connection after the other until the context ends, and tells of each. quicx, because a client hides
// attempts that fail.
func dials(ctx context.Context, addr string, conf *tls.Config, result func(error)) {
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for ctx.Err() == nil {
		c, err := quicx.Dial(ctx, addr, conf, quicx.Config{HandshakeTimeout: 20 * time.Second, SendBuffer: 64 << 10, RecvBuffer: 64 << 10})
		if ctx.Err() == nil {
			result(err)
		}
		if err == nil {
			_ = c.Close(0, "")
		}
		<-tick.C
	}
}

// first keeps the moment of its first call.
type first struct {
	once sync.Once
	at   time.Time
	done chan struct{}
}

func newFirst() *first { return &first{done: make(chan struct{})} }

func (f *first) set(also func()) {
	f.once.Do(func() {
		f.at = time.Now()
		if also != nil {
			also()
		}
		close(f.done)
	})
}

// Brokers are ended by SIGTERM under load. Each exits with 0, which it does only within its budget; nothing that was
// acknowledged is missing; and readiness fell before the first connection was refused.
func TestDrainUnderLoad(t *testing.T) {
	var took []time.Duration
	acked, lead := 0, time.Hour
	for round := range *drainRounds {
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
		// The probe runs during the load, on the same processors, and has to be scheduled within the delay.
		p := startProgram(t, "FELIX_SHUTDOWN_DRAIN_TIMEOUT_MS=10000", "FELIX_DRAIN_DELAY_MS=1000")
		conf := p.roots(t)
		l := p.load(ctx, t, conf, 4, 6)
		watching, stopWatching := context.WithCancel(ctx)
		var watchers sync.WaitGroup
		unready, refused := newFirst(), newFirst()
		var why error // of refused
		var signaled atomic.Bool
		watchers.Go(func() {
			transport := &http.Transport{}
			defer transport.CloseIdleConnections()
			probe := http.Client{Transport: transport, Timeout: 20 * time.Second}
			for watching.Err() == nil {
				res, err := probe.Get(p.http + "/readyz")
				if err != nil {
					return // it is gone
				}
				res.Body.Close()
				if res.StatusCode != http.StatusOK {
					unready.set(nil)
					return
				}
				time.Sleep(time.Millisecond)
			}
		})
		for range 2 {
			watchers.Go(func() {
				dials(watching, p.Addr, conf, func(err error) {
					if err == nil {
						return
					}
					refused.set(func() { why = err })
					if !signaled.Load() {
						t.Errorf("refused before the signal: %v", err)
					}
				})
			})
		}
		for until := time.Now().Add(time.Duration(100+10*(round%20)) * time.Millisecond); time.Now().Before(until) || l.published.Load() == 0; {
			time.Sleep(time.Millisecond)
		}
		signaled.Store(true)
		drained, err := p.end(t)
		if err != nil {
			t.Errorf("round %d: %v\n%s", round, err, p.stderr)
		}
		took = append(took, drained)
		<-refused.done
		<-unready.done
		stopWatching()
		watchers.Wait()
		if !unready.at.Before(refused.at) {
			t.Errorf("round %d: a connection was refused %v before readiness fell: %v", round, unready.at.Sub(refused.at), why)
		}
		lead = min(lead, refused.at.Sub(unready.at))
		n := l.account(t)
		if n == 0 {
			t.Error("nothing was acknowledged")
		}
		acked += n
		l.close()
		cancel()
	}
	slices.Sort(took)
	t.Logf("%d brokers ended under load: %d events acknowledged, a drain took %v to %v, readiness fell at least %v before the first refusal",
		len(took), acked, took[0], took[len(took)-1], lead)
}

// A second signal ends the process at once.
func TestSecondSignal(t *testing.T) {
	p := startProgram(t, "FELIX_DRAIN_DELAY_MS=10m", "FELIX_SHUTDOWN_DRAIN_TIMEOUT_MS=1h")
	if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	for !strings.Contains(p.stderr.String(), "event=draining") {
		time.Sleep(time.Millisecond)
	}
	if body := get(t, p.http+"/livez"); body != "ok\n" {
		t.Errorf("while it drains, /livez answers %q", body)
	}
	_, err := p.end(t)
	exit, ok := errors.AsType[*exec.ExitError](err)
	if !ok || exit.Sys().(syscall.WaitStatus).Signal() != syscall.SIGTERM {
		t.Errorf("ended with %v\n%s", err, p.stderr)
	}
}

// secret is a directory as Kubernetes mounts a Secret: links into ..data, which is a link that is replaced.
type secret struct {
	dir string
	ca  *dev.CA
	n   int
}

// put replaces the certificate and returns its serial number.
func (s *secret) put(t *testing.T) string {
	t.Helper()
	cert, err := s.ca.Issue()
	if err != nil {
		t.Fatal(err)
	}
	key, err := dev.KeyPEM(cert)
	if err != nil {
		t.Fatal(err)
	}
	s.n++
	version := fmt.Sprint("..v", s.n)
	data, tmp := filepath.Join(s.dir, version), filepath.Join(s.dir, "..data_tmp")
	err = errors.Join(
		os.Mkdir(data, 0o700),
		os.WriteFile(filepath.Join(data, "tls.crt"), dev.CertPEM(cert.Leaf), 0o600),
		os.WriteFile(filepath.Join(data, "tls.key"), key, 0o600),
		os.Symlink(version, tmp),
		os.Rename(tmp, filepath.Join(s.dir, "..data")),
	)
	if s.n == 1 {
		err = errors.Join(err, os.Symlink("..data/tls.crt", filepath.Join(s.dir, "tls.crt")), os.Symlink("..data/tls.key", filepath.Join(s.dir, "tls.key")))
	}
	if err != nil {
		t.Fatal(err)
	}
	return cert.Leaf.SerialNumber.String()
}

func newSecret(t *testing.T) *secret {
	t.Helper()
	ca, err := dev.NewCA()
	if err != nil {
		t.Fatal(err)
	}
	return &secret{dir: t.TempDir(), ca: ca}
}

func (s *secret) env() []string {
	return []string{"FELIX_TLS_CERT_FILE=" + filepath.Join(s.dir, "tls.crt"), "FELIX_TLS_KEY_FILE=" + filepath.Join(s.dir, "tls.key")}
}

// Certificates are replaced under load: every new handshake succeeds and shows the new one soon, and connections that
// exist notice nothing.
func TestCertificateSwaps(t *testing.T) {
	s := newSecret(t)
	s.put(t)
	p := startProgram(t, s.env()...)
	if p.CACert != "" {
		t.Error("the ready line has a certificate that is not used")
	}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Minute)
	defer cancel()
	var shown atomic.Pointer[string]
	conf := &tls.Config{RootCAs: s.ca.Pool(), ServerName: "localhost", VerifyConnection: func(cs tls.ConnectionState) error {
		serial := cs.PeerCertificates[0].SerialNumber.String()
		shown.Store(&serial)
		return nil
	}}
	l := p.load(ctx, t, conf, 1, 2)
	defer l.close()
	dialing, stopDialing := context.WithCancel(ctx)
	var dialers sync.WaitGroup
	var good atomic.Int64
	for range 2 {
		dialers.Go(func() {
			dials(dialing, p.Addr, conf, func(err error) {
				if err != nil {
					t.Errorf("a handshake failed: %v", err)
					return
				}
				good.Add(1)
			})
		})
	}
	var longest time.Duration
	for range *swaps {
		serial, began := s.put(t), time.Now()
		for now := shown.Load(); now == nil || *now != serial; now = shown.Load() {
			if time.Since(began) > time.Minute {
				t.Fatalf("not taken up in a minute:\n%s", p.stderr)
			}
			time.Sleep(time.Millisecond)
		}
		longest = max(longest, time.Since(began))
	}
	stopDialing()
	dialers.Wait()
	if body := get(t, p.http+"/metrics"); !strings.Contains(body, fmt.Sprintf("felix_tls_reloads_total %d\n", *swaps)) || !strings.Contains(body, "felix_tls_reload_failing 0\n") {
		t.Errorf("not %d reloads:\n%s", *swaps, grepped(body, "felix_tls"))
	}
	l.stop()
	published := l.published.Load()
	if _, err := p.end(t); err != nil { // which delivers what is queued
		t.Error(err)
	}
	n := l.account(t)
	l.ends.Range(func(text, _ any) bool {
		t.Errorf("a connection from before the swaps failed: %v", text)
		return true
	})
	if n == 0 || int64(n) < published {
		t.Errorf("%d acknowledged of %d", n, published)
	}
	t.Logf("%d swaps under load: %d new handshakes, none failed, the slowest swap showed after %v; %d events on the old connections, none lost", *swaps, good.Load(), longest, n)
}

func grepped(text, what string) string {
	var b bytes.Buffer
	for line := range strings.Lines(text) {
		if strings.Contains(line, what) {
			b.WriteString(line)
		}
	}
	return b.String()
}
