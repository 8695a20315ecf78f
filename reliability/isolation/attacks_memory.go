package isolation

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/klauspost/compress/s2"
	"github.com/quic-go/quic-go"

	"github.com/felix-mq/felix/client"
	"github.com/felix-mq/felix/codec"
	"github.com/felix-mq/felix/quicx"
)

// trickle subscribes n times over some connections, and reads so many bytes of each subscription every 100 ms.
func (a *attacker) trickle(ctx context.Context, conns, n int, window uint64, stream string, from codec.StartKind, read int) error {
	cfg := small()
	cfg.StreamWindow, cfg.StreamsHint = window, n/conns
	all, err := a.dials(ctx, conns, cfg)
	if err != nil {
		return err
	}
	a.crowd(ctx, n, 8, func(i int) error {
		c := all[i%len(all)]
		if err := a.subscribe(ctx, c, codec.KnownExtensions(), stream, from); err != nil {
			return err
		}
		events, err := c.AcceptUniStream(ctx)
		if err != nil {
			return err
		}
		buffer := make([]byte, read)
		a.repeat(ctx, 1, 100*time.Millisecond, func() error {
			_ = events.SetReadDeadline(time.Now().Add(time.Second))
			_, err := events.Read(buffer)
			return err
		})
		return nil
	})
	return nil
}

// publishAt publishes batches at a rate, of so many events each, until ctx ends.
func (a *attacker) publishAt(ctx context.Context, stream string, perSecond, batch, size int) error {
	c, err := a.connect(ctx)
	if err != nil {
		return err
	}
	pub, items := c.Publisher(namespace, stream), payloads(batch, size)
	a.repeat(ctx, 1, time.Second/time.Duration(perSecond), func() error { return pub.Send(ctx, items...) })
	return nil
}

func payloads(n, size int) [][]byte {
	items := make([][]byte, n)
	for i := range items {
		items[i] = bytes.Repeat([]byte{byte(i)}, size)
	}
	return items
}

func slowReaders(ctx context.Context, a *attacker) error {
	if err := a.trickle(ctx, 2, 36, 16<<10, streamEvents, codec.StartLatest, 1<<10); err != nil {
		return err
	}
	a.stands()
	return a.publishAt(ctx, streamEvents, 100, 40, 1<<10)
}

func tricklingReaders(ctx context.Context, a *attacker) error {
	if err := a.fill(ctx, streamDeep, 256, 64, 1<<10); err != nil {
		return err
	}
	if err := a.trickle(ctx, 4, 500, 512, streamDeep, codec.StartEarliest, 16); err != nil {
		return err
	}
	a.stands()
	return a.publishAt(ctx, streamDeep, 50, 16, 1<<10)
}

// fill publishes batches, and waits for the last one.
func (a *attacker) fill(ctx context.Context, stream string, batches, items, size int) error {
	c, err := a.connect(ctx)
	if err != nil {
		return err
	}
	pub, batch := c.Publisher(namespace, stream), payloads(items, size)
	for range batches {
		if err := pub.Send(ctx, batch...); err != nil {
			return err
		}
	}
	a.try(pub.Publish(ctx, batch...))
	return nil
}

// bomb is the frame of a compressed batch of one event, as large as a frame may unfold to.
func bomb() []byte {
	const size = 16 << 20
	list := codec.AppendItems(nil, [][]byte{make([]byte, size-8)})[4:] // without the count
	block := s2.EncodeBest(nil, list)
	frame := codec.AppendCompressedPublish(nil, 0, codec.AckNone, tenantA, namespace, streamEvents, 1, len(list), len(block))
	return append(frame, block...)
}

func (a *attacker) bombs(ctx context.Context, n int, every time.Duration) error {
	c, err := a.dial(ctx, quicx.Config{})
	if err != nil {
		return err
	}
	if err := a.known(ctx, c); err != nil {
		return err
	}
	s, err := a.open(ctx, c, codec.KnownExtensions())
	if err != nil {
		return err
	}
	b := bomb()
	for range n {
		if _, err := s.Send().Write(b); err != nil {
			return err
		}
		a.did.Add(1)
		if err := pause(ctx, every); err != nil {
			return nil //nolint:nilerr // the attack is over
		}
	}
	return nil
}

func bombs(ctx context.Context, a *attacker) error {
	conns, err := a.dials(ctx, 4, small())
	if err != nil {
		return err
	}
	a.crowd(ctx, 40, 4, func(i int) error { return a.subscribe(ctx, conns[i%len(conns)], 0, streamEvents, codec.StartLatest) })
	a.stands()
	for ctx.Err() == nil {
		a.try(a.bombs(ctx, 1000, 10*time.Millisecond))
		_ = pause(ctx, 100*time.Millisecond)
	}
	return nil
}

func bombsFromEarliest(ctx context.Context, a *attacker) error {
	a.try(a.bombs(ctx, 200, time.Millisecond))
	conns, err := a.dials(ctx, 4, small())
	if err != nil {
		return err
	}
	a.stands()
	a.crowd(ctx, 40, 4, func(i int) error { return a.subscribe(ctx, conns[i%len(conns)], 0, streamEvents, codec.StartEarliest) })
	return nil
}

// unfinished sends the beginning of a publish of that size on many streams.
func unfinished(size, sent int) func(context.Context, *attacker) error {
	return func(ctx context.Context, a *attacker) error {
		conns, err := a.dials(ctx, 12, small())
		if err != nil {
			return err
		}
		payload := codec.AppendPublishBatch(nil, tenantA, namespace, streamEvents, [][]byte{make([]byte, size)})[codec.HeaderLen:]
		frame := append(codec.AppendHeader(nil, codec.LayoutPublish, len(payload)), payload...)[:min(sent, len(payload)-1)]
		a.crowd(ctx, 12*60, 48, func(i int) error {
			ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
			defer cancel()
			c := conns[i%len(conns)]
			if i%2 == 0 {
				s, err := c.OpenUniStream(ctx)
				if err == nil {
					_ = s.SetWriteDeadline(time.Now().Add(5 * time.Second))
					_, err = s.Write(append(a.auth(0), frame...))
				}
				return err
			}
			s, err := c.OpenStream(ctx)
			if err == nil {
				_ = s.Send().SetWriteDeadline(time.Now().Add(5 * time.Second))
				_, err = s.Send().Write(append(a.auth(0), frame...))
			}
			return err
		})
		return nil
	}
}

func blockUnread(size int) func(context.Context, *attacker) error {
	return func(ctx context.Context, a *attacker) error {
		c, err := a.dial(ctx, small())
		if err != nil {
			return err
		}
		if err := a.subscribe(ctx, c, codec.KnownExtensions(), streamBlock, codec.StartLatest); err != nil {
			return err
		}
		batch := payloads(max(1, 4096/size), size)
		for range 20 {
			p, err := a.connect(ctx)
			if err != nil {
				return err
			}
			pub := p.Publisher(namespace, streamBlock)
			a.repeat(ctx, 4, 0, func() error { return pub.Publish(ctx, batch...) })
		}
		return nil
	}
}

// earliest makes subscriptions of a stream with a full replay of tiny events, and reads none.
func earliest(stream string, conns, each int) func(context.Context, *attacker) error {
	return func(ctx context.Context, a *attacker) error {
		batches := 2 << 10 // of 1.2 KB
		if stream == streamDeep {
			batches = 16 << 10
		}
		if err := a.fill(ctx, stream, batches, 64, 16); err != nil {
			return err
		}
		all, err := a.dials(ctx, conns, crowded())
		if err != nil {
			return err
		}
		a.crowd(ctx, conns*each, 64, func(i int) error {
			return a.subscribe(ctx, all[i%len(all)], codec.KnownExtensions(), stream, codec.StartEarliest)
		})
		return nil
	}
}

// crowded is for connections with thousands of streams, which nobody reads: none of them waits for another's credit.
func crowded() quicx.Config {
	cfg := small()
	cfg.StreamsHint = 4096
	return cfg
}

func subscriptions(ctx context.Context, a *attacker) error {
	conns, err := a.dials(ctx, 10, crowded())
	if err != nil {
		return err
	}
	if err := a.publishAt(ctx, streamEvents, 50, 1, 1<<10); err != nil {
		return err
	}
	a.crowd(ctx, 10*4090, 64, func(i int) error {
		return a.subscribe(ctx, conns[i%len(conns)], codec.KnownExtensions(), streamEvents, codec.StartLatest)
	})
	return nil
}

func fillBudget(ctx context.Context, a *attacker) error {
	for i := range fillers {
		c, err := a.connect(ctx)
		if err != nil {
			return err
		}
		pub, event := c.Publisher(namespace, filler(i)), make([]byte, 64<<10)
		a.repeat(ctx, 1, 10*time.Millisecond, func() error { return pub.Publish(ctx, event) })
	}
	return nil
}

func fillCache(size int) func(context.Context, *attacker) error {
	return func(ctx context.Context, a *attacker) error {
		var n atomic.Int64
		for range 4 {
			c, err := a.connect(ctx)
			if err != nil {
				return err
			}
			cache, value := c.Cache(namespace, cacheEntries), make([]byte, size)
			a.repeat(ctx, 8, 0, func() error { return cache.Put(ctx, fmt.Sprint("fill-", n.Add(1)), value, client.NoExpiry) })
		}
		return nil
	}
}

func watchers(ctx context.Context, a *attacker) error {
	c, err := a.connect(ctx)
	if err != nil {
		return err
	}
	cache, n := c.Cache(namespace, cacheEntries), 0
	a.repeat(ctx, 1, 5*time.Millisecond, func() error {
		n++
		return cache.Put(ctx, key(n%keys), nil, client.NoExpiry)
	})
	conns, err := a.dials(ctx, 10, crowded())
	if err != nil {
		return err
	}
	watch := codec.AppendCacheRequest(nil, &codec.CacheRequest{RequestID: 1, Op: codec.CacheWatch}, namespace, cacheEntries)
	a.crowd(ctx, 10*4000, 64, func(i int) error {
		ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
		defer cancel()
		s, err := a.open(ctx, conns[i%len(conns)], codec.KnownExtensions(), watch)
		if err != nil {
			return err
		}
		defer s.Recv().Cancel(0)
		if err := s.Send().Close(); err != nil {
			return err
		}
		return replies(ctx, s, 2)
	})
	return nil
}

func unreadReplies(ctx context.Context, a *attacker) error {
	c, err := a.connect(ctx)
	if err != nil {
		return err
	}
	if err := c.Cache(namespace, cacheEntries).Put(ctx, "large", make([]byte, 1<<20), client.NoExpiry); err != nil {
		return err
	}
	conns, err := a.dials(ctx, 10, small())
	if err != nil {
		return err
	}
	request := codec.AppendCacheGet(nil, tenantA, namespace, cacheEntries, "large", 1, true)
	a.crowd(ctx, 200, 32, func(i int) error {
		s, err := a.open(ctx, conns[i%len(conns)], codec.KnownExtensions())
		if err != nil {
			return err
		}
		a.repeat(ctx, 1, 10*time.Millisecond, func() error {
			_ = s.Send().SetWriteDeadline(time.Now().Add(time.Second))
			_, err := s.Send().Write(request)
			return err
		})
		return nil
	})
	return nil
}

// mute is a socket that sends nothing any more once it is closed for that.
type mute struct {
	net.PacketConn
	quiet atomic.Bool
}

// WriteTo implements [net.PacketConn].
func (m *mute) WriteTo(b []byte, to net.Addr) (int, error) {
	if m.quiet.Load() {
		return len(b), nil
	}
	return m.PacketConn.WriteTo(b, to)
}

// silent connects and subscribes with huge windows, and then acknowledges nothing.
func (a *attacker) silent(ctx context.Context) error {
	to, err := net.ResolveUDPAddr("udp", a.Addr)
	if err != nil {
		return err
	}
	socket, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		return err
	}
	m := &mute{PacketConn: socket}
	tr := &quic.Transport{Conn: m}
	const window = 1 << 36
	c, err := tr.Dial(ctx, to, a.tls, &quic.Config{
		InitialStreamReceiveWindow: window, MaxStreamReceiveWindow: window, InitialConnectionReceiveWindow: window, MaxConnectionReceiveWindow: window,
		MaxIncomingUniStreams: 100,
	})
	if err != nil {
		_ = tr.Close()
		return errors.Join(err, socket.Close())
	}
	a.atTheEnd(func() {
		m.quiet.Store(false)
		_ = c.CloseWithError(0, "")
		_ = tr.Close()
		_ = socket.Close()
	})
	s, err := c.OpenStreamSync(ctx)
	if err != nil {
		return err
	}
	subscribe := codec.AppendSubscribe(nil, tenantA, namespace, streamEvents, codec.Start{}, 0, false)
	if _, err := s.Write(append(a.auth(codec.KnownExtensions()), subscribe...)); err != nil {
		return err
	}
	if _, err := c.AcceptUniStream(ctx); err != nil { // the subscription stands
		return err
	}
	m.quiet.Store(true)
	return nil
}

func inlineWindows(ctx context.Context, a *attacker) error {
	a.crowd(ctx, 20, 4, func(int) error {
		ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
		defer cancel()
		return a.silent(ctx)
	})
	a.stands()
	return a.publishAt(ctx, streamEvents, 4000, 1, 1000)
}

func noStreamCredit(ctx context.Context, a *attacker) error {
	cfg := small()
	cfg.MaxStreams = -1
	conns, err := a.dials(ctx, 20, cfg)
	if err != nil {
		return err
	}
	for _, c := range conns {
		a.repeat(ctx, 200, 0, func() error { return a.subscribe(ctx, c, codec.KnownExtensions(), streamEvents, codec.StartLatest) })
	}
	return nil
}

func idleStreams(ctx context.Context, a *attacker) error {
	cfg := small()
	cfg.KeepAlive = 5 * time.Second
	conns, err := a.dials(ctx, 8, cfg)
	if err != nil {
		return err
	}
	a.crowd(ctx, 8*1024, 32, func(i int) error {
		ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
		defer cancel()
		s, err := a.open(ctx, conns[i%len(conns)], codec.KnownExtensions())
		if err != nil {
			return err
		}
		return replies(ctx, s, 1)
	})
	return nil
}

func jsonLarge(ctx context.Context, a *attacker) error {
	conns, err := a.dials(ctx, 5, quicx.Config{})
	if err != nil {
		return err
	}
	plain := codec.AppendPublish(nil, tenantA, namespace, streamEvents, make([]byte, 768<<10), codec.AckPerMessage, 1, true)
	members := fmt.Appendf(nil, `{"x":%q,`, bytes.Repeat([]byte{'x'}, 256<<10))
	text := append(members, plain[codec.HeaderLen+1:]...)
	frame := append(codec.AppendHeader(nil, codec.LayoutJSON, len(text)), text...)
	var once sync.Once
	for i := range 50 {
		a.repeat(ctx, 1, 50*time.Millisecond, func() error {
			s, err := a.open(ctx, conns[i%len(conns)], 0)
			if err != nil {
				return err
			}
			defer finish(s)
			if _, err := s.Send().Write(frame); err != nil {
				return err
			}
			err = replies(ctx, s, 2)
			if err != nil && !errors.Is(err, errRefused) {
				once.Do(func() { a.try(err) })
			}
			return err
		})
	}
	return nil
}
