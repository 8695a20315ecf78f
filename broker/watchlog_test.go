package broker

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/felix-mq/felix/cache"
	"github.com/felix-mq/felix/codec"
	"github.com/felix-mq/felix/internal/buf"
	"github.com/felix-mq/felix/internal/ledger"
)

var watchSeed = flag.Uint64("watch.seed", 0, "seed of the random tests of watch logs; 0 chooses one")

// logModel is a log with a list of all changes that were made.
type logModel struct {
	watchLog
	lostCount atomic.Uint64
	changes   []cache.Event // guarded by mu
}

func newLogModel(limit int64, bound, most int) *logModel {
	m := &logModel{}
	m.init(ledger.NewAccount(limit, nil), bound, most, &m.lostCount, new(atomic.Int64))
	return m
}

func (m *logModel) change(key string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	e := cache.Event{Kind: cache.Set, Version: uint64(len(m.changes)), Key: []byte(key)}
	m.appendLocked(e)
	if m.cursors > 0 { // otherwise the log does not number it
		m.changes = append(m.changes, e)
	}
}

// modelReader holds what one cursor reads against the changes that were made.
type modelReader struct {
	m      *logModel
	cursor logCursor
	next   int // the change that comes next, unless some are lost
	got    int
	made   int // changes since it joined; set when it leaves
}

func (m *logModel) join() *modelReader {
	m.mu.Lock()
	defer m.mu.Unlock()
	r := &modelReader{m: m, next: len(m.changes), made: -len(m.changes)}
	m.joinLocked(&r.cursor)
	return r
}

// step takes something, and keeps it or gives it back. It reports false if there was nothing.
func (r *modelReader) step(limit int, keep bool, pause func()) (bool, error) {
	m := r.m
	m.mu.Lock()
	defer m.mu.Unlock()
	part, lost, ok := m.takeLocked(&r.cursor, limit)
	if lost {
		at := int(r.cursor.seq) - part.events
		if at <= r.next {
			return false, fmt.Errorf("told of a gap at %d, expected %d", at, r.next)
		}
		r.next = at
	}
	if !ok {
		return false, nil
	}
	m.mu.Unlock()
	pause()
	rest, n := part.bytes(), 0
	var failed error
	for len(rest) > 0 && failed == nil {
		e, behind, err := codec.ParseCacheEvent(rest)
		if want := r.next + n; err != nil || e.Version != uint64(want) {
			failed = fmt.Errorf("got change %d, %w, want %d", e.Version, err, want)
		}
		rest = behind
		n++
	}
	part.chunk.Release()
	m.mu.Lock()
	if n != part.events && failed == nil {
		failed = fmt.Errorf("%d events in a part of %d", n, part.events)
	}
	if !keep {
		m.backLocked(&r.cursor, &part)
		return true, failed
	}
	r.next += n
	r.got += n
	m.doneLocked(&part)
	return true, failed
}

// leave takes the reader out. What it has not read by then is neither read nor lost.
func (r *modelReader) leave() {
	r.m.mu.Lock()
	defer r.m.mu.Unlock()
	r.made += len(r.m.changes)
	r.m.leaveLocked(&r.cursor)
}

// TestWatchLogModel: every reader sees all changes in order, or an exact gap; what was read and what was lost are all
// changes together; and an idle log holds nothing.
func TestWatchLogModel(t *testing.T) {
	seed := *watchSeed
	if seed == 0 {
		seed = rand.Uint64()
	}
	t.Logf("-watch.seed=%d", seed)
	for _, o := range []struct {
		limit       int64
		bound, most int
	}{{0, 4 << 10, 1 << 10}, {0, 64 << 10, 64 << 10}, {2 << 10, 8 << 10, 300}, {100, 1 << 10, 1 << 10}} {
		live := buf.Live()
		m := newLogModel(o.limit, o.bound, o.most)
		var writers, readers sync.WaitGroup
		done := make(chan struct{})
		for i := range 3 {
			r := rand.New(rand.NewPCG(seed, uint64(i)))
			writers.Go(func() {
				for range 1500 {
					m.change(fmt.Sprintf("%0*d", 1+r.IntN(30+r.IntN(300)), 0))
				}
			})
		}
		var sum atomic.Int64 // of what readers got, and must have got or lost
		for i := range 8 {
			r := rand.New(rand.NewPCG(seed, uint64(100+i)))
			readers.Go(func() {
				reader := m.join()
				slow := i%2 == 1
				for over := false; ; {
					select {
					case <-done:
						over = true
					default:
					}
					some, err := reader.step(1+r.IntN(2000), r.IntN(8) > 0, func() {
						for slow && !over && r.IntN(50) > 0 {
							m.mu.Lock()   // gives others a chance
							m.mu.Unlock() //nolint:staticcheck // the critical section is that of others
						}
					})
					if err != nil {
						t.Error(err)
						return
					}
					if over && !some {
						break
					}
				}
				reader.leave()
				if reader.next != len(m.changes) {
					t.Errorf("ended at change %d of %d", reader.next, len(m.changes))
				}
				sum.Add(int64(reader.got - reader.made))
			})
		}
		writers.Wait()
		close(done)
		readers.Wait()
		if got := -sum.Load(); got != int64(m.lostCount.Load()) {
			t.Errorf("%+v: %d changes missing, %d counted as lost", o, got, m.lostCount.Load())
		}
		if used := m.owner.Used(); used != 0 || m.bytes != 0 || m.cursors != 0 || m.lagging != 0 {
			t.Errorf("%+v: %d bytes charged, %d held, %d cursors, %d lagging in the end", o, used, m.bytes, m.cursors, m.lagging)
		}
		if n := buf.Live() - live; n != 0 {
			t.Errorf("%+v: %d chunks left", o, n)
		}
	}
}

// TestWatchLogLeaves: readers come and go at any place, also with something taken, and nothing stays for them.
func TestWatchLogLeaves(t *testing.T) {
	seed := *watchSeed
	if seed == 0 {
		seed = rand.Uint64()
	}
	t.Logf("-watch.seed=%d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	live := buf.Live()
	m := newLogModel(0, 2<<10, 1<<10)
	var readers []*modelReader
	for range 20000 {
		switch n := r.IntN(10); {
		case n == 0:
			readers = append(readers, m.join())
		case n == 1 && len(readers) > 0:
			i := r.IntN(len(readers))
			reader := readers[i]
			readers[i] = readers[len(readers)-1]
			readers = readers[:len(readers)-1]
			pause := func() {}
			if r.IntN(2) == 0 {
				pause = reader.leave
			}
			if _, err := reader.step(1+r.IntN(500), r.IntN(2) == 0, pause); err != nil {
				t.Fatal(err)
			}
			reader.leave() // once more is harmless
		case n < 6 && len(readers) > 0:
			if _, err := readers[r.IntN(len(readers))].step(1+r.IntN(500), r.IntN(4) > 0, func() {}); err != nil {
				t.Fatal(err)
			}
		default:
			m.change(fmt.Sprintf("%0*d", 1+r.IntN(100), 0))
		}
		if m.bytes > m.bound {
			t.Fatalf("%d bytes of %d", m.bytes, m.bound)
		}
	}
	for _, reader := range readers {
		reader.leave()
	}
	if m.bytes != 0 || m.cursors != 0 || m.lagging != 0 || buf.Live() != live || m.owner.Used() != 0 {
		t.Errorf("%d bytes, %d cursors, %d lagging, %d chunks in the end", m.bytes, m.cursors, m.lagging, buf.Live()-live)
	}
}

// TestWatchLogIdle: a log that everybody has read holds no memory, and one that nobody reads takes none.
func TestWatchLogIdle(t *testing.T) {
	m := newLogModel(0, 64<<10, 64<<10)
	m.change("nobody")
	if m.bytes != 0 {
		t.Errorf("%d bytes for nobody", m.bytes)
	}
	readers := []*modelReader{m.join(), m.join()}
	for range 3 {
		m.change("key")
		for _, r := range readers {
			if m.bytes == 0 {
				t.Error("the change is gone before all have read it")
			}
			if some, err := r.step(1000, true, func() {}); !some || err != nil {
				t.Fatal(some, err)
			}
		}
		if m.bytes != 0 {
			t.Errorf("%d bytes when all have read it", m.bytes)
		}
	}
	if n := m.lostCount.Load(); n != 0 {
		t.Errorf("%d changes lost", n)
	}
}

// BenchmarkWatchedPut is what a change costs the one who makes it.
func BenchmarkWatchedPut(b *testing.B) {
	for _, watchers := range []int{1, 1000, 40_000} {
		b.Run(fmt.Sprintf("watchers=%d", watchers), func(b *testing.B) {
			m := newLogModel(0, 256<<10, 256<<10)
			for range watchers {
				m.join()
			}
			e := cache.Event{Kind: cache.Set, Version: 1, Key: []byte("a key of some length")}
			b.ReportAllocs()
			for b.Loop() {
				m.mu.Lock()
				m.appendLocked(e)
				m.mu.Unlock()
			}
		})
	}
}

// TestRemovedBeforeTheFirstWatcher: a watcher hears of the removal of its cache that comes when the log follows the
// cache already and has no watcher yet.
func TestRemovedBeforeTheFirstWatcher(t *testing.T) {
	c := unserved(t, 0)
	ls := c.b.watchLogs
	scope := c.b.caches.Add(cache.Scope{Tenant: "t1", Namespace: "default", Cache: "watched"})
	l := &cacheLog{logs: ls, tenant: "t1"}
	var lost atomic.Uint64
	l.init(ledger.NewAccount(0, nil), 1<<16, 1<<12, &lost, new(atomic.Int64))
	l.round.scheduled = true // no worker is to write
	ls.logs[scope] = l
	l.changed(cache.Event{Kind: cache.Set, Key: []byte("k")})
	l.changed(cache.Event{Kind: cache.Removed})
	w := &cacheWatch{c: c}
	if !ls.join(scope, "t1", w) {
		t.Fatal("no watch")
	}
	if why := w.whyLocked(); why != cacheRemoved || !w.queued {
		t.Errorf("the watch ends with %q, served: %t", why, w.queued)
	}
	delete(ls.logs, scope)
}

// TestTenantsTakeTurns: the cache of a tenant that has one does not wait for all caches of a tenant that has many.
func TestTenantsTakeTurns(t *testing.T) {
	ls := &watchLogs{workers: maxWatchWorkers()} // that never come
	many, one := &watchShare{}, &watchShare{}
	var logs []*cacheLog
	for i := range 6 {
		l := &cacheLog{logs: ls, tenant: "many", share: many}
		if i == 4 {
			l.tenant, l.share = "one", one
		}
		l.scheduleLocked()
		l.scheduleLocked() // is in the line already
		logs = append(logs, l)
	}
	var order []int
	for l := ls.nextLocked(); l != nil; l = ls.nextLocked() {
		order = append(order, slices.Index(logs, l))
		if len(order) == 2 {
			ls.queueLocked(l) // has more to write
		}
	}
	if want := []int{0, 4, 1, 4, 2, 3, 5}; !slices.Equal(order, want) {
		t.Errorf("served in the order %v, want %v", order, want)
	}
}

// TestRoundsSkipParked: after a change every watcher that is not parked has its turn, whatever is parked, taken back or
// leaves meanwhile, and no parked one has.
func TestRoundsSkipParked(t *testing.T) {
	for seed := range uint64(300) {
		rnd := rand.New(rand.NewPCG(seed, 1))
		l := &cacheLog{logs: &watchLogs{workers: maxWatchWorkers()}, share: &watchShare{}} // workers that never come
		l.round.scheduled = true
		parked := map[*cacheWatch]bool{}
		served := map[*cacheWatch]bool{}
		add := func() {
			w := &cacheWatch{log: l}
			l.round.add(w)
			parked[w], served[w] = false, true // it has joined after the change
		}
		for range 1 + rnd.IntN(20) {
			add()
		}
		for range 20 {
			l.round.left = l.round.active
			for w := range served {
				served[w] = false
			}
			for {
				w := l.round.next()
				if w == nil {
					break
				}
				if parked[w] && !w.again {
					w.again = true // out of turn, as one that was moved before it was parked
				}
				served[w] = true
				if len(parked) == 0 {
					continue
				}
				other := l.round.watches[rnd.IntN(len(l.round.watches))]
				switch rnd.IntN(6) {
				case 0:
					l.parkLocked(other)
					parked[other] = true
				case 1:
					l.unparkLocked(other)
					if parked[other] {
						served[other] = true // its writer has looked
					}
					parked[other] = false
				case 2:
					l.parkLocked(other)
					l.round.remove(other)
					other.left = true
					delete(parked, other)
					delete(served, other)
					add()
				}
			}
			for w, isParked := range parked {
				if l.round.watches[w.index] != w || isParked != (w.index >= l.round.active) {
					t.Fatalf("seed %d: place %d, %d watchers are active, parked: %t", seed, w.index, l.round.active, isParked)
				}
				if !isParked && !served[w] {
					t.Fatalf("seed %d: a watcher missed its turn", seed)
				}
			}
			if len(parked) != len(l.round.watches) {
				t.Fatalf("seed %d: %d watchers, want %d", seed, len(l.round.watches), len(parked))
			}
		}
	}
}

// TestUnreadWatchesCostNoTurns: a change does not visit the watchers whose clients do not read.
func TestUnreadWatchesCostNoTurns(t *testing.T) {
	l := &cacheLog{logs: &watchLogs{workers: maxWatchWorkers()}, share: &watchShare{}}
	l.init(ledger.NewAccount(0, nil), 1<<16, 1<<12, new(atomic.Uint64), new(atomic.Int64))
	for range 1000 {
		w := &cacheWatch{log: l}
		l.round.add(w)
		l.parkLocked(w)
	}
	one := &cacheWatch{log: l}
	l.round.add(one)
	l.mu.Lock()
	l.joinLocked(&one.cursor)
	l.mu.Unlock()
	l.changed(cache.Event{Kind: cache.Set, Key: []byte("k")})
	visits := 0
	for l.round.next() != nil {
		visits++
	}
	if visits != 1 {
		t.Errorf("%d visits for one watcher that reads", visits)
	}
}
