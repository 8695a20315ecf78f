package broker

import (
	"context"
	"math"
	"os"
	"time"

	"github.com/felix-mq/felix/auth"
	"github.com/felix-mq/felix/codec"
	"github.com/felix-mq/felix/fanout"
)

// token names a token that is in use: whose it is, and the key that has verified it.
type token struct {
	tenant *tenant
	key    auth.Fingerprint
}

// watch is what the sweeper knows of a stream, guarded by conn.mu.
type watch struct {
	token token     // that the stream has shown; zero before that
	since time.Time // when it was opened
	count uint64    // the reader's progress when it was last seen inside a frame,
	stuck time.Time // and since when it has been there
}

// overdue is a stream that has met a limit.
type overdue struct {
	stream *stream
	limit  limit
}

// ends are what a look at a connection has found to be over. Nothing of it is carried out under a lock.
type ends struct {
	streams []overdue
	subs    []*subscription
	watches []*cacheWatch
	conn    bool // nobody has authenticated in time
}

// carryOut ends what is over, for a limit.
func (e *ends) carryOut(c *conn, why limit) {
	for _, s := range e.streams {
		s.stream.cutOff(s.limit)
	}
	for _, s := range e.subs {
		c.b.limited(why)
		s.events.End(fanout.EndExpired)
	}
	for _, w := range e.watches {
		c.b.limited(why)
		c.mu.Lock()
		w.finishWith(codec.AuthFailed.Text)
		c.mu.Unlock()
	}
	if e.conn && !c.churned.Swap(true) {
		c.b.limited(limitAuthTimeout)
		c.closeLater(closeReasons[limitAuthTimeout])
	}
}

// cutOff ends the stream for a limit: its reads and what it waits for.
func (s *stream) cutOff(why limit) {
	stuck := s.send != nil && s.writing.Load() // before it learns of its end, of which it may have something to say
	if !s.cut.CompareAndSwap(int32(limitNone), int32(why)) {
		return
	}
	s.c.b.limited(why)
	switch {
	case !stuck:
	case s.untrusted(): // it may not be stuck: what it owes should arrive before it says why it ends
		_ = s.send.SetWriteDeadline(time.Now().Add(s.c.b.cfg.ReplyTimeout))
	default:
		_ = s.send.SetWriteDeadline(longPast)
	}
	_ = s.r.SetReadDeadline(longPast)
	if cancel := s.waiting.Load(); cancel != nil {
		(*cancel)()
	}
}

// untrusted reports whether the stream was ended because its token is not good any more.
func (s *stream) untrusted() bool {
	l := limit(s.cut.Load())
	return l == limitTokenExpired || l == limitTokenRevoked
}

// over reports whether nothing more of the stream is to be carried out: its token is not good any more, its connection
// has ended, or the client has given it up. A client that has lost a connection goes on with another one, and what it
// sends there must not be overtaken.
func (s *stream) over() bool { return s.untrusted() || s.c.ctx.Err() != nil || s.c.fenced.Load() }

// begin is called before a request is carried out, and done afterwards. It fails if nothing more is, even of what has
// been read already.
func (s *stream) begin() error {
	s.c.carrying.RLock()
	if s.over() {
		s.c.carrying.RUnlock()
		return os.ErrDeadlineExceeded
	}
	return nil
}

func (s *stream) done() { s.c.carrying.RUnlock() }

// clock is the time by which [Broker.deadlines] goes: nanoseconds since the broker was made.
func (b *Broker) clock(t time.Time) int64 { return int64(t.Sub(b.born)) }

// frameLook is how often a connection with open streams is looked at for frames that stand still.
func (b *Broker) frameLook() time.Duration {
	return min(max(b.cfg.FrameTimeout/8, 5*time.Millisecond), 4*time.Second)
}

// sweeper looks at connections when it is time for that, until stop.
func (b *Broker) sweeper(stop context.Context) {
	every := min(b.cfg.AuthTimeout, b.cfg.FrameTimeout) / 8
	ticker := time.NewTicker(min(max(every, 5*time.Millisecond), time.Second))
	defer ticker.Stop()
	var conns []*conn
	for {
		select {
		case <-stop.Done():
			return
		case <-ticker.C:
		}
		conns = b.sweep(time.Now(), conns)
		b.tenants.relieveReads()
	}
}

// sweep looks at the connections for which it is time. It returns an empty list to use for that again, which keeps none
// of them reachable.
func (b *Broker) sweep(now time.Time, conns []*conn) []*conn {
	conns = b.deadlines.due(b.clock(now), conns[:0])
	for _, c := range conns {
		if next := c.sweep(now); !next.IsZero() {
			b.deadlines.by(c, b.clock(next))
		}
	}
	clear(conns)
	wall := b.cfg.Now().Unix()
	conns = b.expiries.due(wall-1, conns[:0])
	for _, c := range conns {
		if next := c.expire(now, wall); next < math.MaxInt64 {
			b.expiries.by(c, next)
		}
	}
	clear(conns)
	return conns[:0]
}

// sweep cuts off what is overdue and returns when to look again; the zero time is never.
func (c *conn) sweep(now time.Time) (next time.Time) {
	found, next := c.findOverdue(now)
	found.carryOut(c, limitNone)
	return next
}

// soonest returns the earlier of two times, of which the zero time is never.
func soonest(a, b time.Time) time.Time {
	if a.IsZero() || !b.IsZero() && b.Before(a) {
		return b
	}
	return a
}

// findOverdue returns what has to end now, and when to look again. Three clocks run: the time that a stream has to
// authenticate, the time that a frame which has begun has to arrive in, and the time that a connection may be without a
// good token.
func (c *conn) findOverdue(now time.Time) (found ends, next time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	// due notes a time, and reports whether it has come.
	due := func(end time.Time) bool {
		if now.Before(end) {
			next = soonest(next, end)
			return false
		}
		return true
	}
	for s, w := range c.readers {
		if w.token == (token{}) && due(w.since.Add(c.b.cfg.AuthTimeout)) {
			found.streams = append(found.streams, overdue{s, limitAuthTimeout})
		}
		next = soonest(next, now.Add(c.b.frameLook()))
		if c.b.standsStill(s, w, now) {
			found.streams = append(found.streams, overdue{s, limitFrameTimeout})
		}
	}
	// A connection that opens streams and authenticates none of them is nobody's, and so is one whose tokens are not
	// good any more. One without streams may be a client that will subscribe later.
	switch auth := c.b.cfg.AuthTimeout; {
	case !c.lapsed.IsZero():
		found.conn = due(c.lapsed.Add(auth))
	case len(c.tokens) == 0 && !c.openedAt.IsZero():
		found.conn = due(c.openedAt.Add(auth + auth/2))
	}
	return found, next
}

// standsStill reports whether a frame of a stream has not moved for longer than its size allows.
func (b *Broker) standsStill(s *stream, w *watch, now time.Time) bool {
	count, inside, payload := s.fr.Progress()
	if inside && count == w.count && !w.stuck.IsZero() {
		return now.Sub(w.stuck) > b.cfg.FrameTimeout+time.Duration(payload/minFrameRate)*time.Second
	}
	w.count, w.stuck = count, time.Time{}
	if inside {
		w.stuck = now
	}
	return false
}

// trust notes a token that a stream of the connection has shown.
func (c *conn) trust(s *stream, t token, expires int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.tokens[t] = max(c.tokens[t], expires)
	t.tenant.remember(c)
	c.lapsed = time.Time{}
	if w := c.readers[s]; w != nil {
		w.token = t
	}
}

// trustsLocked reports whether what was made with a token may go on.
func (c *conn) trustsLocked(t token) bool {
	_, ok := c.tokens[t]
	return ok
}

// lapseLocked gives a connection that has no good token any more the time to show another one.
func (c *conn) lapseLocked(now time.Time) {
	if len(c.tokens) == 0 && c.lapsed.IsZero() {
		c.lapsed = now
		c.b.deadlines.by(c, c.b.clock(now.Add(c.b.cfg.AuthTimeout)))
	}
}

// expire ends what was made with tokens that have expired by the wall clock, in seconds, and returns when to look
// again.
func (c *conn) expire(now time.Time, wall int64) (next int64) {
	found, next := c.findExpired(now, wall)
	found.carryOut(c, limitTokenExpired)
	return next
}

func (c *conn) findExpired(now time.Time, wall int64) (found ends, next int64) {
	next = math.MaxInt64
	over := func(expires int64) bool {
		if expires != 0 && expires >= wall {
			next = min(next, expires)
		}
		return expires != 0 && expires < wall
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for s, w := range c.readers {
		if w.token != (token{}) && over(s.expires.Load()) {
			found.streams = append(found.streams, overdue{s, limitTokenExpired})
		}
	}
	for _, s := range c.subs {
		if over(s.expires) {
			s.expires = 0
			found.subs = c.endLocked(found.subs, s)
		}
	}
	for _, w := range c.watches {
		if over(w.expires) {
			w.expires = 0
			found.watches = append(found.watches, w)
		}
	}
	for t, expires := range c.tokens {
		if over(expires) {
			delete(c.tokens, t)
			t.tenant.forget(c)
		}
	}
	c.lapseLocked(now)
	return found, next
}

// endLocked appends a subscription to those to end. One that is just being made ends itself.
func (c *conn) endLocked(list []*subscription, s *subscription) []*subscription {
	s.over = true
	if s.events == nil {
		return list
	}
	return append(list, s)
}

// revoke ends what was made with tokens of the tenant that none of the keys has verified.
func (c *conn) revoke(t *tenant, keys auth.KeySet) {
	found := c.findRevoked(t, keys)
	found.carryOut(c, limitTokenRevoked)
}

func (c *conn) findRevoked(t *tenant, keys auth.KeySet) (found ends) {
	gone := func(k token) bool { return k.tenant == t && !keys.Has(k.key) }
	c.mu.Lock()
	defer c.mu.Unlock()
	for k := range c.tokens {
		if gone(k) {
			delete(c.tokens, k)
			t.forget(c)
		}
	}
	for s, w := range c.readers {
		if gone(w.token) {
			found.streams = append(found.streams, overdue{s, limitTokenRevoked})
		}
	}
	for _, s := range c.subs {
		if gone(s.token) && !s.over {
			found.subs = c.endLocked(found.subs, s)
		}
	}
	for _, w := range c.watches {
		if gone(w.token) {
			found.watches = append(found.watches, w)
		}
	}
	c.lapseLocked(time.Now())
	return found
}

// expiryOf is the last second in which a token is good, leeway included.
func expiryOf(id *auth.Identity) int64 { return max(id.Expires.Add(auth.Leeway).Unix(), 1) }

// longPast is a read deadline that has passed.
var longPast = time.Unix(1, 0)
