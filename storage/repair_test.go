package storage

import (
	"bytes"
	"errors"
	"path"
	"slices"
	"testing"

	"github.com/felix-mq/felix/internal/vfs"
)

// TestRepair damages a log in all ways that can be mended, and mends it: first in memory only, then for good.
func TestRepair(t *testing.T) {
	image := &vfs.Mem{}
	promises := make([]promise, 1)
	work(t, image, promises, 20, noneUnsynced)
	dir := path.Join("data", key(0).Dir())
	var logs, indexes []string
	for _, name := range files(t, image, dir) {
		switch path.Ext(name) {
		case segmentKind:
			logs = append(logs, name)
		case indexKind:
			indexes = append(indexes, name)
		}
	}
	if len(logs) < 3 || len(indexes) < 2 {
		t.Fatalf("there are %d segments and %d indexes", len(logs), len(indexes))
	}
	last := logs[len(logs)-1]
	size := int64(len(read(t, image, last)))
	sealed := len(read(t, image, indexes[0]))
	for _, c := range []struct {
		name   string
		damage func(fs vfs.FS)
		want   Repair
		lost   uint64
	}{
		{
			"part of a record", func(fs vfs.FS) { change(t, fs, last, size, 1, 2, 3) },
			Repair{File: last, Position: size, Damage: DamageTruncated, Cut: 3},
			0,
		},
		{"index is missing", func(fs vfs.FS) { must(t, fs.Remove(indexes[0])) }, Repair{File: indexes[0], Damage: DamageMissing}, 0},
		{
			"index of another base", func(fs vfs.FS) { change(t, fs, indexes[0], 15, 77) },
			Repair{File: indexes[0], Damage: DamageFileHeader},
			0,
		},
		{
			"wrong position in an index", func(fs vfs.FS) { change(t, fs, indexes[0], indexHeaderSize+15, 33) },
			Repair{File: indexes[0], Position: indexHeaderSize, Damage: DamageOffset},
			0,
		},
		{
			"wrong offset in an index", func(fs vfs.FS) { change(t, fs, indexes[0], indexHeaderSize+indexEntrySize, 1) },
			Repair{File: indexes[0], Position: indexHeaderSize, Damage: DamageOffset},
			0,
		},
		{
			"part of an entry", func(fs vfs.FS) { change(t, fs, indexes[0], int64(sealed), 1) },
			Repair{File: indexes[0], Position: indexHeaderSize, Damage: DamageOffset},
			0,
		},
		{"last record", func(fs vfs.FS) { flip(t, fs, last, size-1) }, Repair{File: last, Damage: DamageRecord}, 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			fs := clone(t, image)
			c.damage(fs)
			damaged := clone(t, fs)
			c.want.Log, c.want.File = key(0).Dir(), c.want.File[len("data/"):]
			repair := func(fs vfs.FS) (found []Repair, bounds Bounds) {
				opt := small(fs)
				opt.VerifyAll, opt.RepairTail, opt.Repaired = true, true, func(r Repair) { found = append(found, r) }
				s, err := Open("data", opt)
				must(t, err)
				defer s.Close()
				l, err := s.Log(key(0))
				must(t, err)
				readBack(t, l, 0)
				return found, l.Bounds()
			}
			check := func(found []Repair, b Bounds) {
				t.Helper()
				if c.want.Damage == DamageRecord && len(found) == 1 { // where the record begins does not matter here
					c.want.Position, c.want.Cut = found[0].Position, size-found[0].Position
				}
				if !slices.Equal(found, []Repair{c.want}) {
					t.Errorf("mended %+v, want %+v", found, c.want)
				}
				if b.Tail != promises[0].acked-c.lost {
					t.Errorf("the log ends at %d, want %d", b.Tail, promises[0].acked-c.lost)
				}
			}
			over := vfs.NewOverlay(fs)
			check(repair(over))
			must(t, over.Close())
			for _, name := range files(t, damaged, "data") {
				if !bytes.Equal(read(t, fs, name), read(t, damaged, name)) {
					t.Errorf("%s was changed by a look", name)
				}
			}
			check(repair(fs))
			if found, _ := repair(fs); len(found) > 0 {
				t.Errorf("mended again: %+v", found)
			}
			if path.Ext(c.want.File) == indexKind && !bytes.Equal(read(t, fs, "data/"+c.want.File), read(t, image, "data/"+c.want.File)) {
				t.Error("the index that was made again is another one")
			}
		})
	}
	t.Run("in the middle", func(t *testing.T) {
		fs := clone(t, image)
		flip(t, fs, logs[1], 70)
		opt := small(fs)
		opt.VerifyAll, opt.RepairTail, opt.Repaired = true, true, func(r Repair) { t.Errorf("mended %+v", r) }
		s, err := Open("data", opt)
		must(t, err)
		defer s.Close()
		var damage *CorruptionError
		if _, err := s.Log(key(0)); !errors.As(err, &damage) {
			t.Errorf("opened with %v", err)
		}
	})
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// change writes bytes into a file.
func change(t *testing.T, fs vfs.FS, name string, at int64, b ...byte) {
	t.Helper()
	f, err := fs.Open(name)
	must(t, err)
	defer f.Close()
	_, err = f.WriteAt(b, at)
	must(t, err)
}
