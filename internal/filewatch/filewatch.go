// Package filewatch wakes a reader of files when they may have changed. What has changed, and whether it is complete, the
// reader finds out by reading: a wake-up says nothing but "look again".
//
// It watches directories rather than files, so that a file that is replaced by a rename is seen, and Kubernetes' swap of
// the symbolic link ..data too. A poll beside that finds what a file system does not tell, and files outside of these
// directories. Begin at [New].
package filewatch

import (
	"context"
	"path/filepath"
	"time"

	"github.com/fsnotify/fsnotify"
)

// settle is how long it must be quiet after an event before the reader is woken: files come in several steps.
const settle = 50 * time.Millisecond

// Watcher waits for changes. One goroutine at a time may use it.
type Watcher struct {
	fs     *fsnotify.Watcher // nil if the system grants none
	ticker *time.Ticker
}

// New watches the directories of the named files, and polls with the given period. A directory that cannot be watched is
// left to the poll. The caller closes the watcher.
func New(every time.Duration, names ...string) *Watcher {
	w := &Watcher{ticker: time.NewTicker(every)}
	if fs, err := fsnotify.NewWatcher(); err == nil {
		w.fs = fs
		for _, name := range names {
			_ = fs.Add(filepath.Dir(name))
		}
	}
	return w
}

// Wait returns when it is time to look again, at most a period after the last time, or with the context's error.
func (w *Watcher) Wait(ctx context.Context) error {
	var events <-chan fsnotify.Event
	var lost <-chan error // such as an overflow: nobody knows what has happened
	if w.fs != nil {
		events, lost = w.fs.Events, w.fs.Errors
	}
	var quiet <-chan time.Time // set once there was an event
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-w.ticker.C:
			return ctx.Err() // which may be over as well
		case <-lost: //nolint:errcheck // whatever it is, it is time to look
			return ctx.Err()
		case <-quiet:
			return ctx.Err()
		case <-events:
			quiet = time.After(settle)
		}
	}
}

// Close ends the watch.
func (w *Watcher) Close() {
	w.ticker.Stop()
	if w.fs != nil {
		_ = w.fs.Close()
	}
}
