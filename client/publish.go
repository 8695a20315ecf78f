package client

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"

	"github.com/valyala/bytebufferpool"

	"github.com/felix-mq/felix/codec"
	"github.com/felix-mq/felix/telemetry"
)

// Publisher publishes to one stream of the client's tenant. It is a cheap handle: it holds no connection of its own,
// and needs no closing. Its methods may be called from many goroutines; do not copy it. Events of one publisher are
// delivered in the order of its calls, as long as the caller makes one at a time; calls from several goroutines are
// carried out in some order.
//
// What the ways to publish wait for, and how their outcome is known:
//
//	Publish        the acknowledgement    returned
//	PublishAsync   a place in a batch     told to a callback, or by Flush
//	Send           QUIC                   not known; Flush says if some may be lost
//
// A publish that was sent when its stream or connection was lost, and has no acknowledgement, is sent again on the next
// one, in order and within its time, where the broker can tell that it has it already: on durable streams, if the
// broker has the extension producer (docs/protocol/extensions.md#producer) and not with [WhileDownFail]. Its caller
// hears the outcome as if nothing had happened. Any other is in doubt, and is not sent again. So is one of Send. A
// publish that was not sent does what [WithWhileDown] says.
type Publisher struct {
	c                 *Client
	namespace, stream string
	stableSlot        *streamSlot // of all publishes, unless they go round robin
	invalid           error       // of the names

	batch     batcher
	publishes inflight
	sent      sends
	notKept   atomic.Uint64 // the serial of the request stream whose broker keeps no record of what is published with p
}

// Publisher returns a handle for a stream. Nothing is sent: a stream that does not exist shows at the first publish.
func (c *Client) Publisher(namespace, stream string) *Publisher {
	if !c.made() {
		return &Publisher{}
	}
	return &Publisher{
		c: c, namespace: namespace, stream: stream,
		stableSlot: c.publisherSlot(namespace, stream),
		invalid:    checkNames(namespace, stream),
	}
}

// usable fails if nothing can be published with p.
func (p *Publisher) usable() error {
	if p == nil || p.c == nil {
		return ErrNotMade
	}
	return p.invalid
}

// slot returns the place of the stream to publish on.
func (p *Publisher) slot() *streamSlot {
	if p.c.o.roundRobin {
		return p.c.publishers[(p.c.nextPublisher.Add(1)-1)%uint32(len(p.c.publishers))]
	}
	return p.stableSlot
}

// Publish sends the events as one batch, which is published as a unit, and waits until the broker has offered it to
// every subscription. The payloads are the caller's again when it returns.
//
// An error that matches [ErrInDoubt] means that the reply did not come, because the context ended or the stream or its
// connection was lost for good: the batch may have been published. A [BrokerError] without that is a refusal. Any other
// error means that the batch was not sent, or not in full, so that the broker could not carry it out. [Retryable] tells
// whether another attempt is of use.
func (p *Publisher) Publish(ctx context.Context, payloads ...[]byte) error {
	mode := codec.AckPerBatch
	if len(payloads) == 1 {
		mode = codec.AckPerMessage
	}
	return p.publish(ctx, payloads, mode)
}

// Send sends the events as one batch without asking for an acknowledgement. When it returns nil, QUIC has taken
// them over, or the buffer of [WhileDownBuffer] has; nothing tells whether they arrive, or whether the stream exists,
// except that [Publisher.Flush] and [Client.Flush] fail where they may have been lost. It waits while the broker pushes
// back, at most the request timeout if ctx has no deadline. An error that matches [ErrInDoubt] means that the batch was
// being written when that ended: it is written to its end. The payloads are the caller's again when it returns.
func (p *Publisher) Send(ctx context.Context, payloads ...[]byte) (err error) {
	n, err := p.check(payloads)
	if err != nil {
		return err
	}
	span, err := p.begin()
	if err != nil {
		return err
	}
	defer span.end()
	if done := p.c.hooks.publish(ctx, p, payloads, false); done != nil {
		defer func() { done(err) }()
	}
	s, deadline := p.slot(), p.c.deadline(ctx)
	if err := p.awaitGathered(ctx, deadline); err != nil {
		return err
	}
	for {
		if s.mustQueue() {
			return s.enqueue(&queued{p: p, payloads: payloads, mode: codec.AckNone, frameLen: n})
		}
		r, err := s.get(ctx, deadline)
		if err != nil {
			return err
		}
		err = p.write(ctx, r, nil, codec.AckNone, payloads, n, deadline)
		if err == nil || errors.Is(err, ErrInDoubt) {
			return err
		}
		if err = s.again(ctx, r, err); err != nil {
			return err
		}
	}
}

// check refuses locally what the broker could not read. It returns the length of the binary frame, so that its buffer
// can be grown in one step: the pool forgets large ones where most are small.
func (p *Publisher) check(payloads [][]byte) (frameLen int, err error) {
	if err := p.usable(); err != nil {
		return 0, err
	}
	n, err := codec.PublishBatchLen(p.c.o.tenant, p.namespace, p.stream, payloads)
	if err != nil {
		return 0, fmt.Errorf("client: %w", err)
	}
	if n += 9; n > p.c.o.maxFrame { // with the prefix of an acknowledged batch
		return 0, fmt.Errorf("%w: batch of %d bytes, limit %d", ErrFrameTooLarge, n, p.c.o.maxFrame)
	}
	return codec.HeaderLen + n, nil
}

func (p *Publisher) publish(ctx context.Context, payloads [][]byte, mode codec.AckMode) (err error) {
	n, err := p.check(payloads)
	if err != nil {
		return err
	}
	span, err := p.begin()
	if err != nil {
		return err
	}
	defer span.end()
	if done := p.c.hooks.publish(ctx, p, payloads, true); done != nil {
		defer func() { done(err) }()
	}
	return p.exchange(ctx, p.slot(), payloads, mode, n)
}

// exchange publishes on the stream of a slot and waits for the acknowledgement.
func (p *Publisher) exchange(ctx context.Context, s *streamSlot, payloads [][]byte, mode codec.AckMode, frameLen int) error {
	c := p.c.startCall(ctx)
	defer c.release()
	if err := p.awaitGathered(ctx, c.deadline); err != nil {
		return err
	}
	for {
		if s.mustQueue() {
			return s.publishQueued(ctx, c.timer.C, &queued{p: p, payloads: payloads, mode: mode, frameLen: frameLen})
		}
		r, err := s.get(ctx, c.deadline)
		if err != nil {
			return err
		}
		sent, err := p.exchangeOn(ctx, r, c, payloads, mode, frameLen)
		if sent {
			return err
		}
		if err = s.again(ctx, r, err); err != nil {
			return err
		}
	}
}

// exchangeOn publishes on one stream and waits for the acknowledgement. If the batch was not sent, the broker cannot
// have read it.
func (p *Publisher) exchangeOn(ctx context.Context, r *requestStream, c *call, payloads [][]byte, mode codec.AckMode, frameLen int) (sent bool, err error) {
	p.prepare(r, c, payloads, mode, frameLen)
	if err := r.expectAck(c); err != nil {
		return false, err
	}
	if err = p.write(ctx, r, c, mode, payloads, frameLen, c.deadline); err == nil {
		err = p.await(ctx, r, c)
		return !c.unread || c.repeated, err
	}
	switch mine, sent := r.reclaim(c); {
	case mine:
		return errors.Is(err, ErrInDoubt), err
	case sent:
		return true, p.await(ctx, r, c)
	}
	<-c.done
	if errors.Is(err, ErrInDoubt) { // what ended it came first
		err = c.outcome()
		return !c.unread || c.repeated, err
	}
	return false, err
}

// await waits for the acknowledgement of a publish that was sent.
func (p *Publisher) await(ctx context.Context, r *requestStream, c *call) error {
	var err error
	select {
	case <-c.done:
	case <-ctx.Done():
		err = context.Cause(ctx)
	case <-c.timer.C:
		err = ErrTimeout
	}
	if err != nil && r.forget(c) {
		return fmt.Errorf("%w: %w", ErrInDoubt, err)
	}
	return c.outcome()
}

// again returns nil if a publish that failed on a stream before it was sent is to be tried on another one, and
// otherwise what it fails with.
func (s *streamSlot) again(ctx context.Context, r *requestStream, err error) error {
	switch {
	case !r.broken():
		return err
	case errors.Is(err, errMoved), errors.Is(err, errTokenOver): // nothing that the caller would want to know
		return context.Cause(ctx)
	case s.shared.policy != WhileDownFail && ctx.Err() == nil && errors.Is(err, ErrDisconnected):
		return nil
	}
	return err
}

// write sends a batch. Unless it fails with [ErrInDoubt], the broker cannot have read a batch that failed. Without an
// acknowledgement mode is AckNone, and c is nil. A deadline of 0 is none.
func (p *Publisher) write(ctx context.Context, r *requestStream, c *call, mode codec.AckMode, payloads [][]byte, frameLen int, deadline int64) error {
	b := bytebufferpool.Get()
	defer bytebufferpool.Put(b)
	start := telemetry.Start()
	b.B = p.appendFrame(b.B, r, c, mode, payloads, frameLen)
	if n := len(b.B) - codec.HeaderLen; n > p.c.o.maxFrame { // in JSON
		return fmt.Errorf("%w: batch of %d bytes, limit %d", ErrFrameTooLarge, n, p.c.o.maxFrame)
	}
	start = telemetry.Observe(telemetry.StageClientEncode, start)
	if err := r.turn(ctx, deadline); err != nil {
		return err
	}
	start = telemetry.Observe(telemetry.StageClientTurn, start)
	if c != nil && c.slot != nil {
		n, err := r.number(c)
		if err != nil {
			r.writing.release()
			return err
		}
		codec.PutSequence(b.B, n)
	}
	var sender *Publisher
	if mode == codec.AckNone {
		sender = p
	}
	err := r.write(ctx, b.B, deadline, sender)
	if err != nil {
		telemetry.Add(telemetry.ClientPublishErrors, 1)
		return err
	}
	telemetry.Observe(telemetry.StageClientWrite, start)
	telemetry.Add(telemetry.ClientPublishBatches, 1)
	telemetry.Add(telemetry.ClientPublishItems, len(payloads))
	telemetry.Add(telemetry.ClientPublishBytes, len(b.B))
	return nil
}

// appendFrame appends a batch in the layout that the stream's broker can read.
func (p *Publisher) appendFrame(b []byte, r *requestStream, c *call, mode codec.AckMode, payloads [][]byte, frameLen int) []byte {
	if mode == codec.AckNone || r.ctl.flags&codec.FlagPublishAcked != 0 {
		return p.appendBatch(b, r, c, mode, payloads, frameLen)
	}
	return codec.AppendPublishBatchJSON(b, p.c.o.tenant, p.namespace, p.stream, payloads, mode, c.id, true)
}
