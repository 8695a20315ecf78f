//go:build unix

package dev

import "golang.org/x/sys/unix"

// writable reports why no file can be made in a directory.
func writable(dir string) error { return unix.Access(dir, unix.W_OK|unix.X_OK) }
