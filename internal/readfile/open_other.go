//go:build !unix

package readfile

import "os"

func open(name string) (*os.File, error) { return os.Open(name) }
