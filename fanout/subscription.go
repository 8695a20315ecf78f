package fanout

import (
	"sync"
	"sync/atomic"
	"time"

	"github.com/felix-mq/felix/internal/ledger"
	"github.com/felix-mq/felix/ring"
	"github.com/felix-mq/felix/telemetry"
)

// EndReason says why a subscription ended.
type EndReason uint8

const (
	// EndClosed means that its own consumer closed it.
	EndClosed EndReason = iota
	// EndRemoved means that the topic was removed. What was queued can still be taken.
	EndRemoved
	// EndExpired means that its bearer may no longer have it. What was queued can still be taken.
	EndExpired
	// EndStalled means that it kept publishers waiting and took nothing for the hub's stall timeout.
	EndStalled
	// EndUnreadable means that the topic's log has what it needs next and cannot read it. It has to begin elsewhere.
	EndUnreadable
)

// String returns a word for logs and metrics.
func (r EndReason) String() string {
	switch r {
	case EndClosed:
		return "closed"
	case EndRemoved:
		return "removed"
	case EndExpired:
		return "expired"
	case EndStalled:
		return "stalled"
	case EndUnreadable:
		return "unreadable"
	}
	return "unknown"
}

// GapReason says why events were lost.
type GapReason uint8

const (
	// GapNone means that nothing was lost.
	GapNone GapReason = iota
	// GapQueueFull means that the ring was full and its policy dropped events.
	GapQueueFull
	// GapReclaimed means that the ring was emptied because the budget was spent and its consumer did not move.
	GapReclaimed
	// GapExpired means that the position to resume at, or the one that it had come to in the log, is no longer kept.
	GapExpired
	// GapEpoch means that the position to resume at belongs to another epoch. How much was lost nobody knows.
	GapEpoch
)

// SubscriptionOptions configure one subscription. They are copied by [Topic.Subscribe].
type SubscriptionOptions struct {
	// Wake is called when there is something to take, or the end to see, and the consumer had found nothing the last
	// time; the Take that found nothing may not have returned yet. It runs on the goroutine that published, or that
	// ended the subscription, with none of this package's locks held. It may take and write what is there, but must not
	// block: the publisher's other subscriptions come after it.
	Wake func()
	// OnEnd, if set, is called once when the subscription ends other than by its own Close, from the goroutine that
	// ended it, so that a consumer that is stuck in a write can be freed. It must not block.
	OnEnd func(EndReason)
	// Cost is how many bytes the consumer holds for as long as the subscription lives. The topic's tenant is charged.
	Cost int64
}

// Subscription is one subscriber's place in a topic. Its consumer, one goroutine at a time, calls [Subscription.Take]
// until nothing is left, and again after each Wake. If there is replay to take it starts by itself
// ([Subscription.Backlog]).
type Subscription struct {
	topic  *Topic
	ring   ring.Ring[*Frame]
	blocks bool
	wake   func()
	onEnd  func(EndReason)
	waking sync.WaitGroup // calls of wake that were decided under the turn and are still to come
	start  uint64         // sequence number of the first event it wants

	cost       int64 // charged to the tenant until the consumer has left, guarded by the topic's turn
	startsBusy bool  // it was made with replay or a gap to take

	// Guarded by the topic's turn.
	subIndex     int    // in Topic.subs, until it ends
	index        int    // in Topic.active, or -1
	laggingIndex int    // in Topic.lagging, or -1
	busy         bool   // in Topic.busy, or in the hands of the sweep
	paused       bool   // out of the active set because its queue was full
	missedFrom   uint64 // while paused: the first sequence number it was not offered
	missed       uint64 // events that it was not offered, but for those of the present pause
	endedAt      uint64 // the topic's next sequence number when it ended
	cursor       uint64 // while it reads replay: the next event to read

	ended     atomic.Bool // written under the turn
	replaying atomic.Bool // it reads replay; written under the turn
	lossy     atomic.Bool // events were refused or discarded, or missing from the start, since the consumer last looked
	reclaimed atomic.Bool // the queue was emptied since then
	cutOff    atomic.Bool // its consumer was told that it will not be waited for
	left      atomic.Bool // its consumer takes nothing more
	pages     atomic.Uint64
	expired   atomic.Uint64 // events of a durable topic that retention removed before it came to them
	fallBacks atomic.Uint64 // times that it had to read on from the log

	// The consumer's own.
	next   uint64    // sequence number of the next event it expects
	reason GapReason // of a gap that was there from the start, or that retention has made
	reader LogReader // while it reads the log, or nil

	// The sweep's own, but for stuckTicks, which those read who look for memory.
	lastMoves    uint64       // moves that the last sweep saw
	stuckTicks   atomic.Int32 // sweeps since then that found something held and no move
	stalledTicks int32        // of these, sweeps that found publishers waiting for it
	mark         uint64       // position after what was queued
	markedAt     time.Duration
	delay        time.Duration // what was queued at the mark before needed so long to leave
}

func newSubscription(t *Topic, o SubscriptionOptions) *Subscription {
	s := &Subscription{
		topic: t, wake: o.Wake, onEnd: o.OnEnd,
		blocks: t.log == nil && t.pol.Overflow == ring.Block,
	}
	s.ring.Init(ring.Options[*Frame]{
		MaxBytes: t.pol.QueueBytes,
		MaxItems: t.pol.QueueItems,
		Overflow: t.overflow(),
		Discard:  (*Frame).Release,
		OnSpace:  func() { t.spaceFreed(s) },
		Charge:   t.tenant.chargeSlots,
	})
	return s
}

// Delivery is one frame to be written to one subscriber, and what was lost in front of it.
type Delivery struct {
	Frame *Frame // owned by the taker, who releases it after the write; nil if there is only a loss to tell
	Skip  int    // events at its beginning that are not for this subscriber: before its start position, or had before
	// Reason is GapNone unless events are missing between the previous delivery and this one: Gap events, or an unknown
	// number if the reason is GapEpoch.
	Reason GapReason
	Gap    uint64
	Next   uint64 // sequence number of the first event of the delivery, or of the next one to come
}

// Backlog reports whether the subscription was made with replay or a gap to take. If so its consumer starts by itself:
// no Wake announces them, nor anything else before the consumer has found nothing to take.
func (s *Subscription) Backlog() bool { return s.startsBusy }

// Take appends what there is to out, as much as fits in maxBytes but at least one frame if there is one, replay
// first. When it adds nothing, either ended is true and nothing will ever come, or the consumer will be woken when
// there is more: it must not call Take again before that. Wake may then be called before Take returns: if it starts
// another goroutine, the caller must leave alone what it shares with that one, out's array included.
//
// Take never waits for events, but it may wait for the topic's turn.
func (s *Subscription) Take(out []Delivery, maxBytes int) (_ []Delivery, ended bool) {
	if s.replaying.Load() || s.lossy.Load() {
		before := len(out)
		if out = s.topic.advance(s, out, maxBytes); len(out) > before {
			return out, false
		}
	}
	list := taken.Get().(*[]*Frame)
	frames, ended := s.ring.Take((*list)[:0], maxBytes)
	if len(frames) == 0 && s.replaying.Load() && !ended && s.topic.log != nil && s.ring.Unpark() {
		// It has become one that reads the log in between. If the one who did that had seen it parked, another consumer
		// would be woken.
		taken.Put(list)
		return s.Take(out, maxBytes)
	}
	for _, f := range frames { // if there are none, s may belong to another consumer from here on
		if telemetry.Enabled { // f.offered has no size, but looking at it would cost a check of f
			telemetry.Observe(telemetry.StageDeliverQueueWait, f.offered)
		}
		out = append(out, s.delivery(f))
	}
	clear(frames)
	*list = frames
	taken.Put(list)
	return out, ended
}

// taken has lists for what is taken at a time.
var taken = sync.Pool{New: func() any { return new([]*Frame) }}

// fits reports whether all of the list fits in the subscription's queue, which is empty.
func (s *Subscription) fits(list []kept) bool {
	maxBytes, maxItems := s.ring.Bounds()
	if len(list) > maxItems {
		return false
	}
	for _, k := range list {
		if maxBytes -= k.frame.cost(); maxBytes < 0 {
			return false
		}
	}
	return true
}

func (s *Subscription) delivery(f *Frame) Delivery {
	d := Delivery{Frame: f}
	// It has had the begin of a frame if it has read that from the log, whose pages end anywhere.
	if from := max(s.start, s.next); f.first < from {
		d.Skip = int(from - f.first)
	}
	d.Next = f.first + uint64(d.Skip)
	s.gap(&d)
	s.next = f.first + uint64(f.count)
	return d
}

// gap notes what is missing in front of event d.Next, and expects that one.
func (s *Subscription) gap(d *Delivery) {
	if d.Next != s.next || s.reason != GapNone {
		s.explain(d)
	}
}

// explain notes why something is missing in front of event d.Next, if it is.
func (s *Subscription) explain(d *Delivery) {
	d.Gap = d.Next - s.next
	switch {
	case d.Gap == 0 && s.reason == GapExpired:
		s.reason = GapNone // replay had it still
	case s.reason != GapNone:
		d.Reason, s.reason = s.reason, GapNone
		if d.Reason == GapExpired && s.topic.log != nil {
			s.expired.Add(d.Gap)
			s.topic.hub.expired.Add(d.Gap)
		}
	case s.reclaimed.Swap(false):
		d.Reason = GapReclaimed
	default:
		d.Reason = GapQueueFull
	}
	s.next = d.Next
}

// ReadsLog reports whether the next Take may read the topic's log, and so wait for the disk.
func (s *Subscription) ReadsLog() bool { return s.topic.log != nil && s.replaying.Load() }

// FallBacks returns how often the subscription had to read on from the topic's log because its queue was full or there
// was no memory for it.
func (s *Subscription) FallBacks() uint64 { return s.fallBacks.Load() }

// Start returns the sequence number of the first event that can come. It never changes.
func (s *Subscription) Start() uint64 { return s.start }

// Next returns the sequence number of the next event that the consumer expects. Only the consumer may call it.
func (s *Subscription) Next() uint64 { return s.next }

// Scratch returns what a consumer charges for memory that it needs to write what it has taken: a bounded part of what
// the topic's tenant may have. It must do without if there is none.
func (s *Subscription) Scratch() *ledger.Account { return s.topic.tenant.scratch }

// Lost tells the hub of events that the consumer has taken and cannot deliver, because there is no memory for the form
// that its peer needs.
func (s *Subscription) Lost(events int) {
	s.topic.hub.reclaimed.Add(uint64(events))
	s.topic.tenant.pressed.Store(true)
}

// Dropped returns the number of events that this subscription has lost so far, exactly. Of a durable topic these are
// the ones that retention removed before it came to them, as far as a delivery has told so. Of others they are those
// that its queue dropped, those that replay no longer had when it came to them, and those that passed while it was
// paused.
func (s *Subscription) Dropped() uint64 {
	s.topic.mu.Lock()
	defer s.topic.mu.Unlock()
	if s.topic.log != nil {
		return s.expired.Load()
	}
	n := s.ring.Stats().Dropped + s.missed
	if s.paused {
		n += s.topic.next - s.missedFrom
	}
	if s.replaying.Load() {
		end := s.topic.next
		if s.ended.Load() {
			end = s.endedAt
		}
		if oldest := min(s.topic.replay.oldest(end), end); s.cursor < oldest {
			n += oldest - s.cursor
		}
	}
	return n
}

// QueuedBytes returns what the queue holds at this moment.
func (s *Subscription) QueuedBytes() int { return s.ring.Stats().Bytes }

// End ends the subscription from outside. What is queued can still be taken, for as long as the consumer moves.
func (s *Subscription) End(reason EndReason) { s.end(reason) }

// end reports false if the subscription has ended already.
func (s *Subscription) end(reason EndReason) bool {
	wake, ok := s.topic.end(s)
	if wake {
		s.wake()
		s.waking.Done()
	}
	if !ok {
		return false
	}
	if reason == EndStalled {
		s.cutOff.Store(true)
		s.topic.abandon(s)
	}
	if s.onEnd != nil && reason != EndClosed {
		s.onEnd(reason)
	}
	return true
}

// cut ends the subscription with [EndStalled], even if it has ended for another reason, and reports whether it was the
// first to do so: its consumer is stuck and will not be waited for.
func (s *Subscription) cut() bool {
	if s.end(EndStalled) {
		return true
	}
	if s.left.Load() || !s.cutOff.CompareAndSwap(false, true) {
		return false
	}
	s.topic.abandon(s)
	if s.onEnd != nil {
		s.onEnd(EndStalled)
	}
	return true
}

// cutIf is cut for a subscription that has not moved since the sweep saw it.
func (s *Subscription) cutIf(moves uint64) bool {
	if s.moves(s.ring.Stats()) != moves || !s.cut() {
		return false
	}
	s.topic.hub.stalled.Add(1)
	return true
}

// Quiesce waits for calls of Wake that were decided before the subscription ended and are still to come or under way.
// It is called after End, by somebody who wants to know that no other consumer will be started.
func (s *Subscription) Quiesce() {
	s.topic.awaitTurn() // what was decided under the turn is counted
	s.waking.Wait()
}

// Close ends the subscription on behalf of its consumer and releases everything queued. The consumer must not take
// afterwards. It may be called twice.
func (s *Subscription) Close() {
	if wake, _ := s.topic.end(s); wake {
		s.waking.Done() // the one who would be woken is the one who calls
	}
	s.left.Store(true)
	s.ring.Discard()
	s.topic.leave(s)
}

// moves counts the calls of Take, so that an observer can tell a consumer that moves from one that does not.
func (s *Subscription) moves(st ring.Stats) uint64 { return s.pages.Load() + st.Takes }

// isIdle reports whether there is nothing for the sweep to look at: the consumer has parked, or left.
func (s *Subscription) isIdle() bool { return s.left.Load() || s.ring.Stats().Parked }

// sweep notes whether the consumer has moved since the last sweep, and does what follows from that. wanted is the cost
// of a frame that waits for space in the topic's queues, if one does; spent says that publishers wait for memory. It
// takes back the memory of a queue that was long and has been idle since the last sweep. What is queued is added to
// totals. It reports whether there is more to look at.
func (s *Subscription) sweep(wanted int, spent bool, totals *sweepTotals) bool {
	if s.left.Load() {
		return false
	}
	st := s.ring.Stats()
	totals.bytes += st.Bytes
	age := s.age(st, totals.now)
	totals.oldest = max(totals.oldest, age)
	moves := s.moves(st)
	moved := moves != s.lastMoves
	s.lastMoves = moves
	if moved || st.Parked {
		s.stuckTicks.Store(0)
		s.stalledTicks = 0
		if moved && age >= slowAfter {
			s.canGive(&s.topic.tenant.slow, moves)
		}
		return !st.Parked || st.Grown && (moved || !s.ring.Trim())
	}
	stuck := s.stuckTicks.Add(1)
	if s.blocks && (spent || wanted > 0 && (s.replaying.Load() || !s.ring.Fits(wanted))) {
		s.stalledTicks++
	}
	switch {
	case s.ended.Load() && stuck >= int32(endTimeout/sweepEvery), s.stalledTicks >= s.topic.hub.stallTicks:
		if s.cut() {
			s.topic.hub.stalled.Add(1)
		}
	case stuck >= stuckAfter:
		s.canGive(&s.topic.tenant.stuck, moves)
	}
	return true
}

// canGive puts the subscription on a list of those whose queue may be emptied.
func (s *Subscription) canGive(list *[]seen, moves uint64) {
	if s.blocks && !s.ended.Load() {
		return
	}
	n := s.topic.tenant
	n.mu.Lock()
	defer n.mu.Unlock()
	*list = append(*list, seen{s, moves})
}

// age returns for how long the oldest frame in the ring has waited. Nobody writes down when a frame comes; instead, a
// sweep marks the end of the queue, and the next one that finds the mark gone sets another. The oldest frame is at
// least as old as the mark that is still there, and about as old as the one before was when it went.
func (s *Subscription) age(st ring.Stats, now time.Duration) time.Duration {
	switch {
	case st.Items == 0:
		s.mark, s.delay = 0, 0
		return 0
	case s.mark == 0: // what is queued now came since the last sweep
		s.mark, s.markedAt = st.Left+uint64(st.Items), now
	case st.Left >= s.mark:
		s.delay = now - s.markedAt
		s.mark, s.markedAt = st.Left+uint64(st.Items), now
	}
	return max(s.delay, now-s.markedAt)
}
