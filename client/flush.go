package client

import (
	"context"
	"errors"
	"maps"
	"slices"

	"github.com/felix-mq/felix/codec"
)

// Flush waits until everything that was published before has its outcome: acknowledged, refused or in doubt. The
// callbacks of [Publisher.PublishAsync] have returned then. What has been gathered is sent at once, and what was sent
// without an acknowledgement has reached the broker.
//
// Flush fails with what nobody else hears of, since the last Flush of the client: with [ErrInDoubt] if some of what was
// sent without an acknowledgement was on a stream that was lost, or with the first failure of an event that was
// published without a callback. See [Publisher.Flush] for what one publisher lost. Other publishes may go on meanwhile
// and are not waited for. A context without a deadline waits as long as it takes.
func (c *Client) Flush(ctx context.Context) error {
	if !c.made() {
		return ErrNotMade
	}
	c.hurry()
	if err := c.publishes.wait(ctx); err != nil {
		return err
	}
	for _, s := range c.publishers {
		if err := s.cover(ctx); err != nil {
			return err
		}
	}
	return c.losses.take()
}

// Flush is [Client.Flush] of what this Publisher value has published. It fails for losses of its own alone, since its
// last Flush.
func (p *Publisher) Flush(ctx context.Context) error {
	if p == nil || p.c == nil {
		return ErrNotMade
	}
	p.hurry()
	if err := p.publishes.wait(ctx); err != nil {
		return err
	}
	slots := p.c.publishers
	if !p.c.o.roundRobin {
		slots = []*streamSlot{p.stableSlot}
	}
	for _, s := range slots {
		if err := s.cover(ctx); err != nil {
			return err
		}
	}
	p.sent.settle()
	return p.sent.losses.take()
}

// hurry makes all publishers send what they have gathered.
func (c *Client) hurry() {
	c.mu.Lock()
	gathering := slices.Collect(maps.Keys(c.batchers))
	c.mu.Unlock() // PublishAsync takes it while it holds the lock of its batcher
	for _, p := range gathering {
		p.hurry()
	}
}

// cover waits until the broker has read what was sent without an acknowledgement, or the stream is lost.
func (s *streamSlot) cover(ctx context.Context) error {
	for {
		r := s.live()
		if r == nil { // it may be being replaced, and its replacement waits for what was sent before
			if err := s.lock.acquire(ctx); err != nil {
				return err
			}
			s.lock.release()
			if r = s.live(); r == nil {
				return nil
			}
		}
		sends, p := r.uncovered()
		if p == nil {
			return nil
		}
		err := p.barrier(ctx, r)
		switch {
		case err == nil:
			r.cover(sends)
			return nil
		case errors.Is(err, errMoved): // its replacement has begun
			continue
		case r.broken():
			return nil
		}
		return err
	}
}

// barrier waits until the broker has read what was sent on a stream before. It fails if the stream is lost meanwhile:
// on another one it would prove nothing.
func (p *Publisher) barrier(ctx context.Context, r *requestStream) error {
	c := p.c.startCall(ctx)
	defer c.release()
	// An empty batch publishes nothing, and is acknowledged after what was sent on its stream before.
	_, err := p.exchangeOn(ctx, r, c, nil, codec.AckPerBatch, codec.HeaderLen)
	if _, refused := errors.AsType[*BrokerError](err); refused && !errors.Is(err, ErrInDoubt) {
		return nil // its stream does not exist, say: the answer is as good
	}
	return err
}

// Drain ends the client in order: publishes that begin from now on fail with [ErrClosed], those before get their
// outcome, as with [Client.Flush], and everything is closed. If ctx ends first, the rest is closed at once, as with
// [Client.Close].
func (c *Client) Drain(ctx context.Context) error {
	if !c.made() {
		return ErrNotMade
	}
	c.publishes.refuse()
	err := c.Flush(ctx)
	_ = c.Close() // returns nil
	return err
}
