package catalog

import (
	"context"
	"crypto/sha256"
	"fmt"
	"hash"
	"time"

	"github.com/felix-mq/felix/internal/filewatch"
	"github.com/felix-mq/felix/internal/settings"
)

// pollEvery is how late a change is noticed at most, where the file system does not tell of it.
const pollEvery = 2 * time.Second

// File is a [Source] that reads a YAML file.
type File struct {
	name  string
	files []string // that the last reading needed: it and those with keys
	seen  [sha256.Size]byte
	last  *Catalog // the last that was valid
}

// NewFile returns a source that reads the named file. It reads nothing yet.
func NewFile(name string) *File { return &File{name: name, files: []string{name}} }

// Snapshot reads the file. The error reports every problem at once.
func (f *File) Snapshot(context.Context) (*Catalog, error) {
	c, err := f.read()
	if err == nil {
		f.last = c
	}
	return c, err
}

// Follow implements [Source]. It notices a change at once where the directory tells of it, and within two seconds
// otherwise.
func (f *File) Follow(ctx context.Context, update func([]Change, error)) {
	w := filewatch.New(pollEvery, f.name)
	defer w.Close()
	for ctx.Err() == nil {
		if f.fingerprint() != f.seen {
			if c, err := f.read(); err != nil {
				update(nil, err)
			} else {
				changes := Diff(f.last, c)
				f.last = c
				update(changes, nil)
			}
		}
		_ = w.Wait(ctx)
	}
}

func (f *File) read() (c *Catalog, err error) {
	h := sha256.New()
	c, f.files, err = load(f.name, func(name string) ([]byte, error) { return readInto(h, name) })
	h.Sum(f.seen[:0])
	return c, err
}

// fingerprint tells the content of the files from any other, without understanding it.
func (f *File) fingerprint() [sha256.Size]byte {
	h := sha256.New()
	for _, name := range f.files {
		_, _ = readInto(h, name)
	}
	return [sha256.Size]byte(h.Sum(nil))
}

// readInto reads a file and adds what came of it to h.
func readInto(h hash.Hash, name string) ([]byte, error) {
	text, err := settings.ReadFile(name)
	h.Write(fmt.Appendf(nil, "%d %v\n", len(text), err))
	h.Write(text)
	return text, err
}
