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

func TestMemoryLimitFollowsBudgets(t *testing.T) {
	c := Config{RetainedBytes: 100 << 20, ReadBytes: 20 << 20, CacheMaxBytes: 40 << 20}
	if got, want := c.MemoryLimit(), int64(200<<20); got != want {
		t.Errorf("MemoryLimit() = %d, want %d", got, want)
	}
	if got, want := (Config{}).MemoryLimit(), int64(1600<<20); got != want {
		t.Errorf("by default MemoryLimit() = %d, want %d", got, want)
	}
	if got, want := c.MemoryLimitFor(1000), int64(200<<20+1000*80<<10); got != want {
		t.Errorf("MemoryLimitFor(1000) = %d, want %d", got, want)
	}
}

// All connections that the defaults allow fit the limit at that time, with what each was measured to take at most.
func TestDefaultConnectionsFitTheMemoryLimit(t *testing.T) {
	c := DefaultConfig()
	m := &memory{cfg: c, live: noHeap}
	const measured = 69 << 10
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
		{0, 0, 0, 1605 << 20, ""},
		{0, 63, 0, 1605 << 20, ""},
		{0, 64, 0, 1610 << 20, ""},
		{0, 65536, 0, 1600<<20 + 1025*5<<20, ""},
		{0, 0, 1280 << 20, 1605 << 20, ""},
		{0, 0, 2000 << 20, 2560 << 20, ""},
		{16 << 30, 0, 0, 1605 << 20, ""},
		{16 << 30, 65536, 0, 1600<<20 + 1025*5<<20, ""},
		{2000 << 20, 0, 0, 1605 << 20, "memory bounds connections"},
		{2000 << 20, 0, 1700 << 20, 1800 << 20, "memory bounds connections"},
		{2000 << 20, 20000, 0, 1800 << 20, "connections_that_fit=2560"},
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
		m := &memory{cfg: DefaultConfig(), live: noHeap, set: func(limit int64) { limits = append(limits, limit>>20) }}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() {
			defer close(done)
			m.follow(ctx, func() int { return int(open.Load()) })
		}()
		synctest.Wait()
		for _, n := range []int64{10, 127, 100, 5000, 0} {
			open.Store(n)
			time.Sleep(followEvery)
			synctest.Wait()
		}
		cancel()
		<-done
		want := []int64{1605, 1610, 1995, 1605}
		if !slices.Equal(limits, want) {
			t.Errorf("set %v, want %v", limits, want)
		}
	})
}
