// Package client is the Go SDK of felix-wire: publish, subscribe and cache calls over QUIC.
//
// A [Client] holds a few connections, opened when they are first needed: those that publish, those that carry
// subscriptions, and those for cache requests, so that a flood of events cannot delay a cache reply. Begin at
// [Connect], then [Client.Publisher], [Client.Subscribe] and [Client.Cache].
//
// All methods may be called from many goroutines, except those of one [Subscription], which has one reader at a time.
// Every call takes a context and ends with it. Payloads that the client hands out are views into its receive buffers
// and live until the next call on the same subscription; copy what has to last.
//
// What a publish that failed may have done is said by its error: [ErrInDoubt] marks those that the broker may have
// carried out all the same.
package client

import (
	"context"
	"fmt"
	"hash/maphash"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/felix-mq/felix/codec"
	"github.com/felix-mq/felix/quicx"
)

// clientFlags is what this client understands: all of felix-wire v1 (session.md, section 4.3).
const clientFlags = codec.KnownFlags

// Client is a set of connections to one broker. Close it when it is no longer needed.
type Client struct {
	addr string
	o    options

	ctx  context.Context // ends with Close, for the reason ErrClosed
	stop context.CancelFunc

	publishers []*slot // topics are spread over these by hash, so that each topic stays in order
	cachers    []*slot
	nextCacher atomic.Uint32

	eventsLock lock // guards events and nextEvent
	events     []*conn
	nextEvent  int

	mu    sync.Mutex // guards conns
	conns map[*conn]struct{}
	wg    sync.WaitGroup // goroutines of all connections
}

// Connect dials the broker at addr ("host:port") and authenticates, so that a wrong address, certificate or token
// shows here. It needs [WithTLS] and [WithToken].
func Connect(ctx context.Context, addr string, opts ...Option) (*Client, error) {
	o := defaultOptions()
	for _, opt := range opts {
		opt(&o)
	}
	if err := o.validate(); err != nil {
		return nil, err
	}
	c := &Client{addr: addr, o: o, eventsLock: newLock(), conns: make(map[*conn]struct{})}
	life, stop := context.WithCancelCause(context.Background())
	c.ctx, c.stop = life, func() { stop(ErrClosed) }
	for range o.publishConns {
		c.publishers = append(c.publishers, newSlot(newHome(c)))
	}
	for range o.cacheConns {
		h := newHome(c)
		for range o.cacheStreams {
			c.cachers = append(c.cachers, newSlot(h))
		}
	}
	if _, err := c.publishers[0].get(ctx); err != nil {
		_ = c.Close()
		return nil, fmt.Errorf("client: connecting to %s: %w", addr, err)
	}
	return c, nil
}

// Close closes all connections and waits for the client's goroutines. Calls under way fail with [ErrClosed];
// publishes that were sent but not acknowledged are in doubt. It may be called twice, and returns nil.
func (c *Client) Close() error {
	c.stop()
	c.mu.Lock()
	for k := range c.conns {
		k.close()
	}
	c.mu.Unlock()
	c.wg.Wait()
	return nil
}

// lock is a mutex whose waiters can give up.
type lock chan struct{}

func newLock() lock { return make(lock, 1) }

func (l lock) acquire(ctx context.Context) error { return l.acquireUntil(ctx, nil) }

// acquireUntil also gives up, with [ErrTimeout], when it can receive from timeout.
func (l lock) acquireUntil(ctx context.Context, timeout <-chan time.Time) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	select {
	case l <- struct{}{}:
		return nil
	default:
	}
	select {
	case l <- struct{}{}:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-timeout:
		return ErrTimeout
	}
}

func (l lock) release() { <-l }

// home is a connection that one or more slots use: dialed when it is first needed, and again when it is lost.
type home struct {
	c    *Client
	lock lock
	conn atomic.Pointer[conn]
}

func newHome(c *Client) *home { return &home{c: c, lock: newLock()} }

// requestStreams is how many streams the receive window of a connection for requests is dialed for.
const requestStreams = 8

func (h *home) get(ctx context.Context) (*conn, error) {
	if err := h.lock.acquire(ctx); err != nil {
		return nil, err
	}
	defer h.lock.release()
	if k := h.conn.Load(); k != nil && k.alive() {
		return k, nil
	}
	k, err := h.c.dial(ctx, requestStreams)
	if err != nil {
		return nil, err
	}
	h.conn.Store(k)
	return k, nil
}

// slot is the place of one request stream: opened when it is first needed, and replaced when it broke.
type slot struct {
	home   *home
	lock   lock
	stream atomic.Pointer[requests]
}

func newSlot(h *home) *slot { return &slot{home: h, lock: newLock()} }

func (s *slot) get(ctx context.Context) (*requests, error) {
	if r := s.stream.Load(); r != nil && !r.broken() {
		return r, nil
	}
	if s.home.c.ctx.Err() != nil {
		return nil, ErrClosed
	}
	ctx, cancel := s.home.c.bound(ctx)
	defer cancel()
	if err := s.lock.acquire(ctx); err != nil {
		return nil, err
	}
	defer s.lock.release()
	if r := s.stream.Load(); r != nil && !r.broken() {
		return r, nil
	}
	k, err := s.home.get(ctx)
	if err != nil {
		return nil, err
	}
	r, err := k.openRequests(ctx)
	if err != nil {
		return nil, err
	}
	s.stream.Store(r)
	return r, nil
}

// dial opens a connection for a number of streams that carry bulk to us.
func (c *Client) dial(ctx context.Context, streams int) (*conn, error) {
	qcfg := c.o.quic
	qcfg.StreamsHint = streams
	qc, err := quicx.Dial(ctx, c.addr, c.o.tls, qcfg)
	if err != nil {
		if ctx.Err() != nil {
			err = fmt.Errorf("%w: %w", context.Cause(ctx), err)
		}
		return nil, err
	}
	k := newConn(c, qc)
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ctx.Err() != nil {
		_ = qc.Close(0, "")
		return nil, ErrClosed
	}
	c.conns[k] = struct{}{}
	c.wg.Go(func() {
		k.acceptEvents()
		c.mu.Lock()
		delete(c.conns, k)
		c.mu.Unlock()
	})
	return k, nil
}

// bound gives a call an end: the caller's deadline or the request timeout, and the client's own close. A silent broker
// cannot hold it for ever (session.md, section 13, D26).
func (c *Client) bound(ctx context.Context) (context.Context, context.CancelFunc) {
	var cancelTimeout context.CancelFunc
	if _, ok := ctx.Deadline(); !ok {
		ctx, cancelTimeout = context.WithTimeoutCause(ctx, c.o.requestTimeout, ErrTimeout)
	}
	ctx, cancel := context.WithCancelCause(ctx)
	stop := context.AfterFunc(c.ctx, func() { cancel(ErrClosed) })
	return ctx, func() {
		stop()
		cancel(nil)
		if cancelTimeout != nil {
			cancelTimeout()
		}
	}
}

// eventConn picks the connection for one more subscription: the pool in turn, each up to the number of subscriptions
// that its receive window was dialed for, and another connection past that.
func (c *Client) eventConn(ctx context.Context) (*conn, error) {
	if err := c.eventsLock.acquire(ctx); err != nil {
		return nil, err
	}
	defer c.eventsLock.release()
	c.events = slices.DeleteFunc(c.events, func(k *conn) bool { return !k.alive() })
	if len(c.events) >= c.o.eventConns {
		for range c.events {
			k := c.events[c.nextEvent%len(c.events)]
			c.nextEvent++
			if k.reserve(c.o.subsPerConn) {
				return k, nil
			}
		}
	}
	k, err := c.dial(ctx, c.o.subsPerConn)
	if err != nil {
		return nil, err
	}
	k.reserve(c.o.subsPerConn)
	c.events = append(c.events, k)
	return k, nil
}

// Stats sums the bytes and packets that QUIC counts over the client's live connections; the other fields are zero.
func (c *Client) Stats() quicx.ConnStats {
	c.mu.Lock()
	defer c.mu.Unlock()
	var sum quicx.ConnStats
	for k := range c.conns {
		st := k.qc.Stats()
		sum.BytesSent += st.BytesSent
		sum.PacketsSent += st.PacketsSent
		sum.BytesReceived += st.BytesReceived
		sum.PacketsReceived += st.PacketsReceived
		sum.BytesLost += st.BytesLost
		sum.PacketsLost += st.PacketsLost
	}
	return sum
}

var hashSeed = maphash.MakeSeed()

// publisherSlot returns the place of the request stream that a topic publishes on.
func (c *Client) publisherSlot(namespace, stream string) *slot {
	h := maphash.String(hashSeed, namespace)*31 + maphash.String(hashSeed, stream)
	return c.publishers[h%uint64(len(c.publishers))]
}

// past is a deadline that makes a blocked read or write return at once.
var past = time.Unix(1, 0)
