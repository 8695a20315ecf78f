package fanout

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"testing"
	"testing/synctest"
	"time"
	"unsafe"

	"github.com/felix-mq/felix/internal/buf"
	"github.com/felix-mq/felix/ring"
)

func retained(h *Hub) int { return int(h.Stats().RetainedBytes) }

// pinned returns the bytes of all chunks that the topic keeps from their pools.
func (t *Topic) pinned() (n int) {
	seen := map[*buf.Chunk]bool{}
	count := func(c *buf.Chunk) {
		if c != nil && !seen[c] {
			seen[c] = true
			n += c.Cap()
		}
	}
	count(t.packer.segment)
	for _, k := range t.replay.frames[t.replay.head:] {
		count(k.frame.chunk)
	}
	return n
}

func TestReplayIsBoundedByBytes(t *testing.T) {
	h := testHub(t, Options{})
	const bound = 300 << 10
	topic := h.Register(testKey, Policy{ReplayBytes: bound})
	for i := range 3000 {
		size := 1 + i*37%2000
		if i%100 == 99 {
			size = 30 << 10
		}
		publishFrame(t, topic, frameIn(64<<10, size, 1, byte(i)))
		kept := topic.Stats().ReplayBytes
		if kept > bound {
			t.Fatalf("keeps %d bytes of %d", kept, bound)
		}
		if max := 2*kept + 2*segmentBytes; topic.pinned() > max {
			t.Fatalf("pins %d bytes for %d that it is charged", topic.pinned(), kept)
		}
		if held := topic.pinned() + frameOverhead*len(topic.replay.from(0)); retained(h) != held {
			t.Fatalf("%d bytes charged for %d that are held", retained(h), held)
		}
	}
	if kept := topic.Stats().ReplayBytes; kept < bound-(64<<10) {
		t.Errorf("keeps only %d bytes of %d", kept, bound)
	}
	s, _ := subscribe(t, topic, From{Earliest: true})
	ds, _ := s.Take(nil, 1<<30)
	for i, d := range ds {
		if want := uint64(3000 - len(ds) + i); d.Frame.First() != want {
			t.Fatalf("frame %d begins with event %d, want %d", i, d.Frame.First(), want)
		}
		checkBytes(t, d.Frame, len(d.Frame.Bytes()), byte(d.Frame.First()))
		d.Frame.Release()
	}
}

func TestReplayPolicies(t *testing.T) {
	for _, tc := range []struct {
		name  string
		bytes int
		size  int
		want  bool
	}{
		{"default", 0, 1000, true},
		{"none", -1, 64, false},
		{"smaller than a frame", 500, 1000, false},
		{"smaller than the frame's chunk", 3000, 2500, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			topic := testHub(t, Options{}).Register(testKey, Policy{ReplayBytes: tc.bytes})
			for range 3 {
				publishFrame(t, topic, frameIn(tc.size, tc.size, 1, 0))
			}
			if kept := topic.Stats().ReplayBytes > 0; kept != tc.want {
				t.Errorf("kept: %t, want %t", kept, tc.want)
			}
			s, _ := subscribe(t, topic, From{Earliest: true})
			if have, _ := drain(s); (len(have) == 3) != tc.want {
				t.Errorf("replayed %v", have)
			}
		})
	}
}

// A small frame must not keep the chunk that it was read into: replay has a copy, and the chunk is free at once.
func TestReplayCopiesSmallFrames(t *testing.T) {
	topic := testHub(t, Options{}).Register(testKey, Policy{})
	chunk := buf.Get(64 << 10)
	data := chunk.Bytes()
	for i := range data {
		data[i] = byte(i / 100)
	}
	for i := range 5 {
		publishFrame(t, topic, NewFrame(chunk, data[100*i:100*i+100:100*i+100], 1))
	}
	if n := chunk.Refs(); n != 1 {
		t.Fatalf("%d references to the chunk, want the reader's alone", n)
	}
	chunk.Release()
	again := buf.Get(64 << 10) // most likely the same one
	clear(again.Bytes())
	defer again.Release()
	s, _ := subscribe(t, topic, From{Earliest: true})
	ds, _ := s.Take(nil, 1<<20)
	if len(ds) != 5 {
		t.Fatalf("%d frames", len(ds))
	}
	for i, d := range ds {
		checkBytes(t, d.Frame, 100, byte(i))
		d.Frame.Release()
	}
}

func TestReplayKeepsLargeFramesAsTheyAre(t *testing.T) {
	h := testHub(t, Options{})
	topic := h.Register(testKey, Policy{})
	f := frameIn(64<<10, 32<<10, 1, 9)
	f.Retain()
	publishFrame(t, topic, f)
	if got := topic.Stats().ReplayBytes; got != 64<<10+frameOverhead {
		t.Errorf("%d bytes charged, want the whole chunk", got)
	}
	s, _ := subscribe(t, topic, From{Earliest: true})
	ds, _ := s.Take(nil, 1)
	if len(ds) != 1 || ds[0].Frame != f {
		t.Fatalf("took %v, want the frame that was published", ds)
	}
	f.Release()
	f.Release()
}

// Topics that keep little pin little: a record of ten bytes must not hold a segment of 64 KiB.
func TestReplayOfQuietTopicsIsSmall(t *testing.T) {
	h := testHub(t, Options{})
	for i := range 50 {
		topic := h.Register(Key{"t", "n", fmt.Sprint(i)}, Policy{})
		publishFrame(t, topic, frameIn(64<<10, 10, 1, 0))
		if n := topic.pinned(); n > minSegment {
			t.Fatalf("one event pins %d bytes", n)
		}
	}
	topic := h.Register(testKey, Policy{})
	for range 2000 {
		publishFrame(t, topic, frameIn(64<<10, 10, 1, 0))
		if n, kept := topic.pinned(), topic.Stats().ReplayBytes; n > 2*kept+minSegment {
			t.Fatalf("%d bytes pinned for %d kept", n, kept)
		}
	}
	if n := topic.packer.segment.Cap(); n != segmentBytes {
		t.Errorf("the segments of a busy topic have %d bytes, want %d", n, segmentBytes)
	}
}

// slotBytes is what a slot of a subscription's queue takes.
const slotBytes = int(unsafe.Sizeof(struct {
	frame         *Frame
	bytes, events int32
}{}))

// fill publishes frames of 1000 bytes, each charged 1128, until n bytes are retained.
func fill(t *testing.T, topic *Topic, n int) (frames int) {
	t.Helper()
	for ; retained(topic.hub) < n; frames++ {
		publishFrame(t, topic, frameIn(1000, 1000, 1, 3))
	}
	return frames
}

// What is given up to free memory, in this order: replay, then what stuck consumers have queued that do not block. Then
// publishers wait.
func TestBudgetOrder(t *testing.T) {
	h := testHub(t, Options{MaxBytes: 100_000})
	replayed := h.Register(Key{Tenant: testKey.Tenant, Stream: "replayed"}, Policy{})
	dropping := h.Register(Key{Tenant: testKey.Tenant, Stream: "dropping"}, noReplay(ring.DropNew, 0))
	blocking := h.Register(Key{Tenant: testKey.Tenant, Stream: "blocking"}, noReplay(ring.Block, 0))
	stuck, _ := subscribe(t, dropping, From{})
	blocked, _ := subscribe(t, blocking, From{})

	lost := fill(t, dropping, 20_000)
	kept := fill(t, blocking, 50_000)
	fill(t, replayed, 98_000)
	for range 4 {
		h.sweep()
	}
	if h.Stats().Reclaims != 0 {
		t.Fatal("reclaimed with space left")
	}
	for ; h.Stats().Reclaims == 0; kept++ {
		publishFrame(t, blocking, frameIn(1000, 1000, 1, 3))
	}
	if replayed.Stats().ReplayBytes != 0 || h.Stats().Reclaims != 1 {
		t.Fatalf("%d bytes of replay left after %d reclaims", replayed.Stats().ReplayBytes, h.Stats().Reclaims)
	}
	if stuck.Dropped() != 0 {
		t.Fatal("a ring was emptied while there was replay to give up")
	}

	for ; h.Stats().Reclaims == 1; kept++ {
		publishFrame(t, blocking, frameIn(1000, 1000, 1, 3))
	}
	if int(stuck.Dropped()) != lost || stuck.QueuedBytes() != 0 || dropping.Stats().Active != 0 {
		t.Fatalf("%d events dropped of %d, %d bytes queued, %d active",
			stuck.Dropped(), lost, stuck.QueuedBytes(), dropping.Stats().Active)
	}
	publish(t, dropping, 5) // it is out of the active set until it moves
	have, ended := take(stuck, 1)
	wantGot(t, have, got{uint64(lost + 5), 0, 0, uint64(lost + 5)}) // told at once, since nothing follows
	if ended || dropping.Stats().Active != 1 {
		t.Error("not active again when the consumer moves")
	}
	have, _ = take(stuck, 1)
	wantGot(t, have)
	publish(t, dropping, 2)
	have, _ = take(stuck, 1)
	wantGot(t, have, got{uint64(lost + 5), 2, 0, 0})
	if int(stuck.Dropped()) != lost+5 {
		t.Errorf("%d dropped, want %d", stuck.Dropped(), lost+5)
	}
	if got := h.Stats().Reclaimed; got != uint64(lost) {
		t.Errorf("%d events reclaimed, want %d", got, lost)
	}

	f := frameIn(1000, 1000, 1, 3)
	defer func() { f.Release() }()
	var err error
	for {
		if _, err = blocking.Publish(t.Context(), f, 0); err != nil {
			break
		}
		kept++
		f.Release()
		f = frameIn(1000, 1000, 1, 3)
		for range 4 {
			h.sweep()
		}
	}
	if !errors.Is(err, ErrTimeout) || retained(h) > 100_000 {
		t.Fatalf("%v with %d bytes retained", err, retained(h))
	}
	have, _ = drain(blocked)
	if len(have) != kept || blocked.Dropped() != 0 {
		t.Errorf("got %d of %d frames from a blocking topic, %d dropped", len(have), kept, blocked.Dropped())
	}
	if _, err := blocking.Publish(t.Context(), f, 0); err != nil {
		t.Errorf("publish with space again: %v", err)
	}
}

// Large frames get space too: more is given up than the usual part of the budget.
func TestBudgetReclaimsEnoughForALargeFrame(t *testing.T) {
	for _, size := range []int{40_000, 90_000, 99_000, 200_000} {
		h := testHub(t, Options{MaxBytes: 100_000})
		topic := h.Register(testKey, Policy{ReplayBytes: 100_000})
		fill(t, topic, 80_000)
		publishFrame(t, topic, frameIn(size, size, 1, 0))
		if topic.Stats().ReplayBytes > 100_000 {
			t.Errorf("size %d: %d bytes of replay", size, topic.Stats().ReplayBytes)
		}
	}
}

func TestBudgetOversizedFrame(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := checkedHub(t, Options{MaxBytes: 100_000})
		topic := h.Register(testKey, noReplay(ring.Block, 0))
		s, _ := subscribe(t, topic, From{})
		publishFrame(t, topic, frameIn(20_000, 20_000, 1, 0))
		p := publishAsync(t.Context(), topic, frameIn(300_000, 300_000, 1, 0), -1)
		p.wantWaiting(t)
		take(s, 1) // not all there will be: that may be the large one already
		p.want(t, 1)
		if retained(h) != 100_000 {
			t.Errorf("%d bytes retained, want the whole budget", retained(h))
		}
		drain(s)
		if slots := 8 * slotBytes; retained(h) != slots {
			t.Errorf("%d bytes retained, want none but those of the queue's slots", retained(h))
		}
	})
}

// spent runs f in a bubble, with a budget of 10 000 bytes that a blocking subscription with space in its ring has
// spent: it holds nine frames of 1128.
func spent(t *testing.T, f func(t *testing.T, h *Hub, topic *Topic, s *Subscription)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		h := checkedHub(t, Options{MaxBytes: 11_000})
		topic := h.Register(testKey, noReplay(ring.Block, 0))
		s, _ := subscribe(t, topic, From{})
		fill(t, topic, 10_000)
		f(t, h, topic, s)
	})
}

func TestBudgetIsFirstComeFirstServed(t *testing.T) {
	spent(t, func(t *testing.T, h *Hub, topic *Topic, s *Subscription) {
		other := h.Register(Key{Tenant: testKey.Tenant, Stream: "other"}, noReplay(ring.DropNew, 0))
		large := publishAsync(t.Context(), topic, frameIn(3000, 3000, 1, 0), -1)
		small := publishAsync(t.Context(), other, smallFrame(1), -1) // would fit, but must not starve the large one
		large.wantWaiting(t)
		small.wantWaiting(t)
		f := smallFrame(1)
		if _, err := other.Publish(t.Context(), f, 0); !errors.Is(err, ErrTimeout) {
			t.Errorf("a newcomer that cannot wait: %v", err)
		}
		f.Release()
		for range 3 {
			take(s, 1)
			large.wantWaiting(t)
		}
		take(s, 1)
		large.want(t, 9)
		small.want(t, 0)
	})
}

func TestBudgetWaitEnds(t *testing.T) {
	two := func(t *testing.T, ctx context.Context, topic *Topic, wait time.Duration) (a, b *published) {
		t.Helper()
		a = publishAsync(ctx, topic, frameIn(1000, 1000, 1, 0), wait)
		b = publishAsync(t.Context(), topic, smallFrame(1), -1)
		a.wantWaiting(t)
		b.wantWaiting(t)
		return a, b
	}
	t.Run("in time", func(t *testing.T) {
		spent(t, func(t *testing.T, _ *Hub, topic *Topic, _ *Subscription) {
			a, b := two(t, t.Context(), topic, time.Second)
			time.Sleep(time.Second)
			a.wantError(t, ErrTimeout, time.Second)
			b.want(t, 9)
		})
	})
	t.Run("by its context", func(t *testing.T) {
		spent(t, func(t *testing.T, _ *Hub, topic *Topic, _ *Subscription) {
			ctx, cancel := context.WithCancel(t.Context())
			a, b := two(t, ctx, topic, -1)
			cancel()
			a.wantError(t, context.Canceled, 0)
			b.want(t, 9)
		})
	})
	t.Run("drain", func(t *testing.T) {
		spent(t, func(t *testing.T, h *Hub, topic *Topic, _ *Subscription) {
			a, b := two(t, t.Context(), topic, -1)
			h.Drain()
			a.wantError(t, ErrDraining, 0)
			b.wantError(t, ErrDraining, 0)
		})
	})
	t.Run("topic removed", func(t *testing.T) {
		spent(t, func(t *testing.T, h *Hub, topic *Topic, _ *Subscription) {
			a, b := two(t, t.Context(), topic, -1)
			h.Remove(testKey)
			a.wantError(t, ErrClosed, 0)
			b.wantError(t, ErrClosed, 0)
		})
	})
	t.Run("budget and ring share one timeout", func(t *testing.T) {
		spent(t, func(t *testing.T, h *Hub, topic *Topic, s *Subscription) {
			tight := h.Register(Key{Tenant: testKey.Tenant, Stream: "tight"}, noReplay(ring.Block, 1))
			subscribe(t, tight, From{})
			publish(t, tight, 1)
			p := publishAsync(t.Context(), tight, frameIn(1000, 1000, 1, 0), 3*time.Second)
			time.Sleep(time.Second)
			drain(s) // space in the budget now, but not in the ring
			p.wantWaiting(t)
			time.Sleep(2 * time.Second)
			p.wantError(t, ErrTimeout, 3*time.Second)
		})
	})
}

// A blocking subscription that takes nothing is ended when publishers wait for the budget that it helped to spend, even
// those of other topics, and even though its own ring has space.
func TestStalledSubscriptionIsEndedForTheBudget(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := checkedHub(t, Options{MaxBytes: 11_000, StallTimeout: 5 * time.Second})
		topic := h.Register(testKey, noReplay(ring.Block, 0))
		end := make(chan EndReason, 1)
		s, err := topic.Subscribe(From{}, SubscriptionOptions{Wake: func() {}, OnEnd: func(r EndReason) { end <- r }})
		if err != nil {
			t.Fatal(err)
		}
		fill(t, topic, 10_000)
		other := h.Register(Key{Tenant: testKey.Tenant, Stream: "other"}, noReplay(ring.Block, 0))
		subscribe(t, other, From{})
		p := publishAsync(t.Context(), other, frameIn(1000, 1000, 1, 0), -1)
		p.wantWaiting(t)
		start := time.Now()
		if r := <-end; r != EndStalled || time.Since(start) < 5*time.Second || time.Since(start) > 6*time.Second {
			t.Errorf("ended for %v after %v", r, time.Since(start))
		}
		p.wantWaiting(t)
		s.Close()
		p.want(t, 0)
	})
}

// A frame is charged when it is published, not while its publish is tried.
func TestBudgetChargesAFrameOnce(t *testing.T) {
	h := testHub(t, Options{})
	topic := h.Register(testKey, noReplay(ring.Block, 1))
	s, _ := subscribe(t, topic, From{})
	publish(t, topic, 1)
	f := smallFrame(1)
	for range 3 {
		if _, err := topic.Publish(t.Context(), f, 0); !errors.Is(err, ErrTimeout) {
			t.Fatal(err)
		}
	}
	slots := 8 * slotBytes
	if got := retained(h); got != 64+frameOverhead+slots {
		t.Errorf("%d bytes retained for one frame in a queue and one that is refused", got)
	}
	f.Release()
	drain(s)
	if got := retained(h); got != slots {
		t.Errorf("%d bytes retained for none", got)
	}
}

// stuckWith returns a hub with a budget of 20 000 bytes, and a non-blocking subscription that the last sweep found
// stuck with frames of 1128 bytes.
func stuckWith(t *testing.T, frames int) (h *Hub, topic *Topic, s *Subscription, wakes *int) {
	t.Helper()
	h = testHub(t, Options{MaxBytes: 20_000})
	topic = h.Register(testKey, noReplay(ring.DropNew, 0))
	s, wakes = subscribe(t, topic, From{})
	for range frames {
		publishFrame(t, topic, frameIn(1000, 1000, 1, 0))
	}
	for range stuckAfter {
		h.sweep()
	}
	return h, topic, s, wakes
}

// spend publishes to another topic until the budget is spent and the publish is refused or something is given up.
func spend(t *testing.T, h *Hub) {
	t.Helper()
	topic := h.Register(Key{Tenant: testKey.Tenant, Stream: "spender"}, noReplay(ring.Block, 0))
	subscribe(t, topic, From{})
	for h.Stats().Reclaims == 0 {
		f := frameIn(1000, 1000, 1, 0)
		_, err := topic.Publish(t.Context(), f, 0)
		f.Release()
		if err != nil && !errors.Is(err, ErrTimeout) {
			t.Fatal(err)
		}
	}
}

// publishAgain publishes once more where spend did.
func publishAgain(t *testing.T, h *Hub) {
	t.Helper()
	f := frameIn(1000, 1000, 1, 0)
	defer f.Release()
	topic := h.Lookup([]byte(testKey.Tenant), nil, []byte("spender"))
	if _, err := topic.Publish(t.Context(), f, 0); err != nil && !errors.Is(err, ErrTimeout) {
		t.Fatal(err)
	}
}

func TestBudgetEmptiesTheStuck(t *testing.T) {
	h, _, s, _ := stuckWith(t, 10)
	spend(t, h)
	if s.Dropped() != 10 || s.QueuedBytes() != 0 {
		t.Errorf("%d dropped, %d bytes queued", s.Dropped(), s.QueuedBytes())
	}
}

// One that has moved since the sweep looked keeps what it has.
func TestBudgetSparesWhoMoved(t *testing.T) {
	h, _, s, _ := stuckWith(t, 10)
	have, _ := take(s, 1)
	wantGot(t, have, got{0, 1, 0, 0})
	spend(t, h)
	if s.Dropped() != 0 {
		t.Errorf("%d events dropped", s.Dropped())
	}
}

// One that has taken all since then waits to be woken. If it left the active set nobody would do that.
func TestBudgetDoesNotForgetTheParked(t *testing.T) {
	h, topic, s, wakes := stuckWith(t, 2)
	drain(s)
	*wakes = 0
	spend(t, h)
	publish(t, topic, 1)
	have, _ := drain(s)
	wantGot(t, have, got{2, 1, 0, 0})
	if *wakes != 1 {
		t.Errorf("%d wake-ups, want 1", *wakes)
	}
}

// Replay that a stuck subscription has not taken yet is given up like its ring: it would pin the budget otherwise. The
// consumer starts all the same, and learns of the loss.
func TestBudgetTakesTheBacklogToo(t *testing.T) {
	for _, tc := range []struct {
		name  string
		taken int
	}{
		{"before the consumer started", 0},
		{"in the middle", 1},
	} {
		t.Run(tc.name, func(t *testing.T) {
			h := testHub(t, Options{MaxBytes: 20_000})
			topic := h.Register(testKey, Policy{})
			for range 5 { // events 0-2, …, 12-14
				publishFrame(t, topic, frameIn(1000, 1000, 3, 0))
			}
			s, wakes := subscribe(t, topic, From{At: true, Offset: 1})
			publishFrame(t, topic, frameIn(1000, 1000, 1, 0)) // 15
			next := uint64(1)
			for range tc.taken {
				have, _ := take(s, 1)
				wantGot(t, have, got{0, 3, 1, 0})
				next = 3
			}
			for range stuckAfter + 1 {
				h.sweep()
			}
			spend(t, h)
			for range 20 { // what was given up first may have been enough
				if s.Dropped() > 0 {
					break
				}
				publishAgain(t, h)
			}
			if want := 16 - next; s.Dropped() != want {
				t.Errorf("%d events dropped, want %d", s.Dropped(), want)
			}
			publish(t, topic, 1) // 16
			if !s.Backlog() || *wakes != 0 {
				t.Errorf("backlog %t, %d wake-ups: its consumer starts by itself", s.Backlog(), *wakes)
			}
			lost := 17 - next           // its queue was emptied, and it is out of the active set until it moves
			want := got{17, 0, 0, lost} // told at once, since nothing follows
			if tc.taken == 0 {          // it still reads replay, which has event 16 again
				lost--
				want = got{16, 1, 0, lost}
			}
			have, ended := take(s, 1)
			wantGot(t, have, want)
			if ended || topic.Stats().Active != 1 {
				t.Errorf("ended %t, %d active", ended, topic.Stats().Active)
			}
			have, _ = take(s, 1)
			wantGot(t, have)
			publish(t, topic, 1) // 17
			have, _ = take(s, 1)
			wantGot(t, have, got{17, 1, 0, 0})
			if s.Dropped() != lost || *wakes != 1 {
				t.Errorf("%d events dropped, want %d; %d wake-ups", s.Dropped(), lost, *wakes)
			}
		})
	}
}

// Under Block nothing is given up but by the subscription's end.
func TestBudgetKeepsTheBacklogOfBlocking(t *testing.T) {
	h := testHub(t, Options{MaxBytes: 20_000})
	topic := h.Register(testKey, Policy{Overflow: ring.Block})
	for range 5 {
		publishFrame(t, topic, frameIn(1000, 1000, 1, 0))
	}
	s, _ := subscribe(t, topic, From{Earliest: true})
	for range 10 {
		h.sweep()
	}
	spend(t, h)
	have, _ := drain(s)
	if len(have) != 5 || s.Dropped() != 0 {
		t.Errorf("got %v, %d dropped", have, s.Dropped())
	}
}

// While publishers wait for the budget, replay does not compete with them.
func TestReplayGivesWay(t *testing.T) {
	spent(t, func(t *testing.T, h *Hub, topic *Topic, s *Subscription) {
		replayed := h.Register(Key{Tenant: testKey.Tenant, Stream: "replayed"}, Policy{})
		a := publishAsync(t.Context(), replayed, frameIn(1000, 1000, 1, 0), -1)
		b := publishAsync(t.Context(), topic, frameIn(1000, 1000, 1, 0), -1)
		take(s, 1)
		a.want(t, 0)
		b.want(t, 9)
		if n := replayed.Stats().ReplayBytes; n != 0 {
			t.Errorf("%d bytes of replay kept from a publisher", n)
		}
	})
}

// A subscription that was late and has caught up gives the memory of its ring back when it has been idle for a sweep.
func TestIdleRingIsTrimmed(t *testing.T) {
	h := testHub(t, Options{})
	topic := h.Register(testKey, noReplay(ring.DropNew, 0))
	s, _ := subscribe(t, topic, From{})
	for range 100 {
		publish(t, topic, 1)
	}
	h.sweep()
	drain(s)
	if !h.sweep() || !s.ring.Stats().Grown {
		t.Error("trimmed as soon as it had caught up")
	}
	if h.sweep() || s.ring.Stats().Grown {
		t.Error("not trimmed, or looked at again, after a sweep of rest")
	}
}

// Topics whose replay a blocking subscription has still to read give nothing. They must not hide one that can: it gives
// even if many of them come after it in the tenant's list.
func TestBudgetFindsReplayBehindOthers(t *testing.T) {
	h := testHub(t, Options{MaxBytes: 200_000})
	can := h.Register(Key{Tenant: testKey.Tenant, Stream: "can give"}, Policy{})
	for range 20 {
		publishFrame(t, can, frameIn(1000, 1000, 1, 0))
	}
	for i := range 100 {
		topic := h.Register(Key{Tenant: testKey.Tenant, Stream: fmt.Sprint(i)}, Policy{Overflow: ring.Block, QueueItems: 1})
		for range 2 {
			publish(t, topic, 1)
		}
		subscribe(t, topic, From{Earliest: true})
	}
	spend(t, h)
	if n := can.Stats().ReplayBytes; n != 0 {
		t.Errorf("%d bytes of replay are kept from a publisher", n)
	}
}

// A subscription that reads replay loses nothing, and counts nothing as lost, when there is no memory for its queue: it
// goes on reading replay.
func TestReplayIsReadWithoutMemoryForAQueue(t *testing.T) {
	for _, o := range []ring.Overflow{ring.DropNew, ring.DropOld, ring.Block} {
		t.Run(o.String(), func(t *testing.T) {
			h := testHub(t, Options{})
			topic := h.Register(testKey, Policy{Overflow: o})
			for range 20 {
				publish(t, topic, 1)
			}
			s, _ := subscribe(t, topic, From{Earliest: true})
			free := topic.tenant.share.Reach() - topic.tenant.share.Used()
			if err := topic.tenant.share.Charge(free); err != nil {
				t.Fatal(err)
			}
			defer topic.tenant.share.Release(free)
			for i := range uint64(20) {
				have, _ := take(s, 1)
				wantGot(t, have, got{i, 1, 0, 0})
			}
			if s.Dropped() != 0 {
				t.Errorf("%d events dropped", s.Dropped())
			}
		})
	}
}

// TestBudgetTakesOwnReplay fills the common part with what cannot be given up, and a tenant's guarantee with its
// replay: the tenant goes on publishing, at the price of that.
func TestBudgetTakesOwnReplay(t *testing.T) {
	h := testHub(t, Options{MaxBytes: 8 << 20})
	blocked := h.Register(Key{"a", "n", "s"}, Policy{Overflow: ring.Block, QueueBytes: 64 << 20, QueueItems: 1 << 20, ReplayBytes: -1})
	subscribe(t, blocked, From{})
	topics := make([]*Topic, 8)
	for i := range topics {
		topics[i] = h.Register(Key{"b", "n", strconv.Itoa(i)}, Policy{})
	}
	publish := func(topic *Topic, size int) error {
		f := frameIn(size, size-20, 1, 1)
		defer f.Release()
		_, err := topic.Publish(context.Background(), f, 0)
		return err
	}
	for _, size := range []int{16 << 10, 4 << 10, 1 << 10, 100} {
		for publish(blocked, size) == nil {
		}
	}
	for i := range 4000 { // four times the guarantee
		if err := publish(topics[i%len(topics)], 4<<10); err != nil {
			t.Fatalf("publish %d: %v", i, err)
		}
	}
	if share := topics[0].tenant.share; share.Above() != 0 {
		t.Errorf("%d bytes above the guarantee", share.Above())
	}
}
