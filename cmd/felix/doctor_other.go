//go:build !linux

package main

import "runtime"

// readSystem reads what only the system knows. Elsewhere than on Linux that is its name.
func (m *machine) readSystem() { m.kernel = runtime.GOOS }
