package broker_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/felix-mq/felix/broker"
	"github.com/felix-mq/felix/client"
	"github.com/felix-mq/felix/codec"
	"github.com/felix-mq/felix/quicx"
)

// cacheClient starts a broker and connects a client, with an extension or without.
func cacheClient(t *testing.T, cfg broker.Config, opts ...client.Option) *client.Cache {
	t.Helper()
	return cacheClients(t, cfg, opts)[0]
}

// cacheClients starts a broker and connects a client for each list of options.
func cacheClients(t *testing.T, cfg broker.Config, each ...[]client.Option) (caches []*client.Cache) {
	t.Helper()
	cfg.Bind = "127.0.0.1:0"
	dev, err := broker.NewDev(cfg, broker.DevOptions{})
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- dev.Serve(context.Background()) }()
	t.Cleanup(func() {
		_ = dev.Shutdown(context.Background())
		if err := <-served; !errors.Is(err, broker.ErrShutdown) {
			t.Error(err)
		}
	})
	for _, opts := range each {
		opts = append([]client.Option{client.WithTLS(dev.ClientTLS()), client.WithToken(dev.Tenant, dev.Token)}, opts...)
		c, err := client.Connect(t.Context(), dev.Addr().String(), opts...)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = c.Close() })
		caches = append(caches, c.Cache(dev.Namespace, "primary"))
	}
	return caches
}

func TestCacheFrames(t *testing.T) {
	ctx, c := t.Context(), cacheClient(t, broker.DefaultConfig())
	if _, err := c.Get(ctx, "k"); !errors.Is(err, client.ErrMiss) {
		t.Errorf("get of nothing: %v", err)
	}
	version, err := c.PutIf(ctx, "k", []byte("one"), client.NoExpiry, 0)
	if err != nil {
		t.Fatal(err)
	}
	if present, err := c.PutIf(ctx, "k", []byte("two"), client.NoExpiry, 0); !errors.Is(err, client.ErrVersion) || present != version {
		t.Errorf("put-if-absent over version %d: %d, %v", version, present, err)
	}
	if _, err := c.PutIf(ctx, "k", []byte("two"), client.NoExpiry, version); err != nil {
		t.Errorf("compare-and-set: %v", err)
	}
	if err := c.Put(ctx, "empty", nil, client.NoExpiry); err != nil {
		t.Error(err)
	}
	large := bytes.Repeat([]byte("x"), 100<<10) // written from where it lies
	if err := c.Put(ctx, "large", large, client.NoExpiry); err != nil {
		t.Error(err)
	}
	if err := c.Put(ctx, "over", []byte("v"), -1); !errors.Is(err, client.ErrInvalidTTL) {
		t.Error(err)
	}
	entries := c.GetMany(ctx, "k", "none", "large", "empty", "over")
	for i, want := range []string{"two", "", string(large), "", ""} {
		present := i != 1 && i != 4
		if e := entries[i]; string(e.Value) != want || (e.Version != 0) != present || (e.Value != nil) != present || errors.Is(e.Err, client.ErrMiss) == present {
			t.Errorf("entry %d: %d bytes, version %d, %v", i, len(e.Value), e.Version, e.Err)
		}
	}
	for _, want := range []bool{true, false} {
		if found, err := c.Delete(ctx, "k"); found != want || err != nil {
			t.Errorf("delete: %v, %v", found, err)
		}
	}
	if _, err := c.Get(ctx, "k"); !errors.Is(err, client.ErrMiss) {
		t.Errorf("get after delete: %v", err)
	}
}

// Values that do not fit into a frame together come one by one.
func TestCacheFramesLeaveOut(t *testing.T) {
	cfg := broker.DefaultConfig()
	cfg.MaxFrameBytes = 64 << 10
	ctx, c := t.Context(), cacheClient(t, cfg)
	var keys []string
	for i := range 10 {
		keys = append(keys, fmt.Sprint(i))
		if err := c.Put(ctx, keys[i], bytes.Repeat([]byte{byte(i)}, 20<<10), client.NoExpiry); err != nil {
			t.Fatal(err)
		}
	}
	for i, e := range c.GetMany(ctx, keys...) {
		if !bytes.Equal(e.Value, bytes.Repeat([]byte{byte(i)}, 20<<10)) {
			t.Errorf("entry %d has %d bytes, %v", i, len(e.Value), e.Err)
		}
	}
}

// A value that was put in binary may be too long for a frame in base64. A get in JSON is refused then, and its stream
// goes on.
func TestCacheValueTooLongForJSON(t *testing.T) {
	cfg := broker.DefaultConfig()
	cfg.MaxFrameBytes = 128 << 10
	ctx, caches := t.Context(), cacheClients(t, cfg, nil, []client.Option{client.WithoutExtensions()})
	binary, json := caches[0], caches[1]
	for _, n := range []int{96 << 10, 100 << 10, 120 << 10} {
		value := bytes.Repeat([]byte("v"), n)
		if err := binary.Put(ctx, "k", value, client.NoExpiry); err != nil {
			t.Fatal(err)
		}
		got, err := json.Get(ctx, "k")
		if !errors.Is(err, client.ErrTooLarge) || got != nil {
			t.Errorf("get of %d bytes in JSON: %d bytes, %v", n, len(got), err)
		}
		if got, err := binary.Get(ctx, "k"); !bytes.Equal(got, value) {
			t.Errorf("get of %d bytes in binary: %d bytes, %v", n, len(got), err)
		}
	}
	fits := bytes.Repeat([]byte("v"), 90<<10)
	if err := binary.Put(ctx, "k", fits, client.NoExpiry); err != nil {
		t.Fatal(err)
	}
	if got, err := json.Get(ctx, "k"); !bytes.Equal(got, fits) {
		t.Errorf("get of %d bytes in JSON: %d bytes, %v", len(fits), len(got), err)
	}
}

// Callers of one stream get their own replies, also when most of them give up early.
func TestCacheFramesManyCallers(t *testing.T) {
	c := cacheClient(t, broker.DefaultConfig(), client.WithTransport(client.Transport{CacheStreams: 1}))
	var wg sync.WaitGroup
	for g := range 32 {
		wg.Go(func() {
			key := fmt.Sprint("key-", g)
			value := bytes.Repeat([]byte{byte(g)}, g*1000)
			for i := range 50 {
				if i%5 == 0 {
					ctx, cancel := context.WithTimeout(t.Context(), time.Duration(i)*time.Microsecond)
					_, _ = c.Get(ctx, key)
					cancel()
				}
				if err := c.Put(t.Context(), key, value, time.Hour); err != nil {
					t.Error(err)
					return
				}
				if got, err := c.Get(t.Context(), key); err != nil || !bytes.Equal(got, value) {
					t.Errorf("%d bytes, %v; want %d", len(got), err, len(value))
					return
				}
			}
		})
	}
	wg.Wait()
}

// A client that offers no extension is served in JSON, and gets nothing that JSON cannot say.
func TestCacheWithoutExtensions(t *testing.T) {
	ctx, c := t.Context(), cacheClient(t, broker.DefaultConfig(), client.WithoutExtensions())
	if err := c.Put(ctx, "k", []byte("v"), time.Hour); err != nil {
		t.Fatal(err)
	}
	if v, err := c.Get(ctx, "k"); string(v) != "v" || err != nil {
		t.Errorf("%q, %v", v, err)
	}
	if r := c.GetMany(ctx, "none", "k"); !errors.Is(r[0].Err, client.ErrMiss) || string(r[1].Value) != "v" || r[1].Err != nil {
		t.Errorf("%+v", r)
	}
	_, del := c.Delete(ctx, "k")
	_, cas := c.PutIf(ctx, "k", nil, 0, 0)
	for _, err := range []error{del, cas} {
		if !errors.Is(err, client.ErrUnsupported) {
			t.Errorf("%v, want ErrUnsupported", err)
		}
	}
}

// get asks for the value of a key by hand.
func (c *control) get(id uint64, key string) {
	c.t.Helper()
	c.send(appendGet(nil, id, key))
}

func appendGet(b []byte, id uint64, key string) []byte {
	return codec.AppendCacheRequest(b, &codec.CacheRequest{RequestID: id, Op: codec.CacheGet}, "default", "primary", key)
}

// wantValue reads the next reply, which has to be to that request.
func (c *control) wantValue(id uint64, n int) {
	c.t.Helper()
	f, err := c.fr.Next()
	must(c.t, err)
	_, body, err := codec.ParseExtension(f.Payload())
	must(c.t, err)
	r, err := codec.ParseCacheReply(body)
	must(c.t, err)
	if _, value, ok := r.Values.Next(); !ok || r.RequestID != id || len(value) != n {
		c.t.Fatalf("%d bytes for request %d, want %d for %d", len(value), r.RequestID, n, id)
	}
}

// A stream whose replies are not read is not read either, and holds no more than it may; the other streams go on.
func TestInFlightBound(t *testing.T) {
	const large, small = 4 << 20, 1000
	for _, tc := range []struct {
		name    string
		change  func(*broker.Config)
		key     string
		size    int
		carried float64 // out, at most, before the stream stands still
	}{
		{"requests", func(cfg *broker.Config) { cfg.InFlightRequests = 10 }, "small", small, 10},
		{"bytes", func(cfg *broker.Config) { cfg.InFlightBytes = 20_000 }, "small", small, 20},
		{"a large value", nil, "large", large, 1},
	} {
		t.Run(tc.name, func(t *testing.T) {
			d := start(t, tc.change)
			cache := connect(t, d).Cache("default", "primary")
			must(t, cache.Put(testContext(t), "small", make([]byte, small), client.NoExpiry))
			must(t, cache.Put(testContext(t), "large", make([]byte, large), client.NoExpiry))
			const window = 4 << 10
			c, err := quicx.Dial(testContext(t), d.Addr().String(), d.ClientTLS(), quicx.Config{StreamWindow: window, StreamsHint: 2})
			must(t, err)
			t.Cleanup(func() { c.Close(0, "") })
			p := &peer{t, c, d}
			stuck, other := p.open(p.auth()), p.open(p.auth())
			stuck.wantMessage(codec.MsgAuthOK, "")
			other.wantMessage(codec.MsgAuthOK, "")
			const requests = 200
			var all []byte // in one write: the broker must find more than the bound when it reads for the first time
			for i := range uint64(requests) {
				all = appendGet(all, i, tc.key)
			}
			stuck.send(all)
			if tc.size == small {
				for ctx := testContext(t); metric(t, d, "felix_in_flight_waits_total") == 0; {
					must(t, ctx.Err())
				}
			}
			const probes = 50 // more than enough for the broker to read on, if it did
			for i := range uint64(probes) {
				other.get(i, "small")
				other.wantValue(i, small)
			}
			carried := metric(t, d, "felix_cache_hits_total") - probes
			if most := tc.carried + window/float64(tc.size) + 1; carried < 1 || carried > most {
				t.Errorf("%v requests were carried out without anybody reading replies, want at most %v", carried, most)
			}
			for i := range uint64(requests) {
				if i == 5 && tc.size == large {
					return
				}
				stuck.wantValue(i, tc.size)
			}
		})
	}
}

// Values that nobody reads are charged to the connection, as they stay when they are evicted.
func TestUnreadValuesAreCharged(t *testing.T) {
	d := start(t, func(cfg *broker.Config) { cfg.ConnReadBytes = 4 << 20 })
	cache := connect(t, d).Cache("default", "primary")
	must(t, cache.Put(testContext(t), "large", make([]byte, 1<<20), client.NoExpiry))
	c, err := quicx.Dial(testContext(t), d.Addr().String(), d.ClientTLS(), quicx.Config{StreamWindow: 1024, StreamsHint: 1})
	must(t, err)
	t.Cleanup(func() { c.Close(0, "") })
	p := &peer{t, c, d}
	for i := range uint64(8) {
		p.open(p.auth()).get(i, "large")
	}
	wantLimit(t, d, "conn_memory", 8-4)
	c.Close(0, "")
	awaitMetric(t, d, "felix_read_bytes", 0)
}
