// Package fanout turns a publish into deliveries: it keeps the topics, gives each event its place in its topic's
// order, and offers one counted, encoded frame to the ring of every subscription. No event is encoded or copied per
// subscriber.
//
//	Publish ──▶ turn ──▶ sequence numbers ──▶ replay ring          (bounded by bytes)
//	             │                       └──▶ ring of each active subscription ──▶ Take, by its writer
//	             └ waits for room in blocking rings first, in FIFO order
//
// What a slow subscriber costs is decided here. Its ring fills, its policy applies there and its losses are counted
// there; a full [ring.DropNew] ring leaves the topic's active set, so that the next publish does not even look at it,
// and returns when its writer has half emptied it. A full [ring.Block] ring makes publishers wait before any sequence
// number is given out, so that no delivery is partial. The frames that everybody holds together are bounded by the
// [Hub]'s budget.
//
// Encoding, sockets and the policy of who may publish are left to others. Begin at [Hub], [Topic.Publish],
// [Topic.Subscribe] and [Subscription.Take].
//
// Lock order: Hub.reclaiming, Hub.mu, Topic.mu (the turn), Hub.sweepMu, Subscription.backlogMu, ring, budget. Nothing
// does I/O under any of them.
package fanout

import (
	"errors"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/felix-mq/felix/ring"
)

// Errors of [Topic.Publish] and [Topic.Subscribe].
var (
	// ErrClosed means that the topic was removed. Look it up again: it may exist anew.
	ErrClosed = errors.New("fanout: topic is closed")
	// ErrDraining means that the hub admits no more publishes, because the process is about to end.
	ErrDraining = errors.New("fanout: draining")
	// ErrTimeout means that the publish waited for room as long as it was allowed to. Nothing was published.
	ErrTimeout = errors.New("fanout: no room in time")
)

// Key names a topic.
type Key struct{ Tenant, Namespace, Stream string }

// Policy says how a topic treats its subscriptions and its past.
type Policy struct {
	// Overflow is what happens when a subscription's ring is full.
	Overflow ring.Overflow
	// QueueBytes and QueueItems bound each subscription's ring; 0 means the defaults of package ring.
	QueueBytes, QueueItems int
	// ReplayBytes bounds the memory that keeps past events for new subscriptions; 0 means 1 MiB, negative none.
	ReplayBytes int
}

func (p Policy) replayBytes() int {
	if p.ReplayBytes == 0 {
		return DefaultReplayBytes
	}
	return max(p.ReplayBytes, 0)
}

// DefaultReplayBytes is the bound of a topic's replay memory when its policy names none.
const DefaultReplayBytes = 1 << 20

// Options configure a [Hub].
type Options struct {
	// MaxBytes bounds the bytes of all frames held in rings, replay and writes under way; 0 means 512 MiB. When it
	// is reached, replay memory is given up first, then the rings of non-blocking subscriptions whose writer has not
	// moved for 100 ms; what is left can only be waited for.
	MaxBytes int64
	// StallTimeout ends a blocking subscription that takes nothing for so long while it keeps publishers waiting: its
	// ring has no room, or the budget is spent. Time in which nobody wants to publish does not count. 0 means 30 s.
	StallTimeout time.Duration
	// Ticks, if set, drives the sweep instead of a ticker, one sweep for each value: for tests.
	Ticks <-chan time.Time
}

// sweepEvery is how often rings that hold something are looked at; a writer is stuck when three sweeps in a row find
// something queued and nothing taken, that is after 100 ms.
const (
	sweepEvery = 50 * time.Millisecond
	stuckAfter = 3
)

// Hub is the set of topics of one broker. Its methods may be called from any goroutine. It owns one goroutine, which
// sweeps the rings that hold something; [Hub.Close] waits for it.
type Hub struct {
	budget     *budget
	epochs     atomic.Uint64 // of the last topic that was made
	stallTicks int
	ticks      <-chan time.Time

	mu     sync.RWMutex
	topics map[Key]*Topic

	sweepMu sync.Mutex
	dirty   []*Topic            // topics with something to look at
	stuck   []stuckSubscription // not blocking, with something queued and no movement: found by the last sweep
	kick    chan struct{}

	reclaiming sync.Mutex
	replaying  atomic.Int32 // topics whose replay holds something
	pressed    atomic.Bool  // a publish found the budget spent since the last sweep

	draining  chan struct{}
	drainOnce sync.Once
	done      chan struct{}
	closeOnce sync.Once
	wg        sync.WaitGroup

	stalled   atomic.Uint64
	reclaims  atomic.Uint64
	reclaimed atomic.Uint64 // events

	born   time.Time
	queued atomic.Int64 // as the last sweep found it: bytes,
	oldest atomic.Int64 // and nanoseconds
}

// sweepTotals is what a sweep adds up over all rings.
type sweepTotals struct {
	now    time.Duration // since the hub was made
	bytes  int
	oldest time.Duration
}

// NewHub returns a hub without topics.
func NewHub(o Options) *Hub {
	if o.MaxBytes <= 0 {
		o.MaxBytes = 512 << 20
	}
	if o.StallTimeout <= 0 {
		o.StallTimeout = 30 * time.Second
	}
	h := &Hub{
		budget:     newBudget(o.MaxBytes),
		stallTicks: max(stuckAfter, int(o.StallTimeout/sweepEvery)),
		ticks:      o.Ticks,
		topics:     make(map[Key]*Topic),
		kick:       make(chan struct{}, 1),
		draining:   make(chan struct{}),
		done:       make(chan struct{}),
		born:       time.Now(),
	}
	// Epochs of another process, and of this one's topics, differ: by chance, and by counting.
	h.epochs.Store(rand.Uint64())
	h.wg.Go(h.sweeper)
	return h
}

// Register makes a topic, or returns the one of that name that is there already, whose policy stays as it is
// ([Topic.SetPolicy] changes it).
func (h *Hub) Register(k Key, p Policy) *Topic {
	h.mu.Lock()
	defer h.mu.Unlock()
	if t := h.topics[k]; t != nil {
		return t
	}
	t := newTopic(h, k, p)
	h.topics[k] = t
	return t
}

// Lookup finds a topic by the bytes of its names, without allocating. It returns nil if there is none.
func (h *Hub) Lookup(tenant, namespace, stream []byte) *Topic {
	h.mu.RLock()
	defer h.mu.RUnlock()
	return h.topics[Key{string(tenant), string(namespace), string(stream)}]
}

// Remove ends a topic: publishes fail with [ErrClosed], and each subscription ends with [EndRemoved] once its writer
// has taken what was queued. It reports whether there was such a topic.
func (h *Hub) Remove(k Key) bool {
	h.mu.Lock()
	t := h.topics[k]
	delete(h.topics, k)
	h.mu.Unlock()
	if t == nil {
		return false
	}
	t.close()
	return true
}

// Topics returns the topics that exist, in no order.
func (h *Hub) Topics() []*Topic {
	h.mu.RLock()
	defer h.mu.RUnlock()
	return slices.Collect(maps.Values(h.topics))
}

// Drain makes every publish that waits or comes fail with [ErrDraining]. Subscriptions go on, so that what is queued
// can still be delivered.
func (h *Hub) Drain() { h.drainOnce.Do(func() { close(h.draining) }) }

// Close drains, removes all topics and waits for the hub's goroutine.
func (h *Hub) Close() {
	h.Drain()
	h.mu.Lock()
	topics := h.topics
	h.topics = make(map[Key]*Topic)
	h.mu.Unlock()
	for _, t := range topics {
		t.close()
	}
	h.closeOnce.Do(func() { close(h.done) })
	h.wg.Wait()
}

// Stats is a hub's state at one moment.
type Stats struct {
	Topics        int
	RetainedBytes int64  // held by frames, of Options.MaxBytes
	Stalled       uint64 // blocking subscriptions ended because they took nothing
	Reclaims      uint64 // times the budget was spent
	Reclaimed     uint64 // events that subscriptions lost by that
	// What waits in all rings, and for how long the oldest of it has. A sweep finds it every 50 ms, so both may be that
	// late, and the time is right to 50 ms. Replay, and what a writer has taken and not written, are not in it.
	QueuedBytes int64
	Oldest      time.Duration
}

// Stats returns the hub's state.
func (h *Hub) Stats() Stats {
	h.mu.RLock()
	n := len(h.topics)
	h.mu.RUnlock()
	return Stats{
		Topics: n, RetainedBytes: h.budget.used.Load(),
		Stalled: h.stalled.Load(), Reclaims: h.reclaims.Load(), Reclaimed: h.reclaimed.Load(),
		QueuedBytes: h.queued.Load(), Oldest: time.Duration(h.oldest.Load()),
	}
}

// charge makes room for f in the budget, or waits for it.
func (h *Hub) charge(f *Frame, a *admission) error {
	b := h.budget
	if f.budget != nil || (b.waiting.Load() == 0 && b.try(f)) {
		return nil // charged by an earlier attempt to publish it, or now
	}
	h.pressed.Store(true)
	if a.wait == 0 {
		if b.waiting.Load() == 0 {
			h.reclaim(b.cost(f))
			if b.try(f) {
				return nil
			}
		}
		return ErrTimeout
	}
	w := b.join()
	defer b.leave(w)
	retry := time.NewTicker(sweepEvery) // a sweep may have found more that can be given up
	defer retry.Stop()
	for {
		if b.isFirst(w) {
			h.reclaim(b.cost(f))
			if b.try(f) {
				return nil
			}
		}
		if err := a.await(w, retry.C); err != nil {
			return err
		}
	}
}

// reclaim gives memory up until n bytes of the budget and a part of it are free again, so that it need not be done for
// each publish.
func (h *Hub) reclaim(n int64) {
	h.reclaiming.Lock()
	defer h.reclaiming.Unlock()
	low := h.budget.max - max(h.budget.max/8, n)
	if h.budget.used.Load() <= low {
		return // somebody else has just done it
	}
	h.reclaims.Add(1)
	if h.replaying.Load() > 0 {
		h.mu.RLock()
		topics := slices.Collect(maps.Values(h.topics))
		h.mu.RUnlock()
		for _, t := range topics {
			if h.budget.used.Load() <= low {
				return
			}
			t.forget()
		}
	}
	for h.budget.used.Load() > low {
		s, ok := h.popStuck()
		if !ok {
			return
		}
		s.sub.topic.empty(s)
	}
}

// popStuck takes one subscription off the list of those that the last sweep found stuck.
func (h *Hub) popStuck() (s stuckSubscription, ok bool) {
	h.sweepMu.Lock()
	defer h.sweepMu.Unlock()
	last := len(h.stuck) - 1
	if last < 0 {
		return s, false
	}
	s, h.stuck[last] = h.stuck[last], s
	h.stuck = h.stuck[:last]
	return s, true
}

// sweeper looks at the rings that hold something, as long as there are any. It ends when the hub is closed.
func (h *Hub) sweeper() {
	ticks := h.ticks
	var ticker *time.Ticker
	if ticks == nil {
		ticker = time.NewTicker(sweepEvery)
		defer ticker.Stop()
		ticks = ticker.C
	}
	for {
		select {
		case <-h.done:
			return
		case <-ticks:
		}
		if h.sweep() || ticker == nil {
			continue
		}
		ticker.Stop() // an idle broker does not wake up
		select {
		case <-h.done:
			return
		case <-h.kick:
		}
		ticker.Reset(sweepEvery)
	}
}

// sweep visits each topic that was published to since the last sweep or still has something queued. It reports
// whether anything is left to look at.
func (h *Hub) sweep() bool {
	h.sweepMu.Lock()
	topics := h.dirty
	h.dirty = nil
	h.sweepMu.Unlock()
	pressed := h.pressed.Swap(false) || h.budget.waiting.Load() > 0
	var stuck []stuckSubscription
	totals := sweepTotals{now: time.Since(h.born)}
	for _, t := range topics {
		stuck = t.sweep(stuck, pressed, &totals)
	}
	h.queued.Store(int64(totals.bytes))
	h.oldest.Store(int64(totals.oldest))
	h.sweepMu.Lock()
	h.stuck = stuck
	more := len(h.dirty) > 0
	h.sweepMu.Unlock()
	return more
}

func (h *Hub) markDirty(t *Topic) {
	h.sweepMu.Lock()
	h.dirty = append(h.dirty, t)
	first := len(h.dirty) == 1
	h.sweepMu.Unlock()
	if first {
		select {
		case h.kick <- struct{}{}:
		default:
		}
	}
}
