package readfile

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestReadIsBoundedInSize(t *testing.T) {
	name := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(name, []byte("12345"), 0o600); err != nil {
		t.Fatal(err)
	}
	link := name + ".link"
	if err := os.Symlink(name, link); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{name, link} {
		if b, err := Read(t.Context(), name, 5); err != nil || string(b) != "12345" {
			t.Errorf("Read(%s) = %q, %v", name, b, err)
		}
		if b, err := Read(t.Context(), name, 4); !errors.Is(err, ErrTooLarge) || b != nil || !strings.Contains(err.Error(), name) {
			t.Errorf("Read(%s) of a byte less = %q, %v", name, b, err)
		}
	}
	if _, err := Read(t.Context(), name+".not", 4); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Read of nothing: %v", err)
	}
}

// hanging is a read that hangs until its channel is closed.
func hanging(release chan struct{}) func() ([]byte, error) {
	return func() ([]byte, error) {
		<-release
		return []byte("late"), nil
	}
}

func TestFileSystemThatHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := group{pending: make(map[string]struct{})}
		release := make(chan struct{})
		_, err := g.do(t.Context(), "a", hanging(release))
		if !errors.Is(err, ErrTimeout) || !strings.Contains(err.Error(), "a: ") {
			t.Errorf("a read that hangs: %v", err)
		}
		again := func() ([]byte, error) { t.Error("a second goroutine for the same name"); return nil, nil }
		if _, second := g.do(t.Context(), "a", again); second == nil || second.Error() != err.Error() {
			t.Errorf("a second read: %v, want %v", second, err)
		}
		quick := func() ([]byte, error) { return []byte("x"), nil }
		if b, err := g.do(t.Context(), "b", quick); err != nil || string(b) != "x" {
			t.Errorf("another name: %q, %v", b, err)
		}
		close(release)
		synctest.Wait()
		if b, err := g.do(t.Context(), "a", quick); err != nil || string(b) != "x" {
			t.Errorf("once the file system answers: %q, %v", b, err)
		}
	})
}

func TestContextEndsARead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := group{pending: make(map[string]struct{})}
		release := make(chan struct{})
		ctx, cancel := context.WithCancel(t.Context())
		go cancel()
		if _, err := g.do(ctx, "a", hanging(release)); !errors.Is(err, context.Canceled) {
			t.Errorf("a read whose context ends: %v", err)
		}
		if _, err := g.do(ctx, "b", hanging(release)); !errors.Is(err, context.Canceled) {
			t.Errorf("a read whose context has ended: %v", err)
		}
		close(release)
	})
}
