package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/felix-mq/felix/client"
)

// savePeriod is how often the position of felix sub --resume is written while it changes.
const savePeriod = time.Second

// positionFile keeps the position after the last printed event in a file. It is written by a goroutine of its own, so
// that an interrupt saves the position even if the output is blocked. Begin at [openPosition].
type positionFile struct {
	path  string
	begin *client.Position // what the file held; nil if there was none
	wake  chan struct{}    // the first position is there
	done  chan struct{}    // closed by Close
	ended chan struct{}    // closed by the goroutine

	mu      sync.Mutex
	printed client.Position // after the last event whose printing has succeeded
	known   bool
	saved   client.Position // what was written last
	written bool
	err     error
}

// openPosition reads the file, if it is there, and makes sure that it can be written.
func openPosition(path string) (*positionFile, error) {
	p := &positionFile{path: path, wake: make(chan struct{}, 1), done: make(chan struct{}), ended: make(chan struct{})}
	text, err := os.ReadFile(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return nil, err
	default:
		at, err := parsePosition(string(text))
		if err != nil {
			return nil, fmt.Errorf("%s: %w", path, err)
		}
		p.begin = &at
	}
	trial, err := os.CreateTemp(filepath.Dir(path), filepath.Base(path)+".*")
	if failed, ok := errors.AsType[*fs.PathError](err); ok {
		return nil, fmt.Errorf("%s cannot be written: %w", path, failed.Err) // it is not about the name of the trial
	}
	if err != nil {
		return nil, err
	}
	return p, errors.Join(trial.Close(), os.Remove(trial.Name()))
}

// start begins to write the file: at once when the first position is there, then in periods, and when ctx ends.
func (p *positionFile) start(ctx context.Context) {
	go func() {
		defer close(p.ended)
		ticker := time.NewTicker(savePeriod)
		defer ticker.Stop()
		for {
			select {
			case <-p.wake:
			case <-ticker.C:
			case <-ctx.Done():
				p.save()
				return
			case <-p.done:
				return
			}
			p.save()
		}
	}()
}

// set notes the position after the last printed event.
func (p *positionFile) set(at client.Position) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.known {
		p.known = true
		p.wake <- struct{}{}
	}
	p.printed = at
}

// failed returns why the file could not be written.
func (p *positionFile) failed() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.err
}

func (p *positionFile) save() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.known || p.written && p.saved == p.printed {
		return
	}
	if err := writeFile(p.path, []byte(formatPosition(p.printed))); err != nil {
		p.err = outputError{fmt.Errorf("saving the position in %s: %w", p.path, err)}
		return
	}
	p.err, p.saved, p.written = nil, p.printed, true
}

// Close ends the goroutine and writes the last position.
func (p *positionFile) Close() error {
	close(p.done)
	<-p.ended
	p.save()
	return p.failed()
}

func formatPosition(p client.Position) string { return p.String() + "\n" }

// parsePosition reads what [formatPosition] returns.
func parsePosition(text string) (p client.Position, err error) {
	return p, p.UnmarshalText([]byte(strings.TrimSpace(text)))
}
