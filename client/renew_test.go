package client_test

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"github.com/felix-mq/felix/client"
	"github.com/felix-mq/felix/codec"
	"github.com/felix-mq/felix/conformance/script"
)

// until waits for a state that comes without an event.
func (p *peer) until(what string, reached func() bool) {
	p.tb.Helper()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for !reached() {
		select {
		case <-tick.C:
		case <-p.ctx.Done():
			p.tb.Fatalf("%s: did not happen", what)
		}
	}
}

// renew begins to replace the publisher's stream. The function that it returns waits for the end.
func (p *peer) renew(pub *client.Publisher, conn *script.Conn, flags codec.Flags) (renewed func() error) {
	p.tb.Helper()
	renewed = do(p, func() error { return client.Renew(p.ctx, pub) })
	next, err := conn.AcceptControl()
	p.must(err)
	p.must(next.Auth(flags))
	return renewed
}

// expectBatch takes a batch with that many events.
func (p *peer) expectBatch(ctl *script.Control, events int) *script.Request {
	p.tb.Helper()
	r := expect(p, ctl, codec.MsgPublishBatch)
	if len(r.Payloads) != events {
		p.tb.Errorf("a batch of %d events, want %d", len(r.Payloads), events)
	}
	return r
}

// TestRenewalCoversSends replaces a stream while an event is being written without an acknowledgement. An empty batch
// in a layout that the broker knows covers it.
func TestRenewalCoversSends(t *testing.T) {
	for _, flags := range []codec.Flags{codec.KnownFlags, codec.OriginalV1Flags} {
		t.Run(fmt.Sprintf("flags %#x", flags), func(t *testing.T) {
			p := newPeer(t)
			c, conn, ctl := p.dialogue(flags)
			pub := c.Publisher("default", "demo")
			blocked := do(p, func() error { return pub.Send(p.ctx, make([]byte, 1<<20)) }) // more than the broker's window
			p.awaitBlocked(c)
			renewed := p.renew(pub, conn, flags)
			p.until("the renewal", func() bool { return client.Moving(pub) })
			p.expectBatch(ctl, 1)
			p.must(blocked())
			barrier := p.expectBatch(ctl, 0)
			if acked := barrier.Flags == codec.LayoutPublishAcked; acked != (flags&codec.FlagPublishAcked != 0) {
				t.Errorf("the empty batch has flags %#x", barrier.Flags)
			}
			p.must(ctl.Ack(barrier, ""))
			p.must(renewed())
			p.must(pub.Flush(p.ctx))
		})
	}
}

// TestRenewalNotesLostSends replaces a stream that the broker reads no further.
func TestRenewalNotesLostSends(t *testing.T) {
	p := newPeer(t)
	c, conn, ctl := p.dialogue(codec.KnownFlags)
	pub := c.Publisher("default", "demo")
	p.must(pub.Send(p.ctx, []byte("sent")))
	ctl.StopReading() // the client knows before it has its next stream
	renewed := p.renew(pub, conn, codec.KnownFlags)
	p.must(renewed())
	for _, flush := range []func(context.Context) error{pub.Flush, c.Flush} {
		if err := flush(p.ctx); !errors.Is(err, client.ErrInDoubt) {
			t.Errorf("the first Flush: %v", err)
		}
		p.must(flush(p.ctx))
	}
}

// TestFlushAcrossRenewal replaces a stream while the batch of a flush waits for its turn there. The flush ends when
// what was sent before is acknowledged.
func TestFlushAcrossRenewal(t *testing.T) {
	p := newPeer(t)
	c, conn, ctl := p.dialogue(codec.KnownFlags)
	pub, other := c.Publisher("default", "demo"), c.Publisher("default", "demo")
	p.must(pub.Send(p.ctx, []byte("sent")))
	blocked := do(p, func() error { return other.Send(p.ctx, make([]byte, 1<<20)) }) // more than the broker's window
	p.awaitBlocked(c)
	var answered atomic.Bool
	flushed := do(p, func() error {
		err := pub.Flush(p.ctx)
		if err == nil && !answered.Load() {
			return errors.New("it returned before the broker had answered")
		}
		return err
	})
	p.until("the flush", func() bool { return client.Owed(pub) == 1 })
	renewed := p.renew(pub, conn, codec.KnownFlags)
	p.until("the renewal", func() bool { return client.Moving(pub) })
	p.expectBatch(ctl, 1)
	p.expectBatch(ctl, 1)
	p.must(blocked())
	barrier := p.expectBatch(ctl, 0)
	answered.Store(true)
	p.must(ctl.Ack(barrier, ""))
	p.must(flushed())
	p.must(renewed())
}
