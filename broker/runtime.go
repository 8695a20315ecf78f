package broker

import (
	"os"
	"runtime/debug"
)

// gcPercent lets the heap grow to five times what lives before it is collected (docs/performance.md).
const gcPercent = 400

// MemoryLimit is how many bytes a process that is this broker and nothing else may be expected to use: all budgets for
// memory, full at once, and a quarter of that for the transport and for what waits to be collected.
func (c Config) MemoryLimit() int64 {
	c.ensureDefaults()
	return (c.RetainedBytes + c.ReadBytes + c.CacheMaxBytes) / 4 * 5
}

// TuneRuntime makes the garbage collector of this process rare, and bounds its memory by [Config.MemoryLimit]. What the
// environment says instead, in GOGC and GOMEMLIMIT, stands. It is for programs that are a broker and nothing else, and
// is called once, before [New].
func (c Config) TuneRuntime() {
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(gcPercent)
	}
	if os.Getenv("GOMEMLIMIT") == "" {
		debug.SetMemoryLimit(c.MemoryLimit())
	}
}
