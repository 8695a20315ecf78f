package client

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/felix-mq/felix/codec"
	"github.com/felix-mq/felix/quicx"
)

// SubscribeOption changes one setting of a subscription.
type SubscribeOption func(*subscribeOptions)

type subscribeOptions struct{ start origin }

// origin is where a subscription begins. Without resume, epoch means nothing.
type origin struct {
	codec.Start
	resume bool
	epoch  uint64
}

// request appends the subscribe.
func (o origin) request(dst []byte, tenant, namespace, stream string) []byte {
	if o.resume {
		return codec.AppendResume(dst, tenant, namespace, stream, o.epoch, o.Offset)
	}
	return codec.AppendSubscribe(dst, tenant, namespace, stream, o.Start, 0, false)
}

// Position is a place in a stream: behind the last event that a subscription has handed out. Offsets count within an
// epoch, which ends when the broker forgets the stream's past, by a restart for instance.
type Position struct {
	Epoch  uint64
	Offset uint64 // of the next event
}

// FromPosition goes on where another subscription of the stream was, in this process or an earlier one: see
// [Subscription.Position]. Events that the broker no longer has are reported as a [Gap], so nothing is missed without
// notice. Subscribe fails with [ErrUnsupported] if the broker does not negotiate that.
func FromPosition(p Position) SubscribeOption {
	return func(o *subscribeOptions) {
		o.start = origin{Start: codec.Start{Kind: codec.StartOffset, Offset: p.Offset}, resume: true, epoch: p.Epoch}
	}
}

// Gap says that events were lost.
type Gap struct {
	Reason GapReason
	Lost   uint64 // number of events; 0 if nobody knows
}

// GapReason says why events were lost.
type GapReason = codec.GapReason

// The reasons. There may be others that this version does not know; treat them as GapUnknown.
const (
	GapUnknown   = codec.GapUnknown
	GapQueueFull = codec.GapQueueFull // the subscription's queue in the broker was full: its reader was too slow
	GapReclaimed = codec.GapReclaimed // the broker needed the memory of the queue, and its reader did not read
	GapExpired   = codec.GapExpired   // the position to resume at is no longer kept
	GapEpoch     = codec.GapEpoch     // the position to resume at is of another epoch; Lost is 0
	GapCorrupt   = codec.GapCorrupt   // a compressed batch could not be decompressed
)

// FromEarliest starts with the oldest event that the broker still has.
func FromEarliest() SubscribeOption {
	return func(o *subscribeOptions) { o.start = origin{Start: codec.Start{Kind: codec.StartEarliest}} }
}

// FromOffset starts with the event of that offset. Subscribe fails with a [CursorError] if the broker does not have
// it any more, or will not have it next.
func FromOffset(offset uint64) SubscribeOption {
	return func(o *subscribeOptions) {
		o.start = origin{Start: codec.Start{Kind: codec.StartOffset, Offset: offset}}
	}
}

// FromLatest starts with the next event. It is the default.
func FromLatest() SubscribeOption {
	return func(o *subscribeOptions) { o.start = origin{Start: codec.Start{Kind: codec.StartLatest}} }
}

// Subscription is one subscriber's stream of events. One goroutine at a time may read it; Close may be called from
// any. What is not read is held back by flow control: nothing is dropped on this side.
type Subscription struct {
	k   *conn
	id  uint64
	e   *eventStream
	ext codec.Extensions

	mu     sync.Mutex      // held while reading: Close takes the buffers back afterwards
	err    error           // why the subscription is over
	ctx    context.Context // the one that is watched; see bind
	unbind func() bool
	msg    codec.Message
	batch  Batch
	cursor codec.ItemCursor
	index  int
	gap    *Gap   // not handed out yet
	plain  []byte // the decompressed batch

	// Where the reader is; written by it alone. hasOffset says that the others mean something.
	hasOffset     atomic.Bool
	epoch, offset atomic.Uint64

	closed atomic.Bool
	leave  sync.Once
}

// Event is one event. Payload is a view that lives until the next call on the subscription.
type Event struct {
	Payload   []byte
	Offset    uint64 // meaningful if HasOffset
	HasOffset bool
	Gap       *Gap // what was lost between the previous event and this one; nil if nothing was, as far as the broker tells
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
	for _, opt := range opts {
		opt(&o)
	}
	s, err := c.subscribe(ctx, namespace, stream, o.start)
	if err != nil {
		return nil, fmt.Errorf("client: subscribing to %.80q/%.80q: %w", namespace, stream, err)
	}
	return s, nil
}

func (c *Client) subscribe(ctx context.Context, namespace, stream string, start origin) (*Subscription, error) {
	if err := checkNames(namespace, stream); err != nil {
		return nil, err
	}
	if n := len(start.request(nil, c.o.tenant, namespace, stream)) - codec.HeaderLen; n > c.o.maxFrame {
		return nil, fmt.Errorf("%w: subscribe of %d bytes, limit %d", ErrFrameTooLarge, n, c.o.maxFrame)
	}
	if c.ctx.Err() != nil {
		return nil, ErrClosed
	}
	bounded, cancel := c.bound(ctx)
	defer cancel()
	k, err := c.eventConn(bounded)
	if err != nil {
		return nil, err
	}
	// The exchange goes on when the caller gives up: only its end tells which event stream nobody wants any more.
	type result struct {
		s   *Subscription
		err error
	}
	done := make(chan result)
	timeout := c.o.requestTimeout
	if deadline, ok := ctx.Deadline(); ok {
		timeout = max(timeout, time.Until(deadline))
	}
	exchange := func() {
		ctx, cancel := context.WithTimeoutCause(c.ctx, timeout, ErrTimeout)
		defer cancel()
		s, err := k.subscribe(ctx, namespace, stream, start)
		if err != nil {
			k.unreserve()
		}
		select {
		case done <- result{s, err}:
		case <-bounded.Done():
			if s != nil {
				_ = s.Close()
			}
		}
	}
	if err := k.start(exchange); err != nil {
		k.unreserve()
		return nil, err
	}
	select {
	case r := <-done:
		return r.s, r.err
	case <-bounded.Done():
		return nil, context.Cause(bounded)
	}
}

func (k *conn) subscribe(ctx context.Context, namespace, stream string, start origin) (*Subscription, error) {
	request := func(out []byte) []byte {
		return start.request(out, k.c.o.tenant, namespace, stream)
	}
	// A start position needs a broker that knows them: others would silently begin at the tail (session.md, 4.3). So
	// does an epoch.
	positioned := start.Kind == codec.StartEarliest || start.Kind == codec.StartOffset
	pipelined := request
	if positioned {
		pipelined = nil
	}
	ctl, err := k.openControl(ctx, pipelined)
	if err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() {
		_ = ctl.s.Recv().SetReadDeadline(past)
		_ = ctl.s.Send().SetWriteDeadline(past)
	})
	defer stop()
	if start.resume && ctl.ext&codec.ExtGaps == 0 {
		ctl.abandon()
		return nil, fmt.Errorf("%w: resuming at a position", ErrUnsupported)
	}
	id, err := ctl.subscribe(positioned, request)
	ctl.abandon()
	if err == nil {
		var e *eventStream
		if e, err = k.awaitEvents(ctx, id); err == nil {
			return &Subscription{k: k, id: id, e: e, ext: ctl.ext}, nil
		}
	}
	if ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	return nil, err
}

// subscribe sends what has not been sent yet, finishes the stream and reads the reply.
func (ctl *control) subscribe(positioned bool, request func([]byte) []byte) (id uint64, err error) {
	if positioned {
		if ctl.flags&codec.FlagEventOffsets == 0 {
			return 0, fmt.Errorf("%w: start positions", ErrUnsupported)
		}
		if err := ctl.write(request(nil)); err != nil {
			return 0, err
		}
	}
	// The broker may have stopped reading already: that is not the end of its reply (session.md, section 3.3).
	_ = ctl.s.Send().Close()
	if err := ctl.read(); err != nil {
		return 0, err
	}
	m := &ctl.msg
	switch m.Type {
	case codec.MsgSubscribed:
		return m.SubscriptionID, nil
	case codec.MsgSubscribeCursorError:
		return 0, &CursorError{TooOld: m.Reason == codec.CursorTooOld, Requested: m.Requested, Available: m.Available}
	case codec.MsgError:
		return 0, &BrokerError{string(m.Text)}
	default:
		return 0, fmt.Errorf("%w: %v in answer to subscribe", ErrProtocol, m.Type)
	}
}

// ID returns the number that the broker gave the subscription.
func (s *Subscription) ID() uint64 { return s.id }

// NextBatch waits for the next frame of events. Mixing it with [Subscription.Next] skips what Next has not returned of
// its frame.
//
// It ends with the context, and can be called again afterwards: nothing is lost. It fails with [ErrEnded] when the
// broker finished the subscription, with [ErrClosed] after Close, and with the transport's error when the connection
// was lost.
func (s *Subscription) NextBatch(ctx context.Context) (Batch, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.index, s.cursor = 0, codec.ItemCursor{}
	err := s.nextBatch(ctx)
	if err == nil {
		if s.batch.HasOffset {
			s.offset.Store(s.batch.BaseOffset + uint64(s.batch.Len()))
		}
		s.batch.Gap, s.gap = s.gap, nil
	}
	return s.batch, err
}

// Position returns where the subscription is: behind the last event that was handed out, to go on from there with
// [FromPosition] when the subscription is over. It may be called at any time, and reports false if the broker does not
// tell positions, or has not yet.
func (s *Subscription) Position() (Position, bool) {
	return Position{Epoch: s.epoch.Load(), Offset: s.offset.Load()}, s.hasOffset.Load()
}

// Next waits for the next event. See [Subscription.NextBatch].
func (s *Subscription) Next(ctx context.Context) (Event, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for {
		if payload, ok := s.cursor.Next(); ok {
			ev := Event{Payload: payload, HasOffset: s.batch.HasOffset}
			if ev.HasOffset {
				ev.Offset = s.batch.BaseOffset + uint64(s.index)
				s.offset.Store(ev.Offset + 1)
			}
			s.index++
			ev.Gap, s.gap = s.gap, nil
			return ev, nil
		}
		if err := s.nextBatch(ctx); err != nil {
			return Event{}, err
		}
		s.index, s.cursor = 0, s.batch.items.Cursor()
	}
}

// nextBatch reads the next frame with events into s.batch.
func (s *Subscription) nextBatch(ctx context.Context) error {
	s.batch = Batch{}
	for {
		if s.err != nil {
			return s.err
		}
		if !s.e.fr.Ready() {
			if err := s.bind(ctx); err != nil {
				return err
			}
		}
		f, err := s.e.fr.Next()
		if err != nil {
			if err := s.readError(err); err != nil {
				return err
			}
			continue
		}
		if err := s.parse(f); err != nil {
			s.end(fmt.Errorf("%w: %w", ErrProtocol, err))
			continue
		}
		if s.batch.items.Len() > 0 || f.Header.Flags == codec.LayoutExtension && s.gap != nil {
			return nil
		}
	}
}

// bind makes the end of ctx wake a blocked read. It costs something only when the context ends differently from the
// last one, so that a loop with one context allocates nothing. Contexts themselves may not be comparable.
func (s *Subscription) bind(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return context.Cause(ctx)
	}
	if s.ctx != nil && s.ctx.Done() == ctx.Done() {
		return nil
	}
	if s.unbind != nil {
		s.unbind()
		_ = s.e.r.SetReadDeadline(never)
	}
	s.ctx, s.unbind = ctx, nil
	if ctx.Done() != nil {
		s.unbind = context.AfterFunc(ctx, func() { _ = s.e.r.SetReadDeadline(past) })
	}
	return nil
}

// readError deals with the failure of a read: it ends the subscription, unless it was the context that ended. It
// returns nil if the reader should look again, also for why the subscription is over.
func (s *Subscription) readError(err error) error {
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded):
		// A deadline that was set for an earlier context is none of this one's business.
		_ = s.e.r.SetReadDeadline(never)
		if s.ctx == nil || s.ctx.Err() == nil {
			return nil
		}
		err = context.Cause(s.ctx)
		s.ctx, s.unbind = nil, nil
		return err
	case s.closed.Load():
		s.end(ErrClosed)
	case errors.Is(err, io.EOF):
		s.end(ErrEnded)
	default:
		s.end(s.k.streamError("reading events", err))
	}
	return nil
}

// parse decodes one event frame: the four binary layouts, or the JSON forms that a broker may send (session.md, 4.3).
func (s *Subscription) parse(f quicx.Frame) error {
	payload := f.Bytes[codec.HeaderLen:]
	switch f.Header.Flags {
	case codec.LayoutShared, codec.LayoutSharedOffsets, codec.LayoutEvent, codec.LayoutEventOffsets:
		b, err := codec.ParseEventBatch(f.Header.Flags, payload)
		if err != nil {
			return err
		}
		if b.HasSubscriptionID && b.SubscriptionID != s.id {
			return fmt.Errorf("event for subscription %d on the stream of %d", b.SubscriptionID, s.id)
		}
		s.batch = Batch{items: b.Items, BaseOffset: b.BaseOffset, HasOffset: b.HasOffset}
		return nil
	case codec.LayoutJSON:
	case codec.LayoutExtension:
		return s.parseExtension(f)
	default:
		if err := f.Header.Flags.CheckNegotiated(s.ext); err != nil {
			return err
		}
		return fmt.Errorf("event frame with flags %#04x", uint16(f.Header.Flags))
	}
	m := &s.msg
	if err := codec.ParseMessage(payload, m); err != nil {
		return err
	}
	switch m.Type {
	case codec.MsgEvent:
		// One item in the form that all the others have. JSON events are rare: a copy does not matter.
		items, _, err := codec.ParseItems(codec.AppendItems(nil, [][]byte{m.Payload}))
		if err != nil {
			return err
		}
		s.batch = Batch{items: items, BaseOffset: m.Offset, HasOffset: m.HasOffset}
	case codec.MsgEventBatch:
		s.batch = Batch{items: m.Items, BaseOffset: m.Offset, HasOffset: m.HasOffset}
	default:
		return fmt.Errorf("%v on an event stream", m.Type)
	}
	return nil
}

// parseExtension decodes a frame of the extension gaps (docs/wire-extensions.md).
func (s *Subscription) parseExtension(f quicx.Frame) error {
	if err := f.Header.Flags.CheckNegotiated(s.ext); err != nil {
		return err
	}
	typ, body, err := codec.ParseExtension(f.Payload())
	if err != nil {
		return err
	}
	switch typ {
	case codec.ExtensionPosition:
		p, err := codec.ParsePosition(body)
		if err != nil {
			return err
		}
		s.epoch.Store(p.Epoch)
		s.offset.Store(p.Offset)
		s.hasOffset.Store(true)
	case codec.ExtensionGap:
		g, err := codec.ParseGap(body)
		if err != nil {
			return err
		}
		s.offset.Store(g.Next)
		s.lose(Gap{Reason: g.Reason, Lost: g.Lost})
	case codec.ExtensionEventS2:
		e, err := codec.ParseCompressedEvents(body)
		if err != nil {
			return err
		}
		items, ok := s.decompress(e.Compressed)
		if !ok { // its publisher's fault: the next batch is as good as ever
			s.offset.Store(e.BaseOffset + uint64(e.Count))
			s.lose(Gap{Reason: GapCorrupt, Lost: uint64(e.Count)})
			return nil
		}
		s.batch = Batch{items: items, BaseOffset: e.BaseOffset, HasOffset: s.ext&codec.ExtGaps != 0}
	default:
		return fmt.Errorf("%w: %d", codec.ErrExtensionType, typ)
	}
	return nil
}

// lose notes a loss, together with one that has not been handed out yet: only Next leaves some behind.
func (s *Subscription) lose(g Gap) {
	if s.gap != nil {
		if s.gap.Reason == GapEpoch {
			g = *s.gap
		} else if g.Reason != GapEpoch {
			g.Lost += s.gap.Lost
		}
	}
	s.gap = &g
}

// end makes err the answer to all further reads, and gives back what the subscription holds. s.mu is held.
func (s *Subscription) end(err error) {
	s.quit()
	s.err = err
	if s.unbind != nil {
		s.unbind()
		s.unbind = nil
	}
	s.e.fr.Close()
	s.batch, s.cursor = Batch{}, codec.ItemCursor{}
}

// quit gives the subscription's place back and tells the broker, at once (session.md, section 13, D27). It wakes a
// reader.
func (s *Subscription) quit() {
	s.leave.Do(func() {
		s.e.r.Cancel(0)
		s.k.unreserve()
	})
}

// Close ends the subscription. A read under way fails with [ErrClosed]. It may be called twice, and returns nil.
func (s *Subscription) Close() error {
	s.closed.Store(true)
	s.quit()
	s.mu.Lock()
	defer s.mu.Unlock()
	if !errors.Is(s.err, ErrClosed) {
		s.end(ErrClosed)
	}
	return nil
}
