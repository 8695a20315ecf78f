package fanout

import (
	"context"
	"errors"
	"math"
	"sync"
	"time"

	"github.com/felix-mq/felix/internal/ledger"
	"github.com/felix-mq/felix/ring"
	"github.com/felix-mq/felix/telemetry"
)

// A topic with a [Log] is durable. A publish to it is an append: the frame gets its place in the log, and is offered to
// subscriptions when the log says that it is committed. What is in the log and not committed is not there for anybody.
//
//	Append ─▶ turn ─▶ Log.Append ─▶ (committed) ─▶ turn ─▶ sequence numbers, replay, rings ─▶ Commit.Committed
//
// The topic's next sequence number is that after the last event that was offered. Everything before it can be read from
// the log, unless retention has removed it, and the last of it from replay, which spares the disk.
//
// A subscription of a durable topic loses nothing for its slowness, and no publisher waits for it: when its queue is
// full, or is emptied because memory is short, it reads on from the log, as one does that starts in the past. So the
// policy of overflow means nothing for a durable topic.

// Log keeps the events of a durable topic. Its methods may be called from any goroutine, and those but Read return at
// once, whatever the disk does.
type Log interface {
	// Append appends the events of a frame, which it reads only until it returns, and returns the offset of the first.
	// done is called once, when the events are as safe as they have to be, or with an error if that is not known. Calls
	// come in the order of offsets, and done returns at once. If Append itself fails, nothing was appended. Nor was it
	// if it reports a duplicate: the log has the frame of that origin, and done is called when that is safe.
	// After an Append that has not failed, Commit is called.
	Append(f *Frame, from Origin, done func(error)) (first uint64, duplicate bool, err error)
	// Commit commits what was appended. Here says that the caller's goroutine may do it. Then that may be done when
	// Commit returns.
	Commit(here bool)
	// Held returns the bytes of memory that the log holds for what it knows of producers.
	Held() int64
	// Cost returns the bytes of memory that an append of f holds until it is done.
	Cost(f *Frame) int64
	// Base returns the oldest offset that can be read, and Tail the one after the last that is committed.
	Base() uint64
	Tail() uint64
	// Epoch returns the number that goes with the offsets: it differs from that of any other log.
	Epoch() uint64
	// Read returns a reader that begins at an offset, from Base to Tail. It fails with [ErrTrimmed] below Base.
	Read(from uint64) (LogReader, error)
}

// LogReader reads events of a log in order. One goroutine at a time may use it, and each call may wait for the disk.
type LogReader interface {
	// Next returns a frame with the next events before the offset end, of about limit bytes and at least one event, and
	// with a reference for the caller. The frame has its sequence number. Memory is charged to m before it is taken; if
	// that fails, so does Next, and the same events come with the next call. What is charged when Next returns is for
	// the frame alone. Next fails with [ErrTrimmed] if the log does not have the next event any more.
	Next(limit int, end uint64, m Memory) (*Frame, error)
	// Offset returns the offset of the event that Next returns first.
	Offset() uint64
}

// Memory is what a reader charges for the memory that it takes.
type Memory interface {
	// Charge charges for bytes that are going to be taken, or says why they must not be.
	Charge(bytes int) error
	// Release gives back what was charged for bytes that are not used any more.
	Release(bytes int)
}

// Origin is who publishes a frame, and which of its frames it is, so that the log knows one that comes again. The zero
// value is none.
type Origin struct {
	Producer [16]byte
	Sequence uint64
	Repeated bool // it may have come before
	Set      bool
}

// ErrTrimmed means that a log does not have the events any more that were asked for.
var ErrTrimmed = errors.New("fanout: removed by retention")

// errHasLog is what Publish says to a durable topic.
var errHasLog = errors.New("fanout: the topic is durable: use Append")

// Commit hears how an append ended.
type Commit interface {
	// Committed is called once, when the events of the frame have been offered to all subscriptions, or with the error
	// for which nobody knows whether they are in the log; they were not offered then. It must not block. The frame is
	// good until it returns. It is nil if it was a duplicate of one that is committed, or has failed.
	Committed(f *Frame, err error)
}

// appended is a frame in the log that may not be committed yet.
type appended struct {
	topic  *Topic
	frame  *Frame // with a reference
	commit Commit
	held   int64 // charged to the tenant for what the log holds
	again  bool  // the log has it from before
	err    error // how it ended
	done   func(error)
}

var appends sync.Pool

func newAppended(t *Topic, k *Frame, held int64, c Commit) *appended {
	a, _ := appends.Get().(*appended)
	if a == nil {
		a = new(appended)
		a.done = a.ended
	}
	a.topic, a.frame, a.held, a.commit = t, k, held, c
	return a
}

// free forgets an append, with the reference to its frame and the charge.
func (a *appended) free() {
	a.topic.tenant.share.Release(a.held)
	a.frame.Release()
	a.topic, a.frame, a.commit, a.again, a.err = nil, nil, nil, false, nil
	appends.Put(a)
}

// Log returns the topic's log, or nil if it has none: it is published to by Append if it has one, and otherwise by
// Publish.
func (t *Topic) Log() Log { return t.log }

// Append appends the events of f to the topic's log. When they are committed they are offered to all subscriptions, and
// after that c hears of it; see [Commit]. If it returns an error, nothing was appended, and c hears nothing.
//
// Here says that the caller has nothing else to do. Its goroutine then commits and offers the events itself, where that
// is quick, so c may hear of it before Append returns. Otherwise Append returns before that.
//
// The caller keeps its reference to f. Append waits when there is no memory, as [Topic.Publish] does, with the same
// errors. Those of the log come as they are. Of an origin the log appends each frame once; see [Log].
func (t *Topic) Append(ctx context.Context, f *Frame, from Origin, wait time.Duration, here bool, c Commit) error {
	if err := t.append(ctx, f, from, wait, c); err != nil {
		return err
	}
	// Who takes part in committing offers what comes of it, unless somebody does already.
	delivers := here && t.claimDelivery()
	t.log.Commit(here)
	if delivers {
		t.deliver(1)
	}
	return nil
}

func (t *Topic) append(ctx context.Context, f *Frame, from Origin, wait time.Duration, c Commit) error {
	start := telemetry.Start()
	t.mu.Lock()
	defer t.mu.Unlock()
	if from.Set {
		defer t.settleProducersLocked()
	}
	k, err := t.admitFirstLocked(ctx, f, wait)
	if err != nil {
		return err
	}
	telemetry.Observe(telemetry.StagePublishTurn, start)
	a := newAppended(t, k, t.log.Cost(f), c)
	first, again, err := t.log.Append(k, from, a.done)
	if err != nil {
		a.free()
		return err
	}
	if a.again = again; !again {
		k.number(first) // before anybody takes the turn to offer it
	}
	return nil
}

// settleProducersLocked charges for what the log holds for producers, no more and no less. A topic that is removed
// holds nothing. A publish that had memory for its frame has it for its producer too, which is little: the next one
// has memory reclaimed for both.
func (t *Topic) settleProducersLocked() {
	if t.closed {
		return
	}
	held := t.log.Held()
	switch more := held - t.producers; {
	case more > 0:
		t.tenant.share.Force(more)
	case more < 0:
		t.tenant.share.Release(-more)
	}
	t.producers = held
}

// admitDurableLocked is admitLocked for a durable topic. What the log holds until it has committed the frame is charged
// too. A frame of which the tenant cannot hold both forms at once passes if there is memory for it alone.
func (t *Topic) admitDurableLocked(f *Frame) (*Frame, error) {
	cost, share := t.log.Cost(f), t.tenant.share
	var k *Frame
	err := share.Charge(cost)
	if err == nil {
		if k, err = t.packer.keep(f, t.replay.bytes); err == nil {
			return k, nil
		}
		share.Release(cost)
	}
	if cost+int64(t.packer.size(f)) <= share.Reach() {
		return nil, err
	}
	if k, err = t.packer.keep(f, t.replay.bytes); err == nil {
		share.Force(cost)
	}
	return k, err
}

// ended is called by the log, in the order of offsets, on the goroutine that commits for all logs.
func (a *appended) ended(err error) {
	t := a.topic
	a.err = err
	t.committing.Lock()
	t.committed = append(t.committed, a)
	t.committing.Unlock()
	if t.claimDelivery() {
		go t.deliver(math.MaxInt)
	}
}

// claimDelivery reports whether the caller has to call deliver, which nobody else does then.
func (t *Topic) claimDelivery() bool {
	t.committing.Lock()
	defer t.committing.Unlock()
	if t.delivering {
		return false
	}
	t.delivering = true
	t.hub.deliveries.Add(1)
	return true
}

// deliverStretch is how many frames are offered under one turn.
const deliverStretch = 64

// deliver offers what is committed, until there is no more. After a number of lists it leaves the rest to another
// goroutine.
func (t *Topic) deliver(lists int) {
	var list, spare []*appended
	for ; ; lists-- {
		t.committing.Lock()
		if len(t.committed) == 0 {
			t.delivering = false
			t.committed = spare[:0]
			t.committing.Unlock()
			t.hub.deliveries.Done()
			return
		}
		if lists == 0 {
			t.committing.Unlock()
			go t.deliver(math.MaxInt)
			return
		}
		list, t.committed = t.committed, spare[:0]
		t.committing.Unlock()
		for rest := list; len(rest) > 0; {
			n := min(len(rest), deliverStretch)
			t.offerCommitted(rest[:n])
			rest = rest[n:]
		}
		clear(list)
		spare = list
	}
}

func (t *Topic) offerCommitted(list []*appended) {
	var woken *[]*Subscription
	t.mu.Lock()
	closed := t.closed
	for _, a := range list {
		if a.err == nil && !closed && !a.again {
			if a.frame.first != t.next {
				t.skipLocked(a.frame.first)
			}
			_, woken = t.offerLocked(a.frame, woken)
		}
	}
	t.mu.Unlock()
	wakeAll(woken)
	for _, a := range list {
		if a.err == nil && closed && !a.again {
			t.hub.skipTo(t, a.frame.end())
		}
		f := a.frame
		if a.again {
			f = nil
		}
		a.commit.Committed(f, a.err)
		a.free()
	}
}

// skipTo tells the topic that has the place of a removed one of events that the removed one has appended. They come
// before all that it appends itself.
func (h *Hub) skipTo(removed *Topic, next uint64) {
	h.mu.RLock()
	t := h.topics[removed.key]
	h.mu.RUnlock()
	if t == nil || t.log == nil || t.epoch != removed.epoch {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if next > t.next && !t.closed {
		t.skipLocked(next)
	}
}

// skipLocked goes on at a later sequence number. What comes before it is in the log: it was appended to a topic of the
// same name that has been removed. All subscriptions read it there.
func (t *Topic) skipLocked(next uint64) {
	t.trimLocked(0)
	for len(t.active) > 0 {
		s := t.active[0]
		if t.fallBackLocked(s, t.next) {
			s.waking.Go(s.wake) // seldom enough
		}
	}
	t.next = next
}

// fallBackLocked makes a subscription read on from the log, at an event that comes after what is queued. It reports
// whether its consumer has to be woken, which has to be counted in s.waking then.
func (t *Topic) fallBackLocked(s *Subscription, cursor uint64) (wake bool) {
	if s.index >= 0 {
		t.detachLocked(s)
	}
	if !s.replaying.Load() {
		t.readers++
	}
	s.cursor = cursor
	s.fallBacks.Add(1)
	t.hub.fallBacks.Add(1)
	s.replaying.Store(true) // before the consumer is unparked: see Take
	t.busyLocked(s)
	return s.ring.Unpark()
}

// oldestLocked returns the first sequence number that can be read.
func (t *Topic) oldestLocked() uint64 {
	if t.log != nil {
		return min(t.log.Base(), t.next)
	}
	return t.replay.oldest(t.next)
}

// needsLogLocked reports whether the next event that a subscription reads is in the log alone.
func (t *Topic) needsLogLocked(s *Subscription) bool {
	return t.log != nil && s.replaying.Load() && s.cursor < t.replay.oldest(t.next) && s.ring.Stats().Items == 0
}

// readRetry is when a page is tried again for which there was no memory.
const readRetry = sweepEvery

// readLog appends a page of the log, for a subscription whose next event is in the log alone. It may wait for the disk
// and for memory. Without the turn: only the consumer moves the cursor of a subscription that reads and has nothing
// queued. It reports false if there is nothing more to read.
func (t *Topic) readLog(s *Subscription, out []Delivery, maxBytes int, cursor, end uint64) ([]Delivery, bool) {
	f, wanted, err := s.readPage(cursor, end, maxBytes)
	for memoryError(err) {
		s.pages.Add(1) // it is not stuck
		t.tenant.pressed.Store(true)
		if t.hub.reclaim(t.tenant, wanted, err) && !s.ended.Load() {
			if f, _, err = s.readPage(cursor, end, maxBytes); !memoryError(err) {
				break
			} // others were faster
		}
		retry := time.NewTimer(readRetry)
		select {
		case <-retry.C:
		case <-t.gone:
			retry.Stop()
		}
		if s.ended.Load() {
			return out, false
		}
		f, wanted, err = s.readPage(cursor, end, maxBytes)
	}
	if err != nil && !errors.Is(err, ErrTrimmed) {
		t.hub.unreadable.Add(1)
		s.end(EndUnreadable)
		return out, false
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	s.pages.Add(1)
	if f == nil { // retention was faster
		if s.cursor = max(s.cursor, t.oldestLocked()); s.cursor > s.next {
			s.reason = GapExpired
			s.lossy.Store(true)
		}
		return out, true
	}
	s.cursor = f.end()
	if s.cursor <= s.next { // the begin of a frame that it has had
		f.Release()
		return out, true
	}
	return append(out, s.delivery(f)), true
}

// page is the [Memory] of a page of the log.
type page struct {
	share   *ledger.Share
	charged int64
	wanted  int64 // with what could not be charged
}

// Charge implements [Memory].
func (p *page) Charge(bytes int) error {
	p.wanted = p.charged + int64(bytes)
	err := p.share.Charge(int64(bytes))
	if err != nil && p.wanted > p.share.Reach() {
		p.share.Force(int64(bytes)) // a record that is larger than all that there may be has to pass at some time
		err = nil
	}
	if err == nil {
		p.charged = p.wanted
	}
	return err
}

// Release implements [Memory].
func (p *page) Release(bytes int) {
	p.share.Release(int64(bytes))
	p.charged -= int64(bytes)
}

// readPage returns the next frame of the log, or [ErrTrimmed], and what is wanted for it, in bytes, also if there is no
// memory.
func (s *Subscription) readPage(cursor, end uint64, maxBytes int) (f *Frame, wanted int64, err error) {
	if s.reader == nil || s.reader.Offset() != cursor {
		if s.reader, err = s.topic.log.Read(cursor); err != nil {
			return nil, 0, err
		}
	}
	p := page{share: s.topic.tenant.share}
	if err = p.Charge(frameOverhead); err == nil {
		f, err = s.reader.Next(maxBytes, end, &p)
	}
	if err == nil && f == nil {
		err = errors.New("fanout: the log ends too early")
	}
	if err != nil {
		p.share.Release(p.charged)
		return nil, p.wanted, err
	}
	f.owner, f.charge = p.share, p.charged
	return f, p.wanted, nil
}

// overflow returns the policy of the queues. Of a durable topic nothing is dropped, and nobody waits.
func (t *Topic) overflow() ring.Overflow {
	if t.log != nil {
		return ring.Block
	}
	return t.pol.Overflow
}
