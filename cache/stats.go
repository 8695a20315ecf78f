package cache

import (
	"sync/atomic"
)

// Stats is a scope's state and what has happened in it. What has happened only grows.
type Stats struct {
	Entries int
	Bytes   int64 // charged: keys, buffers and overhead

	Hits, Misses uint64
	Evicted      uint64 // for lack of space, refused by the policy, or displaced by a key with the same hash
	Expired      uint64
	Refused      uint64 // puts that ended with [ErrLimit]
}

// what is something that is counted.
type what int

const (
	hits what = iota
	misses
	evicted
	expired
	refused
	whats // how many there are
)

// counters are the statistics of a scope, or of several. They are changed where things happen, and outlive the caches
// that they are about, so that their sums never fall.
type counters struct {
	n       [whats]atomic.Uint64
	entries atomic.Int64
	bytes   atomic.Int64
}

func (n *counters) size(bytes, entries int64) {
	n.bytes.Add(bytes)
	n.entries.Add(entries)
}

func (n *counters) stats() Stats {
	return Stats{
		Entries: int(n.entries.Load()), Bytes: n.bytes.Load(),
		Hits: n.n[hits].Load(), Misses: n.n[misses].Load(),
		Evicted: n.n[evicted].Load(), Expired: n.n[expired].Load(), Refused: n.n[refused].Load(),
	}
}

// count gives a new cache its counters, with Store.mu held. The first scopes that the store meets have a series each,
// for good: a cache that is removed and made again goes on with its counts.
func (c *Cache) count(scope Scope) {
	s := c.store
	if c.own = s.series[scope]; c.own != nil {
		return
	}
	c.own = new(counters)
	if len(s.series) < s.maxSeries {
		s.series[scope] = c.own
	} else {
		c.rest = &s.others
	}
}

func (c *Cache) add(w what) {
	c.own.n[w].Add(1)
	if c.rest != nil {
		c.rest.n[w].Add(1)
	}
}

// Stats returns the scope's counters. One that has a series ([Options.Series]) goes on with those of a removed scope of
// its name.
func (c *Cache) Stats() Stats { return c.own.stats() }

// Series calls f with the statistics of each of the first scopes that the store has had, as many as [Options.Series]
// says, in no order. Those that have been removed are among them. It returns the sum of all others.
func (s *Store) Series(f func(Scope, Stats)) (others Stats) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	for scope, n := range s.series {
		f(scope, n.stats())
	}
	return s.others.stats()
}
