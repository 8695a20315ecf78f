// Package client is the Go SDK of felix-wire: publish, subscribe and cache calls over QUIC.
//
// A [Client] holds a few connections, opened when they are first needed: those that publish, those that carry
// subscriptions, and those for cache requests, so that a flood of events cannot delay a cache reply. Begin at
// [Connect], then [Client.Publisher], [Client.Subscribe] and [Client.Cache].
//
// All methods may be called from many goroutines, except those of one [Subscription], which has one reader at a time.
// Every call takes a context and ends with it. Payloads of events belong to the caller, unless [WithViews] asks for
// views. A [Batch] is always a view.
//
// Lost connections are made again. A subscription goes on after the last event it has handed out, and reports with a
// [Gap] what it could not get. A publish to a durable stream that was sent when its connection was lost is sent again,
// and stored once. What a publish that failed may have done is said by its error: [ErrInDoubt] marks those that the
// broker may have carried out all the same, and the client does not send those again. [Retryable] tells whether another
// attempt is of use.
//
// Three verbs end things, with three guarantees:
//
//	             new publishes   publishes under way      gathered   connections
//	Flush(ctx)   go on           are waited for           sent       stay
//	Drain(ctx)   ErrClosed       are waited for           sent       closed afterwards, or when ctx ends
//	Close()      ErrClosed       sent ones are in doubt   ErrClosed  closed at once
//
//	publish ──▶ gathered ──▶ waiting ──▶ sent ──▶ acknowledged, refused, in doubt
//	            (in a batch) (window,             │
//	                          buffer)             │
//	            └── Close: not sent ──┘           └── Flush and Drain wait until everything is here
//
// Tests of programs that use this package find a broker in package felixtest.
package client

import (
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/semaphore"

	"github.com/felix-mq/felix/codec"
	"github.com/felix-mq/felix/quicx"
)

// clientFlags is what this client understands: all of felix-wire v1 (docs/protocol/session.md#negotiation).
const clientFlags = codec.KnownFlags

// Client is a set of connections to one broker. Close it when it is no longer needed.
type Client struct {
	seeds []string
	seed  atomic.Uint32 // which of them is dialed, by its number modulo their number
	o     options
	hooks *hooks
	pace  pace

	began time.Time
	ctx   context.Context // ends with Close, for the reason ErrClosed
	stop  context.CancelFunc

	publishers    []*streamSlot // topics are spread over these by hash, so that each topic stays in order
	nextPublisher atomic.Uint32
	publishes     inflight
	losses        losses
	window        *semaphore.Weighted // bytes of asynchronous publishes in flight
	buffer        *semaphore.Weighted // bytes that wait for a connection

	streams atomic.Uint64 // request streams that were opened

	cachers    []*streamSlot
	nextCacher atomic.Uint32

	eventsLock lock // guards events and nextEvent
	events     []*conn
	nextEvent  int

	mu       sync.Mutex // guards conns, batchers, and that wg takes nobody more once ctx has ended
	conns    map[*conn]struct{}
	batchers map[*Publisher]struct{} // that gather, or send what they have gathered
	wg       sync.WaitGroup          // all goroutines
}

// Connect dials the broker at addr ("host:port") and authenticates, so that a wrong address, certificate or token
// shows here. It needs [WithTLS] and [WithToken].
//
// addr may be several addresses of the same broker, with commas between them. One is used at a time, from the first on:
// when an attempt to connect fails, the next attempt is made to the next address. All addresses that a host name stands
// for are tried in one attempt (RFC 8305).
//
// Connect tries each address once, or until ctx ends if [WithConnectRetry] says so. An attempt takes up to five
// seconds, but where the system at the address says that nothing listens there it fails at once, with an error that
// matches [syscall.ECONNREFUSED] besides [ErrDisconnected]. Options that are wrong fail with [ErrInvalidOption].
func Connect(ctx context.Context, addr string, opts ...Option) (*Client, error) {
	o := defaultOptions()
	for _, opt := range opts {
		if opt == nil {
			o.problems = append(o.problems, errors.New("client: an option is nil"))
			continue
		}
		opt(&o)
	}
	if err := o.validate(); err != nil {
		return nil, err
	}
	c := &Client{
		seeds: splitSeeds(addr), o: o, hooks: newHooks(o.hooks), pace: pace{backoff: o.backoff},
		window: semaphore.NewWeighted(int64(o.inFlightBytes)), buffer: semaphore.NewWeighted(int64(o.whileDownBytes)),
		eventsLock: newLock(), conns: make(map[*conn]struct{}), batchers: make(map[*Publisher]struct{}), began: time.Now(),
	}
	life, stop := context.WithCancelCause(context.Background())
	c.ctx, c.stop = life, func() { stop(ErrClosed) }
	for range o.publishConns {
		h := newSharedConn(c, o.whileDown, windows{})
		for range o.publishStreams {
			c.publishers = append(c.publishers, newStreamSlot(h, true))
		}
	}
	for range o.cacheConns {
		h := newSharedConn(c, WhileDownBlock, o.cacheWindows)
		for range o.cacheStreams {
			c.cachers = append(c.cachers, newStreamSlot(h, false))
		}
	}
	if err := c.connect(ctx); err != nil {
		_ = c.Close()
		return nil, fmt.Errorf("client: connecting to %s: %w", addr, err)
	}
	if o.statsEvery > 0 {
		c.start(c.logStats)
	}
	return c, nil
}

// Close closes all connections and waits for the client's goroutines. Calls under way fail with [ErrClosed]; publishes
// that were sent but not acknowledged are in doubt. It may be called twice, and returns nil. It must not be called from
// a callback, the method of a hook among them: it waits for that to return.
func (c *Client) Close() error {
	if !c.made() {
		return nil
	}
	c.stop()
	c.mu.Lock()
	for k := range c.conns {
		k.close()
	}
	c.mu.Unlock()
	c.wg.Wait()
	return nil
}

// made reports whether the client was made by [Connect].
func (c *Client) made() bool { return c != nil && c.ctx != nil }

// serveConn serves a connection until its end.
func (c *Client) serveConn(k *conn) {
	c.hooks.connected(k.addr)
	k.acceptEvents()
	c.hooks.disconnected(k.addr, k.lost())
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.conns, k)
	closed, ok := errors.AsType[*quicx.ConnClosedError](context.Cause(k.qc.Context()))
	if !ok || !closed.Forgotten {
		return
	}
	// A broker that does not know one of its connections any more has been restarted after the last reply on it, and
	// knows none of those that were made before that reply either, nor any that was made before a reply on one of
	// those. A connection that has nothing to send would find out by its idle timeout alone.
	restarted := k.heard.Load() // or later
	for found := true; found; {
		found = false
		for other := range c.conns {
			if other.since < restarted && other.alive() {
				restarted, found = max(restarted, other.heard.Load()), true
				other.close()
			}
		}
	}
}

// now is the client's clock, in nanoseconds.
func (c *Client) now() int64 { return int64(time.Since(c.began)) }

// pause waits for d, or fails with the reason for which ctx or the client ended.
func (c *Client) pause(ctx context.Context, d time.Duration) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	defer context.AfterFunc(c.ctx, func() { cancel(ErrClosed) })()
	return sleep(ctx, d)
}

// start runs f on a goroutine that Close waits for. It reports false if the client is closed.
func (c *Client) start(f func()) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.startLocked(f)
}

func (c *Client) startLocked(f func()) bool {
	if c.ctx.Err() != nil {
		return false
	}
	c.wg.Go(f)
	return true
}

// bound gives a call an end: the caller's deadline or the request timeout, and the client's own close. A silent broker
// cannot hold it for ever (docs/start/from-the-reference.md#defects, D26).
func (c *Client) bound(ctx context.Context) (context.Context, context.CancelFunc) {
	return c.boundAt(ctx, c.deadline(ctx))
}

// boundAt is bound with a deadline by the client's clock; 0 if ctx has one.
func (c *Client) boundAt(ctx context.Context, deadline int64) (context.Context, context.CancelFunc) {
	var cancelTimeout context.CancelFunc
	if deadline > 0 {
		ctx, cancelTimeout = context.WithTimeoutCause(ctx, time.Duration(deadline-c.now()), ErrTimeout)
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

// eventConn picks the connection for one more subscription: round robin over the pool, each up to the number of
// subscriptions that its receive window was dialed for, and another connection past that.
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
	k, err := c.dial(ctx, c.o.subsPerConn, c.o.eventWindows)
	if err != nil {
		return nil, err
	}
	k.reserve(c.o.subsPerConn)
	c.events = append(c.events, k)
	return k, nil
}

var hashSeed = maphash.MakeSeed()

// publisherSlot returns the place of the request stream that a topic publishes on.
func (c *Client) publisherSlot(namespace, stream string) *streamSlot {
	h := maphash.String(hashSeed, namespace)*31 + maphash.String(hashSeed, stream)
	return c.publishers[h%uint64(len(c.publishers))]
}

var (
	past  = time.Unix(1, 0) // a deadline that makes a blocked read or write return at once
	never time.Time         // the deadline that does not come
)
