package felixtest_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/felix-mq/felix/broker"
	"github.com/felix-mq/felix/client"
	"github.com/felix-mq/felix/client/felixtest"
	"github.com/felix-mq/felix/client/internal/clienttest"
)

// TestStreamsOutliveTheirTokens publishes and asks a cache while tokens of a few seconds end, one after the other. No
// call fails, and each publisher's events stay in order.
func TestStreamsOutliveTheirTokens(t *testing.T) {
	const leeway, slack = 60 * time.Second, 3 * time.Second // of the broker, and what the test leaves of it
	ctx := testContext(t)
	b := felixtest.Start(t, func(c *broker.Config) {
		c.Now = func() time.Time { return time.Now().Add(leeway - slack) }
		c.AuthTimeout = time.Second
	})
	var minted atomic.Int64
	c, err := client.Connect(ctx, b.Addr(), client.WithTLS(b.TLS()),
		client.WithTokenSource(felixtest.Tenant, func(context.Context) (string, error) {
			if n := minted.Add(1); n > 8 && n%3 == 0 { // the first open all streams
				return "", errors.New("no token at present")
			}
			return b.Token(2 * time.Second)
		}))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	const publishers = 4
	names := make([]string, publishers)
	for i := range names {
		names[i] = fmt.Sprint("stream-", i)
		b.AddStream(t, names[i])
	}
	reader := b.Connect(t)
	stop := make(chan struct{})
	time.AfterFunc(8*time.Second, func() { close(stop) })
	var wg sync.WaitGroup
	for _, name := range names {
		sub, err := reader.Subscribe(ctx, felixtest.Namespace, name)
		if err != nil {
			t.Fatal(err)
		}
		defer sub.Close()
		wg.Go(func() {
			pub := c.Publisher(felixtest.Namespace, name)
			var futures []clienttest.Outcome
			n := 0
			for ; ; n++ {
				select {
				case <-stop:
					if err := pub.Flush(ctx); err != nil {
						t.Errorf("flush: %v", err)
					}
					for _, f := range futures {
						if err := f.Wait(ctx); err != nil {
							t.Errorf("asynchronous publish: %v", err)
						}
					}
					if err := pub.Publish(ctx, []byte("end")); err != nil {
						t.Errorf("the last publish: %v", err)
					}
					return
				default:
				}
				payload := fmt.Append(nil, n)
				var err error
				switch n % 3 {
				case 0:
					futures = append(futures, clienttest.PublishAsync(ctx, pub, payload))
				case 1:
					err = pub.Send(ctx, payload)
				case 2:
					err = pub.Publish(ctx, payload)
				}
				if err != nil {
					t.Errorf("publish %d: %v", n, err)
				}
			}
		})
		wg.Go(func() {
			for want := 0; ; want++ {
				ev, err := sub.Next(ctx)
				if string(ev.Payload) == "end" {
					return
				}
				if err != nil || string(ev.Payload) != fmt.Sprint(want) {
					t.Errorf("event %d: %q, %v", want, ev.Payload, err)
					return
				}
			}
		})
	}
	wg.Go(func() {
		h := c.Cache(felixtest.Namespace, felixtest.Cache)
		for {
			select {
			case <-stop:
				return
			default:
			}
			if err := h.Put(ctx, "k", []byte("v"), 0); err != nil {
				t.Errorf("put: %v", err)
			}
			if _, err := h.Get(ctx, "k"); err != nil {
				t.Errorf("get: %v", err)
			}
		}
	})
	wg.Wait()
	if n := minted.Load(); n < 16 {
		t.Errorf("only %d tokens were asked for", n)
	}
}

// TestTokensEndAtOnce lets the broker's clock jump beyond the end of all tokens, again and again, while publishes and
// cache requests wait for replies: the client hears of it, and carries on with new tokens. No call of its users fails
// or is in doubt for that, and none is carried out twice.
func TestTokensEndAtOnce(t *testing.T) {
	ctx := testContext(t)
	var ahead atomic.Int64 // of the broker's clock
	b := felixtest.Start(t, func(c *broker.Config) {
		c.Now = func() time.Time { return time.Now().Add(time.Duration(ahead.Load())) }
		c.AuthTimeout = time.Second // which also says how often the broker looks for tokens that have ended
	})
	c, err := client.Connect(ctx, b.Addr(), client.WithTLS(b.TLS()),
		client.WithTokenSource(felixtest.Tenant, func(context.Context) (string, error) {
			return b.Token(time.Duration(ahead.Load()) + 30*time.Second)
		}))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	token, err := b.Token(24 * time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	reader, err := client.Connect(ctx, b.Addr(), client.WithTLS(b.TLS()), client.WithToken(felixtest.Tenant, token))
	if err != nil {
		t.Fatal(err)
	}
	defer reader.Close()
	sub, err := reader.Subscribe(ctx, felixtest.Namespace, felixtest.Stream)
	if err != nil {
		t.Fatal(err)
	}
	defer sub.Close()
	const callers = 16
	var work sync.WaitGroup
	stop := make(chan struct{})
	going := func() bool {
		select {
		case <-stop:
			return false
		default:
			return true
		}
	}
	read := make(chan []int, 1)
	go func() {
		got := make([]int, callers)
		defer func() { read <- got }()
		for {
			ev, err := sub.Next(ctx)
			if string(ev.Payload) == "end" {
				return
			}
			var i, n int
			if err == nil {
				_, err = fmt.Sscan(string(ev.Payload), &i, &n)
			}
			if err != nil || n != got[i] {
				t.Errorf("event %q of %d, want number %d: gap %v, %v", ev.Payload, i, got[i], ev.Gap, err)
				return
			}
			got[i]++
		}
	}()
	published := make([]int, callers)
	for i := range callers {
		work.Go(func() {
			pub := c.Publisher(felixtest.Namespace, felixtest.Stream)
			for going() {
				if err := pub.Publish(ctx, fmt.Append(nil, i, " ", published[i])); err != nil {
					t.Errorf("publisher %d: %v", i, err)
					return
				}
				published[i]++
			}
		})
		work.Go(func() {
			h, key := c.Cache(felixtest.Namespace, felixtest.Cache), fmt.Sprint(i)
			for n := 0; going(); n++ {
				if err := h.Put(ctx, key, fmt.Append(nil, n), 0); err != nil {
					t.Errorf("put: %v", err)
					return
				}
			}
		})
	}
	for range 8 {
		time.Sleep(500 * time.Millisecond)
		ahead.Add(int64(95 * time.Second))
	}
	close(stop)
	work.Wait()
	if err := c.Publisher(felixtest.Namespace, felixtest.Stream).Publish(ctx, []byte("end")); err != nil {
		t.Error(err)
	}
	if got := <-read; !slices.Equal(got, published) && !t.Failed() {
		t.Errorf("got %v of %v", got, published)
	}
}

// TestTokenEndsOnItsWay gives the client each second time a token that has ended: each call asks once more, and
// succeeds.
func TestTokenEndsOnItsWay(t *testing.T) {
	ctx := testContext(t)
	b := felixtest.Start(t)
	var asked atomic.Int64
	c, err := client.Connect(ctx, b.Addr(), client.WithTLS(b.TLS()),
		client.WithTokenSource(felixtest.Tenant, func(context.Context) (string, error) {
			if asked.Add(1)%2 == 1 {
				return b.Token(-2 * time.Minute)
			}
			return b.Token(time.Minute)
		}))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := c.Publisher(felixtest.Namespace, felixtest.Stream).Publish(ctx, []byte("x")); err != nil {
		t.Error(err)
	}
	sub, err := c.Subscribe(ctx, felixtest.Namespace, felixtest.Stream)
	if err != nil {
		t.Fatal(err)
	}
	sub.Close()
}
