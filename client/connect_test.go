package client_test

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/felix-mq/felix/client"
	"github.com/felix-mq/felix/codec"
	"github.com/felix-mq/felix/conformance/script"
	"github.com/felix-mq/felix/internal/dev"
	"github.com/felix-mq/felix/internal/relay"
	"github.com/felix-mq/felix/quicx"
)

func TestConnectOptions(t *testing.T) {
	good := []client.Option{client.WithTLS(&tls.Config{}), client.WithToken("t1", "token")}
	for _, tc := range []struct {
		name string
		opts []client.Option
		want string
	}{
		{"no TLS", []client.Option{client.WithToken("t1", "token")}, "WithTLS"},
		{"no token", []client.Option{client.WithTLS(&tls.Config{})}, "WithToken"},
		{"tenant is not UTF-8", append(good, client.WithToken("\xff", "token")), "not UTF-8"},
		{"token is not UTF-8", append(good, client.WithToken("t1", "\xff")), "not UTF-8"},
		{"publish connections", append(good, client.WithTransport(client.Transport{PublishConns: -1})), "publish connections"},
		{"event connections", append(good, client.WithTransport(client.Transport{EventConns: -1})), "event connections"},
		{"subscriptions", append(good, client.WithTransport(client.Transport{SubscriptionsPerConn: -1})), "subscriptions per connection"},
		{"frame size", append(good, client.WithTransport(client.Transport{MaxFrame: -1})), "maximum frame size"},
		{"request timeout", append(good, client.WithRequestTimeout(0)), "request timeout"},
		{"no hook", append(good, client.WithHooks(struct{}{})), "struct {}"},
		{"nil hook", append(good, client.WithHooks(nil)), "hook"},
		{"no logger", append(good, client.WithLogger(nil)), "logger"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if _, err := client.Connect(t.Context(), "127.0.0.1:1", tc.opts...); err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("got %v, want something about %q", err, tc.want)
			}
		})
	}
}

// TestAuth answers the first auth in every way there is.
func TestAuth(t *testing.T) {
	for _, tc := range []struct {
		name   string
		answer func(ctl *script.Control) error
		want   error // nil: connected
	}{
		{"auth_ok", func(ctl *script.Control) error { return ctl.Auth(codec.KnownFlags) }, nil},
		{"ok", (*script.Control).AuthLegacy, nil},
		{"unknown flags advertised", func(ctl *script.Control) error { return ctl.Auth(0xffff) }, nil},
		{"extra members and blanks", func(ctl *script.Control) error {
			payload := ` {"later":[1,{"x":null}], "server_flags" : 63 ,"type":"auth_ok"} `
			return ctl.Send(append(codec.AppendHeader(nil, codec.LayoutJSON, len(payload)), payload...))
		}, nil},
		{"in 7-byte writes", func(ctl *script.Control) error {
			return ctl.SendPieces(codec.AppendAuthOK(nil, codec.KnownFlags, 0, false), 7)
		}, nil},
		{"stopped reading, then auth_ok", func(ctl *script.Control) error {
			ctl.StopReading()
			return ctl.Send(codec.AppendAuthOK(nil, codec.KnownFlags, 0, false))
		}, nil},
		{"error", func(ctl *script.Control) error {
			err := ctl.Send(codec.AppendError(nil, "auth failed"))
			ctl.End()
			return err
		}, client.ErrAuth},
		{"error in other words", func(ctl *script.Control) error {
			return ctl.Send(codec.AppendError(nil, "who are you"))
		}, client.ErrAuth},
		{"FIN", func(ctl *script.Control) error { ctl.Finish(); return nil }, client.ErrDisconnected},
		{"RESET_STREAM", func(ctl *script.Control) error { ctl.Reset(); return nil }, errReset},
		{"FIN in the middle of a frame", func(ctl *script.Control) error {
			defer ctl.Finish()
			return ctl.Send(codec.AppendAuthOK(nil, 63, 0, false)[:20])
		}, client.ErrProtocol},
		{"FIN in the middle of a header", func(ctl *script.Control) error {
			defer ctl.Finish()
			return ctl.Send(codec.AppendAuthOK(nil, 63, 0, false)[:5])
		}, client.ErrProtocol},
		{"another message", func(ctl *script.Control) error {
			return ctl.Send(codec.AppendSubscribed(nil, 1))
		}, client.ErrProtocol},
		{"a binary frame", func(ctl *script.Control) error {
			return ctl.Send(codec.AppendPublishAckOK(nil, 1))
		}, client.ErrProtocol},
		{"malformed JSON", func(ctl *script.Control) error {
			return ctl.Send(append(codec.AppendHeader(nil, 0, 2), "{]"...))
		}, client.ErrProtocol},
		{"wrong magic", func(ctl *script.Control) error {
			return ctl.Send([]byte("HTTP/1.1 400 Bad Request\r\n"))
		}, client.ErrProtocol},
		{"oversized frame", func(ctl *script.Control) error {
			return ctl.Send(codec.AppendHeader(nil, 0, codec.DefaultMaxFrame+1000))
		}, client.ErrProtocol},
	} {
		t.Run(tc.name, func(t *testing.T) {
			p := newPeer(t)
			wait := begin(p, func() (*client.Client, error) {
				return client.Connect(p.ctx, p.Addr(), p.options()...)
			})
			_, ctl := p.acceptControl()
			p.must(tc.answer(ctl))
			c, err := wait()
			if err == nil {
				defer c.Close()
			}
			if !matches(err, tc.want) {
				t.Errorf("got %v, want %v", err, tc.want)
			}
			refused, ok := errors.AsType[*client.BrokerError](err)
			if ok != errors.Is(tc.want, client.ErrAuth) || ok && refused.Message == "" {
				t.Errorf("got %#v in %v", refused, err)
			}
		})
	}
}

func TestConnectGivesUp(t *testing.T) {
	reason := errors.New("reason")
	connect := func(p *peer, ctx context.Context, opts ...client.Option) func() error {
		return do(p, func() error {
			c, err := client.Connect(ctx, p.Addr(), p.options(opts...)...)
			if err == nil {
				c.Close()
			}
			return err
		})
	}
	t.Run("canceled before", func(t *testing.T) {
		p := newPeer(t)
		ctx, cancel := context.WithCancelCause(p.ctx)
		cancel(reason)
		if err := connect(p, ctx)(); !errors.Is(err, reason) {
			t.Errorf("got %v", err)
		}
	})
	t.Run("canceled while auth is not answered", func(t *testing.T) {
		p := newPeer(t)
		ctx, cancel := context.WithCancelCause(p.ctx)
		wait := connect(p, ctx)
		_, ctl := p.acceptControl()
		expect(p, ctl, codec.MsgAuth)
		cancel(reason)
		if err := wait(); !errors.Is(err, reason) {
			t.Errorf("got %v", err)
		}
	})
	t.Run("auth is never answered", func(t *testing.T) {
		patiently(t, 100*time.Millisecond, func(p *peer, limit time.Duration) bool {
			asked := p.meanwhile(func(ctl *script.Control) error {
				_, err := ctl.Expect(codec.MsgAuth)
				return err
			})
			if err := connect(p, context.Background(), client.WithRequestTimeout(limit))(); !errors.Is(err, client.ErrTimeout) {
				p.tb.Errorf("got %v", err)
			}
			return asked()
		})
	})
	t.Run("connection closed instead of an answer", func(t *testing.T) {
		p := newPeer(t)
		wait := connect(p, p.ctx)
		conn, ctl := p.acceptControl()
		expect(p, ctl, codec.MsgAuth)
		conn.ShutDown()
		if err := wait(); !errors.Is(err, net.ErrClosed) || !strings.Contains(err.Error(), "broker shutting down") {
			t.Errorf("got %v", err)
		}
	})
	t.Run("certificate of somebody else", func(t *testing.T) {
		p := newPeer(t)
		_, other, err := dev.SelfSigned()
		p.must(err)
		err = connect(p, p.ctx, client.WithTLS(&tls.Config{RootCAs: other}))()
		if !errors.Is(err, quicx.ErrHandshake) {
			t.Errorf("got %v", err)
		}
	})
	t.Run("nobody answers the handshake", func(t *testing.T) {
		p := newPeer(t)
		silent, err := net.ListenPacket("udp4", "127.0.0.1:0")
		p.must(err)
		defer silent.Close()
		_, err = client.Connect(context.Background(), silent.LocalAddr().String(),
			p.options(client.WithRequestTimeout(100*time.Millisecond))...)
		if !errors.Is(err, client.ErrTimeout) {
			t.Errorf("got %v", err)
		}
	})
}

// errReset stands for the reset of a stream by the peer.
var errReset = errors.New("stream reset by the peer")

func matches(err, want error) bool {
	if want == errReset { //nolint:errorlint // the value itself
		e, ok := errors.AsType[*quicx.StreamResetError](err)
		return ok && e.Remote
	}
	return errors.Is(err, want)
}

// call is one call of the API that waits for an answer.
type call struct {
	name    string
	changes bool
	do      func(ctx context.Context, c *client.Client) error
}

func calls() []call {
	return []call{
		{"Publish", true, func(ctx context.Context, c *client.Client) error {
			return c.Publisher("default", "demo").Publish(ctx, []byte("one"))
		}},
		{"PublishBatch", true, func(ctx context.Context, c *client.Client) error {
			return c.Publisher("default", "demo").Publish(ctx, batch("one", "", strings.Repeat("x", 5000))...)
		}},
		{"Put", true, func(ctx context.Context, c *client.Client) error {
			return c.Cache("default", "primary").Put(ctx, "key", []byte("value"), client.NoExpiry)
		}},
		{"Get", false, func(ctx context.Context, c *client.Client) error {
			_, err := c.Cache("default", "primary").Get(ctx, "key")
			if errors.Is(err, client.ErrMiss) {
				return nil
			}
			return err
		}},
		{"Subscribe", false, func(ctx context.Context, c *client.Client) error {
			sub, err := c.Subscribe(ctx, "default", "demo")
			if err == nil {
				sub.Close()
			}
			return err
		}},
	}
}

// TestCallsEnd ends each call while the broker has the request and does not answer. What changes something is in doubt
// then, whatever the reason, and the next call works.
func TestCallsEnd(t *testing.T) {
	reason := errors.New("reason")
	for _, tc := range []struct {
		name string
		end  func(c *client.Client, h held, cancel context.CancelCauseFunc)
		want error
		over bool // the client cannot be used any more
	}{
		{
			name: "canceled",
			end:  func(_ *client.Client, _ held, cancel context.CancelCauseFunc) { cancel(reason) },
			want: reason,
		},
		{
			name: "client closed",
			end:  func(c *client.Client, _ held, _ context.CancelCauseFunc) { c.Close() },
			want: client.ErrClosed,
			over: true,
		},
		{
			name: "connection closed",
			end:  func(_ *client.Client, h held, _ context.CancelCauseFunc) { h.conn.ShutDown() },
			want: net.ErrClosed,
		},
		{
			name: "replies reset",
			end:  func(_ *client.Client, h held, _ context.CancelCauseFunc) { h.ctl.Reset() },
			want: errReset,
		},
		{
			name: "FIN inside a reply",
			end: func(_ *client.Client, h held, _ context.CancelCauseFunc) {
				_ = h.ctl.Send(codec.AppendPublishAckOK(nil, 1)[:17])
				h.ctl.Finish()
			},
			want: client.ErrProtocol,
		},
		{
			name: "a reply to nothing",
			end: func(_ *client.Client, h held, _ context.CancelCauseFunc) {
				_ = h.ctl.Send(codec.AppendAuthOK(nil, codec.KnownFlags, 0, false))
			},
			want: client.ErrProtocol,
		},
		{
			name: "oversized reply",
			end: func(_ *client.Client, h held, _ context.CancelCauseFunc) {
				_ = h.ctl.Send(codec.AppendHeader(nil, 0, codec.DefaultMaxFrame+65))
			},
			want: client.ErrProtocol,
		},
	} {
		for _, call := range calls() {
			t.Run(call.name+"/"+tc.name, func(t *testing.T) {
				p := newPeer(t)
				n, requests := hold()
				p.serve(n)
				c := p.connect()
				ctx, cancel := context.WithCancelCause(p.ctx)
				defer cancel(nil)
				wait := do(p, func() error { return call.do(ctx, c) })
				tc.end(c, p.next(requests), cancel)
				err := wait()
				if !matches(err, tc.want) {
					t.Errorf("got %v, want %v", err, tc.want)
				}
				if errors.Is(err, client.ErrInDoubt) != call.changes {
					t.Errorf("in doubt: %v in %v", !call.changes, err)
				}
				wait = do(p, func() error { return call.do(p.ctx, c) })
				if tc.over {
					if err := wait(); !errors.Is(err, client.ErrClosed) || errors.Is(err, client.ErrInDoubt) {
						t.Errorf("after Close: %v", err)
					}
					return
				}
				answer(p, p.next(requests))
				if err := wait(); err != nil {
					t.Errorf("the next call: %v", err)
				}
			})
		}
	}
}

// TestCallsTimeOut is TestCallsEnd with limits of time.
func TestCallsTimeOut(t *testing.T) {
	for _, tc := range []struct {
		name      string
		ctx       func(p *peer, limit time.Duration) (context.Context, context.CancelFunc)
		ofRequest bool // the limit is the client's request timeout
		want      error
	}{
		{
			name: "deadline",
			ctx: func(p *peer, limit time.Duration) (context.Context, context.CancelFunc) {
				return context.WithTimeout(p.ctx, limit)
			},
			want: context.DeadlineExceeded,
		},
		{
			name: "request timeout",
			ctx: func(*peer, time.Duration) (context.Context, context.CancelFunc) {
				return context.Background(), func() {}
			},
			ofRequest: true,
			want:      client.ErrTimeout,
		},
		{
			name: "request timeout of a context without a deadline",
			ctx: func(*peer, time.Duration) (context.Context, context.CancelFunc) {
				return context.WithCancel(context.Background())
			},
			ofRequest: true,
			want:      client.ErrTimeout,
		},
	} {
		for _, call := range calls() {
			t.Run(call.name+"/"+tc.name, func(t *testing.T) {
				patiently(t, 100*time.Millisecond, func(p *peer, limit time.Duration) bool {
					n, requests := hold()
					p.serve(n)
					var opts []client.Option
					if tc.ofRequest {
						opts = append(opts, client.WithRequestTimeout(limit))
					}
					c := p.connect(opts...)
					ctx, cancel := tc.ctx(p, limit)
					defer cancel()
					err := do(p, func() error { return call.do(ctx, c) })()
					if !errors.Is(err, tc.want) {
						p.tb.Errorf("got %v, want %v", err, tc.want)
					}
					if len(requests) == 0 {
						return false // it may not have been sent
					}
					<-requests
					if errors.Is(err, client.ErrInDoubt) != call.changes {
						p.tb.Errorf("in doubt: %v in %v", !call.changes, err)
					}
					if tc.ofRequest && call.name == "Subscribe" {
						return true // the event stream of the next one, too, would have to be asked for within the limit
					}
					wait := do(p, func() error { return call.do(p.ctx, c) })
					answer(p, p.next(requests))
					if err := wait(); err != nil {
						p.tb.Errorf("the next call: %v", err)
					}
					return true
				})
			})
		}
	}
}

// answer carries out a request that was held.
func answer(p *peer, h held) {
	p.tb.Helper()
	switch h.Type {
	case codec.MsgCachePut:
		p.must(h.ctl.Send(codec.AppendCacheOK(nil, h.ID)))
	case codec.MsgCacheGet:
		p.must(h.ctl.CacheValue(h.Request, nil))
	case codec.MsgSubscribe:
		_, err := h.conn.OpenEvents(7)
		p.must(err)
		p.must(h.ctl.Send(codec.AppendSubscribed(nil, 7)))
	default:
		p.must(h.ctl.Ack(h.Request, ""))
	}
}

// TestCallsWithoutEffect makes calls that must not send anything.
func TestCallsWithoutEffect(t *testing.T) {
	reason := errors.New("reason")
	p := newPeer(t)
	n, requests := hold()
	p.serve(n)
	c := p.connect(client.WithTransport(client.Transport{MaxFrame: 1000}))
	canceled, cancel := context.WithCancelCause(p.ctx)
	cancel(reason)
	for _, call := range append(calls(), call{"Send", false, func(ctx context.Context, c *client.Client) error {
		return c.Publisher("default", "demo").Send(ctx, []byte("one"))
	}}) {
		if call.name == "PublishBatch" {
			continue // too large, which is found out first
		}
		if err := call.do(canceled, c); !errors.Is(err, reason) || errors.Is(err, client.ErrInDoubt) {
			t.Errorf("%s, canceled before: %v", call.name, err)
		}
	}

	ctx := p.ctx
	long, large := strings.Repeat("n", 65536), make([]byte, 1000)
	cache := c.Cache("default", "primary")
	_, badGet := cache.Get(ctx, "\xc3")
	_, longGet := cache.Get(ctx, strings.Repeat("k", 900))
	_, badSubscribe := c.Subscribe(ctx, "default", "\xed\xa0\x80")
	_, longSubscribe := c.Subscribe(ctx, "default", strings.Repeat("s", 990))
	for _, tc := range []struct {
		name string
		err  error
		want error
	}{
		{"publish, namespace not UTF-8", c.Publisher("a\xff", "demo").Publish(ctx, nil), client.ErrInvalidName},
		{"publish, stream not UTF-8", c.Publisher("default", "\xff").Publish(ctx), client.ErrInvalidName},
		{"publish, name too long", c.Publisher("default", long).Publish(ctx, nil), client.ErrInvalidName},
		{"send, stream not UTF-8", c.Publisher("default", "\xff").Send(ctx, nil), client.ErrInvalidName},
		{"put, cache not UTF-8", c.Cache("default", "\xff").Put(ctx, "key", nil, 0), client.ErrInvalidName},
		{"put, key not UTF-8", cache.Put(ctx, "\xff", nil, 0), client.ErrInvalidName},
		{"get, key not UTF-8", badGet, client.ErrInvalidName},
		{"subscribe, surrogate in the name", badSubscribe, client.ErrInvalidName},
		{"publish, too large", c.Publisher("default", "demo").Publish(ctx, large), client.ErrFrameTooLarge},
		{"send, too large", c.Publisher("default", "demo").Send(ctx, large[:500], large[:500]), client.ErrFrameTooLarge},
		{"put, too large", cache.Put(ctx, "key", large, client.NoExpiry), client.ErrFrameTooLarge},
		{"get, too large", longGet, client.ErrFrameTooLarge},
		{"subscribe, too large", longSubscribe, client.ErrFrameTooLarge},
	} {
		if !errors.Is(tc.err, tc.want) || errors.Is(tc.err, client.ErrInDoubt) {
			t.Errorf("%s: got %v, want %v", tc.name, tc.err, tc.want)
		}
	}

	// What is as large as the limit goes through, and is the first that the broker sees.
	fits := bytesThatFit(1000, "t1", "default", "demo")
	wait := do(p, func() error { return c.Publisher("default", "demo").Publish(ctx, fits) })
	h := p.next(requests)
	if len(h.Payloads) != 1 || len(h.Payloads[0]) != len(fits) {
		t.Errorf("the broker has seen %v with %d payloads", h.Type, len(h.Payloads))
	}
	answer(p, h)
	p.must(wait())
	if len(requests) != 0 {
		t.Errorf("%d more requests", len(requests))
	}
}

// bytesThatFit returns a payload that makes an acknowledged publish frame as large as the limit.
func bytesThatFit(limit int, names ...string) []byte {
	n := limit - 9 - 6 - 4 - 4
	for _, name := range names {
		n -= len(name)
	}
	return make([]byte, n)
}

// TestSilentPeer cuts the network under a subscription and a publish that wait.
func TestSilentPeer(t *testing.T) {
	patiently(t, 500*time.Millisecond, func(p *peer, idle time.Duration) bool {
		n, requests := hold()
		hook, subscribed := n.Hook, make(chan *script.Conn, 1)
		n.Hook = func(conn *script.Conn, ctl *script.Control, r *script.Request) (bool, error) {
			if r.Type == codec.MsgSubscribe {
				subscribed <- conn
				return false, nil
			}
			return hook(conn, ctl, r)
		}
		p.serve(n)
		silencer, err := relay.New(p.Addr())
		p.must(err)
		defer silencer.Close()
		// On a busy machine a connection may be idle for too long before it is cut.
		early := func(err error) bool {
			p.tb.Log("too early: ", err)
			return false
		}
		c, err := client.Connect(p.ctx, silencer.Addr(), p.options(client.WithTransport(client.Transport{IdleTimeout: idle, KeepAlive: idle / 5}))...)
		if err != nil {
			return early(err)
		}
		defer c.Close()
		sub, err := c.Subscribe(p.ctx, "default", "demo", client.WithoutResume())
		if err != nil {
			return early(err)
		}
		defer sub.Close()

		waitEvent := do(p, func() error { _, err := sub.Next(p.ctx); return err })
		published := make(chan error, 1)
		p.Go(func() { published <- c.Publisher("default", "demo").Publish(p.ctx, nil) })
		var conn *script.Conn
		select {
		case h := <-requests:
			conn = h.conn
		case err := <-published:
			return early(err)
		}
		silencer.Silence(true)
		for _, conn := range []*script.Conn{conn, <-subscribed} {
			select {
			case <-conn.Done():
				return early(net.ErrClosed)
			default:
			}
		}
		if err := waitEvent(); !errors.Is(err, quicx.ErrIdleTimeout) {
			p.tb.Errorf("Next: %v", err)
		}
		if err := <-published; !errors.Is(err, quicx.ErrIdleTimeout) || !errors.Is(err, client.ErrInDoubt) {
			p.tb.Errorf("Publish: %v", err)
		}
		return true
	})
}

// TestKeepAlive sees that a quiet connection outlives its idle timeout. On a busy machine keep-alives may be late.
func TestKeepAlive(t *testing.T) {
	patiently(t, 400*time.Millisecond, func(p *peer, idle time.Duration) bool {
		n, conns := script.NewNormal(), make(chan *script.Conn, 2)
		n.Hook = func(conn *script.Conn, _ *script.Control, _ *script.Request) (bool, error) {
			conns <- conn
			return false, nil
		}
		p.serve(n)
		c, err := client.Connect(p.ctx, p.Addr(), p.options(client.WithTransport(client.Transport{IdleTimeout: idle, KeepAlive: idle / 4}))...)
		if err != nil {
			return false
		}
		defer c.Close()
		pub := c.Publisher("default", "demo")
		if pub.Publish(p.ctx, nil) != nil {
			return false
		}
		conn := <-conns
		select {
		case <-conn.Done():
			return false
		case <-time.After(5 * idle / 2): // that nothing happens for so long is the test
		}
		return pub.Publish(p.ctx, nil) == nil && <-conns == conn
	})
}

func TestCloseTwice(t *testing.T) {
	p := newPeer(t)
	p.serve(script.NewNormal())
	c := p.connect()
	for range 2 {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	}
	if st := c.Stats(); st != (client.ConnStats{}) {
		t.Errorf("counters of a closed client: %+v", st)
	}
}

func TestStats(t *testing.T) {
	p := newPeer(t)
	p.serve(script.NewNormal())
	c := p.connect()
	before := c.Stats()
	p.must(c.Publisher("default", "demo").Publish(p.ctx, make([]byte, 10000)))
	if after := c.Stats(); before.BytesSent == 0 || after.BytesSent < before.BytesSent+10000 || after.PacketsReceived == 0 {
		t.Errorf("before %+v, after %+v", before, after)
	}
}
