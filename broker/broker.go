// Package broker is the server side of felix-wire: it accepts connections, authenticates each stream, carries out
// publishes, subscriptions and cache requests, and delivers events.
//
// It joins the rooms below it. quicx reads frames out of counted chunks and writes them; codec knows their layout;
// auth says who may do what; fanout gives each event its place and offers one shared frame to every subscription;
// cache keeps values. What happens on which goroutine:
//
//	accept loop            one per broker, handshakes run in quicx
//	connection             one, accepts streams and waits for everything below when the connection ends
//	control stream         one: reads a frame, carries it out, writes the reply, in order (control.go)
//	publish stream (uni)   one: the same without replies (uni.go)
//	subscription           one while it has something to write, none while it is idle (subscription.go)
//
// A publish runs on the goroutine of its stream, from the socket to the rings; there is no queue in between. So a
// topic that has no space stops reading exactly the streams that publish to it, and QUIC flow control tells their
// publishers.
//
// Names, checks, texts and their consequences follow docs/protocol/session.md; the section is named where a rule is
// applied. Begin at [New], [Broker.Serve] and [Broker.Shutdown], and at [NewDev] for a broker that can be used at once.
package broker

import (
	"container/list"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/felix-mq/felix/auth"
	"github.com/felix-mq/felix/cache"
	"github.com/felix-mq/felix/catalog"
	"github.com/felix-mq/felix/codec"
	"github.com/felix-mq/felix/fanout"
	"github.com/felix-mq/felix/internal/ledger"
	"github.com/felix-mq/felix/quicx"
	"github.com/felix-mq/felix/storage"
)

// ErrShutdown is returned by [Broker.Serve] after [Broker.Shutdown].
var ErrShutdown = errors.New("broker: shut down")

// serverFlags is what the broker advertises: all of felix-wire v1 (docs/protocol/session.md#negotiation).
const serverFlags = codec.KnownFlags

// Broker is one felix-wire server. Its methods may be called from any goroutine.
type Broker struct {
	cfg       Config
	log       *slog.Logger
	hub       *fanout.Hub
	store     *storage.Store // nil without durable streams
	caches    *cache.Store
	snapshots *snapshots  // of the caches; nil without a directory for them
	keys      *tenantKeys // of the catalog, if there is one
	tenants   *tenants
	verifier  *auth.Verifier
	listener  *quicx.Listener
	metrics   *metrics
	registry  *prometheus.Registry

	changing sync.Mutex // held while a stream is made, changed or removed, which may wait for the disk

	subscriptionIDs atomic.Uint64
	openStreams     atomic.Int64 // that are charged for

	mu              sync.Mutex // guards all up to wg
	conns           []*conn    // in no order
	unauthenticated *list.List // of connections, the oldest first
	draining        bool
	packetsSent     uint64 // by connections that have ended
	packetsLost     uint64
	wg              sync.WaitGroup // accept loop, sweeper and connections

	closeCaches func() // once

	born      time.Time
	deadlines *schedule // by Broker.clock: of streams and frames
	expiries  *schedule // by the wall clock, in seconds: of tokens

	settler *settler

	watchLogs *watchLogs

	fences fences
	heavy  *turns // work that keeps a processor for milliseconds: decompression, and values as base64

	left       chan struct{}   // closed by leave
	leave      func()          // once: Shutdown does not wait for a disk that hangs any more
	acceptCtx  context.Context // ends when no more connections and streams are accepted
	stopAccept context.CancelFunc
	sweepCtx   context.Context // ends when nothing is left to look after
	stopSweep  context.CancelFunc
}

// New validates the configuration and binds the socket, so that [Broker.Addr] is known and clients can connect before
// [Broker.Serve] is called; they are served from then on.
func New(cfg Config) (*Broker, error) {
	cfg.ensureDefaults()
	if err := cfg.validate(); err != nil {
		return nil, err
	}
	keys := cfg.Keys
	var catalogKeys *tenantKeys
	var snapshot *catalog.Catalog
	if cfg.Catalog != nil {
		var err error
		if snapshot, err = cfg.Catalog.Snapshot(context.Background()); err != nil {
			return nil, fmt.Errorf("broker: %w", err)
		}
		if err := cfg.CheckCatalog(snapshot); err != nil {
			return nil, err
		}
		catalogKeys = &tenantKeys{keys: make(auth.StaticKeys)}
		keys = catalogKeys
	}
	listener, err := quicx.Listen(cfg.Bind, cfg.TLS, quicx.Config{
		StreamWindow: cfg.StreamWindow,
		ConnWindow:   cfg.ConnWindow,
		MaxStreams:   int64(cfg.MaxStreamsPerConn),
		IdleTimeout:  cfg.IdleTimeout,
		KeepAlive:    cfg.KeepAlive,
		SendBuffer:   cfg.SendBuffer,
		RecvBuffer:   cfg.RecvBuffer,

		InitialPacketSize: cfg.InitialMTU,
		MaxPacketSize:     cfg.MTUUpperBound,
		BlackHoleCooldown: cfg.BlackHoleCooldown,

		Spin:                cfg.Spin,
		Sockets:             cfg.Sockets,
		RetryAbove:          cfg.RetryAbove,
		HandshakesPerPrefix: cfg.HandshakesPerPrefix,
		StatelessResetKey:   cfg.StatelessResetKey,
	})
	if err != nil {
		return nil, fmt.Errorf("broker: listening on %s: %w", cfg.Bind, err)
	}
	b := &Broker{
		fences:   fences{newest: make(map[fenceKey]*conn)},
		cfg:      cfg,
		log:      cfg.Logger,
		caches:   cache.New(cache.Options{MaxBytes: cfg.CacheMaxBytes, MaxScopeBytes: cfg.CacheMaxBytes * int64(cfg.CacheScopeShare) / 100, Series: maxCacheLabels}),
		keys:     catalogKeys,
		tenants:  newTenants(&cfg),
		verifier: auth.NewVerifier(keys, cfg.Now),
		listener: listener,
		born:     time.Now(),

		unauthenticated: list.New(),
		settler:         newSettler(),

		deadlines: newSchedule(func(c *conn) *slot { return &c.deadline }),
		expiries:  newSchedule(func(c *conn) *slot { return &c.expiry }),
	}
	// Signatures are expensive, and large batches to decompress more so. Only so many are worked on at a time, and
	// tenants take turns. Each has a line of its own, because a signature takes microseconds.
	verifying := newTurns(max(runtime.GOMAXPROCS(0)/2, 1))
	b.verifier.Bound(verifying.enter, verifying.leave)
	b.heavy = newTurns(max(runtime.GOMAXPROCS(0)/2, 1))
	b.hub = fanout.NewHub(fanout.Options{Budget: b.tenants.budgets[kindMemory], Share: b.tenants.memory, StallTimeout: cfg.StallTimeout})
	b.sweepCtx, b.stopSweep = context.WithCancel(context.Background())
	b.left = make(chan struct{})
	b.leave = sync.OnceFunc(func() { close(b.left) })
	b.acceptCtx, b.stopAccept = context.WithCancel(context.Background())
	b.closeCaches = sync.OnceFunc(b.caches.Close)
	b.watchLogs = newWatchLogs(b)
	if err := b.openStorage(); err != nil {
		b.release()
		return nil, err
	}
	if err := b.openSnapshots(); err != nil {
		b.release()
		return nil, err
	}
	b.metrics, b.registry = newMetrics(b)
	if cfg.Catalog != nil {
		b.update(catalog.Diff(nil, snapshot), nil)
	}
	return b, nil
}

// Addr returns the UDP address that the broker listens on.
func (b *Broker) Addr() net.Addr { return b.listener.Addr() }

// Socket tells what the kernel granted the broker's socket.
func (b *Broker) Socket() quicx.SocketInfo { return b.listener.Socket() }

// Registry returns the broker's metrics, for a handler to expose.
func (b *Broker) Registry() *prometheus.Registry { return b.registry }

// AddStream makes a stream in memory with the broker's default policy. Names follow auth.ValidName. Adding one that
// exists is harmless, unless it is durable: see [Broker.PutStream].
func (b *Broker) AddStream(tenant, namespace, stream string) error {
	return b.PutStream(tenant, namespace, stream, catalog.Stream{})
}

// AddDurableStream is [Broker.AddStream] for a stream whose events are kept in the data directory of Config.Storage.
func (b *Broker) AddDurableStream(tenant, namespace, stream string) error {
	return b.PutStream(tenant, namespace, stream, catalog.Stream{Durable: true})
}

// PutStream makes a stream, or makes the one that exists what is said of it. A durable one has the events that its log
// has; it needs Config.Storage.Dir. A stream that becomes durable, or ceases to be, is removed and made again: its
// subscriptions end.
func (b *Broker) PutStream(tenant, namespace, stream string, s catalog.Stream) error {
	for _, name := range []string{tenant, namespace, stream} {
		if err := auth.ValidName(name); err != nil {
			return fmt.Errorf("broker: adding stream: %w", err)
		}
	}
	if err := s.Validate(); err != nil {
		return fmt.Errorf("broker: adding stream: %w", err)
	}
	return b.putStream(fanout.Key{Tenant: tenant, Namespace: namespace, Stream: stream}, s)
}

// RemoveStream removes a stream. Its subscriptions end cleanly once what was queued is written. It reports whether the
// stream existed. The events of a durable one stay in the data directory, and retention leaves them alone.
func (b *Broker) RemoveStream(tenant, namespace, stream string) bool {
	return b.removeStream(fanout.Key{Tenant: tenant, Namespace: namespace, Stream: stream})
}

// AddCache makes a cache.
func (b *Broker) AddCache(tenant, namespace, name string) error {
	for _, n := range []string{tenant, namespace, name} {
		if err := auth.ValidName(n); err != nil {
			return fmt.Errorf("broker: adding cache: %w", err)
		}
	}
	if l := b.cfg.Tenant; *l.CacheGuarantee != ledger.Automatic || *l.CacheMax != 0 {
		b.caches.SetTenant(tenant, *l.CacheGuarantee, *l.CacheMax)
	}
	b.caches.Add(cache.Scope{Tenant: tenant, Namespace: namespace, Cache: name})
	return nil
}

// RemoveCache removes a cache and its entries. Its watches end, and are told so. It reports whether the cache existed.
func (b *Broker) RemoveCache(tenant, namespace, name string) bool {
	return b.caches.Remove(cache.Scope{Tenant: tenant, Namespace: namespace, Cache: name})
}

// Serve accepts and serves connections until the context ends or [Broker.Shutdown] is called. It returns nil or
// [ErrShutdown] then, after everything it started has ended; ending the context closes all connections at once.
func (b *Broker) Serve(ctx context.Context) error {
	b.mu.Lock()
	if b.draining {
		b.mu.Unlock()
		return ErrShutdown
	}
	b.wg.Add(1)
	b.wg.Go(func() { b.sweeper(b.sweepCtx) })
	b.wg.Go(func() { b.settler.run(b.sweepCtx, b.wg.Go) })
	b.followMemory()
	b.mu.Unlock()
	stop := context.AfterFunc(ctx, b.stopAccept)
	defer stop()

	b.RestoreCaches(b.acceptCtx)
	if b.snapshots != nil {
		b.reserveVersions()
		b.wg.Go(func() { b.writeSnapshots(b.acceptCtx) })
	}
	if b.cfg.Catalog != nil {
		b.wg.Go(func() { b.cfg.Catalog.Follow(b.acceptCtx, b.update) })
	}
	err := b.acceptLoop()
	b.wg.Done()
	if ctx.Err() != nil {
		b.closeAll(ctx)
		return nil
	}
	if b.acceptCtx.Err() != nil {
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			b.wg.Wait()
		}()
		select {
		case <-ended:
		case <-b.left:
		}
		return ErrShutdown
	}
	over, cancel := context.WithCancel(ctx)
	cancel()
	b.closeAll(over)
	return err
}

func (b *Broker) acceptLoop() error {
	for {
		qc, err := b.listener.Accept(b.acceptCtx)
		if err != nil {
			return fmt.Errorf("broker: accepting: %w", err)
		}
		c := newConn(b, qc)
		b.mu.Lock()
		if b.draining {
			b.mu.Unlock()
			c.stranger.Close()
			_ = qc.Close(0, shutdownReason)
			continue
		}
		victim, why := b.admitLocked(c)
		b.mu.Unlock()
		if victim != nil {
			b.limited(why)
			victim.closeLater(closeReasons[why])
		}
		if victim == c {
			c.stranger.Close()
			continue
		}
		b.metrics.connections.Add(1)
		b.wg.Go(func() {
			c.serve()
			st := qc.Stats()
			b.mu.Lock()
			last := len(b.conns) - 1
			b.conns[c.index], b.conns[last].index = b.conns[last], c.index
			b.conns[last] = nil
			b.conns = b.conns[:last]
			b.packetsSent += st.PacketsSent
			b.packetsLost += st.PacketsLost
			b.forgetUnauthenticatedLocked(c)
			b.mu.Unlock()
		})
	}
}

// shutdownReason is the text of the connection close (docs/protocol/session.md#codes).
const shutdownReason = "broker shutting down"

// Shutdown ends the broker in order (docs/protocol/session.md#shutdown): it refuses new connections, accepts no more
// streams, refuses publishes that wait for space, finishes the control streams with their replies written, lets the
// subscriptions' queues drain, waits until their peers have it all, leaves them a second to read it, and closes each
// connection with code 0. Last, it writes the snapshot of the caches, for which it leaves a part of the time. An event
// whose publish was acknowledged has reached every subscription of its stream that reads in that time. When the context
// ends before that, it closes what is left at once and returns the context's error. It waits for everything the broker
// started, but not for a disk that hangs: some seconds after the end of the context it returns without what waits for
// that, and logs how much it is. Calling it again waits for the same.
func (b *Broker) Shutdown(ctx context.Context) error {
	b.mu.Lock()
	b.draining = true
	conns := slices.Clone(b.conns)
	b.mu.Unlock()
	end := b.cfg.Trace("drain", slog.Int("felix.connections", len(conns)))
	b.listener.Refuse()
	b.stopAccept()
	b.hub.Drain()
	// What is left of the time is for the snapshot of the caches.
	all := ctx
	if end, ok := ctx.Deadline(); ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithDeadline(ctx, end.Add(-b.finishTime(time.Until(end))))
		defer cancel()
	}
	// All publishers first: what the last of them publishes goes to connections of others.
	for _, step := range []func(*conn, context.Context){(*conn).finishRequests, (*conn).drain} {
		var wg sync.WaitGroup
		for _, c := range conns {
			wg.Go(func() { step(c, ctx) })
		}
		wg.Wait()
	}
	err := ctx.Err()
	b.closeWith(all, func() { b.finishSnapshots(all) })
	if err == nil {
		err = all.Err() // a disk that hangs is no orderly end
	}
	end(err)
	return err
}

// CloseConnections closes every connection with code 0, as a shutdown does, and goes on: clients come back, on this
// broker or on another that a balancer sends them to.
func (b *Broker) CloseConnections() {
	conns := b.open()
	var wg sync.WaitGroup
	for part := range slices.Chunk(conns, len(conns)/closers+1) {
		wg.Go(func() {
			for _, c := range part {
				_ = c.qc.Close(0, shutdownReason)
			}
		})
	}
	wg.Wait()
}

// closers is how many goroutines close all connections.
const closers = 16

// open returns the connections that are open.
func (b *Broker) open() []*conn {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.Clone(b.conns)
}

// packets returns how many packets QUIC has sent, and how many of them it believes lost.
func (b *Broker) packets() (sent, lost uint64) {
	b.mu.Lock()
	conns := slices.Clone(b.conns) // they are asked without the lock
	sent, lost = b.packetsSent, b.packetsLost
	b.mu.Unlock()
	for _, c := range conns {
		st := c.qc.Stats()
		sent += st.PacketsSent
		lost += st.PacketsLost
	}
	return sent, lost
}

// closeAll closes every connection and waits for all that the broker started, but not for ever for a disk that hangs:
// see awaitDisk.
func (b *Broker) closeAll(ctx context.Context) { b.closeWith(ctx, func() {}) }

// closeWith is closeAll with something to do when all that the broker started has ended.
func (b *Broker) closeWith(ctx context.Context, last func()) {
	closed := make(chan struct{})
	go func() {
		defer close(closed)
		b.mu.Lock()
		b.draining = true
		b.mu.Unlock()
		b.CloseConnections()
		b.stopAccept()
		b.stopSweep()
		b.wg.Wait()
		last()
		b.release()
	}()
	b.awaitDisk(ctx, closed)
}

// release gives back what a broker has that serves nobody.
func (b *Broker) release() {
	b.hub.Close()
	b.closeStorage()
	b.closeSnapshots()
	b.closeCaches()
	_ = b.listener.Close()
}
