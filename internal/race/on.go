//go:build race

// Package race tells tests whether they run under the race detector, where pools drop items on purpose
// and allocation counts mean nothing.
package race

// Enabled reports whether the race detector is compiled in.
const Enabled = true
