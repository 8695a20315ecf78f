package broker

import "testing"

func TestMemoryLimitFollowsBudgets(t *testing.T) {
	c := Config{RetainedBytes: 100 << 20, ReadBytes: 20 << 20, CacheMaxBytes: 40 << 20}
	if got, want := c.MemoryLimit(), int64(200<<20); got != want {
		t.Errorf("MemoryLimit() = %d, want %d", got, want)
	}
	if got, want := (Config{}).MemoryLimit(), int64(1600<<20); got != want {
		t.Errorf("by default MemoryLimit() = %d, want %d", got, want)
	}
}
