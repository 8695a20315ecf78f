// Package brokerproc runs a development broker in a process of its own, so that its processor time and its memory can
// be told from those of the program that loads it, and lets that program ask for them, for its metrics and for its
// profiles.
//
// The process is another instance of the same program: main calls [Serve] before anything else. Begin at [Start].
package brokerproc

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"github.com/felix-mq/felix/broker"
	"github.com/felix-mq/felix/client"
	"github.com/felix-mq/felix/internal/child"
	"github.com/felix-mq/felix/internal/dev"
	"github.com/felix-mq/felix/internal/settings"
	"github.com/felix-mq/felix/quicx"
	"github.com/felix-mq/felix/ring"
	"github.com/felix-mq/felix/telemetry"
)

const role = "broker"

// identity is what a broker has in common with those that it replaces, and what its process gets as its job.
type identity struct {
	Bind        string
	Seed        []byte // of the key that signs tokens; also the secret of stateless resets
	Cert, PKCS8 []byte // DER
	Options
}

// Options say how a broker differs from one for development that knows the environment alone.
type Options struct {
	Streams []string       // in place of those of the environment; nil for these
	Policy  *ring.Overflow // of its queues, unless the environment names one; nil for the default
	Env     []string       // further variables, such as "FELIX_DEV_STREAMS=a,b"
}

func newIdentity() (*identity, error) {
	cert, _, err := dev.SelfSigned("localhost", "127.0.0.1")
	if err != nil {
		return nil, err
	}
	id := &identity{Bind: "127.0.0.1:0", Seed: make([]byte, ed25519.SeedSize), Cert: cert.Certificate[0]}
	_, _ = rand.Read(id.Seed) // never fails
	id.PKCS8, err = x509.MarshalPKCS8PrivateKey(cert.PrivateKey)
	return id, err
}

// apply makes a broker that identity.
func (id *identity) apply(cfg *broker.Config, o *broker.DevOptions) error {
	key, err := x509.ParsePKCS8PrivateKey(id.PKCS8)
	if err != nil {
		return err
	}
	cfg.Bind = id.Bind
	cfg.StatelessResetKey = (*[32]byte)(id.Seed)
	if id.Streams != nil {
		o.Streams = id.Streams
	}
	o.Key = ed25519.NewKeyFromSeed(id.Seed)
	o.Certificate = &tls.Certificate{Certificate: [][]byte{id.Cert}, PrivateKey: key}
	return nil
}

// stopTimeout bounds the end of a broker.
const stopTimeout = 20 * time.Second

// ready is what the process says when it serves. After it, it answers each [question].
type ready struct {
	Access
	Policy string
	Socket quicx.SocketInfo
}

// Access is what a client needs to connect to a broker.
type Access struct {
	Addr, Tenant, Namespace, Token string
	CertPEM                        []byte // of the broker, for other processes
}

// Serve serves and exits if this is the broker's process. In any other it returns at once.
func Serve() {
	child.Serve(role, func(_ context.Context, id identity, parent *child.Parent) (any, error) {
		metrics, err := serve(&id, parent)
		fmt.Fprint(os.Stderr, telemetry.Text())
		return metrics, err
	})
}

// serve returns the broker's metrics after its end.
func serve(id *identity, parent *child.Parent) (map[string]float64, error) {
	cfg := broker.DefaultConfig()
	if id.Policy != nil {
		cfg.QueuePolicy = *id.Policy
	}
	var o broker.DevOptions
	if err := settings.Environment(&cfg, &o); err != nil {
		return nil, fmt.Errorf("brokerproc: environment: %w", err)
	}
	cfg.TuneRuntime()
	if err := id.apply(&cfg, &o); err != nil {
		return nil, fmt.Errorf("brokerproc: identity: %w", err)
	}
	d, err := broker.NewDev(cfg, o)
	if err != nil {
		return nil, fmt.Errorf("brokerproc: %w", err)
	}
	served := make(chan error, 1)
	go func() { served <- d.Serve(context.Background()) }()
	err = parent.Send(ready{Access{d.Addr().String(), d.Tenant, d.Namespace, d.Token, d.CertPEM}, cfg.QueuePolicy.String(), d.Socket()})
	if err == nil {
		err = (&answerer{dev: d}).serve(parent)
	}
	ctx, cancel := context.WithTimeout(context.Background(), stopTimeout)
	defer cancel()
	err = errors.Join(err, d.Shutdown(ctx))
	if e := <-served; !errors.Is(e, broker.ErrShutdown) {
		err = errors.Join(err, e)
	}
	if err != nil {
		return nil, err
	}
	return Metrics(d.Broker)
}

// Process is a broker in another process. Its methods may be called from any goroutine.
type Process struct {
	Access
	TLS    *tls.Config
	Policy string // of its queues
	Socket quicx.SocketInfo
	PID    int

	id   *identity
	mu   sync.Mutex     // one question or life at a time
	proc *child.Process // guarded by mu
}

// Start starts a broker on loopback and returns when it can be connected to. env are further variables for it; it has
// this process's as well. The caller stops it.
func Start(env ...string) (*Process, error) {
	return StartWith(context.Background(), Options{Env: env})
}

// StartWith is Start with all options. If ctx ends before the broker can be connected to, so does the broker.
func StartWith(ctx context.Context, o Options) (*Process, error) {
	id, err := newIdentity()
	if err != nil {
		return nil, fmt.Errorf("brokerproc: %w", err)
	}
	id.Options = o
	p := &Process{id: id}
	if err := p.start(ctx); err != nil {
		return nil, err
	}
	return p, nil
}

// start starts the process and reads what it says of itself.
func (p *Process) start(ctx context.Context) error {
	var r ready
	proc, err := child.Start(ctx, role, p.id, p.id.Env, &r)
	if err != nil {
		return fmt.Errorf("brokerproc: %w", err)
	}
	if p.TLS, err = dev.ClientTLS(r.CertPEM); err != nil {
		return errors.Join(err, proc.Stop(nil))
	}
	p.PID, p.proc, p.Access, p.Policy, p.Socket = proc.PID, proc, r.Access, r.Policy, r.Socket
	return nil
}

// Kill ends the broker with SIGKILL, so that its clients hear nothing, and waits for it.
func (p *Process) Kill() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if err := p.proc.Kill(); err != nil {
		return fmt.Errorf("brokerproc: %w", err)
	}
	_ = p.proc.Stop(nil) // that it was killed is no news
	return nil
}

// Revive starts another broker in the place of one that was killed: with its address, certificate and keys, and nothing
// of what it had in memory. Tokens of the one before are good for it.
func (p *Process) Revive() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.id.Bind = p.Addr
	return p.start(context.Background())
}

// Connect returns a client of the broker.
func (p *Process) Connect(ctx context.Context, opts ...client.Option) (*client.Client, error) {
	return client.Connect(ctx, p.Addr, append([]client.Option{client.WithTLS(p.TLS), client.WithToken(p.Tenant, p.Token)}, opts...)...)
}

// Resident returns the bytes of memory that the process has. It is 0 where the system does not tell.
func (p *Process) Resident() int64 { return child.Resident(p.PID) }

// Stop ends the broker and waits for it. It is called once.
func (p *Process) Stop() error {
	_, err := p.StopAndCount()
	return err
}

// StopAndCount is Stop. It returns the metrics of the broker after its end, as [Metrics] does.
func (p *Process) StopAndCount() (metrics map[string]float64, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	err = p.proc.Stop(&metrics)
	return metrics, err
}
