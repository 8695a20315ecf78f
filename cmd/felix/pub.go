package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"sync"
	"text/template"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/time/rate"

	"github.com/felix-mq/felix/client"
)

// publishing is what the flags of felix pub say.
type publishing struct {
	file     string
	template bool
	count    int
	rate     float64
	ack      bool
}

// maxLine bounds a line of standard input: what a frame holds by default.
const maxLine = 16 << 20

func (a *app) newPub() *cobra.Command {
	var p publishing
	c := &cobra.Command{
		Use:   "pub STREAM [PAYLOAD]",
		Short: "Publish events",
		Long: `Publish events to a stream: the payload, the content of a file, or each line of the standard input.

With --template, payloads are templates (Go's text/template) that are filled in for each event:
  {{.Count}}        number of the event, from 1
  {{.Line}}         the line, if lines are read
  {{now}}           time in RFC 3339 with nanoseconds
  {{unixms}}        time in milliseconds since 1970
  {{random 16}}     so many random letters and digits
  {{int 1 100}}     random integer between the two
With --template and lines, the payload is the template, if there is one, and each line fills in .Line.

The number of published events goes to the standard error. Each was acknowledged, unless --ack=false says not to wait.
What failed may have been published in part.`,
		Example: `  felix pub orders hello
  tail -f log | felix pub logs
  felix pub orders --file order.json
  felix pub orders '{"id":{{.Count}},"at":"{{now}}"}' --template --count 1000 --rate 100`,
		Args: arguments(1, 2),
		RunE: func(c *cobra.Command, args []string) error {
			next, err := p.source(c.Context(), c.InOrStdin(), args[1:], c.ErrOrStderr())
			if err != nil {
				return err
			}
			conn, r, err := a.connect(c.Context())
			if err != nil {
				return err
			}
			defer func() { _ = conn.Close() }()
			n, err := p.publish(c.Context(), conn, conn.Publisher(r.Namespace, args[0]), next)
			fmt.Fprintf(c.ErrOrStderr(), "published %d to %s/%s\n", n, r.Namespace, args[0])
			return err
		},
	}
	f := c.Flags()
	f.StringVarP(&p.file, "file", "f", "", "publish the content of a `file` as one event")
	f.BoolVar(&p.template, "template", false, "payloads are templates")
	f.IntVar(&p.count, "count", 1, "publish the payload or file so many `times`")
	f.Float64Var(&p.rate, "rate", 0, "`events` per second; 0 for as many as possible")
	f.BoolVar(&p.ack, "ack", true, "wait until the broker has offered each event to every subscription")
	return c
}

// source returns a function that yields one payload after the other, and io.EOF at the end.
func (p *publishing) source(ctx context.Context, stdin io.Reader, payload []string, errOut io.Writer) (func() ([]byte, error), error) {
	if p.count < 1 || p.rate < 0 {
		return nil, usageError{error: errors.New("--count is at least 1, and --rate at least 0")}
	}
	var text []byte
	lines := false
	switch {
	case p.file != "" && len(payload) > 0:
		return nil, usageError{error: errors.New("either a payload or --file, not both")}
	case p.file != "":
		var err error
		if text, err = os.ReadFile(p.file); err != nil {
			return nil, usageError{error: err}
		}
	case len(payload) > 0:
		text = []byte(payload[0])
		lines = p.template && bytes.Contains(text, []byte(".Line"))
	default:
		lines = true
	}
	if lines && p.count > 1 {
		return nil, usageError{error: errors.New("--count needs a payload or --file: lines are published once each")}
	}
	fill, err := p.filler(text)
	if err != nil {
		return nil, err
	}
	var e templateEvent
	if !lines {
		return func() ([]byte, error) {
			if e.Count == p.count {
				return nil, io.EOF
			}
			e.Count++
			return fill(e, text)
		}, nil
	}
	tellReading(stdin, "events, one a line,", errOut)
	next := readLines(ctx, stdin)
	return func() ([]byte, error) {
		e.Count++
		line, err := next()
		if err != nil {
			return nil, err
		}
		e.Line = string(line)
		return fill(e, line)
	}, nil
}

// readLines returns a function that yields the lines of r, and io.EOF at the end. It ends with ctx, although reading cannot
// be interrupted: the goroutine that reads stays behind until the process ends, or the next line comes.
func readLines(ctx context.Context, r io.Reader) func() ([]byte, error) {
	lines := make(chan []byte)
	var failure error // why there are no more, set before lines is closed
	go func() {
		defer close(lines)
		scanner := bufio.NewScanner(r)
		scanner.Buffer(nil, maxLine)
		n := 0
		for scanner.Scan() {
			n++
			select {
			case lines <- bytes.Clone(scanner.Bytes()):
			case <-ctx.Done():
				return
			}
		}
		if failure = io.EOF; scanner.Err() != nil {
			failure = fmt.Errorf("line %d: %w", n+1, scanner.Err())
		}
	}()
	return func() ([]byte, error) {
		select {
		case line, ok := <-lines:
			if ok {
				return line, nil
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

// templateEvent is what a template is about.
type templateEvent struct {
	Count int
	Line  string
}

const letters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"

var templateFuncs = template.FuncMap{
	"now":    func() string { return time.Now().UTC().Format(time.RFC3339Nano) },
	"unixms": func() int64 { return time.Now().UnixMilli() },
	"random": func(n int) (string, error) {
		if n < 0 || n > maxLine {
			return "", fmt.Errorf("random %d: not between 0 and %d", n, maxLine)
		}
		b := make([]byte, n)
		for i := range b {
			b[i] = letters[rand.IntN(len(letters))]
		}
		return string(b), nil
	},
	"int": func(low, high int) (int, error) {
		if high < low || high-low < 0 || high-low+1 <= 0 {
			return 0, fmt.Errorf("int %d %d: no such range", low, high)
		}
		return low + rand.IntN(high-low+1), nil
	},
}

// filler returns what makes a payload of an event: the template text, or of a line that is one itself.
func (p *publishing) filler(text []byte) (func(templateEvent, []byte) ([]byte, error), error) {
	if !p.template {
		return func(_ templateEvent, payload []byte) ([]byte, error) { return payload, nil }, nil
	}
	parse := func(text string) (*template.Template, error) {
		return template.New("payload").Option("missingkey=error").Funcs(templateFuncs).Parse(text)
	}
	var fixed *template.Template
	if text != nil {
		var err error
		if fixed, err = parse(string(text)); err != nil {
			return nil, usageError{error: err}
		}
	}
	var out bytes.Buffer
	return func(e templateEvent, payload []byte) ([]byte, error) {
		t := fixed
		if t == nil {
			var err error
			if t, err = parse(string(payload)); err != nil {
				return nil, usageError{error: fmt.Errorf("line %d: %w", e.Count, err)}
			}
		}
		out.Reset()
		if err := t.Execute(&out, e); err != nil {
			return nil, usageError{error: err}
		}
		return out.Bytes(), nil
	}, nil
}

// publish publishes what next yields and returns how many events were acknowledged, or without acknowledgements sent.
func (p *publishing) publish(ctx context.Context, conn *client.Client, to *client.Publisher, next func() ([]byte, error)) (int, error) {
	limit := rate.Inf
	if p.rate > 0 {
		limit = rate.Limit(p.rate)
	}
	pace := rate.NewLimiter(limit, 1)

	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var mu sync.Mutex // guards done, which grows on the batcher's goroutine
	var done int
	add := to.Send
	var batcher *client.Batcher
	if p.ack {
		batcher = to.Batcher(client.BatcherOptions{Done: func(payloads [][]byte, err error) {
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				cancel(err) // no use in going on
				return
			}
			done += len(payloads)
		}})
		add = batcher.Add
	}
	sent := 0
	var err error
	for err == nil {
		var payload []byte
		if payload, err = next(); err != nil {
			break
		}
		if err = pace.Wait(ctx); err == nil {
			err = add(ctx, payload)
		}
		if err == nil {
			sent++
		}
	}
	if errors.Is(err, io.EOF) {
		err = nil
	}
	// What was added before a failure, or an interrupt, still goes out: it is on its way.
	timeout := flushTimeout
	if ctx.Err() != nil {
		timeout = grace / 2
	}
	flushCtx, stop := context.WithTimeout(context.WithoutCancel(ctx), timeout)
	defer stop()
	if flushErr := conn.Flush(flushCtx); err == nil {
		err = flushErr
	}
	if cause := context.Cause(ctx); cause != nil {
		err = cause
	}
	mu.Lock()
	defer mu.Unlock()
	if p.ack {
		return done, err
	}
	return sent, err
}

// flushTimeout bounds the wait for the last acknowledgements.
const flushTimeout = 10 * time.Second
