package vfs

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
)

// OS is the file system of the operating system.
type OS struct{}

var _ FS = OS{}

// Open implements [FS].
func (OS) Open(name string) (File, error) { return open(name, os.O_RDWR) }

// Create implements [FS].
func (OS) Create(name string) (File, error) { return open(name, os.O_RDWR|os.O_CREATE|os.O_EXCL) }

func open(name string, flag int) (File, error) {
	f, err := os.OpenFile(filepath.FromSlash(name), flag, 0o640)
	if err != nil {
		return nil, err
	}
	return osFile{f}, nil
}

// MkdirAll implements [FS].
func (OS) MkdirAll(dir string) error { return os.MkdirAll(filepath.FromSlash(dir), 0o750) }

// Remove implements [FS].
func (OS) Remove(name string) error { return os.Remove(filepath.FromSlash(name)) }

// Rename implements [FS].
func (OS) Rename(from, to string) error {
	return os.Rename(filepath.FromSlash(from), filepath.FromSlash(to))
}

// List implements [FS].
func (OS) List(dir string) ([]Entry, error) {
	all, err := os.ReadDir(filepath.FromSlash(dir))
	if err != nil {
		return nil, err
	}
	entries := make([]Entry, len(all))
	for i, e := range all {
		entries[i] = Entry{Name: e.Name(), Dir: e.IsDir()}
	}
	return entries, nil
}

// SyncDir implements [FS]. Systems that cannot sync a directory keep names by themselves.
func (OS) SyncDir(dir string) error { return syncDir(filepath.FromSlash(dir)) }

// Free implements [FS].
func (OS) Free(dir string) (int64, error) { return free(filepath.FromSlash(dir)) }

// Lock implements [FS].
func (OS) Lock(name string) (io.Closer, error) {
	f, err := os.OpenFile(filepath.FromSlash(name), os.O_RDWR|os.O_CREATE, 0o640)
	if err != nil {
		return nil, err
	}
	if err := lock(f); err != nil {
		return nil, errors.Join(fmt.Errorf("%s: %w", name, err), f.Close())
	}
	return f, nil
}

type osFile struct{ *os.File }

// Size implements [File].
func (f osFile) Size() (int64, error) {
	info, err := f.Stat()
	if err != nil {
		return 0, err
	}
	return info.Size(), nil
}

// Sync implements [File].
func (f osFile) Sync() error { return datasync(f.File) }

// Reserve implements [File].
func (f osFile) Reserve(size int64) error { return reserve(f.File, size) }
