package client

import (
	"fmt"
	"time"
)

// Transport is how a client uses connections, for [WithTransport]. A field that is 0 keeps its default. The defaults
// suit most programs; docs/measure/performance.md says when others are better.
type Transport struct {
	// PublishConns is the number of connections that publish; 1 by default. Topics are spread over all their streams by
	// hash, and each topic stays on one, in order.
	PublishConns int
	// PublishStreams is the number of streams on each connection that publishes; 1 by default. A topic that the broker
	// pushes back on holds up the others of its stream.
	PublishStreams int
	// RoundRobin spreads publishes over all streams instead of topics. One busy topic can use several connections then,
	// and its events are no longer in order.
	RoundRobin bool

	// EventConns is the number of connections that subscriptions are spread over; 8 by default. More are opened when
	// these are full.
	EventConns int
	// SubscriptionsPerConn is how many subscriptions share a connection at most; 32 by default. The connection's
	// receive window is sized for that many, so that subscriptions that are not read cannot stop the others.
	SubscriptionsPerConn int

	// CacheConns is the number of connections for cache requests; 1 by default.
	CacheConns int
	// CacheStreams is the number of streams on each connection for cache requests; 4 by default.
	CacheStreams int

	// StreamWindow is the receive window of each stream in bytes; 256 KiB by default. It bounds what a broker may have
	// in flight to one subscription; paths with a large product of bandwidth and delay want more.
	StreamWindow int
	// EventWindows are the receive windows of connections that carry subscriptions. The one of the connection is raised
	// to what its subscriptions need.
	EventWindows Windows
	// CacheWindows are the receive windows of connections that carry cache requests.
	CacheWindows Windows
	// MaxFrame is the largest frame payload in bytes that is accepted or sent; 16 MiB by default, like the broker's.
	// Replies may be up to 64 bytes larger.
	MaxFrame int

	// IdleTimeout is the time after which a silent connection counts as dead; 7 s by default.
	IdleTimeout time.Duration
	// KeepAlive is the period of the packets that keep a living connection from being silent; 3 s by default. A dead
	// peer is noticed after at most the sum of both.
	KeepAlive time.Duration

	// SendBuffer and ReceiveBuffer are the bytes of UDP buffers that are asked of the kernel for each connection.
	SendBuffer, ReceiveBuffer int
	// Spin is for how long the client polls its sockets for more before it sleeps, while traffic keeps coming: lower
	// latency at the cost of a processor that is busy waiting. By default it never does.
	Spin time.Duration
}

// Windows are receive windows in bytes. One that is 0 keeps its default, which for a stream is
// [Transport.StreamWindow].
type Windows struct {
	Stream, Conn int
}

// WithTransport sets how the client uses connections. Fields that are 0 stay as they are, so that several such options
// add up. A negative one makes [Connect] fail.
func WithTransport(t Transport) Option {
	return func(o *options) {
		set(o, "publish connections", &o.publishConns, t.PublishConns)
		set(o, "publish streams", &o.publishStreams, t.PublishStreams)
		set(o, "event connections", &o.eventConns, t.EventConns)
		set(o, "subscriptions per connection", &o.subsPerConn, t.SubscriptionsPerConn)
		set(o, "cache connections", &o.cacheConns, t.CacheConns)
		set(o, "cache streams", &o.cacheStreams, t.CacheStreams)
		set(o, "maximum frame size", &o.maxFrame, t.MaxFrame)
		set(o, "send buffer", &o.quic.SendBuffer, t.SendBuffer)
		set(o, "receive buffer", &o.quic.RecvBuffer, t.ReceiveBuffer)
		set(o, "stream window", &o.quic.StreamWindow, t.StreamWindow)
		set(o, "window of streams with events", &o.eventWindows.stream, t.EventWindows.Stream)
		set(o, "window of connections with events", &o.eventWindows.conn, t.EventWindows.Conn)
		set(o, "window of streams for cache requests", &o.cacheWindows.stream, t.CacheWindows.Stream)
		set(o, "window of connections for cache requests", &o.cacheWindows.conn, t.CacheWindows.Conn)
		set(o, "idle timeout", &o.quic.IdleTimeout, t.IdleTimeout)
		set(o, "keep-alive", &o.quic.KeepAlive, t.KeepAlive)
		set(o, "time to spin", &o.quic.Spin, t.Spin)
		o.roundRobin = o.roundRobin || t.RoundRobin
	}
}

// set changes a setting to a value unless that is 0, and notes one that is negative.
func set[S, V int | uint64 | time.Duration](o *options, name string, setting *S, value V) {
	switch {
	case value < 0:
		o.problems = append(o.problems, fmt.Errorf("client: %s: %v is negative", name, value))
	case value > 0:
		*setting = S(value)
	}
}

// ConnStats are what QUIC counts over connections. Bytes are those of UDP payloads, retransmissions included.
type ConnStats struct {
	BytesSent, PacketsSent         uint64
	BytesReceived, PacketsReceived uint64
	BytesLost, PacketsLost         uint64 // may fall again, when something believed lost arrives after all
}

// Stats sums what QUIC counts over the client's live connections.
func (c *Client) Stats() ConnStats {
	var sum ConnStats
	if !c.made() {
		return sum
	}
	c.mu.Lock()
	defer c.mu.Unlock()
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
