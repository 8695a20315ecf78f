//go:build !telemetry

package telemetry

// Enabled reports whether telemetry is compiled in.
const Enabled = false

// Time is an instant for [Observe].
type Time struct{}

// Now returns the present instant. It allocates nothing.
func Now() Time { return Time{} }

// Observe records the time since start as a duration of s. The zero Time is ignored. It allocates nothing in steady
// state, does not block on other cores, and may be called from many goroutines.
func Observe(Stage, Time) {}

// Add adds n, which must not be negative, to c. It allocates nothing, does not block, and may be called from many
// goroutines.
func Add(Counter, int) {}

// Snapshot returns what has been recorded, merged over all shards. Recording goes on meanwhile, so stages and
// counters are not of one instant.
func Snapshot() Report { return Report{} }

// Reset forgets what has been recorded. What is recorded meanwhile may stay or go.
func Reset() {}
