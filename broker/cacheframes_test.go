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
)

// cacheClient starts a broker and connects a client, with an extension or without.
func cacheClient(t *testing.T, cfg broker.Config, opts ...client.Option) *client.Cache {
	t.Helper()
	cfg.Bind = "127.0.0.1:0"
	dev, err := broker.NewDev(cfg, broker.DevOptions{})
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- dev.Serve(context.Background()) }()
	opts = append([]client.Option{client.WithTLS(dev.ClientTLS()), client.WithToken(dev.Tenant, dev.Token)}, opts...)
	c, err := client.Connect(t.Context(), dev.Addr().String(), opts...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = c.Close()
		_ = dev.Shutdown(context.Background())
		if err := <-served; !errors.Is(err, broker.ErrShutdown) {
			t.Error(err)
		}
	})
	return c.Cache(dev.Namespace, "primary")
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
	if err := c.Put(ctx, "over", []byte("v"), 0); err != nil {
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

// Callers of one stream get their own replies, also when most of them give up early.
func TestCacheFramesManyCallers(t *testing.T) {
	c := cacheClient(t, broker.DefaultConfig(), client.WithCacheStreams(1))
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

// A client that offers no extension is served in JSON, and is told nothing of what JSON cannot say.
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
