package fanout

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"github.com/felix-mq/felix/ring"
	"github.com/felix-mq/felix/telemetry"
)

// Topic is an ordered sequence of events and the set of those who want them. Its mutex is the topic's turn: whoever
// holds it assigns sequence numbers and offers frames, so all subscriptions see one order.
//
// The set of subscriptions exists twice. subs is copy-on-write, for those who only look (sweep, counts, removal).
// active is what a publish walks; it is changed in place under the turn, because a reader that trickles leaves and
// joins it at each step, and copying 10 000 entries for that would make the slow reader everybody's cost.
type Topic struct {
	hub   *Hub
	key   Key
	epoch uint64

	subs atomic.Pointer[[]*Subscription]
	gone chan struct{} // closed with the topic

	mu       sync.Mutex // the turn; guards all below
	pol      Policy
	next     uint64 // sequence number of the next event
	active   []*Subscription
	blocking int  // subscriptions whose ring blocks
	waiters  line // publishers that wait for their turn or for room
	wanted   int  // cost of the frame that last found no room; 0 if none did since the last sweep
	replay   replay
	closed   bool
	dirty    bool // on the hub's list for the next sweep
}

func newTopic(h *Hub, k Key, p Policy) *Topic {
	t := &Topic{hub: h, key: k, pol: p, epoch: h.epochs.Add(1), gone: make(chan struct{})}
	t.replay = replay{maxBytes: p.replayBytes(), budget: h.budget, topics: &h.replaying}
	t.subs.Store(new([]*Subscription))
	return t
}

// SetPolicy changes the topic's policy. Replay follows at once; a subscription keeps the ring that it was made with.
func (t *Topic) SetPolicy(p Policy) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.pol = p
	t.replay.maxBytes = p.replayBytes()
	t.replay.trim(t.replay.maxBytes)
}

// Key returns the topic's names.
func (t *Topic) Key() Key { return t.key }

// Epoch names the life of this topic: sequence numbers of another epoch have nothing to do with those of this one. It
// differs from that of every other topic, those of the same name in earlier processes included.
func (t *Topic) Epoch() uint64 { return t.epoch }

// Publish gives f its place in the topic's order and offers it to every subscription. It returns the sequence number
// of f's first event when f has been offered to all rings: a subscription whose ring was full has then lost it under
// its policy, and no ring has a part of it.
//
// The caller keeps its reference to f. Publish waits when the hub's budget is spent or a blocking subscription has no
// room, first come first served: up to wait in all, without limit if wait is negative, not at all if it is 0. It then
// returns [ErrTimeout], [ErrDraining], [ErrClosed], or the context's error, and nothing was published.
func (t *Topic) Publish(ctx context.Context, f *Frame, wait time.Duration) (first uint64, err error) {
	start := telemetry.Start()
	a := admission{ctx: ctx, topic: t, wait: wait}
	defer a.stop()
	select {
	case <-t.hub.draining:
		return 0, ErrDraining
	default:
	}
	if err := t.hub.charge(f, &a); err != nil {
		return 0, err
	}
	t.mu.Lock()
	if len(t.waiters) > 0 || !t.roomLocked(f) {
		if err := t.waitLocked(f, &a); err != nil {
			t.mu.Unlock()
			return 0, err
		}
	}
	if t.closed {
		t.mu.Unlock()
		return 0, ErrClosed
	}
	telemetry.Observe(telemetry.StagePublishTurn, start)
	first, woken := t.offerLocked(f)
	t.mu.Unlock()
	if woken != nil {
		start = telemetry.Start()
		for i, s := range *woken {
			(*woken)[i] = nil
			s.wake()
			s.waking.Done()
		}
		*woken = (*woken)[:0]
		wokenPool.Put(woken)
		telemetry.Observe(telemetry.StagePublishWake, start)
	}
	return first, nil
}

// wokenPool holds lists of subscriptions to be woken by a publish when it has given the turn back.
var wokenPool = sync.Pool{New: func() any { return new([]*Subscription) }}

// roomLocked reports whether every blocking ring would accept f. If not, the first that would not will say when that
// changes.
func (t *Topic) roomLocked(f *Frame) bool {
	if t.blocking == 0 {
		return true
	}
	for _, s := range t.active {
		if s.blocks && !s.ring.Room(f.cost()) {
			t.wanted = f.cost()
			return false
		}
	}
	return true
}

// waitLocked queues the caller behind the publishers that wait already and returns, with the turn held, when it is
// first and there is room.
func (t *Topic) waitLocked(f *Frame, a *admission) error {
	if a.wait == 0 {
		return ErrTimeout
	}
	w := t.waiters.join()
	t.markDirtyLocked()
	var err error
	for err == nil && (t.waiters[0] != w || !t.roomLocked(f)) {
		t.mu.Unlock()
		err = a.await(w, nil)
		t.mu.Lock()
	}
	t.waiters.leave(w) // the next in line looks for room of its own
	return err
}

// offerLocked is the hot path: numbers, replay, and one Offer for each active subscription.
func (t *Topic) offerLocked(f *Frame) (first uint64, woken *[]*Subscription) {
	start := telemetry.Start()
	first = t.next
	f.number(first)
	t.next += uint64(f.count)
	t.replay.add(f)
	start = telemetry.Observe(telemetry.StagePublishAppend, start)
	if len(t.active) == 0 {
		return first, nil
	}
	t.markDirtyLocked()
	// One addition for all rings instead of one for each; what was refused is given back below.
	f.refs.Add(int32(len(t.active)))
	f.offered = telemetry.Start()
	refused, cost := 0, f.cost()
	for i := 0; i < len(t.active); {
		s := t.active[i]
		switch s.ring.Offer(f, cost, f.count) {
		case ring.AcceptedWake:
			if woken == nil {
				woken, _ = wokenPool.Get().(*[]*Subscription)
			}
			s.waking.Add(1)
			*woken = append(*woken, s)
		case ring.Accepted:
		case ring.Closed:
			refused++
		case ring.Full:
			refused++
			s.lossy.Store(true)
			if !s.blocks && !s.ring.Watch() {
				t.detachLocked(s) // swaps another one into place i
				continue
			}
		}
		i++
	}
	telemetry.Observe(telemetry.StagePublishOffer, start)
	if refused > 0 {
		f.refs.Add(-int32(refused)) // never the last: the caller has one
	}
	return first, woken
}

func (t *Topic) markDirtyLocked() {
	if !t.dirty {
		t.dirty = true
		t.hub.markDirty(t)
	}
}

// detachLocked takes a subscription out of the active set. What it misses from here on is the difference of sequence
// numbers when it returns.
func (t *Topic) detachLocked(s *Subscription) {
	last := len(t.active) - 1
	t.active[s.index] = t.active[last]
	t.active[s.index].index = s.index
	t.active[last] = nil
	t.active = t.active[:last]
	s.index = -1
	s.missedFrom = t.next
}

func (t *Topic) attachLocked(s *Subscription) {
	s.index = len(t.active)
	t.active = append(t.active, s)
}

// room is called by a ring, on its consumer's goroutine, when the room that was asked for is there: a detached
// subscription returns, and the first waiting publisher looks again.
func (t *Topic) room(s *Subscription) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if !s.ended {
		t.rejoinLocked(s)
	}
	t.waiters.wakeFirst()
}

// rejoinLocked lets a subscription that was detached return to the active set.
func (t *Topic) rejoinLocked(s *Subscription) {
	if s.index < 0 {
		s.missed += t.next - s.missedFrom
		t.attachLocked(s)
	}
}

// trailing tells a consumer that has nothing left to take what it lost behind its last event. Otherwise it would learn
// of it with the next event, whenever that comes. It is empty if there is no such loss, or something to take first.
func (t *Topic) trailing(s *Subscription) (d Delivery) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if s.ring.Stats().Items > 0 { // offered under the turn: what is lost comes with its delivery, or behind it
		return d
	}
	s.lossy.Store(false)
	if s.ended {
		return d
	}
	t.rejoinLocked(s)
	d.Next = t.next
	s.gap(&d)
	return d
}

// CursorError says that a start position cannot be served (session.md, section 7.4).
type CursorError struct {
	TooOld    bool   // below Available; otherwise in the future
	Requested uint64 // the sequence number asked for
	Available uint64 // the oldest that can be had, or the tail
}

func (e *CursorError) Error() string {
	if e.TooOld {
		return fmt.Sprintf("fanout: start position %d is too old: oldest is %d", e.Requested, e.Available)
	}
	return fmt.Sprintf("fanout: start position %d is in the future: tail is %d", e.Requested, e.Available)
}

// From is a start position: the zero value is the live tail.
type From struct {
	Earliest bool
	Offset   uint64 // used if At
	At       bool
	// Resume, with At, goes on where a subscription of that epoch ended. A position that cannot be served, other than
	// one in the future, is no error: the subscription begins at the oldest event that is kept, and with a gap.
	Resume bool
	Epoch  uint64 // used if Resume
}

// Subscribe registers a subscription at a start position, in one step with publishing: of the events from that
// position on, each is replayed or reaches the ring, once and in order. It fails with a [CursorError] if the position
// cannot be served, or with [ErrClosed].
func (t *Topic) Subscribe(from From, o SubscriptionOptions) (*Subscription, error) {
	if o.Wake == nil {
		return nil, errors.New("fanout: subscription without a Wake function")
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return nil, ErrClosed
	}
	s := newSubscription(t, o)
	start, oldest := t.next, t.replay.oldest(t.next)
	expected := start // the event that the subscriber knows to be the next
	switch {
	case from.Resume && from.Epoch != t.epoch:
		start, expected, s.reason = oldest, oldest, GapEpoch
	case from.Resume && from.Offset < oldest:
		start, expected, s.reason = oldest, from.Offset, GapExpired
	case from.At && from.Offset > t.next:
		return nil, &CursorError{Requested: from.Offset, Available: t.next}
	case from.At && from.Offset < oldest:
		return nil, &CursorError{TooOld: true, Requested: from.Offset, Available: oldest}
	case from.At:
		start, expected = from.Offset, from.Offset
	case from.Earliest:
		start, expected = oldest, oldest
	}
	s.start, s.next = start, expected
	s.lossy.Store(s.reason != GapNone) // to be told even if no event comes
	if start < t.next {
		s.setBacklog(t.replay.from(start))
		t.markDirtyLocked()
	} else if s.reason != GapNone {
		s.startBusy()
	}
	subs := *t.subs.Load()
	grown := make([]*Subscription, len(subs)+1)
	copy(grown, subs)
	grown[len(subs)] = s
	t.subs.Store(&grown)
	t.attachLocked(s)
	if s.blocks {
		t.blocking++
	}
	return s, nil
}

// end takes a subscription out of the topic. It reports false if it was out already.
func (t *Topic) end(s *Subscription) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if s.ended {
		return false
	}
	s.ended = true
	if s.index >= 0 {
		t.detachLocked(s)
	} else {
		s.missed += t.next - s.missedFrom
	}
	if s.blocks {
		t.blocking--
	}
	subs := *t.subs.Load()
	rest := make([]*Subscription, 0, len(subs))
	for _, o := range subs {
		if o != s {
			rest = append(rest, o)
		}
	}
	t.subs.Store(&rest)
	t.waiters.wakeFirst()
	return true
}

func (t *Topic) close() {
	t.mu.Lock()
	if !t.closed {
		t.closed = true
		close(t.gone)
	}
	t.replay.trim(0)
	t.mu.Unlock()
	for _, s := range *t.subs.Load() {
		s.End(EndRemoved)
	}
}

// forget gives the replay memory up.
func (t *Topic) forget() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.replay.trim(0)
}

// empty discards what a stuck subscription has queued, replay and all, and keeps it out of the active set until its
// consumer moves, unless it has moved since the sweep.
func (t *Topic) empty(st stuckSubscription) {
	t.mu.Lock()
	defer t.mu.Unlock()
	s := st.sub
	before := s.ring.Stats()
	if s.ended || s.moves(before) != st.moves || !s.ring.DropAll() {
		return
	}
	s.reclaimed.Store(true)
	s.lossy.Store(true)
	backlog := s.dropBacklog()
	s.missed += backlog
	t.hub.reclaimed.Add(backlog + s.ring.Stats().Dropped - before.Dropped)
	if s.index >= 0 {
		t.detachLocked(s)
	}
}

// sweepStretch is how many rings a sweep looks at before it lets others run.
const sweepStretch = 64

// sweep looks at the topic's rings: it settles what stays queued behind a stuck writer, ends blocking subscriptions
// that hold publishers up for too long, and appends those whose ring may be emptied to stuck. spent says that
// publishers found the budget spent. What is queued is added to totals.
func (t *Topic) sweep(stuck []stuckSubscription, spent bool, totals *sweepTotals) []stuckSubscription {
	t.mu.Lock()
	t.dirty = false
	wanted := t.wanted
	again := len(t.waiters) > 0
	if !again {
		t.wanted = 0
	}
	t.mu.Unlock()
	for i, s := range *t.subs.Load() {
		if i%sweepStretch == sweepStretch-1 {
			runtime.Gosched() // ten thousand rings take milliseconds, which an event must not wait for
		}
		queued := s.sweep(wanted, spent, totals)
		again = again || queued
		switch {
		case !queued || s.stuckTicks < stuckAfter:
		case !s.blocks:
			stuck = append(stuck, stuckSubscription{s, s.lastMoves})
		case s.stalledTicks >= t.hub.stallTicks:
			if s.end(EndStalled) {
				t.hub.stalled.Add(1)
			}
		}
	}
	if again {
		t.mu.Lock()
		t.markDirtyLocked()
		t.mu.Unlock()
	}
	return stuck
}

// TopicStats is a topic's state at one moment.
type TopicStats struct {
	Next          uint64 // sequence number of the next event
	Subscriptions int
	Active        int // of these, those that a publish walks
	Waiting       int // publishers
	ReplayBytes   int
	QueuedBytes   int    // in the rings of all subscriptions
	Lag           int    // bytes in the fullest of them
	Dropped       uint64 // events that the present subscriptions have lost
}

// Stats returns the topic's state.
func (t *Topic) Stats() TopicStats {
	t.mu.Lock()
	defer t.mu.Unlock()
	subs := *t.subs.Load()
	stats := TopicStats{
		Next: t.next, Subscriptions: len(subs), Active: len(t.active),
		Waiting: len(t.waiters), ReplayBytes: t.replay.bytes,
	}
	for _, s := range subs {
		queued := s.QueuedBytes()
		stats.QueuedBytes += queued
		stats.Lag = max(stats.Lag, queued)
		stats.Dropped += s.droppedLocked()
	}
	return stats
}
