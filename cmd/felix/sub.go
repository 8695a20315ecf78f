package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/spf13/cobra"

	"github.com/felix-mq/felix/client"
)

// subscribing is what the flags of felix sub say.
type subscribing struct {
	count  int
	from   string
	resume string
	format payloadFormat
}

func (a *app) newSub() *cobra.Command {
	s := subscribing{format: payloadFormat{formatTable}}
	c := &cobra.Command{
		Use:   "sub STREAM",
		Short: "Print the events of a stream",
		Long: `Print the events of a stream, each with its offset, until an interrupt or --count.

Events go to the standard output. What was lost, connections that are lost and come back, and a summary with the number of
lost events go to the standard error. How far a subscription lags behind is known to the broker: see "felix top".

--resume keeps the position in a file: the next call goes on behind the last event that was printed, and says if the broker
does not have all of them any more. The file is written every second and at the end.`,
		Example: `  felix sub orders
  felix sub orders --from earliest --count 10 --output ndjson
  felix sub orders --resume ~/.orders-position`,
		Args: arguments(1, 1),
		RunE: func(c *cobra.Command, args []string) error { return s.run(a, c, args[0]) },
	}
	f := c.Flags()
	f.IntVar(&s.count, "count", 0, "end after so many `events`; 0 for never")
	f.StringVar(&s.from, "from", "latest", "`start`: latest, earliest or an offset")
	f.StringVar(&s.resume, "resume", "", "`file` that keeps the position")
	c.MarkFlagsMutuallyExclusive("from", "resume")
	s.format.bind(c, "payloads, each with a newline behind it")
	return c
}

func (s *subscribing) run(a *app, c *cobra.Command, stream string) error {
	if s.count < 0 {
		return usageError{error: errors.New("--count is at least 0")}
	}
	start, err := s.start()
	if err != nil {
		return err
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
	fmt.Fprintf(errOut, "subscribed to %s/%s; Ctrl-C ends it\n", r.Namespace, stream)

	p := &eventPrinter{w: bufio.NewWriter(c.OutOrStdout()), colors: c.OutOrStdout(), format: s.format.format}
	err = s.print(c.Context(), subscription, p, errOut)
	err = errors.Join(err, p.end())
	if s.resume != "" {
		err = errors.Join(err, p.savePosition(s.resume, subscription))
	}
	if p.gaps > 0 {
		fmt.Fprintf(errOut, "%d events, and %d lost in %d gaps%s\n", p.events, p.lost, p.gaps, map[bool]string{true: " or more"}[p.unknown])
	}
	return err
}

// start returns where to begin.
func (s *subscribing) start() (client.SubscribeOption, error) {
	if s.resume != "" {
		text, err := os.ReadFile(s.resume)
		if errors.Is(err, fs.ErrNotExist) {
			return client.FromLatest(), nil
		}
		var p client.Position
		if err == nil {
			p, err = parsePosition(string(text))
		}
		if err != nil {
			return nil, usageError{error: fmt.Errorf("--resume: %s: %w", s.resume, err)}
		}
		return client.FromPosition(p), nil
	}
	switch s.from {
	case "latest":
		return client.FromLatest(), nil
	case "earliest":
		return client.FromEarliest(), nil
	}
	offset, err := strconv.ParseUint(s.from, 10, 64)
	if err != nil {
		return nil, usageError{error: fmt.Errorf("--from %s is neither latest, earliest nor an offset", s.from)}
	}
	return client.FromOffset(offset), nil
}

func formatPosition(p client.Position) string { return fmt.Sprintf("%d:%d\n", p.Epoch, p.Offset) }

// parsePosition reads what [formatPosition] returns.
func parsePosition(text string) (p client.Position, err error) {
	epoch, offset, _ := strings.Cut(strings.TrimSpace(text), ":")
	p.Epoch, err = strconv.ParseUint(epoch, 10, 64)
	if err == nil {
		p.Offset, err = strconv.ParseUint(offset, 10, 64)
	}
	if err != nil {
		err = fmt.Errorf("no position: %w", err)
	}
	return p, err
}

// savePosition writes where to go on, if the broker tells positions: behind the last event that was printed.
func (p *eventPrinter) savePosition(file string, s *client.Subscription) error {
	at, ok := s.Position()
	if !ok {
		return nil
	}
	if p.events > 0 {
		at.Offset = p.next
	}
	if err := writeFile(file, []byte(formatPosition(at))); err != nil {
		return fmt.Errorf("saving the position: %w", err)
	}
	return nil
}

// savePeriod is how often the position is written.
const savePeriod = time.Second

// print prints events until there are enough. An interrupt is the ordinary end of a subscription that has none; of one
// that waits for a number, it is a failure.
func (s *subscribing) print(ctx context.Context, subscription *client.Subscription, p *eventPrinter, errOut io.Writer) error {
	saved := time.Now()
	for s.count == 0 || p.events < s.count {
		batch, err := subscription.NextBatch(ctx)
		if err != nil && ctx.Err() != nil && s.count == 0 {
			return nil
		}
		if err != nil {
			return err
		}
		if batch.Gap != nil {
			p.gap(errOut, batch.Gap)
		}
		for i, payload := range batch.Payloads() {
			if err := p.event(payload, batch.BaseOffset+uint64(i), batch.HasOffset); err != nil {
				return err
			}
			if p.events == s.count {
				break
			}
		}
		if err := p.w.Flush(); err != nil {
			return err
		}
		if s.resume != "" && time.Since(saved) > savePeriod {
			saved = time.Now()
			if err := p.savePosition(s.resume, subscription); err != nil {
				return err
			}
		}
	}
	return nil
}

// eventPrinter prints events in a format, and counts them.
type eventPrinter struct {
	w      *bufio.Writer
	colors io.Writer // what w writes to
	format format

	events, gaps int
	next         uint64 // offset behind the last event
	lost         uint64
	unknown      bool // there is a gap that nobody knows the size of
}

// eventJSON is an event as JSON.
type eventJSON struct {
	Offset *uint64 `json:"offset,omitempty"`
	payload
}

func (p *eventPrinter) event(body []byte, offset uint64, hasOffset bool) (err error) {
	p.events++
	p.next = offset + 1
	switch p.format {
	case formatRaw:
		_, err = p.w.Write(append(slices.Clip(body), '\n'))
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
		if p.format == formatJSON { // one array, which grows as events come
			_, err = p.w.WriteString(map[bool]string{true: "[\n", false: ","}[p.events == 1])
		}
		if err == nil {
			err = printJSON(p.w, formatNDJSON, e)
		}
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

func gapReason(r client.GapReason) string {
	switch r {
	case client.GapQueueFull:
		return "this reader was too slow"
	case client.GapReclaimed:
		return "the broker needed the memory of the queue"
	case client.GapExpired:
		return "the broker no longer has them"
	case client.GapEpoch:
		return "the stream has begun anew, by a restart of the broker for instance"
	case client.GapCorrupt:
		return "a compressed batch was damaged"
	default:
		return "the broker does not tell"
	}
}

func (p *eventPrinter) end() error {
	if p.format == formatJSON {
		if p.events == 0 {
			_, _ = p.w.WriteString("[") // Flush reports it
		}
		_, _ = p.w.WriteString("]\n")
	}
	return p.w.Flush()
}

// notices says what becomes of a subscription.
type notices struct {
	w    io.Writer
	down atomic.Bool // and that has been said
}

// OnSubscription implements client.SubscriptionHook.
func (n *notices) OnSubscription(namespace, stream string, state client.SubscriptionState, reason error) {
	switch state {
	case client.SubscriptionResuming:
		if !n.down.Swap(true) {
			fmt.Fprintln(n.w, colored(n.w, yellow, fmt.Sprintf("%s/%s: %s; subscribing again", namespace, stream, plain(reason))))
		}
	case client.SubscriptionLive:
		n.down.Store(false)
		fmt.Fprintf(n.w, "%s/%s: subscribed again\n", namespace, stream)
	case client.SubscriptionOver: // told by its error
	}
}
