package fanout

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/felix-mq/felix/internal/buf"
)

// memoryLog is a log in memory. It commits when the test lets it, or, with run, by itself in groups of random size.
type memoryLog struct {
	committing sync.Mutex // held while appends are committed

	mu      sync.Mutex
	events  []uint64 // what was appended, by offset; an event is a number
	waiting []func(error)
	upTo    []uint64 // the tail that each of waiting makes
	base    uint64
	tail    uint64
	refuse  error  // what Append says
	least   uint64 // events that a page has, whatever its limit is
	known   map[Origin]bool
}

const eventBytes = 100 // of each event in a frame

// numbersFrame returns a frame with these events.
func numbersFrame(numbers []uint64) *Frame {
	chunk := buf.Get(len(numbers) * eventBytes)
	defer chunk.Release()
	wire := chunk.Bytes()[:len(numbers)*eventBytes]
	for i, n := range numbers {
		binary.BigEndian.PutUint64(wire[i*eventBytes:], n)
	}
	return NewFrame(chunk, wire, len(numbers))
}

func numbersOf(f *Frame) (all []uint64) {
	for i := range f.Count() {
		all = append(all, binary.BigEndian.Uint64(f.Bytes()[i*eventBytes:]))
	}
	return all
}

func (l *memoryLog) Append(f *Frame, from Origin, done func(error)) (uint64, bool, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.refuse != nil {
		return 0, false, l.refuse
	}
	first := uint64(len(l.events))
	if from.Set {
		if l.known[from] { // waits for all before it
			l.waiting = append(l.waiting, done)
			l.upTo = append(l.upTo, first)
			return 0, true, nil
		}
		if l.known == nil {
			l.known = map[Origin]bool{}
		}
		l.known[from] = true
	}
	l.events = append(l.events, numbersOf(f)...)
	l.waiting = append(l.waiting, done)
	l.upTo = append(l.upTo, uint64(len(l.events)))
	return first, false, nil
}

func (l *memoryLog) Held() int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return int64(len(l.known)) * 1000
}

// Commit commits one append here, unless somebody else does already. Otherwise commit is called for it.
func (l *memoryLog) Commit(here bool) {
	if here && l.committing.TryLock() {
		defer l.committing.Unlock()
		l.commitLocked(1, nil)
	}
}

// commit commits the next appends, up to n of them, and returns how many.
func (l *memoryLog) commit(n int, err error) int {
	l.committing.Lock()
	defer l.committing.Unlock()
	return l.commitLocked(n, err)
}

func (l *memoryLog) commitLocked(n int, err error) int {
	l.mu.Lock()
	n = min(n, len(l.waiting))
	done := l.waiting[:n]
	if n > 0 && err == nil {
		l.tail = l.upTo[n-1]
	}
	l.waiting, l.upTo = l.waiting[n:], l.upTo[n:]
	l.mu.Unlock()
	for _, f := range done {
		f(err)
	}
	return n
}

func (l *memoryLog) trim(to uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.base = max(l.base, min(to, l.tail))
}

func (l *memoryLog) Cost(f *Frame) int64 { return int64(len(f.Bytes())) }

func (l *memoryLog) Base() uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.base
}

func (l *memoryLog) Tail() uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.tail
}

func (l *memoryLog) Epoch() uint64 { return 7 }

func (l *memoryLog) Read(from uint64) (LogReader, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if from < l.base {
		return nil, ErrTrimmed
	}
	return &memoryReader{l, from}, nil
}

type memoryReader struct {
	l    *memoryLog
	next uint64
}

func (r *memoryReader) Offset() uint64 { return r.next }

func (r *memoryReader) Next(limit int, end uint64, m Memory) (*Frame, error) {
	r.l.mu.Lock()
	defer r.l.mu.Unlock()
	if r.next < r.l.base {
		return nil, ErrTrimmed
	}
	n := min(max(uint64(limit/eventBytes), r.l.least, 1), min(end, r.l.tail)-r.next)
	if n == 0 {
		return nil, nil
	}
	if err := m.Charge(int(n) * eventBytes); err != nil {
		return nil, err
	}
	f := numbersFrame(r.l.events[r.next : r.next+n])
	f.first = r.next
	r.next += n
	return f, nil
}

// commits notes what it hears.
type commits struct {
	mu   sync.Mutex
	errs []error
	wake chan struct{}
}

func (c *commits) Committed(_ *Frame, err error) {
	c.mu.Lock()
	c.errs = append(c.errs, err)
	c.mu.Unlock()
	c.wake <- struct{}{}
}

func appendNumbers(t *testing.T, topic *Topic, c Commit, numbers ...uint64) {
	t.Helper()
	f := numbersFrame(numbers)
	defer f.Release()
	if err := topic.Append(context.Background(), f, Origin{}, 0, false, c); err != nil {
		t.Fatal(err)
	}
}

// TestAppendIsOfferedWhenCommitted appends, and sees nothing anywhere before the commit. What fails is never offered,
// and what the log refuses is not appended.
func TestAppendIsOfferedWhenCommitted(t *testing.T) {
	h := testHub(t, Options{})
	log := &memoryLog{}
	topic := h.RegisterDurable(testKey, Policy{}, log)
	c := &commits{wake: make(chan struct{}, 10)}
	s, wakes := subscribe(t, topic, From{})
	if out, _ := take(s, 1000); len(out) > 0 {
		t.Fatalf("took %v", out)
	}
	appendNumbers(t, topic, c, 1, 2)
	appendNumbers(t, topic, c, 3)
	if out, _ := take(s, 1000); len(out) > 0 || *wakes > 0 || topic.Stats().Next != 0 {
		t.Errorf("took %v before the commit", out)
	}
	if h.Stats().RetainedBytes < 2*3*eventBytes {
		t.Errorf("%d bytes are charged, want those of the frames and of the log", h.Stats().RetainedBytes)
	}
	log.commit(1, nil)
	<-c.wake
	h.AwaitDeliveries()
	out, _ := drain(s)
	wantGot(t, out, got{0, 2, 0, 0})
	late, _ := subscribe(t, topic, From{})
	early, _ := subscribe(t, topic, From{Earliest: true})
	log.commit(1, nil)
	<-c.wake
	h.AwaitDeliveries()
	for _, s := range []*Subscription{s, late} {
		out, _ = drain(s)
		wantGot(t, out, got{2, 1, 0, 0})
	}
	out, _ = drain(early)
	wantGot(t, out, got{0, 2, 0, 0}, got{2, 1, 0, 0})

	broken := errors.New("broken")
	appendNumbers(t, topic, c, 4)
	log.commit(1, broken)
	<-c.wake
	h.AwaitDeliveries()
	if out, _ := drain(s); len(out) > 0 {
		t.Errorf("took %v after a failed commit", out)
	}
	c.mu.Lock()
	if len(c.errs) != 3 || c.errs[0] != nil || c.errs[1] != nil || !errors.Is(c.errs[2], broken) {
		t.Errorf("heard %v", c.errs)
	}
	c.mu.Unlock()
	log.refuse = broken
	f := numbersFrame([]uint64{5})
	defer f.Release()
	if err := topic.Append(context.Background(), f, Origin{}, 0, false, c); !errors.Is(err, broken) {
		t.Errorf("the log refuses, and append says %v", err)
	}
	if _, err := topic.Publish(context.Background(), f, 0); err == nil {
		t.Error("published to a durable topic without its log")
	}
}

// TestTopicMadeAgain removes a topic with appends that are not committed yet and makes it again: its subscriptions get
// what the old one has appended from the log, in order with what comes afterwards.
func TestTopicMadeAgain(t *testing.T) {
	h := testHub(t, Options{})
	log := &memoryLog{}
	c := &commits{wake: make(chan struct{}, 10)}
	old := h.RegisterDurable(testKey, Policy{}, log)
	appendNumbers(t, old, c, 1)
	h.Remove(testKey)
	topic := h.RegisterDurable(testKey, Policy{}, log)
	s, _ := subscribe(t, topic, From{})
	replaying, _ := subscribe(t, topic, From{Earliest: true})
	appendNumbers(t, topic, c, 2)
	log.commit(2, nil)
	<-c.wake
	<-c.wake
	h.AwaitDeliveries()
	for _, s := range []*Subscription{s, replaying} {
		s.Quiesce()
		out, _ := drain(s)
		wantGot(t, out, got{0, 1, 0, 0}, got{1, 1, 0, 0})
	}
	appendNumbers(t, topic, c, 3)
	h.Remove(testKey)
	topic = h.RegisterDurable(testKey, Policy{}, log)
	s, _ = subscribe(t, topic, From{})
	drain(s)
	log.commit(1, nil) // and nothing is appended to the new one
	<-c.wake
	h.AwaitDeliveries()
	s.Quiesce()
	out, _ := drain(s)
	wantGot(t, out, got{2, 1, 0, 0})
}

// TestAppendOfMostOfTheMemory appends frames of which the tenant cannot hold both forms at once.
func TestAppendOfMostOfTheMemory(t *testing.T) {
	const budget = 1 << 20
	h := testHub(t, Options{MaxBytes: budget})
	log := &memoryLog{}
	topic := h.RegisterDurable(testKey, noReplay(0, 2), log)
	c := &commits{wake: make(chan struct{}, 10)}
	for _, size := range []int{budget / 4 * 3, 2 * budget} {
		appendNumbers(t, topic, c, make([]uint64, size/eventBytes)...)
		log.commit(1, nil)
		<-c.wake
		h.AwaitDeliveries()
	}
}

// TestReplayGivesWayToALargePage reads an event from the log for which the topic's replay has to go.
func TestReplayGivesWayToALargePage(t *testing.T) {
	const budget = 1 << 20
	h := testHub(t, Options{MaxBytes: budget})
	log := &memoryLog{least: budget / 4 / eventBytes}
	topic := h.RegisterDurable(testKey, Policy{ReplayBytes: budget / 100 * 85}, log)
	c := &commits{wake: make(chan struct{}, 10)}
	for topic.replay.oldest(topic.next) < log.least {
		appendNumbers(t, topic, c, make([]uint64, 100)...)
		log.commit(1, nil)
		<-c.wake
		h.AwaitDeliveries()
	}
	s, _ := subscribe(t, topic, From{Earliest: true})
	if out, _ := take(s, 1); len(out) != 1 || out[0].count != int(log.least) {
		t.Errorf("took %v", out)
	}
}

// TestEmptiedQueueIsReadFromLog takes the queue of a subscription that does not move, for want of memory: it gets the
// same events again from the log, once, and so does one whose queue was full.
func TestEmptiedQueueIsReadFromLog(t *testing.T) {
	h := testHub(t, Options{})
	log := &memoryLog{}
	topic := h.RegisterDurable(testKey, noReplay(0, 2), log)
	c := &commits{wake: make(chan struct{}, 10)}
	s, wakes := subscribe(t, topic, From{})
	drain(s)
	publish := func(numbers ...uint64) {
		t.Helper()
		appendNumbers(t, topic, c, numbers...)
		log.commit(1, nil)
		<-c.wake
		h.AwaitDeliveries()
	}
	publish(1, 2)
	publish(3)
	if !topic.empty(seen{s, s.moves(s.ring.Stats())}) {
		t.Fatal("not emptied")
	}
	publish(4)
	if s.QueuedBytes() != 0 || !s.ReadsLog() {
		t.Errorf("%d bytes queued", s.QueuedBytes())
	}
	out, _ := drain(s)
	wantGot(t, out, got{0, 1, 0, 0}, got{1, 1, 0, 0}, got{2, 1, 0, 0}, got{3, 1, 0, 0})
	if s.ReadsLog() {
		t.Error("reads the log at its end")
	}
	before := *wakes
	for n := range uint64(5) { // two are queued, the third does not fit
		publish(5 + n)
	}
	if *wakes != before+1 || s.FallBacks() != 2 {
		t.Errorf("woken %d times, fell back %d times", *wakes-before, s.FallBacks())
	}
	out, _ = drain(s)
	wantGot(t, out, got{4, 1, 0, 0}, got{5, 1, 0, 0}, got{6, 1, 0, 0}, got{7, 1, 0, 0}, got{8, 1, 0, 0})
	if n := s.Dropped(); n != 0 {
		t.Errorf("%d events dropped", n)
	}
}

// stressReader is a subscription under stress, and what it expects.
type stressReader struct {
	t     *testing.T
	sub   *Subscription
	log   *memoryLog
	slow  bool
	wakes chan struct{}
	next  uint64
	gaps  uint64
	read  uint64
}

// run takes until the topic has ended. It returns at the first thing that is wrong.
func (r *stressReader) run(rng *rand.Rand) {
	for {
		for {
			ds, ended := r.sub.Take(nil, 1+rng.IntN(20*eventBytes))
			for _, d := range ds {
				r.check(d)
			}
			if r.slow && rng.IntN(3) == 0 {
				time.Sleep(time.Duration(rng.IntN(2000)) * time.Microsecond) // a socket
			}
			if ended {
				r.sub.Close()
				return
			}
			if len(ds) == 0 {
				break
			}
		}
		<-r.wakes
	}
}

func (r *stressReader) check(d Delivery) {
	if d.Reason != GapNone {
		if d.Reason != GapExpired || d.Gap == 0 || d.Next > r.log.Base() {
			r.t.Errorf("a gap of %d up to %d for reason %d, the log begins at %d", d.Gap, d.Next, d.Reason, r.log.Base())
		}
		r.next += d.Gap
		r.gaps += d.Gap
	}
	if d.Next != r.next {
		r.t.Errorf("event %d comes, want %d", d.Next, r.next)
		r.next = d.Next
	}
	if d.Frame == nil {
		return
	}
	for i, n := range numbersOf(d.Frame)[d.Skip:] {
		r.log.mu.Lock()
		want := r.log.events[r.next+uint64(i)]
		committed := r.next+uint64(i) < r.log.tail
		r.log.mu.Unlock()
		if n != want || !committed {
			r.t.Errorf("offset %d has %d, want %d; committed: %v", r.next+uint64(i), n, want, committed)
		}
	}
	r.next += uint64(d.Frame.Count() - d.Skip)
	r.read += uint64(d.Frame.Count() - d.Skip)
	d.Frame.Release()
}

// TestDurableStress appends from several goroutines to a topic whose log commits groups of random size, while
// subscriptions with small queues come at random positions and read at different speeds, memory runs short, and
// retention moves the begin of the log. Each subscription gets every event from its begin on, in order and once, unless
// retention has removed it first, and never one that is not committed.
func TestDurableStress(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	var fallBacks, gaps, reclaims uint64
	for round := range uint64(8) {
		rng := rand.New(rand.NewPCG(seed, round))
		h := checkedHub(t, Options{MaxBytes: int64(24<<10) << rng.IntN(5)})
		log := &memoryLog{}
		topic := h.RegisterDurable(testKey, Policy{
			QueueItems: 1 + rng.IntN(6), QueueBytes: 500 << rng.IntN(4), ReplayBytes: []int{-1, 2_000, 10_000, 0}[rng.IntN(4)],
		}, log)
		var publishing, reading, committing sync.WaitGroup
		stop := make(chan struct{})
		committing.Go(func() {
			r := rand.New(rand.NewPCG(seed, round+100))
			for {
				if log.commit(1+r.IntN(8), nil) == 0 {
					select {
					case <-stop:
						return
					default:
						runtime.Gosched()
					}
				}
				if r.IntN(100) == 0 {
					log.trim(log.Tail() - min(log.Tail(), uint64(r.IntN(400))))
				}
			}
		})
		var told atomic.Int64
		count := &commits{wake: make(chan struct{}, 1<<16)}
		const publishers, each = 4, 400
		for p := range publishers {
			r := rand.New(rand.NewPCG(seed, round<<8+uint64(p)))
			publishing.Go(func() {
				for i := range each {
					numbers := make([]uint64, 1+r.IntN(3))
					for k := range numbers {
						numbers[k] = uint64(p)<<32 + uint64(i)<<8 + uint64(k)
					}
					f := numbersFrame(numbers)
					if err := topic.Append(context.Background(), f, Origin{}, -1, r.IntN(2) == 0, count); err != nil {
						t.Error(err)
					}
					told.Add(1)
					f.Release()
				}
			})
		}
		var readers []*stressReader
		for i := range 12 {
			r := &stressReader{t: t, log: log, slow: i%2 == 0, wakes: make(chan struct{}, 1)}
			for r.sub == nil {
				from := From{Earliest: i%3 == 0}
				if i%3 == 1 {
					from = From{At: true, Offset: (log.Base() + log.Tail()) / 2}
				}
				var err error
				r.sub, err = topic.Subscribe(from, SubscriptionOptions{Wake: func() { r.wakes <- struct{}{} }})
				if _, ok := errors.AsType[*CursorError](err); err != nil && !ok && !errors.Is(err, ErrMemory) {
					t.Fatal(err)
				}
			}
			r.next = r.sub.Start()
			readers = append(readers, r)
			rr := rand.New(rand.NewPCG(seed, round<<16+uint64(i)))
			reading.Go(func() {
				if !r.sub.Backlog() {
					<-r.wakes
				}
				r.run(rr)
			})
			time.Sleep(time.Millisecond)
		}
		publishing.Wait()
		for range publishers * each {
			<-count.wake
		}
		// All have come to the end before the topic does, which ends what is read from the log.
		for deadline := time.Now().Add(time.Minute); ; {
			late := 0
			for _, r := range readers {
				if r.sub.topic.positionOf(r.sub) < log.Tail() {
					late++
				}
			}
			if late == 0 {
				break
			}
			if time.Now().After(deadline) {
				t.Fatalf("%d of %d subscriptions do not come to the end", late, len(readers))
			}
			time.Sleep(time.Millisecond)
		}
		close(stop)
		committing.Wait()
		h.Remove(testKey)
		reading.Wait()
		for i, r := range readers {
			if r.next != log.Tail() {
				t.Errorf("reader %d ended at %d of %d", i, r.next, log.Tail())
			}
			gaps += r.gaps
			if n := r.sub.Dropped(); n != r.gaps {
				t.Errorf("reader %d had gaps of %d, and the subscription says %d", i, r.gaps, n)
			}
		}
		fallBacks += h.Stats().FallBacks
		reclaims += h.Stats().Reclaims
		if t.Failed() {
			t.Fatal(fmt.Sprint("round ", round))
		}
	}
	t.Logf("%d times a subscription fell back to the log, memory ran short %d times, %d events expired", fallBacks, reclaims, gaps)
	if fallBacks == 0 || reclaims == 0 || gaps == 0 {
		t.Error("nothing was stressed")
	}
}

// positionOf returns up to where a subscription has been handed events, or will be from its queue.
func (t *Topic) positionOf(s *Subscription) uint64 {
	t.mu.Lock()
	defer t.mu.Unlock()
	if s.replaying.Load() {
		return s.cursor
	}
	return t.next
}

// TestDurableTopics lists topics with a log, and no other, as long as they exist.
func TestDurableTopics(t *testing.T) {
	h := testHub(t, Options{})
	memory := h.Register(Key{Tenant: "t", Stream: "memory"}, Policy{})
	durable := h.RegisterDurable(testKey, Policy{}, &memoryLog{})
	if got := h.DurableTopics(); len(got) != 1 || got[0] != durable || memory.Log() != nil {
		t.Errorf("got %d topics, want the durable one", len(got))
	}
	h.Remove(testKey)
	if got := h.DurableTopics(); len(got) != 0 {
		t.Errorf("%d topics after it was removed", len(got))
	}
}

// framesHeard notes which commits came with a frame.
type framesHeard struct{ heard chan bool }

func (c framesHeard) Committed(f *Frame, err error) { c.heard <- f != nil && err == nil }

// TestDuplicateIsNotOffered appends a frame of an origin twice. It is offered once, and both appends hear of the
// commit. What the log holds for producers is charged until the topic is removed.
func TestDuplicateIsNotOffered(t *testing.T) {
	const budget = 1 << 20
	h := testHub(t, Options{MaxBytes: budget})
	log := &memoryLog{known: map[Origin]bool{{Sequence: 1, Set: true}: true}}
	topic := h.RegisterDurable(testKey, noReplay(0, 0), log)
	if got := topic.tenant.share.Used(); got != 1000 {
		t.Errorf("%d bytes are charged for a log that holds 1000", got)
	}
	s, _ := subscribe(t, topic, From{})
	from := Origin{Sequence: 2, Set: true}
	c := framesHeard{make(chan bool, 2)}
	give := func(from Origin) error {
		f := numbersFrame([]uint64{1, 2})
		defer f.Release()
		return topic.Append(context.Background(), f, from, 0, false, c)
	}
	for range 2 {
		if err := give(from); err != nil {
			t.Fatal(err)
		}
	}
	if len(c.heard) > 0 {
		t.Error("a commit was heard of before it was")
	}
	log.commit(2, nil)
	if first, second := <-c.heard, <-c.heard; !first || second {
		t.Errorf("the commits came with a frame: %v, %v", first, second)
	}
	h.AwaitDeliveries()
	out, _ := drain(s)
	wantGot(t, out, got{0, 2, 0, 0})
	if n := h.Stats().FallBacks; n != 0 {
		t.Errorf("subscriptions read %d times from the log", n)
	}
	if got := topic.producers; got != 2000 {
		t.Errorf("%d bytes are charged for producers, want 2000", got)
	}

	// Where there is memory for a frame, there is for its producer. Otherwise one that is not known might never get in:
	// what others publish leaves as little free each time.
	share := topic.tenant.share
	most := share.Reach() - share.Used() - 999
	if err := share.Charge(most); err != nil {
		t.Fatal(err)
	}
	if err := give(Origin{Sequence: 3, Set: true}); err != nil {
		t.Errorf("without memory for another producer: %v", err)
	}
	log.commit(1, nil)
	<-c.heard
	h.AwaitDeliveries()
	if got := topic.producers; got != 3000 {
		t.Errorf("%d bytes are charged for producers, want 3000", got)
	}
	share.Release(most)

	// An append that ends after its topic was removed moves the next one on, unless it was a duplicate.
	if err := give(from); err != nil {
		t.Fatal(err)
	}
	s.Close()
	h.Remove(testKey)
	log.commit(1, nil)
	<-c.heard
	h.AwaitDeliveries()
	if got := share.Used(); got != 0 {
		t.Errorf("%d bytes are charged after the topic was removed", got)
	}
}
