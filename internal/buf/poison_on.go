//go:build invariants

package buf

// poison overwrites freed memory, so that a reader who kept a view too long sees 0xDB instead of old data.
func poison(b []byte) {
	for i := range b {
		b[i] = 0xDB
	}
}
