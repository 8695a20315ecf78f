package broker

import (
	"container/list"
	"context"
	"crypto/sha256"
	"log/slog"
	"maps"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"

	"github.com/felix-mq/felix/auth"
	"github.com/felix-mq/felix/fanout"
	"github.com/felix-mq/felix/internal/ledger"
	"github.com/felix-mq/felix/quicx"
)

// maxPausedPublishers is how many streams of one connection may stand still for lack of space at the same time. The
// connection's receive window is sized for them (quicx.Config); one more would take the credit that the connection's
// other streams live on, so it is ended instead.
const maxPausedPublishers = 8

// conn is one client connection. It owns the goroutines of its streams and subscriptions.
type conn struct {
	b  *Broker
	qc *quicx.Conn

	// ctx ends with the connection.
	ctx context.Context

	// streams counts the goroutines of control and publish streams, writers those of subscriptions and of the hooks
	// that watch for a peer that stops reading.
	streams sync.WaitGroup
	writers sync.WaitGroup

	paused  atomic.Int32
	agreed  atomic.Uint32 // extensions that some control stream has negotiated
	known   atomic.Bool   // a stream has authenticated
	moved   atomic.Uint64 // writes that have come to their end
	churned atomic.Bool   // the connection is being closed for a limit
	failed  *rate.Limiter // streams that end without having authenticated

	// held is what the connection is charged for: to a share of its own until a stream has authenticated, and to the
	// tenant's from then on. account is the part of it for unfinished requests, unread replies and unread changes.
	held     *ledger.Account
	account  *ledger.Account
	stranger *ledger.Share

	authenticating sync.Mutex             // held while a stream authenticates, one at a time
	proven         provenToken            // guarded by authenticating
	tenant         atomic.Pointer[tenant] // that the connection counts for; set before known, and again once it is gone
	place          *list.Element          // in tenant.conns, guarded by tenant.mu; nil if the connection has to go

	watching watchWriters

	connected func(error) // ends the trace of the connection's beginning; set before any stream is accepted

	unauthenticated *list.Element // in Broker.unauthenticated, guarded by Broker.mu
	index           int           // in Broker.conns, guarded by Broker.mu

	fenceKey    fenceKey // its fence, if it has one; set once, with authenticating held
	fenceNumber uint64
	fenced      atomic.Bool  // the client has given it up: nothing more is carried out
	carrying    sync.RWMutex // held, shared, while a request is carried out

	deadline, expiry slot // in the schedules of these names

	mu       sync.Mutex // guards all below
	subs     map[uint64]*subscription
	watches  map[uint64]*cacheWatch
	readers  map[*stream]*watch // to be interrupted by a drain and by the sweeper
	tokens   map[token]int64    // that are good, and when they expire, in seconds since 1970
	openedAt time.Time          // when the peer opened the first stream
	lapsed   time.Time          // since when none of its tokens is good; zero if one is, or none ever was
	draining bool
}

func newConn(b *Broker, qc *quicx.Conn) *conn {
	stranger := b.tenants.strangers.Share(ledger.Automatic, 0)
	held := ledger.NewAccount(0, stranger)
	return &conn{
		b: b, qc: qc, ctx: qc.Context(),
		subs:    make(map[uint64]*subscription),
		watches: make(map[uint64]*cacheWatch),
		readers: make(map[*stream]*watch),
		tokens:  make(map[token]int64),
		failed:  newFailedStreams(b.cfg.FailedStreams),
		held:    held,
		account: ledger.NewAccount(maxUnauthenticatedReads*int64(b.cfg.AuthMaxBytes), held),

		stranger: stranger,
	}
}

// serve accepts streams until the connection ends, and returns when everything it started has ended.
func (c *conn) serve() {
	c.connected = c.trace("connect")
	// Both loops end with the connection, or with a drain, which accepts no more streams. What a goroutine and a
	// context of their own cost is a tenth of what the broker holds for an idle connection.
	var accepting sync.WaitGroup
	accepting.Go(func() {
		for {
			s, err := c.qc.AcceptStream(c.b.acceptCtx)
			if err != nil {
				return
			}
			if !c.openStream() {
				_ = s.Send().Close()
				s.Recv().Cancel(0)
				continue
			}
			c.streams.Go(func() {
				defer c.closeStream()
				serveControl(c, s)
			})
			runtime.Gosched() // new streams begin one by one: a thousand that are ready at once would delay others
		}
	})
	for {
		s, err := c.qc.AcceptUniStream(c.b.acceptCtx)
		if err != nil {
			break
		}
		if !c.openStream() {
			s.Cancel(0)
			continue
		}
		c.streams.Go(func() {
			defer c.closeStream()
			servePublish(c, s)
		})
		runtime.Gosched()
	}
	accepting.Wait()
	<-c.ctx.Done()
	c.streams.Wait()
	cause := context.Cause(c.ctx)
	c.b.metrics.connectionsClosed.WithLabelValues(closeReasonOf(cause)).Inc()
	if !c.known.Load() {
		c.connected(cause)
	}

	c.mu.Lock()
	subs := make([]*subscription, 0, len(c.subs))
	for _, s := range c.subs {
		subs = append(subs, s)
	}
	c.mu.Unlock()
	c.writers.Add(1) // keeps the count above zero while ends start writers
	for _, s := range subs {
		s.events.End(fanout.EndClosed)
		s.events.Quiesce()
	}
	c.writers.Done()
	c.writers.Wait()
	if c.known.Load() {
		c.tenant.Load().leave(c)
	}
	c.b.deadlines.remove(c)
	c.b.expiries.remove(c)
	c.mu.Lock()
	for t := range c.tokens {
		delete(c.tokens, t)
		t.tenant.forget(c)
	}
	c.mu.Unlock()
	c.unfence()
	c.stranger.Close()
}

// provenToken is the last token that was verified on a connection. Its streams show the same one again and again.
type provenToken struct {
	sum [sha256.Size]byte // of the token's text
	id  *auth.Identity    // nil: none yet
}

// verify checks a token that a stream shows. conn.authenticating is held.
func (c *conn) verify(tenant string, text []byte) (*auth.Identity, error) {
	sum := sha256.Sum256(text)
	if p := &c.proven; p.id != nil && p.sum == sum && p.id.Tenant == tenant {
		if err := c.b.verifier.VerifyAgain(c.ctx, p.id); err != nil {
			return nil, err
		}
		return p.id, nil
	}
	id, err := c.b.verifier.Verify(c.ctx, tenant, string(text))
	if err != nil {
		return nil, err
	}
	c.proven = provenToken{}
	if id.Size() <= provenSize {
		c.proven = provenToken{sum, id}
	}
	return id, nil
}

// provenSize is how large an identity a connection remembers. It is not charged for it.
const provenSize = 4 << 10

// chargeIdentity charges for what the bearer of the stream's token holds beyond what streamBytes is for. It reports
// false if there is no memory for it.
func (s *stream) chargeIdentity(id *auth.Identity) bool {
	n := int64(max(id.Size()-freeIdentity, 0))
	if err := s.c.held.Charge(n); err != nil {
		s.c.refuseRead(err)
		return false
	}
	s.identityBytes = n
	return true
}

// freeIdentity is the part of streamBytes that a stream's identity may take.
const freeIdentity = 1 << 10

// streamBytes is what a stream costs that a peer has opened and that is idle: state of QUIC, a goroutine and a reader.
const streamBytes = 8 << 10

// openStream charges for a stream that the peer has opened. It reports false if there is no memory for it.
func (c *conn) openStream() bool {
	if err := c.held.Charge(streamBytes); err != nil {
		c.refuseRead(err)
		return false
	}
	c.b.openStreams.Add(1)
	return true
}

func (c *conn) closeStream() {
	c.b.openStreams.Add(-1)
	c.held.Release(streamBytes)
}

// reading registers a stream that a drain interrupts, and that the sweeper looks after. It reports false if the drain
// has begun.
func (c *conn) reading(s *stream) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.draining {
		return false
	}
	now := time.Now()
	c.readers[s] = &watch{since: now}
	if c.openedAt.IsZero() {
		c.openedAt = now
	}
	c.b.deadlines.by(c, c.b.clock(now.Add(min(c.b.frameLook(), c.b.cfg.AuthTimeout))))
	return true
}

func (c *conn) doneReading(s *stream) {
	c.mu.Lock()
	delete(c.readers, s)
	c.mu.Unlock()
	c.held.Release(s.identityBytes)
	c.streamEnded(s)
}

// trace is [Config.Trace] for what this peer wants.
func (c *conn) trace(operation string, attrs ...slog.Attr) (end func(error)) {
	return c.b.cfg.Trace(operation, append(attrs, slog.String("network.peer.address", c.qc.RemoteAddr().String()))...)
}

// drainPoll is how often a drain looks whether the subscriptions' queues are written.
const drainPoll = 5 * time.Millisecond

// finishRequests ends the connection's control and publish streams, with what was read carried out and the replies
// written. It waits for that, as long as something moves, or until the context ends.
func (c *conn) finishRequests(ctx context.Context) {
	c.mu.Lock()
	c.draining = true
	readers := slices.Collect(maps.Keys(c.readers))
	c.mu.Unlock()
	for _, s := range readers {
		_ = s.r.SetReadDeadline(longPast) // reads fail at once
	}
	awaitQuiet(ctx, c.ctx, c.b.cfg.ShutdownDrain/drainStallPart, func() bool {
		c.mu.Lock()
		defer c.mu.Unlock()
		return len(c.readers) == 0
	}, c.moved.Load)
	c.endWatches(shutdownReason)
}

// drain waits until the queues of the connection's subscriptions are written and the peer has it all, or the context
// ends. It is called when nobody publishes any more.
func (c *conn) drain(ctx context.Context) {
	if !awaitQuiet(ctx, c.ctx, c.b.cfg.ShutdownDrain/drainStallPart, c.written, c.moved.Load) {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, deliveryTimeout)
	defer cancel()
	c.qc.AwaitDelivery(ctx) // closing throws away what is under way
	c.mu.Lock()
	subscriptions := len(c.subs)
	c.mu.Unlock()
	if subscriptions > 0 {
		select {
		case <-time.After(min(readTime, c.b.cfg.ShutdownDrain/readTimePart)):
		case <-c.ctx.Done():
		}
	}
	_ = c.qc.Close(0, shutdownReason)
}

// deliveryTimeout bounds how long a drain waits for acknowledgements of a peer that may go on sending.
const deliveryTimeout = time.Second

// readTime is how long a peer with subscriptions is left to read what it has received, and readTimePart the part of a
// shutdown's time that this may take: transports, quic-go's among them, drop what nobody has read when a connection
// ends.
const (
	readTime     = time.Second
	readTimePart = 10
)

// drainStallPart is the part of a shutdown's time that a connection gets on which nothing moves: a peer that does not
// read would hold up the end of everything else.
const drainStallPart = 5

// awaitQuiet waits until quiet reports true, or moved has not changed for stall. It returns false if ctx or life ends
// before that.
func awaitQuiet(ctx, life context.Context, stall time.Duration, quiet func() bool, moved func() uint64) bool {
	tick := time.NewTicker(drainPoll)
	defer tick.Stop()
	last, since := moved(), time.Now()
	for !quiet() {
		select {
		case now := <-tick.C:
			if m := moved(); m != last {
				last, since = m, now
			} else if now.Sub(since) >= stall {
				return true
			}
		case <-ctx.Done():
			return false
		case <-life.Done():
			return false
		}
	}
	return true
}

// written reports whether no event waits to be written, and no watch to be ended.
func (c *conn) written() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.watches) > 0 {
		return false
	}
	for _, s := range c.subs {
		if s.busy() {
			return false
		}
	}
	return true
}
