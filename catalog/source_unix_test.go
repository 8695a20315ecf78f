//go:build unix

package catalog

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/felix-mq/felix/internal/readfile"
)

// TestSourcesThatHang are files of which a read would never end. They hold up neither a start nor a reload nor an end.
func TestSourcesThatHang(t *testing.T) {
	dir := t.TempDir()
	fifo := filepath.Join(dir, "fifo")
	if err := syscall.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, source := range []string{fifo, "/dev/zero", dir} {
		if _, err := Load(source); !errors.Is(err, readfile.ErrNotRegular) {
			t.Errorf("Load(%s): %v", source, err)
		}
		name := filepath.Join(t.TempDir(), "catalog.yml")
		if err := os.WriteFile(name, []byte("tenants: {a: {jwks_file: "+source+"}}"), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := Load(name); !errors.Is(err, readfile.ErrNotRegular) && (err == nil || !strings.Contains(err.Error(), "not a regular file")) {
			t.Errorf("keys in %s: %v", source, err)
		}
		if err := os.WriteFile(name, []byte("tenants: {}"), 0o600); err != nil {
			t.Fatal(err)
		}
		file := NewFile(name)
		if _, err := file.Snapshot(t.Context()); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		updates := make(chan error)
		var work sync.WaitGroup
		work.Go(func() { file.Follow(ctx, func(_ []Change, err error) { updates <- err }) })
		if err := os.Symlink(source, name+".new"); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(name+".new", name); err != nil {
			t.Fatal(err)
		}
		if err := <-updates; !errors.Is(err, readfile.ErrNotRegular) {
			t.Errorf("%s took the catalog's place: %v", source, err)
		}
		cancel()
		work.Wait()
	}
}
