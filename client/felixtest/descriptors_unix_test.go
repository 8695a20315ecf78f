//go:build unix

package felixtest_test

import (
	"os"
	"syscall"
	"testing"
)

// withoutDescriptors runs f while the process can open no file and no socket more.
func withoutDescriptors(t *testing.T, f func()) {
	t.Helper()
	var before syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &before); err != nil {
		t.Fatal(err)
	}
	none := before
	none.Cur = 0 // the system looks at numbers of new descriptors alone: those that are open stay
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &none); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &before); err != nil {
			t.Fatal(err)
		}
	}()
	if extra, err := os.Open(os.DevNull); err == nil {
		_ = extra.Close()
		t.Error("a file could be opened: the fault is none")
	}
	f()
}
