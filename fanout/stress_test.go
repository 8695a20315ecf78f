package fanout

import (
	"context"
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/felix-mq/felix/internal/buf"
	"github.com/felix-mq/felix/ring"
)

var (
	stressSeed   = flag.Uint64("stress.seed", 0, "seed of the first round of TestStress; 0 means a random one")
	stressRounds = flag.Int("stress.rounds", 12, "rounds of TestStress")
)

// TestStress publishes from several goroutines to a topic of each policy, while subscriptions come and go at random
// start positions, read at different speeds, stand still, and are ended by others or by themselves. A sweep runs all
// the time, and the budget is spent in some rounds. At the end each subscription is compared with what was published:
// from its first event on, events received and events reported lost are exactly the topic's sequence, in order.
//
// A seed fixes sizes, numbers and choices, not the schedule.
func TestStress(t *testing.T) {
	seed := *stressSeed
	if seed == 0 {
		seed = rand.Uint64()
	}
	var total stressTotals
	for round := range *stressRounds {
		ok := t.Run(fmt.Sprint("round=", round), func(t *testing.T) { stress(t, seed+uint64(round), &total) })
		if !ok {
			t.Fatalf("repeat with -run TestStress -stress.seed=%d -stress.rounds=1", seed+uint64(round))
		}
	}
	t.Logf("seed %d: %+v", seed, total)
}

// stressTotals shows that the rounds did what they are for.
type stressTotals struct{ Subscriptions, Refused, Deliveries, Received, Gaps, Trailing, Skips, Reclaims uint64 }

// stressTopic is a topic and the independent account of it.
type stressTopic struct {
	*Topic
	overflow ring.Overflow

	mu        sync.Mutex
	published map[uint64]stressEntry // by first sequence number
	subs      []*stressSub
	refused   uint64
}

type stressEntry struct {
	id    uint64 // publisher << 32 | its own count
	count int
}

// stressDelivery is what a consumer noted of a delivery.
type stressDelivery struct {
	first, id, gap uint64
	count, skip    int
	alone          bool // there was no frame
}

func stress(t *testing.T, seed uint64, total *stressTotals) {
	rng := rand.New(rand.NewPCG(seed, 0))
	ticks := make(chan time.Time)
	maxBytes := int64(64<<10) << rng.IntN(8)
	h := testHub(t, Options{MaxBytes: maxBytes, StallTimeout: 1e6 * time.Second, Ticks: ticks})
	stop := make(chan struct{})
	var sweeps sync.WaitGroup
	sweeps.Go(func() {
		for {
			select {
			case ticks <- time.Time{}:
				runtime.Gosched()
			case <-stop:
				return
			}
		}
	})

	var topics []*stressTopic
	var publishers, managers sync.WaitGroup
	var done atomic.Bool
	for _, o := range []ring.Overflow{ring.DropNew, ring.DropOld, ring.Block} {
		st := &stressTopic{overflow: o, published: map[uint64]stressEntry{}}
		st.Topic = h.Register(Key{Stream: o.String()}, Policy{
			Overflow:    o,
			QueueItems:  1 + rng.IntN(40),
			QueueBytes:  1000 << rng.IntN(6),
			ReplayBytes: []int{-1, 5_000, 50_000, 0}[rng.IntN(4)],
		})
		topics = append(topics, st)
		for p := range 2 + rng.IntN(3) {
			r := rand.New(rand.NewPCG(seed, uint64(100*int(o)+p+1)))
			publishers.Go(func() { st.publisher(t, r, uint64(p), 400) })
		}
		for range 5 {
			r := rand.New(rand.NewPCG(seed, rng.Uint64()))
			managers.Go(func() {
				for !done.Load() {
					st.manage(t, r, false)
				}
				st.manage(t, r, true)
			})
		}
	}
	publishers.Wait()
	done.Store(true)
	for _, st := range topics { // the last subscriptions end with their topic
		for st.lasting() < 5 {
			runtime.Gosched()
		}
		h.Remove(st.Key())
	}
	managers.Wait()
	close(stop)
	sweeps.Wait()
	total.Reclaims += h.Stats().Reclaims
	for _, st := range topics {
		st.verify(t, total)
	}
}

func (st *stressTopic) lasting() (n int) {
	st.mu.Lock()
	defer st.mu.Unlock()
	for _, s := range st.subs {
		if s.lasts {
			n++
		}
	}
	return n
}

// stressFill writes the bytes that belong to id.
func stressFill(wire []byte, id uint64) {
	binary.BigEndian.PutUint64(wire, id)
	for i := 8; i < len(wire); i++ {
		wire[i] = byte(id>>32)*31 + byte(id)*7 + byte(i)
	}
}

func stressIntact(wire []byte) bool {
	id := binary.BigEndian.Uint64(wire)
	for i := 8; i < len(wire); i++ {
		if wire[i] != byte(id>>32)*31+byte(id)*7+byte(i) {
			return false
		}
	}
	return true
}

// publisher cuts frames out of chunks as a reader does.
func (st *stressTopic) publisher(t *testing.T, r *rand.Rand, p uint64, frames int) {
	var chunk *buf.Chunk
	used := 0
	last := int64(-1)
	for i := range frames {
		size := 8 + r.IntN(200)
		if r.IntN(10) == 0 {
			size = 8 + r.IntN(6000)
		}
		if chunk == nil || used+size > chunk.Cap() {
			if chunk != nil {
				chunk.Release()
			}
			chunk, used = buf.Get(max(size, 1024<<r.IntN(7))), 0
		}
		id := p<<32 | uint64(i)
		wire := chunk.Bytes()[used : used+size : used+size]
		used += size
		stressFill(wire, id)
		f := NewFrame(chunk, wire, 1+r.IntN(5))
		count := f.Count()
		wait := time.Duration(-1)
		if r.IntN(3) == 0 {
			wait = 0 // as the broker does: first without waiting
		}
		first, err := st.Publish(context.Background(), f, wait)
		if errors.Is(err, ErrTimeout) && wait == 0 {
			first, err = st.Publish(context.Background(), f, -1)
		}
		f.Release()
		if err != nil || int64(first) <= last {
			t.Errorf("publisher %d, frame %d: number %d after %d, %v", p, i, first, last, err)
			break
		}
		last = int64(first)
		st.mu.Lock()
		st.published[first] = stressEntry{id, count}
		st.mu.Unlock()
		for range r.IntN(20) {
			runtime.Gosched()
		}
	}
	if chunk != nil {
		chunk.Release()
	}
}

// stressSub is one subscription and what its consumer saw.
type stressSub struct {
	t    *testing.T
	sub  *Subscription
	rng  *rand.Rand
	slow int // yields for each delivery

	ready    chan struct{} // closed when the fields above are set
	wake     chan struct{} // nil: each wake-up starts a goroutine of its own
	finished chan struct{} // closed when the consumer saw the end, or closed the subscription
	resume   chan struct{} // closed when a consumer that stands still goes on
	standAt  int           // delivery before which it stands still, or -1
	closeAt  int           // delivery after which it closes the subscription, or -1

	out        []Delivery
	deliveries []stressDelivery

	lasts        bool // until the topic is removed
	start        uint64
	endLo, endHi uint64
	dropped      uint64
	droppedLive  uint64 // of these, before it was ended
}

// manage makes one subscription, lets it live for a while, and ends it.
func (st *stressTopic) manage(t *testing.T, r *rand.Rand, last bool) {
	s := &stressSub{
		t: t, rng: rand.New(rand.NewPCG(r.Uint64(), 0)), lasts: last, standAt: -1, closeAt: -1,
		ready: make(chan struct{}), finished: make(chan struct{}), resume: make(chan struct{}),
		slow: []int{0, 0, 5, 100}[r.IntN(4)],
	}
	if st.overflow != ring.Block && r.IntN(3) == 0 {
		s.standAt = r.IntN(20)
	}
	if !last && r.IntN(4) == 0 {
		s.closeAt = r.IntN(100)
	}
	if r.IntN(2) == 0 {
		s.wake = make(chan struct{}, 1)
	}

	lo := st.Stats().Next
	var from From
	switch r.IntN(4) {
	case 0:
		from.Earliest = true
	case 1:
		from = From{At: true, Offset: lo - min(lo, uint64(r.IntN(60))) + uint64(r.IntN(3))}
	}
	sub, err := st.Subscribe(from, SubscriptionOptions{Wake: s.woken})
	hi := st.Stats().Next
	if err != nil {
		ce := (*CursorError)(nil)
		switch {
		case !errors.As(err, &ce) || !from.At || ce.Requested != from.Offset:
			t.Errorf("subscribe %+v: %v", from, err)
		case ce.TooOld != (from.Offset < ce.Available) || ce.Available > hi || (!ce.TooOld && ce.Available < lo):
			t.Errorf("subscribe %+v between %d and %d: %v", from, lo, hi, err)
		}
		st.mu.Lock()
		st.refused++
		st.mu.Unlock()
		runtime.Gosched()
		if last {
			st.manage(t, r, last)
		}
		return
	}
	s.sub, s.start = sub, sub.Next()
	switch {
	case from.At && s.start != from.Offset,
		!from.At && !from.Earliest && (s.start < lo || s.start > hi),
		s.start > hi:
		t.Errorf("%+v between %d and %d begins at %d", from, lo, hi, s.start)
	}
	st.mu.Lock()
	st.subs = append(st.subs, s)
	st.mu.Unlock()
	close(s.ready)
	if s.wake != nil || sub.Backlog() {
		go s.consume()
	}

	if last {
		s.live(r.IntN(1000))
		close(s.resume)
		<-s.finished
		s.endLo, s.endHi = st.Stats().Next, st.Stats().Next
	} else {
		s.live(r.IntN(3000))
		s.endLo = st.Stats().Next
		s.droppedLive = sub.Dropped()
		sub.End(EndClosed)
		s.endHi = st.Stats().Next
		s.live(r.IntN(100))
		close(s.resume)
		<-s.finished
	}
	s.dropped = sub.Dropped()
	sub.Close()
}

// live yields n times, or until the subscription is over.
func (s *stressSub) live(n int) {
	for range n {
		select {
		case <-s.finished:
			return
		default:
			runtime.Gosched()
		}
	}
}

func (s *stressSub) woken() {
	if s.wake == nil {
		go s.consume()
		return
	}
	select {
	case s.wake <- struct{}{}:
	default:
		s.t.Error("woken twice")
	}
}

func (s *stressSub) consume() {
	<-s.ready
	if s.wake != nil && !s.sub.Backlog() {
		<-s.wake // a Take before the first wake-up would leave that one for later, and a second could come
	}
	for {
		// An empty Take may be followed by another consumer before it returns.
		out, ended := s.sub.Take(s.out[:0], 1+s.rng.IntN(10_000))
		if len(out) == 0 {
			if ended {
				close(s.finished)
				return
			}
			if s.wake == nil {
				return
			}
			<-s.wake
			continue
		}
		s.out = out
		for i, d := range out {
			if len(s.deliveries) == s.standAt {
				<-s.resume
			}
			for range s.slow {
				runtime.Gosched()
			}
			if d.Frame == nil { // a loss after which nothing was queued
				s.deliveries = append(s.deliveries, stressDelivery{first: d.Next, gap: d.Gap, alone: true})
				continue
			}
			wire := d.Frame.Bytes()
			if !stressIntact(wire) {
				s.t.Errorf("frame %d: bytes were overwritten", d.Frame.First())
			}
			s.deliveries = append(s.deliveries, stressDelivery{
				first: d.Frame.First(), id: binary.BigEndian.Uint64(wire), gap: d.Gap, count: d.Frame.Count(), skip: d.Skip,
			})
			d.Frame.Release()
			out[i] = Delivery{}
		}
		if s.closeAt >= 0 && len(s.deliveries) > s.closeAt {
			s.sub.Close()
			close(s.finished)
			return
		}
	}
}

func (st *stressTopic) verify(t *testing.T, total *stressTotals) {
	firsts := make([]uint64, 0, len(st.published))
	for first := range st.published {
		firsts = append(firsts, first)
	}
	slices.Sort(firsts)
	end, last := uint64(0), map[uint64]uint64{}
	for _, first := range firsts {
		e := st.published[first]
		if first != end {
			t.Fatalf("%v: event %d was numbered, %d expected", st.overflow, first, end)
		}
		if e.id&0xffffffff != last[e.id>>32] {
			t.Fatalf("%v: publisher's frame %#x out of order", st.overflow, e.id)
		}
		last[e.id>>32]++
		end += uint64(e.count)
	}
	if next := st.Stats().Next; next != end {
		t.Fatalf("%v: next number %d, published up to %d", st.overflow, next, end)
	}
	total.Refused += st.refused
	for i, s := range st.subs {
		if err := s.verify(st, end, total); err != nil {
			t.Errorf("%v: subscription %d of %d, from %d, lasting %t: %v", st.overflow, i, len(st.subs), s.start, s.lasts, err)
		}
	}
}

func (s *stressSub) verify(st *stressTopic, end uint64, total *stressTotals) error {
	total.Subscriptions++
	pos, gaps := s.start, uint64(0)
	for i, d := range s.deliveries {
		if d.alone {
			if d.gap == 0 || d.first != pos+d.gap {
				return fmt.Errorf("delivery %d is %+v at event %d", i, d, pos)
			}
			gaps += d.gap
			pos = d.first
			continue
		}
		e, ok := st.published[d.first]
		if !ok || e.id != d.id || e.count != d.count {
			return fmt.Errorf("delivery %d is %+v, published was %+v", i, d, e)
		}
		if d.skip >= d.count || (d.skip > 0 && (i > 0 || d.gap > 0)) || d.first+uint64(d.skip) != pos+d.gap {
			return fmt.Errorf("delivery %d is %+v at event %d", i, d, pos)
		}
		gaps += d.gap
		total.Skips += uint64(d.skip)
		total.Received += uint64(d.count - d.skip)
		pos = d.first + uint64(d.count)
	}
	total.Deliveries += uint64(len(s.deliveries))
	total.Gaps += gaps
	if s.closeAt >= 0 && len(s.deliveries) > s.closeAt {
		if s.dropped < gaps {
			return fmt.Errorf("%d events dropped, %d reported as gaps", s.dropped, gaps)
		}
		return nil // what it threw away by closing is nobody's loss
	}
	if s.dropped < gaps {
		return fmt.Errorf("%d events dropped, %d reported as gaps", s.dropped, gaps)
	}
	trailing := s.dropped - gaps
	total.Trailing += trailing
	// What an ended subscription has queued may be given up, even if it blocks: nobody waits for it any more.
	given := s.sub.cutOff.Load() || !s.lasts && st.hub.Stats().Reclaimed > 0
	if st.overflow == ring.Block && (s.droppedLive != 0 || s.dropped != 0 && !given) {
		return fmt.Errorf("lost %d events, %d before it was ended", s.dropped, s.droppedLive)
	}
	if s.sub.cutOff.Load() { // ended for want of memory, or because it was stuck after its end
		if pos+trailing != s.sub.endedAt || pos+trailing > s.endHi {
			return fmt.Errorf("received up to %d and lost %d after that, cut off at %d, before %d", pos, trailing, s.sub.endedAt, s.endHi)
		}
		return nil
	}
	if s.lasts && pos+trailing != end {
		return fmt.Errorf("received up to %d and lost %d after that, published up to %d", pos, trailing, end)
	}
	if pos+trailing < s.endLo || pos+trailing > s.endHi {
		return fmt.Errorf("received up to %d and lost %d after that, ended between %d and %d", pos, trailing, s.endLo, s.endHi)
	}
	return nil
}
