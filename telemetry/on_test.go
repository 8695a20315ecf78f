//go:build telemetry

package telemetry

import (
	"math"
	"sync"
	"testing"
)

func TestOnTimings(t *testing.T) {
	Reset()
	for n := range int64(1000) {
		observe(StageCacheLookup, (n+1)*1000)
	}
	got := Snapshot().Stages[StageCacheLookup]
	if got.Count != 1000 || got.Max != 1_000_000 {
		t.Errorf("got %+v, want 1000 durations up to 1 ms", got)
	}
	for _, p := range []struct {
		name      string
		got, want int64
	}{{"p50", got.P50, 500_000}, {"p99", got.P99, 990_000}, {"p999", got.P999, 999_000}} {
		if math.Abs(float64(p.got-p.want)) > 0.01*float64(p.want) {
			t.Errorf("%s is %d, want %d within 1 %%", p.name, p.got, p.want)
		}
	}
	if other := Snapshot().Stages[StageCacheStore]; other != (Timing{}) {
		t.Errorf("another stage has %+v", other)
	}

	Reset()
	if got := Snapshot(); got != (Report{}) {
		t.Errorf("after Reset: %+v", got)
	}
}

func TestOnBounds(t *testing.T) {
	Reset()
	observe(StageClientWrite, -5)
	observe(StageClientWrite, math.MaxInt64)
	got := Snapshot().Stages[StageClientWrite]
	if got.Count != 2 || got.P50 != 0 || got.Max != maxDuration || got.P999 != maxDuration {
		t.Errorf("got %+v", got)
	}
	Observe(StageClientEncode, 0)
	if got := Snapshot().Stages[StageClientEncode].Count; got != 0 {
		t.Errorf("the zero Time was observed %d times", got)
	}
}

func TestOnTime(t *testing.T) {
	Reset()
	first := Now()
	if second := Now(); first <= 0 || second < first {
		t.Errorf("%d, then %d", first, second)
	}
	Observe(StageClientDeliver, first)
	if got := Snapshot().Stages[StageClientDeliver].Count; got != 1 {
		t.Errorf("got %d durations, want 1", got)
	}
}

// TestOnShards records in every shard, whichever cores there are.
func TestOnShards(t *testing.T) {
	Reset()
	for i := range shards {
		shards[i].counters[ClientAcks].Add(10)
		shards[i].stages[StageClientAckWait] = recorder{histogram: newHistogram(), max: int64(i + 1)}
		if err := shards[i].stages[StageClientAckWait].histogram.RecordValue(int64(i + 1)); err != nil {
			t.Fatal(err)
		}
	}
	got := Snapshot()
	if n := got.Counters[ClientAcks]; n != uint64(10*len(shards)) {
		t.Errorf("counter is %d", n)
	}
	if s := got.Stages[StageClientAckWait]; s.Count != uint64(len(shards)) || s.Max != int64(len(shards)) {
		t.Errorf("stage is %+v", s)
	}
	Reset()
}

func TestOnConcurrent(t *testing.T) {
	Reset()
	const workers, each = 8, 2000
	var wg sync.WaitGroup
	for range workers {
		wg.Go(func() {
			for range each {
				Observe(StageDeliverWrite, Now())
				Add(BrokerBytesOut, 3)
			}
		})
	}
	Snapshot() // alongside
	wg.Wait()
	got := Snapshot()
	if n := got.Stages[StageDeliverWrite].Count; n != workers*each {
		t.Errorf("%d durations, want %d", n, workers*each)
	}
	if n := got.Counters[BrokerBytesOut]; n != 3*workers*each {
		t.Errorf("%d bytes, want %d", n, 3*workers*each)
	}
}

func TestOnHistogramSize(t *testing.T) {
	if size := newHistogram().ByteSize(); size > 40<<10 {
		t.Errorf("a histogram has %d bytes", size)
	}
}
