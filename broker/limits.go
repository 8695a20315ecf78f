package broker

import (
	"context"
	"time"

	"golang.org/x/time/rate"

	"github.com/felix-mq/felix/auth"
	"github.com/felix-mq/felix/codec"
	"github.com/felix-mq/felix/fanout"
)

// Limits against abuse: what a peer may cost before it has said who it is, and what it may leave unfinished. Each is a
// setting and a value of the metric felix_limits_total. docs/abuse.md explains them together.
//
// Times are kept by one sweeper for the whole broker, which sets a read deadline in the past on what is overdue: a
// deadline per read would allocate (design.md, 5.7).

// limit is a bound that a peer has met.
type limit int32

const (
	limitNone limit = iota
	limitAuthTimeout
	limitAuthBytes
	limitFrameTimeout
	limitTokenExpired
	limitConnMemory
	limitStreamChurn
	limitUnauthenticated
	limitConnections
	limitPausedPublishers
	limits // how many there are
)

// String is the value of the metric's label.
func (l limit) String() string {
	return [limits]string{
		"none", "auth_timeout", "auth_bytes", "frame_timeout", "token_expired", "conn_memory", "stream_churn",
		"unauthenticated_conns", "connections", "paused_publishers",
	}[l]
}

func (b *Broker) limited(l limit) {
	b.metrics.limits.WithLabelValues(l.String()).Inc()
	b.log.Info("limit met", "limit", l.String())
}

// minFrameRate is how fast a large frame has to arrive, in bytes per second, beyond the frame timeout.
const minFrameRate = 64 << 10

// maxUnauthenticatedReads is how many times the bytes before authentication an unauthenticated connection's streams may
// hold together: a frame that grows is copied, and needs three times its size for a moment.
const maxUnauthenticatedReads = 4

// failedStreamBurst is how many streams may fail at once before their rate counts: more than a peer can open at a time.
const failedStreamBurst = 2048

// Reasons of connection closes that a limit causes. The code is 0, as always.
const (
	reasonConnections     = "too many connections"
	reasonUnauthenticated = "too many unauthenticated connections"
	reasonAuthTimeout     = "not authenticated in time"
	reasonStreamChurn     = "too many failed streams"
)

// admitLocked decides about a new connection with b.mu held. It returns a connection to close, which may be the new one,
// and why.
func (b *Broker) admitLocked(c *conn) (victim *conn, reason string) {
	if len(b.conns) >= b.cfg.MaxConns {
		b.limited(limitConnections)
		return c, reasonConnections
	}
	b.conns[c] = struct{}{}
	c.unauthenticated = b.unauthenticated.PushBack(c)
	if b.unauthenticated.Len() > b.cfg.MaxUnauthenticatedConns {
		b.limited(limitUnauthenticated)
		oldest := b.unauthenticated.Front()
		victim, _ = oldest.Value.(*conn)
		b.forgetUnauthenticatedLocked(victim)
		return victim, reasonUnauthenticated
	}
	return nil, ""
}

func (b *Broker) forgetUnauthenticatedLocked(c *conn) {
	if c.unauthenticated != nil {
		b.unauthenticated.Remove(c.unauthenticated)
		c.unauthenticated = nil
	}
}

// authenticated notes that a stream of the connection has shown a good token: from here on it may use what it needs.
func (c *conn) authenticated(tenant *tenant) {
	if c.known.Swap(true) {
		return
	}
	c.connected(nil)
	c.held.Move(tenant.reads, 0)
	c.account.SetLimit(c.b.cfg.ConnReadBytes)
	c.stranger.Close()
	c.b.mu.Lock()
	defer c.b.mu.Unlock()
	c.b.forgetUnauthenticatedLocked(c)
}

// streamEnded counts a stream that ended without having authenticated, and ends a connection that makes too many.
func (c *conn) streamEnded(s *stream) {
	if s.identity != nil || c.ctx.Err() != nil || c.failed.Allow() {
		return
	}
	if !c.churned.Swap(true) {
		c.b.limited(limitStreamChurn)
		c.closeLater(reasonStreamChurn)
	}
}

// closeLater closes the connection without waiting for it.
func (c *conn) closeLater(reason string) { c.b.wg.Go(func() { _ = c.qc.Close(0, reason) }) }

func newFailedStreams(perSecond int) *rate.Limiter {
	return rate.NewLimiter(rate.Limit(perSecond), max(failedStreamBurst, perSecond))
}

// watch is what the sweeper knows of a stream, guarded by conn.mu.
type watch struct {
	since time.Time // when the sweeper first saw it
	count uint64    // the reader's progress when it was last seen inside a frame,
	stuck time.Time // and since when it has been there
}

// sweeper looks at all connections from time to time, until stop.
func (b *Broker) sweeper(stop context.Context) {
	every := min(b.cfg.AuthTimeout, b.cfg.FrameTimeout) / 8
	ticker := time.NewTicker(min(max(every, 5*time.Millisecond), time.Second))
	defer ticker.Stop()
	for {
		select {
		case <-stop.Done():
			return
		case <-ticker.C:
		}
		b.mu.Lock()
		conns := make([]*conn, 0, len(b.conns))
		for c := range b.conns {
			conns = append(conns, c)
		}
		b.mu.Unlock()
		now, wall := time.Now(), b.cfg.Now()
		for _, c := range conns {
			c.sweep(now, wall)
		}
	}
}

// sweep cuts off what is overdue. now is for durations, wall for the expiry of tokens.
func (c *conn) sweep(now, wall time.Time) {
	expired := c.sweepStreams(now, wall)
	for _, s := range expired {
		c.b.limited(limitTokenExpired)
		s.events.End(fanout.EndExpired)
	}
}

func (c *conn) sweepStreams(now, wall time.Time) (expired []*subscription) {
	c.mu.Lock()
	defer c.mu.Unlock()
	cfg := &c.b.cfg
	for s, w := range c.readers {
		if w.since.IsZero() {
			w.since = now
		}
		overdue := limitNone
		if expires := s.expires.Load(); expires == 0 {
			if now.Sub(w.since) > cfg.AuthTimeout {
				overdue = limitAuthTimeout
			}
		} else if !cfg.IgnoreExpiry && wall.Unix() > expires {
			overdue = limitTokenExpired
		}
		count, inside, payload := s.fr.Progress()
		if !inside || count != w.count || w.stuck.IsZero() {
			w.count, w.stuck = count, time.Time{}
			if inside {
				w.stuck = now
			}
		} else if now.Sub(w.stuck) > cfg.FrameTimeout+time.Duration(payload/minFrameRate)*time.Second {
			overdue = limitFrameTimeout
		}
		if overdue != limitNone && s.cut.CompareAndSwap(int32(limitNone), int32(overdue)) {
			c.b.limited(overdue)
			_ = s.r.SetReadDeadline(longPast)
			if s.send != nil && s.writing.Load() { // it is stuck there; otherwise it may have something left to say
				_ = s.send.SetWriteDeadline(longPast)
			}
		}
	}
	// A connection that opens streams and authenticates none of them is nobody's. One without streams may be a client
	// that will subscribe later.
	if !c.known.Load() && c.opened.Load() {
		if c.openedSeen.IsZero() {
			c.openedSeen = now
		}
		if now.Sub(c.openedSeen) > cfg.AuthTimeout+cfg.AuthTimeout/2 && !c.churned.Swap(true) {
			c.b.limited(limitAuthTimeout)
			c.closeLater(reasonAuthTimeout)
		}
	}
	if cfg.IgnoreExpiry {
		return nil
	}
	for _, s := range c.subs {
		if s.events != nil && s.expires != 0 && wall.Unix() > s.expires {
			s.expires = 0
			expired = append(expired, s)
		}
	}
	for _, w := range c.watches {
		if w.expires != 0 && wall.Unix() > w.expires {
			w.expires = 0
			c.b.limited(limitTokenExpired)
			w.finishWith(codec.AuthFailed.Text)
		}
	}
	return expired
}

// expiryOf is the last second in which a token is good, leeway included.
func expiryOf(id *auth.Identity) int64 { return max(id.Expires.Add(auth.Leeway).Unix(), 1) }

// longPast is a read deadline that has passed.
var longPast = time.Unix(1, 0)
