package vfs

import "io"

// Op names an operation of a file system or a file.
type Op string

// The operations that [Faulty] asks about.
const (
	OpOpen     Op = "open"
	OpCreate   Op = "create"
	OpMkdir    Op = "mkdir"
	OpRemove   Op = "remove"
	OpRename   Op = "rename"
	OpList     Op = "list"
	OpSyncDir  Op = "syncdir"
	OpFree     Op = "free"
	OpLock     Op = "lock"
	OpSize     Op = "size"
	OpRead     Op = "read"
	OpWrite    Op = "write"
	OpTruncate Op = "truncate"
	OpSync     Op = "sync"
	OpReserve  Op = "reserve"
	OpClose    Op = "close"
)

// Faulty is another file system that fails on purpose, for tests.
type Faulty struct {
	FS
	// Before is called before each operation with the name of its file or directory, from the caller's goroutine. If it
	// returns an error, the operation fails with it and has no effect, except that a write that fails with
	// [io.ErrShortWrite] writes the first half, and that a file is closed in any case.
	Before func(op Op, name string) error
}

var _ FS = Faulty{}

// Open implements [FS].
func (f Faulty) Open(name string) (File, error) {
	return f.file(OpOpen, name, f.FS.Open)
}

// Create implements [FS].
func (f Faulty) Create(name string) (File, error) {
	return f.file(OpCreate, name, f.FS.Create)
}

func (f Faulty) file(op Op, name string, open func(string) (File, error)) (File, error) {
	if err := f.Before(op, name); err != nil {
		return nil, err
	}
	file, err := open(name)
	if err != nil {
		return nil, err
	}
	return faultyFile{file, f.Before, name}, nil
}

// MkdirAll implements [FS].
func (f Faulty) MkdirAll(dir string) error {
	if err := f.Before(OpMkdir, dir); err != nil {
		return err
	}
	return f.FS.MkdirAll(dir)
}

// Remove implements [FS].
func (f Faulty) Remove(name string) error {
	if err := f.Before(OpRemove, name); err != nil {
		return err
	}
	return f.FS.Remove(name)
}

// Rename implements [FS].
func (f Faulty) Rename(from, to string) error {
	if err := f.Before(OpRename, from); err != nil {
		return err
	}
	return f.FS.Rename(from, to)
}

// List implements [FS].
func (f Faulty) List(dir string) ([]Entry, error) {
	if err := f.Before(OpList, dir); err != nil {
		return nil, err
	}
	return f.FS.List(dir)
}

// SyncDir implements [FS].
func (f Faulty) SyncDir(dir string) error {
	if err := f.Before(OpSyncDir, dir); err != nil {
		return err
	}
	return f.FS.SyncDir(dir)
}

// Free implements [FS].
func (f Faulty) Free(dir string) (int64, error) {
	if err := f.Before(OpFree, dir); err != nil {
		return 0, err
	}
	return f.FS.Free(dir)
}

// Lock implements [FS].
func (f Faulty) Lock(name string) (io.Closer, error) {
	if err := f.Before(OpLock, name); err != nil {
		return nil, err
	}
	return f.FS.Lock(name)
}

type faultyFile struct {
	File
	before func(Op, string) error
	name   string
}

func (f faultyFile) Size() (int64, error) {
	if err := f.before(OpSize, f.name); err != nil {
		return 0, err
	}
	return f.File.Size()
}

func (f faultyFile) ReadAt(p []byte, off int64) (int, error) {
	if err := f.before(OpRead, f.name); err != nil {
		return 0, err
	}
	return f.File.ReadAt(p, off)
}

func (f faultyFile) WriteAt(p []byte, off int64) (int, error) {
	if err := f.before(OpWrite, f.name); err != nil {
		if err != io.ErrShortWrite { //nolint:errorlint // it is the marker itself
			return 0, err
		}
		n, e := f.File.WriteAt(p[:len(p)/2], off)
		if e == nil {
			e = err
		}
		return n, e
	}
	return f.File.WriteAt(p, off)
}

func (f faultyFile) Truncate(size int64) error {
	if err := f.before(OpTruncate, f.name); err != nil {
		return err
	}
	return f.File.Truncate(size)
}

func (f faultyFile) Sync() error {
	if err := f.before(OpSync, f.name); err != nil {
		return err
	}
	return f.File.Sync()
}

func (f faultyFile) Reserve(size int64) error {
	if err := f.before(OpReserve, f.name); err != nil {
		return err
	}
	return f.File.Reserve(size)
}

func (f faultyFile) Close() error {
	err := f.before(OpClose, f.name)
	if e := f.File.Close(); err == nil {
		err = e
	}
	return err
}
