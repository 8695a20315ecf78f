//go:build invariants

package buf

import "testing"

func TestFreedMemoryIsPoisoned(t *testing.T) {
	for _, n := range []int{100, 64 << 10, MaxPooled + 1} {
		c := Get(n)
		stale := c.Bytes()
		clear(stale)
		c.Release()
		for i, b := range stale {
			if b != 0xDB {
				t.Fatalf("Get(%d): byte %d is %#x after the last release", n, i, b)
			}
		}
	}
}
