package nearcache

import (
	"context"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/felix-mq/felix/client"
)

// model is a cache of a broker reduced to versions: the value of a key is its version, and 0 is none. Changes are
// reported in order, some time later, and every now and then a report is lost.
type model struct {
	mu      sync.Mutex
	version uint64
	keys    [5]uint64
	changes chan client.CacheEvent
}

func (m *model) change(k int, set bool) (version uint64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.version++
	e := client.CacheEvent{Kind: client.CacheDeleted, Key: fmt.Append(nil, k), Version: m.version}
	m.keys[k] = 0
	if set {
		e.Kind, m.keys[k] = client.CacheSet, m.version
	}
	m.changes <- e
	return m.version
}

func (m *model) get(k int) client.CacheResult {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.keys[k] == 0 {
		return client.CacheResult{Err: client.ErrMiss}
	}
	return client.CacheResult{Value: binary.BigEndian.AppendUint64(nil, m.keys[k]), Version: m.keys[k]}
}

// modelRun has readers and writers work on a Cache, and returns what they saw that they must not have seen: a
// version older than one whose change the Cache had been told of, than one that the same reader had seen, or than
// one of its own writes. get is how readers get; a miss is as new as the deletion that it is due to, which the reader
// cannot know, so it counts as nothing.
func modelRun(seed uint64, get func(n *Cache, key string) client.CacheResult) error {
	m := &model{changes: make(chan client.CacheEvent, 64)}
	var delays atomic.Uint64
	delay := func() { // a hash of how many there were: different for each, and the same for each seed
		for range (seed + delays.Add(1)*0x9e3779b97f4a7c15) >> 59 {
			runtime.Gosched()
		}
	}
	var clock atomic.Int64
	n := newCache(Options{MaxEntries: 3, MaxAge: 100}, func(_ context.Context, key string) client.CacheResult {
		delay()
		r := m.get(int(key[0] - '0'))
		delay()
		return r
	}, func() int64 { return clock.Add(1) })
	n.h = new(client.Cache) // so that it looks made; nothing goes there
	n.apply(client.CacheEvent{Kind: client.CacheReset})

	bad := make(chan error, 1)
	report := func(err error) {
		select {
		case bad <- err:
		default:
		}
	}
	var told [len(m.keys)]atomic.Uint64 // versions that the Cache has heard of
	var wg, working sync.WaitGroup
	wg.Go(func() {
		rnd := rand.New(rand.NewPCG(seed, 0))
		for e := range m.changes {
			delay()
			switch rnd.IntN(40) {
			case 0: // a queue that was full
				for range min(len(m.changes), 10) {
					e = <-m.changes
				}
				n.apply(client.CacheEvent{Kind: client.CacheReset})
				continue
			case 1: // a connection that was lost
				n.down()
				delay()
				for k := range m.keys {
					if _, hit, _ := n.lookup(nil, fmt.Sprint(k)); hit {
						report(fmt.Errorf("seed %d: key %d is served while nobody tells of changes", seed, k))
					}
				}
				n.apply(client.CacheEvent{Kind: client.CacheReset})
				continue
			}
			n.apply(e)
			told[e.Key[0]-'0'].Store(e.Version)
		}
	})
	for g := range 4 {
		working.Go(func() {
			rnd := rand.New(rand.NewPCG(seed, uint64(1+g)))
			var seen [len(m.keys)]uint64
			for range 300 {
				k := rnd.IntN(len(m.keys))
				key := fmt.Sprint(k)
				if rnd.IntN(4) == 0 {
					seen[k] = max(seen[k], m.change(k, rnd.IntN(8) > 0))
					n.forget(key)
					continue
				}
				least := max(told[k].Load(), seen[k])
				r := get(n, key)
				if r.Err != nil {
					continue
				}
				version := binary.BigEndian.Uint64(r.Value)
				if version < least {
					report(fmt.Errorf("seed %d: version %d of key %d, after %d", seed, version, k, least))
				}
				seen[k] = max(seen[k], version)
			}
		})
	}
	working.Wait()
	close(m.changes)
	wg.Wait()
	close(bad)
	if s := n.Stats(); s.Entries != len(n.entries) || s.Entries != n.order.Len() || s.Entries > 3 || s.Hits == 0 {
		return fmt.Errorf("seed %d: %+v with %d entries in the map and %d in order", seed, s, len(n.entries), n.order.Len())
	}
	return <-bad
}

func modelGet(n *Cache, key string) client.CacheResult {
	value, err := n.AppendGet(context.Background(), nil, key)
	return client.CacheResult{Value: value, Err: err}
}

func TestModel(t *testing.T) {
	seeds := uint64(100)
	if testing.Short() {
		seeds = 20
	}
	for seed := range seeds {
		if err := modelRun(seed, modelGet); err != nil {
			t.Fatal(err)
		}
	}
}

// The model finds a Cache that keeps whatever it gets, whatever it has heard since it asked.
func TestModelFindsStaleAnswers(t *testing.T) {
	careless := func(n *Cache, key string) client.CacheResult {
		value, hit, asked := n.lookup(nil, key)
		if hit {
			return client.CacheResult{Value: value}
		}
		r := n.fetch(context.Background(), key)
		n.mu.Lock()
		asked.heard = n.heardAll + *n.of(key)
		n.mu.Unlock()
		n.keep(key, r, asked)
		return r
	}
	for end, seed := time.Now().Add(time.Minute), uint64(0); time.Now().Before(end); seed++ {
		if err := modelRun(seed, careless); err != nil {
			t.Log("found:", err)
			return
		}
	}
	t.Error("not found")
}
