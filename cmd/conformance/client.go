package main

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"io"
	"regexp"
	"time"

	"github.com/felix-mq/felix/conformance"
	"github.com/felix-mq/felix/conformance/script"
	"github.com/felix-mq/felix/quicx"
)

//go:embed skipped_client.txt
var skippedClientText string

// elsewhere are the rows of the checklist for clients that have no case, so that the report has all of them.
var elsewhere = []script.Case{
	{ID: "IC-03", Title: "codec against the reference's vectors"},
	{ID: "IC-15", Title: "a token that is refused"},
	{ID: "IC-19", Title: "batches without acknowledgement"},
	{ID: "IC-39", Title: "two subscribers of a durable stream, one with offsets"},
	{ID: "IC-40", Title: "durable stream, resume over the replay/live boundary"},
	{ID: "IC-47", Title: "a subscriber that does not read for 10 s"},
	{ID: "IC-49", Title: "idle for 60 s with keep-alive"},
	{ID: "IC-51", Title: "lifetimes of 100 ms, none and 0"},
	{ID: "IC-59", Title: "15 MiB item, live and replayed"},
}

func clientRows() []script.Case { return append(script.Cases(), elsewhere...) }

// clientOptions are the flags of the client mode.
type clientOptions struct {
	reportOptions
	command string
}

func runClient(args []string, stdout, stderr io.Writer) int {
	var o clientOptions
	flags := newFlagSet("conformance client", stderr, clientHelp)
	flags.StringVar(&o.command, "exec", "", "judge the `command`, which speaks the line protocol of docs/protocol/conformance.md; sh runs it")
	o.add(flags, "how long each case may take")
	if code, ok := parse(flags, args, stderr, o.check); !ok {
		return code
	}
	if o.list {
		for _, c := range clientRows() {
			o.printTitle(stdout, clientTitle(c))
		}
		return exitOK
	}
	ctx, stop := interrupted()
	defer stop()
	onResult, clear := progress(stderr)
	report := judgeClient(ctx, o.subject(stderr), o.name(), o.regexp, o.timeout, onResult)
	clear()
	return o.finish(stdout, stderr, &report)
}

const clientHelp = `Usage: conformance client [--exec COMMAND] [flags]

Judges a Felix client: each case is a broker that does what a broker may do, or what a client has to survive, on a port of
its own on loopback. Without --exec the client is package client of this tree.

  conformance client                                  package client
  conformance client --exec 'python3 adapter.py'      a program in any language: calls and answers are lines of JSON
  conformance client --run 'C3-'                      some cases
  conformance client --list                           what there is
  conformance client --junit report.xml               all cases, with a report for CI

Flags:
%s
The report says which rows of the checklist have no case, and why; the list is cmd/conformance/skipped_client.txt.

Exit status: 0 no case failed; 1 a case failed or the run was cut short; 2 usage.
The broker mode, which judges a broker: conformance --help.
`

// subject makes a client for one case, which ctx ends. end is called when the client was closed: it gives back the
// rest, and returns what was wrong with the client beyond what it answered.
type subject func(ctx context.Context) (c script.Client, end func() error, err error)

func (o *clientOptions) subject(stderr io.Writer) subject {
	if o.command == "" {
		return func(context.Context) (script.Client, func() error, error) {
			return &goClient{}, func() error { return nil }, nil
		}
	}
	return func(ctx context.Context) (script.Client, func() error, error) {
		p, err := startProgram(ctx, o.command, stderr)
		if err != nil {
			return nil, nil, err
		}
		return p, p.end, nil
	}
}

// name is the client's name in the report.
func (o *clientOptions) name() string {
	if o.command == "" {
		return "package client"
	}
	return o.command
}

func clientTitle(c script.Case) string { return c.ID + " " + c.Title }

// judgeClient runs the chosen cases one after the other.
func judgeClient(ctx context.Context, s subject, name string, match *regexp.Regexp, limit time.Duration, onResult func(conformance.Result)) (report conformance.Report) {
	report = conformance.Report{Subject: name, Started: time.Now()}
	defer func() { report.Took = time.Since(report.Started) }()
	skips, err := clientSkips()
	if err != nil {
		report.Err = err
		return report
	}
	for _, c := range clientRows() {
		if !match.MatchString(clientTitle(c)) {
			continue
		}
		if ctx.Err() != nil {
			report.Err = fmt.Errorf("conformance: ended early: %w", context.Cause(ctx))
			break
		}
		r := conformance.Result{ID: c.ID, Name: c.Title, Status: conformance.Skipped}
		if reason, skip := skips[c.ID]; skip {
			r.Reason = reason
		} else {
			r = judgeCase(ctx, c, s, limit)
		}
		report.Results = append(report.Results, r)
		onResult(r)
	}
	if len(report.Results) == 0 && report.Err == nil {
		report.Err = errors.New("conformance: no case matches")
	}
	return report
}

// clientSkips returns why rows are skipped, by id.
func clientSkips() (map[string]string, error) {
	rows := clientRows()
	ids := make([]string, len(rows))
	for i, c := range rows {
		ids[i] = c.ID
	}
	reasons, err := conformance.ReadSkips(skippedClientText, ids, map[string]bool{"always": true})
	if err != nil {
		return nil, fmt.Errorf("conformance: skipped_client.txt: %w", err)
	}
	for _, c := range elsewhere {
		if reasons[c.ID] == "" {
			return nil, fmt.Errorf("conformance: case %q cannot run and skipped_client.txt does not say why", c.ID)
		}
	}
	return reasons, nil
}

func judgeCase(ctx context.Context, c script.Case, s subject, limit time.Duration) (r conformance.Result) {
	r = conformance.Result{ID: c.ID, Name: c.Title, Status: conformance.Passed}
	start := time.Now()
	defer func() { r.Took = time.Since(start) }()
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	if f := tryCase(ctx, c, s); f != nil {
		r.Status, r.Expected, r.Seen = conformance.Failed, f.Expected, f.Seen
	}
	return r
}

func tryCase(ctx context.Context, c script.Case, s subject) *script.Failure {
	server, err := script.Listen(ctx, quicx.Config{})
	if err != nil {
		return &script.Failure{Expected: "a scripted broker", Seen: err.Error()}
	}
	defer server.Close()
	cl, end, err := s(ctx)
	if err != nil {
		return &script.Failure{Expected: "a client that starts", Seen: err.Error()}
	}
	f := c.Run(ctx, server, cl)
	if err := cl.Close(); err != nil && f == nil {
		f = &script.Failure{Expected: "the client closes", Seen: err.Error()}
	}
	if err := end(); err != nil { // the cause of whatever the case saw
		f = &script.Failure{Expected: "a program that answers each call", Seen: err.Error()}
	}
	return f
}
