package fanout

import (
	"context"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/felix-mq/felix/internal/buf"
	"github.com/felix-mq/felix/ring"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// testHub returns a hub that sweeps when the test calls h.sweep, and at no other time. When the test ends the hub must
// hold nothing and every chunk must be back.
func testHub(t *testing.T, o Options) *Hub {
	t.Helper()
	if o.Ticks == nil {
		o.Ticks = make(chan time.Time)
	}
	return checkedHub(t, o)
}

// checkedHub is testHub with the hub's own ticker, for tests in a bubble with a clock of its own.
func checkedHub(t *testing.T, o Options) *Hub {
	t.Helper()
	live := buf.Live()
	h := NewHub(o)
	t.Cleanup(func() {
		topics := h.Topics()
		h.Close()
		if st := h.Stats(); st.RetainedBytes != 0 {
			t.Errorf("%d bytes retained after the end", st.RetainedBytes)
		}
		for _, topic := range topics {
			if n := topic.tenant.replaying; len(n) != 0 || topic.readers != 0 || topic.paused != 0 || len(topic.lagging) != 0 {
				t.Errorf("%v: after the end %d topics with replay, %d readers, %d paused, %d on replay", topic.key, len(n), topic.readers, topic.paused, len(topic.lagging))
			}
		}
		if n := buf.Live() - live; n != 0 {
			t.Errorf("%d chunks not returned", n)
		}
	})
	return h
}

var testKey = Key{"tenant", "namespace", "stream"}

// noReplay keeps replay out of tests about rings.
func noReplay(o ring.Overflow, items int) Policy {
	return Policy{Overflow: o, QueueItems: items, ReplayBytes: -1}
}

// frameIn returns a frame of count events and size bytes, all of them fill, in a chunk of at least chunkBytes. The
// chunk has no other holder.
func frameIn(chunkBytes, size, count int, fill byte) *Frame {
	chunk := buf.Get(chunkBytes)
	defer chunk.Release()
	wire := chunk.Bytes()[:size:size]
	for i := range wire {
		wire[i] = fill
	}
	return NewFrame(chunk, wire, count)
}

func checkBytes(t testing.TB, f *Frame, size int, fill byte) {
	t.Helper()
	if len(f.Bytes()) != size {
		t.Errorf("frame %d has %d bytes, want %d", f.First(), len(f.Bytes()), size)
	}
	for i, b := range f.Bytes() {
		if b != fill {
			t.Errorf("frame %d: byte %d is %#x, want %#x", f.First(), i, b, fill)
			return
		}
	}
}

// publish publishes a frame of its own that must fit at once.
func publish(t testing.TB, topic *Topic, count int) {
	t.Helper()
	publishFrame(t, topic, frameIn(64, 64, count, 0))
}

func publishFrame(t testing.TB, topic *Topic, f *Frame) {
	t.Helper()
	defer f.Release()
	if _, err := topic.Publish(context.Background(), f, 0); err != nil {
		t.Fatalf("publish: %v", err)
	}
}

// subscribe adds a subscription that is closed with the test, and counts its wake-ups.
func subscribe(t testing.TB, topic *Topic, from From) (s *Subscription, wakes *int) {
	t.Helper()
	wakes = new(int)
	s, err := topic.Subscribe(from, SubscriptionOptions{Wake: func() { *wakes++ }})
	if err != nil {
		t.Fatalf("subscribe %+v: %v", from, err)
	}
	t.Cleanup(s.Close)
	return s, wakes
}

// got is a delivery without its frame; one that only tells of a loss has no events.
type got struct {
	first uint64
	count int
	skip  int
	gap   uint64
}

// take takes at most maxBytes and releases it.
func take(s *Subscription, maxBytes int) (out []got, ended bool) {
	ds, ended := s.Take(nil, maxBytes)
	for _, d := range ds {
		if (d.Reason == GapNone) != (d.Gap == 0) && d.Reason != GapEpoch {
			panic("reason and number of a gap do not go together")
		}
		if d.Frame == nil {
			out = append(out, got{d.Next, 0, 0, d.Gap})
			continue
		}
		if d.Next != d.Frame.First()+uint64(d.Skip) {
			panic("a delivery's next event is not its first")
		}
		out = append(out, got{d.Frame.First(), d.Frame.Count(), d.Skip, d.Gap})
		d.Frame.Release()
	}
	return out, ended
}

// drain takes until there is nothing, one frame at a time.
func drain(s *Subscription) (out []got, ended bool) {
	for {
		more, ended := take(s, 1)
		if len(more) == 0 {
			return out, ended
		}
		out = append(out, more...)
	}
}

func wantGot(t testing.TB, have []got, want ...got) {
	t.Helper()
	if len(have) != len(want) {
		t.Fatalf("got %v, want %v", have, want)
	}
	for i := range have {
		if have[i] != want[i] {
			t.Fatalf("got %v, want %v", have, want)
		}
	}
}
