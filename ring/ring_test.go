package ring

import (
	"math/rand/v2"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/felix-mq/felix/internal/race"
)

func TestOverflowText(t *testing.T) {
	for _, o := range []Overflow{DropNew, DropOld, Block} {
		text, err := o.MarshalText()
		if err != nil {
			t.Fatal(err)
		}
		back := Overflow(99)
		if err := back.UnmarshalText(text); err != nil || back != o {
			t.Errorf("%s: read back as %v, %v", text, back, err)
		}
	}
	var o Overflow
	if err := o.UnmarshalText([]byte("Block")); err == nil {
		t.Error("an unknown word was accepted")
	}
}

func TestDropNew(t *testing.T) {
	r := New(Options[int]{MaxBytes: 10, MaxItems: 3, Overflow: DropNew})
	if got := first(r.Offer(1, 4, 2)); got != AcceptedWake {
		t.Fatalf("first offer to a parked consumer: %v", got)
	}
	if got := first(r.Offer(2, 4, 2)); got != Accepted {
		t.Fatalf("second offer: %v", got)
	}
	if got := first(r.Offer(3, 4, 5)); got != Full {
		t.Fatalf("offer over the byte bound: %v", got)
	}
	if got := first(r.Offer(4, 1, 1)); got != Accepted {
		t.Fatalf("smaller offer after a refusal: %v", got)
	}
	if got := first(r.Offer(5, 0, 7)); got != Full {
		t.Fatalf("offer over the item bound: %v", got)
	}
	if s := r.Stats(); s.Dropped != 12 || s.Items != 3 || s.Bytes != 9 {
		t.Errorf("stats %+v", s)
	}
	wantTake(t, r, 100, 1, 2, 4)
}

func TestDropOld(t *testing.T) {
	var gone []int
	r := New(Options[int]{MaxBytes: 10, Overflow: DropOld, Discard: func(i int) { gone = append(gone, i) }})
	r.Offer(1, 5, 1)
	r.Offer(2, 5, 10)
	if got := first(r.Offer(3, 6, 100)); got != Accepted {
		t.Fatalf("offer: %v", got)
	}
	if s := r.Stats(); s.Dropped != 11 || s.Items != 1 || s.Bytes != 6 {
		t.Errorf("stats %+v", s)
	}
	if len(gone) != 2 || gone[0] != 1 || gone[1] != 2 {
		t.Errorf("discarded %v, want the two oldest", gone)
	}
	if got := first(r.Offer(4, 1000, 1)); got != Accepted {
		t.Fatalf("an item larger than the ring must displace all others: %v", got)
	}
	wantTake(t, r, 1, 4)
}

func TestEmptyRingTakesAnyOneItem(t *testing.T) {
	for _, o := range []Overflow{DropNew, DropOld, Block} {
		r := New(Options[int]{MaxBytes: 10, Overflow: o})
		if !hasRoom(r, 1<<20) {
			t.Errorf("%v: no space in an empty ring", o)
		}
		if got := first(r.Offer(1, 1<<20, 1)); got != AcceptedWake {
			t.Errorf("%v: %v", o, got)
		}
		if got := first(r.Offer(2, 1, 1)); o != DropOld && got != Full {
			t.Errorf("%v: second item: %v", o, got)
		}
	}
}

func TestBlockTellsOfRoom(t *testing.T) {
	told := 0
	r := New(Options[int]{MaxBytes: 10, Overflow: Block, OnSpace: func() { told++ }})
	r.Offer(1, 6, 1)
	r.Offer(2, 4, 1)
	if got := first(r.Offer(3, 5, 1)); got != Full {
		t.Fatalf("offer: %v", got)
	}
	if hasRoom(r, 7) {
		t.Fatal("space for 7 of 10 with 10 queued")
	}
	wantTake(t, r, 6, 1)
	if told != 0 {
		t.Fatal("notified of space for 7 with 4 of 10 queued")
	}
	wantTake(t, r, 6, 2)
	if told != 1 {
		t.Fatalf("told %d times", told)
	}
	if d := r.Stats().Dropped; d != 0 {
		t.Errorf("blocking ring counted %d drops", d)
	}
	r.Offer(4, 10, 1)
	r.HasSpace(1)
	r.Close()
	if told != 1 {
		t.Errorf("a close made space: notified %d times", told)
	}
	if !hasRoom(r, 1) {
		t.Error("a closed ring still makes its producer wait")
	}
}

func TestWatchHalfEmpty(t *testing.T) {
	told := 0
	r := New(Options[int]{MaxBytes: 8, MaxItems: 100, OnSpace: func() { told++ }})
	if !r.Watch() {
		t.Fatal("an empty ring is not half empty")
	}
	for i := range 4 {
		r.Offer(i, 2, 1)
	}
	if r.Watch() {
		t.Fatal("a full ring is half empty")
	}
	r.Take(nil, 1)
	if told != 0 {
		t.Fatal("told at 6 of 8")
	}
	r.Take(nil, 1)
	if told != 1 {
		t.Fatalf("told %d times at 4 of 8", told)
	}
}

func TestTrim(t *testing.T) {
	r := New(Options[int]{})
	for i := range keptSlots + 1 {
		r.Offer(i, 1, 1)
	}
	if r.Trim() || !r.Stats().Grown {
		t.Fatal("a ring with something queued was trimmed")
	}
	if got, _ := r.Take(nil, 1<<20); len(got) != keptSlots+1 {
		t.Fatalf("took %d of %d", len(got), keptSlots+1)
	}
	if !r.Trim() || r.Stats().Grown || r.slots != nil {
		t.Fatalf("%d slots left", len(r.slots))
	}
	r.Offer(7, 1, 1)
	if got, _ := r.Take(nil, 1); len(got) != 1 || got[0] != 7 {
		t.Fatalf("took %v after Trim", got)
	}
	if !r.Trim() || len(r.slots) != minSlots {
		t.Fatalf("%d slots left of a short ring", len(r.slots))
	}
}

func TestDropAllTellsWhenConsumerMoves(t *testing.T) {
	told := 0
	r := New(Options[int]{OnSpace: func() { told++ }})
	r.Offer(1, 1, 3)
	r.Offer(2, 1, 4)
	if _, ok := r.DropAll(); !ok {
		t.Fatal("the consumer of a filled ring counts as parked")
	}
	if n := r.Stats().Dropped; n != 7 {
		t.Fatalf("dropped %d events", n)
	}
	if told != 0 {
		t.Fatal("told before the consumer moved")
	}
	if got, _ := r.Take(nil, 1); len(got) != 0 || told != 1 {
		t.Fatalf("took %v, told %d", got, told)
	}
	if _, ok := r.DropAll(); ok {
		t.Fatal("a ring was emptied whose consumer will not move before it is woken")
	}
	if got, _ := r.Take(nil, 1); len(got) != 0 || told != 1 {
		t.Fatalf("took %v, told %d after a refused DropAll", got, told)
	}
}

func TestParking(t *testing.T) {
	r := New(Options[int]{})
	if first(r.Offer(1, 1, 1)) != AcceptedWake || first(r.Offer(2, 1, 1)) != Accepted {
		t.Fatal("exactly the first offer wakes")
	}
	wantTake(t, r, 100, 1, 2)
	if first(r.Offer(3, 1, 1)) != Accepted {
		t.Fatal("a consumer that has not found the ring empty is not parked")
	}
	wantTake(t, r, 100, 3)
	wantTake(t, r, 100)
	if first(r.Offer(4, 1, 1)) != AcceptedWake {
		t.Fatal("a consumer that found the ring empty is parked")
	}
	wantTake(t, r, 100, 4)
	wantTake(t, r, 100)
	r.Unpark()
	if first(r.Offer(5, 1, 1)) != Accepted || r.Close() {
		t.Fatal("a consumer that counts as running is to be woken")
	}
}

func TestFits(t *testing.T) {
	told := 0
	r := New(Options[int]{MaxBytes: 10, Overflow: Block, OnSpace: func() { told++ }})
	r.Offer(1, 6, 1)
	if !r.Fits(4) || r.Fits(5) {
		t.Error("4 of 10 bytes are free")
	}
	wantTake(t, r, 10, 1)
	if told != 0 {
		t.Error("Fits asked to be notified of space")
	}
	r.Offer(2, 10, 1)
	r.Close()
	if !r.Fits(1) {
		t.Error("a closed ring has nothing to wait for")
	}
}

func TestClose(t *testing.T) {
	r := New(Options[int]{})
	r.Offer(1, 1, 1)
	if r.Close() {
		t.Error("close asks for a wake-up although the consumer runs")
	}
	if first(r.Offer(2, 1, 1)) != Closed {
		t.Error("a closed ring accepts")
	}
	wantTake(t, r, 10, 1)
	if _, ended := r.Take(nil, 10); !ended {
		t.Error("an empty closed ring does not end")
	}
	if r.Close() {
		t.Error("second close asks for a wake-up")
	}
	idle := New(Options[int]{})
	if !idle.Close() {
		t.Error("close of a parked ring does not ask for a wake-up")
	}
}

// model is the obvious form of a ring: a slice.
type model struct {
	items            [][3]int // value, bytes, events
	maxBytes, maxLen int
	overflow         Overflow
	dropped          int
}

func (m *model) bytes() (n int) {
	for _, it := range m.items {
		n += it[1]
	}
	return n
}

func (m *model) room(b int) bool {
	return len(m.items) == 0 || len(m.items) < m.maxLen && m.bytes()+b <= m.maxBytes
}

func (m *model) offer(v, b, e int) bool {
	if !m.room(b) {
		switch m.overflow {
		case DropNew:
			m.dropped += e
			return false
		case Block:
			return false
		case DropOld:
			for !m.room(b) {
				m.dropped += m.items[0][2]
				m.items = m.items[1:]
			}
		}
	}
	m.items = append(m.items, [3]int{v, b, e})
	return true
}

func (m *model) take(limit int) (out []int) {
	sum := 0
	for len(m.items) > 0 && (len(out) == 0 || sum+m.items[0][1] <= limit) {
		out = append(out, m.items[0][0])
		sum += m.items[0][1]
		m.items = m.items[1:]
	}
	return out
}

func TestAgainstModel(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 1))
	for _, o := range []Overflow{DropNew, DropOld, Block} {
		for range 50 {
			m := &model{maxBytes: 1 + rng.IntN(200), maxLen: 1 + rng.IntN(30), overflow: o}
			r := New(Options[int]{MaxBytes: m.maxBytes, MaxItems: m.maxLen, Overflow: o})
			for i := range 500 {
				if rng.IntN(3) > 0 {
					b, e := rng.IntN(40), rng.IntN(5)
					if got, want := first(r.Offer(i, b, e)) <= AcceptedWake, m.offer(i, b, e); got != want {
						t.Fatalf("%v step %d: accepted %v, want %v", o, i, got, want)
					}
				} else {
					limit := rng.IntN(100)
					got, _ := r.Take(nil, limit)
					want := m.take(limit)
					if len(got) != len(want) {
						t.Fatalf("%v step %d: took %v, want %v", o, i, got, want)
					}
					for k := range got {
						if got[k] != want[k] {
							t.Fatalf("%v step %d: took %v, want %v", o, i, got, want)
						}
					}
				}
				if s := r.Stats(); s.Items != len(m.items) || s.Bytes != m.bytes() || int(s.Dropped) != m.dropped {
					t.Fatalf("%v step %d: stats %+v, want %d items, %d bytes, %d dropped", o, i, s, len(m.items), m.bytes(), m.dropped)
				}
			}
		}
	}
}

// TestStress offers from one goroutine and takes from another that parks and is woken, and accounts for every event:
// offered = taken + dropped + refused, in order, under each policy.
func TestStress(t *testing.T) {
	const total = 20_000
	for _, o := range []Overflow{DropNew, DropOld, Block} {
		t.Run(o.String(), func(t *testing.T) {
			wake, room := make(chan struct{}, 1), make(chan struct{}, 1)
			var discarded atomic.Int64
			r := New(Options[int]{
				MaxBytes: 64, MaxItems: 16, Overflow: o,
				Discard: func(int) { discarded.Add(1) },
				OnSpace: func() { room <- struct{}{} },
			})
			var got []int
			var wg sync.WaitGroup
			wg.Go(func() {
				var batch []int
				for ended := false; !ended; {
					batch, ended = r.Take(batch[:0], 16)
					got = append(got, batch...)
					if len(batch) == 0 && !ended {
						<-wake
					}
				}
			})
			refused := 0
			for i := range total {
				for o == Block && !hasRoom(r, 1+i%8) {
					<-room
				}
				switch first(r.Offer(i, 1+i%8, 1)) {
				case AcceptedWake:
					wake <- struct{}{}
				case Full:
					refused++
				case Accepted:
				case Closed:
					t.Error("closed")
				}
				if o != Block && i%64 == 0 {
					runtime.Gosched()
				}
			}
			if r.Close() {
				wake <- struct{}{}
			}
			wg.Wait()
			s := r.Stats()
			if o == Block && (refused != 0 || s.Dropped != 0) {
				t.Errorf("refused %d, dropped %d with space awaited", refused, s.Dropped)
			}
			if o == DropNew && int(s.Dropped) != refused {
				t.Errorf("dropped %d, refused %d", s.Dropped, refused)
			}
			if o == DropOld && (refused != 0 || discarded.Load() != int64(s.Dropped)) {
				t.Errorf("refused %d, dropped %d, discarded %d", refused, s.Dropped, discarded.Load())
			}
			if len(got)+int(s.Dropped) != total {
				t.Errorf("took %d + dropped %d, want %d", len(got), s.Dropped, total)
			}
			for i := 1; i < len(got); i++ {
				if got[i] <= got[i-1] {
					t.Fatalf("out of order: %d after %d", got[i], got[i-1])
				}
			}
		})
	}
}

func TestAllocOfferTake(t *testing.T) {
	if race.Enabled {
		t.Skip("allocation counts mean nothing under the race detector")
	}
	for _, o := range []Overflow{DropNew, DropOld, Block} {
		r := New(Options[*int]{MaxItems: 8, Overflow: o, Discard: func(*int) {}, OnSpace: func() {}})
		v := new(int)
		dst := make([]*int, 0, 16)
		if n := testing.AllocsPerRun(1000, func() {
			for range 12 { // four too many
				r.Offer(v, 100, 1)
			}
			r.HasSpace(1)
			dst, _ = r.Take(dst[:0], 1<<20)
			dst, _ = r.Take(dst[:0], 1<<20)
		}); n != 0 {
			t.Errorf("%v: %v allocations", o, n)
		}
	}
}

func wantTake(t *testing.T, r *Ring[int], maxBytes int, want ...int) {
	t.Helper()
	got, _ := r.Take(nil, maxBytes)
	if len(got) != len(want) {
		t.Fatalf("took %v, want %v", got, want)
	}
	for i := range got {
		if got[i] != want[i] {
			t.Fatalf("took %v, want %v", got, want)
		}
	}
}

func BenchmarkOfferTake(b *testing.B) {
	for _, o := range []Overflow{DropNew, DropOld, Block} {
		b.Run("policy="+o.String(), func(b *testing.B) {
			r := New(Options[*int]{Overflow: o})
			v := new(int)
			dst := make([]*int, 0, 16)
			b.ReportAllocs()
			for b.Loop() {
				for range 8 {
					r.Offer(v, 1024, 1)
				}
				dst, _ = r.Take(dst[:0], 1<<20)
			}
		})
	}
}

func first(r Result, _ int) Result { return r }

func hasRoom[T any](r *Ring[T], bytes int) bool {
	ok, _ := r.HasSpace(bytes)
	return ok
}

// TestDropsAreReported: each offer says what its policy cost.
func TestDropsAreReported(t *testing.T) {
	for _, tc := range []struct {
		overflow Overflow
		want     []int
	}{
		{DropNew, []int{0, 0, 30, 40}},
		{DropOld, []int{0, 0, 10, 20}},
		{Block, []int{0, 0, 0, 0}},
	} {
		r := New(Options[int]{MaxItems: 2, Overflow: tc.overflow})
		total := 0
		for i, want := range tc.want {
			if _, dropped := r.Offer(i, 1, 10*(i+1)); dropped != want {
				t.Errorf("%v: offer %d cost %d events, want %d", tc.overflow, i, dropped, want)
			}
			total += want
		}
		if got := int(r.Stats().Dropped); got != total {
			t.Errorf("%v: %d events dropped, want %d", tc.overflow, got, total)
		}
	}
}

// TestSlotsAreCharged: a ring asks before it takes memory for slots, is full without it, and gives all of it back.
func TestSlotsAreCharged(t *testing.T) {
	for _, o := range []Overflow{DropNew, DropOld, Block} {
		charged, limit := 0, 0
		r := New(Options[int]{Overflow: o, Charge: func(n int) bool {
			if n > 0 && charged+n > limit {
				return false
			}
			charged += n
			return true
		}})
		if got, dropped := r.Offer(1, 1, 1); got != Full || (dropped != 1) != (o == Block) {
			t.Errorf("%v: without memory for a slot: %v, %d dropped", o, got, dropped)
		}
		if ok, memory := r.HasSpace(1); ok || !memory {
			t.Errorf("%v: space %t without memory, for want of it %t", o, ok, memory)
		}
		limit = 16 * r.slotBytes()
		for i := range 16 {
			if got := first(r.Offer(i, 1, 1)); got == Full {
				t.Fatalf("%v: offer %d with memory for 16: %v", o, i, got)
			}
		}
		got, dropped := r.Offer(17, 1, 1)
		if want := o == DropOld; (got != Full) != want || (dropped == 1) != (o != Block) {
			t.Errorf("%v: the 17th: %v, %d dropped", o, got, dropped)
		}
		r.Discard()
		if charged != 0 {
			t.Errorf("%v: %d bytes still charged", o, charged)
		}
	}
}

// TestTryOffer: it accepts what fits, and refuses the rest without a drop, under each policy and also without memory.
func TestTryOffer(t *testing.T) {
	for _, o := range []Overflow{DropNew, DropOld, Block} {
		memory := true
		r := New(Options[int]{MaxBytes: 100, Overflow: o, Charge: func(n int) bool { return n < 0 || memory }})
		for i := range minSlots {
			if !r.TryOffer(i, 1, 1) {
				t.Errorf("%v: item %d was refused", o, i)
			}
		}
		memory = false
		if r.TryOffer(minSlots, 1, 1) {
			t.Errorf("%v: accepted without memory for a slot", o)
		}
		memory = true
		if r.TryOffer(minSlots, 101, 1) {
			t.Errorf("%v: accepted beyond the bound", o)
		}
		if st := r.Stats(); st.Items != minSlots || st.Dropped != 0 || st.Parked {
			t.Errorf("%v: %+v", o, st)
		}
		r.Close()
		if r.TryOffer(minSlots, 1, 1) {
			t.Errorf("%v: accepted after the end", o)
		}
	}
}
