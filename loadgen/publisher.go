package loadgen

import (
	"context"
	"fmt"
	"math"
	"sync/atomic"
	"time"
)

// publisher sends the events of one publisher to one topic. One goroutine runs it.
type publisher struct {
	sent     atomic.Uint64 // events handed to the client, the warm-up included
	warmEnd  atomic.Uint64 // the number at which the warm-up ends, once it is known
	warmLost atomic.Uint64 // events lost during the warm-up
	end      atomic.Uint64 // the number at which the run ends, once it is known

	r      *run
	index  int // among all publishers
	number int // among those of its topic
	out    Publisher
	items  [][]byte // of all batches that are sent at once
	batch  int      // events
	seq    uint64   // of the next event
	total  int64    // its part of Config.Total
	window *window
	alarm  func(context.Context) alarm // newAlarm, but for tests

	start       int64 // when the first measured batch was due or left, ns
	stop        int64 // when the last publish call returned
	longest     int64 // ns, of the calls that waited for an acknowledgement
	punctuality punctuality
}

// newPublisher makes the publisher of that number to a topic.
func (r *run) newPublisher(topic, number int, out Publisher) *publisher {
	cfg := &r.cfg
	size := cfg.Window
	all := int64(cfg.Topics * cfg.Publishers)
	if size == Unbounded { // for the warm-up
		size = max(1, DefaultWindow/int(all))
	}
	join := 1
	if j, ok := out.(Joiner); ok {
		join = j.Join()
	}
	p := &publisher{
		r: r, index: topic*cfg.Publishers + number, number: number, out: out, alarm: newAlarm,
		items: NewItems(cfg.Kind, join*cfg.Batch, cfg.Payload, cfg.Seed), batch: cfg.Batch,
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
	for first, last := true, false; !last; first = false {
		n, err := p.acquire(ctx)
		if err != nil {
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
	p.longest = 0 // of the warm-up
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
	for send, last := p.measured(), false; !last; {
		events, err := p.acquire(ctx)
		if err != nil {
			return err
		}
		at := p.r.now()
		if sent == 0 {
			p.start = at
		}
		n := int64(events)
		if p.total > 0 {
			n = min(n, p.total-sent)
		}
		sent += n
		if last = p.enough(time.Duration(at-p.start), sent); last {
			p.end.Store(p.seq + uint64(n))
		}
		if err := p.send(ctx, send, at, int(n)); err != nil {
			return err
		}
	}
	return nil
}

// measured is how measured events are sent.
func (p *publisher) measured() func(context.Context, ...[]byte) error {
	if p.r.cfg.Acked {
		return p.out.Publish
	}
	return p.out.Send
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
	all := pacer{start: p.r.now(), batch: p.batch, rate: cfg.Rate}
	pace := pacer{start: all.due(int64(p.index)), batch: p.batch, rate: cfg.Rate / float64(cfg.Topics*cfg.Publishers)}
	p.start = pace.start
	total, batches := p.total, (p.total+int64(p.batch)-1)/int64(p.batch)
	if total == 0 {
		batches = pace.batches(cfg.Duration)
		total = batches * int64(p.batch)
	}
	p.end.Store(p.seq + uint64(total))
	send := p.measured()
	for i := range batches {
		due := pace.due(i)
		at := p.r.now()
		for ; at < due; at = p.r.now() {
			if err := a.wait(time.Duration(due - at)); err != nil {
				return err
			}
		}
		p.punctuality.sent(due, at)
		n := min(int64(p.batch), total)
		total -= n
		if err := p.send(ctx, send, due, int(n)); err != nil {
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
	if p.r.cfg.Acked {
		p.longest = max(p.longest, p.r.now()-at)
	}
	return nil
}

// acquire waits for a place in the window, takes the others that are free if batches are sent together, and returns how
// many events may leave.
func (p *publisher) acquire(ctx context.Context) (events int, _ error) {
	if p.window == nil {
		return p.batch, nil
	}
	if err := p.await(ctx, p.window.free); err != nil {
		return 0, err
	}
	p.window.open(p.seq)
	for events = p.batch; events < len(p.items); events += p.batch {
		select {
		case <-p.window.free:
			p.window.open(p.seq + uint64(events))
		default:
			return events, nil
		}
	}
	return events, nil
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
