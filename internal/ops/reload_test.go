//go:build unix

package ops

import (
	"context"
	"os"
	"sync"
	"syscall"
	"testing"
)

// TestHangups sends SIGHUP to this process, which would end it.
func TestHangups(t *testing.T) {
	h := CatchHangups()
	defer h.Stop()
	hangUp := func() {
		t.Helper()
		if err := syscall.Kill(os.Getpid(), syscall.SIGHUP); err != nil {
			t.Fatal(err)
		}
	}
	hangUp() // before there is anybody to reload
	ctx, cancel := context.WithCancel(t.Context())
	reloads, goOn := make(chan struct{}), make(chan struct{})
	var work sync.WaitGroup
	work.Go(func() {
		h.Serve(ctx, func() {
			reloads <- struct{}{}
			<-goOn
		})
	})
	<-reloads
	hangUp() // while it reloads
	goOn <- struct{}{}
	<-reloads
	goOn <- struct{}{}
	cancel()
	work.Wait()
}
