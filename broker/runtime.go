package broker

import (
	"context"
	"log/slog"
	"math"
	"os"
	"runtime"
	"runtime/debug"
	runtimemetrics "runtime/metrics"
	"sync/atomic"
	"time"

	"github.com/felix-mq/felix/internal/cgroup"
)

// gcPercent lets the heap grow to five times what lives before it is collected
// (docs/measure/notes/2026-11-25-garbage-collection.md).
const gcPercent = 400

// connectionBytes is what an idle connection with one subscription costs: state of QUIC and TLS, goroutines and
// buffers. make bench-cost measures it (docs/operate/operations.md#memory).
const connectionBytes = 56 << 10

// connectionStep is by how many connections the memory limit grows and shrinks. With GOGC this high the heap grows up
// to the limit whatever lives, so a step is memory that a broker with few connections uses: 5 MiB. Where more connect
// within a followEvery the collector runs more often until then.
const (
	connectionStep = 64
	followEvery    = time.Second
	liveStep       = 64 << 20 // bytes by which the limit follows what lives
)

// MemoryLimit is how many bytes a process that is this broker and nothing else may be expected to use without
// connections: all budgets for memory, full at once, and a quarter of that for the transport and for what waits to be
// collected.
func (c Config) MemoryLimit() int64 { return c.MemoryLimitFor(0) }

// MemoryLimitFor is [Config.MemoryLimit] with that many connections, of which each costs 56 KiB and a quarter of that.
func (c Config) MemoryLimitFor(connections int) int64 {
	c.ensureDefaults()
	return (c.RetainedBytes + c.ReadBytes + c.CacheMaxBytes + int64(connections)*connectionBytes) / 4 * 5
}

// TuneRuntime makes the garbage collector of this process rare, and bounds its memory: by [Config.MemoryLimitFor] the
// connections that are open at a time, once the broker serves, and by nine tenths of what the process's control group
// may have. It warns if the budgets do not fit that. What the environment says instead, in GOGC and GOMEMLIMIT, stands.
// While the broker serves, memory that it does not need any more after a peak is given back to the system.
// It is for programs that are a broker and nothing else, and is called once, before [New].
func (c Config) TuneRuntime() {
	c.ensureDefaults()
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(gcPercent)
	}
	m := &memory{cfg: c, live: liveHeap, returns: returns{read: systemMemory, free: freeMemory}}
	if os.Getenv("GOMEMLIMIT") == "" {
		m.group, _ = cgroup.MemoryLimit()
		m.set = func(limit int64) { debug.SetMemoryLimit(limit) }
		m.explain()
	}
	m.adjust(0)
	tuned.Store(m)
}

// tuned is what TuneRuntime has begun and the first broker that serves goes on with.
var tuned atomic.Pointer[memory]

// memory keeps the process's memory limit in step with its connections. A limit for all that may come would let the
// heap of a broker with few connections grow to several times of what it needs.
type memory struct {
	cfg   Config
	group int64 // limit of the control group; 0 for none
	limit int64 // that was set last
	live  func() int64
	set   func(int64) // nil: the limit is another's

	returns returns
}

// liveHeap is what the last collection found alive, in bytes.
func liveHeap() int64 {
	sample := []runtimemetrics.Sample{{Name: "/gc/heap/live:bytes"}}
	runtimemetrics.Read(sample)
	if sample[0].Value.Kind() != runtimemetrics.KindUint64 {
		return 0
	}
	return int64(min(sample[0].Value.Uint64(), math.MaxInt64/8))
}

// available is what the control group leaves to this process; the rest is for what the runtime does not count.
func (m *memory) available() int64 { return m.group / 10 * 9 }

// limitFor is the limit while that many connections are open, with a step more. A limit below what lives could not be
// met: the collector would run all the time, which takes up to half of the processors and frees nothing. So it stays
// above that by a quarter, as long as the control group has it.
func (m *memory) limitFor(connections int) int64 {
	limit := m.cfg.MemoryLimitFor((connections/connectionStep + 1) * connectionStep)
	if needed := m.live() / 4 * 5; needed > limit {
		limit = (needed/liveStep + 1) * liveStep
	}
	if m.group > 0 {
		limit = min(limit, m.available())
	}
	return limit
}

// adjust sets the limit, if it is another one.
func (m *memory) adjust(connections int) {
	if m.set == nil {
		return
	}
	if limit := m.limitFor(connections); limit != m.limit {
		m.limit = limit
		m.set(limit)
	}
}

// explain says whether all that the settings allow fits the control group.
func (m *memory) explain() {
	budgets, full := m.cfg.MemoryLimit(), m.cfg.MemoryLimitFor(m.cfg.MaxConns)
	if m.group == 0 || full <= m.available() {
		return
	}
	attrs := []any{
		slog.Int64("control_group", m.group), slog.Int64("available", m.available()),
		slog.Int64("budgets", budgets), slog.Int64("with_all_connections", full),
	}
	if budgets > m.available() {
		m.cfg.Logger.Warn("memory budgets do not fit", append(attrs,
			slog.String("hint", "raise the memory limit of the control group, or lower retained_bytes, read_bytes and cache_max_bytes"))...)
		return
	}
	m.cfg.Logger.Info("memory bounds connections", append(attrs,
		slog.Int("max_connections", m.cfg.MaxConns), slog.Int64("connections_that_fit", (m.available()-budgets)/(connectionBytes/4*5)))...)
}

// follow adjusts the limit to the connections that are open, and returns memory that is not in use any more, until ctx
// ends.
func (m *memory) follow(ctx context.Context, use func() inUse) {
	tick := time.NewTicker(followEvery)
	defer tick.Stop()
	for {
		u := use()
		m.adjust(u.connections)
		m.returns.look(u.bytes)
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// returns gives memory back to the system that the process holds and does not need. The garbage collector runs when the
// heap has grown to several times of what lived before. So after a peak, such as a tenant's queues that were full and
// whose connections are gone, an idle broker would keep the peak for minutes, until it happened to collect.
//
// It collects when the process holds more, or uses less, than when it did so last; but only if what it allocates would
// not take the memory again at once. It does so once more a little later, because QUIC keeps connections for a moment
// after their end. A collection takes as long as any other and runs while the broker works.
type returns struct {
	read func() (held, allocated int64) // of the system's memory now, and of the heap since the process began
	free func()

	begun     bool
	least     int64 // held since the last time
	most      int64 // in use since the last time
	allocated int64 // when it looked last
	next      time.Time
	again     int64 // bytes that the second time is for; 0: none is due
}

const (
	returnLeast = 16 << 20         // bytes that are worth a collection
	returnPart  = 4                // and the part of what was held, or in use, that has to be so
	returnStays = 5                // seconds that it has to last at the present rate of allocation
	returnEvery = 3 * time.Second  // at most
	returnShare = 20               // the part of the time that goes to it at most: 5 %, over both times; but
	returnPause = 10 * time.Second // no longer pause, because on a busy machine it takes long and costs little
)

// look is called every followEvery, with the bytes in use as far as they are counted.
func (r *returns) look(used int64) {
	held, allocated := r.read()
	rate := allocated - r.allocated
	r.allocated = allocated
	if !r.begun {
		r.begun, r.least, r.most = true, held, used
		return
	}
	r.least, r.most = min(r.least, held), max(r.most, used)
	grown, fallen, worth := held-r.least, r.most-used, r.again
	if grown >= max(returnLeast, r.least/returnPart) || fallen >= max(returnLeast, r.most/returnPart) {
		worth = max(grown, fallen)
	}
	if worth == 0 || worth < rate*int64(returnStays*time.Second/followEvery) || time.Now().Before(r.next) {
		return
	}
	began := time.Now()
	r.free()
	took := time.Since(began)
	if r.again == 0 {
		r.again, r.next = worth, time.Now().Add(returnEvery)
	} else {
		r.again, r.next = 0, time.Now().Add(min(max(returnEvery, 2*returnShare*took), returnPause))
	}
	r.least, _ = r.read()
	r.most = used
}

// freeMemory frees what nothing refers to. What lies in a pool survives one collection, and is the larger part of it.
func freeMemory() {
	runtime.GC()
	debug.FreeOSMemory() // which collects too
}

// systemMemory reads what the process holds of the system's memory, and what it has allocated so far.
func systemMemory() (held, allocated int64) {
	samples := []runtimemetrics.Sample{
		{Name: "/memory/classes/total:bytes"}, {Name: "/memory/classes/heap/released:bytes"}, {Name: "/gc/heap/allocs:bytes"},
	}
	runtimemetrics.Read(samples)
	values := make([]int64, len(samples))
	for i, s := range samples {
		if s.Value.Kind() == runtimemetrics.KindUint64 {
			values[i] = int64(min(s.Value.Uint64(), math.MaxInt64/8))
		}
	}
	return values[0] - values[1], values[2]
}

// followMemory goes on with what TuneRuntime has begun, if it was called, until the broker has ended.
func (b *Broker) followMemory() {
	if m := tuned.Swap(nil); m != nil {
		b.wg.Go(func() { m.follow(b.sweepCtx, b.inUse) })
	}
}

// inUse is what a broker has at a time.
type inUse struct {
	connections int
	bytes       int64
}

// inUse returns it. Open streams are charged as reads, and subscriptions as what is retained.
func (b *Broker) inUse() inUse {
	b.mu.Lock()
	n := len(b.conns)
	b.mu.Unlock()
	reads := b.tenants.budgets[kindReads].Used() + b.tenants.strangers.Used()
	return inUse{n, b.hub.Stats().RetainedBytes + reads + b.caches.Bytes() + int64(n)*connectionBytes}
}
