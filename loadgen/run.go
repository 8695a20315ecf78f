package loadgen

import (
	"context"
	"errors"
	"strconv"
	"sync"
	"sync/atomic"
	"time"
)

// run is what publishers and subscribers of one run share.
type run struct {
	cfg        Config
	base       time.Time
	publishers []*publisher // those of the first topic, in order, then those of the next
	subs       []*subscriber
	timeline   *timeline

	began    atomic.Int64 // when the measurement began, ns; 0 before
	warm     *gate        // opens when all subscribers have finished the warm-up
	finished *gate        // opens when all subscribers have received everything
}

// newRun makes a run without publishers and subscribers. b is nil if there is no broker to be asked for its state.
func newRun(cfg Config, b *startedBroker) *run {
	ledgers := cfg.Topics * cfg.Publishers * cfg.Fanout
	base := time.Now()
	return &run{
		cfg: cfg, base: base, warm: newGate(ledgers), finished: newGate(ledgers),
		timeline: newTimeline(cfg.Observer, b, base, "deliver"),
	}
}

// addTopic adds a topic's publishers, of which out says how they send, and its subscribers.
func (r *run) addTopic(topic int, out func(number int) Publisher) {
	first := len(r.publishers)
	for number := range r.cfg.Publishers {
		r.publishers = append(r.publishers, r.newPublisher(topic, number, out(number)))
	}
	for range r.cfg.Fanout {
		r.subs = append(r.subs, r.newSubscriber(len(r.subs), r.publishers[first:]))
	}
}

// now is the clock of a run: monotonic nanoseconds since its beginning.
func (r *run) now() int64 { return int64(time.Since(r.base)) }

// Run carries out the run that cfg describes. It returns when the run has ended or failed, or ctx has ended, and
// everything it started, a broker included, has gone.
//
// There can be a result and an error: an [UnaccountedError] when events were lost, and an [IdleError] when they did
// not come. The result then says how far the run got; its figures are not those of a valid run. With all other errors,
// of which [TooSmallError], [OrderError] and [PayloadError] are types of their own, there is no result.
func Run(ctx context.Context, cfg Config) (*Result, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	cfg = cfg.withDefaults()
	b, err := startBroker(ctx, cfg)
	if err != nil {
		return nil, err
	}
	res, err := load(ctx, cfg, b, openFelix(b.target))
	// The broker's account is complete when its connections have ended.
	counters, stopErr := b.stop()
	if res != nil {
		res.Broker = b.info
		res.Broker.BrokerCounters = counters
	}
	if err == nil && stopErr != nil {
		return nil, stopErr
	}
	return res, err
}

// load runs against a system. b is nil if it has no broker to be asked for its state.
func load(ctx context.Context, cfg Config, b *startedBroker, open Open) (*Result, error) {
	work, fail := context.WithCancelCause(ctx)
	defer fail(nil)
	sys, err := open(work, &cfg, fail)
	if err != nil {
		return nil, err
	}
	r := newRun(cfg, b)
	before, after, err := r.carryOut(work, fail, sys)
	fail(err)
	if closeErr := sys.Close(); closeErr != nil { // from here on the accounts do not change
		err = errors.Join(err, closeErr)
	}
	var idle *IdleError
	if err != nil && (r.began.Load() == 0 || !errors.As(err, &idle)) {
		return nil, err
	}
	if err == nil {
		for _, p := range r.publishers {
			if err := cfg.checkVolume(int64(p.events())); err != nil {
				return nil, err
			}
		}
	}
	res := r.result(before, after)
	if err == nil && res.Unaccounted > 0 {
		err = &UnaccountedError{Published: res.Published, Expected: res.Expected, Delivered: res.Delivered}
	}
	return res, err
}

// carryOut adds publishers and subscriptions, and publishes until every subscription has everything. If ctx ends it
// returns the cause of that. The meters are of the beginning and the end of the measurement.
func (r *run) carryOut(ctx context.Context, fail context.CancelCauseFunc, sys System) (before, after meter, err error) {
	defer func() {
		if err != nil && ctx.Err() != nil {
			err = context.Cause(ctx)
		}
	}()
	for topic := range r.cfg.Topics {
		out := make([]Publisher, r.cfg.Publishers)
		for number := range out {
			if out[number], err = sys.Publisher(ctx, topic, number); err != nil {
				return before, after, err
			}
		}
		r.addTopic(topic, func(number int) Publisher { return out[number] })
	}
	for i, s := range r.subs {
		if err := sys.Subscribe(ctx, i/r.cfg.Fanout, &Receiver{s: s, fail: fail}); err != nil {
			return before, after, err
		}
	}
	watchCtx, stopWatch := context.WithCancel(ctx)
	var watch sync.WaitGroup
	watch.Go(func() { r.watch(watchCtx, fail) })
	defer func() {
		stopWatch()
		watch.Wait()
	}()
	if err := r.each(ctx, fail, (*publisher).warmUp); err != nil {
		return before, after, err
	}
	before = readMeter(sys)
	r.begin()
	err = r.each(ctx, fail, (*publisher).measure)
	return before, readMeter(sys), err
}

// begin says that the measurement begins.
func (r *run) begin() {
	now := max(r.now(), 1)
	r.timeline.begin(now)
	r.began.Store(now) // from here on the timeline belongs to watch
}

// each has all publishers do something at once. The first error ends it for all, and the run.
func (r *run) each(ctx context.Context, fail context.CancelCauseFunc, do func(*publisher, context.Context) error) error {
	var wg sync.WaitGroup
	for _, p := range r.publishers {
		wg.Go(func() {
			if err := do(p, ctx); err != nil {
				fail(err)
			}
		})
	}
	wg.Wait()
	return context.Cause(ctx)
}

// topicName is the name of a topic among so many.
func topicName(stream string, i, topics int) string {
	if topics == 1 {
		return stream
	}
	return stream + "-" + strconv.Itoa(i)
}

// watchEvery is how often a run looks for subscriptions that stand still, and reports its progress.
const watchEvery = 200 * time.Millisecond

// watch fails the run when a subscription receives nothing for too long although events are outstanding. It also ends
// the intervals of the timeline.
func (r *run) watch(ctx context.Context, fail context.CancelCauseFunc) {
	tick := time.NewTicker(min(watchEvery, max(min(r.cfg.IdleTimeout, r.cfg.Interval)/4, time.Millisecond)))
	defer tick.Stop()
	type look struct {
		seen  uint64 // received at the last look
		since int64  // when that last changed, or nothing was outstanding
	}
	looks := make([][]look, len(r.subs))
	for i, s := range r.subs {
		looks[i] = make([]look, len(s.ledgers))
	}
	var delivered uint64                 // at the last report
	last, lastReport := r.now(), r.now() // looks
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		now := r.now()
		// A process that was stopped, or had no processor, has not been waiting.
		paused := now-last > int64(r.cfg.IdleTimeout)/2
		last = now
		var total, skipped uint64
		for i, s := range r.subs {
			for j := range s.ledgers {
				l, at := &s.ledgers[j], &looks[i][j]
				sent, warmEnd, got := l.p.sent.Load(), l.p.warmEnd.Load(), l.received.Load()
				total += max(got, warmEnd) - warmEnd
				skipped += l.skipped.Load()
				if got != at.seen || got >= sent || paused {
					*at = look{got, now}
					continue
				}
				if idle := time.Duration(now - at.since); idle >= r.cfg.IdleTimeout {
					fail(&IdleError{Subscription: i, Publisher: j, Idle: idle.Round(time.Millisecond), Received: got, Sent: sent})
					return
				}
			}
		}
		measuring := r.began.Load()
		if measuring != 0 && r.timeline.due(now) {
			r.timeline.end(now)
		}
		if r.cfg.Progress == nil || now-lastReport < int64(watchEvery)*9/10 {
			continue
		}
		p := Progress{
			WarmingUp: measuring == 0, Elapsed: time.Duration(now - measuring), Delivered: total, Dropped: skipped,
			Rate: float64(total-delivered) / time.Duration(now-lastReport).Seconds(), P99: r.timeline.p99(),
		}
		for _, publisher := range r.publishers {
			sent, warmEnd := publisher.sent.Load(), publisher.warmEnd.Load()
			p.Published += max(sent, warmEnd) - warmEnd
		}
		p.Remaining = r.remaining(p)
		r.cfg.Progress(p)
		delivered, lastReport = total, now
	}
}

// remaining estimates how long the measurement will still take.
func (r *run) remaining(p Progress) time.Duration {
	switch {
	case p.WarmingUp:
		return 0
	case r.cfg.Total == 0:
		return max(r.cfg.Duration-p.Elapsed, 0)
	case p.Published == 0:
		return 0
	}
	return time.Duration(float64(p.Elapsed) * (float64(r.cfg.Total)/float64(p.Published) - 1))
}

// result sums up what the workers counted. It is called when they have ended.
func (r *run) result(before, after meter) *Result {
	cfg := r.cfg
	res := &Result{Config: describe(cfg)}
	start, stop := r.publishers[0].start, int64(0)
	lag := newLatencies()
	for _, p := range r.publishers {
		res.Published += p.events()
		start, stop = min(start, p.start), max(stop, p.stop)
		lag.merge(&p.punctuality.lag)
		res.LateBatches += p.punctuality.late
		res.LongestPublish = max(res.LongestPublish, float64(p.longest)/1e3)
	}
	res.Expected = res.Published * uint64(cfg.Fanout)
	last, lost := start, uint64(0)
	for _, s := range r.subs {
		for i := range s.ledgers {
			l := &s.ledgers[i]
			res.Delivered += l.delivered
			lost += l.lost
			last = max(last, l.last)
		}
	}
	if cfg.AllowDrops {
		res.Dropped = lost
	}
	res.Unaccounted = res.Expected - res.Delivered - res.Dropped
	r.timeline.end(max(last, r.timeline.last))
	res.Measurement = r.timeline.measurement()
	res.Latency = r.timeline.series[0].total.summary()
	if cfg.Rate > 0 {
		res.SendLag = new(lag.summary())
	}
	res.Seconds = time.Duration(last - start).Seconds()
	if res.Seconds > 0 {
		res.DeliveredPerSecond = float64(res.Delivered) / res.Seconds
		res.DeliveredBytesPerSecond = res.DeliveredPerSecond * float64(cfg.Payload)
	}
	if s := time.Duration(stop - start).Seconds(); s > 0 {
		res.PublishedPerSecond = float64(res.Published) / s
	}
	res.PacketsLost = after.packetsLost - before.packetsLost
	res.UDPReceiveErrors = after.udpErrors - before.udpErrors
	return res
}
