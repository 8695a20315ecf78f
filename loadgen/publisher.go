package loadgen

import (
	"context"
	"fmt"
	"math"
	"sync/atomic"
	"time"
)

// sender is the part of a client.Publisher that a publisher needs.
type sender interface {
	// Send returns when the items are the caller's again.
	Send(ctx context.Context, items ...[]byte) error
	// Publish returns when the broker has acknowledged the batch.
	Publish(ctx context.Context, items ...[]byte) error
}

// publisher sends the events of one publisher to one topic. One goroutine runs it.
type publisher struct {
	sent     atomic.Uint64 // events handed to the client, the warm-up included
	warmEnd  atomic.Uint64 // the number at which the warm-up ends, once it is known
	warmLost atomic.Uint64 // events lost during the warm-up
	end      atomic.Uint64 // the number at which the run ends, once it is known

	r      *run
	index  int // among all publishers
	number int // among those of its topic
	out    sender
	items  [][]byte
	seq    uint64 // of the next event
	total  int64  // its part of Config.Total
	window *window
	alarm  func(context.Context) alarm // newAlarm, but for tests

	start       int64 // when the first measured batch was due or left, ns
	stop        int64 // when the last publish call returned
	punctuality punctuality
}

// newPublisher makes the publisher of that number to a topic.
func (r *run) newPublisher(topic, number int, out sender) *publisher {
	cfg := &r.cfg
	size := cfg.Window
	if size == Unbounded {
		size = DefaultWindow // for the warm-up
	}
	all := int64(cfg.Topics * cfg.Publishers)
	p := &publisher{
		r: r, index: topic*cfg.Publishers + number, number: number, out: out, alarm: newAlarm,
		items:       NewItems(cfg.Kind, cfg.Batch, cfg.Payload, cfg.Seed),
		window:      newWindow(size, cfg.Batch, cfg.Fanout),
		punctuality: punctuality{lag: newLatencies()},
	}
	p.total = cfg.Total / all
	if int64(p.index) < cfg.Total%all {
		p.total++
	}
	p.warmEnd.Store(math.MaxUint64)
	p.end.Store(math.MaxUint64)
	return p
}

// events returns how many measured events the publisher has sent.
func (p *publisher) events() uint64 { return p.seq - min(p.seq, p.warmEnd.Load()) }

// markEvery is how long a publisher waits before it sends a mark, which tells subscriptions that have lost the end of
// what was sent so far. Without marks a run would wait for that in vain.
const markEvery = 100 * time.Millisecond

// warmUp publishes until the time for it is over, and waits until every subscription has received all of it. Its first
// batch is acknowledged, so that a stream that does not exist, or may not be published to, shows at once.
func (p *publisher) warmUp(ctx context.Context) error {
	begin := p.r.now()
	n := len(p.items)
	for first, last := true, false; !last; first = false {
		if err := p.acquire(ctx); err != nil {
			return err
		}
		at := p.r.now()
		if last = at-begin >= int64(p.r.cfg.Warmup); last {
			p.warmEnd.Store(p.seq + uint64(n))
		}
		send := p.out.Send
		if first {
			send = p.out.Publish
		}
		if err := p.send(ctx, send, at, n); err != nil {
			return err
		}
	}
	if err := p.await(ctx, p.r.warm.open); err != nil {
		return err
	}
	if lost := p.warmLost.Load(); lost > 0 && !p.r.cfg.AllowDrops {
		return fmt.Errorf("loadgen: %d events were lost during the warm-up", lost)
	}
	return nil
}

// measure publishes the measured events and waits until every subscription has received them.
func (p *publisher) measure(ctx context.Context) error {
	publish := p.closedLoop
	if p.r.cfg.Rate > 0 {
		publish = p.openLoop
	}
	if err := publish(ctx); err != nil {
		return err
	}
	p.stop = p.r.now()
	return p.await(ctx, p.r.finished.open)
}

// closedLoop publishes as fast as the window lets it, or the transport if there is no window.
func (p *publisher) closedLoop(ctx context.Context) error {
	cfg := &p.r.cfg
	if cfg.Window == Unbounded {
		p.window = nil
	}
	var sent int64
	for last := false; !last; {
		if err := p.acquire(ctx); err != nil {
			return err
		}
		at := p.r.now()
		if sent == 0 {
			p.start = at
		}
		n := int64(len(p.items))
		if p.total > 0 {
			n = min(n, p.total-sent)
		}
		sent += n
		if last = p.enough(time.Duration(at-p.start), sent); last {
			p.end.Store(p.seq + uint64(n))
		}
		if err := p.send(ctx, p.out.Send, at, int(n)); err != nil {
			return err
		}
	}
	return nil
}

// enough reports whether a batch that leaves after the time elapsed, and with which the run has sent so many events,
// is the last one.
func (p *publisher) enough(elapsed time.Duration, sent int64) bool {
	cfg := &p.r.cfg
	if p.total > 0 {
		return sent >= p.total
	}
	return elapsed >= cfg.MaxDuration || (elapsed >= cfg.Duration && cfg.checkVolume(sent) == nil)
}

// openLoop publishes each batch when it is due, or as soon as it can after that.
func (p *publisher) openLoop(ctx context.Context) error {
	cfg := &p.r.cfg
	p.window = nil
	a := p.alarm(ctx)
	defer a.close()
	// The publishers take turns.
	all := pacer{start: p.r.now(), batch: len(p.items), rate: cfg.Rate}
	pace := pacer{start: all.due(int64(p.index)), batch: len(p.items), rate: cfg.Rate / float64(cfg.Topics*cfg.Publishers)}
	p.start = pace.start
	total, batches := p.total, (p.total+int64(len(p.items))-1)/int64(len(p.items))
	if total == 0 {
		batches = pace.batches(cfg.Duration)
		total = batches * int64(len(p.items))
	}
	p.end.Store(p.seq + uint64(total))
	for i := range batches {
		due := pace.due(i)
		at := p.r.now()
		for ; at < due; at = p.r.now() {
			if err := a.wait(time.Duration(due - at)); err != nil {
				return err
			}
		}
		p.punctuality.sent(due, at)
		n := min(int64(len(p.items)), total)
		total -= n
		if err := p.send(ctx, p.out.Send, due, int(n)); err != nil {
			return err
		}
	}
	return nil
}

// send stamps the first n items and sends them.
func (p *publisher) send(ctx context.Context, send func(context.Context, ...[]byte) error, at int64, n int) error {
	from := uint64(p.number) << publisherShift
	for i, item := range p.items[:n] {
		putStamp(item, from|(p.seq+uint64(i)), at)
	}
	p.seq += uint64(n)
	// Before the call, so that one that blocks for ever counts as outstanding.
	p.sent.Store(p.seq)
	if err := send(ctx, p.items[:n]...); err != nil {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		return fmt.Errorf("loadgen: publishing: %w", err)
	}
	return nil
}

// acquire waits for a place in the window.
func (p *publisher) acquire(ctx context.Context) error {
	if p.window == nil {
		return nil
	}
	if err := p.await(ctx, p.window.free); err != nil {
		return err
	}
	p.window.open(p.seq)
	return nil
}

// await receives from c, and sends marks while it waits.
func (p *publisher) await(ctx context.Context, c <-chan struct{}) error {
	select {
	case <-c:
		return nil
	default: // from here on it waits, however late a mark finds it
	}
	marks := time.NewTicker(markEvery)
	defer marks.Stop()
	for {
		select {
		case <-c:
			return nil
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-marks.C:
			putStamp(p.items[0], markBit|uint64(p.number)<<publisherShift|p.seq, 0)
			if err := p.out.Send(ctx, p.items[:1]...); err != nil {
				if ctx.Err() != nil {
					return context.Cause(ctx)
				}
				return fmt.Errorf("loadgen: publishing: %w", err)
			}
		}
	}
}
