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
// ends, with an error that is documented or without one; a subscription has no holes until it ends; the cache gives
// back what was put; work of every kind goes on after whatever was ended; and nothing is left over.
func TestStress(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	p := newPeer(t)
	broker := script.NewNormal()
	p.serve(broker)
	c := p.connect(client.WithTransport(client.Transport{PublishConns: 2, EventConns: 2, SubscriptionsPerConn: 4}))

	ctx, cancel := context.WithCancel(p.ctx)
	var work sync.WaitGroup
	var published, delivered, cached, failed, ended atomic.Int64 // calls
	step := make(chan struct{}, 1)
	count := func(what *atomic.Int64) {
		what.Add(1)
		select {
		case step <- struct{}{}:
		default:
		}
	}
	note := func(what string, err error) {
		count(&ended)
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
					err = pub.Publish(ctx, fmt.Append(nil, i, " ", k), make([]byte, 2000))
				case 2:
					short, stop := context.WithTimeout(ctx, time.Millisecond)
					err = pub.Publish(short, make([]byte, 10_000))
					stop()
				}
				if err == nil {
					count(&published)
				}
				note("publish", err)
			}
		})
	}
	for i := range 8 { // subscribers
		work.Go(func() {
			for ctx.Err() == nil {
				sub, err := c.Subscribe(ctx, "default", fmt.Sprint(i%topics), client.FromEarliest(), client.WithoutResume())
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
						t.Errorf("offset %d after %d", ev.Offset, last)
					}
					last = ev.Offset
					count(&delivered)
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
					count(&cached)
				}
			}
		})
	}
	rounds := 50
	if testing.Short() {
		rounds = 15
	}
	rng := rand.New(rand.NewPCG(seed, 0))
	kills := make(map[string]int)
	// await waits for more of what is counted. It reports false if that does not come.
	await := func(what *atomic.Int64, more int64) bool {
		for goal := what.Load() + more; what.Load() < goal; {
			select {
			case <-step:
			case <-ctx.Done():
				return false
			}
		}
		return true
	}
	// A busy machine may spend all its time on handshakes: it is content with a few rounds.
	for round, start := 0, time.Now(); round < rounds && (round < 5 || time.Since(start) < guard/6); round++ {
		// The pace is that of the work: each kind of it comes through once before the next round.
		if !await(&published, 1) || !await(&delivered, 1) || !await(&cached, 1) {
			t.Errorf("round %d: the work does not go on", round)
			break
		}
		// Several in a row also meet what is about to recover.
		for range 1 + rng.IntN(5) {
			kills[broker.Kill(rng)]++
			await(&ended, rng.Int64N(8))
		}
	}
	cancel()
	work.Wait()
	t.Logf("published %d, delivered %d, cached %d, failed %d, kills %v", published.Load(), delivered.Load(), cached.Load(), failed.Load(), kills)
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
