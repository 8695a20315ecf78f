package broker_test

import (
	"testing"

	"github.com/felix-mq/felix/broker"
	"github.com/felix-mq/felix/codec"
	"github.com/felix-mq/felix/internal/relay"
	"github.com/felix-mq/felix/quicx"
)

// A peer that grants any credit and acknowledges nothing makes QUIC hold what publishers write to it, but no more than
// a little for each subscription: what comes after that waits in the queue, and is lost when that is full.
func TestUnacknowledgedWritesAreBounded(t *testing.T) {
	const budget, queue, events, size = 4 << 20, 256 << 10, 8000, 1000
	d := start(t, func(cfg *broker.Config) {
		cfg.RetainedBytes, cfg.QueueBytes, cfg.ReplayBytes = budget, queue, -1
		cfg.InlineBytes = 1200
	})
	r, err := relay.New(d.Addr().String())
	must(t, err)
	defer r.Close()
	c, err := quicx.Dial(testContext(t), r.Addr(), d.ClientTLS(), quicx.Config{StreamWindow: 1 << 36, ConnWindow: 1 << 38})
	must(t, err)
	defer c.Close(0, "")
	p := &peer{t, c, d}
	sub := p.open(p.auth(), codec.AppendSubscribe(nil, "t1", "default", "demo", codec.Start{}, 0, false))
	sub.wantMessage(codec.MsgAuthOK, "")
	sub.wantMessage(codec.MsgSubscribed, "")
	awaitMetric(t, d, "felix_subscriptions", 1)
	r.Silence(true)
	pub, ctx := connect(t, d).Publisher("default", "demo"), testContext(t)
	for i := range events {
		if i%64 == 63 {
			err = pub.Publish(ctx, make([]byte, size))
		} else {
			err = pub.Send(ctx, make([]byte, size))
		}
		must(t, err)
		if i%1000 != 999 {
			continue
		}
		if n := metric(t, d, "felix_retained_bytes"); n > budget {
			t.Fatalf("%v bytes retained of %d", n, budget)
		}
		// Queued in QUIC or in flight: up to 64 KiB that publishers wrote, and one write.
		if n := metric(t, d, "felix_delivered_bytes_total"); n > 512<<10 {
			t.Fatalf("%v bytes were handed to QUIC for a peer that acknowledges nothing", n)
		}
	}
	if n := series(t, d, "felix_dropped_events_total")["queue_full"]; n < events/2 {
		t.Errorf("%v of %d events were dropped, with a queue of %d bytes", n, events, queue)
	}
	r.Silence(false)
}
