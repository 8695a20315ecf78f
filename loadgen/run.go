package loadgen

import (
	"context"
	"errors"
	"fmt"
	"math"
	"sync"
	"sync/atomic"
	"time"

	"github.com/felix-mq/felix/client"
)

// run is what publisher and subscribers of one run share.
type run struct {
	cfg  Config
	base time.Time
	subs []*subscriber

	sent     atomic.Uint64 // events handed to the client, the warm-up included
	warmEnd  atomic.Uint64 // the number at which the warm-up ends, once it is known
	warmLost atomic.Uint64 // events lost during the warm-up
	end      atomic.Uint64 // the number at which the run ends, once it is known
	warm     *gate         // opens when all subscribers have finished the warm-up
	finished *gate         // opens when all subscribers have received everything
}

func newRun(cfg Config) *run {
	r := &run{cfg: cfg, base: time.Now(), warm: newGate(cfg.Fanout), finished: newGate(cfg.Fanout)}
	r.warmEnd.Store(math.MaxUint64)
	r.end.Store(math.MaxUint64)
	return r
}

// now is the clock of a run: monotonic nanoseconds since its beginning.
func (r *run) now() int64 { return int64(time.Since(r.base)) }

// Run carries out the run that cfg describes. It returns when the run has ended or failed, or ctx has ended, and
// everything it started, a broker included, has gone.
//
// Beside a result there can be an error: an [UnaccountedError] when events were lost, and an [IdleError] when they did
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
	res, err := load(ctx, cfg, b)
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

// load runs against a broker that is there.
func load(ctx context.Context, cfg Config, b *startedBroker) (_ *Result, err error) {
	all := cfg.Fanout + cfg.SlowSubs
	opts := []client.Option{
		client.WithTLS(b.target.TLS), client.WithToken(b.target.Tenant, b.target.Token),
		client.WithEventConns(cfg.Conns), client.WithSubscriptionsPerConn((all + cfg.Conns - 1) / cfg.Conns),
	}
	if cfg.Compress {
		opts = append(opts, client.WithCompression())
	}
	c, err := client.Connect(ctx, b.target.Addr, opts...)
	if err != nil {
		return nil, fmt.Errorf("loadgen: %w", err)
	}
	defer func() { err = errors.Join(err, c.Close()) }()
	subscriptions, err := subscribe(ctx, c, b.target, all)
	defer func() {
		for _, s := range subscriptions {
			err = errors.Join(err, s.Close())
		}
	}()
	if err != nil {
		return nil, err
	}

	r := newRun(cfg)
	size := cfg.Window
	if size == Unbounded {
		size = DefaultWindow // for the warm-up
	}
	w := newWindow(size, cfg.Batch, cfg.Fanout)
	p := &publisher{
		r: r, out: c.Publisher(b.target.Namespace, b.target.Stream), window: w, alarm: newAlarm,
		items:       NewItems(cfg.Kind, cfg.Batch, cfg.Payload, cfg.Seed),
		punctuality: punctuality{lag: newLatencies()},
	}
	for i := range cfg.Fanout {
		r.subs = append(r.subs, &subscriber{r: r, index: i, window: w, lat: newLatencies()})
	}

	work, fail := context.WithCancelCause(ctx)
	defer fail(nil)
	var wg sync.WaitGroup
	for i, s := range r.subs {
		// Owned by the run; it ends with the last event, an error of its own, or anybody else's.
		wg.Go(func() {
			if err := s.work(work, subscriptions[i]); err != nil {
				fail(err)
			}
		})
	}
	watchCtx, stopWatch := context.WithCancel(work)
	var watch sync.WaitGroup
	watch.Go(func() { r.watch(watchCtx, fail) })

	var before, after meter
	err = p.warmUp(work)
	if err == nil {
		before = readMeter(c)
		err = p.measure(work)
		after = readMeter(c)
	}
	stopWatch()
	watch.Wait()
	if err != nil {
		fail(err)
	}
	wg.Wait()
	var idle *IdleError
	if err != nil && !errors.As(err, &idle) {
		return nil, err
	}
	if p.start == 0 && err != nil {
		return nil, err // failed in the warm-up
	}
	if err == nil {
		if err := cfg.checkVolume(int64(r.end.Load() - r.warmEnd.Load())); err != nil {
			return nil, err
		}
	}
	res := r.result(p, before, after)
	if err == nil && res.Unaccounted > 0 {
		err = &UnaccountedError{Published: res.Published, Expected: res.Expected, Delivered: res.Delivered}
	}
	return res, err
}

// subscribe makes n subscriptions. With an error it returns those that were made.
func subscribe(ctx context.Context, c *client.Client, t *Target, n int) ([]*client.Subscription, error) {
	subs := make([]*client.Subscription, 0, n)
	for range n {
		s, err := c.Subscribe(ctx, t.Namespace, t.Stream, client.WithoutResume())
		if err != nil {
			return subs, fmt.Errorf("loadgen: %w", err)
		}
		subs = append(subs, s)
	}
	return subs, nil
}

// watchEvery is how often a run looks for subscriptions that stand still, and reports its progress.
const watchEvery = 200 * time.Millisecond

// watch fails the run when a subscription receives nothing for too long although events are outstanding.
func (r *run) watch(ctx context.Context, fail context.CancelCauseFunc) {
	tick := time.NewTicker(min(watchEvery, max(r.cfg.IdleTimeout/4, time.Millisecond)))
	defer tick.Stop()
	seen := make([]uint64, len(r.subs))  // received at the last look
	since := make([]int64, len(r.subs))  // when that last changed, or nothing was outstanding
	var measuring int64                  // the last look before the measurement
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
		sent, warmEnd, total := r.sent.Load(), r.warmEnd.Load(), uint64(0)
		for i, s := range r.subs {
			got := s.received.Load()
			total += max(got, warmEnd) - warmEnd
			if got != seen[i] || got >= sent || paused {
				seen[i], since[i] = got, now
				continue
			}
			if idle := time.Duration(now - since[i]); idle >= r.cfg.IdleTimeout {
				fail(&IdleError{Subscription: i, Idle: idle.Round(time.Millisecond), Received: got, Sent: sent})
				return
			}
		}
		if r.cfg.Progress == nil || now-lastReport < int64(watchEvery)*9/10 {
			continue
		}
		if measuring == 0 && sent > warmEnd {
			measuring = lastReport
		}
		r.cfg.Progress(Progress{
			WarmingUp: measuring == 0,
			Elapsed:   time.Duration(now - measuring),
			Published: max(sent, warmEnd) - warmEnd,
			Delivered: total,
			Rate:      float64(total-delivered) / time.Duration(now-lastReport).Seconds(),
		})
		delivered, lastReport = total, now
	}
}

// result sums up what the workers counted. It is called when they have ended.
func (r *run) result(p *publisher, before, after meter) *Result {
	cfg := r.cfg
	res := &Result{Config: describe(cfg), Environment: environment(), Published: p.seq - r.warmEnd.Load()}
	res.Expected = res.Published * uint64(cfg.Fanout)
	sum, last, lost := newLatencies(), p.start, uint64(0)
	for _, s := range r.subs {
		res.Delivered += s.delivered
		lost += s.lost
		last = max(last, s.last)
		sum.merge(&s.lat)
	}
	if cfg.AllowDrops {
		res.Dropped = lost
	}
	res.Unaccounted = res.Expected - res.Delivered - res.Dropped
	res.Latency = sum.summary()
	if cfg.Rate > 0 {
		res.SendLag = new(p.punctuality.lag.summary())
		res.LateBatches = p.punctuality.late
	}
	res.Seconds = time.Duration(last - p.start).Seconds()
	if res.Seconds > 0 {
		res.DeliveredPerSecond = float64(res.Delivered) / res.Seconds
		res.DeliveredBytesPerSecond = res.DeliveredPerSecond * float64(cfg.Payload)
	}
	if s := time.Duration(p.stop - p.start).Seconds(); s > 0 {
		res.PublishedPerSecond = float64(res.Published) / s
	}
	res.PacketsLost = after.packetsLost - before.packetsLost
	res.UDPReceiveErrors = after.udpErrors - before.udpErrors
	return res
}
