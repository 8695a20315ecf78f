package broker

import (
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"
)

func newDeadlines() *schedule { return newSchedule(func(c *conn) *slot { return &c.deadline }) }

// TestSchedule compares a schedule with a list that is searched.
func TestSchedule(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	s := newDeadlines()
	model := make(map[*conn]int64)
	conns := make([]*conn, 50)
	for i := range conns {
		conns[i] = new(conn)
	}
	now := int64(0)
	for range 20000 {
		i := r.IntN(len(conns))
		c := conns[i]
		switch r.IntN(8) {
		case 0:
			s.remove(c)
			delete(model, c)
			s.by(c, 0) // it is out for good
			conns[i] = new(conn)
		case 1:
			now += int64(r.IntN(20))
			got := s.due(now, nil)
			for _, c := range got {
				if at, ok := model[c]; !ok || at > now {
					t.Fatalf("due at %d: %d, %t", now, at, ok)
				}
				delete(model, c)
			}
			for _, at := range model {
				if at <= now {
					t.Fatalf("not found at %d: one of %d", now, at)
				}
			}
			if !slices.IsSortedFunc(got, func(a, b *conn) int { return int(a.deadline.at - b.deadline.at) }) {
				t.Fatal("not the soonest first")
			}
		default:
			at := now + int64(r.IntN(100))
			if before, ok := model[c]; !ok || at < before {
				model[c] = at
			}
			s.by(c, at)
		}
	}
}

// TestScheduleConcurrently: each connection that is scheduled is found once.
func TestScheduleConcurrently(t *testing.T) {
	const each = 2000
	s := newDeadlines()
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for i := range each {
				c := new(conn)
				s.by(c, int64(i))
				if i%2 == 0 {
					s.remove(c)
				}
			}
		})
	}
	found := 0
	wg.Go(func() {
		for range 1000 {
			found += len(s.due(each, nil))
		}
	})
	wg.Wait()
	found += len(s.due(each, nil))
	if found < 4*each/2 || found > 4*each || len(s.conns) != 0 {
		t.Errorf("%d of %d found, %d left", found, 4*each/2, len(s.conns))
	}
}

// TestSweepKeepsNothing: the sweeper keeps no connection reachable that it has looked at.
func TestSweepKeepsNothing(t *testing.T) {
	c := unserved(t, 0)
	var conns []*conn
	for range 5 {
		other := &conn{b: c.b}
		c.b.deadlines.by(other, 0)
		conns = append(conns, other)
	}
	c.b.expiries.by(conns[0], 0)
	kept := c.b.sweep(time.Now(), nil)
	if len(kept) != 0 || cap(kept) < len(conns) {
		t.Fatalf("a list of %d, with capacity %d", len(kept), cap(kept))
	}
	for i, other := range kept[:cap(kept)] {
		if other != nil {
			t.Errorf("place %d has a connection", i)
		}
	}
	for _, other := range conns {
		c.b.deadlines.remove(other)
	}
}
