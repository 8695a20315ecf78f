package codec

// KeepScratch is how much memory a Message keeps for the next one.
const KeepScratch = keepScratch

// ScratchCap returns how much memory m holds.
func ScratchCap(m *Message) int { return cap(m.scratch) }

// SetRegistry replaces the registry by extensions of these names, one bit each from the lowest on, and returns what
// puts the real one back.
func SetRegistry(names ...string) (restore func()) {
	old := registry
	registry = nil
	for i, name := range names {
		registry = append(registry, extension{name: name, set: 1 << i})
	}
	return func() { registry = old }
}

// RegistryNames returns the names of the registry with the bits they stand for.
func RegistryNames() (names []string, sets []Extensions) {
	for _, e := range registry {
		names, sets = append(names, e.name), append(sets, e.set)
	}
	return names, sets
}
