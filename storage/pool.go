package storage

import (
	"container/list"
	"errors"
	"sync"
	"sync/atomic"

	"github.com/felix-mq/felix/internal/vfs"
)

// pool holds open files, so that logs which nobody uses hold none. At most max are open, and those in use.
type pool struct {
	fs     vfs.FS
	max    int
	failed func(error) // called when a file cannot be synced

	mu   sync.Mutex
	open map[string]*handle
	idle list.List // of *handle that nobody uses, longest unused first
}

// handle is an open file. Its users give it back to the pool.
type handle struct {
	vfs.File
	name  string
	users int
	at    *list.Element // in pool.idle
	gone  bool          // closed with its last user
	old   bool          // not used since the files were trimmed

	syncing sync.Mutex
	dirty   atomic.Bool // written to since the last sync
}

func newPool(fs vfs.FS, limit int, failed func(error)) *pool {
	return &pool{fs: fs, max: limit, failed: failed, open: map[string]*handle{}}
}

// get returns the open file of that name; create makes it.
func (p *pool) get(name string, create bool) (*handle, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if h := p.open[name]; h != nil && !create {
		if h.at != nil {
			p.idle.Remove(h.at)
			h.at = nil
		}
		h.users++
		h.old = false
		return h, nil
	}
	open := p.fs.Open
	if create {
		open = p.fs.Create
	}
	f, err := open(name)
	if err != nil {
		return nil, err
	}
	h := &handle{File: f, name: name, users: 1}
	p.open[name] = h
	p.shrink()
	return h, nil
}

// put gives a handle back.
func (p *pool) put(h *handle) {
	p.mu.Lock()
	defer p.mu.Unlock()
	h.users--
	if h.users > 0 {
		return
	}
	if h.gone {
		_ = h.Close() // of a file that was removed
		return
	}
	h.at = p.idle.PushBack(h)
	p.shrink()
}

// putAway is put for a file that is not expected to be used again soon: it is closed, unless it has to be synced or
// somebody else uses it.
func (p *pool) putAway(h *handle) {
	p.put(h)
	p.mu.Lock()
	defer p.mu.Unlock()
	if h.at != nil && !h.dirty.Load() {
		p.discard(h)
	}
}

// trim closes files that nobody uses and that need no sync: all of them, or those that were not used since trim was
// called before.
func (p *pool) trim(all bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for e := p.idle.Front(); e != nil; {
		h := e.Value.(*handle)
		e = e.Next()
		if !h.dirty.Load() && (all || h.old) {
			p.discard(h)
		}
		h.old = true
	}
}

// discard closes a file that nobody uses. The caller holds p.mu.
func (p *pool) discard(h *handle) {
	p.idle.Remove(h.at)
	h.at = nil
	delete(p.open, h.name)
	if err := h.Close(); err != nil {
		p.failed(err)
	}
}

// shrink closes files that nobody uses, those that are synced first. What was written to the others is synced before
// they are closed: the report of a failed write may be lost with the last open file. The pool's lock is free meanwhile.
func (p *pool) shrink() {
	for len(p.open) > p.max && p.idle.Len() > 0 {
		h := p.coldest()
		p.idle.Remove(h.at)
		h.at = nil
		dirty := h.dirty.Load()
		if dirty {
			h.users++
			p.mu.Unlock()
			if err := h.sync(); err != nil {
				p.failed(err)
			}
			p.mu.Lock()
			h.users--
		}
		switch {
		case h.users > 0:
		case h.gone || !h.dirty.Load():
			if !h.gone {
				delete(p.open, h.name)
			}
			if err := h.Close(); err != nil && !h.gone {
				p.failed(err)
			}
		default: // written to, or not synced
			h.at = p.idle.PushBack(h)
		}
		if dirty {
			return // one is enough for each that is opened
		}
	}
}

// coldest returns the file that was not used for longest, of those that need no sync if there are any.
func (p *pool) coldest() *handle {
	for e := p.idle.Front(); e != nil; e = e.Next() {
		if h := e.Value.(*handle); !h.dirty.Load() {
			return h
		}
	}
	return p.idle.Front().Value.(*handle)
}

// write writes b at that position.
func (h *handle) write(b []byte, at int64) error {
	_, err := h.WriteAt(b, at)
	h.dirty.Store(true) // not before: a sync in between would not have the bytes
	return err
}

// sync makes what was written survive. Of a file that was not written to it is free. It returns after any other sync
// that has begun before.
func (h *handle) sync() error {
	h.syncing.Lock()
	defer h.syncing.Unlock()
	if !h.dirty.Swap(false) {
		return nil
	}
	err := h.Sync()
	if err != nil {
		h.dirty.Store(true)
	}
	return err
}

// drop forgets a file that is going to be removed.
func (p *pool) drop(name string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	h := p.open[name]
	if h == nil {
		return
	}
	delete(p.open, name)
	h.gone = true
	if h.at != nil {
		p.idle.Remove(h.at)
		h.at = nil
		_ = h.Close()
	}
}

// close closes all that nobody uses.
func (p *pool) close() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	var errs []error
	for p.idle.Len() > 0 {
		h := p.idle.Remove(p.idle.Front()).(*handle)
		h.at = nil
		delete(p.open, h.name)
		errs = append(errs, h.Close())
	}
	return errors.Join(errs...)
}
