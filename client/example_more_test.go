package client_test

import (
	"context"
	"errors"
	"fmt"
	"log"
	"time"

	"github.com/felix-mq/felix/client"
)

// An asynchronous publish returns as soon as it is sent. Its outcome comes later.
func ExamplePublisher_PublishAsync() {
	ctx := context.Background()
	c, end := connect(ctx)
	defer end()

	orders := c.Publisher("default", "orders")
	failed := 0
	for i := range 1000 {
		orders.PublishAsync(ctx, fmt.Append(nil, "order ", i), func(err error) {
			if err != nil {
				failed++
			}
		})
	}
	if err := orders.Flush(ctx); err != nil { // everything has its outcome
		log.Fatal(err)
	}
	fmt.Println("failed:", failed)
	// Output: failed: 0
}

// Without a callback, Flush returns the first failure.
func ExampleWithBatching() {
	ctx := context.Background()
	broker := startBroker()
	defer broker.Close()
	c, err := client.Connect(ctx, broker.Addr, client.WithTLS(broker.TLS), client.WithToken("t1", broker.Token),
		client.WithBatching(client.Batching{MaxEvents: 4096, Linger: 5 * time.Millisecond}))
	if err != nil {
		log.Fatal(err)
	}
	defer c.Close()
	for i := range 10 {
		c.Publisher("default", "clicks").PublishAsync(ctx, fmt.Append(nil, "click ", i), nil)
	}
	fmt.Println(c.Flush(ctx))
	// Output: <nil>
}

// Flush waits until what was published before has its outcome.
func ExampleClient_Flush() {
	ctx := context.Background()
	c, end := connect(ctx)
	defer end()

	for i := range 10 {
		if err := c.Publisher("default", "ticks").Send(ctx, fmt.Append(nil, i)); err != nil {
			log.Fatal(err)
		}
	}
	fmt.Println(c.Flush(ctx))
	// Output: <nil>
}

// Drain is how a service ends: nothing new begins, and what has begun is not lost.
func ExampleClient_Drain() {
	ctx := context.Background()
	c, end := connect(ctx)
	defer end()

	c.Publisher("default", "orders").PublishAsync(ctx, []byte("the last order"), func(err error) {
		fmt.Println("outcome:", err)
	})
	deadline, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	fmt.Println(c.Drain(deadline))
	// Output:
	// outcome: <nil>
	// <nil>
}

func ExampleSubscription_Events() {
	ctx := context.Background()
	c, end := connect(ctx)
	defer end()

	sub, err := c.Subscribe(ctx, "default", "demo")
	if err != nil {
		log.Fatal(err)
	}
	defer sub.Close()
	err = c.Publisher("default", "demo").Publish(ctx, []byte("first"), []byte("last"))
	if err != nil {
		log.Fatal(err)
	}
	for ev, err := range sub.Events(ctx) {
		if err != nil {
			log.Fatal(err)
		}
		if ev.IsGap() {
			fmt.Printf("%d events were lost: %v\n", ev.Gap.Lost, ev.Gap.Reason)
			continue
		}
		fmt.Printf("%s\n", ev.Payload)
		if string(ev.Payload) == "last" {
			break
		}
	}
	// Output:
	// first
	// last
}

func ExampleSubscription_Each() {
	ctx := context.Background()
	c, end := connect(ctx)
	defer end()

	sub, err := c.Subscribe(ctx, "default", "demo")
	if err != nil {
		log.Fatal(err)
	}
	defer sub.Close()
	if err := c.Publisher("default", "demo").Publish(ctx, []byte("hello")); err != nil {
		log.Fatal(err)
	}
	enough := errors.New("enough")
	err = sub.Each(ctx, func(ev client.Event) error {
		fmt.Printf("%s\n", ev.Payload)
		return enough
	})
	fmt.Println(err)
	// Output:
	// hello
	// enough
}

// A payload lives until the next call. Clone makes one that can be kept.
func ExampleEvent_Clone() {
	ctx := context.Background()
	c, end := connect(ctx)
	defer end()

	sub, err := c.Subscribe(ctx, "default", "demo")
	if err != nil {
		log.Fatal(err)
	}
	defer sub.Close()
	err = c.Publisher("default", "demo").Publish(ctx, []byte("a"), []byte("b"))
	if err != nil {
		log.Fatal(err)
	}
	var kept []client.Event
	for range 2 {
		ev, err := sub.Next(ctx)
		if err != nil {
			log.Fatal(err)
		}
		kept = append(kept, ev) // its payload is the caller's
	}
	fmt.Printf("%s %s\n", kept[0].Payload, kept[1].Payload)
	// Output: a b
}

// What was lost on the way is reported with the event after it.
func ExampleGap() {
	report := func(ev client.Event) {
		switch {
		case ev.Gap == nil:
		case ev.Gap.Lost == 0:
			fmt.Printf("lost an unknown number of events: %v\n", ev.Gap.Reason)
		default:
			fmt.Printf("lost %d events: %v\n", ev.Gap.Lost, ev.Gap.Reason)
		}
		fmt.Printf("%s\n", ev.Payload)
	}
	report(client.Event{Payload: []byte("too slow"), Gap: &client.Gap{Reason: client.GapQueueFull, Lost: 12}})
	report(client.Event{Payload: []byte("the broker was restarted"), Gap: &client.Gap{Reason: client.GapEpoch}})
	// Output:
	// lost 12 events: queue_full
	// too slow
	// lost an unknown number of events: epoch
	// the broker was restarted
}

// The values of many keys take about the time of one.
func ExampleCache_GetMany() {
	ctx := context.Background()
	c, end := connect(ctx)
	defer end()

	prices := c.Cache("default", "prices")
	if err := prices.Put(ctx, "tea", []byte("3"), time.Minute); err != nil {
		log.Fatal(err)
	}
	for i, r := range prices.GetMany(ctx, "tea", "coffee") {
		fmt.Println(i, string(r.Value), errors.Is(r.Err, client.ErrMiss))
	}
	// Output:
	// 0 3 false
	// 1  true
}

// Retryable tells whether to try again; ErrInDoubt, whether that may publish twice.
func ExampleRetryable() {
	ctx := context.Background()
	c, end := connect(ctx)
	defer end()

	err := c.Publisher("default", "demo").Publish(ctx, []byte("refuse me"))
	fmt.Println(client.Retryable(err), errors.Is(err, client.ErrInDoubt))
	// Output: true false
}

// While the broker is not there, publishes fail at once, or go into a buffer, instead of waiting.
func ExampleWithWhileDown() {
	ctx := context.Background()
	broker := startBroker()
	defer broker.Close()
	c, err := client.Connect(ctx, broker.Addr, client.WithTLS(broker.TLS), client.WithToken("t1", broker.Token),
		client.WithWhileDown(client.WhileDownBuffer), client.WithWhileDownBytes(64<<20))
	if err != nil {
		log.Fatal(err)
	}
	defer c.Close()
	fmt.Println(c.Publisher("default", "demo").Publish(ctx, []byte("kept until it can be sent")))
	// Output: <nil>
}

func ExampleWithTokenSource() {
	ctx := context.Background()
	broker := startBroker()
	defer broker.Close()
	c, err := client.Connect(ctx, broker.Addr, client.WithTLS(broker.TLS),
		client.WithTokenSource("t1", func(context.Context) (string, error) {
			return broker.Token, nil // one that is kept, and renewed before it expires
		}))
	if err != nil {
		log.Fatal(err)
	}
	defer c.Close()
	fmt.Println(c.Publisher("default", "demo").Publish(ctx, nil))
	// Output: <nil>
}

// countingHook counts publishes that failed.
type countingHook struct{ publishes, failures int }

func (h *countingHook) OnPublish(context.Context, client.PublishInfo) func(error) {
	h.publishes++
	return func(err error) {
		if err != nil {
			h.failures++
		}
	}
}

func ExampleWithHooks() {
	ctx := context.Background()
	broker := startBroker()
	defer broker.Close()
	h := new(countingHook)
	c, err := client.Connect(ctx, broker.Addr, client.WithTLS(broker.TLS), client.WithToken("t1", broker.Token), client.WithHooks(h))
	if err != nil {
		log.Fatal(err)
	}
	defer c.Close()
	for _, payload := range []string{"take me", "refuse me"} {
		_ = c.Publisher("default", "demo").Publish(ctx, []byte(payload)) // the hook sees it
	}
	fmt.Println(h.publishes, "publishes,", h.failures, "failed")
	// Output: 2 publishes, 1 failed
}
