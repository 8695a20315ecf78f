package child

import (
	"fmt"
	"os"
	"runtime"
	"runtime/metrics"
	"strings"
)

// Resident returns the bytes of memory that a process has (VmRSS), or 0 where the system does not tell.
func Resident(pid int) int64 {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0
	}
	_, rest, _ := strings.Cut(string(status), "VmRSS:")
	var kib int64
	if _, err := fmt.Sscan(rest, &kib); err != nil {
		return 0
	}
	return kib << 10
}

// Resources are what a process holds at one moment.
type Resources struct {
	RSS        int64 `json:"rss_bytes"`  // 0 if the system does not tell
	Heap       int64 `json:"heap_bytes"` // in use, garbage included
	Goroutines int   `json:"goroutines"`
}

// Held returns what this process holds.
func Held() Resources {
	heap := []metrics.Sample{{Name: "/memory/classes/heap/objects:bytes"}}
	metrics.Read(heap)
	return Resources{RSS: Resident(os.Getpid()), Heap: int64(heap[0].Value.Uint64()), Goroutines: runtime.NumGoroutine()}
}
