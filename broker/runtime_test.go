package broker

import (
	"bytes"
	"context"
	"log/slog"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

func noHeap() int64 { return 0 }

// limitOf is the limit by default with that many steps of connections.
func limitOf(steps int64) int64 { return 1600<<20 + steps*connectionStep*70<<10 }

func TestMemoryLimitFollowsBudgets(t *testing.T) {
	c := Config{RetainedBytes: 100 << 20, ReadBytes: 20 << 20, CacheMaxBytes: 40 << 20}
	if got, want := c.MemoryLimit(), int64(200<<20); got != want {
		t.Errorf("MemoryLimit() = %d, want %d", got, want)
	}
	if got, want := (Config{}).MemoryLimit(), int64(1600<<20); got != want {
		t.Errorf("by default MemoryLimit() = %d, want %d", got, want)
	}
	if got, want := c.MemoryLimitFor(1000), int64(200<<20+1000*70<<10); got != want {
		t.Errorf("MemoryLimitFor(1000) = %d, want %d", got, want)
	}
}

// All connections that the defaults allow fit the limit at that time, with what each was measured to take where the
// limit has the collector run often.
func TestDefaultConnectionsFitTheMemoryLimit(t *testing.T) {
	c := DefaultConfig()
	m := &memory{cfg: c, live: noHeap}
	const measured = 66 << 10
	for n := 0; n <= c.MaxConns; n += 64 {
		if left := m.limitFor(n) - int64(n)*measured; left < c.RetainedBytes+c.ReadBytes+c.CacheMaxBytes {
			t.Fatalf("with %d connections %d bytes are left for the budgets", n, left)
		}
	}
}

func TestMemoryLimitFollowsTheControlGroup(t *testing.T) {
	for _, c := range []struct {
		group       int64
		connections int
		live        int64
		want        int64
		says        string
	}{
		{0, 0, 0, limitOf(1), ""},
		{0, 63, 0, limitOf(1), ""},
		{0, 64, 0, limitOf(2), ""},
		{0, 65536, 0, limitOf(1025), ""},
		{0, 0, 1280 << 20, limitOf(1), ""},
		{0, 0, 2000 << 20, 2560 << 20, ""},
		{16 << 30, 0, 0, limitOf(1), ""},
		{16 << 30, 65536, 0, limitOf(1025), ""},
		{2000 << 20, 0, 0, limitOf(1), "memory bounds connections"},
		{2000 << 20, 0, 1700 << 20, 1800 << 20, "memory bounds connections"},
		{2000 << 20, 20000, 0, 1800 << 20, "connections_that_fit=2925"},
		{400 << 20, 0, 0, 360 << 20, "memory budgets do not fit"},
		{400 << 20, 5000, 0, 360 << 20, "memory budgets do not fit"},
	} {
		var log bytes.Buffer
		cfg := DefaultConfig()
		cfg.Logger = slog.New(slog.NewTextHandler(&log, nil))
		var set int64
		m := &memory{cfg: cfg, group: c.group, live: func() int64 { return c.live }, set: func(limit int64) { set = limit }}
		m.explain()
		m.adjust(c.connections)
		if set != c.want {
			t.Errorf("group of %d, %d connections: limit %d, want %d", c.group, c.connections, set, c.want)
		}
		if !strings.Contains(log.String(), c.says) || (c.says == "") != (log.String() == "") {
			t.Errorf("group of %d says %q, want %q", c.group, log.String(), c.says)
		}
	}
}

// The limit grows and shrinks with the connections, and is set only when it is another one.
func TestMemoryLimitFollowsConnections(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var open atomic.Int64
		var limits []int64
		m := &memory{
			cfg: DefaultConfig(), live: noHeap, set: func(limit int64) { limits = append(limits, limit) },
			returns: returns{read: func() (int64, int64) { return 0, 0 }},
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() {
			defer close(done)
			m.follow(ctx, func() inUse { return inUse{connections: int(open.Load())} })
		}()
		synctest.Wait()
		for _, n := range []int64{10, 127, 100, 5000, 0} {
			open.Store(n)
			time.Sleep(followEvery)
			synctest.Wait()
		}
		cancel()
		<-done
		want := []int64{limitOf(1), limitOf(2), limitOf(79), limitOf(1)}
		if !slices.Equal(limits, want) {
			t.Errorf("set %v, want %v", limits, want)
		}
	})
}

// Memory is returned after a peak, once, when little is allocated, and not more often than it is worth.
func TestReturnsMemory(t *testing.T) {
	const mib = 1 << 20
	type second struct {
		held, used, allocates int64 // MiB
		returns               bool  // whether memory is returned then
	}
	for name, seconds := range map[string][]second{
		"steady":                {{100, 50, 1, false}, {110, 50, 1, false}, {115, 55, 1, false}},
		"grown while idle":      {{100, 50, 0, false}, {140, 50, 0, true}, {110, 50, 0, false}, {110, 50, 0, false}, {110, 50, 0, true}, {100, 50, 0, false}},
		"grown under load":      {{100, 50, 0, false}, {140, 50, 50, false}, {140, 50, 50, false}, {140, 50, 0, true}},
		"load comes back":       {{100, 50, 0, false}, {140, 50, 0, true}, {110, 50, 50, false}, {110, 50, 50, false}, {110, 50, 50, false}, {110, 50, 50, false}},
		"grown by a few":        {{20, 10, 0, false}, {30, 10, 0, false}},
		"grown by a small part": {{1000, 10, 0, false}, {1200, 10, 0, false}},
		"grown for good": {
			{100, 50, 0, false},
			{200, 150, 0, true},
			{200, 150, 0, false},
			{200, 150, 0, false},
			{200, 150, 0, true},
			{200, 150, 0, false},
			{200, 150, 0, false},
			{200, 150, 0, false},
			{200, 150, 0, false},
		},
		"fallen": {
			{200, 150, 0, false},
			{200, 50, 0, true},
			{200, 50, 0, false},
			{200, 50, 0, false},
			{200, 50, 0, true},
			{200, 50, 0, false},
			{200, 50, 0, false},
			{200, 50, 0, false},
			{200, 50, 0, false},
		},
		"fallen after it was big": {{100, 50, 0, false}, {200, 150, 0, true}, {200, 20, 0, false}, {200, 20, 0, false}, {200, 20, 0, true}, {100, 20, 0, false}},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var now second
				allocated, returned := int64(0), false
				r := returns{
					read: func() (int64, int64) { return now.held * mib, allocated },
					free: func() { returned = true },
				}
				for i, s := range seconds {
					now, returned = s, false
					allocated += s.allocates * mib
					r.look(s.used * mib)
					if returned != s.returns {
						t.Errorf("second %d: returns %v, want %v", i, returned, s.returns)
					}
					time.Sleep(followEvery)
				}
			})
		})
	}
}

// What takes long is done rarely.
func TestReturnsMemoryRarely(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const takes = 100 * time.Millisecond
		began, times, held := time.Now(), 0, int64(0)
		r := returns{
			read: func() (int64, int64) { return held, 0 },
			free: func() {
				time.Sleep(takes)
				times++
				held = 0
			},
		}
		for time.Since(began) < time.Minute {
			r.look(0)
			held = 1 << 30
			time.Sleep(followEvery)
		}
		if most := int(time.Minute / (returnShare * takes)); times < 2 || times > most+1 {
			t.Errorf("%d times in a minute, want 2 to %d", times, most+1)
		}
	})
}

func TestSystemMemory(t *testing.T) {
	held, allocated := systemMemory()
	if held <= 0 || allocated <= 0 {
		t.Errorf("the process holds %d bytes and has allocated %d", held, allocated)
	}
}
