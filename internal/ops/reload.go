package ops

import (
	"context"
	"os"
	"os/signal"
	"syscall"
)

// Hangups are the SIGHUPs of this process, by which operators ask it to read its files again. While there is one, the
// signal does not end the process. Begin at [CatchHangups].
type Hangups struct{ signals chan os.Signal }

// CatchHangups catches SIGHUP until [Hangups.Stop]. One that comes before [Hangups.Serve] is kept for it.
func CatchHangups() *Hangups {
	h := &Hangups{make(chan os.Signal, 1)}
	signal.Notify(h.signals, syscall.SIGHUP)
	return h
}

// Serve calls reload for each SIGHUP until ctx ends. Those that come while reload runs count as one.
func (h *Hangups) Serve(ctx context.Context, reload func()) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-h.signals:
			reload()
		}
	}
}

// Stop leaves SIGHUP to what it did before.
func (h *Hangups) Stop() { signal.Stop(h.signals) }
