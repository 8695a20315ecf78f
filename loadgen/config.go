package loadgen

import (
	"crypto/tls"
	"errors"
	"fmt"
	"math"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"

	"github.com/felix-mq/felix/broker"
	"github.com/felix-mq/felix/codec"
	"github.com/felix-mq/felix/ring"
)

// Unbounded is the [Config.Window] that does not limit the batches in flight.
const Unbounded = -1

// Defaults of [Config].
const (
	DefaultFanout      = 1
	DefaultPayload     = 256
	DefaultBatch       = 64
	DefaultWindow      = 8
	DefaultDuration    = 5 * time.Second
	DefaultMaxDuration = time.Minute
	DefaultWarmup      = 500 * time.Millisecond
	DefaultConns       = 8
	DefaultIdleTimeout = 10 * time.Second
	DefaultInterval    = time.Second
)

// DefaultCallTimeout is that of cache calls and connection attempts.
const DefaultCallTimeout = 5 * time.Second

// SlowMode is what [Config.SlowSubs] do.
type SlowMode string

// Modes of slow subscriptions. The zero value means [Stop].
const (
	Stop    SlowMode = "stop"    // read nothing at all
	Trickle SlowMode = "trickle" // read one frame every 200 ms
)

// Config describes a run. The zero value works: each field says what zero means. It is copied by [Run].
type Config struct {
	// Topics is the number of streams. Zero means 1. With more, they are called like the stream of the target, followed
	// by -0, -1 and so on.
	Topics int
	// Publishers is the number of publishers of each topic. Zero means 1. Those of one number share a connection, which
	// publishes to all topics.
	Publishers int
	// Streams is the number of streams that each of these connections publishes by; a topic stays on one. Zero means 1.
	Streams int
	// Fanout is the number of subscriptions to each topic, each of which must receive every event of it. Zero means 1.
	// Each takes about 220 KiB of memory for its histogram.
	Fanout int
	// Payload is the size of an event in bytes, the stamp of [StampLen] bytes included, which is thus the least. Zero
	// means 256.
	Payload int
	// Kind is what the bytes after the stamp are. Zero means [Random].
	Kind PayloadKind
	// Seed makes the payloads; equal seeds make equal payloads.
	Seed uint64

	// Compress makes the publisher compress batches that shrink; those of [Random] do not.
	Compress bool

	// Acked makes each publisher wait for the acknowledgement of a batch before it sends the next one.
	Acked bool

	// Batch is the number of events in one publish. Zero means 64. A batch must fit into a frame of 16 MiB.
	Batch int
	// Window is the number of batches in flight of each publisher to a topic: sent, and not yet received by every
	// subscription. Zero means 8, 1 is a closed loop, [Unbounded] leaves the limit to the transport's back-pressure.
	Window int
	// Rate makes the run open-loop: the events per second of all publishers together at which batches are due, with no
	// window. Zero means none.
	Rate float64

	// Total is the number of measured events to publish, which publishers and topics share. Zero means that Duration
	// decides.
	Total int64
	// Duration is how long measured events are published. Zero means 5 s, and sets MaxDuration to a minute if that is
	// zero as well.
	Duration time.Duration
	// MaxDuration is how long a run may go on past Duration until its volume is large enough (see [TooSmallError]).
	// Less than Duration, zero included, means not at all.
	MaxDuration time.Duration
	// Volume is how many times over a run must move what can be in flight. Zero means 32.
	Volume int
	// Warmup is how long events are published before the clock starts, at least one batch. Zero means 500 ms.
	Warmup time.Duration

	// Conns is the number of connections that the subscriptions are spread over, at most one for each. Zero means 8.
	Conns int
	// SlowSubs is a number of further subscriptions, spread over the topics, that read little or nothing. They are not
	// accounted for. A broker that is started then drops what does not fit into a queue, instead of waiting for space;
	// so that the others lose nothing, the window has to fit into a queue, which holds 4 MiB by default.
	SlowSubs int
	// SlowMode is what they do. Zero means [Stop].
	SlowMode SlowMode
	// AllowDrops counts what a subscription did not receive as dropped, instead of failing the run. A broker that is
	// started then drops what does not fit into a queue, instead of waiting for space.
	AllowDrops bool
	// IdleTimeout fails the run when a subscription receives nothing for so long although it should. Zero means 10 s.
	IdleTimeout time.Duration

	// Target is the broker to load. Nil starts one.
	Target *Target
	// Processes says where a broker that is started lives: 1 in this process, 2 in one of its own, which needs
	// [brokerproc.Serve]. Zero means 1.
	Processes int
	// Tune, if not nil, changes the settings of a broker that is started in this process. One in a process of its own
	// knows those of the environment alone.
	Tune func(*broker.Config) error

	Observer
}

// Observer is what a run tells while it lasts. Its functions are called by one goroutine at a time.
type Observer struct {
	// Interval is the length of the intervals of a result's timeline. Zero means 1 s.
	Interval time.Duration
	// OnInterval, if not nil, receives the latencies of each interval, in nanoseconds, tagged by what was measured:
	// "deliver", "put", "get" or "connect". The histogram, which has start and end time, is only lent.
	OnInterval func(*hdrhistogram.Histogram)
	// Progress, if not nil, is called a few times per second.
	Progress func(Progress)
}

// Target is a broker that is already there. All fields are required.
type Target struct {
	Addr                      string // host:port
	Tenant, Namespace, Stream string
	Token                     string
	TLS                       *tls.Config
}

// Progress is the state of a run under way.
type Progress struct {
	WarmingUp bool
	Elapsed   time.Duration // since the warm-up began, or about since the measurement did
	Remaining time.Duration // of the measurement, as far as it can be told; 0 if it cannot
	Published uint64        // events so far, without those of the warm-up; or calls
	Delivered uint64        // deliveries so far, without those of the warm-up; or calls
	Dropped   uint64        // events that subscriptions found missing so far, the warm-up included
	Rate      float64       // deliveries or calls per second since the last call
	P99       float64       // µs, of the last interval that has ended
}

// withDefaults replaces each zero value by what it means. It is called on a valid Config.
func (c Config) withDefaults() Config {
	setDefault(&c.Topics, 1)
	setDefault(&c.Publishers, 1)
	setDefault(&c.Streams, 1)
	setDefault(&c.Fanout, DefaultFanout)
	setDefault(&c.Payload, DefaultPayload)
	setDefault(&c.Kind, Random)
	setDefault(&c.Batch, DefaultBatch)
	if c.Rate > 0 {
		c.Window = Unbounded
	}
	setDefault(&c.Window, DefaultWindow)
	if c.Total == 0 && c.Duration == 0 {
		c.Duration = DefaultDuration
		setDefault(&c.MaxDuration, DefaultMaxDuration)
	}
	c.MaxDuration = max(c.MaxDuration, c.Duration)
	setDefault(&c.Volume, volumeFactor)
	setDefault(&c.Warmup, DefaultWarmup)
	setDefault(&c.Conns, DefaultConns)
	c.Conns = min(c.Conns, c.Topics*c.Fanout+c.SlowSubs)
	setDefault(&c.SlowMode, Stop)
	setDefault(&c.IdleTimeout, DefaultIdleTimeout)
	setDefault(&c.Processes, 1)
	setDefault(&c.Interval, DefaultInterval)
	return c
}

func setDefault[T comparable](field *T, value T) {
	var zero T
	if *field == zero {
		*field = value
	}
}

// Bounds that keep products far from overflow; a run at them would not fit any machine.
const (
	maxSubscriptions = 1 << 20
	maxPublishers    = 1 << 10
	maxBatch         = 1 << 20
	maxWindow        = 1 << 20
)

// Validate reports every problem of c at once.
func (c Config) Validate() error {
	var problems []error
	bad := func(wrong bool, field, format string, args ...any) {
		if wrong {
			problems = append(problems, &InvalidError{field, fmt.Sprintf(format, args...)})
		}
	}
	given := c
	c = c.withDefaults()
	bad(c.Topics < 1 || c.Topics > maxSubscriptions, "Topics", "topics: %d is not between 1 and %d", c.Topics, maxSubscriptions)
	bad(c.Publishers < 1 || c.Publishers > maxPublishers, "Publishers", "publishers: %d is not between 1 and %d", c.Publishers, maxPublishers)
	bad(c.Streams < 1 || c.Streams > maxPublishers, "Streams", "streams: %d is not between 1 and %d", c.Streams, maxPublishers)
	bad(c.Fanout < 1 || c.Fanout > maxSubscriptions, "Fanout", "fanout %d is not between 1 and %d", c.Fanout, maxSubscriptions)
	bad(c.SlowSubs < 0 || c.SlowSubs > maxSubscriptions, "SlowSubs", "slow subscriptions: %d is not between 0 and %d", c.SlowSubs, maxSubscriptions)
	bad(c.SlowMode != Stop && c.SlowMode != Trickle, "SlowMode", "slow mode %q is neither stop nor trickle", c.SlowMode)
	bad(given.Conns < 0, "Conns", "connections: %d is negative", given.Conns)
	bad(c.Payload < StampLen, "Payload", "payload of %d bytes has no room for the stamp of %d bytes that tells order and time", c.Payload, StampLen)
	bad(c.Kind.String() == "", "Kind", "payload kind %d is unknown", c.Kind)
	bad(c.Batch < 1 || c.Batch > maxBatch, "Batch", "batch %d is not between 1 and %d", c.Batch, maxBatch)
	// 1 KiB is more than the names in front of the items take.
	if frame := int64(c.Batch) * (int64(c.Payload) + 4); c.Payload >= StampLen && c.Batch >= 1 && c.Batch <= maxBatch {
		bad(frame > codec.DefaultMaxFrame-1024, "Batch", "a batch of %d × %d bytes does not fit into a frame of %d bytes",
			c.Batch, c.Payload, codec.DefaultMaxFrame)
	}
	bad(given.Window < Unbounded || given.Window > maxWindow, "Window", "window %d is not between 1 and %d, or unbounded", given.Window, maxWindow)
	bad(c.Rate < 0 || c.Rate > 1e9 || math.IsNaN(c.Rate), "Rate", "rate %v is not between 0 and 1e9 events per second", c.Rate)
	bad(c.Rate > 0 && given.Window != 0, "Rate", "rate and window exclude each other: an open loop does not wait")
	bad(c.Total < 0, "Total", "total %d is negative", c.Total)
	bad(c.Total > 0 && c.Total < int64(c.Topics)*int64(c.Publishers), "Total", "total %d is less than one event for each publisher of each topic", c.Total)
	bad(c.Duration < 0, "Duration", "duration %v is negative", c.Duration)
	bad(c.Total > 0 && c.Duration > 0, "Total", "total and duration exclude each other")
	bad(c.Volume < 1 || c.Volume > maxWindow, "Volume", "volume %d is not between 1 and %d", c.Volume, maxWindow)
	bad(c.Warmup < 0, "Warmup", "warm-up %v is negative", c.Warmup)
	bad(c.IdleTimeout < 0, "IdleTimeout", "idle timeout %v is negative", c.IdleTimeout)
	bad(c.Interval < 0, "Interval", "interval %v is negative", c.Interval)
	bad(c.Processes < 1 || c.Processes > 2, "Processes", "processes: %d is neither 1 nor 2", c.Processes)
	bad(given.Processes != 0 && c.Target != nil, "Processes", "processes say where the broker is started, but there is one at %s", addrOf(c.Target))
	bad(c.SlowSubs > 0 && c.Window == Unbounded && c.Rate == 0 && !c.AllowDrops,
		"SlowSubs", "slow subscriptions need a window, a rate or allowed drops: queues that do not wait for the slow lose what is sent without bound")
	if t := c.Target; t != nil {
		bad(t.Addr == "", "Addr", "the broker's address is missing")
		bad(t.Tenant == "" || t.Token == "", "Token", "tenant or token is missing")
		bad(t.Namespace == "" || t.Stream == "", "Stream", "namespace or stream is missing")
		bad(t.TLS == nil, "TLS", "the TLS configuration is missing")
	}
	if len(problems) == 0 && c.Total > 0 {
		if err := c.checkVolume(c.Total / int64(c.Topics*c.Publishers)); err != nil {
			problems = append(problems, err)
		}
	}
	return errors.Join(problems...)
}

func addrOf(t *Target) string {
	if t == nil {
		return ""
	}
	return t.Addr
}

// volumeFactor is the default of [Config.Volume]: so much that the beginning and the end of a run, where what can be
// under way fills and empties, weigh little.
const volumeFactor = 32

// transportBytes is about what lies between a publisher and one subscription of a broker with default settings when
// nothing else limits it: the windows of the publisher's stream and of the subscription's, and the queue.
const transportBytes = 2*256<<10 + ring.DefaultMaxBytes

// held returns how many bytes of payload can be under way from one publisher to one subscription at one moment.
func (c *Config) held() int64 {
	if c.Window == Unbounded {
		return transportBytes
	}
	return int64(c.Window) * int64(c.Batch) * int64(c.Payload)
}

// checkVolume refuses a run of so many events from each publisher to each subscription if it is too small for a rate to
// mean anything. An open loop is never too small: its rate is given, and that the broker cannot follow shows in the
// latencies.
func (c *Config) checkVolume(events int64) error {
	if c.Rate > 0 {
		return nil
	}
	volume, needed := events*int64(c.Payload), int64(c.Volume)*c.held()
	if volume >= needed {
		return nil
	}
	return &TooSmallError{Volume: volume, Needed: needed, Held: c.held(), NeededEvents: (needed + int64(c.Payload) - 1) / int64(c.Payload)}
}
