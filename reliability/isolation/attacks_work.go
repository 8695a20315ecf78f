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
func takeConnections(n int) func(context.Context, *attacker) error {
	return func(ctx context.Context, a *attacker) error {
		cfg := small()
		cfg.KeepAlive = 5 * time.Second
		a.crowd(ctx, n, 4, func(int) error {
			c, err := a.dial(ctx, cfg)
			if err != nil {
				return err
			}
			return a.subscribe(ctx, c, codec.KnownExtensions(), streamOther, codec.StartLatest)
		})
		return nil
	}
}

func unauthenticated(ctx context.Context, a *attacker) error {
	held := make(chan *quicx.Conn, 100)
	a.stands()
	a.repeat(ctx, 4, 10*time.Millisecond, func() error {
		ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
		defer cancel()
		c, err := quicx.Dial(ctx, a.Addr, a.tls, small())
		if err != nil {
			return err
		}
		for {
			select {
			case held <- c:
				return nil
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
	return nil
}

// handshakes come from a network of their own, as those of a stranger do: the bound for each network is not B's.
func handshakes(ctx context.Context, a *attacker) error {
	to, err := net.ResolveUDPAddr("udp", a.Addr)
	if err != nil {
		return err
	}
	for i := range 8 {
		socket, err := net.ListenPacket("udp4", fmt.Sprintf("127.66.0.%d:0", i+1))
		if err != nil {
			return err
		}
		tr := &quic.Transport{Conn: socket}
		a.atTheEnd(func() {
			_ = tr.Close()
			_ = socket.Close()
		})
		a.repeat(ctx, 1, 0, func() error {
			ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
			defer cancel()
			c, err := tr.Dial(ctx, to, a.tls, nil)
			if err != nil {
				return err
			}
			return c.CloseWithError(0, "")
		})
	}
	return nil
}

// tokens makes tokens for a flood, and says whether they are valid.
type tokens func(a *attacker) (all []string, valid bool)

// authFlood opens streams with tokens, 200 per second.
func authFlood(of tokens) func(context.Context, *attacker) error {
	return func(ctx context.Context, a *attacker) error {
		all, valid := of(a)
		a.stands()
		var n atomic.Int64
		for range 4 {
			var mu sync.Mutex
			var c *quicx.Conn
			conn := func(ctx context.Context) (*quicx.Conn, error) {
				mu.Lock()
				defer mu.Unlock()
				if c != nil && c.Context().Err() == nil {
					return c, nil
				}
				var err error
				if c, err = a.dial(ctx, small()); err != nil {
					return nil, err
				}
				return c, a.known(ctx, c)
			}
			a.repeat(ctx, 4, 80*time.Millisecond, func() error {
				ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
				defer cancel()
				c, err := conn(ctx)
				if err != nil {
					return err
				}
				s, err := c.OpenStream(ctx)
				if err != nil {
					return err
				}
				defer s.Send().Cancel(0)
				request := codec.AppendAuth(nil, tenantA, all[int(n.Add(1))%len(all)], codec.KnownFlags, true, 0)
				request = codec.AppendPublish(request, tenantA, namespace, streamOther, []byte("x"), codec.AckPerMessage, 1, true)
				if _, err := s.Send().Write(request); err != nil {
					return err
				}
				err = replies(ctx, s, 1)
				if err == nil && !valid {
					a.fault("a token that is not valid is accepted")
				}
				return nil
			})
		}
		return nil
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

func permissionGlobs(ctx context.Context, a *attacker) error {
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
	c, err := a.dial(ctx, small())
	if err != nil {
		return err
	}
	if err := a.known(ctx, c); err != nil {
		return err
	}
	requests := map[string][]byte{
		"publish":   codec.AppendPublish(nil, tenantB, namespace, streamKept, []byte("x"), codec.AckPerMessage, 1, true),
		"subscribe": codec.AppendSubscribe(nil, tenantB, namespace, streamKept, codec.Start{}, 0, false),
		"get":       codec.AppendCacheGet(nil, tenantB, namespace, cacheEntries, key(0), 1, true),
		"put":       codec.AppendCachePut(nil, tenantB, namespace, cacheEntries, key(0), nil, 1, true, 0, false),
	}
	var n atomic.Int64
	a.repeat(ctx, 4, 20*time.Millisecond, func() error {
		ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
		defer cancel()
		for what, request := range requests {
			for _, as := range []string{tenantA, tenantB} { // whose tenant it claims to be
				s, err := c.OpenStream(ctx)
				if err != nil {
					return err
				}
				t := all[int(n.Add(1))%len(all)]
				if _, err := s.Send().Write(append(codec.AppendAuth(nil, as, t, codec.KnownFlags, true, 0), request...)); err != nil {
					return err
				}
				if err := replies(ctx, s, 2); err == nil {
					a.fault("A may " + what + " what is B's")
				}
				s.Send().Cancel(0)
			}
		}
		return nil
	})
	return nil
}

func publishFlood(streams, batch, size int) func(context.Context, *attacker) error {
	return func(ctx context.Context, a *attacker) error {
		for i := range streams {
			c, err := a.connect(ctx)
			if err != nil {
				return err
			}
			pub, items := c.Publisher(namespace, filler(i)), payloads(batch, size)
			a.repeat(ctx, 1, 0, func() error { return pub.Send(ctx, items...) })
		}
		return nil
	}
}

func bursts(ctx context.Context, a *attacker) error {
	c, err := a.connect(ctx)
	if err != nil {
		return err
	}
	pub, event := c.Publisher(namespace, streamOther), make([]byte, 1000)
	a.repeat(ctx, 1, 200*time.Millisecond, func() error {
		for range 2000 {
			if err := pub.Send(ctx, event); err != nil {
				return err
			}
		}
		return nil
	})
	return nil
}

func subscribeFlood(ctx context.Context, a *attacker) error {
	conns, err := a.dials(ctx, 4, small())
	if err != nil {
		return err
	}
	for _, c := range conns {
		a.repeat(ctx, 4, 0, func() error {
			if err := a.subscribe(ctx, c, codec.KnownExtensions(), streamOther, codec.StartEarliest); err != nil {
				return err
			}
			events, err := c.AcceptUniStream(ctx)
			if err == nil {
				events.Cancel(0)
			}
			return err
		})
	}
	return nil
}

func resets(ctx context.Context, a *attacker) error {
	for range 4 {
		var c *quicx.Conn
		a.repeat(ctx, 1, 0, func() (err error) {
			if c == nil || c.Context().Err() != nil {
				if c, err = a.dial(ctx, small()); err != nil {
					return err
				}
				if err := a.known(ctx, c); err != nil {
					return err
				}
			}
			s, err := c.OpenStream(ctx)
			if err != nil {
				return err
			}
			_, _ = s.Send().Write([]byte("F"))
			s.Send().Cancel(0)
			s.Recv().Cancel(0)
			return nil
		})
	}
	return nil
}

func hotKey(ctx context.Context, a *attacker) error {
	return a.cacheCalls(ctx, func(ctx context.Context, cache *client.Cache) error {
		_, err := cache.Get(ctx, key(0))
		return err
	})
}

// cacheCalls makes calls with 64 under way on each of 4 clients. key(0) exists.
func (a *attacker) cacheCalls(ctx context.Context, call func(context.Context, *client.Cache) error) error {
	for range 4 {
		c, err := a.connect(ctx)
		if err != nil {
			return err
		}
		cache := c.Cache(namespace, cacheEntries)
		if err := cache.Put(ctx, key(0), value(0), client.NoExpiry); err != nil {
			return err
		}
		a.repeat(ctx, 64, 0, func() error { return call(ctx, cache) })
	}
	return nil
}

func ttlStorm(ctx context.Context, a *attacker) error {
	var n atomic.Int64
	return a.cacheCalls(ctx, func(ctx context.Context, cache *client.Cache) error {
		i := n.Add(1)
		return cache.Put(ctx, fmt.Sprint("short-", i), nil, time.Duration(i%1000+1)*time.Millisecond)
	})
}

func deletes(ctx context.Context, a *attacker) error {
	var n atomic.Int64
	return a.cacheCalls(ctx, func(ctx context.Context, cache *client.Cache) error {
		i := n.Add(1)
		if i%4 == 0 {
			return cache.Put(ctx, fmt.Sprint("gone-", i%1000), nil, client.NoExpiry)
		}
		_, err := cache.Delete(ctx, fmt.Sprint("gone-", i%100_000))
		return err
	})
}

func extensionConfusion(ctx context.Context, a *attacker) error {
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
		c, err := a.dial(ctx, small())
		if err != nil {
			return err
		}
		if err := a.known(ctx, c); err != nil {
			return err
		}
		var n atomic.Int64
		a.repeat(ctx, 4, 5*time.Millisecond, func() error {
			ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
			defer cancel()
			f, ext := all[int(n.Add(1))%len(all)], codec.KnownExtensions()
			if n.Load()%2 == 0 {
				ext = 0
			}
			s, err := a.open(ctx, c, ext, f)
			if err != nil {
				return err
			}
			s.Send().Cancel(0)
			s.Recv().Cancel(0)
			u, err := a.openUni(ctx, c, f)
			if err == nil {
				u.Cancel(0)
			}
			return nil
		})
	}
	return nil
}

func datagrams(ctx context.Context, a *attacker) error {
	socket, err := net.Dial("udp", a.Addr)
	if err != nil {
		return err
	}
	a.atTheEnd(func() { _ = socket.Close() })
	random := rand.New(rand.NewPCG(1, 2))
	buffer := make([]byte, 1400)
	a.repeat(ctx, 1, 10*time.Millisecond, func() error {
		for i := range 50 {
			b := buffer[:1+random.IntN(len(buffer))]
			for j := range b {
				b[j] = byte(random.Uint32())
			}
			b[0] = []byte{0x40, 0xc0, 0xff, 0x00, 0xc3}[i%5] // short, long, and no header
			if _, err := socket.Write(b); err != nil {
				return err
			}
		}
		return nil
	})
	return nil
}
