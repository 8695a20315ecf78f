package client_test

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/felix-mq/felix/client"
	"github.com/felix-mq/felix/codec"
	"github.com/felix-mq/felix/conformance/script"
)

// keeping is a dialogue with a broker that remembers producers.
func (p *peer) keeping(more ...client.Option) (*client.Client, *script.Conn, *script.Control) {
	p.tb.Helper()
	more = append(more, client.WithBackoff(time.Millisecond, 10*time.Millisecond))
	wait := begin(p, func() (*client.Client, error) { return client.Connect(p.ctx, p.Addr(), p.options(more...)...) })
	conn, ctl := p.acceptControl()
	p.must(ctl.AuthExt(codec.KnownFlags, codec.ExtProducer))
	c, err := wait()
	p.must(err)
	p.tb.Cleanup(func() { c.Close() })
	return c, conn, ctl
}

// back accepts the client's next connection.
func (p *peer) back(ext codec.Extensions) (*script.Conn, *script.Control) {
	p.tb.Helper()
	conn, ctl := p.acceptControl()
	p.must(ctl.AuthExt(codec.KnownFlags, ext))
	return conn, ctl
}

// wantFrom reads a publish with an origin.
func wantFrom(p *peer, ctl *script.Control, payload string, repeated bool) *script.Request {
	p.tb.Helper()
	r := expect(p, ctl, codec.MsgPublishBatch)
	if r.Flags != codec.LayoutExtension || r.Payload() != payload || r.From.Repeated != repeated {
		p.tb.Fatalf("got %q with flags %#04x and origin %+v, want %q, repeated %v", r.Payload(), uint16(r.Flags), r.From, payload,
			repeated)
	}
	return r
}

// TestRepeatInOrder loses a connection with publishes of all kinds under way. They come again under their numbers and
// in their order, before those that were made meanwhile, and their callers hear how that ended.
func TestRepeatInOrder(t *testing.T) {
	p := newPeer(t)
	c, conn, ctl := p.keeping(alone())
	pub, other := c.Publisher("default", "demo"), c.Publisher("default", "other")
	outcomes := make(chan string, 10)
	async := func(pub *client.Publisher, payload string) {
		pub.PublishAsync(p.ctx, []byte(payload), func(err error) { outcomes <- fmt.Sprint(payload, " ", err) })
	}
	heard := func(want string) {
		t.Helper()
		select {
		case got := <-outcomes:
			if got != want {
				t.Errorf("heard %q, want %q", got, want)
			}
		case <-p.ctx.Done():
			t.Fatalf("did not hear %q", want)
		}
	}
	var first []*script.Request
	for _, name := range []string{"a", "b", "c"} {
		async(pub, name)
		first = append(first, wantFrom(p, ctl, name, false))
	}
	async(other, "d")
	first = append(first, wantFrom(p, ctl, "d", false))
	sync := do(p, func() error { return pub.Publish(p.ctx, []byte("e")) })
	first = append(first, wantFrom(p, ctl, "e", false))
	for i, r := range first[1:] {
		if r.From.Producer != first[0].From.Producer || r.From.Sequence <= first[i].From.Sequence {
			t.Errorf("origin %+v after %+v", r.From, first[i].From)
		}
	}
	p.must(ctl.Ack(first[1], "")) // b
	heard("b <nil>")
	conn.ShutDown()
	// Again lost, before it is answered.
	conn, ctl = p.back(codec.ExtProducer)
	wantFrom(p, ctl, "a", true)
	conn.ShutDown()
	_, ctl = p.acceptControl()
	later := do(p, func() error { return pub.Publish(p.ctx, []byte("f")) })
	p.must(ctl.AuthExt(codec.KnownFlags, codec.ExtProducer))
	for _, i := range []int{0, 2, 3, 4} {
		r := wantFrom(p, ctl, first[i].Payload(), true)
		if r.From.Producer != first[i].From.Producer || r.From.Sequence != first[i].From.Sequence || r.Stream != first[i].Stream {
			t.Errorf("%q came again as %+v, and was %+v", r.Payload(), r.From, first[i].From)
		}
		p.must(ctl.Ack(r, ""))
	}
	heard("a <nil>")
	heard("c <nil>")
	heard("d <nil>")
	p.must(sync())
	r := wantFrom(p, ctl, "f", false)
	if r.From.Sequence <= first[4].From.Sequence {
		t.Errorf("a new publish has the number %d", r.From.Sequence)
	}
	p.must(ctl.Ack(r, ""))
	p.must(later())
}

// TestRepeatBeforeOthers sends more again than the broker reads at once. Meanwhile nobody else uses the stream.
func TestRepeatBeforeOthers(t *testing.T) {
	p := newPeer(t)
	c, conn, ctl := p.keeping(alone())
	pub := c.Publisher("default", "demo")
	var outcomes []func() error
	large := string(make([]byte, 200<<10)) // a window has 256 KiB
	for i := range 5 {
		outcomes = append(outcomes, do(p, func() error { return pub.Publish(p.ctx, fmt.Append(nil, i, large)) }))
		expect(p, ctl, codec.MsgPublishBatch)
	}
	conn.ShutDown()
	_, ctl = p.back(codec.ExtProducer)
	r := expect(p, ctl, codec.MsgPublishBatch) // it sends
	for i := range 3 {
		outcomes = append(outcomes, do(p, func() error { return pub.Publish(p.ctx, fmt.Append(nil, 5+i)) }))
	}
	for i := range 8 {
		if i > 0 {
			r = expect(p, ctl, codec.MsgPublishBatch)
		}
		if got := r.Payload()[0] - '0'; i < 5 && int(got) != i || r.From.Repeated != (i < 5) {
			t.Errorf("publish %d is number %d, repeated %v", i, got, r.From.Repeated)
		}
		p.must(ctl.Ack(r, ""))
	}
	for _, wait := range outcomes {
		p.must(wait())
	}
}

// TestRepeatInDoubt loses a connection, and cannot tell afterwards what became of a publish. Whatever the reason, it is
// in doubt.
func TestRepeatInDoubt(t *testing.T) {
	for _, tc := range []struct {
		name string
		ends func(p *peer, cancel context.CancelFunc, c *client.Client)
	}{
		{"the producer is not known", func(p *peer, _ context.CancelFunc, _ *client.Client) {
			_, ctl := p.back(codec.ExtProducer)
			p.must(ctl.Ack(wantFrom(p, ctl, "x", true), codec.ProducerUnknownAck.Text))
		}},
		{"another refusal", func(p *peer, _ context.CancelFunc, _ *client.Client) {
			_, ctl := p.back(codec.ExtProducer)
			p.must(ctl.Ack(wantFrom(p, ctl, "x", true), codec.StorageFullAck.Text))
		}},
		{"a broker without the extension", func(p *peer, _ context.CancelFunc, _ *client.Client) { p.back(0) }},
		{"a broker without binary acknowledgements", func(p *peer, _ context.CancelFunc, _ *client.Client) {
			_, ctl := p.acceptControl()
			p.must(ctl.AuthExt(codec.KnownFlags&^codec.FlagPublishAcked, codec.ExtProducer))
			p.Go(func() {
				if r, err := ctl.Next(); err == nil {
					p.tb.Errorf("%q was sent with flags %#04x", r.Payload(), uint16(r.Flags))
					_ = ctl.Ack(r, "")
				}
			})
		}},
		{"no token is accepted", func(p *peer, _ context.CancelFunc, _ *client.Client) {
			_, ctl := p.acceptControl()
			expect(p, ctl, codec.MsgAuth)
			p.must(ctl.Send(codec.AppendError(nil, codec.AuthFailed.Text)))
			ctl.End()
		}},
		{"the caller goes", func(_ *peer, cancel context.CancelFunc, _ *client.Client) { cancel() }},
		{"the client is closed", func(_ *peer, _ context.CancelFunc, c *client.Client) { c.Close() }},
	} {
		t.Run(tc.name, func(t *testing.T) {
			p := newPeer(t)
			c, conn, ctl := p.keeping()
			ctx, cancel := context.WithCancel(p.ctx)
			defer cancel()
			wait := do(p, func() error { return c.Publisher("default", "demo").Publish(ctx, []byte("x")) })
			wantFrom(p, ctl, "x", false)
			conn.ShutDown()
			tc.ends(p, cancel, c)
			if err := wait(); !errors.Is(err, client.ErrInDoubt) {
				t.Errorf("got %v", err)
			}
		})
	}
}

// TestRepeatTimesOut waits for a broker that does not come back. Publishes of all kinds are in doubt when their time is
// over, and are not sent when it comes back afterwards.
func TestRepeatTimesOut(t *testing.T) {
	patiently(t, 300*time.Millisecond, func(p *peer, limit time.Duration) (reached bool) {
		c, conn, ctl := p.keeping(alone(), client.WithRequestTimeout(limit))
		pub := c.Publisher("default", "demo")
		async := make(chan error, 1)
		pub.PublishAsync(p.ctx, []byte("a"), func(err error) { async <- err })
		ctx := context.Background() // without a deadline
		if _, err := ctl.Next(); err != nil {
			return false
		}
		wait := do(p, func() error { return pub.Publish(ctx, []byte("b")) })
		if _, err := ctl.Next(); err != nil {
			return false
		}
		conn.ShutDown()
		conn, err := p.Accept() // which is not answered
		p.must(err)
		if err := errors.Join(<-async, wait()); !errors.Is(err, client.ErrInDoubt) || !errors.Is(err, client.ErrTimeout) {
			p.tb.Errorf("got %v", err)
		}
		conn.ShutDown()
		wait = do(p, func() error { return pub.Publish(p.ctx, []byte("c")) })
		_, ctl = p.acceptControl()
		if ctl.AuthExt(codec.KnownFlags, codec.ExtProducer) != nil {
			return false
		}
		r, err := ctl.Next()
		if err != nil {
			return false
		}
		if r.Payload() != "c" || r.From.Repeated {
			p.tb.Errorf("%q was sent, repeated %v", r.Payload(), r.From.Repeated)
		}
		p.must(ctl.Ack(r, ""))
		p.must(wait())
		return true
	})
}

// TestNotKept publishes to a stream that remembers no producers: what comes after the first acknowledgement has no
// origin, and is in doubt at once when its connection is lost. On another stream, and on the next connection, the
// client tries again.
func TestNotKept(t *testing.T) {
	p := newPeer(t)
	c, conn, ctl := p.keeping()
	pub, other := c.Publisher("default", "demo"), c.Publisher("default", "other")
	wait := do(p, func() error { return pub.Publish(p.ctx, []byte("a")) })
	r := wantFrom(p, ctl, "a", false)
	p.must(ctl.Send(codec.AppendPublishAckNotKept(nil, r.ID)))
	p.must(wait())
	wait = do(p, func() error { return other.Publish(p.ctx, []byte("b")) })
	p.must(ctl.Ack(wantFrom(p, ctl, "b", false), ""))
	p.must(wait())
	wait = do(p, func() error { return pub.Publish(p.ctx, []byte("c")) })
	if r := expect(p, ctl, codec.MsgPublishBatch); r.Flags != codec.LayoutPublishAcked {
		t.Errorf("flags %#04x", uint16(r.Flags))
	}
	conn.ShutDown()
	if err := wait(); !errors.Is(err, client.ErrInDoubt) {
		t.Errorf("got %v", err)
	}
	wait = do(p, func() error { return pub.Publish(p.ctx, []byte("d")) })
	_, ctl = p.back(codec.ExtProducer)
	p.must(ctl.Ack(wantFrom(p, ctl, "d", false), ""))
	p.must(wait())
}

// TestFailDoesNotRepeat has the policy that fails at once: a publish that was sent is in doubt when its connection is
// lost, and has no origin.
func TestFailDoesNotRepeat(t *testing.T) {
	p := newPeer(t)
	c, conn, ctl := p.keeping(client.WithWhileDown(client.WhileDownFail))
	wait := do(p, func() error { return c.Publisher("default", "demo").Publish(p.ctx, []byte("x")) })
	if r := expect(p, ctl, codec.MsgPublishBatch); r.Flags != codec.LayoutPublishAcked {
		t.Errorf("flags %#04x", uint16(r.Flags))
	}
	conn.ShutDown()
	if err := wait(); !errors.Is(err, client.ErrInDoubt) {
		t.Errorf("got %v", err)
	}
}

// TestRepeatWaitsForAnswers has the broker stop reading a stream, and answer later. What is published meanwhile waits
// for that on the next stream, so that nothing of the first one has to be sent again after it.
func TestRepeatWaitsForAnswers(t *testing.T) {
	p := newPeer(t)
	c, conn, ctl := p.keeping()
	pub := c.Publisher("default", "demo")
	first := do(p, func() error { return pub.Publish(p.ctx, []byte("a")) })
	r := wantFrom(p, ctl, "a", false)
	second := do(p, func() error { return pub.Publish(p.ctx, []byte("b")) })
	wantFrom(p, ctl, "b", false)
	client.Retire(pub)
	third := do(p, func() error { return pub.Publish(p.ctx, []byte("c")) })
	p.must(ctl.Ack(r, ""))
	p.must(first())
	next := make(chan *script.Control, 1)
	p.Go(func() {
		if ctl, err := conn.AcceptControl(); err == nil && ctl.AuthExt(codec.KnownFlags, codec.ExtProducer) == nil {
			next <- ctl
		}
	})
	select {
	case <-next:
		t.Fatal("the client opened a stream before the old one was answered")
	case <-time.After(50 * time.Millisecond): // enough to find it at times
	}
	ctl.End()
	select {
	case ctl = <-next:
	case <-p.ctx.Done():
		t.Fatal("the client opened no stream")
	}
	p.must(ctl.Ack(wantFrom(p, ctl, "b", true), ""))
	p.must(ctl.Ack(wantFrom(p, ctl, "c", false), ""))
	p.must(second())
	p.must(third())
}

// TestRenewRepeats replaces a stream, as before the end of its token, and loses it with a publish that was not
// answered. The replacement begins with that.
func TestRenewRepeats(t *testing.T) {
	p := newPeer(t)
	c, conn, ctl := p.keeping()
	pub := c.Publisher("default", "demo")
	first := do(p, func() error { return pub.Publish(p.ctx, []byte("a")) })
	wantFrom(p, ctl, "a", false)
	renewed := do(p, func() error { return client.Renew(p.ctx, pub) })
	next, err := conn.AcceptControl()
	p.must(err)
	p.must(next.AuthExt(codec.KnownFlags, codec.ExtProducer))
	for !client.Moving(pub) {
		time.Sleep(time.Millisecond)
	}
	second := do(p, func() error { return pub.Publish(p.ctx, []byte("b")) })
	ctl.End()
	p.must(next.Ack(wantFrom(p, next, "a", true), ""))
	p.must(first())
	p.must(next.Ack(wantFrom(p, next, "b", false), ""))
	p.must(errors.Join(second(), renewed()))
}

// TestUnreadIsNotRepeated ends the token of a stream with a publish that the broker has not read. It comes again on the
// next stream as if for the first time.
func TestUnreadIsNotRepeated(t *testing.T) {
	p := newPeer(t)
	c, conn, ctl := p.keeping()
	wait := do(p, func() error { return c.Publisher("default", "demo").Publish(p.ctx, []byte("x")) })
	first := wantFrom(p, ctl, "x", false)
	p.must(ctl.Send(codec.AppendError(nil, codec.AuthFailed.Text)))
	ctl.End()
	ctl, err := conn.AcceptControl()
	p.must(err)
	p.must(ctl.AuthExt(codec.KnownFlags, codec.ExtProducer))
	if r := wantFrom(p, ctl, "x", false); r.From.Sequence != first.From.Sequence {
		t.Errorf("it came again as number %d, and was %d", r.From.Sequence, first.From.Sequence)
	}
	conn.ShutDown()
	_, ctl = p.back(codec.ExtProducer)
	p.must(ctl.Ack(wantFrom(p, ctl, "x", true), ""))
	p.must(wait())
}

// TestRepeatForAnother has a caller open the stream on which what is lost is sent again, and the broker not read that.
// The caller waits no longer than it wants to, and what is lost is sent all the same.
func TestRepeatForAnother(t *testing.T) {
	p := newPeer(t)
	c, conn, ctl := p.keeping()
	pub := c.Publisher("default", "demo")
	var lost []func() error
	large := string(make([]byte, 200<<10)) // a window has 256 KiB
	for i := range 4 {
		lost = append(lost, do(p, func() error { return pub.Publish(p.ctx, fmt.Append(nil, i, large)) }))
		expect(p, ctl, codec.MsgPublishBatch)
	}
	client.Retire(pub)
	ctx, cancel := context.WithCancel(p.ctx)
	defer cancel()
	opens := do(p, func() error { return pub.Publish(ctx, []byte("x")) })
	for !client.Opening(pub) {
		time.Sleep(time.Millisecond)
	}
	ctl.End()
	next, err := conn.AcceptControl()
	p.must(err)
	p.must(next.AuthExt(codec.KnownFlags, codec.ExtProducer))
	r := expect(p, next, codec.MsgPublishBatch) // it sends
	cancel()
	if err := opens(); !errors.Is(err, context.Canceled) || errors.Is(err, client.ErrInDoubt) {
		t.Errorf("got %v", err)
	}
	later := do(p, func() error { return pub.Publish(p.ctx, []byte("4")) })
	for i := range 5 {
		if i > 0 {
			r = expect(p, next, codec.MsgPublishBatch)
		}
		if got := r.Payload()[0] - '0'; int(got) != i || r.From.Repeated != (i < 4) {
			t.Errorf("publish %d is number %d, repeated %v", i, got, r.From.Repeated)
		}
		p.must(next.Ack(r, ""))
	}
	for _, wait := range append(lost, later) {
		p.must(wait())
	}
}
