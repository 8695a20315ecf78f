package client_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/felix-mq/felix/client"
	"github.com/felix-mq/felix/conformance/script"
)

// TestStress lets many goroutines use one client while its broker ends streams and connections at random. Each call
// ends, with an error that is documented or without one; a subscription has no holes until it ends; the cache gives back
// what was put; and nothing is left over.
func TestStress(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	p := newPeer(t)
	broker := script.NewNormal()
	p.serve(broker)
	c := p.connect(client.WithPublishConns(2), client.WithEventConns(2), client.WithSubscriptionsPerConn(4))

	ctx, cancel := context.WithCancel(p.ctx)
	var work sync.WaitGroup
	var published, delivered, cached, failed atomic.Int64
	note := func(what string, err error) {
		if err == nil {
			return
		}
		failed.Add(1)
		if ctx.Err() == nil && !documented(err) {
			t.Errorf("%s: %v (%T)", what, err, err)
		}
	}
	const topics = 4
	for i := range 8 { // publishers
		pub := c.Publisher("default", fmt.Sprint(i%topics))
		work.Go(func() {
			for k := 0; ctx.Err() == nil; k++ {
				var err error
				switch k % 3 {
				case 0:
					err = pub.Publish(ctx, fmt.Append(nil, i, " ", k))
				case 1:
					err = pub.PublishBatch(ctx, [][]byte{fmt.Append(nil, i, " ", k), make([]byte, 2000)})
				case 2:
					short, stop := context.WithTimeout(ctx, time.Millisecond)
					err = pub.Publish(short, make([]byte, 10_000))
					stop()
				}
				if err == nil {
					published.Add(1)
				}
				note("publish", err)
			}
		})
	}
	for i := range 8 { // subscribers
		work.Go(func() {
			for ctx.Err() == nil {
				sub, err := c.Subscribe(ctx, "default", fmt.Sprint(i%topics), client.FromEarliest())
				note("subscribe", err)
				if err != nil {
					continue
				}
				for n, last := 0, uint64(0); err == nil && n < 500; n++ {
					var ev client.Event
					if ev, err = sub.Next(ctx); err != nil {
						break
					}
					if n > 0 && ev.Offset != last+1 {
						t.Errorf("offset %d behind %d", ev.Offset, last)
					}
					last = ev.Offset
					delivered.Add(1)
				}
				note("next", err)
				if err := sub.Close(); err != nil {
					t.Error(err)
				}
			}
		})
	}
	for i := range 4 { // cache users, each with its own key
		cache := c.Cache("default", "primary")
		work.Go(func() {
			key := fmt.Sprint(i)
			for k := 0; ctx.Err() == nil; k++ {
				value := fmt.Sprint(k)
				err := cache.Put(ctx, key, []byte(value), client.NoExpiry)
				note("put", err)
				if err != nil {
					key = fmt.Sprint(i, " ", k) // the value may still be stored, at any time
					continue
				}
				got, err := cache.Get(ctx, key)
				note("get", err)
				if err == nil {
					if string(got) != value {
						t.Errorf("cache: got %q, want %q", got, value)
					}
					cached.Add(1)
				}
			}
		})
	}
	kills := make(map[string]int)
	work.Go(func() {
		rng := rand.New(rand.NewPCG(seed, 0))
		for ctx.Err() == nil {
			// The pace lets work be done in between; nothing depends on it.
			select {
			case <-time.After(time.Duration(rng.IntN(4000)) * time.Microsecond):
			case <-ctx.Done():
			}
			kills[broker.Kill(rng)]++
		}
	})
	run := 2 * time.Second
	if testing.Short() {
		run /= 4
	}
	select {
	case <-time.After(run):
	case <-p.ctx.Done():
	}
	cancel()
	work.Wait()
	if p.ctx.Err() != nil {
		t.Error("not everything ended within the guard")
	}
	t.Logf("published %d, delivered %d, cached %d, failed %d, kills %v", published.Load(), delivered.Load(), cached.Load(), failed.Load(), kills)
	if published.Load() == 0 || delivered.Load() == 0 || cached.Load() == 0 {
		t.Error("nothing got through")
	}
}

// documented reports whether err is one that a caller has to expect of a broker that ends streams and connections.
func documented(err error) bool {
	for _, target := range []error{
		client.ErrInDoubt, client.ErrEnded, client.ErrTimeout,
		net.ErrClosed, io.EOF, context.DeadlineExceeded, // lost connections, finished streams, the call's own deadline
	} {
		if errors.Is(err, target) {
			return true
		}
	}
	return matches(err, errReset)
}
