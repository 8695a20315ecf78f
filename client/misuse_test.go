package client_test

import (
	"context"
	"errors"
	"net"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/felix-mq/felix/client"
	"github.com/felix-mq/felix/codec"
	"github.com/felix-mq/felix/conformance/script"
)

// TestNotMade calls all methods of nil and zero values.
func TestNotMade(t *testing.T) {
	ctx := t.Context()
	async := func(p *client.Publisher) error {
		var got error
		p.PublishAsync(ctx, nil, func(err error) { got = err })
		p.PublishAsync(ctx, nil, nil) // Flush says it
		return got
	}
	watch := func(c *client.Cache) (got error) {
		for _, err := range c.Watch(ctx) {
			got = err
		}
		return got
	}
	for name, c := range map[string]*client.Client{"nil": nil, "zero": {}} {
		for what, err := range map[string]error{
			"Flush": c.Flush(ctx), "Drain": c.Drain(ctx), "Subscribe": second(c.Subscribe(ctx, "default", "demo")),
			"Publish of its publisher": c.Publisher("default", "demo").Publish(ctx, nil),
			"Get of its cache":         second(c.Cache("default", "primary").Get(ctx, "k")),
		} {
			if !errors.Is(err, client.ErrNotMade) || client.Retryable(err) {
				t.Errorf("%s of a %s client: %v", what, name, err)
			}
		}
		if err := c.Close(); err != nil {
			t.Errorf("Close of a %s client: %v", name, err)
		}
		if c.Stats() != (client.ConnStats{}) {
			t.Errorf("%s client: %+v", name, c.Stats())
		}
	}
	for name, p := range map[string]*client.Publisher{"nil": nil, "zero": {}} {
		for what, err := range map[string]error{
			"Publish": p.Publish(ctx, nil), "Send": p.Send(ctx, nil), "PublishAsync": async(p), "Flush": p.Flush(ctx),
		} {
			if !errors.Is(err, client.ErrNotMade) {
				t.Errorf("%s of a %s publisher: %v", what, name, err)
			}
		}
	}
	for name, c := range map[string]*client.Cache{"nil": nil, "zero": {}} {
		for what, err := range map[string]error{
			"Put": c.Put(ctx, "k", nil, 0), "Get": second(c.Get(ctx, "k")), "GetMany": c.GetMany(ctx, "k", "l")[1].Err,
			"PutIf": second(c.PutIf(ctx, "k", nil, 0, 0)), "Delete": second(c.Delete(ctx, "k")), "Watch": watch(c),
		} {
			if !errors.Is(err, client.ErrNotMade) {
				t.Errorf("%s of a %s cache: %v", what, name, err)
			}
		}
	}
	for name, s := range map[string]*client.Subscription{"nil": nil, "zero": {}} {
		for what, err := range map[string]error{
			"Next": second(s.Next(ctx)), "NextBatch": second(s.NextBatch(ctx)), "Each": s.Each(ctx, func(client.Event) error { return nil }),
		} {
			if !errors.Is(err, client.ErrNotMade) {
				t.Errorf("%s of a %s subscription: %v", what, name, err)
			}
		}
		if _, ok := s.Position(); ok || s.ID() != 0 || s.Close() != nil {
			t.Errorf("a %s subscription has a position or an id, or cannot be closed", name)
		}
	}
}

// second returns the error of a call with two results.
func second[T any](_ T, err error) error { return err }

// TestNilOptions gives nil where an option belongs.
func TestNilOptions(t *testing.T) {
	p := newPeer(t)
	p.serve(script.NewNormal())
	for name, opts := range map[string][]client.Option{
		"option": {nil}, "hook": {client.WithHooks(nil)}, "logger": {client.WithLogger(nil)}, "TLS": {client.WithTLS(nil)},
		"token source": {client.WithTokenSource("t1", nil)},
	} {
		_, err := client.Connect(p.ctx, p.Addr(), p.options(opts...)...)
		if !errors.Is(err, client.ErrInvalidOption) {
			t.Errorf("%s: %v", name, err)
		}
	}
	c := p.connect()
	if _, err := c.Subscribe(p.ctx, "default", "demo", nil); !errors.Is(err, client.ErrInvalidOption) {
		t.Errorf("Subscribe: %v", err)
	}
	for _, err := range c.Cache("default", "primary").Watch(p.ctx, nil) {
		if !errors.Is(err, client.ErrInvalidOption) {
			t.Errorf("Watch: %v", err)
		}
	}
	sub, err := c.Subscribe(p.ctx, "default", "demo")
	p.must(err)
	defer sub.Close()
	if err := sub.Each(p.ctx, nil); !errors.Is(err, client.ErrInvalidOption) {
		t.Errorf("Each: %v", err)
	}
}

// TestConcurrentReads reads a subscription on two goroutines. One of them hears that at once, and the other goes on.
func TestConcurrentReads(t *testing.T) {
	p := newPeer(t)
	c, _, _ := p.dialogue(codec.KnownFlags)
	sub, _, ev := p.subscribe(c, 7)
	read := begin(p, func() (client.Event, error) {
		for {
			if e, err := sub.Next(p.ctx); !errors.Is(err, client.ErrConcurrentRead) {
				return e, err
			}
		}
	})
	// It may not have begun yet: then one of these reads ends with its context, and a later one meets it.
	ended, end := context.WithCancel(p.ctx)
	end()
	for _, next := range []func() error{
		func() error { return second(sub.Next(ended)) }, func() error { return second(sub.NextBatch(ended)) },
	} {
		for err := next(); !errors.Is(err, client.ErrConcurrentRead); err = next() {
			if !errors.Is(err, context.Canceled) || p.ctx.Err() != nil {
				t.Fatalf("got %v", err)
			}
		}
	}
	p.must(ev.Send(codec.AppendEventBatch(nil, codec.LayoutShared, 0, 0, batch("one"))))
	if e, err := read(); err != nil || string(e.Payload) != "one" {
		t.Errorf("the first read: %q, %v", e.Payload, err)
	}

	// Close ends a read, and is none itself.
	read = begin(p, func() (client.Event, error) { return sub.Next(p.ctx) })
	var wg sync.WaitGroup
	wg.Go(func() { _ = sub.Close() })
	_ = sub.Close()
	if _, err := sub.Next(p.ctx); !errors.Is(err, client.ErrClosed) {
		t.Errorf("after Close: %v", err)
	}
	wg.Wait()
	if _, err := read(); !errors.Is(err, client.ErrClosed) {
		t.Errorf("the read that was closed: %v", err)
	}
}

// TestConnectRefused connects to addresses where nothing listens, which the system knows at once.
func TestConnectRefused(t *testing.T) {
	free, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	nobody := free.LocalAddr().String()
	free.Close()
	p := newPeer(t)
	p.serve(script.NewNormal())
	ctx, cancel := context.WithTimeoutCause(context.Background(), guard, errors.New("no answer in time"))
	defer cancel()
	for _, addr := range []string{nobody, nobody + "," + nobody} {
		_, err = client.Connect(ctx, addr, p.options(client.WithRequestTimeout(time.Hour))...)
		if !errors.Is(err, syscall.ECONNREFUSED) || !errors.Is(err, client.ErrDisconnected) || !client.Retryable(err) {
			t.Errorf("%s: %v", addr, err)
		}
	}
	c, err := client.Connect(ctx, nobody+","+p.Addr(), p.options()...)
	if err != nil {
		t.Fatal(err)
	}
	c.Close()
}
