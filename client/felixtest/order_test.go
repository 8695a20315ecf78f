package felixtest_test

import (
	"context"
	"encoding/binary"
	"errors"
	"testing"
	"time"

	"github.com/felix-mq/felix/broker"
	"github.com/felix-mq/felix/client"
	"github.com/felix-mq/felix/client/felixtest"
	"github.com/felix-mq/felix/client/internal/clienttest"
	"github.com/felix-mq/felix/ring"
)

// TestOrderBehindAPublishGivenUp gives up a large publish to another topic of the same stream while the broker holds it
// back. The publishes around it all succeed, in order.
func TestOrderBehindAPublishGivenUp(t *testing.T) {
	b := felixtest.Start(t, func(c *broker.Config) { c.QueuePolicy, c.QueueCapacity = ring.Block, 4 })
	b.AddStream(t, "other")
	c := b.Connect(t, client.WithTransport(client.Transport{StreamWindow: 64 << 10}), client.WithBatching(client.Batching{MaxEvents: 1}))
	sub, err := c.Subscribe(t.Context(), felixtest.Namespace, felixtest.Stream)
	if err != nil {
		t.Fatal(err)
	}
	pub, other := c.Publisher(felixtest.Namespace, felixtest.Stream), c.Publisher(felixtest.Namespace, "other")
	var futures []clienttest.Outcome
	publish := func(n int) {
		for range n {
			payload := binary.BigEndian.AppendUint64(make([]byte, 0, 10_000), uint64(len(futures)))
			futures = append(futures, clienttest.PublishAsync(t.Context(), pub, payload[:10_000]))
		}
	}
	publish(25)
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := other.Publish(ctx, make([]byte, 4<<20)); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("the publish that was given up: %v", err)
	}
	read := make(chan error, 1)
	go func() {
		for want := range uint64(30) {
			ev, err := sub.Next(t.Context())
			if err == nil && binary.BigEndian.Uint64(ev.Payload) != want {
				err = errors.New("out of order")
			}
			if err != nil {
				read <- err
				return
			}
		}
		read <- nil
	}()
	publish(5)
	if err := <-read; err != nil {
		t.Error(err)
	}
	for i, f := range futures {
		if err := f.Wait(t.Context()); err != nil {
			t.Errorf("publish %d: %v", i, err)
		}
	}
}
