package cachelife

import (
	"context"
	"errors"
	"fmt"
	"math/bits"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"github.com/felix-mq/felix/client"
	"github.com/felix-mq/felix/loadgen/brokerproc"
)

const (
	churners      = 16
	largestValue  = 16 << 10
	entryOverhead = 320     // that the broker charges, in addition to key and buffer
	otherBudgets  = 8 << 20 // of what the broker holds in addition to the cache
	mib           = 1 << 20
)

// churn puts many times the budget of a cache into it: values of many sizes under keys that are new, some for a while,
// some that are put again with another size, and reads of what is there.
//
// The budget of a broker's memory is 5/4 of the sum of all its budgets (docs/operate/operations.md#memory), so all but
// that of the cache are small: what is judged is the memory of a cache of a gibibyte.
func (b *bench) churn(ctx context.Context) (err error) {
	duration := b.duration
	budget := b.budget * mib
	settings := []string{
		fmt.Sprintf("FELIX_CACHE_MAX_BYTES=%d", budget), fmt.Sprintf("FELIX_RETAINED_BYTES=%d", otherBudgets), fmt.Sprintf("FELIX_READ_BYTES=%d", otherBudgets),
	}
	broker, err := brokerproc.Start(settings...)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, broker.Stop()) }()
	c, err := broker.Connect(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, c.Close()) }()
	cache := c.Cache(broker.Namespace, "primary")
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var put, puts atomic.Int64
	began, total := time.Now(), b.times*budget
	var wg sync.WaitGroup
	for i := range churners {
		wg.Go(func() {
			if err := churner(ctx, cache, i, &put, &puts, began, duration, total); err != nil {
				cancel(err)
			}
		})
	}
	done := make(chan struct{})
	go func() { wg.Wait(); close(done) }()
	peak, err := b.watchMemory(broker, done, began, duration, &put)
	wg.Wait()
	if err := errors.Join(err, context.Cause(ctx)); err != nil {
		return err
	}
	took := time.Since(began)
	last := broker.Resident()
	m, err := broker.Metrics()
	if err != nil {
		return err
	}
	held, err := broker.Memory()
	if err != nil {
		return err
	}
	fmt.Fprintf(b.out, "\nChurn of a cache of %d MiB, with %v: in %v %d puts, of %.1f times the budget\n\n", b.budget, settings, took.Round(time.Second), puts.Load(), float64(put.Load())/float64(budget))
	fmt.Fprintf(b.out, "| %-44s | %8s |\n| :------------------------------------------- | -------: |\n", "of the broker's process, at the end", "MiB")
	for _, r := range []struct {
		what  string
		bytes float64
	}{
		{"charged to the cache", m["felix_cache_bytes"]},
		{"heap, after a collection", float64(held.Heap)},
		{"resident", float64(last)},
		{"resident at most, sampled each 100 ms", float64(peak)},
	} {
		fmt.Fprintf(b.out, "| %-44s | %8.0f |\n", r.what, r.bytes/mib)
	}
	fmt.Fprintf(b.out, "\n%.0f entries; %.0f evicted, %.0f expired\n", m["felix_cache_entries"], m["felix_cache_evictions_total"], m["felix_cache_expired_total"])
	b.out.Say("times the budget that were put", float64(put.Load())/float64(budget), fmt.Sprint(">= ", b.times), put.Load() >= total)
	b.out.Say("resident at most, of the budget", float64(peak)/float64(budget), "<= 1.5", peak <= budget*3/2)
	return nil
}

// watchMemory samples what the broker's process has resident until done, and tells of it each minute.
func (b *bench) watchMemory(broker *brokerproc.Process, done <-chan struct{}, began time.Time, duration time.Duration, put *atomic.Int64) (peak int64, err error) {
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	b.progress.Say("%v", duration)
	for told := began; ; {
		select {
		case <-done:
			return max(peak, broker.Resident()), nil
		case <-tick.C:
		}
		now := broker.Resident()
		if now == 0 {
			return 0, errors.New("cachelife: this system does not tell the memory of a process")
		}
		peak = max(peak, now)
		if time.Since(told) >= time.Minute {
			told = time.Now()
			b.progress.Say("%4.0fs: %6d MiB put, %5d MiB resident, %5d at most", time.Since(began).Seconds(), put.Load()/mib, now/mib, peak/mib)
		}
	}
}

// churner puts as much as is due at each moment, until the duration is over and all is put.
func churner(ctx context.Context, cache *client.Cache, id int, put, puts *atomic.Int64, began time.Time, duration time.Duration, total int64) error {
	rnd := rand.New(rand.NewPCG(1, uint64(id)))
	value := make([]byte, largestValue)
	for n := 0; ; n++ {
		due := float64(total) * min(1, float64(time.Since(began))/float64(duration))
		if float64(put.Load()) >= due {
			if due >= float64(total) {
				return nil
			}
			time.Sleep(time.Millisecond) //nolint:forbidigo // until more is due
			continue
		}
		key := fmt.Sprint(id, "-", n)
		if n > 0 && rnd.IntN(4) == 0 {
			key = fmt.Sprint(id, "-", rnd.IntN(n))
		}
		ttl := client.NoExpiry
		if rnd.IntN(4) == 0 {
			ttl = time.Second + rand.N(time.Minute)
		}
		size := rnd.IntN(largestValue >> rnd.IntN(8))
		if err := cache.Put(ctx, key, value[:size], ttl); err != nil {
			return err
		}
		put.Add(int64(len(key) + max(64, 1<<bits.Len(uint(max(size-1, 0)))) + entryOverhead))
		puts.Add(1)
		if _, err := cache.Get(ctx, fmt.Sprint(id, "-", rnd.IntN(n+1))); err != nil && !errors.Is(err, client.ErrMiss) {
			return err
		}
	}
}
