package broker

import (
	"context"

	"golang.org/x/time/rate"
)

// Limits against abuse: what a peer may cost before it has said who it is, and what it may leave unfinished. Each is a
// setting and a value of the metric felix_limits_total. docs/operate/limits.md explains them together.
//
// Times are kept by one sweeper for the whole broker (sweep.go), which sets a read deadline in the past on what is
// overdue: a deadline per read would allocate (docs/design/README.md#rules).

// limit is a bound that a peer has met.
type limit int32

const (
	limitNone limit = iota
	limitAuthTimeout
	limitAuthBytes
	limitFrameTimeout
	limitTokenExpired
	limitTokenRevoked
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
		"none", "auth_timeout", "auth_bytes", "frame_timeout", "token_expired", "token_revoked", "conn_memory", "stream_churn",
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

// closeReasons are the reasons of connection closes that a limit causes. The code is 0, as always.
var closeReasons = [limits]string{
	limitConnections:     "too many connections",
	limitUnauthenticated: "too many unauthenticated connections",
	limitAuthTimeout:     "not authenticated in time",
	limitStreamChurn:     "too many failed streams",
}

// admitLocked decides about a new connection with b.mu held. It returns a connection to close, which may be the new
// one, and why. Nobody knows yet whose the new one is, so the oldest of those about which nobody knows has to go for
// it.
func (b *Broker) admitLocked(c *conn) (victim *conn, why limit) {
	unknown, known := b.unauthenticated.Len(), int(b.tenants.budgets[kindConns].Used())
	full := unknown+known >= b.cfg.MaxConns
	if full && unknown == 0 {
		return c, limitConnections
	}
	if full || unknown >= b.cfg.MaxUnauthenticatedConns {
		victim, _ = b.unauthenticated.Front().Value.(*conn)
		b.forgetUnauthenticatedLocked(victim)
		why = limitUnauthenticated
	}
	c.index = len(b.conns)
	b.conns = append(b.conns, c)
	c.unauthenticated = b.unauthenticated.PushBack(c)
	return victim, why
}

func (b *Broker) forgetUnauthenticatedLocked(c *conn) {
	if c.unauthenticated != nil {
		b.unauthenticated.Remove(c.unauthenticated)
		c.unauthenticated = nil
	}
}

// authenticated notes that a stream of the connection has shown a good token of a tenant: from here on it may use what
// it needs, and counts for that tenant. It reports false if the tenant may not have one more. c.authenticating is held.
func (c *conn) authenticated(t *tenant) bool {
	if c.known.Load() && !c.tenant.Load().isGone() {
		return true
	}
	if before := c.tenant.Load(); before != nil { // it is gone, but may have been made again
		before.leave(c) // first: a connection knows one place
	}
	victims, ok := t.admit(c)
	for _, v := range victims {
		c.b.log.Info("tenant surplus", "for", t.name)
		v.closeLater(reasonTenantConns)
	}
	if !ok {
		return false
	}
	c.held.Move(t.shares[kindReads], 0)
	c.account.SetLimit(c.b.cfg.ConnReadBytes)
	c.stranger.Close()
	c.b.mu.Lock()
	c.b.forgetUnauthenticatedLocked(c)
	c.b.mu.Unlock()
	if !c.known.Swap(true) {
		c.connected(nil)
	}
	return true
}

// streamEnded counts a stream that ended without having authenticated, and ends a connection that makes too many.
func (c *conn) streamEnded(s *stream) {
	if s.identity != nil || c.ctx.Err() != nil || c.failed.Allow() {
		return
	}
	if !c.churned.Swap(true) {
		c.b.limited(limitStreamChurn)
		c.closeLater(closeReasons[limitStreamChurn])
	}
}

// closeLater closes the connection without waiting for it.
func (c *conn) closeLater(reason string) { c.b.wg.Go(func() { _ = c.qc.Close(0, reason) }) }

// closeDelivered closes the connection when the peer has what has been written.
func (c *conn) closeDelivered(reason string) {
	c.b.wg.Go(func() {
		ctx, cancel := context.WithTimeout(c.ctx, deliveryTimeout)
		defer cancel()
		c.qc.AwaitDelivery(ctx)
		_ = c.qc.Close(0, reason)
	})
}

func newFailedStreams(perSecond int) *rate.Limiter {
	return rate.NewLimiter(rate.Limit(perSecond), max(failedStreamBurst, perSecond))
}
