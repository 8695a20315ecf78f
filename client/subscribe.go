package client

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"os"
	"sync"

	"github.com/felix-mq/felix/codec"
	"github.com/felix-mq/felix/quicx"
)

// SubscribeOption changes one setting of a subscription.
type SubscribeOption func(*subscribeOptions)

type subscribeOptions struct{ start codec.Start }

// FromEarliest starts with the oldest event that the broker still has.
func FromEarliest() SubscribeOption {
	return func(o *subscribeOptions) { o.start = codec.Start{Kind: codec.StartEarliest} }
}

// FromOffset starts with the event of that offset. Subscribe fails with a [CursorError] if the broker does not have
// it any more, or will not have it next.
func FromOffset(offset uint64) SubscribeOption {
	return func(o *subscribeOptions) { o.start = codec.Start{Kind: codec.StartOffset, Offset: offset} }
}

// FromLatest starts with the next event. It is the default.
func FromLatest() SubscribeOption {
	return func(o *subscribeOptions) { o.start = codec.Start{Kind: codec.StartLatest} }
}

// Subscription is one subscriber's stream of events. One goroutine at a time may read it; Close may be called from
// any. What is not read is held back by flow control: nothing is dropped on this side.
type Subscription struct {
	k  *conn
	id uint64
	e  *eventStream

	mu     sync.Mutex // held while reading: Close takes the buffers back afterwards
	closed bool
	ctx    context.Context // the one that is watched; see bind
	unbind func() bool
	msg    codec.Message
	batch  Batch
	cursor codec.ItemCursor
	index  int

	leave sync.Once
}

// Event is one event. Payload is a view that lives until the next call on the subscription.
type Event struct {
	Payload   []byte
	Offset    uint64 // meaningful if HasOffset
	HasOffset bool
}

// Batch is the events of one frame. It is a view that lives until the next call on the subscription.
type Batch struct {
	items      codec.Items
	BaseOffset uint64 // of the first event, meaningful if HasOffset
	HasOffset  bool
}

// Len returns the number of events, at least 1.
func (b *Batch) Len() int { return b.items.Len() }

// Payloads yields each event's position in the batch and its payload.
func (b *Batch) Payloads() iter.Seq2[int, []byte] { return b.items.All() }

// Subscribe asks for the events of a stream, from the next one on unless an option says otherwise.
func (c *Client) Subscribe(ctx context.Context, namespace, stream string, opts ...SubscribeOption) (*Subscription, error) {
	var o subscribeOptions
	for _, opt := range opts {
		opt(&o)
	}
	if c.ctx.Err() != nil {
		return nil, ErrClosed
	}
	ctx, cancel := c.bound(ctx)
	defer cancel()
	k, err := c.eventConn(ctx)
	if err != nil {
		return nil, fmt.Errorf("client: subscribing to %s/%s: %w", namespace, stream, err)
	}
	s, err := k.subscribe(ctx, namespace, stream, o.start)
	if err != nil {
		k.unreserve()
		return nil, fmt.Errorf("client: subscribing to %s/%s: %w", namespace, stream, err)
	}
	return s, nil
}

func (k *conn) subscribe(ctx context.Context, namespace, stream string, start codec.Start) (*Subscription, error) {
	request := func(out []byte) []byte {
		return codec.AppendSubscribe(out, k.c.o.tenant, namespace, stream, start, 0, false)
	}
	// A start position needs a broker that knows them: others would silently begin at the tail (session.md, 4.3).
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
	id, err := ctl.subscribe(positioned, request)
	ctl.abandon()
	if err == nil {
		var e *eventStream
		if e, err = k.awaitEvents(ctx, id); err == nil {
			return &Subscription{k: k, id: id, e: e}, nil
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
		if _, err := ctl.s.Send().Write(request(nil)); err != nil {
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
	return s.batch, s.nextBatch(ctx)
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
			}
			s.index++
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
		if s.closed {
			return ErrClosed
		}
		if !s.e.fr.Ready() {
			if err := s.bind(ctx); err != nil {
				return err
			}
		}
		f, err := s.e.fr.Next()
		if err != nil {
			if err, again := s.readError(err); !again {
				return err
			}
			continue
		}
		if err := s.parse(f); err != nil {
			s.end()
			return fmt.Errorf("%w: %w", ErrProtocol, err)
		}
		if s.batch.items.Len() > 0 { // an empty frame is legal and means nothing
			return nil
		}
	}
}

// bind makes the end of ctx wake a blocked read. It costs something only when the context differs from the last one,
// so that a loop with one context allocates nothing.
func (s *Subscription) bind(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return context.Cause(ctx)
	}
	if s.ctx == ctx {
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

// readError maps the end of a read. A deadline that was set for an earlier context is none of this one's business.
func (s *Subscription) readError(err error) (_ error, again bool) {
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded):
		if s.ctx != nil && s.ctx.Err() != nil {
			err = context.Cause(s.ctx)
			s.ctx, s.unbind = nil, nil
			_ = s.e.r.SetReadDeadline(never)
			return err, false
		}
		_ = s.e.r.SetReadDeadline(never)
		return nil, true
	case s.k.c.ctx.Err() != nil:
		err = ErrClosed
	case !s.k.alive():
		err = s.k.lost()
	case errors.Is(err, io.EOF):
		err = ErrEnded
	default:
		err = fmt.Errorf("client: reading events: %w", err)
	}
	s.end()
	return err, false
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
	default:
		if err := f.Header.Flags.Check(); err != nil {
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

// end gives the subscription's place back and tells the broker, at once (session.md, section 13, D27).
func (s *Subscription) end() {
	s.leave.Do(func() {
		s.e.r.Cancel(0)
		s.k.unreserve()
	})
}

// Close ends the subscription. A read under way fails with [ErrClosed]. It may be called twice, and returns nil.
func (s *Subscription) Close() error {
	s.end()
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.closed {
		s.closed = true
		if s.unbind != nil {
			s.unbind()
		}
		s.e.fr.Close()
		s.batch, s.cursor = Batch{}, codec.ItemCursor{}
	}
	return nil
}
