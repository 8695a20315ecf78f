package storage

import (
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
)

// BenchmarkAppend appends 1 KiB from some publishers, each of which waits for its record to be safe. What the device
// can do without a log is printed by felix storage bench.
func BenchmarkAppend(b *testing.B) {
	for _, class := range []Class{ClassDevice, ClassOS} {
		for _, c := range []struct{ publishers, logs int }{{1, 1}, {64, 1}, {64, 64}, {1000, 1000}} {
			b.Run(fmt.Sprintf("class=%v/publishers=%d/logs=%d", class, c.publishers, c.logs), func(b *testing.B) {
				s, err := Open(b.TempDir(), Options{})
				if err != nil {
					b.Fatal(err)
				}
				defer s.Close()
				logs := make([]*Log, c.logs)
				for i := range logs {
					if logs[i], err = s.Log(key(i)); err != nil {
						b.Fatal(err)
					}
				}
				var left atomic.Int64
				left.Store(int64(b.N))
				var wait sync.WaitGroup
				b.SetBytes(1024)
				b.ReportAllocs()
				b.ResetTimer()
				for p := range c.publishers {
					wait.Go(func() {
						l, batch, done := logs[p%len(logs)], [][]byte{make([]byte, 1024)}, make(chan error, 1)
						finish := func(err error) { done <- err }
						for left.Add(-1) >= 0 {
							if _, err := l.Append(batch, class, finish); err != nil {
								b.Error(err)
								return
							}
							if err := <-done; err != nil {
								b.Error(err)
								return
							}
						}
					})
				}
				wait.Wait()
				b.StopTimer()
				st := s.Stats()
				b.ReportMetric(float64(st.Appends)/float64(max(st.Commits, 1)), "appends/commit")
			})
		}
	}
}

// BenchmarkRead reads a log of 64 MiB from the begin.
func BenchmarkRead(b *testing.B) {
	s, err := Open(b.TempDir(), Options{SegmentBytes: 16 << 20})
	if err != nil {
		b.Fatal(err)
	}
	defer s.Close()
	l, err := s.Log(key(0))
	if err != nil {
		b.Fatal(err)
	}
	var wait sync.WaitGroup
	batch := make([][]byte, 64)
	for i := range batch {
		batch[i] = make([]byte, 1024)
	}
	for range 1024 {
		wait.Add(1)
		if _, err := l.Append(batch, ClassOS, func(error) { wait.Done() }); err != nil {
			b.Fatal(err)
		}
	}
	wait.Wait()
	b.SetBytes(64 << 20)
	for b.Loop() {
		r, err := l.Read(0)
		if err != nil {
			b.Fatal(err)
		}
		for r.Offset() < l.Bounds().Tail {
			if _, err := r.Next(1 << 20); err != nil {
				b.Fatal(err)
			}
		}
	}
}
