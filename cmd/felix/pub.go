package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"strings"
	"sync/atomic"
	"text/template"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/time/rate"

	"github.com/felix-mq/felix/client"
)

// publishing is what the flags of felix pub say.
type publishing struct {
	file      string
	delimiter delimiter
	template  bool
	count     int
	rate      float64
	ack       bool
}

func (a *app) newPub() *cobra.Command {
	p := publishing{delimiter: "\n"}
	c := &cobra.Command{
		Use:   "pub STREAM [PAYLOAD]",
		Short: "Publish events",
		Long: `Publish events to a stream: the payload, the content of a file, or each line of the standard input. A payload - and a
file - are the standard input too; the latter is one event.

Bytes are published as they are. Of a line only its end is taken off, "\n"; --delimiter names another end, such as \0
or \r\n, and without any (--delimiter '') the whole input is one event.

With --template, payloads are templates (Go's text/template) that are filled in for each event:
  {{.Count}}        number of the event, from 1
  {{.Line}}         the line, if lines are read
  {{now}}           time in RFC 3339 with nanoseconds
  {{unixms}}        time in milliseconds since 1970
  {{random 16}}     so many random letters and digits
  {{int 1 100}}     random integer between the two
With --template and lines, the payload is the template, if there is one, and each line fills in .Line.

The number of published events goes to the standard error. Each was acknowledged; with --ack=false it is the number of
events that were sent, of which nobody says what has become. What failed may have been published in part.`,
		Example: `  felix pub orders hello
  tail -f log | felix pub logs
  find . -print0 | felix pub files --delimiter '\0'
  felix pub orders --file order.json
  felix pub orders '{"id":{{.Count}},"at":"{{now}}"}' --template --count 1000 --rate 100`,
		Args: arguments(1, 2),
		RunE: func(c *cobra.Command, args []string) error {
			next, err := p.source(c, args[1:])
			if err != nil {
				return err
			}
			conn, r, err := a.connect(c.Context())
			if err != nil {
				return err
			}
			defer func() { _ = conn.Close() }()
			n, err := p.publish(c.Context(), conn, conn.Publisher(r.Namespace, args[0]), next)
			done := "published %d to %s\n"
			if !p.ack {
				done = "sent %d to %s, without acknowledgement\n"
			}
			fmt.Fprintf(c.ErrOrStderr(), done, n, escape(r.Namespace+"/"+args[0]))
			return err
		},
	}
	f := c.Flags()
	f.StringVarP(&p.file, "file", "f", "", "publish the content of a `file` as one event")
	f.Var(&p.delimiter, "delimiter", "what ends each event of the standard input; empty for the end of it alone")
	f.BoolVar(&p.template, "template", false, "payloads are templates")
	f.IntVar(&p.count, "count", 1, "publish the payload or file so many `times`")
	f.Float64Var(&p.rate, "rate", 0, "`events` per second; 0 for as many as possible")
	f.BoolVar(&p.ack, "ack", true, "wait until the broker has offered each event to every subscription")
	return c
}

// source returns a function that yields one payload after the other, and io.EOF at the end. What has to be waited for
// is waited for as long as the function's context lives.
func (p *publishing) source(c *cobra.Command, payload []string) (func(context.Context) ([]byte, error), error) {
	if p.count < 1 || !(p.rate >= 0) {
		return nil, usageError{error: errors.New("--count is at least 1, and --rate at least 0")}
	}
	var text []byte
	var err error
	lines := false
	switch {
	case p.file != "" && len(payload) > 0:
		return nil, usageError{error: errors.New("either a payload or --file, not both")}
	case p.file != "":
		text, err = fileOrInput(c, p.file, "an event")
	case len(payload) > 0 && payload[0] != standardInput:
		text = []byte(payload[0])
		lines = p.template && bytes.Contains(text, []byte(".Line"))
	case p.delimiter == "" && !p.template:
		text, err = fileOrInput(c, standardInput, "an event")
	default:
		lines = true
	}
	if err != nil {
		return nil, err
	}
	switch {
	case lines && p.count > 1:
		return nil, usageError{error: errors.New("--count needs a payload or --file: lines are published once each")}
	case lines && p.delimiter == "":
		return nil, usageError{error: errors.New("a template needs a --delimiter that ends each line")}
	}
	fill, err := p.filler(text)
	if err != nil {
		return nil, err
	}
	var e templateEvent
	if !lines {
		return func(context.Context) ([]byte, error) {
			if e.Count == p.count {
				return nil, io.EOF
			}
			e.Count++
			return fill(e, text)
		}, nil
	}
	limit, err := maxInput()
	if err != nil {
		return nil, err
	}
	tellReading(c.InOrStdin(), "events, one a line,", c.ErrOrStderr())
	next := readEvents(c.Context(), c.InOrStdin(), p.delimiter, limit)
	return func(ctx context.Context) ([]byte, error) {
		e.Count++
		line, err := next(ctx)
		if err != nil {
			return nil, err
		}
		e.Line = string(line)
		return fill(e, line)
	}, nil
}

// templateEvent is what a template is about.
type templateEvent struct {
	Count int
	Line  string
}

// maxRandom bounds what {{random}} makes.
const maxRandom = 16 << 20

const letters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"

var templateFuncs = template.FuncMap{
	"now":    func() string { return time.Now().UTC().Format(time.RFC3339Nano) },
	"unixms": func() int64 { return time.Now().UnixMilli() },
	"random": func(n int) (string, error) {
		if n < 0 || n > maxRandom {
			return "", fmt.Errorf("random %d: not between 0 and %d", n, maxRandom)
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
			text := strings.ReplaceAll(err.Error(), fmt.Sprintf(" in type %T", e), "; the fields are .Count and .Line")
			return nil, usageError{error: errors.New(text)}
		}
		return out.Bytes(), nil
	}, nil
}

// publish publishes what next yields and returns how many events were acknowledged, or without acknowledgements sent.
func (p *publishing) publish(ctx context.Context, conn *client.Client, to *client.Publisher, next func(context.Context) ([]byte, error)) (int, error) {
	limit := rate.Inf
	if p.rate > 0 {
		limit = rate.Limit(p.rate)
	}
	pace := rate.NewLimiter(limit, 1)

	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var acknowledged atomic.Int64
	outcome := func(err error) {
		if err != nil {
			cancel(err) // no use in going on
			return
		}
		acknowledged.Add(1)
	}
	sent := 0
	var err error
	for err == nil && ctx.Err() == nil {
		var payload []byte
		if payload, err = next(ctx); err != nil { // a failure does not wait for the next line
			break
		}
		if err = pace.Wait(ctx); err != nil {
			break
		}
		if p.ack {
			to.PublishAsync(ctx, payload, outcome)
			continue
		}
		if err = to.Send(ctx, payload); err == nil {
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
	if p.ack {
		sent = int(acknowledged.Load())
	}
	return sent, err
}

// flushTimeout bounds the wait for the last acknowledgements.
const flushTimeout = 10 * time.Second
