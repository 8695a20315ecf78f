package client_test

import (
	"context"
	"errors"
	"fmt"
	"log"
	"time"

	"github.com/felix-mq/felix/client"
)

func ExampleConnect() {
	ctx := context.Background()
	broker := startBroker()
	defer broker.Close()

	c, err := client.Connect(ctx, broker.Addr,
		client.WithTLS(broker.TLS), // who the broker has to be
		client.WithToken("t1", broker.Token),
		client.WithRequestTimeout(5*time.Second), // for calls without a deadline of their own
	)
	if err != nil {
		log.Fatal(err)
	}
	defer c.Close()

	err = c.Publisher("default", "demo").Publish(ctx, []byte("hello"))
	fmt.Println(err)
	// Output: <nil>
}

// Publish waits for the acknowledgement: when it returns nil, the event has been offered to every subscription.
func ExamplePublisher_Publish() {
	ctx := context.Background()
	c, end := connect(ctx)
	defer end()

	orders := c.Publisher("default", "orders")
	for _, order := range []string{"two coffees", "one tea"} {
		if err := orders.Publish(ctx, []byte(order)); err != nil {
			log.Fatal(err)
		}
		fmt.Println("published:", order)
	}
	// Output:
	// published: two coffees
	// published: one tea
}

// A batch is published as a unit, for the price of one message.
func ExamplePublisher_Publish_batch() {
	ctx := context.Background()
	c, end := connect(ctx)
	defer end()

	err := c.Publisher("default", "readings").Publish(ctx,
		[]byte("21.5"), []byte("21.7"), []byte("21.6"),
	)
	fmt.Println(err)
	// Output: <nil>
}

// Send asks for no acknowledgement. It is the fastest way, and nothing reports the outcome. A later publish on the same
// stream is carried out after it, so its acknowledgement covers both.
func ExamplePublisher_Send() {
	ctx := context.Background()
	c, end := connect(ctx)
	defer end()

	ticks := c.Publisher("default", "ticks")
	for i := range 1000 {
		if err := ticks.Send(ctx, fmt.Append(nil, "tick ", i)); err != nil {
			log.Fatal(err)
		}
	}
	err := ticks.Publish(ctx, []byte("the last one"))
	fmt.Println(err)
	// Output: <nil>
}

// A subscription delivers what is published after Subscribe has returned, in order.
func ExampleClient_Subscribe() {
	ctx := context.Background()
	c, end := connect(ctx)
	defer end()

	sub, err := c.Subscribe(ctx, "default", "demo")
	if err != nil {
		log.Fatal(err)
	}
	defer sub.Close()

	err = c.Publisher("default", "demo").Publish(ctx, []byte("first"), []byte("second"))
	if err != nil {
		log.Fatal(err)
	}
	for range 2 {
		ev, err := sub.Next(ctx)
		if err != nil {
			log.Fatal(err)
		}
		fmt.Printf("%s\n", ev.Payload) // a view: copy what has to outlive the next call
	}
	// Output:
	// first
	// second
}

// NextBatch hands out the events of a frame together. How events are put into frames means nothing.
func ExampleSubscription_NextBatch() {
	ctx := context.Background()
	c, end := connect(ctx)
	defer end()

	sub, err := c.Subscribe(ctx, "default", "demo")
	if err != nil {
		log.Fatal(err)
	}
	defer sub.Close()

	err = c.Publisher("default", "demo").Publish(ctx, []byte("a"), []byte("b"), []byte("c"))
	if err != nil {
		log.Fatal(err)
	}
	for seen := 0; seen < 3; {
		batch, err := sub.NextBatch(ctx)
		if err != nil {
			log.Fatal(err)
		}
		for _, payload := range batch.Payloads() {
			fmt.Printf("%s\n", payload)
		}
		seen += batch.Len()
	}
	// Output:
	// a
	// b
	// c
}

// The broker keeps the last events of a stream. Where they have offsets, a subscriber can begin with any of them.
func ExampleFromEarliest() {
	ctx := context.Background()
	c, end := connect(ctx)
	defer end()

	pub := c.Publisher("default", "demo")
	for _, s := range []string{"one", "two", "three"} {
		if err := pub.Publish(ctx, []byte(s)); err != nil {
			log.Fatal(err)
		}
	}
	sub, err := c.Subscribe(ctx, "default", "demo", client.FromEarliest())
	if err != nil {
		log.Fatal(err)
	}
	defer sub.Close()
	for range 3 {
		ev, err := sub.Next(ctx)
		if err != nil {
			log.Fatal(err)
		}
		fmt.Printf("%d: %s\n", ev.Offset, ev.Payload)
	}
	// Output:
	// 0: one
	// 1: two
	// 2: three
}

// A subscriber that knows the offset of the last event it has handled goes on with the next one.
func ExampleFromOffset() {
	ctx := context.Background()
	c, end := connect(ctx)
	defer end()

	err := c.Publisher("default", "demo").Publish(ctx, []byte("one"), []byte("two"), []byte("three"))
	if err != nil {
		log.Fatal(err)
	}
	lastHandled := uint64(1)
	sub, err := c.Subscribe(ctx, "default", "demo", client.FromOffset(lastHandled+1))
	if err != nil {
		log.Fatal(err)
	}
	defer sub.Close()
	ev, err := sub.Next(ctx)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Printf("%d: %s\n", ev.Offset, ev.Payload)

	_, err = c.Subscribe(ctx, "default", "demo", client.FromOffset(100))
	if refused, ok := errors.AsType[*client.CursorError](err); ok {
		fmt.Println("too old:", refused.TooOld, "available:", refused.Available)
	}
	// Output:
	// 2: three
	// too old: false available: 3
}

func ExampleCache_Put() {
	ctx := context.Background()
	c, end := connect(ctx)
	defer end()

	sessions := c.Cache("default", "sessions")
	if err := sessions.Put(ctx, "alice", []byte("logged in"), time.Hour); err != nil {
		log.Fatal(err)
	}
	value, err := sessions.Get(ctx, "alice") // every client reads the new value from now on
	if err != nil {
		log.Fatal(err)
	}
	fmt.Printf("%s\n", value)
	// Output: logged in
}

// A miss is an error of its own, so that an empty value can be told from none.
func ExampleCache_Get() {
	ctx := context.Background()
	c, end := connect(ctx)
	defer end()

	_, err := c.Cache("default", "sessions").Get(ctx, "bob")
	switch {
	case errors.Is(err, client.ErrMiss):
		fmt.Println("bob has no session")
	case err != nil:
		log.Fatal(err)
	}
	// Output: bob has no session
}

// The error of a publish says what may have happened.
func ExampleBrokerError() {
	ctx := context.Background()
	c, end := connect(ctx)
	defer end()

	err := c.Publisher("default", "demo").Publish(ctx, []byte("refuse me"))
	refused, isRefusal := errors.AsType[*client.BrokerError](err)
	switch {
	case err == nil:
		fmt.Println("published")
	case errors.Is(err, client.ErrInDoubt):
		fmt.Println("perhaps published: no answer came")
	case isRefusal:
		fmt.Println("refused:", refused.Message)
	default:
		fmt.Println("not sent:", err)
	}
	// Output: refused: publish admission timed out
}
