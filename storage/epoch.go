package storage

import (
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"io/fs"
	"math/rand/v2"
	"path"
	"strconv"
	"strings"

	"github.com/felix-mq/felix/internal/vfs"
)

// epochFile is the name of the file with the number that tells this data directory from all others.
const epochFile = "epoch"

// Epoch returns a number that goes with the offsets of the log: it is the same after every [Open] of the directory, and
// differs from that of every other log and every other directory. Who has seen another epoch knows other records under
// the same offsets.
func (l *Log) Epoch() uint64 {
	h := fnv.New64a()
	_, _ = h.Write([]byte(l.dir))
	return l.s.epoch ^ h.Sum64()
}

// epochOf reads the number of a data directory, which it makes if there is none that can be read.
func epochOf(fsys vfs.FS, root string) (uint64, error) {
	name := path.Join(root, epochFile)
	f, err := fsys.Open(name)
	switch {
	case err == nil:
		var b [17]byte
		n, err := f.ReadAt(b[:], 0)
		if errors.Is(err, io.EOF) {
			err = nil // what is too short does not parse
		}
		if err := errors.Join(err, f.Close()); err != nil {
			return 0, err
		}
		if epoch, err := strconv.ParseUint(strings.TrimSuffix(string(b[:n]), "\n"), 16, 64); err == nil && n == len(b) {
			return epoch, nil
		}
	case !errors.Is(err, fs.ErrNotExist):
		return 0, err
	}
	epoch := rand.Uint64()
	if err := writeFile(fsys, name, fmt.Appendf(nil, "%016x\n", epoch)); err != nil {
		return 0, err
	}
	return epoch, fsys.SyncDir(root)
}

// writeFile replaces a small file, in one step for who reads it after a crash. The caller syncs the directory.
func writeFile(fsys vfs.FS, name string, content []byte) error {
	draft := name + ".new"
	if err := fsys.Remove(draft); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	f, err := fsys.Create(draft)
	if err != nil {
		return err
	}
	_, err = f.WriteAt(content, 0)
	if err == nil {
		err = f.Sync()
	}
	if err := errors.Join(err, f.Close()); err != nil {
		return err
	}
	return fsys.Rename(draft, name)
}
