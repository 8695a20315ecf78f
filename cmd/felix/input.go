package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strconv"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/felix-mq/felix/internal/settings"
)

// Standard input and files of payloads are read in this file. Reading cannot be interrupted, so a goroutine does it,
// which keeps running when the command ends before its input: the process ends soon.

// standardInput is the argument and the name of a file that stand for the standard input.
const standardInput = "-"

// maxInput returns how many bytes an event or a value may have: what a frame holds. FELIX_MAX_FRAME_BYTES says how
// much that is, as it does for the client.
func maxInput() (int, error) {
	limit := struct {
		Bytes int `env:"FELIX_MAX_FRAME_BYTES" unit:"bytes" min:"0"`
	}{}
	if err := settings.Environment(&limit); err != nil {
		return 0, usageError{error: err}
	}
	if limit.Bytes == 0 {
		limit.Bytes = 16 << 20 // as in package client
	}
	return min(limit.Bytes, 1<<30), nil // no broker takes more
}

// tooLong says that an event or a value cannot be sent.
func tooLong(what string, limit int) error {
	return usageError{
		fmt.Errorf("%s is longer than %d bytes, the most that a frame holds", what, limit),
		"FELIX_MAX_FRAME_BYTES raises the limit of this program, and max_frame_bytes that of the broker",
	}
}

// fileOrInput returns the content of a file, or of the standard input if name is [standardInput].
func fileOrInput(c *cobra.Command, name, what string) ([]byte, error) {
	limit, err := maxInput()
	if err != nil {
		return nil, err
	}
	if name == standardInput {
		return readAll(c.Context(), c.InOrStdin(), limit, what, c.ErrOrStderr())
	}
	return interruptible(c.Context(), func() ([]byte, error) {
		f, err := os.Open(name)
		if err != nil {
			return nil, usageError{error: err}
		}
		defer func() { _ = f.Close() }() // it was only read
		content, err := readAtMost(f, limit, name)
		if _, failed := errors.AsType[*fs.PathError](err); failed { // a directory, for instance
			err = usageError{error: err}
		}
		return content, err
	})
}

// readAtMost reads all of r, which has at most limit bytes.
func readAtMost(r io.Reader, limit int, name string) ([]byte, error) {
	content, err := io.ReadAll(io.LimitReader(r, int64(limit)+1))
	if err == nil && len(content) > limit {
		err = tooLong(name, limit)
	}
	return content, err
}

// interruptible returns what read returns, unless ctx ends before.
func interruptible(ctx context.Context, read func() ([]byte, error)) ([]byte, error) {
	type result struct {
		content []byte
		err     error
	}
	done := make(chan result, 1)
	go func() {
		content, err := read()
		done <- result{content, err}
	}()
	select {
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	case got := <-done:
		return got.content, got.err
	}
}

// delimiter is the value of --delimiter: what ends each event or value. Empty is nothing.
type delimiter string

// String implements pflag.Value.
func (d *delimiter) String() string {
	quoted := strconv.Quote(string(*d))
	return quoted[1 : len(quoted)-1]
}

// Set implements pflag.Value.
func (d *delimiter) Set(text string) error {
	quoted := strings.ReplaceAll(strings.ReplaceAll(text, `\0`, `\x00`), `"`, `\"`)
	plain, err := strconv.Unquote(`"` + quoted + `"`)
	if err != nil {
		return errors.New(`want characters, with \n, \r, \t, \0, \xNN and \\ for those that cannot be typed`)
	}
	*d = delimiter(plain)
	return nil
}

// Type implements pflag.Value.
func (d *delimiter) Type() string { return "text" }

// readAll reads all of r, which has at most limit bytes, unless ctx ends before. A person at a terminal sees what is
// expected.
func readAll(ctx context.Context, r io.Reader, limit int, what string, errOut io.Writer) ([]byte, error) {
	tellReading(r, what, errOut)
	return interruptible(ctx, func() ([]byte, error) { return readAtMost(r, limit, "the standard input") })
}

// tellReading tells a person at a terminal what is read from it.
func tellReading(r io.Reader, what string, errOut io.Writer) {
	if f, ok := r.(*os.File); ok && term.IsTerminal(int(f.Fd())) {
		fmt.Fprintf(errOut, "reading %s from the terminal; Ctrl-D at the start of a line ends it\n", what)
	}
}

// readEvents returns a function that yields what stands between delimiters in r, none of which may be longer than
// limit, and io.EOF at the end. A delimiter at the very end begins no event. Reading ends with ctx, and a wait for the
// next event with the context of that call.
func readEvents(ctx context.Context, r io.Reader, end delimiter, limit int) func(context.Context) ([]byte, error) {
	events := make(chan []byte)
	var failure error // why there are no more, set before events is closed
	go func() {
		defer close(events)
		scanner := bufio.NewScanner(r)
		scanner.Buffer(nil, limit+len(end)+1)
		scanner.Split(func(data []byte, atEOF bool) (int, []byte, error) {
			if i := bytes.Index(data, []byte(end)); i >= 0 {
				return i + len(end), data[:i], nil
			}
			if atEOF && len(data) > 0 {
				return len(data), data, nil
			}
			return 0, nil, nil
		})
		n := 0
		for scanner.Scan() {
			n++
			if len(scanner.Bytes()) > limit {
				failure = tooLong(fmt.Sprintf("event %d", n), limit)
				return
			}
			select {
			case events <- bytes.Clone(scanner.Bytes()):
			case <-ctx.Done():
				return
			}
		}
		switch err := scanner.Err(); {
		case errors.Is(err, bufio.ErrTooLong):
			failure = tooLong(fmt.Sprintf("event %d", n+1), limit)
		case err != nil:
			failure = fmt.Errorf("event %d: %w", n+1, err)
		default:
			failure = io.EOF
		}
	}()
	return func(ctx context.Context) ([]byte, error) {
		select {
		case event, ok := <-events:
			if ok {
				return event, nil
			}
			if failure != nil {
				return nil, failure
			}
			return nil, context.Cause(ctx)
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}
