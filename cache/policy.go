package cache

import (
	"sync"
	"sync/atomic"

	"github.com/dgraph-io/ristretto/v2"
)

// policy is ristretto, reduced to what it is good at: saying which entries have to go. What it does besides would
// break promises of ours, so it is used in a narrow way:
//
//   - Its writes go through a buffer that drops what does not fit, costs of updates included, silently. Here writers
//     count what they push, and wait for the buffer to be worked off before it can be full (begin, settle).
//   - A second write of a new key, before the first was admitted, comes out of ristretto as refused, and an update that costs
//     more makes no room. Here every entry is set once and deleted once, in this order, under the lock of its shard;
//     an overwrite of the same cost stays within the entry, and one of another cost is a new entry.
//   - A key that is set, deleted and set again becomes an update, if the first is admitted just before the second, and then the
//     deletion takes the update with it. Here no set is ever an update.
//   - Whether a write is admitted shows later, on a goroutine of ristretto's. Until then the entry is readable; then
//     refused is called, as for an eviction, and removes it.
//   - It counts neither keys nor overhead: costs are ours.
//   - Its lifetimes are swept in buckets of 5 seconds and 0 means for ever: it is told of none.
//
// Below its bound is room for what is pushed and not decided.
type policy struct {
	r        *ristretto.Cache[uint64, *entry]
	maxBytes int64 // pushed ahead of decisions

	feed   sync.RWMutex // held shared by those who push
	pushed atomic.Int64 // writes, since the buffer was known to be empty
	bytes  atomic.Int64 // cost of these
}

const (
	// maxPushed is how many operations may push before somebody waits for the buffer; each pushes at most pushesPerOp
	// times, and all together stay below the 32 768 places of the buffer.
	maxPushed   = 4096
	pushesPerOp = 3
	// undecidedPart is the part of the byte bound that pushed entries may take, and one entry more.
	undecidedPart = 16
)

func newPolicy(maxBytes int64, refused func(*entry)) *policy {
	drop := func(item *ristretto.Item[*entry]) {
		if item.Value != nil { // else it was deleted meanwhile
			refused(item.Value)
		}
	}
	p := &policy{maxBytes: maxBytes / undecidedPart}
	var err error
	p.r, err = ristretto.NewCache(&ristretto.Config[uint64, *entry]{
		// For entries of 1 KiB two counters each. They take about 3 bytes.
		NumCounters:        max(maxBytes/512, 1<<10),
		MaxCost:            maxBytes - p.maxBytes,
		BufferItems:        64,
		IgnoreInternalCost: true,
		KeyToHash:          func(hash uint64) (uint64, uint64) { return hash, 0 },
		ShouldUpdate:       func(_, _ *entry) bool { return false }, // see above
		OnEvict:            drop,
		OnReject:           drop,
	})
	if err != nil {
		panic("cache: " + err.Error()) // its numbers are ours
	}
	return p
}

// begin waits until there is room for an operation that adds an entry of the given cost. It is called before any lock is taken.
func (p *policy) begin(cost int64) {
	for {
		p.feed.RLock()
		if p.pushed.Add(1) <= maxPushed && p.bytes.Add(cost) <= max(p.maxBytes, cost) {
			return
		}
		p.feed.RUnlock()
		p.settle()
	}
}

// end follows begin.
func (p *policy) end() { p.feed.RUnlock() }

// settle waits until all that was pushed is decided. Nobody pushes meanwhile.
func (p *policy) settle() {
	p.feed.Lock()
	defer p.feed.Unlock()
	p.r.Wait()
	p.pushed.Store(0)
	p.bytes.Store(0)
}

// set tells of a new entry. It reports false if it is refused at once. The caller holds the lock of the entry's shard, and is
// between begin and end.
func (p *policy) set(e *entry) bool { return p.r.Set(e.hash, e, e.cost) }

// del tells that an entry is gone, under the rules of set.
func (p *policy) del(hash uint64) { p.r.Del(hash) }

// touch tells that a key was asked for, whether it is there or not.
func (p *policy) touch(hash uint64) { p.r.Get(hash) }

func (p *policy) close() { p.r.Close() }
