package client_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"math"
	"testing"
	"time"

	"github.com/felix-mq/felix/client"
	"github.com/felix-mq/felix/codec"
	"github.com/felix-mq/felix/conformance/script"
	"github.com/felix-mq/felix/internal/dev"
	"github.com/felix-mq/felix/quicx"
)

// TestCache runs the calls against a broker that keeps what it is given.
func TestCache(t *testing.T) {
	p := newPeer(t)
	n := script.NewNormal()
	ttls := make(chan string, 16)
	n.Hook = func(_ *script.Conn, _ *script.Control, r *script.Request) (bool, error) {
		if r.Type == codec.MsgCachePut {
			ttls <- fmt.Sprintf("%d %v", r.TTL, r.HasTTL)
		}
		return false, nil
	}
	p.serve(n)
	cache := p.connect().Cache("default", "primary")
	if value, err := cache.Get(p.ctx, "key"); !errors.Is(err, client.ErrMiss) || value != nil {
		t.Errorf("before the first put: %q, %v", value, err)
	}
	for _, value := range [][]byte{[]byte("one"), {}, nil, {0, 255, '"'}, bytes.Repeat([]byte("v"), 1<<20)} {
		p.must(cache.Put(p.ctx, "key \"\n\u2028", value, client.NoExpiry))
		got, err := cache.Get(p.ctx, "key \"\n\u2028")
		if err != nil || !bytes.Equal(got, value) || got == nil {
			t.Errorf("got %.20q, %v, want %.20q", got, err, value)
		}
		if ttl := <-ttls; ttl != "0 false" {
			t.Errorf("ttl %s, want none", ttl)
		}
	}
	for _, tc := range []struct {
		ttl  time.Duration
		want string
	}{
		{0, "0 false"},
		{1, "1 true"},
		{time.Millisecond, "1 true"},
		{time.Millisecond + 1, "2 true"},
		{time.Hour, "3600000 true"},
		{1<<63 - 1, "9223372036855 true"},
		{client.NoExpiry, "0 false"},
	} {
		p.must(cache.Put(p.ctx, "key", nil, tc.ttl))
		if got := <-ttls; got != tc.want {
			t.Errorf("ttl of %v: got %s, want %s", tc.ttl, got, tc.want)
		}
	}
	for _, ttl := range []time.Duration{-1, -time.Second, math.MinInt64} {
		_, conditional := cache.PutIf(p.ctx, "gone", nil, ttl, 0)
		for _, err := range []error{cache.Put(p.ctx, "gone", nil, ttl), conditional} {
			if !errors.Is(err, client.ErrInvalidTTL) {
				t.Errorf("with a ttl of %v: %v", ttl, err)
			}
		}
	}
}

// TestCachePipelined sends several requests on each stream before the first is answered. Errors carry no id: they
// belong to the oldest request of their stream, and cost that one alone.
func TestCachePipelined(t *testing.T) {
	const perStream, streams = 5, 4
	p := newPeer(t)
	n, requests := hold()
	p.serve(n)
	cache := p.connect().Cache("default", "primary")
	waits := make(map[string]func() ([]byte, error))
	byStream := make(map[*script.Control][]held)
	for i := range perStream * streams {
		key := fmt.Sprint(i)
		waits[key] = begin(p, func() ([]byte, error) { return cache.Get(p.ctx, key) })
		h := p.next(requests)
		byStream[h.ctl] = append(byStream[h.ctl], h)
	}
	if len(byStream) != streams {
		t.Errorf("%d streams, want %d", len(byStream), streams)
	}
	for _, stream := range byStream {
		if len(stream) != perStream {
			t.Fatalf("%d requests on a stream, want %d", len(stream), perStream)
		}
		for i, h := range stream {
			switch i {
			case 0:
				p.must(h.ctl.CacheValue(h.Request, []byte(h.Key)))
			case 1:
				p.must(h.ctl.Send(codec.AppendError(nil, "cache scope not found: "+h.Key)))
			case 2: // without the id, which the reference's client also takes
				r := *h.Request
				r.HasID = false
				p.must(h.ctl.CacheValue(&r, []byte(h.Key)))
			case 3:
				p.must(h.ctl.CacheValue(h.Request, nil))
			case 4:
				p.must(h.ctl.CacheValue(h.Request, []byte{}))
			}
		}
		for i, h := range stream {
			value, err := waits[h.Key]()
			refused, _ := errors.AsType[*client.BrokerError](err)
			ok := err == nil && string(value) == h.Key
			switch i {
			case 1:
				ok = refused != nil && refused.Message == "cache scope not found: "+h.Key
			case 3:
				ok = errors.Is(err, client.ErrMiss)
			case 4:
				ok = err == nil && value != nil && len(value) == 0
			}
			if !ok {
				t.Errorf("request %d of a stream: %q, %v", i, value, err)
			}
		}
	}
	// All streams are still in use.
	for range streams {
		wait := do(p, func() error { return cache.Put(p.ctx, "key", nil, 0) })
		h := p.next(requests)
		if byStream[h.ctl] == nil {
			t.Error("a stream was replaced")
		}
		p.must(h.ctl.Send(codec.AppendCacheOK(nil, h.ID)))
		p.must(wait())
	}
}

// TestCacheGivenUp gives up on the first of two requests on a stream. Its reply is not taken for the second one's.
func TestCacheGivenUp(t *testing.T) {
	p := newPeer(t)
	n, requests := hold()
	p.serve(n)
	cache := p.connect().Cache("default", "primary")
	ctx, cancel := context.WithCancel(p.ctx)
	wait := do(p, func() error { _, err := cache.Get(ctx, "first"); return err })
	first := p.next(requests)
	cancel()
	if err := wait(); !errors.Is(err, context.Canceled) {
		t.Errorf("the first request: %v", err)
	}
	for {
		value := begin(p, func() ([]byte, error) { return cache.Get(p.ctx, "second") })
		second := p.next(requests)
		if second.ctl != first.ctl { // streams are used round robin
			answer(p, second)
			if _, err := value(); !errors.Is(err, client.ErrMiss) {
				t.Errorf("got %v", err)
			}
			continue
		}
		p.must(first.ctl.Send(codec.AppendError(nil, "for the first")))
		p.must(second.ctl.CacheValue(second.Request, []byte("for the second")))
		if v, err := value(); err != nil || string(v) != "for the second" {
			t.Errorf("got %q, %v", v, err)
		}
		return
	}
}

// TestCacheViolations answers a request with something that is no answer to it. The request fails, and the stream is
// replaced.
func TestCacheViolations(t *testing.T) {
	for _, tc := range []struct {
		name  string
		reply func(h held) []byte
	}{
		{"another id", func(h held) []byte { return codec.AppendCacheOK(nil, h.ID+1) }},
		{"a value in answer to a put", func(h held) []byte {
			return codec.AppendCacheValue(nil, []byte("t1"), []byte("n"), []byte("c"), []byte("k"), nil, false, h.ID, true)
		}},
		{"a plain ok", func(held) []byte { return codec.AppendOK(nil) }},
		{"subscribed", func(held) []byte { return codec.AppendSubscribed(nil, 1) }},
		{"an event batch", func(held) []byte { return codec.AppendEventBatch(nil, codec.LayoutShared, 0, 0, nil) }},
		{"malformed JSON", func(held) []byte { return append(codec.AppendHeader(nil, 0, 1), '{') }},
	} {
		t.Run(tc.name, func(t *testing.T) {
			p := newPeer(t)
			n, requests := hold()
			p.serve(n)
			cache := p.connect().Cache("default", "primary")
			wait := do(p, func() error { return cache.Put(p.ctx, "key", nil, 0) })
			h := p.next(requests)
			p.must(h.ctl.Send(tc.reply(h)))
			if err := wait(); !errors.Is(err, client.ErrProtocol) {
				t.Errorf("got %v", err)
			}
			for range 4 { // one for each stream
				wait := do(p, func() error { return cache.Put(p.ctx, "key", nil, 0) })
				again := p.next(requests)
				if again.ctl == h.ctl {
					t.Error("the stream was kept")
				}
				answer(p, again)
				p.must(wait())
			}
		})
	}
	t.Run("cache_ok in answer to a get", func(t *testing.T) {
		p := newPeer(t)
		n, requests := hold()
		p.serve(n)
		cache := p.connect().Cache("default", "primary")
		wait := do(p, func() error { _, err := cache.Get(p.ctx, "key"); return err })
		h := p.next(requests)
		p.must(h.ctl.Send(codec.AppendCacheOK(nil, h.ID)))
		if err := wait(); !errors.Is(err, client.ErrProtocol) {
			t.Errorf("got %v", err)
		}
	})
}

// TestCacheBehindAFrameGivenUp gives up a request whose frame is half written while another request waits after it.
// The frame is written to its end, and the other request is sent.
func TestCacheBehindAFrameGivenUp(t *testing.T) {
	p := newPeer(t)
	cert, roots, err := dev.SelfSigned("localhost", "127.0.0.1")
	p.must(err)
	l, err := quicx.Listen("127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{cert}}, quicx.Config{})
	p.must(err)
	defer l.Close()
	accept := func(conn *quicx.Conn) *quicx.Stream {
		s, err := conn.AcceptStream(p.ctx)
		p.must(err)
		fr := quicx.NewFrameReader(s.Recv(), 0)
		defer fr.Close()
		_, err = fr.Next()
		p.must(err)
		_, err = s.Send().Write(codec.AppendAuthOK(nil, codec.KnownFlags, codec.KnownExtensions(), true))
		p.must(err)
		return s
	}
	connected := begin(p, func() (*client.Client, error) {
		return client.Connect(p.ctx, l.Addr().String(), client.WithTLS(&tls.Config{RootCAs: roots, ServerName: "localhost"}),
			client.WithToken("t1", "token"), client.WithTransport(client.Transport{CacheStreams: 1}))
	})
	conn, err := l.Accept(p.ctx)
	p.must(err)
	accept(conn)
	c, err := connected()
	p.must(err)
	defer c.Close()
	cache := c.Cache("default", "primary")
	ctx, cancel := context.WithCancel(p.ctx)
	defer cancel()
	first := do(p, func() error { _, err := cache.Get(ctx, "first"); return err })
	conn, err = l.Accept(p.ctx)
	p.must(err)
	s := accept(conn)
	large := do(p, func() error { return cache.Put(ctx, "large", make([]byte, 4<<20), client.NoExpiry) })
	var got bytes.Buffer
	read := func(until func() bool) {
		b := make([]byte, 16<<10)
		for !until() {
			n, err := s.Recv().Read(b)
			got.Write(b[:n])
			if err != nil {
				return
			}
		}
	}
	read(func() bool { return bytes.Contains(got.Bytes(), []byte("large")) })
	behind := do(p, func() error { _, err := cache.Get(p.ctx, "behind"); return err })
	time.Sleep(10 * time.Millisecond) // it waits by then, or it is not tried: what is expected is the same
	cancel()
	for _, wait := range []func() error{first, large} {
		if err := wait(); !errors.Is(err, context.Canceled) {
			t.Errorf("canceled: %v", err)
		}
	}
	read(func() bool { return bytes.Contains(got.Bytes(), []byte("behind")) })
	if got.Len() < 4<<20 {
		t.Errorf("%d bytes came before the waiting request", got.Len())
	}
	p.must(s.Send().Close())
	if err := behind(); !errors.Is(err, client.ErrDisconnected) {
		t.Errorf("the waiting request: %v", err)
	}
}
