package fanout

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"sync"
	"time"

	"github.com/felix-mq/felix/internal/ledger"
	"github.com/felix-mq/felix/ring"
	"github.com/felix-mq/felix/telemetry"
)

// Topic is an ordered sequence of events and the set of those who want them. Its mutex is the topic's turn: the one who
// holds it assigns sequence numbers and offers frames, so all subscriptions see one order.
//
// Each set of subscriptions is a slice that changes in place under the turn: subs has all of them, active those that a
// publish walks, and busy those that the next sweep looks at.
type Topic struct {
	// What a publish touches comes first, in few cache lines: most topics of many are not in the cache.

	hub         *Hub
	tenant      *tenant
	log         Log // never changes; nil of a topic in memory
	replayIndex int // in tenant.replaying, guarded by tenant.mu, or -1

	mu       sync.Mutex // the turn; guards all below but the last group
	closed   bool
	listed   bool   // the tenant's list has this topic: its replay can be given up
	dirty    bool   // on the hub's list for the next sweep
	next     uint64 // sequence number of the next event
	blocking int    // subscriptions whose ring blocks
	paused   int    // subscriptions that a publish passes by, because their queue was full
	active   []*Subscription
	lagging  []*Subscription // blocking ones that still read replay, ended or not
	waiters  line            // publishers that wait for their turn or for space
	replay   replay
	packer   packer

	pol     Policy
	subs    []*Subscription
	busy    []*Subscription // hold something, or have had something offered since the last sweep
	readers int             // subscriptions that read replay, ended or not
	// Charged for what the log knows of producers, in bytes.
	producers int64
	wanted    int // cost of the frame that last did not fit; 0 if none since the last sweep
	// What comes before this sequence number is not in replay, because there was no memory for it.
	forgotten uint64

	// These never change.

	key   Key
	epoch uint64
	gone  chan struct{} // closed with the topic

	committing sync.Mutex // guards what follows; innermost, and held for moments
	committed  []*appended
	delivering bool // a goroutine offers what is committed
}

// newTopic returns a topic, with a log if it is durable.
func newTopic(h *Hub, n *tenant, k Key, p Policy, log Log) *Topic {
	t := &Topic{hub: h, tenant: n, key: k, pol: p, log: log, gone: make(chan struct{}), replayIndex: -1}
	if log != nil {
		t.epoch, t.next = log.Epoch(), log.Tail()
	} else {
		t.epoch = h.epochs.Add(1)
	}
	t.replay.maxBytes = p.replayBytes()
	t.packer.owner = n.share
	if log != nil {
		t.settleProducersLocked() // nobody else knows it yet
	}
	return t
}

// SetPolicy changes the topic's policy. Replay follows at once; a subscription keeps the ring that it was made with.
func (t *Topic) SetPolicy(p Policy) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.pol = p
	t.replay.maxBytes = p.replayBytes()
	t.trimLocked(t.replay.maxBytes)
}

// Key returns the topic's names.
func (t *Topic) Key() Key { return t.key }

// Epoch names the life of this topic: sequence numbers of another epoch have nothing to do with those of this one. It
// differs from that of every other topic, those of the same name in earlier processes included. A durable topic has
// that of its log.
func (t *Topic) Epoch() uint64 { return t.epoch }

// Publish gives f its place in the topic's order and offers it to every subscription. It returns the sequence number
// of f's first event when f, or a copy of it, has been offered to all queues: a subscription whose queue was full has
// then lost it under its policy, and no queue has a part of it.
//
// The caller keeps its reference to f. Publish waits when there is no memory or a blocking subscription has no space,
// first come first served: up to wait in all, without limit if wait is negative, not at all if it is 0. It then
// returns [ErrTimeout], [ErrDraining], [ErrClosed], or the context's error, and nothing was published. While it waits
// nothing is charged for f.
func (t *Topic) Publish(ctx context.Context, f *Frame, wait time.Duration) (first uint64, err error) {
	if t.log != nil {
		return 0, errHasLog
	}
	start := telemetry.Start()
	t.mu.Lock()
	k, err := t.admitFirstLocked(ctx, f, wait)
	if err != nil {
		t.mu.Unlock()
		return 0, err
	}
	telemetry.Observe(telemetry.StagePublishTurn, start)
	first, woken := t.offerLocked(k, nil)
	t.mu.Unlock()
	k.Release()
	wakeAll(woken)
	return first, nil
}

// admitFirstLocked admits a publish: it returns the frame to offer, with a reference, when it is this one's turn.
func (t *Topic) admitFirstLocked(ctx context.Context, f *Frame, wait time.Duration) (k *Frame, err error) {
	select {
	case <-t.hub.draining:
		return nil, ErrDraining
	default:
	}
	switch {
	case t.closed:
		err = ErrClosed
	case len(t.waiters) > 0 || t.tenant.share.Waiting() > 0:
		err = errNoSpace
	default:
		k, err = t.admitLocked(f)
	}
	if err != nil {
		return t.admitLater(ctx, f, wait, err)
	}
	return k, nil
}

// wakeAll wakes the subscriptions of a list that offerLocked has made, without the turn.
func wakeAll(woken *[]*Subscription) {
	if woken == nil {
		return
	}
	start := telemetry.Start()
	for i, s := range *woken {
		(*woken)[i] = nil
		s.wake()
		s.waking.Done()
	}
	*woken = (*woken)[:0]
	wokenPool.Put(woken)
	telemetry.Observe(telemetry.StagePublishWake, start)
}

// wokenPool holds lists of subscriptions to be woken by a publish when it has given the turn back.
var wokenPool = sync.Pool{New: func() any { return new([]*Subscription) }}

// errNoSpace means that a publish has to wait for its turn or for space in a queue.
var errNoSpace = errors.New("fanout: no space")

// admitLocked sees to it that f can be offered: that all blocking subscriptions have space, and that there is memory.
// It returns the frame to offer, which is f or a copy, with a reference.
func (t *Topic) admitLocked(f *Frame) (*Frame, error) {
	if err := t.spaceLocked(f); err != nil {
		return nil, err
	}
	if t.log != nil {
		return t.admitDurableLocked(f)
	}
	if len(t.active) == 0 && !t.replay.wants(f.cost()) {
		f.Retain()
		return f, nil // nobody keeps it
	}
	return t.packer.keep(f, t.replay.bytes)
}

// admitLater is for a publish that cannot be admitted at once, for the reason why: it gives memory up or waits. The
// turn is held when it is called and when it returns. Only the publisher that is first in the topic's line looks for
// memory, and only the first in the tenant's line is charged for it, so those that wait hold nothing.
func (t *Topic) admitLater(ctx context.Context, f *Frame, wait time.Duration, why error) (k *Frame, err error) {
	if errors.Is(why, ErrClosed) {
		return nil, why
	}
	if memoryError(why) {
		if t.reclaimLocked(f, why) && !t.closed && len(t.waiters) == 0 {
			if k, err = t.admitLocked(f); err == nil {
				return k, nil
			}
		}
	}
	if wait == 0 {
		return nil, ErrTimeout
	}
	a := admission{ctx: ctx, topic: t, wait: wait}
	defer a.stop()
	w := t.waiters.join()
	defer func() { t.waiters.leave(w) }() // the next in line looks for space of its own
	share := t.tenant.share
	var memory *ledger.Waiter
	defer func() {
		if memory != nil {
			share.Leave(memory)
		}
	}()
	for {
		switch {
		case t.closed:
			return nil, ErrClosed
		case t.waiters[0] != w:
		case memory == nil && share.Waiting() > 0:
			memory = share.Join()
		case memory == nil || share.First(memory):
			k, err = t.admitLocked(f)
			switch {
			case err == nil:
				return k, nil
			case !memoryError(err):
				if memory != nil { // others of the tenant must not wait for this topic
					share.Leave(memory)
					memory = nil
				}
			case memory == nil:
				memory = share.Join() // a release before this went unseen
				continue
			default:
				t.reclaimLocked(f, err)
				if k, err = t.admitLocked(f); err == nil {
					return k, nil
				}
			}
		}
		t.markDirtyLocked()
		t.mu.Unlock()
		err = a.await(w, memory)
		t.mu.Lock()
		if err != nil {
			return nil, err
		}
	}
}

// reclaimLocked has memory given up for f. It lets go of the turn meanwhile.
func (t *Topic) reclaimLocked(f *Frame, why error) bool {
	t.tenant.pressed.Store(true)
	t.mu.Unlock()
	defer t.mu.Lock()
	return t.hub.reclaim(t.tenant, int64(t.packer.size(f)), why)
}

// spaceLocked returns nil if every blocking subscription would accept f. If not, the first that would not will say when
// that changes. An error of package ledger means that there is no memory for its queue to grow.
func (t *Topic) spaceLocked(f *Frame) error {
	if len(t.lagging) > 0 {
		// What they have not read must not be pushed out of replay.
		oldest := t.replay.oldestAfter(t.packer.size(f), t.next)
		for _, s := range t.lagging {
			if s.cursor < oldest {
				t.wanted = f.cost()
				return errNoSpace
			}
		}
	}
	if t.blocking == 0 {
		return nil
	}
	for _, s := range t.active {
		if !s.blocks {
			continue
		}
		if ok, memory := s.ring.HasSpace(f.cost()); !ok {
			t.wanted = f.cost()
			if memory {
				return t.tenant.share.Refusal(1)
			}
			return errNoSpace
		}
	}
	return nil
}

// offerLocked is the hot path: numbers, replay, and one Offer for each active subscription. The caller keeps its
// reference to f. Subscriptions that have to be woken are appended to the list woken, which it makes if it is nil.
func (t *Topic) offerLocked(f *Frame, woken *[]*Subscription) (first uint64, _ *[]*Subscription) {
	start := telemetry.Start()
	first = t.next
	f.number(first)
	t.next += uint64(f.count)
	if f.owner != nil {
		t.replay.add(f)
		t.listReplayLocked()
	} else if t.replay.bytes > 0 {
		t.trimLocked(0) // f is too large to be kept, and replay has no holes
	}
	start = telemetry.Observe(telemetry.StagePublishAppend, start)
	dropped := t.paused * f.count
	if len(t.active) == 0 {
		t.hub.drop(dropped)
		return first, woken
	}
	t.markDirtyLocked()
	// One addition for all rings instead of one for each; what was refused is given back below.
	f.refs.Add(int32(len(t.active)))
	f.offered = telemetry.Start()
	refused, cost := 0, f.cost()
	for i := 0; i < len(t.active); {
		s := t.active[i]
		result, lost := s.ring.Offer(f, cost, f.count)
		if lost > 0 {
			dropped += lost
			s.lossy.Store(true)
		}
		switch result {
		case ring.AcceptedWake:
			if woken == nil {
				woken = newWoken()
			}
			s.waking.Add(1)
			*woken = append(*woken, s)
			if !s.busy {
				t.busyLocked(s)
			}
		case ring.Accepted:
			if !s.busy {
				t.busyLocked(s)
			}
		case ring.Closed:
			refused++
		case ring.Full:
			refused++
			if t.log != nil {
				if t.fallBackLocked(s, first) { // swaps another one into place i
					if woken == nil {
						woken = newWoken()
					}
					s.waking.Add(1)
					*woken = append(*woken, s)
				}
				continue
			}
			if s.blocks {
				// Only memory for slots can be missing: spaceLocked has seen space. It is lost like anything else that
				// there is no memory for.
				t.hub.reclaimed.Add(uint64(f.count))
				s.missed += uint64(f.count)
				s.lossy.Store(true)
			} else if !s.ring.Watch() {
				t.pauseLocked(s) // swaps another one into place i
				continue
			}
		}
		i++
	}
	telemetry.Observe(telemetry.StagePublishOffer, start)
	if refused > 0 {
		f.refs.Add(-int32(refused)) // never the last: the caller has one
	}
	t.hub.drop(dropped)
	return first, woken
}

// newWoken returns an empty list of subscriptions that have to be woken when the turn has been given back.
func newWoken() *[]*Subscription {
	woken, _ := wokenPool.Get().(*[]*Subscription)
	return woken
}

// drop counts events that queues had no space for.
func (h *Hub) drop(events int) {
	if events > 0 {
		h.dropped.Add(uint64(events))
	}
}

// trimLocked drops the oldest of replay until at most limit bytes are kept.
func (t *Topic) trimLocked(limit int) {
	t.replay.trim(limit)
	t.listReplayLocked()
	if t.replay.bytes == 0 {
		t.packer.close()
	}
}

// listReplayLocked keeps the tenant's list of topics that can give replay right: it holds something, and no blocking
// subscription has still to read it.
func (t *Topic) listReplayLocked() {
	switch can := t.replay.bytes > 0 && len(t.lagging) == 0; {
	case can == t.listed:
	case can:
		t.listed = true
		t.tenant.addReplay(t)
		t.hub.fruitless.Store(false)
	default:
		t.listed = false
		t.tenant.removeReplay(t)
	}
}

func (t *Topic) markDirtyLocked() {
	if !t.dirty {
		t.dirty = true
		t.hub.markDirty(t)
	}
}

// busyLocked has the next sweep look at s.
func (t *Topic) busyLocked(s *Subscription) {
	if !s.busy {
		s.busy = true
		t.busy = append(t.busy, s)
		t.markDirtyLocked()
	}
}

// pauseLocked takes a subscription out of the active set because its queue is full. What it misses from here on is the
// difference of sequence numbers when it returns; the hub counts it with each publish.
func (t *Topic) pauseLocked(s *Subscription) {
	t.detachLocked(s)
	s.paused = true
	s.missedFrom = t.next
	t.paused++
}

func (t *Topic) detachLocked(s *Subscription) {
	t.active = swapRemove(t.active, s.index, func(o *Subscription) { o.index = s.index })
	s.index = -1
}

// swapRemove takes element i out of a list without order. moved is called with the element that takes its place, which
// is the removed one itself if it was the last.
func swapRemove[E any](list []*E, i int, moved func(*E)) []*E {
	last := len(list) - 1
	list[i] = list[last]
	moved(list[i])
	list[last] = nil
	return list[:last]
}

func (t *Topic) attachLocked(s *Subscription) {
	s.index = len(t.active)
	t.active = append(t.active, s)
}

// spaceFreed is called by a ring, on its consumer's goroutine, when the space that was asked for is there: a paused
// subscription returns, and the first waiting publisher looks again.
func (t *Topic) spaceFreed(s *Subscription) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.resumeLocked(s)
	t.waiters.wakeFirst()
}

// resumeLocked lets a subscription that was paused return to the active set.
func (t *Topic) resumeLocked(s *Subscription) {
	if s.paused && !s.ended.Load() {
		s.paused = false
		t.paused--
		s.missed += t.next - s.missedFrom
		t.attachLocked(s)
	}
}

// advance lets a consumer go on whose queue is empty and whom Take has found to be lossy or replaying: it appends a
// page of replay, or what was lost after the last event, which the consumer would otherwise learn of only with the next
// one. It adds nothing if there is neither, or something in the queue to take first.
func (t *Topic) advance(s *Subscription, out []Delivery, maxBytes int) []Delivery {
	before := len(out)
	for more := true; more && len(out) == before; {
		t.mu.Lock()
		if !t.needsLogLocked(s) {
			out = t.advanceLocked(s, out, maxBytes)
			t.mu.Unlock()
			break
		}
		if s.ended.Load() { // only what is in memory still comes
			t.liveLocked(s)
			t.mu.Unlock()
			break
		}
		cursor, end := s.cursor, t.next
		t.mu.Unlock()
		out, more = t.readLog(s, out, maxBytes, cursor, end)
	}
	return out
}

func (t *Topic) advanceLocked(s *Subscription, out []Delivery, maxBytes int) []Delivery {
	if s.ring.Stats().Items > 0 { // offered under the turn: what is lost comes with its delivery, or after it
		return out
	}
	if s.replaying.Load() {
		n := len(out)
		if out = t.pageLocked(s, out, maxBytes); len(out) > n || s.replaying.Load() || s.ring.Stats().Items > 0 {
			return out
		}
	}
	s.lossy.Store(false)
	t.resumeLocked(s)
	d := Delivery{Next: t.next}
	if s.ended.Load() {
		d.Next = s.endedAt
	}
	s.gap(&d)
	if d.Reason != GapNone {
		out = append(out, d)
	}
	return out
}

// pageLocked appends as much of replay as fits in maxBytes, at least one frame, and moves the cursor. When all that is
// left fits the subscription's queue, it goes there, and the subscription is live from then on.
func (t *Topic) pageLocked(s *Subscription, out []Delivery, maxBytes int) []Delivery {
	s.pages.Add(1)
	end := t.next
	if s.ended.Load() {
		end = s.endedAt
	}
	if oldest := t.replay.oldest(t.next); t.log == nil && s.cursor < min(oldest, end) {
		lost := min(oldest, end) - s.cursor // replay has moved on without it
		if s.cursor < t.forgotten {
			s.reclaimed.Store(true)
			t.hub.reclaimed.Add(lost)
		} else {
			t.hub.drop(int(lost))
		}
		s.missed += lost
		s.cursor += lost
		s.lossy.Store(true)
	}
	list := t.replay.from(s.cursor)
	if s.cursor >= end {
		list = nil
	}
	i := 0
	for ; i < len(list) && (i == 0 || list[i].frame.cost() <= maxBytes); i++ {
		f := list[i].frame
		if f.first >= end {
			break
		}
		f.Retain()
		maxBytes -= f.cost()
		s.cursor = f.end()
		out = append(out, s.delivery(f))
	}
	rest := list[i:]
	if s.ended.Load() {
		if s.cursor >= end || len(rest) == 0 {
			t.liveLocked(s)
		}
		return out
	}
	if s.fits(rest) {
		for _, k := range rest {
			k.frame.Retain()
			if !s.ring.TryOffer(k.frame, k.frame.cost(), k.frame.count) {
				k.frame.Release()
				return out // no memory for its slot: it is read with the next page
			}
			s.cursor = k.frame.end()
		}
		t.liveLocked(s)
	}
	t.waiters.wakeFirst()
	return out
}

// caughtUpLocked takes a blocking subscription off the list of those that publishers must not overtake in replay.
func (t *Topic) caughtUpLocked(s *Subscription) {
	if s.laggingIndex < 0 {
		return
	}
	t.lagging = swapRemove(t.lagging, s.laggingIndex, func(o *Subscription) { o.laggingIndex = s.laggingIndex })
	s.laggingIndex = -1
	t.listReplayLocked()
}

// liveLocked ends the reading of replay.
func (t *Topic) liveLocked(s *Subscription) {
	s.replaying.Store(false)
	t.readers--
	t.caughtUpLocked(s)
	if !s.ended.Load() {
		t.attachLocked(s)
		s.reader = nil
		if s.cursor < t.next { // nothing more is kept
			s.missed += t.next - s.cursor
			t.hub.drop(int(t.next - s.cursor))
			s.cursor = t.next
			s.lossy.Store(true)
		}
	}
	if t.closed && t.readers == 0 {
		t.trimLocked(0)
	}
	t.waiters.wakeFirst()
}

// abandon lets publishers overtake a subscription whose consumer is cut off.
func (t *Topic) abandon(s *Subscription) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.caughtUpLocked(s)
	t.waiters.wakeFirst()
}

// awaitTurn returns when all that holds the turn now has given it back.
func (t *Topic) awaitTurn() {
	t.mu.Lock()
	defer t.mu.Unlock()
}

// leave is called when the consumer of a subscription that has ended takes nothing more.
func (t *Topic) leave(s *Subscription) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if s.replaying.Load() {
		t.liveLocked(s)
	}
	t.tenant.share.Release(s.cost)
	s.cost = 0
}

// CursorError says that a start position cannot be served (docs/protocol/session.md#start-positions).
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
	// Nearest, with At, begins at the oldest event or at the tail if the position is outside of them.
	Nearest bool
	// Resume, with At, goes on where a subscription of that epoch ended. A position that cannot be served, other than
	// one in the future, is no error: the subscription begins at the oldest event that is kept, and with a gap.
	Resume bool
	Epoch  uint64 // used if Resume
}

// Subscribe registers a subscription at a start position, in one step with publishing: of the events from that
// position on, each is replayed or reaches the ring, once and in order. It fails with a [CursorError] if the position
// cannot be served, with [ErrClosed], or with [ErrMemory].
func (t *Topic) Subscribe(from From, o SubscriptionOptions) (*Subscription, error) {
	if o.Wake == nil {
		return nil, errors.New("fanout: subscription without a Wake function")
	}
	if !t.hold(o.Cost) {
		return nil, ErrMemory
	}
	s, err := t.subscribe(from, o)
	if err != nil {
		t.tenant.share.Release(o.Cost)
	}
	return s, err
}

// hold charges the tenant, after it or another one has given memory up if need be.
func (t *Topic) hold(n int64) bool {
	err := t.tenant.share.Charge(n)
	if err != nil {
		t.tenant.pressed.Store(true)
		if t.hub.reclaim(t.tenant, n, err) {
			err = t.tenant.share.Charge(n)
		}
	}
	return err == nil
}

func (t *Topic) subscribe(from From, o SubscriptionOptions) (*Subscription, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return nil, ErrClosed
	}
	s := newSubscription(t, o)
	start, oldest := t.next, t.oldestLocked()
	expected := start // the event that the subscriber knows to be the next
	if from.Nearest {
		from.Offset = min(max(from.Offset, oldest), t.next)
	}
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
	s.start, s.next, s.cursor = start, expected, start
	s.lossy.Store(s.reason != GapNone) // to be reported even if no event comes
	s.index, s.laggingIndex = -1, -1
	if start < t.next || s.reason != GapNone {
		s.startsBusy = true
		s.ring.Unpark() // or a second consumer would be woken while the first one is busy
		t.busyLocked(s)
	}
	if start < t.next {
		s.replaying.Store(true)
		t.readers++
		if s.blocks {
			s.laggingIndex = len(t.lagging)
			t.lagging = append(t.lagging, s)
			t.listReplayLocked()
		}
	} else {
		t.attachLocked(s)
	}
	s.cost = o.Cost
	s.subIndex = len(t.subs)
	t.subs = append(t.subs, s)
	if s.blocks {
		t.blocking++
	}
	return s, nil
}

// end makes a subscription one that has ended: nothing more is offered to it. Until its consumer has taken what is
// there and closes it, the sweep looks after it. It reports false if it has ended already.
func (t *Topic) end(s *Subscription) (wake, ok bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if s.ended.Load() {
		return false, false
	}
	s.ended.Store(true)
	s.endedAt = t.next
	switch {
	case s.index >= 0:
		t.detachLocked(s)
	case s.paused:
		s.paused = false
		t.paused--
		s.missed += t.next - s.missedFrom
	}
	if s.blocks {
		t.blocking--
	}
	t.subs = swapRemove(t.subs, s.subIndex, func(o *Subscription) { o.subIndex = s.subIndex })
	t.busyLocked(s)
	t.waiters.wakeFirst()
	if wake = s.ring.Close(); wake {
		s.waking.Add(1) // under the turn, so that Quiesce waits for it
	}
	return wake, true
}

func (t *Topic) close() {
	t.mu.Lock()
	if !t.closed {
		t.closed = true
		close(t.gone)
	}
	if t.readers == 0 { // the last of those that read it trims it
		t.trimLocked(0)
	}
	t.packer.close()
	t.tenant.share.Release(t.producers)
	t.producers = 0
	subs := slices.Clone(t.subs)
	t.mu.Unlock()
	for _, s := range subs {
		s.End(EndRemoved)
	}
}

// forget gives the replay memory up. It reports false if it may not: a blocking subscription has not read it yet.
func (t *Topic) forget() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if !t.listed {
		return false
	}
	t.trimLocked(0)
	t.forgotten = t.next
	return true
}

// empty discards what a subscription has queued and keeps it out of the active set until its consumer moves. It does
// nothing, and reports false, if it has moved since the sweep.
func (t *Topic) empty(seen seen) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	s := seen.sub
	st := s.ring.Stats()
	if s.blocks && !s.ended.Load() || s.moves(st) != seen.moves || st.Items == 0 {
		return false
	}
	events, ok := s.ring.DropAll()
	if !ok {
		return false
	}
	if t.log != nil && !s.ended.Load() { // it reads them again, from the log
		end := t.next
		if s.replaying.Load() {
			end = s.cursor
		}
		if t.fallBackLocked(s, end-uint64(events)) {
			s.waking.Go(s.wake)
		}
		return true
	}
	s.reclaimed.Store(true)
	s.lossy.Store(true)
	t.hub.reclaimed.Add(uint64(events))
	if s.index >= 0 {
		t.pauseLocked(s)
	}
	return true
}

// sweepStretch is how many subscriptions a sweep looks at before it lets others run.
const sweepStretch = 64

// sweep looks at the topic's busy subscriptions: it ends blocking ones that hold publishers up for too long and ended
// ones that are stuck, and puts those that can give memory up on the tenant's lists. What is queued is added to totals.
func (t *Topic) sweep(totals *sweepTotals) {
	t.mu.Lock()
	t.dirty = false
	busy := t.busy
	t.busy = nil
	wanted := t.wanted
	again := len(t.waiters) > 0
	if !again {
		t.wanted = 0
	}
	t.mu.Unlock()
	spent := totals.isPressed(t.tenant)
	rest := busy[:0]
	for i, s := range busy {
		if i%sweepStretch == sweepStretch-1 {
			runtime.Gosched() // ten thousand queues take milliseconds, which an event must not wait for
		}
		if s.sweep(wanted, spent, totals) {
			rest = append(rest, s)
			continue
		}
		t.mu.Lock()
		if s.isIdle() {
			s.busy = false
		} else { // something was offered meanwhile
			rest = append(rest, s)
		}
		t.mu.Unlock()
	}
	clear(busy[len(rest):])
	t.mu.Lock()
	defer t.mu.Unlock()
	t.busy = append(rest, t.busy...)
	switch {
	case len(t.busy) > 0 || again:
		t.markDirtyLocked()
	case t.replay.bytes == 0:
		t.busy = nil
		t.packer.close()
	default:
		t.busy = nil
	}
}

// TopicStats is a topic's state at one moment.
type TopicStats struct {
	Base          uint64 // oldest sequence number that a subscription can begin with
	Next          uint64 // sequence number of the next event
	Subscriptions int
	Active        int // of these, those that a publish walks
	Waiting       int // publishers
	ReplayBytes   int
	QueuedBytes   int    // in the rings of all subscriptions
	Lag           int    // bytes in the fullest of them
	Dropped       uint64 // events that the present subscriptions have lost
}

// Stats returns the topic's state. It looks at all of the topic's subscriptions, one after the other, so the numbers
// need not be of the same moment.
func (t *Topic) Stats() TopicStats {
	t.mu.Lock()
	subs := slices.Clone(t.subs)
	stats := TopicStats{
		Base: t.oldestLocked(), Next: t.next, Subscriptions: len(subs), Active: len(t.active),
		Waiting: len(t.waiters), ReplayBytes: t.replay.bytes,
	}
	t.mu.Unlock()
	for _, s := range subs {
		queued := s.QueuedBytes()
		stats.QueuedBytes += queued
		stats.Lag = max(stats.Lag, queued)
		stats.Dropped += s.Dropped()
	}
	return stats
}
