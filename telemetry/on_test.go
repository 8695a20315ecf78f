//go:build telemetry

package telemetry

import (
	"math"
	"slices"
	"sync"
	"testing"
)

// reset forgets what has been recorded.
func reset() { shards = make([]shard, len(shards)) }

func TestOnNames(t *testing.T) {
	seen := make(map[string]bool)
	for _, name := range slices.Concat(stageNames[:], counterNames[:]) {
		if name == "" || seen[name] {
			t.Errorf("name %q is empty or used twice", name)
		}
		seen[name] = true
	}
}

func TestOnTimings(t *testing.T) {
	reset()
	for n := range int64(1000) {
		observe(StageCacheLookup, (n+1)*1000)
	}
	got := snapshot().stages[StageCacheLookup]
	if got.count != 1000 || got.max != 1_000_000 {
		t.Errorf("got %+v, want 1000 durations up to 1 ms", got)
	}
	for _, p := range []struct {
		name      string
		got, want int64
	}{{"p50", got.p50, 500_000}, {"p99", got.p99, 990_000}, {"p999", got.p999, 999_000}} {
		if math.Abs(float64(p.got-p.want)) > 0.01*float64(p.want) {
			t.Errorf("%s is %d, want %d within 1 %%", p.name, p.got, p.want)
		}
	}
	if other := snapshot().stages[StageCacheStore]; other != (summary{}) {
		t.Errorf("another stage has %+v", other)
	}

	reset()
	if got := snapshot(); got != (report{}) {
		t.Errorf("after Reset: %+v", got)
	}
}

func TestOnBounds(t *testing.T) {
	reset()
	observe(StageClientWrite, -5)
	observe(StageClientWrite, math.MaxInt64)
	got := snapshot().stages[StageClientWrite]
	if got.count != 2 || got.p50 != 0 || got.max != maxDuration || got.p999 != maxDuration {
		t.Errorf("got %+v", got)
	}
	if end := Observe(StageClientEncode, Time{}); end != (Time{}) {
		t.Errorf("the zero Time became %v", end)
	}
	if got := snapshot().stages[StageClientEncode].count; got != 0 {
		t.Errorf("the zero Time was observed %d times", got)
	}
}

// TestOnSamples: about one duration in 16 is taken, and the next stage begins where one ends.
func TestOnSamples(t *testing.T) {
	reset()
	const all = 32_000
	for range all {
		first := Start()
		if second := Observe(StageClientDecode, first); second != (Time{}) && second.nanos < first.nanos {
			t.Fatalf("%v, then %v", first, second)
		} else if (first == Time{}) != (second == Time{}) {
			t.Fatalf("%v became %v", first, second)
		}
	}
	got := snapshot().stages[StageClientDecode].count
	if want := int64(all / sampleEvery); got < want/2 || got > want*2 {
		t.Errorf("%d durations of %d, want about %d", got, all, want)
	}
}

func TestOnText(t *testing.T) {
	reset()
	if got := Text(); got != "" {
		t.Errorf("with nothing recorded: %q", got)
	}
	observe(StageReplyWrite, 1500)
	Add(BrokerAcks, 7)
	const want = `
  stage, 1 in 16  count  p50 µs  p99 µs  p999 µs  max µs
     reply_write      1     1.5     1.5      1.5     1.5
      counter  total
  broker_acks      7
`
	if got := Text(); got != want[1:] {
		t.Errorf("got\n%swant%s", got, want)
	}
}

// TestOnShards records in every shard, whichever cores there are.
func TestOnShards(t *testing.T) {
	reset()
	for i := range shards {
		shards[i].counters[ClientAcks].Add(10)
		shards[i].stages[StageClientAckWait] = recorder{histogram: newHistogram(), max: int64(i + 1)}
		if err := shards[i].stages[StageClientAckWait].histogram.RecordValue(int64(i + 1)); err != nil {
			t.Fatal(err)
		}
	}
	got := snapshot()
	if n := got.counters[ClientAcks]; n != uint64(10*len(shards)) {
		t.Errorf("counter is %d", n)
	}
	if s := got.stages[StageClientAckWait]; s.count != int64(len(shards)) || s.max != int64(len(shards)) {
		t.Errorf("stage is %+v", s)
	}
	reset()
}

func TestOnConcurrent(t *testing.T) {
	reset()
	const workers, each = 8, 2000
	var wg sync.WaitGroup
	for range workers {
		wg.Go(func() {
			for range each {
				Observe(StageDeliverWrite, now())
				Add(BrokerEventBytes, 3)
			}
		})
	}
	snapshot() // alongside
	wg.Wait()
	got := snapshot()
	if n := got.stages[StageDeliverWrite].count; n != workers*each {
		t.Errorf("%d durations, want %d", n, workers*each)
	}
	if n := got.counters[BrokerEventBytes]; n != 3*workers*each {
		t.Errorf("%d bytes, want %d", n, 3*workers*each)
	}
}

func TestOnHistogramSize(t *testing.T) {
	if size := newHistogram().ByteSize(); size > 40<<10 {
		t.Errorf("a histogram has %d bytes", size)
	}
}
