package vfs_test

import (
	"bytes"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"math/rand/v2"
	"testing"

	"github.com/felix-mq/felix/internal/vfs"
)

// TestOverlay makes random changes to an overlay and to a copy of what is below it. Both show the same, and what is
// below stays as it was.
func TestOverlay(t *testing.T) {
	for seed := range uint64(40) {
		dice := rand.New(rand.NewPCG(1, seed))
		below, model := &vfs.Mem{}, &vfs.Mem{}
		names := []string{"d/a", "d/b", "d/c", "d/e/f", "d/e/g"}
		for _, m := range []*vfs.Mem{below, model} {
			must(t, m.MkdirAll("d/e"))
			for i, name := range names[:4] {
				f, err := m.Create(name)
				must(t, err)
				_, err = f.WriteAt(bytes.Repeat([]byte{byte(i + 1)}, 50_000*(i+1)), 0)
				must(t, err)
			}
		}
		before := show(t, below, names)
		over := vfs.NewOverlay(below)
		for range 1 + dice.IntN(60) {
			change(t, dice, names, over, model)
		}
		if got, want := show(t, over, names), show(t, model, names); got != want {
			t.Fatalf("seed %d: the overlay has\n%swant\n%s", seed, got, want)
		}
		must(t, over.Close())
		if after := show(t, below, names); after != before {
			t.Fatalf("seed %d: what is below has changed to\n%s, it was\n%s", seed, after, before)
		}
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// change makes the same change to both.
func change(t *testing.T, dice *rand.Rand, names []string, over *vfs.Overlay, model *vfs.Mem) {
	t.Helper()
	name, at, size := names[dice.IntN(len(names))], int64(dice.IntN(200_000)), int64(dice.IntN(200_000))
	data := bytes.Repeat([]byte{byte(dice.IntN(256))}, dice.IntN(70_000))
	what, to := dice.IntN(6), []string{"d/a", "d/b", "d/c"}[dice.IntN(3)]
	var errs []error
	for _, m := range []vfs.FS{over, model} {
		errs = append(errs, func() error {
			switch what {
			case 0:
				_, err := m.Create(name)
				return err
			case 1:
				return m.Remove(name)
			case 2:
				if name == to {
					return nil
				}
				return m.Rename(name, to)
			}
			f, err := m.Open(name)
			if err != nil {
				return err
			}
			defer f.Close()
			if what == 3 {
				return f.Truncate(size)
			}
			_, err = f.WriteAt(data, at)
			return err
		}())
	}
	if a, b := errs[0], errs[1]; (a == nil) != (b == nil) || a != nil && !errors.Is(a, fs.ErrNotExist) && !errors.Is(a, fs.ErrExist) {
		t.Fatalf("change %d of %s: %v, want %v", what, name, a, b)
	}
}

// show is all that there is to see.
func show(t *testing.T, m vfs.FS, names []string) (all string) {
	t.Helper()
	for _, dir := range []string{"d", "d/e"} {
		entries, err := m.List(dir)
		must(t, err)
		all += fmt.Sprintln(dir, entries)
	}
	for _, name := range names {
		f, err := m.Open(name)
		if err != nil {
			all += fmt.Sprintln(name, "is not there")
			continue
		}
		size, err := f.Size()
		must(t, err)
		content := make([]byte, size)
		for at := int64(0); at < size; at += 10_001 {
			if _, err := f.ReadAt(content[at:min(at+10_001, size)], at); err != nil {
				t.Fatal(err)
			}
		}
		if size > 3 {
			if n, err := f.ReadAt(make([]byte, 10), size-3); n != 3 || !errors.Is(err, io.EOF) {
				t.Fatalf("%s: a read over the end: %d, %v", name, n, err)
			}
		}
		all += fmt.Sprintln(name, size, crc32.ChecksumIEEE(content))
		f.Close()
	}
	return all
}
