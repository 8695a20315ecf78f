// Package fanout turns a publish into deliveries: it keeps the topics, gives each event its place in its topic's
// order, and offers one counted, encoded frame to the ring of every subscription. No event is encoded or copied per
// subscriber.
//
//	Publish ──▶ turn ──▶ sequence numbers ──▶ replay ring          (bounded by bytes)
//	             │                       └──▶ ring of each active subscription ──▶ Take, by its writer
//	             └ waits for space in blocking rings first, in FIFO order
//
// What a slow subscriber costs is decided here. Its ring fills, its policy applies there and its losses are counted
// there; a full [ring.DropNew] ring leaves the topic's active set, so that the next publish does not even look at it,
// and returns when its writer has half emptied it. A full [ring.Block] ring makes publishers wait before any sequence
// number is given out, so that no delivery is partial.
//
// A subscription is a cursor first and a live queue second. One that starts in the past reads the topic's replay page
// by page, and joins live delivery in one step with publishing when what is left fits its queue:
//
//	           Subscribe
//	in the past │      │ at the tail
//	            ▼      ▼
//	       replaying ─▶ live ◀──half empty── paused     (paused: a drop_new queue that was full)
//	            │        │ └───────full────────▲ │
//	            └────────┴──────────┬────────────┘
//	                                ▼
//	                ended: what is queued can still be taken, until a deadline
//
// All memory is charged to the topic's tenant before it is held ([ledger.Share]). When there is none, the tenant that
// is furthest above its guarantee gives first: its replay, then the queues of subscriptions that do not move, then
// those of slow ones.
//
// Encoding, sockets and the policy of who may publish are left to others. Begin at [Hub], [Topic.Publish],
// [Topic.Subscribe] and [Subscription.Take].
//
// The lock order is in docs/design/README.md#lock-order; Topic.mu is the turn. Nothing does I/O under any lock.
package fanout

import (
	"errors"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/felix-mq/felix/internal/ledger"
	"github.com/felix-mq/felix/ring"
)

// Errors of [Topic.Publish] and [Topic.Subscribe].
var (
	// ErrClosed means that the topic was removed. Look it up: it may exist again.
	ErrClosed = errors.New("fanout: topic is closed")
	// ErrDraining means that the hub admits no more publishes, because the process is about to end.
	ErrDraining = errors.New("fanout: draining")
	// ErrTimeout means that the publish waited for space as long as it was allowed to. Nothing was published.
	ErrTimeout = errors.New("fanout: no space in time")
	// ErrMemory means that there is no memory for a subscription, or that its tenant has all that it may have.
	ErrMemory = errors.New("fanout: no memory")
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
	// MaxBytes bounds the memory of all frames held in queues, replay and writes under way; 0 means 512 MiB. It is used
	// if Budget is nil.
	MaxBytes int64
	// Budget is what that memory is charged to, if others share it.
	Budget *ledger.Budget
	// Share returns the share of the budget that a tenant's topics are charged to. It is called with locks of the hub
	// held, when the first topic of a tenant is made, and its Tag is the hub's. Nil means that the hub makes a share
	// with an automatic guarantee for each tenant.
	Share func(tenant string) *ledger.Share
	// StallTimeout ends a blocking subscription that takes nothing for so long while it keeps publishers waiting: its
	// ring has no space, or the budget is spent. Time in which nobody wants to publish does not count. 0 means 30 s.
	StallTimeout time.Duration
	// Ticks, if set, drives the sweep instead of a ticker, one sweep for each value: for tests.
	Ticks <-chan time.Time
}

// sweepEvery is how often subscriptions that hold something are looked at; a consumer is stuck when three sweeps in a
// row find something held and nothing taken, that is after 100 ms.
const (
	sweepEvery = 50 * time.Millisecond
	stuckAfter = 3
)

// scratchPart is the part of the budget that the consumers of one tenant may use to write.
const scratchPart = 8

// endTimeout is for how long a subscription that has ended may be stuck before its consumer is cut off.
const endTimeout = 5 * time.Second

// Hub is the set of topics of one broker. Its methods may be called from any goroutine. It owns one goroutine, which
// sweeps the subscriptions that hold something; [Hub.Close] waits for it.
type Hub struct {
	budget     *ledger.Budget
	newShare   func(string) *ledger.Share // nil: the hub makes them
	epochs     atomic.Uint64              // of the last topic that was made
	stallTicks int32
	ticks      <-chan time.Time

	mu      sync.RWMutex
	topics  map[Key]*Topic
	durable map[*Topic]struct{} // those with a log
	tenants map[string]*tenant  // those that have topics

	sweepMu sync.Mutex
	dirty   []*Topic // topics with something to look at
	kick    chan struct{}
	found   []*tenant // whose lists the last sweep has filled; the sweeper's own

	reclaiming sync.Mutex
	fruitless  atomic.Bool // the last reclaim found nothing, and no sweep has looked since

	draining  chan struct{}
	drainOnce sync.Once
	done      chan struct{}
	closeOnce sync.Once
	wg        sync.WaitGroup

	deliveries sync.WaitGroup // goroutines that offer what logs have committed
	fallBacks  atomic.Uint64
	expired    atomic.Uint64 // events that retention removed before a subscription came to them
	unreadable atomic.Uint64

	stalled   atomic.Uint64
	reclaims  atomic.Uint64
	dropped   atomic.Uint64 // events that queues had no space for
	reclaimed atomic.Uint64 // events given up for want of memory

	born   time.Time
	queued atomic.Int64 // as the last sweep found it: bytes,
	oldest atomic.Int64 // and nanoseconds
}

// sweepTotals is what a sweep adds up over all queues.
type sweepTotals struct {
	now     time.Duration // since the hub was made
	bytes   int
	oldest  time.Duration
	pressed map[*tenant]bool // tenants that were looked at, and whether their publishers found no memory
}

// isPressed reports whether publishers of the tenant found no memory since the last sweep.
func (s *sweepTotals) isPressed(n *tenant) bool {
	p, ok := s.pressed[n]
	if !ok {
		p = n.pressed.Swap(false) || n.share.Waiting() > 0
		s.pressed[n] = p
	}
	return p
}

// NewHub returns a hub without topics.
func NewHub(o Options) *Hub {
	if o.MaxBytes <= 0 {
		o.MaxBytes = 512 << 20
	}
	if o.StallTimeout <= 0 {
		o.StallTimeout = 30 * time.Second
	}
	if o.Budget == nil {
		o.Budget = ledger.New(o.MaxBytes)
	}
	h := &Hub{
		budget:     o.Budget,
		newShare:   o.Share,
		stallTicks: max(stuckAfter, int32(o.StallTimeout/sweepEvery)),
		ticks:      o.Ticks,
		topics:     make(map[Key]*Topic),
		durable:    make(map[*Topic]struct{}),
		tenants:    make(map[string]*tenant),
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
func (h *Hub) Register(k Key, p Policy) *Topic { return h.register(k, p, nil) }

// RegisterDurable is [Hub.Register] for a topic whose events a log keeps.
func (h *Hub) RegisterDurable(k Key, p Policy, log Log) *Topic { return h.register(k, p, log) }

func (h *Hub) register(k Key, p Policy, log Log) *Topic {
	h.mu.Lock()
	defer h.mu.Unlock()
	if t := h.topics[k]; t != nil {
		return t
	}
	n := h.tenants[k.Tenant]
	if n == nil {
		n = h.newTenant(k.Tenant)
		h.tenants[k.Tenant] = n
	}
	n.topics++
	t := newTopic(h, n, k, p, log)
	h.topics[k] = t
	if log != nil {
		h.durable[t] = struct{}{}
	}
	return t
}

// newTenant returns a tenant that has no topics yet.
func (h *Hub) newTenant(name string) *tenant {
	n := &tenant{}
	if h.newShare == nil {
		n.share, n.own = h.budget.Share(ledger.Automatic, 0), true
	} else {
		n.share = h.newShare(name)
		if before, ok := n.share.Tag.(*tenant); ok { // it has had topics before, which may still hold something
			return before
		}
	}
	n.share.Tag = n
	n.scratch = ledger.NewAccount(h.budget.Max()/scratchPart, n.share)
	return n
}

// unregisterLocked takes a topic's place in its tenant, with Hub.mu held. A tenant without topics is forgotten: what is
// made under its name later is another one.
func (h *Hub) unregisterLocked(t *Topic) {
	delete(h.durable, t)
	n := t.tenant
	if n.topics--; n.topics > 0 {
		return
	}
	delete(h.tenants, t.key.Tenant)
	if n.own {
		n.share.Close()
	}
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
	if t != nil {
		h.unregisterLocked(t)
	}
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

// DurableTopics returns the topics that have a log, in no order. Its time does not depend on the number of others.
func (h *Hub) DurableTopics() []*Topic {
	h.mu.RLock()
	defer h.mu.RUnlock()
	return slices.Collect(maps.Keys(h.durable))
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
	for _, t := range topics {
		h.unregisterLocked(t)
	}
	h.mu.Unlock()
	for _, t := range topics {
		t.close()
	}
	h.closeOnce.Do(func() { close(h.done) })
	h.wg.Wait()
}

// AwaitDeliveries returns when what logs have committed has been offered. It is called when they commit nothing more.
func (h *Hub) AwaitDeliveries() { h.deliveries.Wait() }

// Stats is a hub's state at one moment.
type Stats struct {
	Topics        int
	RetainedBytes int64  // charged to the budget
	Stalled       uint64 // subscriptions ended because they took nothing
	Reclaims      uint64 // times that memory was given up
	Dropped       uint64 // events that subscriptions lost because their queue had no space
	Reclaimed     uint64 // events that subscriptions lost because there was no memory
	FallBacks     uint64 // times that a subscription of a durable topic had to read on from the log
	Expired       uint64 // events that retention removed before a subscription of a durable topic came to them
	Unreadable    uint64 // subscriptions ended because the log could not be read
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
		Topics: n, RetainedBytes: h.budget.Used(),
		Stalled: h.stalled.Load(), Reclaims: h.reclaims.Load(), Dropped: h.dropped.Load(), Reclaimed: h.reclaimed.Load(),
		FallBacks: h.fallBacks.Load(), Expired: h.expired.Load(), Unreadable: h.unreadable.Load(),
		QueuedBytes: h.queued.Load(), Oldest: time.Duration(h.oldest.Load()),
	}
}

// reclaim gives memory up so that n bytes can be charged to the tenant, and some more, so that it need not be done for
// each publish. If the tenant has reached its own maximum it gives by itself. If the common part of the budget is
// spent, those give that are furthest above their guarantee; if they cannot, the tenant gives of what it has itself. It
// reports whether trying again is worthwhile.
func (h *Hub) reclaim(who *tenant, n int64, why error) bool {
	own := errors.Is(why, ledger.ErrLimit)
	if (own || h.fruitless.Load()) && !who.mayGive() {
		return false
	}
	h.reclaiming.Lock()
	defer h.reclaiming.Unlock()
	if !own && !h.fruitless.Load() {
		if _, size := h.budget.Common(); h.relieve(size - max(size/8, n)) {
			return true
		}
	}
	if !who.mayGive() {
		return false
	}
	h.reclaims.Add(1)
	used := who.share.Used()
	low := max(used-max(used/8, n), 0)
	return who.give(func() bool { return who.share.Used() <= low })
}

// relieve makes tenants give until the common part of the budget has no more than low used, with reclaiming held. It
// reports whether anything was given up.
func (h *Hub) relieve(low int64) (gave bool) {
	low = max(low, 0)
	enough := func() bool {
		used, _ := h.budget.Common()
		return used <= low
	}
	if enough() {
		return true // somebody else has just done it
	}
	h.reclaims.Add(1)
	var spared map[*ledger.Share]bool // have nothing left to give
	for !enough() {
		share := h.budget.Furthest(spared)
		if share == nil {
			break
		}
		// It gives an eighth of what it has above its guarantee at a time, so that those that are equally far give
		// alike, but not so little that many tenants make this long.
		goal := share.Above() - max(share.Above()/8, h.budget.Max()/64)
		who, ok := share.Tag.(*tenant)
		if ok && who.give(func() bool { return share.Above() <= goal || enough() }) {
			gave = true
			continue
		}
		if spared == nil {
			spared = make(map[*ledger.Share]bool)
		}
		spared[share] = true
	}
	h.fruitless.Store(!gave)
	return gave
}

// sweeper looks at the subscriptions that hold something, as long as there are any. It ends when the hub is closed.
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

// sweep visits each topic that was published to since the last sweep or has something queued. It reports whether
// anything is left to look at.
func (h *Hub) sweep() bool {
	h.sweepMu.Lock()
	topics := h.dirty
	h.dirty = nil
	h.sweepMu.Unlock()
	for _, n := range h.found {
		n.mu.Lock()
		clear(n.stuck)
		clear(n.slow)
		n.stuck, n.slow = n.stuck[:0], n.slow[:0]
		n.mu.Unlock()
	}
	h.found = h.found[:0]
	totals := sweepTotals{now: time.Since(h.born), pressed: make(map[*tenant]bool)}
	for _, t := range topics {
		t.sweep(&totals)
	}
	h.queued.Store(int64(totals.bytes))
	h.oldest.Store(int64(totals.oldest))
	for n := range totals.pressed {
		h.found = append(h.found, n)
	}
	h.fruitless.Store(false)
	// Guarantees of tenants that came since may leave less in common than is used.
	if used, size := h.budget.Common(); used > size {
		h.reclaiming.Lock()
		h.relieve(size)
		h.reclaiming.Unlock()
	}
	h.sweepMu.Lock()
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
