package fanout

import (
	"context"
	"fmt"
	"runtime"
	"strconv"
	"testing"
	"time"

	"github.com/felix-mq/felix/internal/buf"
	"github.com/felix-mq/felix/ring"
)

func manyTopics(h *Hub, n int) []*Topic {
	topics := make([]*Topic, n)
	for i := range topics {
		topics[i] = h.Register(Key{"tenant", "namespace", strconv.Itoa(i)}, Policy{})
	}
	return topics
}

// TestReclaimVisitsFewTopics: finding memory takes replay from no more topics than needed, of those that have some,
// whatever the number of topics.
func TestReclaimVisitsFewTopics(t *testing.T) {
	const maxBytes, size = 1 << 20, 4 << 10
	h := testHub(t, Options{MaxBytes: maxBytes})
	topics := manyTopics(h, 4000)
	n := topics[0].tenant
	for i := 0; h.Stats().Reclaims == 0; i++ {
		publishFrame(t, topics[i], frameIn(size, size, 1, 0))
	}
	with := len(n.replaying)
	if with == 0 || with > maxBytes/size {
		t.Fatalf("%d topics have replay", with)
	}
	for i := range 1000 {
		reclaims, had := h.Stats().Reclaims, len(n.replaying)
		publishFrame(t, topics[2000+i], frameIn(size, size, 1, 0))
		// An eighth of the budget is freed at a time, and topics are looked at 32 at a time.
		if took := had + 1 - len(n.replaying); took > maxBytes/8/size+32 {
			t.Fatalf("%d topics lost their replay for one event", took)
		} else if took > 0 && h.Stats().Reclaims != reclaims+1 {
			t.Fatalf("%d topics lost their replay in %d reclaims", took, h.Stats().Reclaims-reclaims)
		}
	}
}

// TestEndAllocatesLittle: the garbage of a topic's end is in proportion to its subscriptions.
func TestEndAllocatesLittle(t *testing.T) {
	perSubscription := func(n int) float64 {
		h := testHub(t, Options{})
		topic := h.Register(testKey, noReplay(ring.DropNew, 4))
		for range n {
			subscribe(t, topic, From{})
		}
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		h.Remove(testKey)
		runtime.ReadMemStats(&after)
		return float64(after.TotalAlloc-before.TotalAlloc) / float64(n)
	}
	if few, many := perSubscription(500), perSubscription(4000); many > 2*few+256 {
		t.Errorf("%.0f bytes for each of 4000 subscriptions, %.0f for each of 500", many, few)
	}
}

// BenchmarkScaleOfTopics publishes to many topics round robin when the budget is spent: mostly on what a reader that
// moves has not taken yet, or on replay.
func BenchmarkScaleOfTopics(b *testing.B) {
	for _, held := range []string{"queue", "replay"} {
		for _, n := range []int{100, 100_000, 400_000} {
			b.Run(fmt.Sprintf("held=%s/topics=%d", held, n), func(b *testing.B) {
				h := NewHub(Options{MaxBytes: 8 << 20, Ticks: make(chan time.Time)})
				defer h.Close()
				if held == "queue" {
					slow := h.Register(testKey, Policy{Overflow: ring.DropNew, QueueBytes: 64 << 20, QueueItems: 1 << 20, ReplayBytes: -1})
					s, _ := subscribe(b, slow, From{})
					defer s.Close()
					for range 100 {
						publishFrame(b, slow, frameIn(64<<10, 64<<10, 1, 1))
					}
				}
				topics := manyTopics(h, n)
				refused := 0
				publishTo := func(i int) {
					chunk := buf.Get(4 << 10)
					f := NewFrame(chunk, chunk.Bytes()[:4000], 1)
					chunk.Release()
					if _, err := topics[i%n].Publish(context.Background(), f, 0); err != nil {
						refused++
					}
					f.Release()
				}
				for i := range n { // a topic's first event costs more
					publishTo(i)
				}
				refused = 0
				reclaims := h.Stats().Reclaims
				for i := 0; b.Loop(); i++ {
					publishTo(i)
				}
				b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "publishes/s")
				b.ReportMetric(float64(refused)/float64(b.N), "refused/op")
				b.ReportMetric(float64(b.N)/float64(max(h.Stats().Reclaims-reclaims, 1)), "publishes/reclaim")
			})
		}
	}
}

// BenchmarkScaleOfEnd ends a topic with many subscriptions.
func BenchmarkScaleOfEnd(b *testing.B) {
	for _, n := range []int{10_000, 40_000} {
		b.Run(fmt.Sprintf("subscriptions=%d", n), func(b *testing.B) {
			b.ReportAllocs()
			for range b.N {
				b.StopTimer()
				h := NewHub(Options{Ticks: make(chan time.Time)})
				topic := h.Register(testKey, noReplay(ring.DropNew, 4))
				subs := make([]*Subscription, n)
				for i := range subs {
					var err error
					if subs[i], err = topic.Subscribe(From{}, SubscriptionOptions{Wake: func() {}}); err != nil {
						b.Fatal(err)
					}
				}
				b.StartTimer()
				h.Remove(testKey)
				for _, s := range subs {
					s.Close()
				}
				b.StopTimer()
				h.Close()
				b.StartTimer()
			}
		})
	}
}
