package catalog

import (
	"context"
	"crypto/sha256"
	"fmt"
	"hash"
	"time"

	"github.com/felix-mq/felix/internal/filewatch"
	"github.com/felix-mq/felix/internal/readfile"
	"github.com/felix-mq/felix/internal/settings"
)

// pollEvery is how late a change is noticed at most, where the file system does not tell of it.
const pollEvery = 2 * time.Second

// readTimeout bounds the reading of a catalog with all its files, which a file system that hangs would make endless.
const readTimeout = 10 * time.Second

// File is a [Source] that reads a YAML file. It and the files that it names have to be regular files. A reading that
// has not ended after ten seconds fails.
type File struct {
	name  string
	files []string // that the last reading needed: it and those with keys
	seen  [sha256.Size]byte
	last  *Catalog // the last that was valid

	now chan struct{} // asks Follow to read; holds one request
}

// NewFile returns a source that reads the named file. It reads nothing yet.
func NewFile(name string) *File {
	return &File{name: name, files: []string{name}, now: make(chan struct{}, 1)}
}

// Reload makes Follow read the file now, whether it has changed or not, and report what came of it. It returns at once
// and may be called from any goroutine.
func (f *File) Reload() {
	select {
	case f.now <- struct{}{}:
	default: // it has been asked already
	}
}

// Snapshot reads the file. The error reports every problem at once.
func (f *File) Snapshot(ctx context.Context) (*Catalog, error) {
	c, err := f.read(ctx)
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
	asked := false
	for ctx.Err() == nil {
		if asked || f.fingerprint(ctx) != f.seen {
			c, err := f.read(ctx)
			if ctx.Err() != nil {
				return // whatever the error says, the reading was cut short
			}
			if err != nil {
				update(nil, err)
			} else {
				changes := Diff(f.last, c)
				f.last = c
				update(changes, nil)
			}
		}
		asked, _ = w.WaitOr(ctx, f.now)
	}
}

func (f *File) read(ctx context.Context) (c *Catalog, err error) {
	ctx, cancel := context.WithTimeout(ctx, readTimeout)
	defer cancel()
	h := sha256.New()
	c, f.files, err = load(f.name, recorded(h, bounded(ctx)))
	h.Sum(f.seen[:0])
	return c, err
}

// fingerprint tells the content of the files from any other, without understanding it.
func (f *File) fingerprint(ctx context.Context) [sha256.Size]byte {
	ctx, cancel := context.WithTimeout(ctx, readTimeout)
	defer cancel()
	h := sha256.New()
	read := recorded(h, bounded(ctx))
	for _, name := range f.files {
		_, _ = read(name)
	}
	return [sha256.Size]byte(h.Sum(nil))
}

// bounded reads files of a catalog until ctx ends.
func bounded(ctx context.Context) func(name string) ([]byte, error) {
	return func(name string) ([]byte, error) { return readfile.Read(ctx, name, settings.MaxFileBytes) }
}

// recorded adds to h what came of each read.
func recorded(h hash.Hash, read func(string) ([]byte, error)) func(string) ([]byte, error) {
	return func(name string) ([]byte, error) {
		text, err := read(name)
		h.Write(fmt.Appendf(nil, "%d %v\n", len(text), err))
		h.Write(text)
		return text, err
	}
}
