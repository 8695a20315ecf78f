package ops

import (
	"context"
	"errors"
	"sync/atomic"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
)

// Lifecycle is where a process is between its start and its end: a [Check], and notifications to systemd
// (sd_notify(3)), which are sent only for units with Type=notify. The zero value is a process that starts. Its methods
// may be called from any goroutine.
type Lifecycle struct{ phase atomic.Int32 }

const (
	starting int32 = iota
	serving
	draining
)

var (
	errStarting = errors.New("starting")
	errDraining = errors.New("draining")
)

// Serving says that the process can be used.
func (l *Lifecycle) Serving() {
	l.phase.Store(serving)
	_, _ = daemon.SdNotify(false, daemon.SdNotifyReady) // an error is harmless: nobody listens
}

// Draining says that the process is about to end. It is what has to happen before anything is refused.
func (l *Lifecycle) Draining() {
	l.phase.Store(draining)
	_, _ = daemon.SdNotify(false, daemon.SdNotifyStopping)
}

// Check returns the check that passes while the process serves.
func (l *Lifecycle) Check() Check {
	return Check{"lifecycle", func() error {
		switch l.phase.Load() {
		case serving:
			return nil
		case draining:
			return errDraining
		}
		return errStarting
	}}
}

// Watchdog tells systemd from time to time that the process lives, until the context ends, if the unit has WatchdogSec
// set. It calls alive before each message: when that does not return, systemd hears nothing and restarts the process.
func Watchdog(ctx context.Context, alive func()) error {
	every, err := daemon.SdWatchdogEnabled(false)
	if err != nil || every == 0 {
		return err
	}
	tick := time.NewTicker(every / 2)
	defer tick.Stop()
	for {
		alive()
		_, _ = daemon.SdNotify(false, daemon.SdNotifyWatchdog)
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}
