//go:build !telemetry

package telemetry

import (
	"go/build"
	"testing"
	"unsafe"
)

func TestOffHasNoSize(t *testing.T) {
	if size := unsafe.Sizeof(Time{}); size != 0 {
		t.Errorf("Time has %d bytes, want 0", size)
	}
	type frame struct {
		_ Time
		_ int
	}
	if size := unsafe.Sizeof(frame{}); size != unsafe.Sizeof(int(0)) {
		t.Errorf("a struct with a Time and an int has %d bytes", size)
	}
}

func TestOffRecordsNothing(t *testing.T) {
	if Enabled {
		t.Error("telemetry is enabled")
	}
	probe()
	if got := Text(); got != "" {
		t.Errorf("got %q", got)
	}
}

func TestOffImportsNothing(t *testing.T) {
	p, err := build.ImportDir(".", 0)
	if err != nil {
		t.Fatal(err)
	}
	if len(p.Imports) > 0 {
		t.Errorf("the default build imports %q", p.Imports)
	}
}
