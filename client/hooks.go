package client

import (
	"context"
	"log/slog"
)

// Hook is something that wants to know what a client does: a value with the methods of one or more of [ConnHook],
// [SubscriptionHook], [PublishHook], [DeliverHook] and [CacheHook]. Methods are called from many goroutines, on the
// path of what they report: they must not block, and must not call the client. See [WithHooks].
type Hook any

// ConnHook hears of connections.
type ConnHook interface {
	OnConnect(addr string)
	// OnDisconnect receives why the connection ended; the reason matches [ErrClosed] if the client was closed.
	OnDisconnect(addr string, reason error)
	// OnConnectFailed is called after an attempt that failed. There will be others as long as somebody needs the
	// connection.
	OnConnectFailed(addr string, reason error)
}

// SubscriptionState is what happens to a subscription.
type SubscriptionState int

// The states of a subscription. It is live when Subscribe returns it.
const (
	SubscriptionLive     SubscriptionState = iota // subscribed again
	SubscriptionResuming                          // its event stream ended, or an attempt to subscribe again failed
	SubscriptionOver                              // it ended for good
)

func (s SubscriptionState) String() string {
	switch s {
	case SubscriptionLive:
		return "live"
	case SubscriptionResuming:
		return "resuming"
	case SubscriptionOver:
		return "over"
	}
	return "unknown"
}

// SubscriptionHook hears of subscriptions. reason is nil for [SubscriptionLive].
type SubscriptionHook interface {
	OnSubscription(namespace, stream string, state SubscriptionState, reason error)
}

// PublishInfo describes one publish.
type PublishInfo struct {
	Namespace, Stream string
	Events, Bytes     int  // of payloads
	Acked             bool // an acknowledgement was asked for
}

// PublishHook is called when a publish begins. The function that it returns, if it is not nil, is called once with the
// outcome: an acknowledged publish spans the time until its acknowledgement, any other the time until QUIC has it.
type PublishHook interface {
	OnPublish(ctx context.Context, p PublishInfo) (done func(err error))
}

// DeliverHook is called for each frame of events that a subscription receives. bytes are those of the payloads, and 4
// for each event and each frame.
type DeliverHook interface {
	OnDeliver(namespace, stream string, events, bytes int)
}

// CacheHook is called when a cache request begins: "get", "put", "put_if", "delete", or "watch" each time that a watch
// is asked for. The function that it returns, if it is not nil, is called once with the outcome; a miss is no error.
type CacheHook interface {
	OnCache(ctx context.Context, namespace, cache, operation string) (done func(err error))
}

// hooks holds what was given, by kind. Absent hooks cost the test of a slice's length.
type hooks struct {
	conn      []ConnHook
	subs      []SubscriptionHook
	publishes []PublishHook
	deliver   []DeliverHook
	caches    []CacheHook
}

func newHooks(all []Hook) *hooks {
	h := new(hooks)
	for _, hook := range all {
		h.conn = appendIf(h.conn, hook)
		h.subs = appendIf(h.subs, hook)
		h.publishes = appendIf(h.publishes, hook)
		h.deliver = appendIf(h.deliver, hook)
		h.caches = appendIf(h.caches, hook)
	}
	return h
}

func isHook(h Hook) bool {
	switch h.(type) {
	case ConnHook, SubscriptionHook, PublishHook, DeliverHook, CacheHook:
		return true
	}
	return false
}

func appendIf[T any](list []T, hook Hook) []T {
	if t, ok := hook.(T); ok {
		list = append(list, t)
	}
	return list
}

func (h *hooks) connected(addr string) {
	for _, c := range h.conn {
		c.OnConnect(addr)
	}
}

func (h *hooks) disconnected(addr string, reason error) {
	for _, c := range h.conn {
		c.OnDisconnect(addr, reason)
	}
}

func (h *hooks) connectFailed(addr string, reason error) {
	for _, c := range h.conn {
		c.OnConnectFailed(addr, reason)
	}
}

func (h *hooks) subscription(s *Subscription, state SubscriptionState, reason error) {
	for _, c := range h.subs {
		c.OnSubscription(s.namespace, s.stream, state, reason)
	}
}

func (h *hooks) delivered(s *Subscription, events, bytes int) {
	for _, c := range h.deliver {
		c.OnDeliver(s.namespace, s.stream, events, bytes)
	}
}

// publish returns nil if nobody wants to know the outcome.
func (h *hooks) publish(ctx context.Context, p *Publisher, payloads [][]byte, acked bool) (done func(error)) {
	if len(h.publishes) == 0 {
		return nil
	}
	info := PublishInfo{Namespace: p.namespace, Stream: p.stream, Events: len(payloads), Acked: acked}
	for _, b := range payloads {
		info.Bytes += len(b)
	}
	for _, c := range h.publishes {
		done = both(done, c.OnPublish(ctx, info))
	}
	return done
}

// cache returns nil if nobody wants to know the outcome.
func (h *hooks) cache(ctx context.Context, namespace, cache, operation string) (done func(error)) {
	for _, c := range h.caches {
		done = both(done, c.OnCache(ctx, namespace, cache, operation))
	}
	return done
}

func both(f, g func(error)) func(error) {
	switch {
	case f == nil:
		return g
	case g == nil:
		return f
	}
	return func(err error) {
		f(err)
		g(err)
	}
}

// logHook writes to a logger what is worth a line.
type logHook struct{ log *slog.Logger }

func (l logHook) OnConnect(addr string) { l.log.Info("felix: connected", "broker", addr) }

func (l logHook) OnDisconnect(addr string, reason error) {
	l.log.Info("felix: disconnected", "broker", addr, "reason", reason)
}

func (l logHook) OnConnectFailed(addr string, reason error) {
	l.log.Warn("felix: cannot connect", "broker", addr, "reason", reason)
}

func (l logHook) OnSubscription(namespace, stream string, state SubscriptionState, reason error) {
	l.log.Info("felix: subscription "+state.String(), "namespace", namespace, "stream", stream, "reason", reason)
}
