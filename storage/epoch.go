package storage

import (
	"errors"
	"fmt"
	"hash/fnv"
	"io/fs"
	"math/rand/v2"
	"path"
	"strconv"
	"strings"

	"github.com/felix-mq/felix/internal/vfs"
)

// epochFile is the name of the file with the number that tells this data directory from all others.
const epochFile = "epoch"

const epochSize = 17 // 16 digits and the end of the line

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
	b, err := vfs.ReadFile(fsys, name, epochSize)
	switch {
	case err == nil:
		if epoch, err := strconv.ParseUint(strings.TrimSuffix(string(b), "\n"), 16, 64); err == nil && len(b) == epochSize {
			return epoch, nil
		}
	case !errors.Is(err, fs.ErrNotExist):
		return 0, err
	}
	epoch := rand.Uint64()
	if err := vfs.WriteFile(fsys, name, fmt.Appendf(nil, "%016x\n", epoch)); err != nil {
		return 0, err
	}
	return epoch, fsys.SyncDir(root)
}
