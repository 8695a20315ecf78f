package client

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"math"
	"os"
	"sync"
	"sync/atomic"

	"github.com/felix-mq/felix/codec"
	"github.com/felix-mq/felix/telemetry"
)

// Subscription is one subscriber's stream of events. One goroutine at a time may read it: a read during another one
// fails with [ErrConcurrentRead]. Close may be called from any. What is not read is held back by flow control: nothing
// is dropped on this side.
//
// A subscription outlives its connection. When that is lost, or the broker ends the event stream, the subscription
// subscribes again after the last event that it has handed out, as soon as it is read, with pauses between attempts
// ([WithBackoff]). Where the broker still has the events in between nothing is missed; otherwise the next event or
// batch carries a [Gap] that says so. It goes on trying, at the longest pause, however long that takes, and tells each
// failure to a [SubscriptionHook]. What ends it is Close, an end of the client, a broker that violates the protocol,
// and the time of [ResumeFor] if that was set.
type Subscription struct {
	c                 *Client
	namespace, stream string
	o                 subscribeOptions

	life    context.Context // ends with Close and with the client
	endLife context.CancelCauseFunc
	current atomic.Pointer[eventFeed] // nil while there is none; written by the reader, and Close quits it

	mu      sync.Mutex      // held while reading: Close takes the buffers back afterwards. Guards all up to plain
	err     error           // why the subscription is over
	pending chan resumption // not nil while a goroutine subscribes again
	backoff backoff
	ctx     context.Context // the one that is watched; see bind
	unbind  func() bool
	msg     codec.Message
	batch   Batch
	cursor  codec.ItemCursor
	index   int
	gap     *Gap // not handed out yet
	exact   bool // offset can be resumed at although the broker tells no epoch
	begun   bool // events were handed out
	handed  telemetry.Time
	plain   []byte // the decompressed batch

	at     Position             // after what was handed out; the epoch means nothing while told is nil
	next   Position             // after what was read
	told   atomic.Pointer[life] // what Position returns; written by the reader; nil if the broker does not tell positions
	closed atomic.Bool
}

// life is a position that moves within its epoch.
type life struct {
	epoch  uint64
	offset atomic.Uint64
}

// reach moves the position to an offset after what is handed out, in the epoch of what was read. told says that the
// broker tells positions.
func (s *Subscription) reach(offset uint64, told bool) {
	s.at = Position{s.next.Epoch, offset}
	switch l := s.told.Load(); {
	case l != nil && l.epoch == s.at.Epoch:
		l.offset.Store(offset)
	case l != nil || told:
		l = &life{epoch: s.at.Epoch}
		l.offset.Store(offset)
		s.told.Store(l)
	}
}

// Event is one event, or a gap alone. Its payload belongs to the caller, unless the subscription was made with
// [WithViews].
type Event struct {
	Payload   []byte // nil for a gap alone, and not nil for an empty event
	Offset    uint64 // meaningful if HasOffset
	HasOffset bool
	Gap       *Gap // what was lost between the previous event and this one; nil if nothing was, as far as the broker tells
}

// IsGap reports whether this is a gap alone, which the broker has reported before there is an event after it.
func (e Event) IsGap() bool { return e.Payload == nil }

// Clone returns a copy with a payload of its own, which the caller may keep: see [WithViews].
func (e Event) Clone() Event {
	if e.Payload != nil {
		e.Payload = append([]byte{}, e.Payload...)
	}
	return e
}

// Batch is the events of one frame. It is a view that lives until the next call on the subscription.
type Batch struct {
	items      codec.Items
	Gap        *Gap   // what was lost in front of it; see [Event.Gap]
	BaseOffset uint64 // of the first event, meaningful if HasOffset
	HasOffset  bool
}

// Len returns the number of events. It is 0 if there is only a Gap to tell.
func (b *Batch) Len() int { return b.items.Len() }

// Payloads yields each event's position in the batch and its payload.
func (b *Batch) Payloads() iter.Seq2[int, []byte] { return b.items.All() }

// Subscribe asks for the events of a stream, from the next one on unless an option says otherwise.
func (c *Client) Subscribe(ctx context.Context, namespace, stream string, opts ...SubscribeOption) (*Subscription, error) {
	var o subscribeOptions
	var err error
	for _, opt := range opts {
		if opt == nil {
			err = optionError{errors.New("an option is nil")}
			continue
		}
		opt(&o)
	}
	switch {
	case !c.made():
		err = ErrNotMade
	case err == nil && c.ctx.Err() != nil:
		err = ErrClosed
	case err == nil:
		err = checkNames(namespace, stream)
	}
	var f *eventFeed
	if err == nil {
		f, err = c.openFeed(ctx, namespace, stream, o.start)
	}
	if err != nil {
		return nil, fmt.Errorf("client: subscribing to %.80q/%.80q: %w", namespace, stream, err)
	}
	s := &Subscription{c: c, namespace: namespace, stream: stream, o: o, backoff: c.o.backoff}
	s.at = Position{o.start.epoch, o.start.Offset}
	s.next = s.at
	if o.start.resume {
		s.reach(o.start.Offset, true)
	}
	s.life, s.endLife = context.WithCancelCause(c.ctx)
	s.current.Store(f)
	return s, nil
}

// ID returns the number that the broker gave the subscription, which changes when it subscribes again; 0 while it does.
func (s *Subscription) ID() uint64 {
	if s == nil {
		return 0
	}
	if f := s.current.Load(); f != nil {
		return f.id
	}
	return 0
}

// Position returns where the subscription is: after the last event or [Gap] that was handed out, to go on from there
// with [FromPosition], in another process for instance. It may be called at any time, and reports false if the broker
// does not tell positions, or has not yet.
func (s *Subscription) Position() (Position, bool) {
	if s == nil {
		return Position{}, false
	}
	l := s.told.Load()
	if l == nil {
		return Position{}, false
	}
	return Position{Epoch: l.epoch, Offset: l.offset.Load()}, true
}

// Lag asks the broker how many events the stream has after the position: those that are in it and were not handed out.
// The broker's part is as fresh as its answer, and the position is that of the moment in which that has come. It is 0
// if the stream has begun another epoch that is not as long yet.
//
// It costs a round trip on a stream of its own, and the broker a look-up; call it to observe a subscription, every few
// seconds for instance, not for each event. It may be called from any goroutine, also while another one reads. It ends
// with ctx, which is bounded by the request timeout if it has no deadline, and fails with [ErrClosed] after Close, with
// [ErrUnsupported] if the broker does not tell positions or nothing was read yet, so that there is no position, and
// with the errors of Subscribe. The broker counts the question as a request that it has refused.
func (s *Subscription) Lag(ctx context.Context) (uint64, error) {
	if s == nil || s.c == nil {
		return 0, ErrNotMade
	}
	if s.life.Err() != nil {
		return 0, context.Cause(s.life)
	}
	if _, known := s.Position(); !known {
		return 0, fmt.Errorf("%w: there is no position", ErrUnsupported)
	}
	// A start that no stream ever comes to is refused, with the offset of the next event.
	f, err := s.c.openFeed(ctx, s.namespace, s.stream, startPoint{Start: codec.Start{Kind: codec.StartOffset, Offset: math.MaxUint64}})
	refusal, ok := errors.AsType[*CursorError](err)
	switch {
	case ok && !refusal.TooOld:
		at, _ := s.Position()
		return refusal.Available - min(at.Offset, refusal.Available), nil
	case err == nil:
		f.close()
		err = fmt.Errorf("%w: a start in the future", ErrProtocol)
	}
	return 0, fmt.Errorf("client: lag of %.80q/%.80q: %w", s.namespace, s.stream, err)
}

// beginRead takes s.mu, which the caller unlocks. It fails if another goroutine reads.
func (s *Subscription) beginRead() error {
	if s == nil || s.c == nil {
		return ErrNotMade
	}
	if s.mu.TryLock() {
		return nil
	}
	if !s.closed.Load() {
		return ErrConcurrentRead
	}
	s.mu.Lock() // Close has it, or is about to get it
	return nil
}

// NextBatch waits for the next frame of events. Mixing it with [Subscription.Next] skips what Next has not returned of
// its frame.
//
// It ends with the context, and can be called again afterwards: nothing is lost. It fails with [ErrClosed] after Close,
// and with the broker's refusal or [ErrProtocol] where subscribing again is of no use. A subscription made with
// [WithoutResume] also ends with its event stream: with [ErrEnded] when the broker finished that, and with an error
// that matches [ErrDisconnected] when it was lost. The error of a subscription that is over stays the same.
func (s *Subscription) NextBatch(ctx context.Context) (Batch, error) {
	if err := s.beginRead(); err != nil {
		return Batch{}, err
	}
	defer s.mu.Unlock()
	s.index, s.cursor = 0, codec.ItemCursor{}
	err := s.nextBatch(ctx)
	if err == nil {
		n := s.batch.Len()
		switch {
		case n > 0 && s.batch.HasOffset:
			s.reach(s.batch.BaseOffset+uint64(n), false)
		case n == 0:
			s.reach(s.next.Offset, false)
		}
		s.begun = s.begun || n > 0
		s.batch.Gap, s.gap = s.gap, nil
	}
	return s.batch, err
}

// Next waits for the next event, or for a [Gap]: that comes as soon as the broker tells of it, as an event without a
// payload ([Event.IsGap]). See [Subscription.NextBatch].
func (s *Subscription) Next(ctx context.Context) (Event, error) {
	if err := s.beginRead(); err != nil {
		return Event{}, err
	}
	defer s.mu.Unlock()
	for {
		if payload, ok := s.cursor.Next(); ok {
			if !s.o.views {
				payload = append([]byte{}, payload...) // not nil if it is empty
			}
			ev := Event{Payload: payload, HasOffset: s.batch.HasOffset}
			if ev.HasOffset {
				ev.Offset = s.batch.BaseOffset + uint64(s.index)
				s.reach(ev.Offset+1, false)
			}
			s.index++
			s.begun = true
			ev.Gap, s.gap = s.gap, nil
			return ev, nil
		}
		if err := s.nextBatch(ctx); err != nil {
			return Event{}, err
		}
		s.index, s.cursor = 0, s.batch.items.Cursor()
		if s.batch.Len() == 0 {
			ev := Event{Gap: s.gap}
			s.gap = nil
			s.reach(s.next.Offset, false)
			return ev, nil
		}
	}
}

// Events yields events and gaps, as [Subscription.Next] does, until the context ends or the subscription is over, and
// the reason last. Breaking out of the loop leaves the subscription where it is.
func (s *Subscription) Events(ctx context.Context) iter.Seq2[Event, error] {
	return func(yield func(Event, error) bool) {
		for {
			ev, err := s.Next(ctx)
			if !yield(ev, err) || err != nil {
				return
			}
		}
	}
}

// Each calls handle with each event and gap, as [Subscription.Next] returns them, until it fails, the context ends or
// the subscription is over, and returns the reason.
func (s *Subscription) Each(ctx context.Context, handle func(Event) error) error {
	if handle == nil {
		return optionError{errors.New("client: no function to handle events")}
	}
	for ev, err := range s.Events(ctx) {
		if err == nil {
			err = handle(ev)
		}
		if err != nil {
			return err
		}
	}
	return nil // not reached: the last thing that Events yields is an error
}

// nextBatch reads the next frame with events, or with a gap alone, into s.batch. Each round of its loop is one step:
//
//	s.err set ─────────────────▶ fail for good
//	no feed ──── resumed ──────▶ a feed, and perhaps a gap; or s.err
//	feed ─────── read fails ───▶ readError: the context's end, or lost (no feed), or end (s.err)
//	        └─── a frame ──────▶ parse: events or a gap are returned, a position alone is not
func (s *Subscription) nextBatch(ctx context.Context) error {
	telemetry.Observe(telemetry.StageClientConsume, s.handed)
	s.batch = Batch{}
	for {
		if s.err != nil {
			return s.err
		}
		f := s.current.Load()
		if f == nil {
			if err := s.resumed(ctx); err != nil {
				return err
			}
			if s.gap != nil {
				return nil
			}
			continue
		}
		if !f.e.fr.Ready() {
			if err := s.bind(ctx, f); err != nil {
				return err
			}
		}
		start := telemetry.Start()
		frame, err := f.e.fr.Next()
		start = telemetry.Observe(telemetry.StageClientRead, start)
		if err != nil {
			if err := s.readError(f, err); err != nil {
				return err
			}
			continue
		}
		telemetry.Add(telemetry.ClientFramesIn, 1)
		telemetry.Add(telemetry.ClientBytesIn, len(frame.Bytes))
		if err := s.parse(f, frame); err != nil {
			telemetry.Add(telemetry.ClientDecodeErrors, 1)
			s.end(fmt.Errorf("%w: %w", ErrProtocol, err))
			continue
		}
		telemetry.Observe(telemetry.StageClientDecode, start)
		if n := s.batch.items.Len(); n > 0 || frame.Header.Flags == codec.LayoutExtension && s.gap != nil {
			telemetry.Add(telemetry.ClientEventFrames, 1)
			telemetry.Add(telemetry.ClientEventItems, n)
			s.backoff.attempts = 0
			if n > 0 {
				switch frame.Header.Flags {
				case codec.LayoutSharedOffsets:
					s.exact = true
				case codec.LayoutShared:
					s.exact = false
				default: // replay, which has offsets on any stream
				}
				s.c.hooks.delivered(s, n, len(s.batch.items.Raw()))
			}
			s.handed = telemetry.Start()
			return nil
		}
	}
}

// bind makes the end of ctx wake a blocked read. It costs something only when the context ends differently from the
// last one, so that a loop with one context allocates nothing. Contexts themselves may not be comparable.
func (s *Subscription) bind(ctx context.Context, f *eventFeed) error {
	if err := ctx.Err(); err != nil {
		return context.Cause(ctx)
	}
	if s.ctx != nil && s.ctx.Done() == ctx.Done() {
		return nil
	}
	s.release()
	_ = f.e.r.SetReadDeadline(never)
	s.ctx = ctx
	if ctx.Done() != nil {
		s.unbind = context.AfterFunc(ctx, func() { _ = f.e.r.SetReadDeadline(past) })
	}
	return nil
}

// release forgets the context that is watched.
func (s *Subscription) release() {
	if s.unbind != nil {
		s.unbind()
	}
	s.ctx, s.unbind = nil, nil
}

// readError deals with the failure of a read. It returns nil if the reader should look again.
func (s *Subscription) readError(f *eventFeed, err error) error {
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded):
		// A deadline that was set for an earlier context is none of this one's business.
		_ = f.e.r.SetReadDeadline(never)
		if s.ctx == nil || s.ctx.Err() == nil {
			return nil
		}
		err = context.Cause(s.ctx)
		s.ctx, s.unbind = nil, nil
		return err
	case s.closed.Load():
		s.end(ErrClosed)
	case errors.Is(err, io.EOF):
		s.lost(f, ErrEnded)
	default:
		s.lost(f, f.k.streamError("reading events", err))
	}
	return nil
}

// end makes err the answer to all further reads, and gives back what the subscription holds. s.mu is held.
func (s *Subscription) end(err error) {
	s.err = err
	s.endLife(err)
	s.release()
	viewed := s.batch.Len() > 0 // by the goroutine that called Next or NextBatch last, while another one calls Close
	s.batch, s.cursor, s.plain = Batch{}, codec.ItemCursor{}, nil
	if f := s.current.Swap(nil); f != nil && viewed {
		f.abandon()
	} else if f != nil {
		f.close()
	}
	if s.pending != nil {
		if r := <-s.pending; r.feed != nil { // it hears of the end of s.life
			r.feed.close()
		}
		s.pending = nil
	}
	s.c.hooks.subscription(s, SubscriptionOver, err)
}

// Close ends the subscription. A read under way fails with [ErrClosed], and what was handed out before stays as it is.
// It may be called twice, and returns nil.
func (s *Subscription) Close() error {
	if s == nil || s.c == nil {
		return nil
	}
	s.closed.Store(true)
	s.endLife(ErrClosed)
	if f := s.current.Load(); f != nil {
		f.quit()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err == nil {
		s.end(ErrClosed)
	}
	s.err = ErrClosed
	return nil
}
