package filewatch

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/fsnotify/fsnotify"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestWaitSeesReplacedFilesAndSwappedLinks(t *testing.T) {
	dir := t.TempDir()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(os.Mkdir(filepath.Join(dir, "..1"), 0o700))
	must(os.Mkdir(filepath.Join(dir, "..2"), 0o700))
	must(os.Symlink("..1", filepath.Join(dir, "..data")))
	name := filepath.Join(dir, "file")
	must(os.Symlink("..data/file", name))
	w := New(time.Hour, name)
	defer w.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()

	must(os.Symlink("..2", filepath.Join(dir, "..data_tmp")))
	must(os.Rename(filepath.Join(dir, "..data_tmp"), filepath.Join(dir, "..data")))
	must(w.Wait(ctx))
	must(os.WriteFile(filepath.Join(dir, "new"), []byte("x"), 0o600))
	must(os.Rename(filepath.Join(dir, "new"), name))
	must(w.Wait(ctx))

	cancel()
	if err := w.Wait(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}

func TestWaitPolls(t *testing.T) {
	w := New(time.Millisecond, filepath.Join(t.TempDir(), "none", "file"))
	defer w.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if err := w.Wait(ctx); err != nil {
		t.Fatal(err)
	}
}

// A caller that stops at the context's end must not look once more.
func TestWaitAtTheContextsEnd(t *testing.T) {
	w := New(time.Microsecond, filepath.Join(t.TempDir(), "none", "file"))
	defer w.Close()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for range 100 { // a tick is there too, as a rule
		if err := w.Wait(ctx); !errors.Is(err, context.Canceled) {
			t.Fatalf("got %v", err)
		}
	}
}

func TestWaitOrIsWoken(t *testing.T) {
	w := New(time.Hour, filepath.Join(t.TempDir(), "file"))
	defer w.Close()
	now := make(chan struct{}, 1)
	now <- struct{}{}
	if asked, err := w.WaitOr(t.Context(), now); !asked || err != nil {
		t.Errorf("asked: %v, %v", asked, err)
	}
}

// A directory on a file system that does not answer is left to the poll, and holds up neither the start nor the end.
func TestDirectoryThatHangs(t *testing.T) {
	fs, err := fsnotify.NewWatcher()
	if err != nil {
		t.Skip(err)
	}
	answers := make(chan struct{})
	w := &Watcher{fs: fs, ticker: time.NewTicker(time.Millisecond)}
	w.start(time.Millisecond, func() { <-answers })
	if err := w.Wait(t.Context()); err != nil {
		t.Error(err)
	}
	w.Close()
	close(answers) // goleak sees whether the watch is released
}
