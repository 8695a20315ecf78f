// Package vfs is the file system as the durable log sees it: few operations, each of which may fail. It owns the
// implementations: [OS] is the real one, [Mem] is one in memory that can lose what was not synced, and [Faulty] wraps
// another one and fails on purpose. It knows nothing of logs.
//
// Names are slash-separated paths. What a crash of the machine keeps follows POSIX, and nothing more:
//
//   - Bytes and the length of a file are kept once [File.Sync] has returned nil.
//   - The presence, absence or new name of a file is kept once [FS.SyncDir] of its directory has returned nil.
//   - Everything else may be kept in full, in part or not at all.
package vfs

import (
	"errors"
	"io"
)

// ErrLocked means that another process, or another user in this process, holds the lock.
var ErrLocked = errors.New("vfs: locked by another process")

// FS is a file system. Its methods may be called from any goroutine.
type FS interface {
	// Open opens an existing file for reading and writing. A missing one is [io/fs.ErrNotExist].
	Open(name string) (File, error)
	// Create makes an empty file and opens it. An existing one is [io/fs.ErrExist].
	Create(name string) (File, error)
	// MkdirAll makes a directory and its parents, where they are missing.
	MkdirAll(dir string) error
	// Remove removes a file.
	Remove(name string) error
	// Rename gives a file a new name in the same directory, and replaces what had that name.
	Rename(from, to string) error
	// List returns what is in a directory, sorted by name. A missing directory is [io/fs.ErrNotExist].
	List(dir string) ([]Entry, error)
	// SyncDir makes names in dir survive a crash.
	SyncDir(dir string) error
	// Free returns how many bytes can still be written below dir.
	Free(dir string) (int64, error)
	// Lock takes the lock that the file name stands for, and makes the file. It returns [ErrLocked] if it is taken. The
	// lock ends when the Closer is closed or the process ends.
	Lock(name string) (io.Closer, error)
}

// Entry is what a directory holds under one name.
type Entry struct {
	Name string
	Dir  bool
}

// File is an open file. Reads and writes may run at the same time. WriteAt that returns an error may have written a
// part.
type File interface {
	io.ReaderAt
	io.WriterAt
	io.Closer
	// Size returns the length in bytes.
	Size() (int64, error)
	// Truncate sets the length. A longer file is filled with zeros.
	Truncate(size int64) error
	// Sync returns when the file's bytes and length are on the device. After an error nothing is known of what was
	// written since the Sync before, and a later Sync that succeeds does not change that.
	Sync() error
	// Reserve makes space for size bytes without changing the length. Where the system cannot, it does nothing.
	Reserve(size int64) error
}
