package cache

import (
	"sync/atomic"

	"github.com/dgraph-io/ristretto/v2"
)

// policy is one tenant's ristretto, reduced to what it is good at: saying which entries have to go. What it does
// besides would break promises of this package, so it is used in a narrow way:
//
//   - Its writes go through a buffer that drops what does not fit, costs of updates included, silently. Here writers
//     count what they push, and wait before it can be full ([tenant.begin], [tenant.settle]).
//   - A second write of a new key, before the first was admitted, comes out of ristretto as refused, and an update that
//     costs more frees no space. Here every entry is set once and deleted once, in this order, under its shard's lock;
//     an overwrite of the same cost stays within the entry, and one of another cost is a new entry.
//   - A key that is set, deleted and set again becomes an update, if the first is admitted just before the second, and
//     then the deletion takes the update with it. Here no set is ever an update.
//   - Whether a write is admitted shows later, on a goroutine of ristretto's. Until then the entry is readable; then
//     refused is called, as for an eviction, and removes it.
//   - It counts neither keys nor overhead: costs are those of this package.
//   - Its lifetimes are swept in buckets of 5 seconds and 0 means for ever: it gets none.
//   - It evicts only when something is added. So its bound is lowered in small steps ([tenant.press]), or one addition
//     would evict a large part of the cache at once.
type policy struct {
	r        *ristretto.Cache[uint64, *entry]
	counters int64       // of its sketch
	dead     atomic.Bool // what it decides does not count any more

	most   atomic.Int64 // its bound in bytes
	pushed atomic.Int64 // operations, since the buffer was known to be empty
}

const (
	// maxPushed is how many operations may push before somebody waits for the buffer; each pushes at most pushesPerOp
	// times, and all together stay below the 32 768 places of the buffer.
	maxPushed   = 4096
	pushesPerOp = 3

	// policyFrom is how many bytes a tenant uses when it gets a policy; below half of that it loses it again. A policy
	// takes about 320 KiB and its sketch. Tenants below are served by the second-chance algorithm alone, which
	// takes nothing.
	policyFrom = 4 << 20

	// For entries of 1 KiB a sketch has two counters each, of 4 bytes at most. What the sketches of all tenants may
	// take is bounded in [sketches].
	bytesPerCounter = 512
	minCounters     = 1 << 14
	maxCounters     = 1 << 26
)

// newPolicy returns a policy with a bound in bytes. refused is called on its goroutine for an entry that it evicts or
// does not admit.
func newPolicy(counters, most int64, refused func(*entry)) *policy {
	p := &policy{counters: counters}
	drop := func(item *ristretto.Item[*entry]) {
		if item.Value != nil && !p.dead.Load() { // without a value it was deleted meanwhile
			refused(item.Value)
		}
	}
	var err error
	p.r, err = ristretto.NewCache(&ristretto.Config[uint64, *entry]{
		NumCounters:        counters,
		MaxCost:            max(most, 1),
		BufferItems:        64,
		IgnoreInternalCost: true,
		KeyToHash:          func(hash uint64) (uint64, uint64) { return hash, 0 },
		ShouldUpdate:       func(_, _ *entry) bool { return false }, // see above
		OnEvict:            drop,
		OnReject:           drop,
	})
	if err != nil {
		panic("cache: " + err.Error()) // its numbers are constants
	}
	p.most.Store(most)
	return p
}

// setMost changes the bound.
func (p *policy) setMost(n int64) {
	if p.most.Swap(n) != n {
		p.r.UpdateMaxCost(n)
	}
}

// set adds a new entry. It reports false if it is refused at once. The caller holds the lock of the entry's shard, and
// is between [tenant.begin] and [tenant.end].
func (p *policy) set(e *entry) bool { return p.r.Set(e.hash, e, e.cost) }

// del forgets an entry, under the rules of set.
func (p *policy) del(hash uint64) { p.r.Del(hash) }

// touch notes that a key was asked for, whether it is there or not. The caller holds the lock of the key's shard, or is
// between begin and end, so that the policy is not closed meanwhile.
func (p *policy) touch(hash uint64) { p.r.Get(hash) }

// wait waits until all that was pushed is decided. Nobody may push meanwhile.
func (p *policy) wait() {
	p.r.Wait()
	p.pushed.Store(0)
}

func (p *policy) close() {
	p.dead.Store(true)
	p.r.Close()
}

// sketches divides the counters that all sketches together may have: twice what one for the whole store takes, which is
// at most 1/64 of its bytes. Each tenant gets what is right for its bound, but at most half of what is left, so that
// the first ones do not take it all.
type sketches struct{ left int64 }

func newSketches(maxBytes int64) sketches {
	return sketches{2 * max(min(maxBytes/bytesPerCounter, maxCounters), minCounters)}
}

func (s *sketches) take(bound int64) int64 {
	n := max(min(bound/bytesPerCounter, s.left/2), minCounters)
	s.left -= n // below zero by the least size of some
	return n
}

func (s *sketches) give(n int64) { s.left += n }
