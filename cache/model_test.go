package cache

import (
	"fmt"
	"math/rand/v2"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"
)

// The histories of TestLinearizable consist of these. Expiries and evictions are operations too, of nobody: they come
// from the watch, at the moment they happen.
type request struct {
	op       string // put, get, delete, cas, expired, evicted
	key      string
	value    string
	ttl      time.Duration
	expected uint64
	from, to time.Duration // on the store's clock, before the call and after it
}

type response struct {
	value   string
	found   bool // of get and delete; cas: stored
	version uint64
}

// state is what one key holds. The zero value is nothing.
type state struct {
	value    string
	version  uint64
	from, to time.Duration // when the lifetime ends: as late as the put may have seen the clock
}

var model = porcupine.Model{
	Partition: func(history []porcupine.Operation) [][]porcupine.Operation {
		byKey := map[string][]porcupine.Operation{}
		for _, o := range history {
			key := o.Input.(request).key
			byKey[key] = append(byKey[key], o)
		}
		var parts [][]porcupine.Operation
		for _, part := range byKey {
			parts = append(parts, part)
		}
		return parts
	},
	Init: func() any { return state{} },
	Step: func(s, in, out any) (bool, any) { return step(s.(state), in.(request), out.(response)) },
}

const never = time.Duration(1 << 62)

func (r request) stored(version uint64) state {
	switch {
	case r.ttl < 0:
		return state{r.value, version, never, never}
	case r.ttl == 0:
		return state{}
	}
	return state{r.value, version, r.from + r.ttl, r.to + r.ttl}
}

// step says whether a state allows an operation with its result. An entry may be over from s.from on, and must be from
// s.to on, as far as the operation could see the clock.
func step(s state, r request, out response) (bool, any) {
	present := s.version != 0
	mayBeOver, mayBeHere := !present || r.to >= s.from, present && r.from < s.to
	switch r.op {
	case "put":
		return out.version > s.version, r.stored(out.version)
	case "get":
		if out.found {
			return mayBeHere && out.value == s.value && out.version == s.version, s
		}
		return mayBeOver, s
	case "delete":
		if out.found {
			return mayBeHere, state{}
		}
		return mayBeOver, state{}
	case "cas":
		if out.found {
			allowed := r.expected == 0 && mayBeOver || r.expected != 0 && r.expected == s.version && mayBeHere
			return allowed && out.version > s.version, r.stored(out.version)
		}
		allowed := out.version == 0 && mayBeOver || out.version != 0 && out.version == s.version && mayBeHere
		return allowed && out.version != r.expected, s
	case "expired":
		return present && mayBeOver, state{}
	case "evicted":
		return present, state{}
	}
	panic(r.op)
}

// record runs four clients on few keys of a small store, with more values than fit, and returns what they saw. cas is
// how they compare and set.
func record(t *testing.T, seed uint64, cas func(c *Cache, key, value []byte, ttl time.Duration, expected uint64) (uint64, bool)) []porcupine.Operation {
	manual := newManualClock(time.Unix(1, 0))
	s := New(Options{MaxBytes: 8 << 10, MaxScopeBytes: 6 << 10, Clock: manual})
	s.policyFrom = 1
	s.SetTenant(primary.Tenant, 0, 5<<10) // so that the policy is what decides
	defer s.Close()
	c := s.Add(primary)
	var ticks atomic.Int64
	var mu sync.Mutex
	var history []porcupine.Operation
	add := func(client int, from, to int64, in request, out response) {
		mu.Lock()
		defer mu.Unlock()
		history = append(history, porcupine.Operation{ClientId: client, Call: from, Return: to, Input: in, Output: out})
	}
	stop, _ := c.Watch(func(e Event) {
		op := map[EventKind]string{Expired: "expired", Evicted: "evicted"}[e.Kind]
		if op == "" {
			return
		}
		at, now := ticks.Add(2), time.Duration(s.now())
		add(4, at, at+1, request{op: op, key: string(e.Key), from: now, to: now}, response{})
	})
	var wg sync.WaitGroup
	for client := range 4 {
		wg.Go(func() {
			rnd := rand.New(rand.NewPCG(seed, uint64(client)))
			versions := map[string]uint64{} // that this client saw last
			for i := range 40 {
				if rnd.IntN(6) == 0 {
					manual.Advance(time.Duration(rnd.IntN(12)) * time.Millisecond)
				}
				key := fmt.Sprintf("k%d", rnd.IntN(5))
				r := request{key: key, value: fmt.Sprintf("%d-%d", client, i), ttl: NoExpiry, expected: versions[key]}
				if rnd.IntN(2) == 0 {
					r.ttl = time.Duration(rnd.IntN(30)) * time.Millisecond
				}
				value := append([]byte(r.value), make([]byte, rnd.IntN(4)*400)...)
				var out response
				from := ticks.Add(2)
				r.from = time.Duration(s.now())
				switch n := rnd.IntN(10); {
				case n < 4:
					r.op = "get"
					v, ok := c.Get([]byte(key))
					if ok {
						out = response{string(trimZeros(v.Bytes())), true, v.Version()}
						v.Release()
					}
				case n < 6:
					r.op = "put"
					var err error
					if out.version, err = c.Put([]byte(key), value, r.ttl); err != nil {
						t.Errorf("seed %d: put refused: %v", seed, err)
					}
				case n < 7:
					r.op = "delete"
					_, out.found = c.Delete([]byte(key))
				default:
					r.op = "cas"
					out.version, out.found = cas(c, []byte(key), value, r.ttl, r.expected)
				}
				r.to = time.Duration(s.now())
				if r.op != "delete" {
					versions[key] = out.version
				}
				add(client, from, ticks.Add(2), r, out)
				if rnd.IntN(2) == 0 {
					runtime.Gosched()
				}
			}
		})
	}
	wg.Wait()
	stop()
	mu.Lock() // an expiry may be on its way, which nobody has seen the effect of
	defer mu.Unlock()
	return slices.Clone(history)
}

func trimZeros(b []byte) []byte {
	for len(b) > 0 && b[len(b)-1] == 0 {
		b = b[:len(b)-1]
	}
	return b
}

const seeds = 600

// TestLinearizable judges recorded histories by a model that knows no concurrency: there has to be an order of all
// operations, expiries and evictions included, that explains every result.
func TestLinearizable(t *testing.T) {
	counts := map[string]int{}
	for seed := range uint64(seeds) {
		history := record(t, seed, func(c *Cache, key, value []byte, ttl time.Duration, expected uint64) (uint64, bool) {
			version, stored, err := c.PutIf(key, value, ttl, expected)
			if err != nil {
				t.Error(err)
			}
			return version, stored
		})
		for _, o := range history {
			counts[o.Input.(request).op]++
			if o.Output.(response).found {
				counts[o.Input.(request).op+" found"]++
			}
		}
		if got := porcupine.CheckOperationsTimeout(model, history, 30*time.Second); got != porcupine.Ok {
			for _, o := range history {
				t.Logf("%d %d-%d %+v %+v", o.ClientId, o.Call, o.Return, o.Input, o.Output)
			}
			t.Fatalf("seed %d: %v", seed, got)
		}
	}
	t.Logf("%d histories: %v", seeds, counts)
	for _, op := range []string{"get found", "delete found", "cas found", "expired", "evicted"} {
		if counts[op] < seeds {
			t.Errorf("%d × %s in %d histories: they prove little", counts[op], op, seeds)
		}
	}
}

// TestLinearizableFindsLostUpdates plants a compare-and-set in two steps, between which another client's update is
// lost.
func TestLinearizableFindsLostUpdates(t *testing.T) {
	broken := func(c *Cache, key, value []byte, ttl time.Duration, expected uint64) (uint64, bool) {
		present := uint64(0)
		if v, ok := c.Get(key); ok {
			present = v.Version()
			v.Release()
		}
		if present != expected {
			return present, false
		}
		time.Sleep(time.Microsecond) // long enough for others
		version, _ := c.Put(key, value, ttl)
		return version, true
	}
	for seed := range uint64(seeds) {
		if porcupine.CheckOperationsTimeout(model, record(t, seed, broken), 30*time.Second) == porcupine.Illegal {
			t.Logf("found with seed %d", seed)
			return
		}
	}
	t.Error("a lost update was not found")
}
