package main

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/felix-mq/felix/benchmarks/internal/brokerproc"
	"github.com/felix-mq/felix/client"
)

// Budgets of what is idle.
const (
	maxSubscription = 8 << 10
	maxAllTopics    = 100 << 20 // of 100 000
)

// memory is the table of what is held for subscriptions and topics that nobody uses.
func (b *bench) memory(ctx context.Context) error {
	if err := b.subscriptions(ctx); err != nil {
		return err
	}
	return b.idleTopics()
}

// eventConns is how many connections the subscriptions are spread over.
const eventConns = 8

// subscriptions compares a broker with one subscription on each connection and with all of them, before and after they
// have received something.
func (b *bench) subscriptions(ctx context.Context) (err error) {
	broker, err := brokerproc.Start(brokerproc.ExactAllocations)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, broker.Stop()) }()
	all := eventConns + b.subs
	c, err := broker.Connect(ctx, client.WithEventConns(eventConns), client.WithSubscriptionsPerConn((all+eventConns-1)/eventConns))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, c.Close()) }()
	// A first event through the connection of the publisher, so that it is not charged to the subscriptions.
	publisher := c.Publisher(broker.Namespace, "demo")
	if err := publisher.Publish(ctx, make([]byte, idlePayload)); err != nil {
		return err
	}
	subs := make([]*client.Subscription, 0, all)
	subscribe := func(n int) error {
		for range n {
			s, err := c.Subscribe(ctx, broker.Namespace, "demo")
			if err != nil {
				return err
			}
			subs = append(subs, s)
		}
		return nil
	}
	if err := subscribe(eventConns); err != nil {
		return err
	}
	before, err := holdings(broker)
	if err != nil {
		return err
	}
	b.say("%d subscriptions", b.subs)
	if err := subscribe(b.subs); err != nil {
		return err
	}
	fresh, err := holdings(broker)
	if err != nil {
		return err
	}
	b.subscriptionTable("that have received nothing", before, fresh)
	b.say("%d events for each of them", idleEvents)
	if err := exchange(ctx, publisher, subs); err != nil {
		return err
	}
	used, err := holdings(broker)
	if err != nil {
		return err
	}
	b.subscriptionTable(fmt.Sprintf("that have received %d events of %d B", idleEvents, idlePayload), before, used)
	return nil
}

// What subscriptions have received before they are idle again.
const (
	idleEvents  = 64
	idlePayload = 256
)

// exchange publishes events, one at a time, and waits until every subscription has received them.
func exchange(ctx context.Context, p *client.Publisher, subs []*client.Subscription) error {
	ctx, fail := context.WithCancelCause(ctx)
	defer fail(nil)
	var wg sync.WaitGroup
	for _, s := range subs {
		wg.Go(func() {
			for range idleEvents {
				if _, err := s.Next(ctx); err != nil {
					fail(err)
					return
				}
			}
		})
	}
	for range idleEvents {
		if err := p.Publish(ctx, make([]byte, idlePayload)); err != nil {
			fail(err)
		}
	}
	wg.Wait()
	return context.Cause(ctx)
}

// holding is what a broker holds at one moment.
type holding struct {
	brokerproc.Memory
	by account
}

func holdings(broker *brokerproc.Process) (h holding, err error) {
	p, err := broker.Allocations()
	if err != nil {
		return h, err
	}
	h.by = accountOf(p)
	h.Memory, err = broker.Memory()
	return h, err
}

func (b *bench) subscriptionTable(which string, before, after holding) {
	n := float64(b.subs)
	a := after.by.since(before.by)
	fmt.Fprintf(b.out, "\nIdle subscriptions: %d %s, over %d connections; bytes for each\n\n", b.subs, which, eventConns)
	fmt.Fprintf(b.out, "| %-16s | %8s |\n| :--------------- | -------: |\n", "room", "bytes")
	const row = "| %-16s | %8.0f |\n"
	for _, room := range a.rooms(func(u usage) float64 { return u.heldBytes }) {
		if held := a[room].heldBytes / n; held >= 1 || held <= -1 {
			fmt.Fprintf(b.out, row, room, held)
		}
	}
	stacks := float64(after.Stacks-before.Stacks) / n
	fmt.Fprintf(b.out, row, "(stacks)", stacks)
	fmt.Fprintf(b.out, row, "heap, all rooms", float64(after.Heap-before.Heap)/n)
	fmt.Fprintf(b.out, "\n%d goroutines for all of them\n", after.Goroutines-before.Goroutines)
	held := a.ours().heldBytes/n + stacks
	b.verdict("bytes for each idle subscription beyond quic-go's", held, "<= 8192", held <= maxSubscription)
}

// idleTopics measures what topics without subscriptions and events take.
func (b *bench) idleTopics() (err error) {
	broker, err := brokerproc.Start()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, broker.Stop()) }()
	b.say("%d topics", b.topics)
	before, err := broker.Memory()
	if err != nil {
		return err
	}
	names := make([]string, b.topics)
	for i := range names {
		names[i] = fmt.Sprintf("sensors.building-%d.floor-%d.room-%d", i%100, i/100%10, i)
	}
	if err := broker.AddStreams(names); err != nil {
		return err
	}
	after, err := broker.Memory()
	if err != nil {
		return err
	}
	each := float64(after.Heap-before.Heap) / float64(b.topics)
	fmt.Fprintf(b.out, "\nIdle topics: %d, %.0f bytes each\n\n", b.topics, each)
	const mib = 1 << 20
	b.verdict("MiB for 100 000 idle topics", each*100_000/mib, "<= 100", each*100_000 <= maxAllTopics)
	return nil
}
