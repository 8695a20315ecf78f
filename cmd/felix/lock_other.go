//go:build !unix

package main

import "os"

// lockFile opens the file: there are no locks here.
func lockFile(path string) (*os.File, error) { return os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600) }
