package isolation

import (
	"context"
	"crypto/ed25519"
	"encoding/base64"
	"fmt"
	"math/rand/v2"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/quic-go/quic-go"

	"github.com/felix-mq/felix/auth"
	"github.com/felix-mq/felix/client"
	"github.com/felix-mq/felix/codec"
	"github.com/felix-mq/felix/quicx"
)

// takeConnections makes connections with a subscription each, and keeps them.
func takeConnections(n int) func(context.Context, *attacker) {
	return func(ctx context.Context, a *attacker) {
		cfg := small()
		cfg.KeepAlive = 5 * time.Second
		a.crowd(ctx, n, 4, func(int) {
			c := a.dial(ctx, cfg)
			a.subscribe(ctx, c, codec.KnownExtensions(), streamOther, codec.StartLatest)
		})
	}
}

func unauthenticated(ctx context.Context, a *attacker) {
	held := make(chan *quicx.Conn, 100)
	a.stands()
	a.repeat(ctx, 4, 10*time.Millisecond, func() {
		ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
		defer cancel()
		c := must(quicx.Dial(ctx, a.Addr, a.tls, small()))
		for {
			select {
			case held <- c:
				return
			case old := <-held:
				_ = old.Close(0, "")
			}
		}
	})
	a.atTheEnd(func() {
		for {
			select {
			case c := <-held:
				_ = c.Close(0, "")
			default:
				return
			}
		}
	})
}

// handshakes come from a network of their own, as those of a stranger do: the bound for each network is not B's.
func handshakes(ctx context.Context, a *attacker) {
	to := must(net.ResolveUDPAddr("udp", a.Addr))
	for i := range 8 {
		socket := must(net.ListenPacket("udp4", fmt.Sprintf("127.66.0.%d:0", i+1)))
		tr := &quic.Transport{Conn: socket}
		a.atTheEnd(func() {
			_ = tr.Close()
			_ = socket.Close()
		})
		a.repeat(ctx, 1, 0, func() {
			ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
			defer cancel()
			c := must(tr.Dial(ctx, to, a.tls, nil))
			check(c.CloseWithError(0, ""))
		})
	}
}

// tokens makes tokens for a flood, and says whether they are valid.
type tokens func(a *attacker) (all []string, valid bool)

// authFlood opens streams with tokens, 200 per second.
func authFlood(of tokens) func(context.Context, *attacker) {
	return func(ctx context.Context, a *attacker) {
		all, valid := of(a)
		a.stands()
		var n atomic.Int64
		for range 4 {
			var mu sync.Mutex
			var c *quicx.Conn
			conn := func(ctx context.Context) *quicx.Conn {
				mu.Lock()
				defer mu.Unlock()
				if c == nil || c.Context().Err() != nil {
					c = a.dial(ctx, small())
					a.known(ctx, c)
				}
				return c
			}
			a.repeat(ctx, 4, 80*time.Millisecond, func() {
				ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
				defer cancel()
				s := must(conn(ctx).OpenStream(ctx))
				defer s.Send().Cancel(0)
				request := codec.AppendAuth(nil, tenantA, all[int(n.Add(1))%len(all)], codec.KnownFlags, true, 0)
				request = codec.AppendPublish(request, tenantA, namespace, streamOther, []byte("x"), codec.AckPerMessage, 1, true)
				must(s.Send().Write(request))
				if attempt(func() { replies(ctx, s, 1) }) == nil && !valid {
					a.fault("a token that is not valid is accepted")
				}
			})
		}
	}
}

// crafted is a token of these parts with a signature that is none.
func crafted(header, payload string) string {
	enc := base64.RawURLEncoding.EncodeToString
	return enc([]byte(header)) + "." + enc([]byte(payload)) + "." + enc(make([]byte, ed25519.SignatureSize))
}

const tokenHeader = `{"alg":"EdDSA","typ":"JWT","kid":"a-1"}`

func tokenWithMembers(*attacker) ([]string, bool) {
	var b strings.Builder
	b.WriteByte('{')
	for i := range 4000 {
		fmt.Fprintf(&b, `"m%d":0,`, i)
	}
	many := b.String() + `"x":0}`
	return []string{crafted(tokenHeader, many), crafted(many[:6000]+`"x":0}`, `{}`), crafted(tokenHeader, strings.ReplaceAll(many, "m", "n"))}, false
}

func tokenWithNesting(*attacker) ([]string, bool) {
	const depth = 20_000
	lists := strings.Repeat("[", depth) + strings.Repeat("]", depth)
	objects := strings.Repeat(`{"a":`, depth/4) + "0" + strings.Repeat("}", depth/4)
	return []string{
		crafted(tokenHeader, `{"x":`+lists+`}`), crafted(tokenHeader, objects), crafted(`{"x":`+lists[depth-3000:depth+3000]+`}`, `{}`),
	}, false
}

// tokenWithPermissions is signed by A: how much of it is looked at is up to the broker.
func tokenWithPermissions(n int, pattern string) tokens {
	return func(a *attacker) ([]string, bool) {
		permissions := make([]string, n)
		for i := range permissions {
			permissions[i] = fmt.Sprintf(pattern, i)
		}
		t, err := a.signer.Mint(auth.Claims{Tenant: tenantA, Subject: "x", IssuedAt: time.Now(), Permissions: permissions})
		if err != nil {
			a.fault(fmt.Sprintf("the attack itself fails: %v", err))
		}
		return []string{t}, true
	}
}

func oddTokens() tokens {
	return func(a *attacker) ([]string, bool) {
		parts := strings.Split(a.token, ".")
		now := time.Now()
		all := []string{
			"", ".", "..", "...", a.token + ".", "." + a.token, a.token + "=", parts[0] + "." + parts[1] + ".", parts[0] + ".." + parts[2],
			parts[1] + "." + parts[0] + "." + parts[2], strings.ToUpper(a.token), strings.Repeat("a", 60_000), strings.Repeat(".", 60_000),
			crafted(`{"alg":"none","typ":"JWT"}`, `{}`), crafted(`{"alg":"HS256","typ":"JWT"}`, `{}`), crafted(tokenHeader, `{"exp":1e400}`),
			crafted(tokenHeader, "\x00\xff"), crafted(tokenHeader, `[]`), crafted(`null`, `null`), crafted(tokenHeader, `{"tenant_id":"b"}`),
		}
		for i := range 40 { // one character is another one
			t := []byte(a.token)
			at := i * (len(t) - 2) / 40
			if t[at] == 'A' {
				t[at] = 'B'
			} else {
				t[at] = 'A'
			}
			all = append(all, string(t))
		}
		other, err := signer(tenantA, a.OtherA)
		if err == nil {
			foreign, _ := token(tenantA, other, now.Add(time.Hour))
			expired, _ := token(tenantA, a.signer, now.Add(-time.Hour))
			forB, _ := token(tenantB, a.signer, now.Add(time.Hour))
			all = append(all, foreign, expired, forB)
		}
		return all, false
	}
}

func permissionGlobs(ctx context.Context, a *attacker) {
	var all []string
	for _, scope := range []string{"*", "*/*", "b/*", "*b*", "b/default/events", "a/*", "**", "*/default/*", "a*b/default/events"} {
		t, err := a.signer.Mint(auth.Claims{Tenant: tenantA, Subject: "x", IssuedAt: time.Now(), Permissions: []string{
			"stream.publish:stream:" + scope, "stream.subscribe:stream:" + scope, "cache.read:cache:" + scope, "cache.write:cache:" + scope,
		}})
		if err != nil {
			a.try(err)
			continue
		}
		all = append(all, t)
	}
	c := a.dial(ctx, small())
	a.known(ctx, c)
	requests := map[string][]byte{
		"publish":   codec.AppendPublish(nil, tenantB, namespace, streamKept, []byte("x"), codec.AckPerMessage, 1, true),
		"subscribe": codec.AppendSubscribe(nil, tenantB, namespace, streamKept, codec.Start{}, 0, false),
		"get":       codec.AppendCacheGet(nil, tenantB, namespace, cacheEntries, key(0), 1, true),
		"put":       codec.AppendCachePut(nil, tenantB, namespace, cacheEntries, key(0), nil, 1, true, 0, false),
	}
	var n atomic.Int64
	a.repeat(ctx, 4, 20*time.Millisecond, func() {
		ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
		defer cancel()
		for what, request := range requests {
			for _, as := range []string{tenantA, tenantB} { // whose tenant it claims to be
				s := must(c.OpenStream(ctx))
				t := all[int(n.Add(1))%len(all)]
				must(s.Send().Write(append(codec.AppendAuth(nil, as, t, codec.KnownFlags, true, 0), request...)))
				if attempt(func() { replies(ctx, s, 2) }) == nil {
					a.fault("A may " + what + " what is B's")
				}
				s.Send().Cancel(0)
			}
		}
	})
}

func publishFlood(streams, batch, size int) func(context.Context, *attacker) {
	return func(ctx context.Context, a *attacker) {
		for i := range streams {
			c := a.connect(ctx)
			pub, items := c.Publisher(namespace, filler(i)), payloads(batch, size)
			a.repeat(ctx, 1, 0, func() { check(pub.Send(ctx, items...)) })
		}
	}
}

func bursts(ctx context.Context, a *attacker) {
	c := a.connect(ctx)
	pub, event := c.Publisher(namespace, streamOther), make([]byte, 1000)
	a.repeat(ctx, 1, 200*time.Millisecond, func() {
		for range 2000 {
			check(pub.Send(ctx, event))
		}
	})
}

func subscribeFlood(ctx context.Context, a *attacker) {
	conns := a.dials(ctx, 4, small())
	for _, c := range conns {
		a.repeat(ctx, 4, 0, func() {
			a.subscribe(ctx, c, codec.KnownExtensions(), streamOther, codec.StartEarliest)
			must(c.AcceptUniStream(ctx)).Cancel(0)
		})
	}
}

func resets(ctx context.Context, a *attacker) {
	for range 4 {
		var c *quicx.Conn
		a.repeat(ctx, 1, 0, func() {
			if c == nil || c.Context().Err() != nil {
				c = a.dial(ctx, small())
				a.known(ctx, c)
			}
			s := must(c.OpenStream(ctx))
			_, _ = s.Send().Write([]byte("F"))
			s.Send().Cancel(0)
			s.Recv().Cancel(0)
		})
	}
}

func hotKey(ctx context.Context, a *attacker) {
	a.cacheCalls(ctx, func(cache *client.Cache) { must(cache.Get(ctx, key(0))) })
}

// cacheCalls makes calls with 64 under way on each of 4 clients. key(0) exists.
func (a *attacker) cacheCalls(ctx context.Context, call func(*client.Cache)) {
	for range 4 {
		cache := a.connect(ctx).Cache(namespace, cacheEntries)
		check(cache.Put(ctx, key(0), value(0), client.NoExpiry))
		a.repeat(ctx, 64, 0, func() { call(cache) })
	}
}

func ttlStorm(ctx context.Context, a *attacker) {
	var n atomic.Int64
	a.cacheCalls(ctx, func(cache *client.Cache) {
		i := n.Add(1)
		check(cache.Put(ctx, fmt.Sprint("short-", i), nil, time.Duration(i%1000+1)*time.Millisecond))
	})
}

func deletes(ctx context.Context, a *attacker) {
	var n atomic.Int64
	a.cacheCalls(ctx, func(cache *client.Cache) {
		if i := n.Add(1); i%4 == 0 {
			check(cache.Put(ctx, fmt.Sprint("gone-", i%1000), nil, client.NoExpiry))
		} else {
			must(cache.Delete(ctx, fmt.Sprint("gone-", i%100_000)))
		}
	})
}

func extensionConfusion(ctx context.Context, a *attacker) {
	frame := func(body ...byte) []byte {
		return append(codec.AppendHeader(nil, codec.LayoutExtension, len(body)), body...)
	}
	var all [][]byte
	for t := range 256 {
		all = append(all, frame(byte(t)), frame(append([]byte{byte(t)}, make([]byte, 40)...)...))
	}
	request := codec.AppendCacheRequest(nil, &codec.CacheRequest{RequestID: 1, Op: codec.CacheGet}, namespace, cacheEntries, key(0))
	for n := codec.HeaderLen; n < len(request); n += 3 {
		all = append(all, frame(request[codec.HeaderLen:n]...))
	}
	all = append(all, frame(), bomb(), append(codec.AppendHeader(nil, codec.LayoutExtension|codec.LayoutPublish, 1), 3))
	a.stands()
	for range 2 {
		c := a.dial(ctx, small())
		a.known(ctx, c)
		var n atomic.Int64
		a.repeat(ctx, 4, 5*time.Millisecond, func() {
			ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
			defer cancel()
			f, ext := all[int(n.Add(1))%len(all)], codec.KnownExtensions()
			if n.Load()%2 == 0 {
				ext = 0
			}
			s := a.open(ctx, c, ext, f)
			s.Send().Cancel(0)
			s.Recv().Cancel(0)
			_ = attempt(func() { a.openUni(ctx, c, f).Cancel(0) })
		})
	}
}

func datagrams(ctx context.Context, a *attacker) {
	socket := must(net.Dial("udp", a.Addr))
	a.atTheEnd(func() { _ = socket.Close() })
	random := rand.New(rand.NewPCG(1, 2))
	buffer := make([]byte, 1400)
	a.repeat(ctx, 1, 10*time.Millisecond, func() {
		for i := range 50 {
			b := buffer[:1+random.IntN(len(buffer))]
			for j := range b {
				b[j] = byte(random.Uint32())
			}
			b[0] = []byte{0x40, 0xc0, 0xff, 0x00, 0xc3}[i%5] // short, long, and no header
			must(socket.Write(b))
		}
	})
}
