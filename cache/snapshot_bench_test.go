package cache

import (
	"context"
	"fmt"
	"math/rand/v2"
	"runtime"
	"runtime/debug"
	"slices"
	"testing"
	"time"

	"github.com/felix-mq/felix/internal/child"
)

// benchStore returns a store with values of a size, bytes of them, and its snapshots in a directory of the disk.
func benchStore(b *testing.B, dir string, value, bytes int) (*Store, *Cache, *Snapshots, Loaded) {
	b.Helper()
	s := New(Options{MaxBytes: 4 << 30})
	c := s.Add(primary)
	n, err := s.OpenSnapshots(SnapshotOptions{Dir: dir})
	if err != nil {
		b.Fatal(err)
	}
	loaded, err := n.Load(b.Context())
	if err != nil {
		b.Fatal(err)
	}
	fill := rand.NewChaCha8([32]byte{})
	v := make([]byte, value)
	for i := range bytes / value {
		_, _ = fill.Read(v)
		if _, err := c.Put(benchKey(i), v, time.Hour); err != nil {
			b.Fatal(err)
		}
	}
	return s, c, n, loaded
}

func benchKey(i int) []byte { return fmt.Appendf(nil, "key-%08d", i) }

// BenchmarkSnapshotRestartScale writes snapshots of 1 GiB of values and loads them into another store, as a broker that
// ends and starts again does.
func BenchmarkSnapshotRestartScale(b *testing.B) {
	defer debug.SetGCPercent(debug.SetGCPercent(400)) // as in the broker
	for _, value := range []int{1 << 10, 64 << 10} {
		b.Run(fmt.Sprintf("value=%dKiB", value>>10), func(b *testing.B) {
			const bytes = 1 << 30
			dir := b.TempDir()
			s, _, n, _ := benchStore(b, dir, value, bytes)
			began := time.Now()
			w, err := n.Finish(b.Context())
			if err != nil {
				b.Fatal(err)
			}
			writing := time.Since(began)
			_ = n.Close()
			s.Close()
			runtime.GC()
			b.SetBytes(w.Bytes)
			var loading time.Duration // of the processors
			rounds := 0
			for b.Loop() {
				before, _ := child.CPUTime()
				s, _, n, loaded := benchStore(b, dir, value, 0)
				b.StopTimer()
				settle(s)
				after, _ := child.CPUTime()
				loading += after - before
				rounds++
				if loaded.Entries != bytes/int64(value) || !loaded.Clean {
					b.Fatalf("loaded %+v", loaded)
				}
				if _, err := n.Finish(b.Context()); err != nil { // nothing has changed: it stays clean
					b.Fatal(err)
				}
				_ = n.Close()
				s.Close()
				runtime.GC()
				b.StartTimer()
			}
			b.ReportMetric(loading.Seconds()/float64(rounds), "load-cpu-s")
			b.ReportMetric(writing.Seconds(), "write-s")
		})
	}
}

// BenchmarkSnapshotRequestsScale times gets and puts of one goroutine, a put after each get, while no snapshot is
// written and while one after the other is, with the pace of the broker.
func BenchmarkSnapshotRequestsScale(b *testing.B) {
	defer debug.SetGCPercent(debug.SetGCPercent(400))
	for _, value := range []int{1 << 10, 64 << 10} {
		for _, with := range []bool{false, true} {
			b.Run(fmt.Sprintf("value=%dKiB/snapshot=%v", value>>10, with), func(b *testing.B) {
				const bytes = 256 << 20
				s, c, n, _ := benchStore(b, b.TempDir(), value, bytes)
				ctx, stop := context.WithCancel(b.Context())
				done := make(chan int64)
				go func() {
					var written int64
					for with && ctx.Err() == nil {
						w, _ := n.Write(ctx, 64<<20)
						written += w.Bytes
					}
					done <- written
				}()
				gets, puts := make([]int64, 0, 1<<20), make([]int64, 0, 1<<20)
				v := make([]byte, value)
				for b.Loop() {
					key := benchKey(rand.IntN(bytes / value))
					began := time.Now()
					if got, ok := c.Get(key); ok {
						got.Release()
					}
					mid := time.Now()
					_, _ = c.Put(key, v, time.Hour)
					gets, puts = append(gets, int64(mid.Sub(began))), append(puts, int64(time.Since(mid)))
				}
				stop()
				<-done
				for name, all := range map[string][]int64{"get": gets, "put": puts} {
					slices.Sort(all)
					b.ReportMetric(float64(all[len(all)/2]), name+"-p50-ns")
					b.ReportMetric(float64(all[len(all)*99/100]), name+"-p99-ns")
					b.ReportMetric(float64(all[len(all)*999/1000]), name+"-p999-ns")
				}
				_ = n.Close()
				s.Close()
			})
		}
	}
}
