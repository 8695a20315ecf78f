package client

import (
	"context"
	"fmt"
	"time"

	"github.com/valyala/bytebufferpool"

	"github.com/felix-mq/felix/codec"
)

// never is the deadline that does not come.
var never time.Time

// Publisher publishes to one stream of the client's tenant. It is a cheap handle: it holds no connection of its own,
// and needs no closing. Events of one publisher are delivered in the order of its calls, as long as the caller makes
// one at a time; calls from several goroutines are carried out in some order.
type Publisher struct {
	c                 *Client
	namespace, stream string
	slot              *slot
	invalid           error // of the names
}

// Publisher returns a handle for a stream. Nothing is sent: a stream that does not exist shows at the first publish.
func (c *Client) Publisher(namespace, stream string) *Publisher {
	return &Publisher{
		c: c, namespace: namespace, stream: stream,
		slot:    c.publisherSlot(namespace, stream),
		invalid: checkNames(namespace, stream),
	}
}

// Publish sends one event and waits until the broker has offered it to every subscription. See [Publisher.PublishBatch].
func (p *Publisher) Publish(ctx context.Context, payload []byte) error {
	return p.publish(ctx, [][]byte{payload}, codec.AckPerMessage)
}

// PublishBatch sends the events as one batch, which is published as a unit, and waits until the broker has offered it
// to every subscription. The payloads are the caller's again when it returns.
//
// An error that matches [ErrInDoubt] means that the reply did not come, because the context ended or the stream or its
// connection was lost: the batch may have been published. A [BrokerError] without that is a refusal. Any other error
// means that the batch was not sent, or not in full, so that the broker could not carry it out.
func (p *Publisher) PublishBatch(ctx context.Context, payloads [][]byte) error {
	return p.publish(ctx, payloads, codec.AckPerBatch)
}

// Send sends one event without asking for an acknowledgement. See [Publisher.SendBatch].
func (p *Publisher) Send(ctx context.Context, payload []byte) error {
	return p.SendBatch(ctx, [][]byte{payload})
}

// SendBatch sends the events as one batch without asking for an acknowledgement. When it returns nil, QUIC has taken
// them over; nothing tells whether they arrive, or whether the stream exists. It waits while the broker pushes back.
// The payloads are the caller's again when it returns.
func (p *Publisher) SendBatch(ctx context.Context, payloads [][]byte) error {
	n, err := p.check(payloads)
	if err != nil {
		return err
	}
	r, err := p.slot.get(ctx)
	if err != nil {
		return err
	}
	b := bytebufferpool.Get()
	defer bytebufferpool.Put(b)
	b.B = p.appendBatch(b.B, r, 0, codec.AckNone, payloads, n)
	if err := r.writing.acquire(ctx); err != nil {
		return err
	}
	defer r.writing.release()
	return r.write(ctx, b.B, 0)
}

// check refuses locally what the broker could not read. It returns the length of the binary frame, so that its buffer
// can be grown in one step: the pool forgets large ones where most are small.
func (p *Publisher) check(payloads [][]byte) (frameLen int, err error) {
	if p.invalid != nil {
		return 0, p.invalid
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

func (p *Publisher) publish(ctx context.Context, payloads [][]byte, mode codec.AckMode) error {
	n, err := p.check(payloads)
	if err != nil {
		return err
	}
	r, err := p.slot.get(ctx)
	if err != nil {
		return err
	}
	c := getCall()
	defer callPool.Put(c)
	if err := r.expectAck(c); err != nil {
		return err
	}
	var limit time.Duration
	if _, ok := ctx.Deadline(); !ok {
		limit = p.c.o.requestTimeout
		c.timer.Reset(limit)
		defer c.timer.Stop()
	}
	if err := p.send(ctx, r, c, payloads, mode, n, limit); err != nil {
		r.forget(c)
		return err // the broker cannot have read it, so there is no doubt
	}
	err = nil
	select {
	case <-c.done:
	case <-ctx.Done():
		err = context.Cause(ctx)
	case <-c.timer.C:
		err = ErrTimeout
	}
	switch {
	case err != nil && r.forget(c):
		return fmt.Errorf("%w: %w", ErrInDoubt, err)
	case c.err != nil && !c.answered:
		return fmt.Errorf("%w: %w", ErrInDoubt, c.err)
	}
	return c.err
}

func (p *Publisher) send(ctx context.Context, r *requests, c *call, payloads [][]byte, mode codec.AckMode, frameLen int, limit time.Duration) error {
	b := bytebufferpool.Get()
	defer bytebufferpool.Put(b)
	if r.ctl.flags&codec.FlagPublishAcked != 0 {
		b.B = p.appendBatch(b.B, r, c.id, mode, payloads, frameLen)
	} else {
		b.B = codec.AppendPublishBatchJSON(b.B, p.c.o.tenant, p.namespace, p.stream, payloads, mode, c.id, true)
		if n := len(b.B) - codec.HeaderLen; n > p.c.o.maxFrame {
			return fmt.Errorf("%w: batch of %d bytes, limit %d", ErrFrameTooLarge, n, p.c.o.maxFrame)
		}
	}
	if err := r.writing.acquireUntil(ctx, c.timer.C); err != nil {
		return err
	}
	defer r.writing.release()
	return r.write(ctx, b.B, limit)
}
