package cost

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/felix-mq/felix/client"
	"github.com/felix-mq/felix/loadgen/brokerproc"
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
// have received something, and then with a few more that have received it late.
func (b *bench) subscriptions(ctx context.Context) (err error) {
	broker, err := brokerproc.Start(brokerproc.ExactAllocations, "FELIX_REPLAY_BYTES=-1") // past events are the topic's
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, broker.Stop()) }()
	all := eventConns + b.subs + lateSubs
	c, err := broker.Connect(ctx, client.WithTransport(client.Transport{EventConns: eventConns, SubscriptionsPerConn: (all + eventConns - 1) / eventConns}))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, c.Close()) }()
	// A first event opens the publisher's connection, which is not to be charged to the subscriptions.
	publisher := c.Publisher(broker.Namespace, "demo")
	if err := publisher.Publish(ctx, make([]byte, idlePayload)); err != nil {
		return err
	}
	subs := make([]*client.Subscription, 0, all)
	subscribe := func(n int, stream string) error {
		for range n {
			s, err := c.Subscribe(ctx, broker.Namespace, stream, client.WithoutResume())
			if err != nil {
				return err
			}
			subs = append(subs, s)
		}
		return nil
	}
	if err := subscribe(eventConns, "demo"); err != nil {
		return err
	}
	before, err := holdings(broker)
	if err != nil {
		return err
	}
	b.progress.Say("%d subscriptions", b.subs)
	if err := subscribe(b.subs, "demo"); err != nil {
		return err
	}
	fresh, err := holdings(broker)
	if err != nil {
		return err
	}
	b.subscriptionTable(b.subs, "that have received nothing", before, fresh)
	b.progress.Say("%d events for each of them", idleEvents)
	received := receive(ctx, subs, idleEvents)
	if err := publish(ctx, publisher, idleEvents); err != nil {
		return err
	}
	if err := received(); err != nil {
		return err
	}
	used, err := holdings(broker)
	if err != nil {
		return err
	}
	b.subscriptionTable(b.subs, fmt.Sprintf("that have received %d events of %d B", idleEvents, idlePayload), before, used)

	b.progress.Say("%d events for %d subscriptions that are late", lateEvents, lateSubs)
	if err := broker.AddStreams([]string{"late"}); err != nil {
		return err
	}
	if err := subscribe(lateSubs, "late"); err != nil {
		return err
	}
	if err := publish(ctx, c.Publisher(broker.Namespace, "late"), lateEvents); err != nil {
		return err
	}
	if err := receive(ctx, subs[eventConns+b.subs:], lateEvents)(); err != nil {
		return err
	}
	time.Sleep(time.Second) //nolint:forbidigo // nothing tells that the broker has noticed that they are idle
	late, err := holdings(broker)
	if err != nil {
		return err
	}
	b.subscriptionTable(lateSubs, fmt.Sprintf("that have received %d events of %d B, and read none until all were published", lateEvents, idlePayload), used, late)
	return nil
}

// What subscriptions have received before they are idle again. What comes to the late ones fills the window of their
// stream and most of their queue.
const (
	idleEvents  = 64
	idlePayload = 256
	lateSubs    = 64
	lateEvents  = 1200
)

// publish publishes events, one at a time.
func publish(ctx context.Context, p *client.Publisher, events int) error {
	for range events {
		if err := p.Publish(ctx, make([]byte, idlePayload)); err != nil {
			return err
		}
	}
	return nil
}

// receive begins to read subscriptions. The caller waits until each of them has received so many events.
func receive(ctx context.Context, subs []*client.Subscription, events int) (wait func() error) {
	ctx, fail := context.WithCancelCause(ctx)
	var wg sync.WaitGroup
	for _, s := range subs {
		wg.Go(func() {
			for range events {
				ev, err := s.Next(ctx)
				if err == nil && ev.IsGap() {
					err = errors.New("events were lost")
				}
				if err != nil {
					fail(err)
					return
				}
			}
		})
	}
	return func() error {
		defer fail(nil)
		wg.Wait()
		return context.Cause(ctx)
	}
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

func (b *bench) subscriptionTable(subs int, which string, before, after holding) {
	n := float64(subs)
	a := after.by.since(before.by)
	fmt.Fprintf(b.out, "\nIdle subscriptions: %d %s, over %d connections; bytes for each\n\n", subs, which, eventConns)
	fmt.Fprintf(b.out, "| %-16s | %8s |\n| :--------------- | -------: |\n", "package", "bytes")
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
	b.out.Say("bytes for each idle subscription beyond quic-go's", held, "<= 8192", held <= maxSubscription)
}

// idleTopics measures what topics without subscriptions and events take.
func (b *bench) idleTopics() (err error) {
	broker, err := brokerproc.Start()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, broker.Stop()) }()
	b.progress.Say("%d topics", b.topics)
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
	b.out.Say("MiB for 100 000 idle topics", each*100_000/mib, "<= 100", each*100_000 <= maxAllTopics)
	return nil
}
