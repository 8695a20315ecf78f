package client

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"strings"
	"time"

	"github.com/felix-mq/felix/codec"
)

// Request streams are replaced before their token ends, since the broker ends them then and whatever is in flight would
// be in doubt:
//
//	old stream   ──requests──┤ takes no more ── replies ── barrier ──┤ finished
//	new stream          auth ─┤                                      ├──requests──▶
//
// Publishes wait meanwhile, so that those on the new stream do not overtake those on the old one. Cache requests have
// no order and do not wait.

// tokenEnd returns when a token ends, as far as this side can read that; zero otherwise. The signature is the broker's
// to check.
func tokenEnd(token string) time.Time {
	_, rest, _ := strings.Cut(token, ".")
	payload, _, ok := strings.Cut(rest, ".")
	if !ok {
		return time.Time{}
	}
	text, err := base64.RawURLEncoding.DecodeString(payload)
	var claims map[string]json.RawMessage
	var seconds int64
	if err != nil || json.Unmarshal(text, &claims) != nil || json.Unmarshal(claims["exp"], &seconds) != nil || seconds <= 0 {
		return time.Time{}
	}
	return time.Unix(min(seconds, 1<<40), 0)
}

// Times of a renewal.
const (
	maxRenewAhead = time.Minute     // how long before its end a token is replaced, or a fifth of its life if that is less
	renewAgain    = time.Second     // the shortest pause between attempts
	renewUntil    = 2 * time.Minute // how long after its end a stream that the broker has left alive is still renewed
)

// put makes r the slot's stream, and has it replaced in time.
func (s *streamSlot) put(r *requestStream) {
	s.stream.Store(r)
	if r.ctl.ends.IsZero() {
		return
	}
	left := time.Until(r.ctl.ends)
	wait := max(left-maxRenewAhead, left*4/5)
	timer := time.AfterFunc(max(wait, renewAgain), func() { s.shared.c.start(func() { s.renew(r) }) })
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.renewal = timer; r.dead {
		timer.Stop()
	}
}

// renew replaces a stream by one with a newer token, as often as it takes.
func (s *streamSlot) renew(r *requestStream) {
	ctx := s.shared.c.ctx
	for !r.broken() && time.Since(r.ctl.ends) < renewUntil {
		if next := s.openNewer(ctx, r); next != nil {
			s.replace(ctx, r, next)
			return
		}
		if sleep(ctx, max(time.Until(r.ctl.ends)/4, renewAgain)) != nil {
			return
		}
	}
}

// openNewer opens a stream that outlives r on the same connection, or returns nil.
func (s *streamSlot) openNewer(ctx context.Context, r *requestStream) *requestStream {
	ctx, cancel := s.shared.c.bound(ctx)
	defer cancel()
	token, err := s.shared.c.token(ctx)
	if err != nil {
		return nil
	}
	if end := tokenEnd(token); !end.IsZero() && !end.After(r.ctl.ends) {
		return nil // the source has none yet
	}
	next, err := r.k.openRequestStreamWith(ctx, token, s)
	if err != nil {
		return nil
	}
	return next
}

// replace puts next in the place of r: after all that was sent on r, if the order matters.
func (s *streamSlot) replace(ctx context.Context, r, next *requestStream) {
	if s.lock.acquire(ctx) != nil {
		return
	}
	if !r.move() {
		s.lock.release()
		next.fail(errMoved) // r was lost meanwhile, and somebody else has replaced it
		return
	}
	if s.ordered {
		r.settleAll(ctx)
	}
	if err := s.install(next); err != nil {
		s.lock.release()
		return // r is lost, and so is the connection: somebody else replaces both
	}
	s.lock.release()
	if r.awaitIdle(ctx) != nil {
		return
	}
	if r.writing.acquire(ctx) != nil {
		return
	}
	defer r.writing.release()
	_ = r.ctl.s.Send().Close() // the broker finishes its half, which ends the reader
	_ = r.ctl.s.Recv().SetReadDeadline(time.Now().Add(r.k.c.o.requestTimeout))
}

// move makes the stream take no more requests. Those that were sent are still answered. It reports false if the stream
// took none already.
func (r *requestStream) move() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.err != nil {
		return false
	}
	r.err = errMoved
	close(r.done)
	return true
}

// settleAll waits until the broker has all that was sent, or the stream is lost. Publishes without an acknowledgement
// that it may not have are noted as lost.
func (r *requestStream) settleAll(ctx context.Context) {
	if r.writing.acquire(ctx) != nil { // after a write in progress; there will be no other
		return
	}
	sends, p := r.uncovered()
	var c *call
	if p != nil {
		c = r.barrier(p)
	}
	r.writing.release()
	idle := r.awaitIdle(ctx) == nil
	if p == nil {
		return
	}
	if idle && c != nil {
		<-c.done // about to be told, since its reply is not owed any more
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if idle && c != nil && c.answered {
		r.covered = max(r.covered, sends)
	} else {
		r.loseSendsLocked()
	}
}

// barrier sends an empty batch, whose acknowledgement comes after what was sent before: see [requestStream.awaitIdle].
// It returns nil if none will come. The caller has its turn.
func (r *requestStream) barrier(p *Publisher) *call {
	c := &call{done: make(chan struct{}, 1)}
	r.mu.Lock()
	if r.dead {
		r.mu.Unlock()
		return nil
	}
	r.nextID++
	c.id = r.nextID
	r.acks[c.id] = c
	r.mu.Unlock()
	frame := p.appendFrame(nil, r, c, codec.AckPerBatch, nil, codec.HeaderLen)
	n, err := r.ctl.s.Send().Write(frame)
	if r.writeError(n, frame, err) != nil {
		r.forget(c)
		return nil
	}
	return c
}
