// Package filewatch wakes a reader of files when they may have changed. What has changed, and whether it is complete,
// the reader finds out by reading: a wake-up says nothing but "look again".
//
// It watches directories rather than files, so that a file that is replaced by a rename is seen, and Kubernetes' swap
// of the symbolic link ..data too. An additional poll finds what a file system does not report, and files outside of
// these directories. Begin at [New].
package filewatch

import (
	"context"
	"path/filepath"
	"time"

	"github.com/fsnotify/fsnotify"
)

// settle is how long it must be quiet after an event before the reader is woken: files come in several steps.
const settle = 50 * time.Millisecond

// addTimeout is how long New waits for the file system to take the watches.
const addTimeout = time.Second

// Watcher waits for changes. One goroutine at a time may use it.
type Watcher struct {
	fs     *fsnotify.Watcher // nil if the system grants none
	added  chan struct{}     // closed when fs watches all directories, as far as it can
	ticker *time.Ticker
}

// New watches the directories of the named files, and polls with the given period. A directory that cannot be watched
// is left to the poll, and so is one whose file system does not answer at once. The caller closes the watcher.
func New(every time.Duration, names ...string) *Watcher {
	w := &Watcher{ticker: time.NewTicker(every)}
	fs, err := fsnotify.NewWatcher()
	if err != nil {
		return w
	}
	w.fs = fs
	w.start(addTimeout, func() {
		for _, name := range names {
			_ = fs.Add(filepath.Dir(name))
		}
	})
	return w
}

// start runs add, which may hang with the file system, and waits for it at most for the given time.
func (w *Watcher) start(patience time.Duration, add func()) {
	w.added = make(chan struct{})
	go func() {
		defer close(w.added)
		add()
	}()
	timer := time.NewTimer(patience)
	defer timer.Stop()
	select {
	case <-w.added:
	case <-timer.C:
	}
}

// Wait returns when it is time to look again, at most a period after the last time, or with the context's error.
func (w *Watcher) Wait(ctx context.Context) error {
	_, err := w.WaitOr(ctx, nil)
	return err
}

// WaitOr is Wait that returns at once when it receives from now, too, and says so.
func (w *Watcher) WaitOr(ctx context.Context, now <-chan struct{}) (asked bool, err error) {
	var events <-chan fsnotify.Event
	var lost <-chan error // such as an overflow: nobody knows what has happened
	if w.fs != nil {
		events, lost = w.fs.Events, w.fs.Errors
	}
	var quiet <-chan time.Time // set once there was an event
	for {
		select {
		case <-ctx.Done():
			return false, ctx.Err()
		case <-w.ticker.C:
			return false, ctx.Err() // which may be over as well
		case <-lost: //nolint:errcheck // whatever it is, it is time to look
			return false, ctx.Err()
		case <-quiet:
			return false, ctx.Err()
		case <-now:
			return true, ctx.Err()
		case <-events:
			quiet = time.After(settle)
		}
	}
}

// Close ends the watch. It does not wait for a file system that does not answer: the watch is released once it does.
func (w *Watcher) Close() {
	w.ticker.Stop()
	if w.fs == nil {
		return
	}
	select {
	case <-w.added:
		_ = w.fs.Close()
	default:
		go func() {
			<-w.added
			_ = w.fs.Close()
		}()
	}
}
