package vfs

import (
	"errors"
	"io"
	"io/fs"
	"maps"
	"path"
	"slices"
	"strings"
	"sync"
)

// Overlay is another file system that is not changed: what is written, made, renamed and removed is kept in memory, and
// can be read. So one can look at what a change would do. Locks are those of the file system below. Directories are not
// renamed or removed. What was changed is lost with the Overlay, and syncs do nothing.
type Overlay struct {
	below FS

	mu    sync.Mutex
	files map[string]*overlaid // by clean name; nil for one that is removed
	dirs  map[string]bool      // that were made
}

var _ FS = (*Overlay)(nil)

// NewOverlay returns an overlay over a file system.
func NewOverlay(below FS) *Overlay {
	return &Overlay{below: below, files: map[string]*overlaid{}, dirs: map[string]bool{}}
}

// overlaid is a file as it is seen. It belongs to the Overlay's lock.
type overlaid struct {
	below   File  // nil if the file was made here
	keep    int64 // how much of that is seen
	size    int64
	pages   map[int64][]byte // that were written to, each overlayPage long
	changed bool             // it is not as it is below
	removed bool
	users   int
}

const overlayPage = 64 << 10

// find returns a file, or nil if there is none below either. o.mu is held.
func (o *Overlay) find(name string) (*overlaid, error) {
	if f, ok := o.files[name]; ok {
		return f, nil
	}
	below, err := o.below.Open(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	size, err := below.Size()
	if err != nil {
		return nil, errors.Join(err, below.Close())
	}
	f := &overlaid{below: below, keep: size, size: size, pages: map[int64][]byte{}}
	o.files[name] = f
	return f, nil
}

// Open implements [FS].
func (o *Overlay) Open(name string) (File, error) {
	name = path.Clean(name)
	o.mu.Lock()
	defer o.mu.Unlock()
	f, err := o.find(name)
	if err == nil && f == nil {
		err = &fs.PathError{Op: "open", Path: name, Err: fs.ErrNotExist}
	}
	if err != nil {
		return nil, err
	}
	f.users++
	return &overlayFile{o: o, f: f, name: name}, nil
}

// Create implements [FS].
func (o *Overlay) Create(name string) (File, error) {
	name = path.Clean(name)
	o.mu.Lock()
	defer o.mu.Unlock()
	f, err := o.find(name)
	if err == nil && f != nil {
		o.forget(name, f)
		err = &fs.PathError{Op: "create", Path: name, Err: fs.ErrExist}
	}
	if err == nil && !o.dirs[path.Dir(name)] {
		_, err = o.below.List(path.Dir(name)) // it has to be there
	}
	if err != nil {
		return nil, err
	}
	f = &overlaid{pages: map[int64][]byte{}, changed: true, users: 1}
	o.files[name] = f
	return &overlayFile{o: o, f: f, name: name}, nil
}

// forget closes a file that nobody uses, if it is removed or as it is below. o.mu is held.
func (o *Overlay) forget(name string, f *overlaid) {
	if f.users > 0 || f.below == nil || !f.removed && f.changed {
		return
	}
	_ = f.below.Close() // nothing was written to it
	if !f.removed {
		delete(o.files, name)
	}
	f.below = nil
}

// drop takes a file off its name. o.mu is held.
func (o *Overlay) drop(name string) {
	if f := o.files[name]; f != nil {
		f.removed = true
		o.forget(name, f)
	}
	o.files[name] = nil
}

// MkdirAll implements [FS].
func (o *Overlay) MkdirAll(dir string) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	for dir = path.Clean(dir); dir != "." && dir != "/"; dir = path.Dir(dir) {
		o.dirs[dir] = true
	}
	return nil
}

// Remove implements [FS].
func (o *Overlay) Remove(name string) error {
	name = path.Clean(name)
	o.mu.Lock()
	defer o.mu.Unlock()
	f, err := o.find(name)
	if err == nil && f == nil {
		err = &fs.PathError{Op: "remove", Path: name, Err: fs.ErrNotExist}
	}
	if err == nil {
		o.drop(name)
	}
	return err
}

// Rename implements [FS].
func (o *Overlay) Rename(from, to string) error {
	from, to = path.Clean(from), path.Clean(to)
	o.mu.Lock()
	defer o.mu.Unlock()
	f, err := o.find(from)
	if err == nil && (f == nil || path.Dir(from) != path.Dir(to)) {
		err = &fs.PathError{Op: "rename", Path: from, Err: fs.ErrNotExist}
	}
	if err != nil {
		return err
	}
	o.drop(to)
	f.changed = true
	o.files[from], o.files[to] = nil, f
	return nil
}

// List implements [FS].
func (o *Overlay) List(dir string) ([]Entry, error) {
	dir = path.Clean(dir)
	o.mu.Lock()
	defer o.mu.Unlock()
	entries, err := o.below.List(dir)
	if err != nil && (!errors.Is(err, fs.ErrNotExist) || !o.dirs[dir]) {
		return nil, err
	}
	all := map[string]Entry{}
	for _, e := range entries {
		all[e.Name] = e
	}
	for d := range o.dirs {
		if path.Dir(d) == dir {
			all[path.Base(d)] = Entry{Name: path.Base(d), Dir: true}
		}
	}
	for name, f := range o.files {
		switch {
		case path.Dir(name) != dir:
		case f == nil:
			delete(all, path.Base(name))
		default:
			all[path.Base(name)] = Entry{Name: path.Base(name)}
		}
	}
	return slices.SortedFunc(maps.Values(all), func(a, b Entry) int { return strings.Compare(a.Name, b.Name) }), nil
}

// SyncDir implements [FS].
func (o *Overlay) SyncDir(string) error { return nil }

// Free implements [FS].
func (o *Overlay) Free(dir string) (int64, error) { return o.below.Free(dir) }

// Lock implements [FS].
func (o *Overlay) Lock(name string) (io.Closer, error) { return o.below.Lock(name) }

// Close closes the files below. Nothing of o is used afterwards.
func (o *Overlay) Close() error {
	o.mu.Lock()
	defer o.mu.Unlock()
	var errs []error
	for _, f := range o.files {
		if f != nil && f.below != nil {
			errs = append(errs, f.below.Close())
		}
	}
	clear(o.files)
	return errors.Join(errs...)
}

type overlayFile struct {
	o    *Overlay
	f    *overlaid
	name string
}

// page returns the page of that number as it is seen. o.mu is held.
func (f *overlaid) page(n int64) ([]byte, error) {
	if p := f.pages[n]; p != nil {
		return p, nil
	}
	p := make([]byte, overlayPage)
	if have := min(f.keep-n*overlayPage, overlayPage); f.below != nil && have > 0 {
		if _, err := f.below.ReadAt(p[:have], n*overlayPage); err != nil && !errors.Is(err, io.EOF) {
			return nil, err
		}
	}
	return p, nil
}

func (h *overlayFile) ReadAt(p []byte, off int64) (int, error) {
	h.o.mu.Lock()
	defer h.o.mu.Unlock()
	f := h.f
	if !f.changed {
		n, err := f.below.ReadAt(p[:max(0, min(int64(len(p)), f.size-off))], off)
		if err == nil && n < len(p) {
			err = io.EOF
		}
		return n, err
	}
	n := 0
	for n < len(p) && off < f.size {
		page, err := f.page(off / overlayPage)
		if err != nil {
			return n, err
		}
		at := off % overlayPage
		k := copy(p[n:], page[at:min(overlayPage, at+f.size-off)])
		n += k
		off += int64(k)
	}
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

func (h *overlayFile) WriteAt(p []byte, off int64) (int, error) {
	h.o.mu.Lock()
	defer h.o.mu.Unlock()
	h.f.changed = true
	n := 0
	for n < len(p) {
		page, err := h.f.page(off / overlayPage)
		if err != nil {
			return n, err
		}
		h.f.pages[off/overlayPage] = page
		k := copy(page[off%overlayPage:], p[n:])
		n += k
		off += int64(k)
	}
	h.f.size = max(h.f.size, off)
	return n, nil
}

func (h *overlayFile) Truncate(size int64) error {
	h.o.mu.Lock()
	defer h.o.mu.Unlock()
	f := h.f
	f.changed = true
	if size < f.size {
		for n := range f.pages {
			if n*overlayPage >= size {
				delete(f.pages, n)
			}
		}
		if at := size % overlayPage; at > 0 && f.pages[size/overlayPage] != nil {
			clear(f.pages[size/overlayPage][at:])
		}
		f.keep = min(f.keep, size)
	}
	f.size = size
	return nil
}

func (h *overlayFile) Size() (int64, error) {
	h.o.mu.Lock()
	defer h.o.mu.Unlock()
	return h.f.size, nil
}

func (h *overlayFile) Sync() error         { return nil }
func (h *overlayFile) Reserve(int64) error { return nil }

func (h *overlayFile) Close() error {
	h.o.mu.Lock()
	defer h.o.mu.Unlock()
	h.f.users--
	h.o.forget(h.name, h.f)
	return nil
}
