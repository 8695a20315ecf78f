// Package felixtest runs a Felix broker inside a test, with a client's view of everything that can go wrong with one.
//
//	broker := felixtest.Start(t)
//	c := broker.Connect(t)
//	err := c.Publisher(felixtest.Namespace, felixtest.Stream).Publish(t.Context(), []byte("hello"))
//
// With a data directory its streams are durable, and keep their events over [Broker.Restart]:
//
//	broker := felixtest.Start(t, func(c *broker.Config) { c.Storage.Dir = t.TempDir() })
//
// With a [Disk] they are too, and the disk can be full or slow, and lose what was not synced.
//
// It is a real broker that speaks QUIC on loopback, through a relay for datagrams that can be told to lose them. It is
// up after some milliseconds and gone with its test. Begin at [Start]; then see [Broker.Kick], [Broker.Restart],
// [Broker.Pause], [Broker.Lose], [Broker.Shrink], [Broker.Refuse] and [Broker.Crash].
package felixtest

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/felix-mq/felix/auth"
	"github.com/felix-mq/felix/broker"
	"github.com/felix-mq/felix/client"
	"github.com/felix-mq/felix/internal/dev"
	"github.com/felix-mq/felix/internal/relay"
)

// What a broker has when it starts. More is made with [Broker.AddStream] and [Broker.AddCache].
const (
	Tenant    = "t1"
	Namespace = "default"
	Stream    = "demo"
	Cache     = "primary"
)

// Broker is a broker under test. Its methods may be called from many goroutines. Those that take a [testing.TB] fail it
// if they do not succeed.
type Broker struct {
	relay   *relay.Relay
	cfg     broker.Config
	roots   *x509.CertPool
	signer  *auth.Signer
	refuses atomic.Bool

	mu      sync.Mutex // guards all below
	b       *broker.Broker
	served  chan struct{} // closed when it is dead, and nil then
	streams []string
	caches  []string
}

// Start starts a broker that ends with the test. configure, which may be missing, changes its settings.
func Start(tb testing.TB, configure ...func(*broker.Config)) *Broker {
	tb.Helper()
	b, err := New(configure...)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(b.Close)
	return b
}

// New is [Start] for those who have no test. The caller closes the broker.
func New(configure ...func(*broker.Config)) (*Broker, error) {
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("felixtest: %w", err)
	}
	signer, err := auth.NewSigner(key, "felixtest")
	if err != nil {
		return nil, fmt.Errorf("felixtest: %w", err)
	}
	cert, roots, err := dev.SelfSigned("localhost", "127.0.0.1")
	if err != nil {
		return nil, fmt.Errorf("felixtest: %w", err)
	}
	b := &Broker{cfg: broker.DefaultConfig(), roots: roots, signer: signer, streams: []string{Stream}, caches: []string{Cache}}
	for _, f := range configure {
		f(&b.cfg)
	}
	b.cfg.Bind = "127.0.0.1:0"
	b.cfg.TLS = &tls.Config{Certificates: []tls.Certificate{cert}}
	b.cfg.Keys = keys{b}
	b.cfg.StatelessResetKey = (*[32]byte)(key.Seed())
	if err := b.serve(); err != nil {
		return nil, err
	}
	if b.relay, err = relay.New(b.b.Addr().String()); err != nil {
		b.kill()
		return nil, fmt.Errorf("felixtest: %w", err)
	}
	b.cfg.Bind = b.b.Addr().String()
	return b, nil
}

// keys is the key set of the broker, which it cannot get while it refuses.
type keys struct{ b *Broker }

func (k keys) Keys(context.Context, string) (auth.KeySet, error) {
	if k.b.refuses.Load() {
		return nil, errors.New("felixtest: authentication is refused")
	}
	return auth.KeySet{k.b.signer.Key()}, nil
}

// serve starts a broker with the streams and caches that there are.
func (b *Broker) serve() error {
	cfg := b.cfg
	if disk, ok := cfg.Storage.FS.(diskFS); ok {
		cfg.Storage.FS = disk.d.fs()
	}
	inner, err := broker.New(cfg)
	if err != nil {
		return fmt.Errorf("felixtest: %w", err)
	}
	b.b, b.served = inner, make(chan struct{})
	go func(served chan struct{}) {
		defer close(served)
		_ = inner.Serve(context.Background()) // what ends it is kill
	}(b.served)
	for _, s := range b.streams {
		err = errors.Join(err, b.addStream(s))
	}
	for _, c := range b.caches {
		err = errors.Join(err, inner.AddCache(Tenant, Namespace, c))
	}
	if err != nil {
		b.kill()
	}
	return err
}

// addStream makes a stream, which is durable if there is a data directory.
func (b *Broker) addStream(name string) error {
	if b.cfg.Storage.Dir != "" {
		return b.b.AddDurableStream(Tenant, Namespace, name)
	}
	return b.b.AddStream(Tenant, Namespace, name)
}

// kill ends the broker, if there is one, without letting anything end in order.
func (b *Broker) kill() {
	if b.served == nil {
		return
	}
	over, cancel := context.WithCancel(context.Background())
	cancel()
	_ = b.b.Shutdown(over)
	<-b.served
	b.served = nil
}

// Close ends the broker. It is called once; [Start] does it.
func (b *Broker) Close() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.kill()
	if b.relay != nil {
		b.relay.Close()
	}
}

// Addr returns the address to connect to.
func (b *Broker) Addr() string { return b.relay.Addr() }

// TLS returns the configuration with which a client trusts the broker.
func (b *Broker) TLS() *tls.Config {
	return &tls.Config{RootCAs: b.roots, ServerName: "localhost", MinVersion: tls.VersionTLS13}
}

// Token makes a token of the tenant that expires after some time. Without permissions it allows everything; otherwise
// see docs/protocol/tokens.md#permissions.
func (b *Broker) Token(life time.Duration, permissions ...string) (string, error) {
	if len(permissions) == 0 {
		permissions = []string{"stream.publish:*", "stream.subscribe:*", "cache.read:*", "cache.write:*"}
	}
	now := time.Now()
	return b.signer.Mint(auth.Claims{Tenant: Tenant, Subject: "felixtest", IssuedAt: now, Expires: now.Add(life), Permissions: permissions})
}

// Options are what a client needs to connect.
func (b *Broker) Options() []client.Option {
	return []client.Option{
		client.WithTLS(b.TLS()),
		client.WithTokenSource(Tenant, func(context.Context) (string, error) { return b.Token(time.Hour) }),
	}
}

// Connect connects a client that is closed with the test.
func (b *Broker) Connect(tb testing.TB, opts ...client.Option) *client.Client {
	tb.Helper()
	c, err := client.Connect(tb.Context(), b.Addr(), append(b.Options(), opts...)...)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _ = c.Close() })
	return c
}

// AddStream makes a stream. It is durable if the broker has a data directory.
func (b *Broker) AddStream(tb testing.TB, name string) {
	tb.Helper()
	b.mu.Lock()
	defer b.mu.Unlock()
	if err := b.addStream(name); err != nil {
		tb.Fatal(err)
	}
	b.streams = append(b.streams, name)
}

// AddCache makes a cache.
func (b *Broker) AddCache(tb testing.TB, name string) {
	tb.Helper()
	b.mu.Lock()
	defer b.mu.Unlock()
	if err := b.b.AddCache(Tenant, Namespace, name); err != nil {
		tb.Fatal(err)
	}
	b.caches = append(b.caches, name)
}

// RemoveCache removes a cache, and notifies what watches it.
func (b *Broker) RemoveCache(tb testing.TB, name string) {
	tb.Helper()
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.b.RemoveCache(Tenant, Namespace, name) {
		tb.Fatalf("felixtest: there is no cache %q", name)
	}
	b.caches = slices.DeleteFunc(b.caches, func(c string) bool { return c == name })
}

// Kick closes all connections. Clients may come back at once, and find everything as it was.
func (b *Broker) Kick() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.b.CloseConnections()
}

// Restart kills the broker as a crash would, without a word to its clients, and starts another at the same address,
// which has the same streams and caches with nothing in them. With a data directory streams have their events.
func (b *Broker) Restart(tb testing.TB) {
	tb.Helper()
	b.Kill()
	b.Revive(tb)
}

// Kill is the first half of Restart.
func (b *Broker) Kill() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.relay.Silence(true)
	b.kill()
}

// Revive is the second half of Restart.
func (b *Broker) Revive(tb testing.TB) {
	tb.Helper()
	b.mu.Lock()
	defer b.mu.Unlock()
	if err := b.serve(); err != nil {
		tb.Fatal(err)
	}
	b.relay.Silence(false)
}

// Pause makes the broker unreachable until [Broker.Resume]: nothing arrives, in either direction. Connections survive
// it if it is shorter than the client's idle timeout.
func (b *Broker) Pause() { b.relay.Silence(true) }

// Resume ends a pause.
func (b *Broker) Resume() { b.relay.Silence(false) }

// Lose makes the network lose a share of all datagrams, from 0 for none to 1, at random.
func (b *Broker) Lose(share float64) { b.relay.Lose(share) }

// Shrink makes the network lose all datagrams of more than that many bytes, or none for their size if it is 0. It is at
// least 1200, below which there is no QUIC.
func (b *Broker) Shrink(size int) { b.relay.Shrink(size) }

// Rebind gives each client another address in the eyes of the broker, as a translator of addresses does that has
// forgotten its table. Connections survive it.
func (b *Broker) Rebind() { b.relay.Rebind() }

// Refuse makes the broker refuse to authenticate anybody from now on, or no longer. Streams that are open go on.
func (b *Broker) Refuse(on bool) { b.refuses.Store(on) }
