package vfs

import (
	"errors"
	"io"
	"io/fs"
)

// CreateOver makes an empty file and opens it, in place of one that may be there.
func CreateOver(fsys FS, name string) (File, error) {
	if err := fsys.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	return fsys.Create(name)
}

// DraftSuffix ends the name of a file that is to take another name when it is whole.
const DraftSuffix = ".new"

// WriteFile replaces a small file, in one step for who reads it after a crash. The caller syncs the directory.
func WriteFile(fsys FS, name string, content []byte) error {
	f, err := CreateOver(fsys, name+DraftSuffix)
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
	return fsys.Rename(name+DraftSuffix, name)
}

// ReadFile returns the first bytes of a file, at most limit.
func ReadFile(fsys FS, name string, limit int64) ([]byte, error) {
	f, err := fsys.Open(name)
	if err != nil {
		return nil, err
	}
	size, err := f.Size()
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	b := make([]byte, min(size, limit))
	n, err := f.ReadAt(b, 0)
	if errors.Is(err, io.EOF) {
		err = nil
	}
	return b[:n], errors.Join(err, f.Close())
}
