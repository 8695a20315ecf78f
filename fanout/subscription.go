package fanout

import (
	"sync"
	"sync/atomic"
	"time"

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
	// GapExpired means that the position to resume at is no longer kept.
	GapExpired
	// GapEpoch means that the position to resume at belongs to another epoch. How much was lost nobody knows.
	GapEpoch
)

// SubscriptionOptions configure one subscription. They are copied by [Topic.Subscribe].
type SubscriptionOptions struct {
	// Wake is called when there is something to take, or the end to see, and the consumer had found nothing the last
	// time; the Take that found nothing may not have returned yet. It runs on the goroutine that published, or that ended
	// the subscription, with none of this package's locks held. It may take and write what is there, but must not block:
	// the publisher's other subscriptions come after it.
	Wake func()
	// OnEnd, if set, is called once when the subscription ends other than by its own Close, from the goroutine that
	// ended it, so that a consumer that is stuck in a write can be freed. It must not block.
	OnEnd func(EndReason)
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
	waking sync.WaitGroup // calls of wake that a publish has decided and not made yet
	start  uint64         // sequence number of the first event it wants
	behind bool           // it was made with a backlog

	// Guarded by the topic's turn.
	index      int    // in Topic.active, or -1
	missedFrom uint64 // while out of the active set: the first sequence number it was not offered
	missed     uint64 // events it was not offered in earlier absences
	ended      bool

	// Replay, to be taken before the ring. replaying says that there is some, so that a consumer which has none left
	// takes no lock.
	lossy        atomic.Bool // events were refused or discarded, or missing from the start, since the consumer last looked
	reclaimed    atomic.Bool // the ring was emptied since then
	replaying    atomic.Bool
	backlogMu    sync.Mutex
	backlog      []*Frame
	backlogTakes atomic.Uint64

	// The consumer's own.
	next   uint64    // sequence number of the next event it expects
	reason GapReason // of a gap that was there from the start

	// The sweep's own.
	lastMoves    uint64 // moves that the last sweep saw
	settledTo    uint64 // position in the ring up to which frames are settled
	stuckTicks   int    // sweeps since then that found something queued and no move
	stalledTicks int    // of these, sweeps that found publishers waiting for it
	mark         uint64 // position behind what was queued
	markedAt     time.Duration
	delay        time.Duration // what was queued at the mark before needed so long to leave
}

// stuckSubscription is one whose consumer had not moved when the sweep looked: a later move is a reprieve.
type stuckSubscription struct {
	sub   *Subscription
	moves uint64
}

func newSubscription(t *Topic, o SubscriptionOptions) *Subscription {
	s := &Subscription{
		topic: t, wake: o.Wake, onEnd: o.OnEnd,
		blocks: t.pol.Overflow == ring.Block,
	}
	s.ring.Init(ring.Options[*Frame]{
		MaxBytes: t.pol.QueueBytes,
		MaxItems: t.pol.QueueItems,
		Overflow: t.pol.Overflow,
		Discard:  (*Frame).Release,
		OnRoom:   func() { t.room(s) },
	})
	return s
}

// Delivery is one frame to be written to one subscriber, and what was lost in front of it.
type Delivery struct {
	Frame *Frame // owned by the taker, who releases it after the write; nil if there is only a loss to tell
	Skip  int    // events at its beginning that are not for this subscriber: before its start position
	// Reason is GapNone unless events are missing between the previous delivery and this one: Gap events, or an unknown
	// number if the reason is GapEpoch.
	Reason GapReason
	Gap    uint64
	Next   uint64 // sequence number of the first event of the delivery, or of the next one to come
}

// Backlog reports whether the subscription was made with replay or a gap to take. If so its consumer starts by itself: no
// Wake announces them, nor anything else before the consumer has found nothing to take.
func (s *Subscription) Backlog() bool { return s.behind }

// Take appends what is queued to out, as much as fits in maxBytes but at least one frame if there is one, replay
// first. When it adds nothing, either ended is true and nothing will ever come, or the consumer will be woken when
// there is more: it must not call Take again before that. Wake may then be called before Take returns: if it starts
// another goroutine, the caller must leave alone what it shares with that one, out's array included.
//
// Take never waits for events, but it may wait for the topic's turn.
func (s *Subscription) Take(out []Delivery, maxBytes int) (_ []Delivery, ended bool) {
	if s.replaying.Load() {
		before := len(out)
		if out = s.takeBacklog(out, maxBytes); len(out) > before {
			return out, false
		}
	}
	if s.lossy.Load() {
		if d := s.topic.trailing(s); d.Reason != GapNone {
			return append(out, d), false
		}
	}
	list := taken.Get().(*[]*Frame)
	frames, ended := s.ring.Take((*list)[:0], maxBytes)
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

func (s *Subscription) takeBacklog(out []Delivery, maxBytes int) []Delivery {
	s.backlogMu.Lock()
	defer s.backlogMu.Unlock()
	s.backlogTakes.Add(1)
	for i, f := range s.backlog {
		if i > 0 && f.cost() > maxBytes {
			s.backlog = s.backlog[i:]
			return out
		}
		maxBytes -= f.cost()
		s.backlog[i] = nil
		out = append(out, s.delivery(f))
	}
	s.backlog = nil
	s.replaying.Store(false)
	return out
}

// setBacklog is for Subscribe.
func (s *Subscription) setBacklog(frames []*Frame) {
	s.backlog = frames
	s.replaying.Store(true)
	s.startBusy()
}

// startBusy is for a subscription whose consumer has something to do before anything is published.
func (s *Subscription) startBusy() {
	s.behind = true
	s.ring.Unpark() // or a second consumer would be woken while the first one is busy
}

// dropBacklog gives up what is left of the backlog and returns the number of events in it.
func (s *Subscription) dropBacklog() uint64 {
	s.backlogMu.Lock()
	defer s.backlogMu.Unlock()
	n := uint64(0)
	for _, f := range s.backlog {
		n += f.first + uint64(f.count) - max(f.first, s.start)
		f.Release()
	}
	s.backlog = nil
	s.replaying.Store(false)
	return n
}

func (s *Subscription) delivery(f *Frame) Delivery {
	d := Delivery{Frame: f}
	if f.first < s.start {
		d.Skip = int(s.start - f.first)
	}
	d.Next = f.first + uint64(d.Skip)
	s.gap(&d)
	s.next = f.first + uint64(f.count)
	return d
}

// gap notes what is missing in front of event d.Next, and expects that one.
func (s *Subscription) gap(d *Delivery) {
	d.Gap = d.Next - s.next
	switch {
	case s.reason != GapNone:
		d.Reason, s.reason = s.reason, GapNone
	case d.Gap == 0:
	case s.reclaimed.Swap(false):
		d.Reason = GapReclaimed
	default:
		d.Reason = GapQueueFull
	}
	s.next = d.Next
}

// Start returns the sequence number of the first event that can come. It never changes.
func (s *Subscription) Start() uint64 { return s.start }

// Next returns the sequence number of the next event that the consumer expects. Only the consumer may call it.
func (s *Subscription) Next() uint64 { return s.next }

// Dropped returns the number of events that this subscription has lost so far, exactly: those its ring dropped, those
// of its backlog that were given up, those that passed while it was out of the active set, and those it was still out
// for when it ended.
func (s *Subscription) Dropped() uint64 {
	s.topic.mu.Lock()
	defer s.topic.mu.Unlock()
	return s.droppedLocked()
}

func (s *Subscription) droppedLocked() uint64 {
	n := s.ring.Stats().Dropped + s.missed
	if s.index < 0 && !s.ended {
		n += s.topic.next - s.missedFrom
	}
	return n
}

// QueuedBytes returns what the ring holds at this moment.
func (s *Subscription) QueuedBytes() int { return s.ring.Stats().Bytes }

// End ends the subscription from outside. What is queued can still be taken.
func (s *Subscription) End(reason EndReason) { s.end(reason) }

// end reports false if the subscription has ended already.
func (s *Subscription) end(reason EndReason) bool {
	if !s.topic.end(s) {
		return false
	}
	if s.ring.Close() {
		s.wake()
	}
	if s.onEnd != nil && reason != EndClosed {
		s.onEnd(reason)
	}
	return true
}

// Quiesce waits for calls of Wake that were decided before the subscription ended and are still to come or under way.
// It is called after End, by somebody who wants to know that no other consumer will be started.
func (s *Subscription) Quiesce() { s.waking.Wait() }

// Close ends the subscription on behalf of its consumer and releases everything queued. The consumer must not take
// afterwards. It may be called twice.
func (s *Subscription) Close() {
	s.topic.end(s)
	s.ring.Close()
	s.ring.Discard()
	s.dropBacklog()
}

// moves counts the calls of Take, so that an observer can tell a consumer that moves from one that does not.
func (s *Subscription) moves(st ring.Stats) uint64 { return s.backlogTakes.Load() + st.Takes }

// sweep notes whether the consumer has moved since the last sweep and settles the frames that stay queued behind a
// stuck one. wanted is the cost of a frame that waits for room in the topic's rings, if one does; spent says that
// publishers wait for the budget. It takes back the memory of a ring that was long and has been idle since the last
// sweep. What is queued is added to totals. It reports whether there is more to look at.
func (s *Subscription) sweep(wanted int, spent bool, totals *sweepTotals) bool {
	st := s.ring.Stats()
	totals.bytes += st.Bytes
	totals.oldest = max(totals.oldest, s.age(st, totals.now))
	moves, queued := s.moves(st), st.Items > 0 || s.replaying.Load()
	if !queued || moves != s.lastMoves {
		idle := moves == s.lastMoves && s.ring.Trim()
		s.lastMoves, s.stuckTicks, s.stalledTicks = moves, 0, 0
		return queued || st.Grown && !idle
	}
	s.stuckTicks++
	if s.blocks && (spent || (wanted > 0 && !s.ring.Fits(wanted))) {
		s.stalledTicks++
	}
	if s.stuckTicks >= stuckAfter {
		b := s.topic.hub.budget
		s.settledTo = s.ring.Replace(s.settledTo, func(f *Frame) *Frame { return f.settle(b) })
	}
	return true
}

// age returns for how long the oldest frame in the ring has waited. Nobody writes down when a frame comes; instead, a sweep
// marks the end of the queue, and the next one that finds the mark gone sets another. The oldest frame is at least as old as
// the mark that is still there, and about as old as the one before was when it went.
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
