package client_test

import (
	"context"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/felix-mq/felix/client"
	"github.com/felix-mq/felix/codec"
	"github.com/felix-mq/felix/conformance/script"
	"github.com/felix-mq/felix/internal/buf"
	"github.com/felix-mq/felix/quicx"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// guard bounds a test that hangs. Nothing is measured by it.
const guard = time.Minute

// peer is a scripted broker, and the context of its test.
type peer struct {
	*script.Server
	tb  testing.TB
	ctx context.Context
}

// newPeer starts a broker that serves nobody yet. At the end of the test nothing may be left: no goroutine, no chunk.
func newPeer(tb testing.TB) *peer {
	tb.Helper()
	live, before := buf.Live(), goleak.IgnoreCurrent()
	ctx, cancel := context.WithTimeout(context.Background(), guard)
	s, err := script.Listen(ctx, quicx.Config{})
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		s.Close()
		cancel()
		goleak.VerifyNone(tb, before)
		if n := buf.Live() - live; n != 0 {
			tb.Errorf("%d chunks were not released", n)
		}
	})
	return &peer{Server: s, tb: tb, ctx: ctx}
}

// patiently runs a test of something that a limit of time ends. On a busy machine the limit may be over before the test
// has come to its point: attempt reports false then, and gets another peer and twice the time.
func patiently(t *testing.T, limit time.Duration, attempt func(p *peer, limit time.Duration) (reached bool)) {
	t.Helper()
	for end := 32 * limit; limit <= end; limit *= 2 {
		reached := false
		if !t.Run(limit.String(), func(t *testing.T) { reached = attempt(newPeer(t), limit) }) || reached {
			return
		}
	}
	t.Errorf("no attempt came to its point: the last limit was %v", limit/2)
}

// serve lets n serve all connections.
func (p *peer) serve(n *script.Normal) {
	p.Go(func() { n.Serve(p.Server) })
}

// options are what a client needs to come in, and more.
func (p *peer) options(more ...client.Option) []client.Option {
	return append([]client.Option{client.WithTLS(p.ClientTLS()), client.WithToken("t1", "token")}, more...)
}

// connect connects a client that is closed with the test. The broker has to be served.
func (p *peer) connect(more ...client.Option) *client.Client {
	p.tb.Helper()
	c, err := client.Connect(p.ctx, p.Addr(), p.options(more...)...)
	if err != nil {
		p.tb.Fatal(err)
	}
	p.tb.Cleanup(func() { c.Close() })
	return c
}

// dialogue connects a client by hand and returns the connection and the stream that it came with, where auth was
// answered with the flags given.
func (p *peer) dialogue(flags codec.Flags, more ...client.Option) (*client.Client, *script.Conn, *script.Control) {
	p.tb.Helper()
	wait := begin(p, func() (*client.Client, error) { return client.Connect(p.ctx, p.Addr(), p.options(more...)...) })
	conn, ctl := p.acceptControl()
	p.must(ctl.Auth(flags))
	c, err := wait()
	p.must(err)
	p.tb.Cleanup(func() { c.Close() })
	return c, conn, ctl
}

// acceptControl accepts the next connection and its first stream.
func (p *peer) acceptControl() (*script.Conn, *script.Control) {
	p.tb.Helper()
	conn, err := p.Accept()
	p.must(err)
	ctl, err := conn.AcceptControl()
	p.must(err)
	return conn, ctl
}

// subscribe makes the client subscribe by hand, with a connection and an id of its own. The subscription ends with its
// event stream.
func (p *peer) subscribe(c *client.Client, id uint64, opts ...client.SubscribeOption) (*client.Subscription, *script.Conn, *script.Events) {
	p.tb.Helper()
	wait := begin(p, func() (*client.Subscription, error) {
		return c.Subscribe(p.ctx, "default", "demo", append(opts, client.WithoutResume())...)
	})
	conn, ctl := p.acceptControl()
	ev := p.subscribed(conn, ctl, id)
	sub, err := wait()
	p.must(err)
	p.tb.Cleanup(func() { sub.Close() })
	return sub, conn, ev
}

// subscribed answers auth and subscribe on a stream.
func (p *peer) subscribed(conn *script.Conn, ctl *script.Control, id uint64) *script.Events {
	p.tb.Helper()
	p.must(ctl.Auth(codec.KnownFlags))
	expect(p, ctl, codec.MsgSubscribe)
	ev, err := conn.OpenEvents(id)
	p.must(err)
	p.must(ctl.Send(codec.AppendSubscribed(nil, id)))
	ctl.Finish()
	return ev
}

// meanwhile takes the next connection and its first stream through some steps while the test runs. The function that it
// returns reports whether they are done.
func (p *peer) meanwhile(steps func(ctl *script.Control) error) (done func() bool) {
	var ok atomic.Bool
	p.Go(func() {
		conn, err := p.Accept()
		if err != nil {
			return
		}
		ctl, err := conn.AcceptControl()
		if err != nil {
			return
		}
		ok.Store(steps(ctl) == nil)
	})
	return ok.Load
}

func (p *peer) must(err error) {
	p.tb.Helper()
	if err != nil {
		p.tb.Fatal(err)
	}
}

// await waits for an event that has to come.
func (p *peer) await(what string, c <-chan struct{}) {
	p.tb.Helper()
	select {
	case <-c:
	case <-p.ctx.Done():
		p.tb.Fatalf("%s: did not happen", what)
	}
}

func expect(p *peer, ctl *script.Control, t codec.MessageType) *script.Request {
	p.tb.Helper()
	r, err := ctl.Expect(t)
	p.must(err)
	return r
}

// begin calls f while the test runs. The function that it returns waits for the result.
func begin[T any](p *peer, f func() (T, error)) func() (T, error) {
	type result struct {
		value T
		err   error
	}
	c := make(chan result, 1)
	go func() {
		v, err := f()
		c <- result{v, err}
	}()
	return func() (T, error) {
		p.tb.Helper()
		select {
		case r := <-c:
			return r.value, r.err
		case <-time.After(guard): // longer than any context in here
			p.tb.Fatal("a call did not return")
			panic("unreachable")
		}
	}
}

// do is begin for calls that return an error alone.
func do(p *peer, f func() error) func() error {
	wait := begin(p, func() (struct{}, error) { return struct{}{}, f() })
	return func() error {
		p.tb.Helper()
		_, err := wait()
		return err
	}
}

// held is a request that a broker has received and does not answer.
type held struct {
	conn *script.Conn
	ctl  *script.Control
	*script.Request
}

// hold makes a broker hand every request to the test instead of answering it.
func hold() (*script.Normal, <-chan held) {
	n := script.NewNormal()
	c := make(chan held, 1024)
	n.Hook = func(conn *script.Conn, ctl *script.Control, r *script.Request) (bool, error) {
		c <- held{conn, ctl, r}
		return true, nil
	}
	return n, c
}

func (p *peer) next(requests <-chan held) held {
	p.tb.Helper()
	select {
	case h := <-requests:
		return h
	case <-p.ctx.Done():
		p.tb.Fatal("no request came")
		panic("unreachable")
	}
}

func batch(payloads ...string) [][]byte {
	b := make([][]byte, 0, len(payloads))
	for _, s := range payloads {
		b = append(b, []byte(s))
	}
	return b
}

// alone makes each event a batch of its own.
func alone() client.Option { return client.WithBatching(client.Batching{MaxEvents: 1}) }
