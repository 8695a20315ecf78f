package client

import (
	"context"
	"errors"
	"fmt"

	"github.com/felix-mq/felix/codec"
)

// resumption is what came of subscribing again.
type resumption struct {
	feed *eventFeed
	gap  *Gap // what may have been missed, as far as this side knows
	err  error
}

// lost ends the feed and begins to subscribe again, unless that is not wanted or of no use.
func (s *Subscription) lost(f *eventFeed, err error) {
	if s.o.once || errors.Is(err, ErrClosed) || errors.Is(err, ErrProtocol) {
		s.end(err)
		return
	}
	s.release()
	s.next = s.at // what was told of a place that was not reached will be told again
	s.current.Store(nil)
	f.close()
	s.c.hooks.subscription(s, SubscriptionResuming, err)
	from, gap := s.resumeAt(f)
	done, pauses := make(chan resumption, 1), s.backoff
	// On a goroutine of its own, so that it gets on however short the contexts of the reader are. It ends with s.life.
	if !s.c.start(func() { done <- s.resume(from, gap, pauses) }) {
		s.end(ErrClosed)
		return
	}
	s.pending = done
}

// resumeAt returns where to subscribe again, and the gap that this leaves.
func (s *Subscription) resumeAt(f *eventFeed) (startPoint, *Gap) {
	at := codec.Start{Kind: codec.StartOffset, Offset: s.at.Offset}
	switch {
	case f.ext&codec.ExtGaps != 0 && s.told.Load() != nil:
		return startPoint{Start: at, resume: true, epoch: s.at.Epoch}, nil
	case s.exact && s.begun:
		// Without the extension only events of durable streams carry offsets when they are delivered live, and those
		// survive a restart (docs/protocol/session.md#offsets-on-events).
		return startPoint{Start: at}, nil
	case !s.begun && (s.o.start.Kind == codec.StartEarliest || s.o.start.Kind == codec.StartOffset):
		return s.o.start, nil
	default:
		return startPoint{}, &Gap{Reason: GapUnknown}
	}
}

// resume subscribes until that succeeds, whatever fails meanwhile: a broker that refuses may have just started and not
// know all streams or keys yet, and nothing is decided by its text (docs/protocol/errors.md).
func (s *Subscription) resume(from startPoint, gap *Gap, pauses backoff) resumption {
	ctx := s.life
	if limit := s.o.resumeFor; limit > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(ctx, limit, ErrTimeout)
		defer cancel()
	}
	var last error
	for {
		var f *eventFeed
		err := sleep(ctx, pauses.next())
		if err == nil {
			f, err = s.openAgain(ctx, from)
		}
		if err == nil {
			return resumption{feed: f, gap: gap}
		}
		cursor, isCursor := errors.AsType[*CursorError](err)
		switch {
		case s.life.Err() != nil:
			return resumption{err: context.Cause(s.life)}
		case ctx.Err() != nil:
			err = fmt.Errorf("client: subscribing again: %w", context.Cause(ctx))
			if last != nil {
				err = fmt.Errorf("%w: %w", err, last)
			}
			return resumption{err: err}
		case errors.Is(err, ErrProtocol):
			return resumption{err: err}
		case isCursor && cursor.TooOld:
			gap = merge(gap, Gap{Reason: GapExpired, Lost: cursor.Available - cursor.Requested})
			from = startPoint{Start: codec.Start{Kind: codec.StartOffset, Offset: cursor.Available}}
		case isCursor: // another life of the stream
			gap = merge(gap, Gap{Reason: GapEpoch})
			from = startPoint{Start: codec.Start{Kind: codec.StartEarliest}}
		case errors.Is(err, ErrUnsupported): // another broker than the last time
			gap = merge(gap, Gap{Reason: GapUnknown})
			from = startPoint{}
		}
		last = err
		s.c.hooks.subscription(s, SubscriptionResuming, err)
	}
}

// openAgain makes one attempt to subscribe, which takes the request timeout at most, even if ctx has more time.
func (s *Subscription) openAgain(ctx context.Context, from startPoint) (*eventFeed, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, s.c.o.requestTimeout, ErrTimeout)
	defer cancel()
	return s.c.openFeed(ctx, s.namespace, s.stream, from)
}

// resumed waits for the goroutine that subscribes again. When it returns nil there is a feed, or s.err.
func (s *Subscription) resumed(ctx context.Context) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	select {
	case r := <-s.pending:
		s.pending = nil
		s.adopt(r)
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// adopt goes on with what came of subscribing again.
func (s *Subscription) adopt(r resumption) {
	if r.err != nil {
		s.end(r.err)
		return
	}
	s.backoff.attempts++ // until the feed has delivered something
	if r.feed.ext&codec.ExtGaps == 0 {
		s.told.Store(nil)
	}
	if r.gap != nil {
		s.lose(*r.gap)
	}
	s.current.Store(r.feed)
	if s.closed.Load() {
		r.feed.quit() // Close may have missed it
	}
	s.c.hooks.subscription(s, SubscriptionLive, nil)
}

// lose notes a loss, together with one that has not been handed out yet.
func (s *Subscription) lose(g Gap) { s.gap = merge(s.gap, g) }

// merge joins two losses in a row.
func merge(earlier *Gap, g Gap) *Gap {
	if earlier != nil {
		if earlier.Reason == GapEpoch || earlier.Reason == GapUnknown {
			g = *earlier
		} else if g.Reason != GapEpoch && g.Reason != GapUnknown {
			g.Lost += earlier.Lost
		}
	}
	return &g
}
