package client_test

import (
	"context"
	"fmt"
	"testing"

	"github.com/felix-mq/felix/client"
	"github.com/felix-mq/felix/codec"
)

var shapes = []struct{ size, batch int }{{256, 1}, {256, 64}, {4096, 1}, {4096, 64}}

// BenchmarkPublish waits for each acknowledgement before the next batch.
func BenchmarkPublish(b *testing.B) {
	benchmarkPublish(b, (*client.Publisher).Publish)
}

// BenchmarkSend sends one batch after the other. The broker reads them all.
func BenchmarkSend(b *testing.B) {
	benchmarkPublish(b, (*client.Publisher).Send)
}

func benchmarkPublish(b *testing.B, publish func(*client.Publisher, context.Context, ...[]byte) error) {
	for _, s := range shapes {
		b.Run(fmt.Sprintf("size=%d/batch=%d", s.size, s.batch), func(b *testing.B) {
			p := sinkPeer(b)
			pub := p.connect().Publisher("default", "demo")
			payloads := repeat(make([]byte, s.size), s.batch)
			ctx := context.Background()
			p.must(pub.Publish(ctx, payloads...))
			b.SetBytes(int64(s.size * s.batch))
			b.ReportAllocs()
			for b.Loop() {
				if err := publish(pub, ctx, payloads...); err != nil {
					b.Fatal(err)
				}
			}
			p.must(pub.Publish(ctx, payloads...)) // when it returns, everything has arrived
			b.StopTimer()
		})
	}
}

// BenchmarkDeliver reads batches as fast as a broker can send them.
func BenchmarkDeliver(b *testing.B) {
	for _, s := range shapes {
		b.Run(fmt.Sprintf("size=%d/batch=%d", s.size, s.batch), func(b *testing.B) { deliver(b, s.size, s.batch, client.WithViews()) })
		b.Run(fmt.Sprintf("size=%d/batch=%d/owned", s.size, s.batch), func(b *testing.B) { deliver(b, s.size, s.batch) })
	}
}

func deliver(b *testing.B, size, batch int, opts ...client.SubscribeOption) {
	p := newPeer(b)
	c, _, _ := p.dialogue(codec.KnownFlags)
	sub, _, ev := p.subscribe(c, 5, opts...)
	frame := codec.AppendEventBatch(nil, codec.LayoutSharedOffsets, 0, 0, repeat(make([]byte, size), batch))
	sent := do(p, func() error {
		for {
			if err := ev.Send(frame); err != nil {
				return nil //nolint:nilerr // the subscription was closed
			}
		}
	})
	ctx := context.Background()
	b.SetBytes(int64(size * batch))
	b.ReportAllocs()
	for b.Loop() {
		for range batch {
			if _, err := sub.Next(ctx); err != nil {
				b.Fatal(err)
			}
		}
	}
	b.StopTimer()
	p.must(sub.Close())
	p.must(sent())
}
