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
func (a *attacker) trickle(ctx context.Context, conns, n int, window uint64, stream string, from codec.StartKind, read int) {
	cfg := small()
	cfg.StreamWindow, cfg.StreamsHint = window, n/conns
	all := a.dials(ctx, conns, cfg)
	a.crowd(ctx, n, 8, func(i int) {
		c := all[i%len(all)]
		a.subscribe(ctx, c, codec.KnownExtensions(), stream, from)
		events := must(c.AcceptUniStream(ctx))
		buffer := make([]byte, read)
		a.repeat(ctx, 1, 100*time.Millisecond, func() {
			_ = events.SetReadDeadline(time.Now().Add(time.Second))
			must(events.Read(buffer))
		})
	})
}

// publishAt publishes batches at a rate, of so many events each, until ctx ends.
func (a *attacker) publishAt(ctx context.Context, stream string, perSecond, batch, size int) {
	c := a.connect(ctx)
	pub, items := c.Publisher(namespace, stream), payloads(batch, size)
	a.repeat(ctx, 1, time.Second/time.Duration(perSecond), func() { check(pub.Send(ctx, items...)) })
}

func payloads(n, size int) [][]byte {
	items := make([][]byte, n)
	for i := range items {
		items[i] = bytes.Repeat([]byte{byte(i)}, size)
	}
	return items
}

func slowReaders(ctx context.Context, a *attacker) {
	a.trickle(ctx, 2, 36, 16<<10, streamEvents, codec.StartLatest, 1<<10)
	a.stands()
	a.publishAt(ctx, streamEvents, 100, 40, 1<<10)
}

func tricklingReaders(ctx context.Context, a *attacker) {
	a.fill(ctx, streamDeep, 256, 64, 1<<10)
	a.trickle(ctx, 4, 500, 512, streamDeep, codec.StartEarliest, 16)
	a.stands()
	a.publishAt(ctx, streamDeep, 50, 16, 1<<10)
}

// fill publishes batches, and waits for the last one.
func (a *attacker) fill(ctx context.Context, stream string, batches, items, size int) {
	c := a.connect(ctx)
	pub, batch := c.Publisher(namespace, stream), payloads(items, size)
	for range batches {
		check(pub.Send(ctx, batch...))
	}
	a.try(pub.Publish(ctx, batch...))
}

// bomb is the frame of a compressed batch of one event, as large as a frame may unfold to.
func bomb() []byte {
	const size = 16 << 20
	list := codec.AppendItems(nil, [][]byte{make([]byte, size-8)})[4:] // without the count
	block := s2.EncodeBest(nil, list)
	frame := codec.AppendCompressedPublish(nil, 0, codec.AckNone, tenantA, namespace, streamEvents, 1, len(list), len(block))
	return append(frame, block...)
}

func (a *attacker) bombs(ctx context.Context, n int, every time.Duration) {
	c := a.dial(ctx, quicx.Config{})
	a.known(ctx, c)
	s := a.open(ctx, c, codec.KnownExtensions())
	b := bomb()
	for range n {
		must(s.Send().Write(b))
		a.did.Add(1)
		if pause(ctx, every) != nil { // the attack is over
			return
		}
	}
}

func bombs(ctx context.Context, a *attacker) {
	conns := a.dials(ctx, 4, small())
	a.crowd(ctx, 40, 4, func(i int) { a.subscribe(ctx, conns[i%len(conns)], 0, streamEvents, codec.StartLatest) })
	a.stands()
	for ctx.Err() == nil {
		a.try(attempt(func() { a.bombs(ctx, 1000, 10*time.Millisecond) }))
		_ = pause(ctx, 100*time.Millisecond)
	}
}

func bombsFromEarliest(ctx context.Context, a *attacker) {
	a.try(attempt(func() { a.bombs(ctx, 200, time.Millisecond) }))
	conns := a.dials(ctx, 4, small())
	a.stands()
	a.crowd(ctx, 40, 4, func(i int) { a.subscribe(ctx, conns[i%len(conns)], 0, streamEvents, codec.StartEarliest) })
}

// unfinished sends the beginning of a publish of that size on many streams.
func unfinished(size, sent int) func(context.Context, *attacker) {
	return func(ctx context.Context, a *attacker) {
		conns := a.dials(ctx, 12, small())
		payload := codec.AppendPublishBatch(nil, tenantA, namespace, streamEvents, [][]byte{make([]byte, size)})[codec.HeaderLen:]
		frame := append(codec.AppendHeader(nil, codec.LayoutPublish, len(payload)), payload...)[:min(sent, len(payload)-1)]
		a.crowd(ctx, 12*60, 48, func(i int) {
			ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
			defer cancel()
			c := conns[i%len(conns)]
			var s *quicx.SendStream
			if i%2 == 0 {
				s = must(c.OpenUniStream(ctx))
			} else {
				s = must(c.OpenStream(ctx)).Send()
			}
			_ = s.SetWriteDeadline(time.Now().Add(5 * time.Second))
			must(s.Write(append(a.auth(0), frame...)))
		})
	}
}

func blockUnread(size int) func(context.Context, *attacker) {
	return func(ctx context.Context, a *attacker) {
		c := a.dial(ctx, small())
		a.subscribe(ctx, c, codec.KnownExtensions(), streamBlock, codec.StartLatest)
		batch := payloads(max(1, 4096/size), size)
		for range 20 {
			p := a.connect(ctx)
			pub := p.Publisher(namespace, streamBlock)
			a.repeat(ctx, 4, 0, func() { check(pub.Publish(ctx, batch...)) })
		}
	}
}

// earliest makes subscriptions of a stream with a full replay of tiny events, and reads none.
func earliest(stream string, conns, each int) func(context.Context, *attacker) {
	return func(ctx context.Context, a *attacker) {
		batches := 2 << 10 // of 1.2 KB
		if stream == streamDeep {
			batches = 16 << 10
		}
		a.fill(ctx, stream, batches, 64, 16)
		all := a.dials(ctx, conns, crowded())
		a.crowd(ctx, conns*each, 64, func(i int) {
			a.subscribe(ctx, all[i%len(all)], codec.KnownExtensions(), stream, codec.StartEarliest)
		})
	}
}

// crowded is for connections with thousands of streams, which nobody reads: none of them waits for another's credit.
func crowded() quicx.Config {
	cfg := small()
	cfg.StreamsHint = 4096
	return cfg
}

func subscriptions(ctx context.Context, a *attacker) {
	conns := a.dials(ctx, 10, crowded())
	a.publishAt(ctx, streamEvents, 50, 1, 1<<10)
	a.crowd(ctx, 10*4090, 64, func(i int) {
		a.subscribe(ctx, conns[i%len(conns)], codec.KnownExtensions(), streamEvents, codec.StartLatest)
	})
}

func fillBudget(ctx context.Context, a *attacker) {
	for i := range fillers {
		c := a.connect(ctx)
		pub, event := c.Publisher(namespace, filler(i)), make([]byte, 64<<10)
		a.repeat(ctx, 1, 10*time.Millisecond, func() { check(pub.Publish(ctx, event)) })
	}
}

func fillCache(size int) func(context.Context, *attacker) {
	return func(ctx context.Context, a *attacker) {
		var n atomic.Int64
		for range 4 {
			c := a.connect(ctx)
			cache, value := c.Cache(namespace, cacheEntries), make([]byte, size)
			a.repeat(ctx, 8, 0, func() { check(cache.Put(ctx, fmt.Sprint("fill-", n.Add(1)), value, client.NoExpiry)) })
		}
	}
}

func watchers(ctx context.Context, a *attacker) {
	c := a.connect(ctx)
	cache, n := c.Cache(namespace, cacheEntries), 0
	a.repeat(ctx, 1, 5*time.Millisecond, func() {
		n++
		check(cache.Put(ctx, key(n%keys), nil, client.NoExpiry))
	})
	conns := a.dials(ctx, 10, crowded())
	watch := codec.AppendCacheRequest(nil, &codec.CacheRequest{RequestID: 1, Op: codec.CacheWatch}, namespace, cacheEntries)
	a.crowd(ctx, 10*4000, 64, func(i int) {
		ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
		defer cancel()
		s := a.open(ctx, conns[i%len(conns)], codec.KnownExtensions(), watch)
		defer s.Recv().Cancel(0)
		check(s.Send().Close())
		replies(ctx, s, 2)
	})
}

func unreadReplies(ctx context.Context, a *attacker) {
	c := a.connect(ctx)
	check(c.Cache(namespace, cacheEntries).Put(ctx, "large", make([]byte, 1<<20), client.NoExpiry))
	conns := a.dials(ctx, 10, small())
	request := codec.AppendCacheGet(nil, tenantA, namespace, cacheEntries, "large", 1, true)
	a.crowd(ctx, 200, 32, func(i int) {
		s := a.open(ctx, conns[i%len(conns)], codec.KnownExtensions())
		a.repeat(ctx, 1, 10*time.Millisecond, func() {
			_ = s.Send().SetWriteDeadline(time.Now().Add(time.Second))
			must(s.Send().Write(request))
		})
	})
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
func (a *attacker) silent(ctx context.Context) {
	to := must(net.ResolveUDPAddr("udp", a.Addr))
	socket := must(net.ListenPacket("udp4", "127.0.0.1:0"))
	m := &mute{PacketConn: socket}
	tr := &quic.Transport{Conn: m}
	const window = 1 << 36
	c, err := tr.Dial(ctx, to, a.tls, &quic.Config{
		InitialStreamReceiveWindow: window, MaxStreamReceiveWindow: window, InitialConnectionReceiveWindow: window, MaxConnectionReceiveWindow: window,
		MaxIncomingUniStreams: 100,
	})
	if err != nil {
		_ = tr.Close()
		check(errors.Join(err, socket.Close()))
	}
	a.atTheEnd(func() {
		m.quiet.Store(false)
		_ = c.CloseWithError(0, "")
		_ = tr.Close()
		_ = socket.Close()
	})
	s := must(c.OpenStreamSync(ctx))
	subscribe := codec.AppendSubscribe(nil, tenantA, namespace, streamEvents, codec.Start{}, 0, false)
	must(s.Write(append(a.auth(codec.KnownExtensions()), subscribe...)))
	must(c.AcceptUniStream(ctx)) // the subscription stands
	m.quiet.Store(true)
}

func inlineWindows(ctx context.Context, a *attacker) {
	a.crowd(ctx, 20, 4, func(int) {
		ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
		defer cancel()
		a.silent(ctx)
	})
	a.stands()
	a.publishAt(ctx, streamEvents, 4000, 1, 1000)
}

func noStreamCredit(ctx context.Context, a *attacker) {
	cfg := small()
	cfg.MaxStreams = -1
	conns := a.dials(ctx, 20, cfg)
	for _, c := range conns {
		a.repeat(ctx, 200, 0, func() { a.subscribe(ctx, c, codec.KnownExtensions(), streamEvents, codec.StartLatest) })
	}
}

func idleStreams(ctx context.Context, a *attacker) {
	cfg := small()
	cfg.KeepAlive = 5 * time.Second
	conns := a.dials(ctx, 8, cfg)
	a.crowd(ctx, 8*1024, 32, func(i int) {
		ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
		defer cancel()
		s := a.open(ctx, conns[i%len(conns)], codec.KnownExtensions())
		replies(ctx, s, 1)
	})
}

func jsonLarge(ctx context.Context, a *attacker) {
	conns := a.dials(ctx, 5, quicx.Config{})
	plain := codec.AppendPublish(nil, tenantA, namespace, streamEvents, make([]byte, 768<<10), codec.AckPerMessage, 1, true)
	members := fmt.Appendf(nil, `{"x":%q,`, bytes.Repeat([]byte{'x'}, 256<<10))
	text := append(members, plain[codec.HeaderLen+1:]...)
	frame := append(codec.AppendHeader(nil, codec.LayoutJSON, len(text)), text...)
	var once sync.Once
	for i := range 50 {
		a.repeat(ctx, 1, 50*time.Millisecond, func() {
			s := a.open(ctx, conns[i%len(conns)], 0)
			defer finish(s)
			must(s.Send().Write(frame))
			err := attempt(func() { replies(ctx, s, 2) })
			if err != nil && !errors.Is(err, errRefused) {
				once.Do(func() { a.try(err) })
			}
			check(err)
		})
	}
}
