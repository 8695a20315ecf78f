package main

import (
	"context"
	"fmt"
	"io"
	"os"

	"golang.org/x/term"
)

// Standard input is read in this file. Reading cannot be interrupted, so a goroutine does it, and stays behind when the
// command ends before its input: the process ends soon.

// readAll reads all of r, which has at most limit bytes, unless ctx ends before. A person at a terminal is told that something is expected:
// what.
func readAll(ctx context.Context, r io.Reader, limit int, what string, errOut io.Writer) ([]byte, error) {
	tellReading(r, what, errOut)
	type result struct {
		content []byte
		err     error
	}
	done := make(chan result, 1)
	go func() {
		content, err := io.ReadAll(io.LimitReader(r, int64(limit)+1))
		done <- result{content, err}
	}()
	select {
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	case got := <-done:
		if got.err == nil && len(got.content) > limit {
			got.err = fmt.Errorf("standard input: more than %d bytes", limit)
		}
		return got.content, got.err
	}
}

// tellReading tells a person at a terminal what is read from it.
func tellReading(r io.Reader, what string, errOut io.Writer) {
	if f, ok := r.(*os.File); ok && term.IsTerminal(int(f.Fd())) {
		fmt.Fprintf(errOut, "reading %s from the terminal; Ctrl-D at the start of a line ends it\n", what)
	}
}
