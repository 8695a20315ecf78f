// Package nearcache keeps values of a cache in the memory of a process, so that a get of one of them costs no round
// trip. The broker tells it what changes ([client.Cache.Watch]), and what has changed is asked for again.
//
// A get returns the present value, or one that was replaced or removed so shortly ago that the broker's word of it is
// still on its way. That takes about as long as a round trip. It can take longer only if the connection is lost
// silently, which shows after [client.Transport].IdleTimeout, or if this process is too busy to hear; Options.MaxAge
// bounds it in any case. From the moment at which the watch is known to be lost until it is made again nothing is kept
// and every get goes to the broker: there is nobody who would say what has changed, and a get that fails says more than
// an old value.
//
// Begin at [New].
package nearcache

import (
	"container/list"
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"sync"
	"time"

	"github.com/felix-mq/felix/client"
)

// Options bound a [Cache].
type Options struct {
	// MaxEntries is how many values are kept at most; 0 means 10 000.
	MaxEntries int
	// MaxBytes is what they take at most, with their keys and 256 bytes for each; 0 means 16 MiB.
	MaxBytes int
	// MaxAge is how long after it was asked for a value is served at most, whatever the broker tells; 0 means 30 s.
	MaxAge time.Duration
}

// Cache keeps values of one cache.
//
// Once it has heard of a change, no get that begins afterwards returns what was before it. Writes of its own are seen
// by its gets as soon as they return, and those of other handles when the broker tells of them. The values that gets of
// one key return one after the other are never older than those before.
//
// Its methods may be called from many goroutines.
type Cache struct {
	o     Options
	h     *client.Cache
	fetch func(ctx context.Context, key string) client.CacheResult
	now   func() int64 // in nanoseconds
	stop  context.CancelFunc
	done  chan struct{}

	mu      sync.Mutex // guards all below
	entries map[string]*list.Element
	order   list.List // of *entry, the one that was used last in front
	stats   Stats
	// A value may be kept if nothing was heard of its key since it was asked for: while an answer is on its way, the
	// change that makes it old may pass it on another connection. Keys share the numbers by hash, all of them the last
	// one.
	heard    [256]uint64
	heardAll uint64
}

type entry struct {
	key     string
	value   []byte
	version uint64
	asked   int64 // when
}

func (e *entry) bytes() int { return len(e.key) + len(e.value) + 256 }

// Stats is what a [Cache] holds and has done.
type Stats struct {
	Up      bool // the broker tells of changes; otherwise nothing is kept
	Entries int
	Bytes   int

	Hits, Misses  uint64 // gets that were answered here, and by the broker
	Evictions     uint64 // for lack of space
	Invalidations uint64 // of values that have changed
	Resets        uint64 // times that everything was forgotten
}

// retryAfter is the pause after a watch that the broker refuses.
const retryAfter = 2 * time.Second

// New makes a Cache of values of c. It begins to watch in the background, and keeps values once it does. It ends with
// [Cache.Close] or with the client. With a broker without the extension cache, or without the permission to read, every
// get goes to the broker. It fails with [client.ErrInvalidOption] if an option is negative.
func New(c *client.Cache, o Options) (*Cache, error) {
	if c == nil {
		return nil, client.ErrNotMade
	}
	if o.MaxEntries < 0 || o.MaxBytes < 0 || o.MaxAge < 0 {
		return nil, fmt.Errorf("nearcache: %d entries, %d bytes, %v: negative: %w", o.MaxEntries, o.MaxBytes, o.MaxAge, client.ErrInvalidOption)
	}
	began := time.Now()
	n := newCache(o, func(ctx context.Context, key string) client.CacheResult { return c.GetMany(ctx, key)[0] },
		func() int64 { return int64(time.Since(began)) })
	n.h = c
	var ctx context.Context
	ctx, n.stop = context.WithCancel(context.Background()) // ends with Close; run ends with the client as well
	go n.run(ctx)
	return n, nil
}

func newCache(o Options, fetch func(context.Context, string) client.CacheResult, now func() int64) *Cache {
	if o.MaxEntries == 0 {
		o.MaxEntries = 10_000
	}
	if o.MaxBytes == 0 {
		o.MaxBytes = 16 << 20
	}
	if o.MaxAge == 0 {
		o.MaxAge = 30 * time.Second
	}
	return &Cache{o: o, fetch: fetch, now: now, entries: make(map[string]*list.Element), done: make(chan struct{})}
}

// made reports whether the Cache was made by [New].
func (n *Cache) made() bool { return n != nil && n.h != nil }

// Close ends the watch and forgets all values. Gets go on, and go to the broker. It may be called twice, and returns
// nil.
func (n *Cache) Close() error {
	if n.made() {
		n.stop()
		<-n.done
	}
	return nil
}

// run watches until ctx ends, or the client does. A watch that the broker refuses is asked for again: tokens and caches
// come and go.
func (n *Cache) run(ctx context.Context) {
	defer close(n.done)
	defer n.down()
	pause := time.NewTimer(retryAfter)
	defer pause.Stop()
	for {
		var last error
		for e, err := range n.h.Watch(ctx, client.OnWatchLost(n.down)) {
			if last = err; err == nil {
				n.apply(e)
			}
		}
		if errors.Is(last, client.ErrClosed) || errors.Is(last, client.ErrNotMade) {
			return
		}
		pause.Reset(retryAfter)
		select {
		case <-ctx.Done():
			return
		case <-pause.C:
		}
	}
}

// Get is [client.Cache.Get].
func (n *Cache) Get(ctx context.Context, key string) ([]byte, error) {
	value, err := n.AppendGet(ctx, []byte{}, key)
	if err != nil {
		return nil, err
	}
	return value, nil
}

// AppendGet appends the value stored under key to dst. It fails like [client.Cache.Get], and returns dst as it was
// then. A value that is kept is not asked for, and costs no allocation if dst has space for it.
func (n *Cache) AppendGet(ctx context.Context, dst []byte, key string) ([]byte, error) {
	if !n.made() {
		return dst, client.ErrNotMade
	}
	dst, hit, t := n.lookup(dst, key)
	if hit {
		return dst, nil
	}
	r := n.fetch(ctx, key)
	n.keep(key, r, t)
	if r.Err != nil {
		return dst, r.Err
	}
	return append(dst, r.Value...), nil
}

// Put is [client.Cache.Put]. The Cache's gets see the value when it returns, or a later one.
func (n *Cache) Put(ctx context.Context, key string, value []byte, ttl time.Duration) error {
	if !n.made() {
		return client.ErrNotMade
	}
	defer n.forget(key)
	return n.h.Put(ctx, key, value, ttl)
}

// PutIf is [client.Cache.PutIf], and is seen like Put.
func (n *Cache) PutIf(ctx context.Context, key string, value []byte, ttl time.Duration, expected uint64) (version uint64, err error) {
	if !n.made() {
		return 0, client.ErrNotMade
	}
	defer n.forget(key)
	return n.h.PutIf(ctx, key, value, ttl, expected)
}

// Delete is [client.Cache.Delete], and is seen like Put.
func (n *Cache) Delete(ctx context.Context, key string) (found bool, err error) {
	if !n.made() {
		return false, client.ErrNotMade
	}
	defer n.forget(key)
	return n.h.Delete(ctx, key)
}

// Stats returns what the Cache holds and has done.
func (n *Cache) Stats() Stats {
	if n == nil {
		return Stats{}
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.stats
}

// ticket is what there was to hear of a key when it was asked for, and when that was.
type ticket struct {
	heard uint64
	asked int64
}

var seed = maphash.MakeSeed()

// of returns the number that changes whenever something is heard of the key.
func (n *Cache) of(key string) *uint64 {
	return &n.heard[maphash.String(seed, key)%uint64(len(n.heard))]
}

// lookup appends the value that is kept, or returns what keep has to know of the value that is asked for now.
func (n *Cache) lookup(dst []byte, key string) (_ []byte, hit bool, t ticket) {
	t.asked = n.now()
	n.mu.Lock()
	defer n.mu.Unlock()
	if el := n.entries[key]; el != nil {
		if e := entryOf(el); t.asked-e.asked <= int64(n.o.MaxAge) {
			n.order.MoveToFront(el)
			n.stats.Hits++
			return append(dst, e.value...), true, t
		}
		n.remove(el)
	}
	n.stats.Misses++
	t.heard = n.heardAll + *n.of(key) // both only grow
	return dst, false, t
}

func entryOf(el *list.Element) *entry {
	e, _ := el.Value.(*entry)
	return e
}

// keep keeps the answer to what was asked for with t, if that may and can be. Otherwise the answer is newer than what
// others, who are still waiting, may get, and they must not keep theirs: a get after this one would see the past.
func (n *Cache) keep(key string, r client.CacheResult, t ticket) {
	if r.Err != nil && !errors.Is(r.Err, client.ErrMiss) {
		return
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	may := n.stats.Up && r.Err == nil && t.heard == n.heardAll+*n.of(key)
	if el := n.entries[key]; el != nil {
		if r.Err == nil && r.Version <= entryOf(el).version {
			return
		}
		n.remove(el)
	}
	e := &entry{key: key, version: r.Version, asked: t.asked}
	if may && e.bytes()+len(r.Value) <= n.o.MaxBytes {
		e.value = append(e.value, r.Value...) // which may be a part of something larger
		n.entries[key] = n.order.PushFront(e)
		n.stats.Entries++
		n.stats.Bytes += e.bytes()
		for n.stats.Entries > n.o.MaxEntries || n.stats.Bytes > n.o.MaxBytes {
			n.stats.Evictions++
			n.remove(n.order.Back())
		}
		return
	}
	*n.of(key)++
}

// remove forgets a value, and so do those who are still waiting for an older one.
func (n *Cache) remove(el *list.Element) {
	e := entryOf(el)
	*n.of(e.key)++
	n.order.Remove(el)
	delete(n.entries, e.key)
	n.stats.Entries--
	n.stats.Bytes -= e.bytes()
}

// forget is called when a write of our own is over, however it went.
func (n *Cache) forget(key string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if el := n.entries[key]; el != nil {
		n.remove(el)
	} else {
		*n.of(key)++
	}
}

// apply hears of a change.
func (n *Cache) apply(e client.CacheEvent) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if e.Kind == client.CacheReset {
		n.clear()
		n.stats.Up = true
		return
	}
	el := n.entries[string(e.Key)]
	switch {
	case el == nil:
		*n.of(string(e.Key))++
	case entryOf(el).version < e.Version: // else it is the change itself that is kept, or a later one
		n.stats.Invalidations++
		n.remove(el)
	}
}

// down hears that there will be nothing to hear.
func (n *Cache) down() {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.clear()
	n.stats.Up = false
}

func (n *Cache) clear() {
	clear(n.entries)
	n.order.Init()
	n.stats.Entries, n.stats.Bytes = 0, 0
	n.stats.Resets++
	n.heardAll++
}
