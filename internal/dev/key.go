package dev

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/felix-mq/felix/internal/readfile"
)

// maxFile bounds what is read: a key is some hundred bytes.
const maxFile = 1 << 20

// ReadOrMakeKey reads the private key that signs tokens from a file (Ed25519, PKCS #8, PEM), or makes it if the file is
// not there, so that tokens and other programs that sign with the key outlive a restart.
func ReadOrMakeKey(path string) (ed25519.PrivateKey, error) {
	key, err := ReadKey(path)
	if errors.Is(err, fs.ErrNotExist) {
		return create(path)
	}
	return key, err
}

// CheckKey reports why [ReadOrMakeKey] would fail, as far as that can be seen without making anything.
func CheckKey(path string) error {
	_, err := ReadKey(path)
	if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return checkDir(filepath.Dir(path))
}

// CheckMadeDir reports why a directory could not be used, or made with those above it, as far as that can be seen
// without making anything.
func CheckMadeDir(dir string) error {
	for {
		_, err := os.Stat(dir)
		above := filepath.Dir(dir)
		if !errors.Is(err, fs.ErrNotExist) || above == dir {
			return checkDir(dir)
		}
		dir = above
	}
}

// checkDir reports why no file can be made in a directory.
func checkDir(dir string) error {
	info, err := os.Stat(dir)
	if err != nil {
		return err
	}
	if !info.IsDir() {
		return fmt.Errorf("%s is not a directory", dir)
	}
	if err := writable(dir); err != nil {
		return fmt.Errorf("%s: %w", dir, err)
	}
	return nil
}

// ReadKey reads the key.
func ReadKey(path string) (ed25519.PrivateKey, error) {
	content, err := readfile.Read(context.Background(), path, maxFile)
	if err != nil {
		return nil, err
	}
	block, _ := pem.Decode(content)
	if block == nil {
		return nil, fmt.Errorf("%s holds no PEM block", path)
	}
	parsed, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	key, ok := parsed.(ed25519.PrivateKey)
	if !ok {
		return nil, fmt.Errorf("%s holds a key of type %T, want Ed25519", path, parsed)
	}
	return key, nil
}

// create makes a key that only the file's owner can read.
func create(path string) (ed25519.PrivateKey, error) {
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, err
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	return key, os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), 0o600)
}
