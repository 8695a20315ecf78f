package main

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/felix-mq/felix/internal/plant"
	"github.com/felix-mq/felix/internal/race"
)

func TestCapture(t *testing.T) {
	if race.Enabled {
		t.Skip("pools drop things on purpose under the race detector")
	}
	t.Chdir(t.TempDir())
	var out bytes.Buffer
	if code := run(context.Background(), []string{"pubsub-small", "--duration=2s"}, &out, &out); code != 0 {
		t.Errorf("exit code %d:\n%s", code, &out)
	}
	if !strings.Contains(out.String(), "| quic-go ") {
		t.Errorf("no row of quic-go:\n%s", &out)
	}
	for _, name := range []string{"cpu.pprof", "allocs.pprof", "heap.pprof", "mutex.pprof", "block.pprof", "trace.out"} {
		if info, err := os.Stat(filepath.Join("profiles", "out", "pubsub-small", name)); err != nil || info.Size() == 0 {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestPlanted builds a broker whose topics do for each publish what they must not, and wants it found.
func TestPlanted(t *testing.T) {
	if race.Enabled {
		t.Skip("what is built is not built with the race detector")
	}
	t.Chdir(filepath.Join("..", ".."))
	overlay := plant.Overlay(t, "fanout", `import (
	"sync"
	"time"
)

var (
	plantedAt  time.Time
	plantedAny any
	plantedMap map[uint64]uint64
	plantedMu  sync.Mutex
)

func planted(n uint64) {
	plantedMu.Lock()
	defer plantedMu.Unlock()
	plantedAny = new([64]byte)
	plantedMap = make(map[uint64]uint64)
	for i := range uint64(2000) {
		plantedMap[n+i] = n
	}
	for range 3000 {
		plantedAt = time.Now()
	}
}
`, map[string]string{"func (t *Topic) offerLocked(": "planted(t.next)"})
	file := filepath.Join(t.TempDir(), "profile")
	if out, err := exec.Command("go", "build", "-pgo=off", overlay, "-o", file, "./profiles/capture").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, file, "pubsub-small", "--duration=2s")
	cmd.Dir = t.TempDir()
	out, err := cmd.CombinedOutput()
	if err == nil || cmd.ProcessState.ExitCode() != 1 {
		t.Errorf("ended with %v", err)
	}
	for _, want := range []string{"VIOLATION allocation", "VIOLATION map growth", "VIOLATION look at the clock", "fanout.planted"} {
		if !bytes.Contains(out, []byte(want)) {
			t.Errorf("does not say %q:\n%s", want, out)
		}
	}
}
