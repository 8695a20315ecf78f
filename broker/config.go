package broker

import (
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/felix-mq/felix/auth"
	"github.com/felix-mq/felix/catalog"
	"github.com/felix-mq/felix/codec"
	"github.com/felix-mq/felix/fanout"
	"github.com/felix-mq/felix/quicx"
	"github.com/felix-mq/felix/ring"
)

// Config holds all settings of a broker. [DefaultConfig] fills in the defaults; zero values of the fields that have one
// mean the default too, except for IngressWait. The tags describe the setting of cmd/broker that is read into the
// field, its unit and its bounds (internal/settings), so that there is one list of settings.
type Config struct {
	Bind string `env:"FELIX_QUIC_BIND" is:"address" doc:"UDP address that the broker listens on; in development mode the default is 127.0.0.1:5000"`

	MaxFrameBytes           int `env:"FELIX_MAX_FRAME_BYTES" unit:"bytes" min:"1024" max:"1073741824" doc:"largest frame payload accepted"`
	MaxStreamsPerConn       int `env:"FELIX_MAX_STREAMS_PER_CONN" min:"4" max:"1048576" doc:"streams of each direction that one connection may have open"`
	MaxSubscriptionsPerConn int `env:"FELIX_MAX_SUBSCRIPTIONS_PER_CONN" min:"1" max:"1048576" doc:"active subscriptions that one connection may have"`

	InFlightRequests int `env:"FELIX_STREAM_IN_FLIGHT_REQUESTS" min:"1" max:"1048576" doc:"requests of one control stream that may be carried out and not answered yet; above that it is not read until their replies are written"`
	InFlightBytes    int `env:"FELIX_STREAM_IN_FLIGHT_BYTES" unit:"bytes" min:"1024" max:"16777216" doc:"bytes of replies at which a control stream is not read until they are written"`

	QueuePolicy   Overflow `yaml:"subscriber_queue_policy" env:"FELIX_SUB_QUEUE_POLICY" words:"block,drop_new,drop_old" doc:"what happens when a subscription's queue is full: the publisher waits, the new batch is dropped, or the oldest are"`
	QueueCapacity int      `env:"FELIX_SUBSCRIBER_QUEUE_CAPACITY,FELIX_SUB_QUEUE_CAPACITY" unit:"batches" min:"1" max:"1048576" doc:"batches that a subscription's queue holds"`
	QueueBytes    int      `env:"FELIX_SUBSCRIBER_QUEUE_BYTES" unit:"bytes" min:"1024" max:"2147483647" doc:"bytes that a subscription's queue holds; an empty queue takes any one batch"`
	ReplayBytes   int      `env:"FELIX_REPLAY_BYTES" unit:"bytes" min:"-1" max:"2147483647" doc:"bytes of past events kept for each stream; 0 is the default, -1 none"`
	RetainedBytes int64    `env:"FELIX_RETAINED_BYTES" unit:"bytes" min:"1048576" max:"1125899906842624" doc:"bytes that all queues and all replay together may hold"`

	IngressWait  bool          `env:"FELIX_PUB_INGRESS_WAIT" doc:"an unacknowledged publish waits for a queue that is full (back-pressure); otherwise it is dropped"`
	PublishWait  time.Duration `yaml:"publish_queue_wait_timeout_ms" env:"FELIX_PUBLISH_QUEUE_WAIT_MS" unit:"ms" min:"1ms" max:"10m" doc:"time that an acknowledged publish waits for a queue that is full before it is refused"`
	StallTimeout time.Duration `env:"FELIX_SUB_STALL_TIMEOUT_MS" unit:"ms" min:"100ms" max:"1h" doc:"time after which a subscription that takes nothing while a publisher waits for it is ended"`

	EventMaxItems int `env:"FELIX_EVENT_BATCH_MAX_EVENTS" unit:"events" min:"0" max:"1048576" doc:"events in one delivered frame; larger batches are split. 0 forwards batches as they came, but to peers without extensions in frames of 256"`
	EventMaxBytes int `env:"FELIX_EVENT_BATCH_MAX_BYTES" unit:"bytes" min:"0" max:"1073741824" doc:"bytes of events in one delivered frame; 0 forwards batches as they came"`
	// EventMaxDelayMicros is not a Duration because its variable counts microseconds.
	EventMaxDelayMicros int `env:"FELIX_EVENT_BATCH_MAX_DELAY_US" unit:"µs" min:"0" max:"100000" doc:"time that a subscription's first event may wait for others to be written with it, in microseconds; 0 writes it at once, and batches come from load alone"`
	MaxWriteBytes       int `yaml:"subscriber_max_bytes_per_write" env:"FELIX_SUB_MAX_BYTES_PER_WRITE" unit:"bytes" min:"1024" max:"16777216" doc:"bytes that a subscription's writer gathers into one write"`

	InlineBytes int `env:"FELIX_SUB_INLINE_BYTES" unit:"bytes" min:"0" max:"65536" doc:"largest frame that a publisher writes to an idle subscription itself, without waking a writer; 0 for none"`

	StreamWindow uint64        `env:"FELIX_CACHE_STREAM_RECV_WINDOW" unit:"bytes" min:"16384" max:"1073741824" doc:"receive window of each stream of the listener"`
	ConnWindow   uint64        `env:"FELIX_CACHE_CONN_RECV_WINDOW" unit:"bytes" min:"0" max:"17179869184" doc:"receive window of each connection; raised to what eight publish streams need"`
	Sockets      int           `env:"FELIX_QUIC_SOCKETS" min:"0" max:"64" doc:"sockets that share the port, each with a reader of its own; 0 is one for up to five processors and more beyond"`
	Spin         time.Duration `env:"FELIX_QUIC_SPIN" min:"0s" max:"10ms" doc:"time, such as 100us, that the socket is polled for more before its reader sleeps, while traffic keeps coming; 0 never"`
	SendBuffer   int           `env:"FELIX_UDP_SEND_BUFFER" unit:"bytes" min:"65536" max:"1073741824" doc:"UDP send buffer asked of the kernel"`
	RecvBuffer   int           `env:"FELIX_UDP_RECV_BUFFER" unit:"bytes" min:"65536" max:"1073741824" doc:"UDP receive buffer asked of the kernel"`

	InitialMTU        int           `env:"FELIX_INITIAL_MTU" unit:"bytes" min:"0" max:"65527" doc:"size of the packets that a connection begins with, and the least that it sends where it has more: a path that passes less lets no handshake through. At least 1200; above 1452 counts as that; 0 is 1280, or 1200 where the system refuses to send that"`
	MTUUpperBound     int           `env:"FELIX_MTU_UPPER_BOUND" unit:"bytes" min:"1200" max:"65527" doc:"largest packet that path MTU discovery tries; above 1452 counts as that. Not above the size that connections begin with switches discovery off"`
	BlackHoleCooldown time.Duration `yaml:"mtu_black_hole_cooldown_ms" env:"FELIX_MTU_BLACK_HOLE_COOLDOWN_MS" unit:"ms" min:"100ms" max:"24h" doc:"time for which connections to an address send packets of 1200 bytes and try no larger ones after the path to it was seen to drop large ones"`

	MaxConns                int           `env:"FELIX_MAX_CONNECTIONS" min:"1" max:"16777216" doc:"connections that may be open at a time"`
	MaxUnauthenticatedConns int           `env:"FELIX_MAX_UNAUTHENTICATED_CONNECTIONS" min:"1" max:"16777216" doc:"of these, connections on which no stream has authenticated; the oldest is closed for a new one"`
	AuthTimeout             time.Duration `env:"FELIX_AUTH_TIMEOUT_MS" unit:"ms" min:"10ms" max:"1h" doc:"time that a stream, and a connection that has opened one, has to authenticate"`
	AuthMaxBytes            int           `env:"FELIX_AUTH_MAX_BYTES" unit:"bytes" min:"1024" max:"16777216" doc:"bytes that a stream may send before it has authenticated"`
	FrameTimeout            time.Duration `env:"FELIX_FRAME_TIMEOUT_MS" unit:"ms" min:"10ms" max:"1h" doc:"time that the rest of a frame may take once it has begun, and a second more for each 64 KiB"`
	ConnReadBytes           int64         `env:"FELIX_CONN_READ_BYTES" unit:"bytes" min:"1048576" max:"1125899906842624" doc:"memory for unfinished requests and unread replies of one connection"`
	ReadBytes               int64         `env:"FELIX_READ_BYTES" unit:"bytes" min:"1048576" max:"1125899906842624" doc:"memory for unfinished requests, unread replies and open streams of all connections; a quarter of it is for those on which no stream has authenticated"`
	FailedStreams           int           `env:"FELIX_FAILED_STREAMS_PER_SECOND" min:"1" max:"1000000" doc:"streams per second of one connection that may end without having authenticated, beyond a burst of 2048"`
	RetryAbove              int           `env:"FELIX_RETRY_ABOVE" min:"-1" max:"1000000" doc:"connection attempts per second above which each has to prove its address; 0 is 50 for each processor, -1 never"`
	HandshakesPerPrefix     int           `env:"FELIX_HANDSHAKES_PER_PREFIX" min:"-1" max:"1000000" doc:"connection attempts per second accepted from one network (/24, /56), with a burst of two seconds; -1 any number"`
	MaxSubscriptions        int           `env:"FELIX_MAX_SUBSCRIPTIONS" min:"1" max:"16777216" doc:"subscriptions that may be active at a time"`
	MaxWatches              int           `env:"FELIX_MAX_WATCHES" min:"1" max:"16777216" doc:"watches of caches that may be active at a time"`
	IgnoreExpiry            bool          `env:"FELIX_IGNORE_TOKEN_EXPIRY" doc:"streams and subscriptions outlive the token that opened them"`

	IdleTimeout   time.Duration `env:"FELIX_IDLE_TIMEOUT_MS" unit:"ms" min:"1s" max:"1h" doc:"time after which a silent connection is closed"`
	KeepAlive     time.Duration `env:"FELIX_KEEP_ALIVE_MS" unit:"ms" min:"100ms" max:"30m" doc:"time between keep-alives on an idle connection"`
	ReplyTimeout  time.Duration `env:"FELIX_STREAM_OPEN_TIMEOUT_MS" unit:"ms" min:"1ms" max:"10m" doc:"time that opening an event stream may take for lack of stream credit"`
	ShutdownDrain time.Duration `env:"FELIX_SHUTDOWN_DRAIN_TIMEOUT_MS" unit:"ms" min:"1ms" max:"1h" doc:"time that a shutdown may take"`

	CacheMaxBytes   int64 `env:"FELIX_CACHE_MAX_BYTES" unit:"bytes" min:"1048576" max:"1125899906842624" doc:"bytes that all cache entries together may hold"`
	CacheScopeShare int   `env:"FELIX_CACHE_SCOPE_SHARE" unit:"percent" min:"1" max:"100" doc:"part of these that the entries of one cache may hold"`
	CacheWatchBytes int   `env:"FELIX_CACHE_WATCH_BYTES" unit:"bytes" min:"1024" max:"2097152" doc:"bytes of changes that wait for the watchers of one cache; one that does not keep up gets an event that says that it missed some"`

	// CacheSnapshot is about what caches have after a restart.
	CacheSnapshot CacheSnapshotConfig `prefix:"cache_snapshot_"`

	// Storage is about durable streams.
	Storage StorageConfig `prefix:"durable_"`

	// Tenant is what each tenant may have of all this, as far as the catalog does not say it.
	Tenant catalog.Limits `prefix:"tenant_"`

	// TLS is the server's certificate configuration. ALPN and version settings are overridden: felix-wire runs over
	// TLS 1.3 and offers no protocol (docs/protocol/session.md#tls). It must be set; see [NewDev] for a self-signed
	// one.
	TLS *tls.Config
	// Catalog is where the broker has its tenants, with the keys that sign their tokens, its streams and its caches
	// from. New takes a snapshot of it, and Serve follows its changes. Without it they come from Keys,
	// [Broker.AddStream] and [Broker.AddCache].
	Catalog catalog.Source
	// Keys says which keys sign each tenant's tokens. It must be set if Catalog is not.
	Keys auth.KeySource
	// StatelessResetKey is a secret that a broker has in common with those that it replaces at the same address: peers
	// of its predecessor hear at their next packet that their connections are gone (RFC 9000, section 10.3). Nil means
	// that they find out by their idle timeout. Brokers that run side by side must not share one.
	StatelessResetKey *[32]byte
	// Logger receives what the broker has to say; nil discards it.
	Logger *slog.Logger
	// Trace, if set, is called when a control operation begins, with the operation and what it is about: "connect",
	// which lasts until a stream of the connection has authenticated, "auth", "subscribe", "catalog", which is a change
	// of it, and "drain". The function that it returns is called once, with nil or with why the operation failed.
	// Neither may block; both are called from any goroutine.
	Trace func(operation string, attrs ...slog.Attr) (end func(error))
	// Now is the clock by which tokens expire; nil means time.Now.
	Now func() time.Time
}

// Overflow is what happens when a subscription's queue is full. It is the same type as catalog.Overflow, and is written
// in settings as "block", "drop_new" or "drop_old".
type Overflow = ring.Overflow

// The policies of queues.
const (
	OverflowBlock   = ring.Block   // the publisher waits
	OverflowDropNew = ring.DropNew // the new batch is dropped for this subscription, which hears of it
	OverflowDropOld = ring.DropOld // the oldest batches of the queue are dropped, and the subscription hears of it
)

// DefaultConfig returns the default settings.
func DefaultConfig() Config {
	return Config{
		Bind:                    "0.0.0.0:5000",
		MaxFrameBytes:           codec.DefaultMaxFrame,
		MaxStreamsPerConn:       1024,
		MaxSubscriptionsPerConn: 4096,
		InFlightRequests:        1024,
		InFlightBytes:           64 << 10,
		QueuePolicy:             OverflowDropNew,
		QueueCapacity:           ring.DefaultMaxItems,
		QueueBytes:              ring.DefaultMaxBytes,
		ReplayBytes:             fanout.DefaultReplayBytes,
		RetainedBytes:           512 << 20,
		IngressWait:             true,
		PublishWait:             2 * time.Second,
		StallTimeout:            30 * time.Second,
		MaxWriteBytes:           64 << 10,
		InlineBytes:             1200,
		StreamWindow:            256 << 10,
		Spin:                    100 * time.Microsecond,
		SendBuffer:              8 << 20,
		RecvBuffer:              8 << 20,
		MTUUpperBound:           quicx.MaxPacketSize,
		BlackHoleCooldown:       quicx.DefaultBlackHoleCooldown,
		MaxConns:                65536,
		MaxUnauthenticatedConns: 1024,
		MaxSubscriptions:        262144,
		MaxWatches:              65536,
		AuthTimeout:             10 * time.Second,
		AuthMaxBytes:            128 << 10,
		FrameTimeout:            30 * time.Second,
		ConnReadBytes:           64 << 20,
		ReadBytes:               512 << 20,
		FailedStreams:           100,
		HandshakesPerPrefix:     quicx.DefaultHandshakesPerPrefix,
		IdleTimeout:             30 * time.Second,
		KeepAlive:               10 * time.Second,
		ReplyTimeout:            5 * time.Second,
		ShutdownDrain:           25 * time.Second,
		CacheSnapshot:           CacheSnapshotConfig{Every: 300},
		Storage:                 defaultStorage(),
		Tenant:                  catalog.NoLimits(),
		CacheMaxBytes:           256 << 20,
		CacheScopeShare:         100,
		CacheWatchBytes:         256 << 10,
	}
}

// ensureDefaults replaces the zero value of each field that has a default.
func (c *Config) ensureDefaults() {
	d := DefaultConfig()
	setDefault(&c.Bind, d.Bind)
	setDefault(&c.MaxFrameBytes, d.MaxFrameBytes)
	setDefault(&c.MaxStreamsPerConn, d.MaxStreamsPerConn)
	setDefault(&c.MaxSubscriptionsPerConn, d.MaxSubscriptionsPerConn)
	setDefault(&c.InFlightRequests, d.InFlightRequests)
	setDefault(&c.InFlightBytes, d.InFlightBytes)
	setDefault(&c.QueueCapacity, d.QueueCapacity)
	setDefault(&c.QueueBytes, d.QueueBytes)
	setDefault(&c.ReplayBytes, d.ReplayBytes)
	setDefault(&c.RetainedBytes, d.RetainedBytes)
	setDefault(&c.PublishWait, d.PublishWait)
	setDefault(&c.StallTimeout, d.StallTimeout)
	setDefault(&c.MaxWriteBytes, d.MaxWriteBytes)
	setDefault(&c.StreamWindow, d.StreamWindow)
	setDefault(&c.SendBuffer, d.SendBuffer)
	setDefault(&c.RecvBuffer, d.RecvBuffer)
	setDefault(&c.MaxConns, d.MaxConns)
	setDefault(&c.MaxUnauthenticatedConns, d.MaxUnauthenticatedConns)
	setDefault(&c.MaxSubscriptions, d.MaxSubscriptions)
	setDefault(&c.MaxWatches, d.MaxWatches)
	setDefault(&c.CacheSnapshot.Every, d.CacheSnapshot.Every)
	setDefault(&c.Storage.SyncEvery, d.Storage.SyncEvery)
	setDefault(&c.Storage.SegmentBytes, d.Storage.SegmentBytes)
	setDefault(&c.Storage.IndexSpacing, d.Storage.IndexSpacing)
	setDefault(&c.Storage.OpenFiles, d.Storage.OpenFiles)
	setDefault(&c.Storage.RetainEvery, d.Storage.RetainEvery)
	c.Tenant = c.Tenant.Over(d.Tenant)
	setDefault(&c.AuthTimeout, d.AuthTimeout)
	setDefault(&c.AuthMaxBytes, d.AuthMaxBytes)
	setDefault(&c.FrameTimeout, d.FrameTimeout)
	setDefault(&c.ConnReadBytes, d.ConnReadBytes)
	setDefault(&c.ReadBytes, d.ReadBytes)
	setDefault(&c.FailedStreams, d.FailedStreams)
	setDefault(&c.HandshakesPerPrefix, d.HandshakesPerPrefix)
	setDefault(&c.IdleTimeout, d.IdleTimeout)
	setDefault(&c.KeepAlive, d.KeepAlive)
	setDefault(&c.ReplyTimeout, d.ReplyTimeout)
	setDefault(&c.ShutdownDrain, d.ShutdownDrain)
	setDefault(&c.CacheMaxBytes, d.CacheMaxBytes)
	setDefault(&c.CacheScopeShare, d.CacheScopeShare)
	setDefault(&c.CacheWatchBytes, d.CacheWatchBytes)
	setDefault(&c.Logger, slog.New(slog.DiscardHandler))
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Trace == nil {
		c.Trace = func(string, ...slog.Attr) func(error) { return func(error) {} }
	}
}

func setDefault[T comparable](field *T, value T) {
	var zero T
	if *field == zero {
		*field = value
	}
}

// validate reports every problem at once.
func (c *Config) validate() error {
	var errs []error
	if c.TLS == nil || (len(c.TLS.Certificates) == 0 && c.TLS.GetCertificate == nil && c.TLS.GetConfigForClient == nil) {
		errs = append(errs, errors.New("broker: Config.TLS has no certificate"))
	}
	if (c.Keys == nil) == (c.Catalog == nil) {
		errs = append(errs, errors.New("broker: either Config.Keys or Config.Catalog has to be set"))
	}
	return errors.Join(append(errs, c.Validate())...)
}

// Validate reports every problem of the settings at once. [New] calls it too; beyond it New needs TLS and Keys or
// Catalog.
func (c *Config) Validate() error {
	var errs []error
	if c.KeepAlive > c.IdleTimeout/2 {
		errs = append(errs, fmt.Errorf("broker: keep_alive_ms: %v is more than half of the idle timeout (idle_timeout_ms), %v", c.KeepAlive, c.IdleTimeout))
	}
	if err := c.Tenant.Validate(); err != nil {
		errs = append(errs, fmt.Errorf("broker: limits of each tenant: %w", err))
	}
	if c.Storage.Ack == catalog.AckQuorum {
		errs = append(errs, errors.New("broker: durable_fsync_mode: quorum needs a cluster of brokers, which there is not yet"))
	}
	if c.InitialMTU > 0 && c.InitialMTU < quicx.MinPacketSize {
		errs = append(errs, fmt.Errorf("broker: initial_mtu: %d is less than %d, which QUIC needs", c.InitialMTU, quicx.MinPacketSize))
	}
	for _, f := range []struct {
		name string
		n    int64
	}{
		{"MaxFrameBytes", int64(c.MaxFrameBytes)},
		{"MaxStreamsPerConn", int64(c.MaxStreamsPerConn)},
		{"MaxSubscriptionsPerConn", int64(c.MaxSubscriptionsPerConn)},
		{"InFlightRequests", int64(c.InFlightRequests)},
		{"InFlightBytes", int64(c.InFlightBytes)},
		{"QueueCapacity", int64(c.QueueCapacity)},
		{"QueueBytes", int64(c.QueueBytes)},
		{"RetainedBytes", c.RetainedBytes},
		{"EventMaxItems", int64(c.EventMaxItems)},
		{"EventMaxDelayMicros", int64(c.EventMaxDelayMicros)},
		{"MaxWriteBytes", int64(c.MaxWriteBytes)},
		{"PublishWait", int64(c.PublishWait)},
		{"StallTimeout", int64(c.StallTimeout)},
		{"MaxConns", int64(c.MaxConns)},
		{"MaxUnauthenticatedConns", int64(c.MaxUnauthenticatedConns)},
		{"MaxSubscriptions", int64(c.MaxSubscriptions)},
		{"MaxWatches", int64(c.MaxWatches)},
		{"AuthTimeout", int64(c.AuthTimeout)},
		{"AuthMaxBytes", int64(c.AuthMaxBytes)},
		{"FrameTimeout", int64(c.FrameTimeout)},
		{"ConnReadBytes", c.ConnReadBytes},
		{"ReadBytes", c.ReadBytes},
		{"CacheMaxBytes", c.CacheMaxBytes},
		{"CacheScopeShare", int64(c.CacheScopeShare)},
		{"CacheWatchBytes", int64(c.CacheWatchBytes)},
		{"FailedStreams", int64(c.FailedStreams)},
	} {
		if f.n < 0 {
			errs = append(errs, fmt.Errorf("broker: Config.%s is negative", f.name))
		}
	}
	return errors.Join(errs...)
}
