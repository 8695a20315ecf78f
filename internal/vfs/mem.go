package vfs

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"math"
	"math/rand/v2"
	"path"
	"slices"
	"strings"
	"sync"
)

// ErrCrashed is what every operation of a [Mem] returns after its crash.
var ErrCrashed = errors.New("vfs: the machine has crashed")

// Survival says what a crash keeps of changes that were not synced.
type Survival int

// What a crash keeps. What was synced survives in any case.
const (
	KeepAll    Survival = iota // all of it
	KeepNone                   // nothing
	KeepPrefix                 // of each file and directory, its first changes
	KeepTorn                   // of each file and directory, any of its changes, and writes in part or as zeros
)

// Survivals lists them all.
func Survivals() []Survival {
	return []Survival{KeepAll, KeepNone, KeepPrefix, KeepTorn}
}

// String names the survival.
func (s Survival) String() string {
	switch s {
	case KeepAll:
		return "all"
	case KeepNone:
		return "none"
	case KeepPrefix:
		return "prefix"
	case KeepTorn:
		return "torn"
	}
	return fmt.Sprintf("survival %d", int(s))
}

// Mem is a file system in memory, for tests. It keeps what has been synced apart from what has not, so that [Mem.Crash]
// can show what a crash of the machine leaves. The zero value is empty and ready.
type Mem struct {
	mu      sync.Mutex
	root    *dir
	locked  map[string]bool
	changes int // made so far
	limit   int // changes after which it crashes, 0: never
	crashed bool
	space   int64 // what Free returns; 0: without bound
	lose    int   // the Sync of a file that fails, counted down; 0: none
}

var _ FS = (*Mem)(nil)

// dir and file hold what is there now, what a crash would certainly keep, and the changes between the two.
type dir struct {
	now, kept map[string]any // *dir or *file
	pending   []dirChange
}

type dirChange struct {
	name string
	node any // nil: removed
	from string
}

type file struct {
	now, kept []byte
	pending   []fileChange
}

type fileChange struct {
	off  int64
	data []byte // written at off
	size int64  // if data is nil: the new length
}

func newDir() *dir { return &dir{now: map[string]any{}, kept: map[string]any{}} }

func (c dirChange) apply(to map[string]any) {
	if c.from != "" {
		delete(to, c.from)
	}
	if c.node == nil {
		delete(to, c.name)
	} else {
		to[c.name] = c.node
	}
}

func (c fileChange) apply(to []byte) []byte {
	if c.data == nil {
		return resize(to, c.size)
	}
	if end := c.off + int64(len(c.data)); end > int64(len(to)) {
		to = resize(to, end)
	}
	copy(to[c.off:], c.data)
	return to
}

func resize(b []byte, size int64) []byte {
	if size <= int64(len(b)) {
		return b[:size]
	}
	n := len(b)
	b = slices.Grow(b, int(size)-n)[:size]
	clear(b[n:])
	return b
}

// CrashAfter lets the file system crash after n more changes: creating, writing, truncating, syncing, renaming and
// removing count, reading does not. The last one takes effect.
func (m *Mem) CrashAfter(n int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.limit = m.changes + n
}

// LoseSync lets the n-th Sync of a file from now on fail as Linux does: what was written can still be read, is taken
// for written, and never reaches the device.
func (m *Mem) LoseSync(n int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.lose = n
}

var errLost = errors.New("vfs: input/output error")

// Changes returns how many changes were made so far.
func (m *Mem) Changes() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.changes
}

// SetFree sets what Free returns.
func (m *Mem) SetFree(n int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.space = n
}

// Crash ends m, if it has not crashed yet, and returns the file system that the next start finds. Its dice decide where
// s leaves a choice.
func (m *Mem) Crash(s Survival, dice *rand.Rand) *Mem {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.crashed = true
	if m.root == nil {
		return &Mem{}
	}
	return &Mem{root: m.root.survive(s, dice, map[any]any{}), space: m.space}
}

// Restart ends m, if it has not crashed yet, as the end of the process does: the next start finds everything, and a
// crash of the machine later may still lose what was not synced.
func (m *Mem) Restart() *Mem {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.crashed = true
	return &Mem{root: m.root, space: m.space}
}

func (d *dir) survive(s Survival, dice *rand.Rand, seen map[any]any) *dir {
	left := maps.Clone(d.kept)
	for _, c := range survivors(d.pending, s, dice) {
		c.apply(left)
	}
	// In order of their names, so that the same dice give the same result.
	for _, name := range slices.Sorted(maps.Keys(left)) {
		node := left[name]
		if seen[node] == nil {
			switch n := node.(type) {
			case *dir:
				seen[node] = n.survive(s, dice, seen)
			case *file:
				seen[node] = n.survive(s, dice)
			}
		}
		left[name] = seen[node]
	}
	return &dir{now: left, kept: maps.Clone(left)}
}

func (f *file) survive(s Survival, dice *rand.Rand) *file {
	left := slices.Clone(f.kept)
	for _, c := range survivors(f.pending, s, dice) {
		if s == KeepTorn && len(c.data) > 0 {
			switch dice.IntN(4) {
			case 0: // a part
				c.data = c.data[:dice.IntN(len(c.data)+1)]
			case 1: // the length without the bytes
				c.data = make([]byte, len(c.data))
			}
		}
		left = c.apply(left)
	}
	return &file{now: left, kept: slices.Clone(left)}
}

func survivors[T any](pending []T, s Survival, dice *rand.Rand) []T {
	switch s {
	case KeepNone:
		return nil
	case KeepPrefix:
		return pending[:dice.IntN(len(pending)+1)]
	case KeepTorn:
		var some []T
		for _, c := range pending {
			if dice.IntN(2) == 0 {
				some = append(some, c)
			}
		}
		return some
	default:
		return pending
	}
}

// begin locks m for a change or, with change false, for a read.
func (m *Mem) begin(change bool) error {
	m.mu.Lock()
	if m.crashed || m.limit > 0 && m.changes >= m.limit {
		m.crashed = true
		m.mu.Unlock()
		return ErrCrashed
	}
	if m.root == nil {
		m.root = newDir()
	}
	if m.locked == nil {
		m.locked = map[string]bool{}
	}
	if change {
		m.changes++
	}
	return nil
}

func parts(name string) []string {
	name = strings.Trim(path.Clean("/"+name), "/")
	if name == "" {
		return nil
	}
	return strings.Split(name, "/")
}

func (m *Mem) dir(op, name string) (*dir, error) {
	d := m.root
	for _, p := range parts(name) {
		next, ok := d.now[p].(*dir)
		if !ok {
			return nil, &fs.PathError{Op: op, Path: name, Err: fs.ErrNotExist}
		}
		d = next
	}
	return d, nil
}

func (d *dir) change(c dirChange) {
	c.apply(d.now)
	d.pending = append(d.pending, c)
}

// Open implements [FS].
func (m *Mem) Open(name string) (File, error) {
	if err := m.begin(false); err != nil {
		return nil, err
	}
	defer m.mu.Unlock()
	d, err := m.dir("open", path.Dir(name))
	if err != nil {
		return nil, err
	}
	f, ok := d.now[path.Base(name)].(*file)
	if !ok {
		return nil, &fs.PathError{Op: "open", Path: name, Err: fs.ErrNotExist}
	}
	return &memFile{m, f}, nil
}

// Create implements [FS].
func (m *Mem) Create(name string) (File, error) {
	if err := m.begin(true); err != nil {
		return nil, err
	}
	defer m.mu.Unlock()
	d, err := m.dir("create", path.Dir(name))
	if err != nil {
		return nil, err
	}
	if d.now[path.Base(name)] != nil {
		return nil, &fs.PathError{Op: "create", Path: name, Err: fs.ErrExist}
	}
	f := &file{}
	d.change(dirChange{name: path.Base(name), node: f})
	return &memFile{m, f}, nil
}

// MkdirAll implements [FS].
func (m *Mem) MkdirAll(name string) error {
	if err := m.begin(true); err != nil {
		return err
	}
	defer m.mu.Unlock()
	d := m.root
	for _, p := range parts(name) {
		if d.now[p] == nil {
			d.change(dirChange{name: p, node: newDir()})
		}
		next, ok := d.now[p].(*dir)
		if !ok {
			return &fs.PathError{Op: "mkdir", Path: name, Err: errors.New("not a directory")}
		}
		d = next
	}
	return nil
}

// Remove implements [FS].
func (m *Mem) Remove(name string) error {
	if err := m.begin(true); err != nil {
		return err
	}
	defer m.mu.Unlock()
	d, err := m.dir("remove", path.Dir(name))
	if err != nil {
		return err
	}
	if d.now[path.Base(name)] == nil {
		return &fs.PathError{Op: "remove", Path: name, Err: fs.ErrNotExist}
	}
	d.change(dirChange{name: path.Base(name)})
	return nil
}

// Rename implements [FS].
func (m *Mem) Rename(from, to string) error {
	if err := m.begin(true); err != nil {
		return err
	}
	defer m.mu.Unlock()
	d, err := m.dir("rename", path.Dir(from))
	if err != nil {
		return err
	}
	node := d.now[path.Base(from)]
	if node == nil || path.Dir(from) != path.Dir(to) {
		return &fs.PathError{Op: "rename", Path: from, Err: fs.ErrNotExist}
	}
	d.change(dirChange{name: path.Base(to), node: node, from: path.Base(from)})
	return nil
}

// List implements [FS].
func (m *Mem) List(name string) ([]Entry, error) {
	if err := m.begin(false); err != nil {
		return nil, err
	}
	defer m.mu.Unlock()
	d, err := m.dir("list", name)
	if err != nil {
		return nil, err
	}
	var entries []Entry
	for _, n := range slices.Sorted(maps.Keys(d.now)) {
		_, isDir := d.now[n].(*dir)
		entries = append(entries, Entry{Name: n, Dir: isDir})
	}
	return entries, nil
}

// SyncDir implements [FS].
func (m *Mem) SyncDir(name string) error {
	if err := m.begin(true); err != nil {
		return err
	}
	defer m.mu.Unlock()
	d, err := m.dir("syncdir", name)
	if err != nil {
		return err
	}
	d.kept, d.pending = maps.Clone(d.now), nil
	return nil
}

// Free implements [FS].
func (m *Mem) Free(string) (int64, error) {
	if err := m.begin(false); err != nil {
		return 0, err
	}
	defer m.mu.Unlock()
	if m.space == 0 {
		return math.MaxInt64, nil
	}
	return m.space, nil
}

// Lock implements [FS].
func (m *Mem) Lock(name string) (io.Closer, error) {
	if err := m.begin(false); err != nil {
		return nil, err
	}
	defer m.mu.Unlock()
	if m.locked[name] {
		return nil, fmt.Errorf("%s: %w", name, ErrLocked)
	}
	m.locked[name] = true
	return unlock(func() {
		m.mu.Lock()
		defer m.mu.Unlock()
		delete(m.locked, name)
	}), nil
}

type unlock func()

func (u unlock) Close() error {
	u()
	return nil
}

type memFile struct {
	m *Mem
	f *file
}

func (h *memFile) change(c fileChange) error {
	if err := h.m.begin(true); err != nil {
		return err
	}
	defer h.m.mu.Unlock()
	h.f.now = c.apply(h.f.now)
	h.f.pending = append(h.f.pending, c)
	return nil
}

func (h *memFile) ReadAt(p []byte, off int64) (int, error) {
	if err := h.m.begin(false); err != nil {
		return 0, err
	}
	defer h.m.mu.Unlock()
	if off >= int64(len(h.f.now)) {
		return 0, io.EOF
	}
	n := copy(p, h.f.now[off:])
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

func (h *memFile) WriteAt(p []byte, off int64) (int, error) {
	if err := h.change(fileChange{off: off, data: append([]byte{}, p...)}); err != nil {
		return 0, err
	}
	return len(p), nil
}

func (h *memFile) Truncate(size int64) error { return h.change(fileChange{size: size}) }

func (h *memFile) Size() (int64, error) {
	if err := h.m.begin(false); err != nil {
		return 0, err
	}
	defer h.m.mu.Unlock()
	return int64(len(h.f.now)), nil
}

func (h *memFile) Sync() error {
	if err := h.m.begin(true); err != nil {
		return err
	}
	defer h.m.mu.Unlock()
	if h.m.lose > 0 {
		if h.m.lose--; h.m.lose == 0 {
			h.f.pending = nil
			return errLost
		}
	}
	for _, c := range h.f.pending {
		h.f.kept = c.apply(h.f.kept)
	}
	h.f.pending = nil
	return nil
}

func (h *memFile) Reserve(int64) error { return nil }

func (h *memFile) Close() error { return nil }
