package loadgen

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/felix-mq/felix/client"
)

// System is a publish/subscribe system under load. [Run] loads Felix; [RunOn] loads any other system with the same
// publishers, subscribers and accounts. One goroutine calls its methods, one after the other.
type System interface {
	// Publisher opens the publisher of that number to that topic, both from 0. All publishers are opened before the
	// first subscription is made.
	Publisher(ctx context.Context, topic, number int) (Publisher, error)
	// Subscribe makes a subscription to a topic and returns when it is in effect. What arrives goes to r, in order,
	// until ctx ends, r wants no more, or the system is closed.
	Subscribe(ctx context.Context, topic int, r *Receiver) error
	// Close ends everything that was opened. When it returns no receiver is used any more. It is called when the
	// context that the system was opened with has ended.
	Close() error
}

// Open connects to a system. ctx ends with the run. cfg has no zero value that means something else, and is only read.
// fail ends the run with an error of a connection; it may be called from any goroutine, while ctx has not ended.
type Open func(ctx context.Context, cfg *Config, fail func(error)) (System, error)

// Publisher publishes to one topic. One goroutine uses it. A [client.Publisher] is one.
type Publisher interface {
	// Send returns when the items are the caller's again.
	Send(ctx context.Context, items ...[]byte) error
	// Publish returns when the system has acknowledged the items, if it does that.
	Publish(ctx context.Context, items ...[]byte) error
}

// Joiner is a [Publisher] that is handed several batches at once if the window has places for them: writes are cheaper
// together for systems that send each event alone.
type Joiner interface {
	Publisher
	// Join returns how many batches it is handed at most, at least 1.
	Join() int
}

// Meter is a [System] that counts the packets which publishers and subscriptions have sent and lost.
type Meter interface {
	PacketsLost() int64
}

// Receiver takes what arrives at one subscription. One goroutine uses it.
type Receiver struct {
	s    *subscriber
	fail func(error)
	now  int64
	some bool // events since Done
	over bool
}

// Event takes an event, whose bytes are only lent. It reports whether the subscription is to be read on.
func (r *Receiver) Event(event []byte) bool {
	if r.over {
		return false
	}
	if !r.some {
		r.now, r.some = r.s.r.now(), true
	}
	if err := r.s.event(event, r.now); err != nil {
		r.over = true
		r.fail(err)
	}
	return !r.over
}

// Done ends events that arrived together, which all count as arrived when the first of them was taken. It reports
// whether the subscription is to be read on.
func (r *Receiver) Done() bool {
	if r.some && !r.over {
		r.some, r.over = false, r.s.frameDone(r.now)
	}
	return !r.over
}

// Fail ends the run with an error of the subscription.
func (r *Receiver) Fail(err error) {
	r.fail(fmt.Errorf("loadgen: subscription %d: %w", r.s.index, err))
}

// RunOn carries out a run on another system than Felix, or on a part of it that the caller has set up. What cfg says of
// brokers and compression is left to open. Results and errors are those of [Run]; the result has no broker.
func RunOn(ctx context.Context, cfg Config, open Open) (*Result, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	res, err := load(ctx, cfg.withDefaults(), nil, open)
	if res != nil {
		res.Config.Broker, res.Config.Addr = "other", ""
	}
	return res, err
}

// OnClient loads Felix by a client that is there, and stays open. streams are the topics.
func OnClient(c *client.Client, namespace string, streams ...string) Open {
	return func(ctx context.Context, cfg *Config, _ func(error)) (System, error) {
		return newFelix(ctx, cfg, namespace, streams, []*client.Client{c}), nil
	}
}

// felixSystem is Felix, seen through its clients.
type felixSystem struct {
	cfg       *Config
	clients   []*client.Client // one for the publishers of each number; the first has the subscriptions
	owned     bool             // the clients are closed with the system
	namespace string
	topics    []string

	ctx     context.Context
	cancel  context.CancelFunc
	subs    []*client.Subscription
	readers sync.WaitGroup
}

func newFelix(ctx context.Context, cfg *Config, namespace string, topics []string, clients []*client.Client) *felixSystem {
	f := &felixSystem{cfg: cfg, clients: clients, namespace: namespace, topics: topics}
	f.ctx, f.cancel = context.WithCancel(ctx)
	return f
}

// openFelix connects to a broker.
func openFelix(t *Target) Open {
	return func(ctx context.Context, cfg *Config, _ func(error)) (System, error) {
		all := cfg.Topics*cfg.Fanout + cfg.SlowSubs
		opts := []client.Option{
			client.WithTLS(t.TLS), client.WithToken(t.Tenant, t.Token),
			client.WithTransport(client.Transport{
				PublishStreams: cfg.Streams, EventConns: cfg.Conns, SubscriptionsPerConn: (all + cfg.Conns - 1) / cfg.Conns,
			}),
		}
		if cfg.Compress {
			opts = append(opts, client.WithCompression())
		}
		f := newFelix(ctx, cfg, t.Namespace, nil, nil)
		f.owned = true
		for i := range cfg.Topics {
			f.topics = append(f.topics, topicName(t.Stream, i, cfg.Topics))
		}
		for range cfg.Publishers {
			c, err := client.Connect(ctx, t.Addr, opts...)
			if err != nil {
				return nil, errors.Join(fmt.Errorf("loadgen: %w", err), f.Close())
			}
			f.clients = append(f.clients, c)
		}
		return f, nil
	}
}

func (f *felixSystem) Publisher(_ context.Context, topic, number int) (Publisher, error) {
	return f.clients[number%len(f.clients)].Publisher(f.namespace, f.topics[topic]), nil
}

func (f *felixSystem) Subscribe(ctx context.Context, topic int, r *Receiver) error {
	s, err := f.subscribe(ctx, topic)
	if err != nil {
		return err
	}
	f.readers.Go(func() { f.read(s, r) }) // ends with the last event or with Close
	if f.owned && len(f.subs) == f.cfg.Topics*f.cfg.Fanout {
		return f.subscribeSlow(ctx)
	}
	return nil
}

func (f *felixSystem) subscribe(ctx context.Context, topic int) (*client.Subscription, error) {
	s, err := f.clients[0].Subscribe(ctx, f.namespace, f.topics[topic], client.WithoutResume())
	if err != nil {
		return nil, fmt.Errorf("loadgen: %w", err)
	}
	f.subs = append(f.subs, s)
	return s, nil
}

// subscribeSlow makes the subscriptions of [Config.SlowSubs].
func (f *felixSystem) subscribeSlow(ctx context.Context) error {
	for i := range f.cfg.SlowSubs {
		s, err := f.subscribe(ctx, i%f.cfg.Topics)
		if err != nil {
			return err
		}
		if f.cfg.SlowMode == Trickle {
			f.readers.Go(func() { trickle(f.ctx, s) })
		}
	}
	return nil
}

// read reads a subscription until it has received every event of the run.
func (f *felixSystem) read(s *client.Subscription, r *Receiver) {
	for {
		b, err := s.NextBatch(f.ctx)
		if err != nil {
			if f.ctx.Err() == nil {
				r.Fail(err)
			}
			return
		}
		for _, item := range b.Payloads() {
			if !r.Event(item) {
				return
			}
		}
		if !r.Done() {
			return
		}
	}
}

// trickleEvery is how often a subscription that trickles reads a frame.
const trickleEvery = 200 * time.Millisecond

// trickle reads little until ctx ends. A subscription that the broker ends for its slowness has done its duty.
func trickle(ctx context.Context, sub *client.Subscription) {
	tick := time.NewTicker(trickleEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			if _, err := sub.NextBatch(ctx); err != nil {
				return
			}
		}
	}
}

func (f *felixSystem) PacketsLost() (lost int64) {
	for _, c := range f.clients {
		lost += int64(c.Stats().PacketsLost)
	}
	return lost
}

func (f *felixSystem) Close() (err error) {
	f.cancel()
	f.readers.Wait()
	for _, s := range f.subs {
		err = errors.Join(err, s.Close())
	}
	if f.owned {
		for _, c := range f.clients {
			err = errors.Join(err, c.Close())
		}
	}
	return err
}
