package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/spf13/cobra"

	"github.com/felix-mq/felix/client"
)

// subscribing is what the flags of felix sub say.
type subscribing struct {
	count     int
	from      string
	resume    string
	format    payloadFormat
	delimiter delimiter
}

func (a *app) newSub() *cobra.Command {
	s := subscribing{format: payloadFormat{format: formatTable}, delimiter: "\n"}
	c := &cobra.Command{
		Use:   "sub STREAM",
		Short: "Print the events of a stream",
		Long: `Print the events of a stream, each with its offset, until an interrupt or --count.

Events go to the standard output. What was lost, and connections that are lost and come back, go to the standard
error. The broker knows how far a subscription lags: see "felix top".

--resume keeps the position in a file: the next call goes on after the last event that was printed, and says if the
broker does not have all of them any more. --from says where to begin as long as there is no such file. The file is
written as soon as the subscription has begun, then every second if events were printed, and at the end: after an
interrupt (SIGINT, SIGTERM, SIGHUP) and when the reader of the output goes away, too. After kill -9 up to a second of
events is printed again.

JSON has "offset", if the broker tells offsets, and "payload" for a payload that is text (UTF-8) or "payload_base64"
for others. --output json is one array, whose end comes with that of the command; ndjson is an object per line.

If something was lost, the last line on the standard error is a summary.`,
		Example: `  felix sub orders
  felix sub orders --from earliest --count 10 --output ndjson
  felix sub orders --resume ~/.orders-position --from earliest`,
		Args: arguments(1, 1),
		RunE: func(c *cobra.Command, args []string) error { return s.run(a, c, args[0]) },
	}
	f := c.Flags()
	f.IntVar(&s.count, "count", 0, "end after so many `events`; 0 for never")
	f.StringVar(&s.from, "from", fromLatest, "`start`: latest, earliest or an offset")
	f.StringVar(&s.resume, "resume", "", "`file` that keeps the position, and that wins over --from once it is there")
	f.Var(&s.delimiter, "delimiter", "what follows each raw payload; empty for nothing")
	s.format.bind(c, ", which is payloads byte for byte, each followed by --delimiter")
	return c
}

func (s *subscribing) run(a *app, c *cobra.Command, stream string) error {
	if c.Flags().Changed("delimiter") && s.format.format != formatRaw {
		return usageError{error: errors.New("--delimiter needs --output raw")}
	}
	if s.count < 0 {
		return usageError{error: errors.New("--count is at least 0")}
	}
	start, err := s.start()
	if err != nil {
		return err
	}
	var position *positionFile
	if s.resume != "" {
		if position, err = openPosition(s.resume); err != nil {
			return usagef("--resume: %w", err)
		}
		if position.begin != nil {
			start = client.FromPosition(*position.begin)
		}
	}
	errOut := c.ErrOrStderr()
	conn, r, err := a.connect(c.Context(), client.WithHooks(&notices{w: errOut}))
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	subscription, err := conn.Subscribe(c.Context(), r.Namespace, stream, start)
	if err != nil {
		return err
	}
	defer func() { _ = subscription.Close() }()
	fmt.Fprintf(errOut, "subscribed to %s; Ctrl-C ends it\n", escape(r.Namespace+"/"+stream))

	if position != nil {
		position.start(c.Context())
	}
	w := bufio.NewWriter(c.OutOrStdout())
	p := &eventPrinter{
		w: w, colors: c.OutOrStdout(), format: s.format.format, list: jsonList{w: w, format: s.format.format}, after: s.delimiter,
	}
	err = s.print(c.Context(), subscription, p, position, errOut)
	err = errors.Join(err, p.end())
	if position != nil {
		if closeErr := position.Close(); !isOutputError(err) { // which may be the same
			err = errors.Join(err, closeErr)
		}
	}
	if p.gaps > 0 {
		p.sayLost(errOut)
	}
	return err
}

// start returns where to begin if no position was kept.
func (s *subscribing) start() (client.SubscribeOption, error) {
	switch s.from {
	case fromLatest:
		return client.FromLatest(), nil
	case fromEarliest:
		return client.FromEarliest(), nil
	}
	offset, err := strconv.ParseUint(s.from, 10, 64)
	if err != nil {
		return nil, usagef("--from %q is neither latest, earliest nor an offset", s.from)
	}
	return client.FromOffset(offset), nil
}

// The words of --from.
const (
	fromLatest   = "latest"
	fromEarliest = "earliest"
)

// How long to wait for events before a look at the position, which can change without any: until it is known, and
// later.
const (
	firstLook = 20 * time.Millisecond
	look      = savePeriod / 2
)

// print prints events until there are enough. An interrupt is the ordinary end of a subscription that has none; of one
// that waits for a number, it is a failure.
func (s *subscribing) print(ctx context.Context, subscription *client.Subscription, p *eventPrinter, position *positionFile, errOut io.Writer) error {
	begun, told := false, false
	for every := firstLook; !p.enough(s.count); {
		err := s.printFor(ctx, every, subscription, p, position, errOut)
		switch {
		case err != nil && ctx.Err() != nil && !isOutputError(err):
			if s.count == 0 {
				return nil
			}
			return errInterrupted
		case err != nil:
			return err
		}
		if at, known := subscription.Position(); known && !begun {
			begun, every = true, look
			s.sayBegin(errOut, p, at)
		} else if !known && !told && position != nil && p.events > 0 {
			told = true
			fmt.Fprintf(errOut, "the broker does not tell positions: none is kept in %s\n", s.resume)
		}
	}
	return nil
}

// printFor prints events for a time, or until there are enough.
func (s *subscribing) printFor(
	ctx context.Context, period time.Duration, subscription *client.Subscription, p *eventPrinter, position *positionFile, errOut io.Writer,
) error {
	wait, cancel := context.WithTimeout(ctx, period)
	defer cancel()
	for !p.enough(s.count) {
		batch, err := subscription.NextBatch(wait)
		over := err != nil && wait.Err() != nil && ctx.Err() == nil
		if err == nil {
			err = p.batch(&batch, s.count, errOut)
		}
		if err != nil && !over {
			return err
		}
		if at, known := subscription.Position(); known && position != nil {
			at.Offset -= uint64(p.left)
			position.set(at)
			if err := position.failed(); err != nil {
				return err
			}
		}
		if over || wait.Err() != nil {
			break
		}
	}
	return ctx.Err()
}

// sayBegin says what is not kept any more of a stream that is to be read from its beginning, as soon as that is
// known: at is after what was printed.
func (s *subscribing) sayBegin(errOut io.Writer, p *eventPrinter, at client.Position) {
	first := at.Offset
	if p.events > 0 {
		first = p.first
	}
	if s.from == fromEarliest && s.resume == "" && first > 0 {
		fmt.Fprintf(errOut, "the broker does not keep events before offset %d\n", first)
	}
}

// eventPrinter prints events in a format, and counts them.
type eventPrinter struct {
	w      *bufio.Writer
	colors io.Writer // what w writes to
	format format
	list   jsonList
	after  delimiter // each raw payload

	events, gaps int
	first        uint64 // offset of the first event
	left         int    // events of the last batch that were not printed, because there were enough
	lost         uint64
	unknown      bool // there is a gap that nobody knows the size of
}

// enough reports whether count events were printed; 0 is never enough.
func (p *eventPrinter) enough(count int) bool { return count > 0 && p.events >= count }

// batch prints a gap and events, count of them in all at most unless count is 0, and sees to it that they are written.
func (p *eventPrinter) batch(b *client.Batch, count int, errOut io.Writer) error {
	if b.Gap != nil {
		p.gap(errOut, b.Gap)
	}
	for i, payload := range b.Payloads() {
		if err := p.event(payload, b.BaseOffset+uint64(i), b.HasOffset); err != nil {
			return asOutput(err)
		}
		if p.events == count {
			p.left = b.Len() - i - 1
			break
		}
	}
	return asOutput(p.w.Flush())
}

// eventJSON is an event as JSON.
type eventJSON struct {
	Offset *uint64 `json:"offset,omitempty"`
	payload
}

func (p *eventPrinter) event(body []byte, offset uint64, hasOffset bool) (err error) {
	if p.events++; p.events == 1 {
		p.first = offset
	}
	switch p.format {
	case formatRaw:
		if _, err = p.w.Write(body); err == nil {
			_, err = p.w.WriteString(string(p.after))
		}
	case formatTable:
		at := "-"
		if hasOffset {
			at = strconv.FormatUint(offset, 10)
		}
		_, err = fmt.Fprintf(p.w, "%s  %s\n", colored(p.colors, dim, at), printable(body))
	case formatJSON, formatNDJSON:
		e := eventJSON{payload: newPayload(body)}
		if hasOffset {
			e.Offset = &offset
		}
		err = p.list.add(e)
	default: // no other is accepted
	}
	return err
}

// gap says what was lost.
func (p *eventPrinter) gap(errOut io.Writer, g *client.Gap) {
	p.gaps++
	p.lost += g.Lost
	n := strconv.FormatUint(g.Lost, 10)
	if g.Lost == 0 {
		n, p.unknown = "an unknown number of", true
	}
	fmt.Fprintln(errOut, colored(errOut, yellow, fmt.Sprintf("gap: %s events lost: %s", n, gapReason(g.Reason))))
}

// sayLost sums up what was lost.
func (p *eventPrinter) sayLost(errOut io.Writer) {
	lost := fmt.Sprintf("%d lost", p.lost)
	switch {
	case p.unknown && p.lost == 0:
		lost = "an unknown number lost"
	case p.unknown:
		lost += " or more"
	}
	fmt.Fprintf(errOut, "%s, and %s in %s\n", plural(p.events, "event"), lost, plural(p.gaps, "gap"))
}

// plural is a number of things.
func plural(n int, thing string) string {
	if n == 1 {
		return "1 " + thing
	}
	return fmt.Sprintf("%d %ss", n, thing)
}

func gapReason(r client.GapReason) string {
	switch r {
	case client.GapQueueFull:
		return "this reader was too slow"
	case client.GapReclaimed:
		return "the broker needed the memory of the queue"
	case client.GapExpired:
		return "the broker no longer has them"
	case client.GapEpoch:
		return "the stream has started again, because the broker restarted for instance"
	case client.GapCorrupt:
		return "a compressed batch was damaged"
	default:
		return "the broker does not tell"
	}
}

func (p *eventPrinter) end() error {
	return errors.Join(p.list.end(), asOutput(p.w.Flush()))
}

// notices prints what happens to a subscription.
type notices struct {
	w    io.Writer
	said atomic.Pointer[string] // why it is down; nil if it is not
}

// OnSubscription implements client.SubscriptionHook.
func (n *notices) OnSubscription(namespace, stream string, state client.SubscriptionState, reason error) {
	switch state {
	case client.SubscriptionResuming:
		why := plain(reason)
		if said := n.said.Swap(&why); said == nil || *said != why {
			fmt.Fprintln(n.w, colored(n.w, yellow, fmt.Sprintf("%s: %s; subscribing again", escape(namespace+"/"+stream), why)))
		}
	case client.SubscriptionLive:
		n.said.Store(nil)
		fmt.Fprintf(n.w, "%s: subscribed again\n", escape(namespace+"/"+stream))
	case client.SubscriptionOver: // told by its error
	}
}
