//go:build unix

package main

import (
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/felix-mq/felix/internal/logs"
	"github.com/felix-mq/felix/internal/ops"
	"github.com/felix-mq/felix/internal/settings"
	"github.com/felix-mq/felix/internal/vfs"
)

// A signal ends a broker whose disk does not answer while it loads the snapshot of its caches. Nobody was served.
func TestSignalWhileLoadingHangs(t *testing.T) {
	gate := make(chan struct{})
	reached := sync.OnceFunc(func() { // signals are heard by now
		if err := syscall.Kill(syscall.Getpid(), syscall.SIGTERM); err != nil {
			t.Error(err)
		}
	})
	o := defaultOptions()
	stdout, stderr := newOutput(), newOutput()
	loaded, err := o.load("", []string{"FELIX_QUIC_BIND=127.0.0.1:0", "FELIX_BROKER_METRICS_BIND=127.0.0.1:0", "FELIX_SHUTDOWN_DRAIN_TIMEOUT_MS=100"},
		[]string{"dev=true", "cache_snapshot_dir=" + t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	o.broker.CacheSnapshot.FS = vfs.Faulty{FS: &vfs.Mem{}, Before: func(op vfs.Op, _ string) error {
		if op == vfs.OpOpen {
			reached()
			<-gate
		}
		return nil
	}}
	log, limiter := logs.New(stderr, o.logs)
	o.broker.Logger = log
	o.hangups = ops.CatchHangups()
	defer o.hangups.Stop()
	if err := o.prepare(loaded); err != nil {
		t.Fatal(err)
	}
	defer o.release()
	read := func(*options) (*settings.Loaded, error) { return loaded, nil }
	err = serve(o, stdout, log, limiter, &reloader{log: log, limiter: limiter, options: o, running: loaded, read: read})
	close(gate)
	if err == nil || !strings.Contains(err.Error(), "drain cut short") {
		t.Errorf("it ended with %v", err)
	}
	if stdout.String() != "" {
		t.Errorf("it was ready: %s", stdout)
	}
	if text := stderr.String(); !strings.Contains(text, "event=storage_not_closed") {
		t.Errorf("the log does not say what is left:\n%s", text)
	}
}
