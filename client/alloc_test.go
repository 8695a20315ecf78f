package client_test

import (
	"context"
	"testing"
	"time"

	"github.com/felix-mq/felix/client"
	"github.com/felix-mq/felix/codec"
	"github.com/felix-mq/felix/conformance/script"
	"github.com/felix-mq/felix/internal/race"
	"github.com/felix-mq/felix/quicx"
)

func skipAllocations(t *testing.T) {
	t.Helper()
	if race.Enabled {
		t.Skip("allocation counts mean nothing under the race detector")
	}
}

// allocsOfNext returns what each of n events costs that have arrived, after a first one.
func allocsOfNext(p *peer, sub *client.Subscription, n int) float64 {
	p.tb.Helper()
	next := func() {
		if _, err := sub.Next(p.ctx); err != nil {
			p.tb.Error(err)
		}
	}
	next() // the frame is there
	return testing.AllocsPerRun(n, next)
}

// TestAllocNext takes events out of a frame that has arrived: views cost nothing, and an event that is kept its
// payload.
func TestAllocNext(t *testing.T) {
	skipAllocations(t)
	const runs = 1000
	p := newPeer(t)
	c, _, _ := p.dialogue(codec.KnownFlags)
	sub, _, ev := p.subscribe(c, 5, client.WithViews())
	p.must(ev.Send(codec.AppendEventBatch(nil, codec.LayoutSharedOffsets, 0, 7, repeat([]byte("payload"), 2*runs+3))))
	if n := allocsOfNext(p, sub, runs); n != 0 {
		t.Errorf("%v allocations per event", n)
	}
	var kept client.Event
	if n := testing.AllocsPerRun(runs, func() {
		ev, err := sub.Next(p.ctx)
		if err != nil {
			t.Error(err)
		}
		kept = ev.Clone()
	}); n > 1 {
		t.Errorf("%v allocations per event that is kept", n)
	}
	if string(kept.Payload) != "payload" {
		t.Errorf("kept %q", kept.Payload)
	}
}

// TestAllocOwned takes events that the caller owns: one allocation for each, the payload.
func TestAllocOwned(t *testing.T) {
	skipAllocations(t)
	const runs = 1000
	p := newPeer(t)
	c, _, _ := p.dialogue(codec.KnownFlags)
	sub, _, ev := p.subscribe(c, 5)
	p.must(ev.Send(codec.AppendEventBatch(nil, codec.LayoutSharedOffsets, 0, 7, repeat([]byte("payload"), runs+2))))
	if n := allocsOfNext(p, sub, runs); n > 1 {
		t.Errorf("%v allocations per event", n)
	}
}

// TestAllocNextBatch takes frames that have arrived, with the context that the subscription knows.
func TestAllocNextBatch(t *testing.T) {
	skipAllocations(t)
	const runs = 100
	p := newPeer(t)
	c, _, _ := p.dialogue(codec.KnownFlags)
	sub, _, ev := p.subscribe(c, 5)
	var frames []byte
	for range runs + 2 {
		frames = codec.AppendEventBatch(frames, codec.LayoutSharedOffsets, 0, 7, make([][]byte, 64))
	}
	p.must(ev.Send(frames))
	if _, err := sub.NextBatch(p.ctx); err != nil {
		t.Fatal(err)
	}
	if n := testing.AllocsPerRun(runs, func() {
		b, err := sub.NextBatch(p.ctx)
		if err != nil || b.Len() != 64 {
			t.Errorf("%d events, %v", b.Len(), err)
		}
		for range b.Payloads() {
		}
	}); n > 1 {
		t.Errorf("%v allocations per batch", n)
	}
}

// sinkPeer starts a broker that acknowledges whatever comes and allocates nothing for it.
func sinkPeer(tb testing.TB) *peer {
	p := newPeer(tb)
	p.Go(func() {
		for {
			conn, err := p.Accept()
			if err != nil {
				return
			}
			p.Go(func() { sinkStreams(p, conn) })
		}
	})
	return p
}

func sinkStreams(p *peer, conn *script.Conn) {
	for {
		ctl, err := conn.AcceptControl()
		if err != nil {
			return
		}
		p.Go(func() {
			if ctl.Auth(codec.KnownFlags) == nil {
				_ = ctl.Sink()
			}
		})
	}
}

// TestAllocPublish compares what a publish costs with what QUIC needs for the same bytes: all goroutines of the process
// are counted, those of both ends of the connection too.
func TestAllocPublish(t *testing.T) {
	skipAllocations(t)
	const runs = 200
	p := sinkPeer(t)
	c := p.connect()
	pub := c.Publisher("default", "demo")
	raw := dialRaw(p)
	for _, tc := range []struct {
		name     string
		payloads [][]byte
	}{
		{"small", batch("a", "b", "c")},
		// One packet each, so that the number of packets does not blur the count.
		{"64 of 12 bytes", repeat(make([]byte, 12), 64)},
	} {
		acked := codec.AppendPublishBatchAcked(nil, 1, codec.AckPerBatch, "t1", "default", "demo", tc.payloads)
		plain := codec.AppendPublishBatch(nil, "t1", "default", "demo", tc.payloads)
		for _, call := range []struct {
			name         string
			client, quic func() error
		}{
			{
				"Publish",
				func() error { return pub.Publish(context.Background(), tc.payloads...) },
				func() error { return raw.roundTrip(acked) },
			},
			{
				"Send",
				func() error { return pub.Send(context.Background(), tc.payloads...) },
				func() error { _, err := raw.s.Send().Write(plain); return err },
			},
		} {
			// The least of a few, because packets and acknowledgements do not fall alike.
			measure := func(f func() error) float64 {
				least := 1e9
				for range 3 {
					least = min(least, testing.AllocsPerRun(runs, func() {
						if err := f(); err != nil {
							t.Error(err)
						}
					}))
				}
				return least
			}
			quic, own := measure(call.quic), measure(call.client)
			t.Logf("%s, %s: %v allocations, QUIC alone %v", call.name, tc.name, own, quic)
			if own > quic+1 {
				t.Errorf("%s, %s: %v allocations, QUIC alone %v", call.name, tc.name, own, quic)
			}
		}
	}
}

// rawStream is a request stream without a client.
type rawStream struct {
	s  *quicx.Stream
	fr *quicx.FrameReader
}

func dialRaw(p *peer) *rawStream {
	qc, err := quicx.Dial(p.ctx, p.Addr(), p.ClientTLS(), quicx.Config{})
	p.must(err)
	s, err := qc.OpenStream(p.ctx)
	p.must(err)
	raw := &rawStream{s, quicx.NewFrameReader(s.Recv(), 0)}
	p.tb.Cleanup(func() {
		qc.Close(0, "")
		raw.fr.Close()
	})
	p.must(raw.roundTrip(codec.AppendAuth(nil, "t1", "token", codec.KnownFlags, true, 0)))
	return raw
}

func (r *rawStream) roundTrip(frame []byte) error {
	if _, err := r.s.Send().Write(frame); err != nil {
		return err
	}
	_, err := r.fr.Next()
	return err
}

func repeat(payload []byte, n int) [][]byte {
	b := make([][]byte, n)
	for i := range b {
		b[i] = payload
	}
	return b
}

// TestAllocPublishAsync compares what a batch costs, from its first event to its outcome, with what QUIC needs for the
// same bytes.
func TestAllocPublishAsync(t *testing.T) {
	skipAllocations(t)
	const runs, events = 200, 64
	p := sinkPeer(t)
	pub := p.connect(client.WithBatching(client.Batching{MaxEvents: events, Linger: time.Hour})).Publisher("default", "demo")
	told := make(chan error, events)
	tell := func(err error) { told <- err }
	payload := make([]byte, 12)
	acked := codec.AppendPublishBatchAcked(nil, 1, codec.AckPerBatch, "t1", "default", "demo", repeat(payload, events))
	raw := dialRaw(p)
	measure := func(f func() error) float64 {
		least := 1e9
		for range 3 {
			least = min(least, testing.AllocsPerRun(runs, func() {
				if err := f(); err != nil {
					t.Error(err)
				}
			}))
		}
		return least
	}
	quic := measure(func() error { return raw.roundTrip(acked) })
	own := measure(func() error {
		for range events {
			pub.PublishAsync(p.ctx, payload, tell)
		}
		for range events {
			if err := <-told; err != nil {
				return err
			}
		}
		return nil
	})
	t.Logf("%v allocations, QUIC alone %v", own, quic)
	if own > quic+1 {
		t.Errorf("%v allocations, QUIC alone %v", own, quic)
	}
}
