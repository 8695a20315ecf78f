package client_test

import (
	"context"
	"crypto/tls"
	"errors"
	"sync"
	"testing"
	"time"

	"github.com/felix-mq/felix/client"
	"github.com/felix-mq/felix/client/felixtest"
	"github.com/felix-mq/felix/client/internal/clienttest"
	"github.com/felix-mq/felix/codec"
	"github.com/felix-mq/felix/internal/dev"
	"github.com/felix-mq/felix/quicx"
)

// TestGetsBehindAPutGivenUp gives up large puts halfway. The gets of others on the stream are answered all the same.
func TestGetsBehindAPutGivenUp(t *testing.T) {
	b := felixtest.Start(t)
	c := b.Connect(t, client.WithTransport(client.Transport{CacheStreams: 1}))
	h := c.Cache(felixtest.Namespace, felixtest.Cache)
	if err := h.Put(t.Context(), "k", []byte("v"), client.NoExpiry); err != nil {
		t.Fatal(err)
	}
	for round := range 10 {
		ctx, cancel := context.WithTimeout(t.Context(), time.Duration(1+round%4)*time.Millisecond)
		var wg sync.WaitGroup
		wg.Go(func() { _ = h.Put(ctx, "big", make([]byte, 4<<20), time.Minute) })
		for range 8 {
			wg.Go(func() {
				if v, err := h.Get(t.Context(), "k"); err != nil || string(v) != "v" {
					t.Errorf("%q, %v", v, err)
				}
			})
		}
		wg.Wait()
		cancel()
	}
}

// deafBroker starts a broker that answers auth and reads nothing after it.
func deafBroker(p *peer, opts ...client.Option) *client.Client {
	p.tb.Helper()
	cert, roots, err := dev.SelfSigned("localhost", "127.0.0.1")
	p.must(err)
	l, err := quicx.Listen("127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{cert}}, quicx.Config{})
	p.must(err)
	p.tb.Cleanup(func() { l.Close() })
	serve := func(s *quicx.Stream) {
		fr := quicx.NewFrameReader(s.Recv(), 0)
		defer fr.Close()
		if _, err := fr.Next(); err == nil {
			_, _ = s.Send().Write(codec.AppendAuthOK(nil, codec.KnownFlags, codec.KnownExtensions(), true))
		}
	}
	p.Go(func() {
		for {
			conn, err := l.Accept(p.ctx)
			if err != nil {
				return
			}
			p.Go(func() {
				for {
					s, err := conn.AcceptStream(p.ctx)
					if err != nil {
						return
					}
					serve(s)
				}
			})
		}
	})
	opts = append([]client.Option{
		client.WithTLS(&tls.Config{RootCAs: roots, ServerName: "localhost"}), client.WithToken("t1", "token"),
	}, opts...)
	c, err := client.Connect(p.ctx, l.Addr().String(), opts...)
	p.must(err)
	p.tb.Cleanup(func() { c.Close() })
	return c
}

// TestTimeoutsWithADeafBroker makes calls of all sizes without deadlines to a broker that reads nothing. Each ends by
// the request timeout, those that wait for others included.
func TestTimeoutsWithADeafBroker(t *testing.T) {
	const limit = 100 * time.Millisecond
	p := newPeer(t)
	c := deafBroker(p, client.WithTransport(client.Transport{CacheStreams: 1}), client.WithRequestTimeout(limit))
	h, pub := c.Cache("default", "primary"), c.Publisher("default", "demo")
	var wg sync.WaitGroup
	call := func(name string, f func() error) {
		wg.Go(func() {
			if err := do(p, f)(); !errors.Is(err, client.ErrTimeout) {
				t.Errorf("%s: %v", name, err)
			}
		})
	}
	background := context.Background()
	for _, size := range []int{10, 32 << 10, 100 << 10, 1 << 20} {
		for range 10 {
			call("Put", func() error { return h.Put(background, "k", make([]byte, size), client.NoExpiry) })
			call("Publish", func() error { return pub.Publish(background, make([]byte, size)) })
			call("PublishAsync", func() error { return clienttest.PublishAsync(background, pub, make([]byte, size)).Wait(background) })
		}
	}
	wg.Wait()
	call("Send", func() error { return pub.Send(background, make([]byte, 1<<20)) })
	wg.Wait()
}

// TestAcknowledgementsAtTheTimeout acknowledges asynchronous publishes just when their time is over: each has one
// outcome.
func TestAcknowledgementsAtTheTimeout(t *testing.T) {
	p := newPeer(t)
	n, requests := hold()
	p.serve(n)
	const limit, many = 40 * time.Millisecond, 100
	pub := p.connect(client.WithRequestTimeout(limit), alone()).Publisher("default", "demo")
	for round := range 20 {
		var futures [many]clienttest.Outcome
		began := time.Now()
		for i := range futures {
			futures[i] = clienttest.PublishAsync(p.ctx, pub, []byte("x"))
		}
		for i := range futures {
			if i == 0 {
				time.Sleep(time.Until(began.Add(limit + time.Duration(round-10)*time.Millisecond)))
			}
			h := p.next(requests)
			_ = h.ctl.Ack(h.Request, "")
		}
		for _, f := range futures {
			if err := f.Wait(p.ctx); err != nil && !errors.Is(err, client.ErrTimeout) {
				t.Fatal(err)
			}
		}
	}
}

// TestPublishAsyncWithoutACallback is a publish whose outcome nobody wants to know.
func TestPublishAsyncWithoutACallback(t *testing.T) {
	c := felixtest.Start(t).Connect(t)
	pub := c.Publisher(felixtest.Namespace, felixtest.Stream)
	pub.PublishAsync(t.Context(), []byte("x"), nil)
	if err := c.Flush(t.Context()); err != nil {
		t.Error(err)
	}
	c.Close()
	pub.PublishAsync(t.Context(), []byte("x"), nil)
}

// TestAsyncPublishesIntoTheBuffer publishes asynchronously while there is no connection: the buffer bounds that, not
// the window.
func TestAsyncPublishesIntoTheBuffer(t *testing.T) {
	p := newPeer(t)
	hook := &connWatcher{lost: make(chan struct{}, 1)}
	b := felixtest.Start(t)
	c := b.Connect(t, client.WithWhileDown(client.WhileDownBuffer), client.WithInFlight(2, 1<<20), client.WithHooks(hook),
		client.WithTransport(client.Transport{IdleTimeout: time.Second, KeepAlive: 300 * time.Millisecond}))
	pub := c.Publisher(felixtest.Namespace, felixtest.Stream)
	p.must(pub.Publish(p.ctx, []byte("x")))
	b.Kill()
	p.await("the loss of the connection", hook.lost)
	var futures []clienttest.Outcome
	for range 100 {
		futures = append(futures, clienttest.PublishAsync(p.ctx, pub, []byte("y")))
	}
	b.Revive(t)
	for _, f := range futures {
		p.must(f.Wait(p.ctx))
	}
}

// connWatcher hears of the first connection that is lost.
type connWatcher struct{ lost chan struct{} }

func (w *connWatcher) OnConnect(string)              {}
func (w *connWatcher) OnConnectFailed(string, error) {}
func (w *connWatcher) OnDisconnect(string, error) {
	select {
	case w.lost <- struct{}{}:
	default:
	}
}
