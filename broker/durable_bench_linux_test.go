package broker_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/felix-mq/felix/broker"
	"github.com/felix-mq/felix/client"
)

// BenchmarkDurable measures acknowledged publishes of 1 KiB to streams of class device, from client to client over QUIC
// on loopback: many publishers on one stream, each with a stream of its own, and one alone, next to a loop that writes
// as much to a file and syncs it. Files are where temporary files are, which has to be on the disk that is to be
// measured.
//
//	TMPDIR=/var/tmp go test ./broker -run '^$' -bench Durable -benchtime 3s -count 5
func BenchmarkDurable(b *testing.B) {
	b.Run("bare", benchmarkBare)
	b.Run("publishers=1/streams=1", func(b *testing.B) { benchmarkDurable(b, 1, 1) })
	b.Run("publishers=64/streams=1", func(b *testing.B) { benchmarkDurable(b, 64, 1) })
	b.Run("publishers=1000/streams=1000", func(b *testing.B) { benchmarkDurable(b, 1000, 1000) })
}

const benchmarkPayload = 1 << 10

// report reports the rate, and percentiles of latencies.
func report(b *testing.B, took time.Duration, latencies []time.Duration) {
	slices.Sort(latencies)
	at := func(share float64) float64 {
		return float64(latencies[min(int(share*float64(len(latencies))), len(latencies)-1)]) / 1e3
	}
	b.ReportMetric(float64(len(latencies))/took.Seconds(), "publishes/s")
	b.ReportMetric(at(0.5), "p50-µs")
	b.ReportMetric(at(0.99), "p99-µs")
}

// benchmarkBare is what the disk does: a write and a sync, one after the other, into space that exists.
func benchmarkBare(b *testing.B) {
	f, err := os.Create(filepath.Join(b.TempDir(), "bare"))
	if err != nil {
		b.Fatal(err)
	}
	defer f.Close()
	payload := randomBytes(benchmarkPayload)
	const size = 64 << 20
	if err := f.Truncate(size); err != nil {
		b.Fatal(err)
	}
	latencies := make([]time.Duration, 0, b.N)
	began := time.Now()
	for i := 0; b.Loop(); i++ {
		start := time.Now()
		if _, err := f.WriteAt(payload, int64(i)*benchmarkPayload%size); err != nil {
			b.Fatal(err)
		}
		if err := syscall.Fdatasync(int(f.Fd())); err != nil {
			b.Fatal(err)
		}
		latencies = append(latencies, time.Since(start))
	}
	report(b, time.Since(began), latencies)
}

func randomBytes(n int) []byte {
	all := make([]byte, n)
	for i := range all {
		all[i] = byte(rand.Uint32())
	}
	return all
}

func benchmarkDurable(b *testing.B, publishers, streams int) {
	cfg := broker.DefaultConfig()
	cfg.Bind = "127.0.0.1:0"
	cfg.Storage.Dir = b.TempDir()
	d, err := broker.NewDev(cfg, broker.DevOptions{})
	if err != nil {
		b.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- d.Serve(context.Background()) }()
	defer func() {
		if err := d.Shutdown(context.Background()); err != nil {
			b.Error(err)
		}
		if err := <-served; !errors.Is(err, broker.ErrShutdown) {
			b.Error(err)
		}
	}()
	ctx := b.Context()
	c, err := client.Connect(ctx, d.Addr().String(), client.WithTLS(d.ClientTLS()), client.WithToken(d.Tenant, d.Token))
	if err != nil {
		b.Fatal(err)
	}
	defer c.Close()
	all := make([]*client.Publisher, publishers)
	for i := range all {
		name := fmt.Sprint("stream-", i%streams)
		if err := d.AddDurableStream(d.Tenant, d.Namespace, name); err != nil {
			b.Fatal(err)
		}
		all[i] = c.Publisher(d.Namespace, name)
		if err := all[i].Publish(ctx, []byte("first")); err != nil { // streams and files are there
			b.Fatal(err)
		}
	}
	payload := randomBytes(benchmarkPayload)
	latencies := make([]time.Duration, b.N)
	var next atomic.Int64
	var work sync.WaitGroup
	b.ResetTimer()
	began := time.Now()
	for _, p := range all {
		work.Go(func() {
			for {
				i := next.Add(1) - 1
				if i >= int64(b.N) {
					return
				}
				start := time.Now()
				if err := p.Publish(ctx, payload); err != nil {
					b.Error(err)
					return
				}
				latencies[i] = time.Since(start)
			}
		})
	}
	work.Wait()
	b.StopTimer()
	report(b, time.Since(began), latencies)
}
