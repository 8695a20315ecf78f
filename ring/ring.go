// Package ring holds the bounded queues that stand between a publisher and each of its subscribers.
//
// A [Ring] is bounded by bytes and by items and has a stated policy for what happens at the bound: [Block] refuses
// and tells the producer when there is space again, [DropNew] refuses and counts the newcomer, [DropOld] makes space by
// discarding the oldest and counts those. Drops are counted in events, exactly. The ring knows when its consumer has
// found it empty and parked, so that a producer wakes a consumer only when there is one to wake, and once.
//
// What is in the slots, and who writes it to a socket, is left to others. Begin at [New], [Ring.Offer] and [Ring.Take].
package ring

import (
	"fmt"
	"sync"
	"unsafe"
)

// Overflow says what an [Ring.Offer] does when the ring has no space.
type Overflow uint8

const (
	// DropNew refuses the newcomer and counts it as dropped.
	DropNew Overflow = iota
	// DropOld discards the oldest items until the newcomer fits, and counts them as dropped.
	DropOld
	// Block refuses the newcomer without counting it: the producer keeps it and waits for space ([Ring.HasSpace]).
	Block
)

// String returns the name used in configuration: "drop_new", "drop_old" or "block".
func (o Overflow) String() string {
	switch o {
	case DropNew:
		return "drop_new"
	case DropOld:
		return "drop_old"
	case Block:
		return "block"
	}
	return fmt.Sprintf("Overflow(%d)", uint8(o))
}

// MarshalText writes the name that [Overflow.UnmarshalText] reads.
func (o Overflow) MarshalText() ([]byte, error) { return []byte(o.String()), nil }

// UnmarshalText reads a policy's name. It fails on any other word and leaves o as it was.
func (o *Overflow) UnmarshalText(text []byte) error {
	switch string(text) {
	case "drop_new":
		*o = DropNew
	case "drop_old":
		*o = DropOld
	case "block":
		*o = Block
	default:
		return fmt.Errorf("ring: unknown overflow policy %q: want block, drop_new or drop_old", text)
	}
	return nil
}

// Options configure a [Ring]. They are copied by [New].
type Options[T any] struct {
	// MaxBytes bounds the sum of the sizes of the queued items; 0 means 4 MiB. An empty ring takes any one item,
	// however large.
	MaxBytes int
	// MaxItems bounds the number of queued items; 0 means 512.
	MaxItems int
	// Overflow is the policy at the bound.
	Overflow Overflow
	// Discard is called for each item that leaves the ring without being taken. It runs with the ring's lock held
	// and must not call back into the ring. Nil means that there is nothing to release.
	Discard func(T)
	// OnSpace is called, without the lock, when space returns after [Ring.HasSpace] or [Ring.Watch] asked for it. It is
	// called on the goroutine that made the space. Closing the ring makes no space: its caller knows who waits.
	OnSpace func()
	// Charge, if set, is asked before the ring takes memory for more slots, and told with a negative number when it has
	// given some back. If it reports false the ring counts as full. It runs with the ring's lock held and must not call
	// back into the ring.
	Charge func(bytes int) bool
}

// Defaults of [Options].
const (
	DefaultMaxBytes = 4 << 20
	DefaultMaxItems = 512
)

// Result is what [Ring.Offer] did with an item.
type Result uint8

const (
	// Accepted means that the ring holds the item.
	Accepted Result = iota
	// AcceptedWake means that the ring holds the item and that the consumer had parked: the caller must wake it.
	// Only one Offer gets this answer for each time the consumer parks.
	AcceptedWake
	// Full means that the ring refused the item. Under [DropNew] it is counted as dropped.
	Full
	// Closed means that the ring is closed and refused the item.
	Closed
)

type slot[T any] struct {
	item   T
	bytes  int32
	events int32
}

// minSlots is the size of the first slot array; rings grow lazily from there, so that an idle one costs nothing.
const minSlots = 8

// Ring is a bounded queue with one consumer. Any number of goroutines may offer; each Offer is one step, but a
// sequence of them is ordered only if the callers order it themselves. The policy at the bound is fixed at [New].
type Ring[T any] struct {
	maxBytes int
	maxItems int
	overflow Overflow
	discard  func(T)
	onSpace  func()
	charge   func(int) bool

	mu sync.Mutex // guards all below; never held during I/O

	slots  []slot[T] // length is 0 or a power of two
	head   int       // index of the oldest item
	n      int
	bytes  int
	left   uint64 // items that have left the ring, taken or discarded: the position of the oldest
	parked bool
	closed bool
	// Somebody waits for space: for wantBytes and one slot (producer blocked), or for the ring to be half empty.
	wantBytes int
	wantHalf  bool

	takes   uint64 // calls of Take, so that an observer can tell a consumer that moves from one that does not
	dropped uint64 // events
}

// New returns an empty ring whose consumer is parked: the first accepted item asks for a wake-up.
func New[T any](o Options[T]) *Ring[T] {
	r := &Ring[T]{}
	r.Init(o)
	return r
}

// Init makes r an empty ring as [New] does, for rings that are embedded in a larger struct.
func (r *Ring[T]) Init(o Options[T]) {
	if o.MaxBytes <= 0 {
		o.MaxBytes = DefaultMaxBytes
	}
	if o.MaxItems <= 0 {
		o.MaxItems = DefaultMaxItems
	}
	r.maxBytes, r.maxItems, r.overflow = o.MaxBytes, o.MaxItems, o.Overflow
	r.discard, r.onSpace, r.charge = o.Discard, o.OnSpace, o.Charge
	r.parked = true
}

// Bounds returns the bytes and the items that the ring holds at most.
func (r *Ring[T]) Bounds() (maxBytes, maxItems int) { return r.maxBytes, r.maxItems }

// Overflow returns the policy the ring was made with.
func (r *Ring[T]) Overflow() Overflow { return r.overflow }

// Offer places item at the tail and reports what it did. bytes is what the item costs of Options.MaxBytes, events is
// what it counts for when it is dropped. dropped is the number of events that the policy cost: those of the item itself
// under [DropNew], those of older items under [DropOld]. Offer never blocks. On Accepted and AcceptedWake the ring owns
// the item; on Full and Closed it stays the caller's.
func (r *Ring[T]) Offer(item T, bytes, events int) (result Result, dropped int) {
	r.mu.Lock()
	if r.closed {
		r.mu.Unlock()
		return Closed, 0
	}
	if !r.spaceLocked(bytes) || r.n == len(r.slots) && !r.growLocked() {
		if r.overflow != DropOld || len(r.slots) == 0 {
			if r.overflow != Block {
				dropped = events
				r.dropped += uint64(events)
			}
			r.mu.Unlock()
			return Full, dropped
		}
		for r.n > 0 && (!r.spaceLocked(bytes) || r.n == len(r.slots)) {
			dropped += r.dropOldestLocked()
		}
	}
	wake := r.parked
	r.pushLocked(item, bytes, events)
	r.mu.Unlock()
	if wake {
		return AcceptedWake, dropped
	}
	return Accepted, dropped
}

// TryOffer places item at the tail if there is space and memory for it, and reports whether it did. Whatever the policy
// is, nothing is dropped and nothing is counted. It is for the consumer, which is not woken.
func (r *Ring[T]) TryOffer(item T, bytes, events int) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed || !r.spaceLocked(bytes) || r.n == len(r.slots) && !r.growLocked() {
		return false
	}
	r.pushLocked(item, bytes, events)
	return true
}

// pushLocked places an item in a free slot. The consumer has something to take from then on.
func (r *Ring[T]) pushLocked(item T, bytes, events int) {
	r.slots[(r.head+r.n)&(len(r.slots)-1)] = slot[T]{item, int32(bytes), int32(events)}
	r.n++
	r.bytes += bytes
	r.parked = false
}

func (r *Ring[T]) spaceLocked(bytes int) bool {
	return r.n == 0 || (r.n < r.maxItems && r.bytes+bytes <= r.maxBytes)
}

// growLocked doubles the slots. It reports false if there is no memory for that.
func (r *Ring[T]) growLocked() bool {
	old := len(r.slots)
	grown := max(minSlots, 2*old)
	if r.charge != nil && !r.charge((grown-old)*r.slotBytes()) {
		return false
	}
	slots := make([]slot[T], grown)
	for i := range r.n {
		slots[i] = r.slots[(r.head+i)&(old-1)]
	}
	r.slots, r.head = slots, 0
	return true
}

func (r *Ring[T]) slotBytes() int { return int(unsafe.Sizeof(slot[T]{})) }

// freeSlotsLocked gives the slots of an empty ring back.
func (r *Ring[T]) freeSlotsLocked() {
	if r.charge != nil && len(r.slots) > 0 {
		r.charge(-len(r.slots) * r.slotBytes())
	}
	r.slots, r.head = nil, 0
}

// popLocked clears the oldest slot, so that the ring keeps nothing alive that has left it.
func (r *Ring[T]) popLocked() slot[T] {
	s := r.slots[r.head]
	r.slots[r.head] = slot[T]{}
	r.head = (r.head + 1) & (len(r.slots) - 1)
	r.n--
	r.left++
	r.bytes -= int(s.bytes)
	return s
}

// dropOldestLocked returns the number of events that it dropped.
func (r *Ring[T]) dropOldestLocked() int {
	s := r.popLocked()
	r.dropped += uint64(s.events)
	if r.discard != nil {
		r.discard(s.item)
	}
	return int(s.events)
}

// Take moves queued items to out and returns it: as many as fit in maxBytes, but at least one if there is one. The
// caller owns what it took. When nothing was queued, either the ring is closed and ended is true, or the consumer
// counts as parked from here on: the next accepted Offer, or Close, asks for it to be woken. That may happen before
// Take returns, so that a consumer which is started again by a wake-up must leave shared state alone after an empty
// Take. One goroutine may take at a time.
func (r *Ring[T]) Take(out []T, maxBytes int) (_ []T, ended bool) {
	r.mu.Lock()
	r.takes++
	if r.n == 0 {
		ended = r.closed
		r.parked = !ended
		told := r.wantedLocked()
		r.mu.Unlock()
		if told {
			r.onSpace()
		}
		return out, ended
	}
	for first := true; r.n > 0; first = false {
		size := int(r.slots[r.head].bytes)
		if !first && size > maxBytes {
			break
		}
		maxBytes -= size
		out = append(out, r.popLocked().item)
	}
	told := r.wantedLocked()
	r.mu.Unlock()
	if told {
		r.onSpace()
	}
	return out, false
}

// wantedLocked reports whether the space that somebody asked for is there, and forgets the request.
func (r *Ring[T]) wantedLocked() bool {
	switch {
	case r.onSpace == nil:
		return false
	case r.wantHalf && r.bytes <= r.maxBytes/2 && r.n <= r.maxItems/2:
	case r.wantBytes > 0 && r.spaceLocked(r.wantBytes):
	default:
		return false
	}
	r.wantHalf, r.wantBytes = false, 0
	return true
}

// Unpark makes the ring count its consumer as running, so that nothing wakes it: for a consumer that starts by itself,
// because it has something else to do before its first Take. It reports whether the consumer had parked: of all that
// unpark it at the same time one hears so.
func (r *Ring[T]) Unpark() (parked bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	parked, r.parked = r.parked, false
	return parked
}

// Fits reports what [Ring.HasSpace] does, and asks for nothing.
func (r *Ring[T]) Fits(bytes int) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.closed || r.spaceLocked(bytes)
}

// HasSpace reports whether an item of that size would be accepted now without a drop, or the ring is closed and there
// is nothing to wait for. When it is not, Options.OnSpace will be called once as soon as the consumer has made space.
// memory says that only memory for slots is missing, which Options.Charge has refused.
func (r *Ring[T]) HasSpace(bytes int) (ok, memory bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return true, false
	}
	if r.spaceLocked(bytes) {
		if r.n < len(r.slots) || r.growLocked() {
			return true, false
		}
		memory = true
	}
	r.wantBytes = max(bytes, 1)
	return false, memory
}

// Watch asks for one call of Options.OnSpace when the ring is half empty or less. It reports true, and asks for
// nothing, if that is so already.
func (r *Ring[T]) Watch() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.bytes <= r.maxBytes/2 && r.n <= r.maxItems/2 {
		return true
	}
	r.wantHalf = true
	return false
}

// DropAll discards everything queued and counts it as dropped; it returns the number of events. When the consumer takes
// next, Options.OnSpace is called: the one who emptied the ring learns from it that the consumer moves again. ok is
// false, and nothing is done, if the consumer has parked: nothing is queued then, and it would not take before it is
// woken.
func (r *Ring[T]) DropAll() (events int, ok bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.parked {
		return 0, false
	}
	for r.n > 0 {
		events += r.dropOldestLocked()
	}
	r.wantHalf = true
	return events, true
}

// Close refuses all further items. What is queued can still be taken. It reports whether the consumer had parked, in
// which case the caller must wake it so that it sees the end. Closing twice is harmless; only the first call can
// report true.
func (r *Ring[T]) Close() (wake bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	wake = r.parked && !r.closed
	r.closed = true
	r.parked = false
	return wake
}

// Discard releases everything queued without counting it as dropped, for a consumer that has gone.
func (r *Ring[T]) Discard() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for r.n > 0 {
		if s := r.popLocked(); r.discard != nil {
			r.discard(s.item)
		}
	}
	r.freeSlotsLocked()
}

// Stats is a ring's state at one moment.
type Stats struct {
	Items, Bytes int
	Left         uint64 // items that have left so far, taken or dropped: the position of the oldest
	Takes        uint64 // calls of Take so far
	Dropped      uint64 // events dropped so far
	Parked       bool
	Closed       bool
	Grown        bool // it has more slots than [Ring.Trim] leaves it
}

// keptSlots is how many slots a ring keeps for good once it has needed them.
const keptSlots = 64

// Trim frees the slots of an empty ring that once was long, for when its producers have been quiet: the next offers
// make new ones. It reports false, and does nothing, if something is queued.
func (r *Ring[T]) Trim() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.n > 0 {
		return false
	}
	if len(r.slots) > keptSlots {
		r.freeSlotsLocked()
	}
	return true
}

// Stats returns the ring's state.
func (r *Ring[T]) Stats() Stats {
	r.mu.Lock()
	defer r.mu.Unlock()
	return Stats{Items: r.n, Bytes: r.bytes, Left: r.left, Takes: r.takes, Dropped: r.dropped, Parked: r.parked, Closed: r.closed, Grown: len(r.slots) > keptSlots}
}
