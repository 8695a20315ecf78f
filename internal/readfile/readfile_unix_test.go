//go:build unix

package readfile

import (
	"errors"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// TestOnlyRegularFiles would hang if any of these were opened and read as a file.
func TestOnlyRegularFiles(t *testing.T) {
	dir := t.TempDir()
	fifo := filepath.Join(dir, "fifo")
	if err := syscall.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	for name, kind := range map[string]string{fifo: "a named pipe", dir: "a directory", "/dev/zero": "a device", "/dev/null": "a device"} {
		if b, err := Read(t.Context(), name, 1<<20); !errors.Is(err, ErrNotRegular) || b != nil || !strings.Contains(err.Error(), name+" is "+kind) {
			t.Errorf("Read(%s) = %d bytes, %v, want that it is %s", name, len(b), err, kind)
		}
	}
	// A pipe that takes the file's place between the look and the opening.
	f, err := open(fifo)
	if err != nil {
		t.Fatal(err)
	}
	_ = f.Close()
}
