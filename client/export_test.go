package client

import "context"

// Retire makes the publisher's stream take no more requests, as if the broker had stopped reading it.
func Retire(p *Publisher) { p.stableSlot.stream.Load().retire(ErrDisconnected) }

// Renew replaces the publisher's stream, as before the end of its token.
func Renew(ctx context.Context, p *Publisher) error {
	r := p.stableSlot.stream.Load()
	next, err := r.k.openRequestStream(ctx, p.stableSlot)
	if err != nil {
		return err
	}
	p.stableSlot.replace(ctx, r, next)
	return nil
}

// Flushing reports whether publishes are taken out of the backlog.
func Flushing(p *Publisher) bool {
	p.stableSlot.backlogLock.Lock()
	defer p.stableSlot.backlogLock.Unlock()
	return p.stableSlot.flushing
}

// Moving reports whether the publisher's stream is being replaced.
func Moving(p *Publisher) bool { return p.stableSlot.live() == nil }

// Owed returns how many acknowledgements the publisher's stream waits for.
func Owed(p *Publisher) int {
	r := p.stableSlot.stream.Load()
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.acks)
}

// Opening reports whether somebody opens a stream for the publisher.
func Opening(p *Publisher) bool { return len(p.stableSlot.lock) > 0 }
