package cachelife

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/felix-mq/felix/client"
	"github.com/felix-mq/felix/internal/stats"
	"github.com/felix-mq/felix/loadgen"
	"github.com/felix-mq/felix/loadgen/brokerproc"
)

// What is measured during the load.
const (
	probers      = 16
	shortestTTL  = 50 * time.Millisecond
	longestTTL   = 500 * time.Millisecond
	pollFrom     = 5 * time.Millisecond // before the end of a lifetime
	maxTTLError  = 50 * time.Millisecond
	loadLifetime = 200 * time.Millisecond
)

// expiries is what the probers have put, and when its end was heard of.
type expiries struct {
	mu     sync.Mutex
	due    map[string]time.Time
	events []time.Duration // from the end of the lifetime to the event
	reset  int
}

// ttl compares the end of lifetimes with the moments at which it is seen. A lifetime begins somewhere between the call
// of a put and its return. Lateness is counted from the former, which makes it too large by up to that; a value counts
// as served too late only if it was asked for a lifetime after the latter.
func (b *bench) ttl(ctx context.Context) (err error) {
	broker, err := brokerproc.Start()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, broker.Stop()) }()
	c, err := broker.Connect(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, c.Close()) }()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	cache := c.Cache(broker.Namespace, "primary")
	e := &expiries{due: make(map[string]time.Time)}
	watching := make(chan struct{})
	var watch, wg sync.WaitGroup
	watch.Go(func() { e.watch(ctx, cache, sync.OnceFunc(func() { close(watching) })) })
	<-watching

	load := loadgen.DefaultCacheConfig()
	load.Target = loadgen.TargetOf(broker, "primary")
	load.GetRatio, load.Keys, load.TTL, load.Duration = 0.5, 20_000, loadLifetime, b.duration
	over := make(chan struct{})
	var loaded *loadgen.CacheResult
	wg.Go(func() {
		defer close(over)
		var err error
		if loaded, err = loadgen.RunCache(ctx, load); err != nil {
			cancel(err)
		}
	})
	b.progress.Say("%v", b.duration)
	probes := make([]probe, probers)
	for i := range probes {
		wg.Go(func() {
			for n := 0; ; n++ {
				select {
				case <-over:
					return
				default:
				}
				if err := probes[i].expire(ctx, cache, e, fmt.Sprint(i, "-", n)); err != nil {
					cancel(err)
					return
				}
			}
		})
	}
	wg.Wait()
	if err := context.Cause(ctx); err != nil {
		return err
	}
	m, err := broker.Metrics()
	if err != nil {
		return err
	}
	cancel(nil)
	watch.Wait()
	b.ttlTable(e, probes, loaded, m["felix_cache_expired_total"])
	return nil
}

func (b *bench) ttlTable(e *expiries, probes []probe, load *loadgen.CacheResult, expired float64) {
	var all probe
	for _, p := range probes {
		all.gone = append(all.gone, p.gone...)
		all.late += p.late
	}
	fmt.Fprintf(b.out, "\nEnds of lifetimes of %v to %v, during %.0f operations/s with lifetimes of %v (%.0f entries expired); milliseconds\n\n",
		shortestTTL, longestTTL, load.All.Rate, loadLifetime, expired)
	fmt.Fprintf(b.out, "| %-44s | %8s | %8s | %8s | %8s | %8s |\n", "from the end of a lifetime until", "n", "min", "p50", "p99", "max")
	fmt.Fprintln(b.out, "| :------------------------------------------- | -------: | -------: | -------: | -------: | -------: |")
	b.row("the event of the expiry arrives", e.events)
	b.row("a reader that asks all the time has a miss", all.gone)
	fmt.Fprintf(b.out, "\n%d resets of the watch, %d expiries not heard of\n", e.reset, len(e.due))
	b.out.Say("values served to gets that began after their lifetime", float64(all.late), "0", all.late == 0)
	if len(e.events) > 0 {
		p99 := stats.Percentile(e.events, 99)
		b.out.Say("p99 from the end of a lifetime to its event, ms", milliseconds(p99), "<= 50", p99 <= maxTTLError)
	}
}

// watch notes when the ends of the probers' entries are heard of.
func (e *expiries) watch(ctx context.Context, cache *client.Cache, begun func()) {
	for ev, err := range cache.Watch(ctx) {
		now := time.Now()
		begun()
		e.mu.Lock()
		switch {
		case err != nil:
		case ev.Kind == client.CacheReset:
			e.reset++
		case ev.Kind == client.CacheExpired:
			if due, ok := e.due[string(ev.Key)]; ok {
				e.events = append(e.events, now.Sub(due))
				delete(e.due, string(ev.Key))
			}
		default:
		}
		e.mu.Unlock()
	}
}

// probe is what one prober has seen.
type probe struct {
	gone []time.Duration // from the end of a lifetime to the return of the first miss
	late int             // values served to gets that began after it
}

// expire puts an entry and looks at its end.
func (p *probe) expire(ctx context.Context, cache *client.Cache, e *expiries, key string) error {
	ttl := (shortestTTL + rand.N(longestTTL-shortestTTL)).Truncate(time.Millisecond)
	called := time.Now()
	e.mu.Lock()
	e.due[key] = called.Add(ttl)
	e.mu.Unlock()
	if err := cache.Put(ctx, key, []byte("value"), ttl); err != nil {
		return err
	}
	over := time.Now().Add(ttl)
	time.Sleep(time.Until(called.Add(ttl - pollFrom))) //nolint:forbidigo // the lifetime is what is measured
	for {
		asked := time.Now()
		_, err := cache.Get(ctx, key)
		if errors.Is(err, client.ErrMiss) {
			p.gone = append(p.gone, time.Since(called.Add(ttl)))
			return nil
		}
		if err != nil {
			return err
		}
		if asked.After(over) {
			p.late++
		}
	}
}
