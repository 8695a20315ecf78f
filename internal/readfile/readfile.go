// Package readfile reads the small files that configure a program: settings, catalogs, certificates, keys and tokens. A
// read is bounded in size and in time, and takes regular files alone, so that no name in a configuration can hang or
// fill the process: not a FIFO that nobody writes to, not a device without an end, and not a file system that has
// stopped answering. Begin at [Read].
package readfile

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"time"
)

// Timeout is how long a read may take at most.
const Timeout = 5 * time.Second

// Errors that a read may match, besides those of package os.
var (
	ErrNotRegular = errors.New("not a regular file")
	ErrTooLarge   = errors.New("file too large")
	ErrTimeout    = errors.New("file system does not answer")
)

// reads are the reads under way.
var reads = group{pending: make(map[string]struct{})}

// Read returns the content of the named file, which is at most limit bytes long. It returns within [Timeout], or when
// ctx ends. A system call that hangs cannot be interrupted: its goroutine stays until the file system answers. As long
// as it does, further reads of the same name fail at once, so that there is at most one such goroutine for a name. Read
// may be called from any goroutine. The errors name the file.
func Read(ctx context.Context, name string, limit int64) ([]byte, error) {
	return reads.do(ctx, name, func() ([]byte, error) { return read(name, limit) })
}

// read looks at the file before it opens it, because opening a device can have effects, and afterwards, because it may
// have been replaced.
func read(name string, limit int64) ([]byte, error) {
	if info, err := os.Stat(name); err == nil { // otherwise opening it fails too, with the usual message
		if err := regular(name, info); err != nil {
			return nil, err
		}
	}
	f, err := open(name)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }() // it was only read
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if err := regular(name, info); err != nil {
		return nil, err
	}
	b, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err != nil {
		return nil, err
	}
	if int64(len(b)) > limit {
		return nil, fmt.Errorf("%s: %w: more than %d bytes", name, ErrTooLarge, limit)
	}
	return b, nil
}

func regular(name string, info os.FileInfo) error {
	if info.Mode().IsRegular() {
		return nil
	}
	return fmt.Errorf("%s is %s: %w", name, kind(info.Mode()), ErrNotRegular)
}

func kind(m os.FileMode) string {
	switch {
	case m.IsDir():
		return "a directory"
	case m&os.ModeNamedPipe != 0:
		return "a named pipe"
	case m&os.ModeSocket != 0:
		return "a socket"
	case m&os.ModeDevice != 0:
		return "a device"
	}
	return "a special file"
}

// group runs functions that may hang, at most one for each name.
type group struct {
	mu      sync.Mutex
	pending map[string]struct{} // names whose function has been given up and has not returned
}

type result struct {
	b   []byte
	err error
}

// do runs f on a goroutine of its own and waits for it, but not for ever.
func (g *group) do(ctx context.Context, name string, f func() ([]byte, error)) ([]byte, error) {
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	if g.hangs(name) {
		return nil, timeoutError(name)
	}
	done := make(chan result, 1) // the goroutine never waits for a reader
	go func() {
		b, err := f()
		done <- result{b, err}
	}()
	timer := time.NewTimer(Timeout)
	defer timer.Stop()
	var err error
	select {
	case r := <-done:
		return r.b, r.err
	case <-ctx.Done():
		err = fmt.Errorf("%s: %w", name, ctx.Err())
	case <-timer.C:
		err = timeoutError(name)
	}
	g.giveUp(name, done)
	return nil, err
}

func (g *group) hangs(name string) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	_, hangs := g.pending[name]
	return hangs
}

// giveUp keeps further calls for the name away until the function has returned.
func (g *group) giveUp(name string, done <-chan result) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if _, hangs := g.pending[name]; hangs {
		return // a call at the same time has done so
	}
	g.pending[name] = struct{}{}
	go func() {
		<-done
		g.mu.Lock()
		defer g.mu.Unlock()
		delete(g.pending, name)
	}()
}

// timeoutError has the same text each time, so that callers that report each new error report it once.
func timeoutError(name string) error {
	return fmt.Errorf("%s: %w within %v", name, ErrTimeout, Timeout)
}
