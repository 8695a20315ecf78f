//go:build unix

package felixtest_test

import (
	"context"
	"crypto/ed25519"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/felix-mq/felix/auth"
	"github.com/felix-mq/felix/broker"
	"github.com/felix-mq/felix/client"
	"github.com/felix-mq/felix/client/felixtest"
	"github.com/felix-mq/felix/internal/child"
	"github.com/felix-mq/felix/internal/dev"
	"github.com/felix-mq/felix/internal/race"
)

func TestMain(m *testing.M) {
	child.Serve(brokerProcess, func(ctx context.Context, job processJob, p *child.Parent) (any, error) { return nil, job.serve(ctx, p) })
	goleak.VerifyTestMain(m)
}

// TestStormOfProcesses is [TestStorm] with a broker in a process of its own, which is stopped (SIGSTOP) and killed
// (SIGKILL). FELIX_STORM_PROCESSES sets the number of seeds; with FELIX_STORM_FAULTS=all a broker stands still for up
// to 15 s at a time.
func TestStormOfProcesses(t *testing.T) {
	n := uint64(4)
	if testing.Short() || race.Enabled {
		n = 1
	}
	runStorms(t, "FELIX_STORM_PROCESSES", n, 8, runProcessStorm)
}

func runProcessStorm(t *testing.T, seed uint64) {
	r := rand.New(rand.NewPCG(seed, 2))
	dir := ""
	if r.IntN(2) == 0 {
		dir = t.TempDir()
	}
	b, err := newProcessBroker(dir)
	if err != nil {
		t.Errorf("seed %d: %v", seed, err)
		return
	}
	defer b.kill()
	faults, least, most := 2, 500*time.Millisecond, 2*time.Second
	if os.Getenv("FELIX_STORM_FAULTS") == "all" {
		faults, least, most = 3+r.IntN(3), time.Second, 15*time.Second
	}
	s := &storm{t: t, seed: seed}
	s.run(time.Duration(faults+4)*most+guard, b.job.Bind, b.tls, b.token, func() {
		for range faults {
			if r.IntN(3) == 0 {
				b.kill()
				s.pause(r, time.Second)
				if err := b.start(); err != nil {
					s.errorf("starting the broker again: %v", err)
				}
			} else {
				_ = b.process.Signal(syscall.SIGSTOP)
				time.Sleep(least)
				s.pause(r, most-least)
				_ = b.process.Signal(syscall.SIGCONT)
			}
			s.pause(r, time.Second)
		}
	})
}

// TestRepeatOverKills kills a broker with SIGKILL while publishers of a durable stream wait for acknowledgements, and
// starts another one with its data directory. The publishers go on, and hear nothing of it: each event is there once,
// in the order of their calls. FELIX_KILLS is how often it is killed.
func TestRepeatOverKills(t *testing.T) {
	n := 10
	if testing.Short() || race.Enabled {
		n = 3
	}
	if s := os.Getenv("FELIX_KILLS"); s != "" {
		n, _ = strconv.Atoi(s)
	}
	b, err := newProcessBroker(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer b.kill()
	ctx, cancel := context.WithTimeout(context.Background(), guard) // to connect
	defer cancel()
	connect := func() *client.Client {
		c, err := client.Connect(ctx, b.job.Bind, patient(client.WithTLS(b.tls),
			client.WithTokenSource(felixtest.Tenant, func(context.Context) (string, error) { return b.token() }))...)
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	r := &repeated{t: t, stop: make(chan struct{}), sent: map[string]int{}}
	c, other := connect(), connect()
	defer c.Close()
	defer other.Close()
	for i, c := range []*client.Client{c, c, other} {
		p := c.Publisher(felixtest.Namespace, felixtest.Stream)
		r.publish(fmt.Sprint("sync", i), p, false)
		r.publish(fmt.Sprint("async", i), p, true)
	}
	for range n {
		r.progress(1 + rand.IntN(300))
		b.kill()
		if err := b.start(); err != nil {
			t.Fatal(err)
		}
	}
	close(r.stop)
	r.wg.Wait()
	t.Logf("%d kills, %d events", n, r.judge(c, func(string) bool { return true }))
}

// processBroker is a broker in a process of its own. It has the same address, keys and certificate each time that it
// starts.
type processBroker struct {
	job     processJob
	tls     *tls.Config
	signer  *auth.Signer
	process *child.Process
}

const brokerProcess = "felixtest-broker"

// processJob is what the process gets.
type processJob struct {
	Bind        string
	Seed        []byte // of the key that signs tokens
	Certificate [][]byte
	Key         []byte // of the certificate, in PKCS #8
	Data        string // directory of durable streams; without it the stream is in memory
}

// newProcessBroker starts a broker, with a directory if its stream is durable.
func newProcessBroker(data string) (*processBroker, error) {
	_, key, err := ed25519.GenerateKey(nil)
	if err != nil {
		return nil, err
	}
	cert, roots, err := dev.SelfSigned("localhost", "127.0.0.1")
	if err != nil {
		return nil, err
	}
	b := &processBroker{tls: &tls.Config{RootCAs: roots, ServerName: "localhost", MinVersion: tls.VersionTLS13}}
	b.job = processJob{Bind: "127.0.0.1:0", Seed: key.Seed(), Certificate: cert.Certificate, Data: data}
	if b.job.Key, err = x509.MarshalPKCS8PrivateKey(cert.PrivateKey); err != nil {
		return nil, err
	}
	if b.signer, err = auth.NewSigner(key, "felixtest"); err != nil {
		return nil, err
	}
	return b, b.start()
}

func (b *processBroker) token() (string, error) {
	now := time.Now()
	return b.signer.Mint(auth.Claims{
		Tenant: felixtest.Tenant, Subject: "felixtest", IssuedAt: now, Expires: now.Add(time.Hour),
		Permissions: []string{"stream.publish:*", "stream.subscribe:*"},
	})
}

// start starts the process and waits until it serves.
func (b *processBroker) start() (err error) {
	b.process, err = child.Start(context.Background(), brokerProcess, b.job, nil, &b.job.Bind)
	return err
}

func (b *processBroker) kill() {
	_ = b.process.Kill()
	_ = b.process.Stop(nil) // it says that it was killed
}

// serve is the process.
func (job *processJob) serve(ctx context.Context, parent *child.Parent) error {
	key, err := x509.ParsePKCS8PrivateKey(job.Key)
	if err != nil {
		return err
	}
	signer, err := auth.NewSigner(ed25519.NewKeyFromSeed(job.Seed), "felixtest")
	if err != nil {
		return err
	}
	cfg := broker.DefaultConfig()
	cfg.Bind, cfg.AuthTimeout = job.Bind, 500*time.Millisecond
	cfg.TLS = &tls.Config{Certificates: []tls.Certificate{{Certificate: job.Certificate, PrivateKey: key}}, MinVersion: tls.VersionTLS13}
	cfg.Keys = auth.StaticKeys{felixtest.Tenant: {signer.Key()}}
	cfg.StatelessResetKey = (*[32]byte)(job.Seed)
	cfg.Storage.Dir, cfg.Storage.Headroom, cfg.Storage.SegmentBytes = job.Data, 0, 64<<10
	b, err := broker.New(cfg)
	if err != nil {
		return err
	}
	add := b.AddStream
	if job.Data != "" {
		add = b.AddDurableStream
	}
	if err := errors.Join(add(felixtest.Tenant, felixtest.Namespace, felixtest.Stream), parent.Send(b.Addr().String())); err != nil {
		return err
	}
	return b.Serve(ctx)
}
