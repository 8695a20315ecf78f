//go:build !telemetry

package telemetry

// Enabled reports whether telemetry is compiled in.
const Enabled = false

// Time is an instant for [Observe]. Its zero value is none.
type Time struct{}

// Start returns the present instant for one call in 16, by chance, and the zero Time for the others.
func Start() Time { return Time{} }

// Observe records the time since start as a duration of s and returns the present instant, at which the next stage of
// the same work begins. The zero Time is ignored and returned. It allocates nothing in steady state, does not wait for
// other cores, and may be called from many goroutines.
func Observe(Stage, Time) Time { return Time{} }

// Add adds n, which must not be negative, to c. It allocates nothing, does not block, and may be called from many
// goroutines.
func Add(Counter, int) {}

// Text returns a table of what has been recorded since the start of the process, stages and counters that are zero left
// out; "" if nothing was, and in builds without telemetry.
func Text() string { return "" }
