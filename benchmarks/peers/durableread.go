package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/felix-mq/felix/client"
	"github.com/felix-mq/felix/internal/child"
	"github.com/felix-mq/felix/loadgen"
	"github.com/felix-mq/felix/loadgen/brokerproc"
)

// Delivery of durable streams next to that of streams in memory, replay, and cursors in history next to live traffic.

const (
	historyStream = "history"
	liveStream    = "live"
	historyBytes  = 256 << 20 // of payload
	cursors       = 100
	liveRate      = 2000 // events per second next to cursors
)

// Names of systems.
const (
	memoryName    = "memory"
	osName        = "os"
	aloneName     = "alone"
	pacedName     = "paced"
	unlimitedName = "unlimited"
)

func readRows() []durableRow {
	wide := batches(durablePayload, 10, 8)
	narrow := batches(durablePayload, 1, 1)
	return []durableRow{
		{
			name: "fanout/10", title: "1 publisher to 10 subscriptions, 1 KiB × 64", shown: []string{megabytes},
			systems: []durableSystem{
				{memoryName, "Felix, in memory", deliver(wide, "")},
				{osName, "Felix, os", deliver(wide, "os")},
			},
			goals: []durableGoal{{megabytes, osName, memoryName, limit{true, 0.7}}},
		},
		{
			name: "replay", title: "Replay to 1 subscription, 1 KiB", shown: []string{megabytes}, prepare: writeHistory,
			systems: []durableSystem{
				{liveStream, "Live, in memory, 1 KiB × 64", deliver(narrow, "")},
				{"replay", "Replay of 256 MiB from the page cache", runReplay},
			},
			goals: []durableGoal{{megabytes, "replay", liveStream, limit{true, 0.9}}},
		},
		{
			name: "history", title: fmt.Sprintf("Live delivery, os, 1 KiB, %d/s", liveRate), shown: []string{p50Micros, p99Micros, "MB/s of history"}, prepare: writeHistory,
			systems: []durableSystem{
				{aloneName, "alone", besideCursors(0, false)},
				{pacedName, fmt.Sprintf("next to %d cursors in history at a given rate", cursors), besideCursors(cursors, true)},
				{unlimitedName, fmt.Sprintf("next to %d cursors in history, as fast as they can", cursors), besideCursors(cursors, false)},
			},
			goals: []durableGoal{
				{p99Micros, pacedName, aloneName, limit{false, 1.3}},
				{p99Micros, unlimitedName, aloneName, limit{false, 1.3}},
			},
		},
	}
}

// deliver measures the delivery of a stream of that class, or of one in memory if it is empty.
func deliver(s shape, class string) func(context.Context, *durableJob) (figures, string, error) {
	return func(ctx context.Context, j *durableJob) (figures, string, error) {
		if class != "" { // for the broker, which is a child of this process
			err := errors.Join(os.Setenv("FELIX_DURABLE_STORAGE_DIR", j.Dir), os.Setenv("FELIX_DURABLE_FSYNC_MODE", class))
			if err != nil {
				return nil, "", err
			}
		}
		s.Warmup, s.Duration, s.MaxDuration = j.Warmup, j.Duration, max(j.Duration, time.Minute)
		r, err := runFelix(ctx, s)
		if err != nil {
			return nil, "", err
		}
		return figures{megabytes: r.DeliveredBytesPerSecond / 1e6}, "", nil
	}
}

// historyEvents is how many events the history has.
func (j *durableJob) historyEvents() int { return j.scaled(historyBytes / durablePayload) }

// writeHistory makes a data directory whose stream has a history.
func writeHistory(ctx context.Context, j *durableJob) (err error) {
	b, err := startDurable(j.Shared, "os", historyStream)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.Stop()) }()
	c, err := b.Connect(ctx)
	if err != nil {
		return err
	}
	defer func() { _ = c.Close() }()
	p := c.Publisher(b.Namespace, historyStream)
	batch := make([][]byte, 64)
	for i := range batch {
		batch[i] = randomBytes(durablePayload)
	}
	for left := j.historyEvents(); left > 0 && err == nil; left -= len(batch) {
		err = p.Publish(ctx, batch[:min(len(batch), left)]...)
	}
	return err
}

// warmCache reads all files below a directory, so that they are in the page cache.
func warmCache(dir string) error {
	return filepath.WalkDir(dir, func(name string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		f, err := os.Open(name)
		if err != nil {
			return err
		}
		_, err = io.Copy(io.Discard, f)
		return errors.Join(err, f.Close())
	})
}

func runReplay(ctx context.Context, j *durableJob) (f figures, said string, err error) {
	if err := warmCache(j.Shared); err != nil {
		return nil, "", err
	}
	b, err := startDurable(j.Shared, "os", historyStream)
	if err != nil {
		return nil, "", err
	}
	defer func() { err = errors.Join(err, b.Stop()) }()
	c, err := b.Connect(ctx)
	if err != nil {
		return nil, "", err
	}
	defer func() { _ = c.Close() }()
	var bytes int
	var took time.Duration
	err = j.profiled(b, func() (err error) {
		began := time.Now()
		bytes, err = readHistory(ctx, c, b.Namespace, j.historyEvents(), nil)
		took = time.Since(began)
		return err
	})
	if err != nil {
		return nil, "", err
	}
	return figures{megabytes: float64(bytes) / took.Seconds() / 1e6}, "", nil
}

// readHistory reads all events of the history and returns how many bytes of payload they have. Each of them must come
// once and in order. read, if not nil, is called with the bytes of each batch.
func readHistory(ctx context.Context, c *client.Client, namespace string, events int, read func(n int)) (bytes int, err error) {
	s, err := c.Subscribe(ctx, namespace, historyStream, client.FromEarliest(), client.WithViews(), client.WithoutResume())
	if err != nil {
		return 0, err
	}
	defer func() { _ = s.Close() }()
	for next := 0; next < events; {
		b, err := s.NextBatch(ctx)
		if err != nil {
			return bytes, err
		}
		if !b.HasOffset || b.BaseOffset != uint64(next) || b.Gap != nil {
			return bytes, fmt.Errorf("offset %d (gap: %v), want %d", b.BaseOffset, b.Gap, next)
		}
		n := 0
		for _, payload := range b.Payloads() {
			n += len(payload)
		}
		next += b.Len()
		bytes += n
		if read != nil {
			read(n)
		}
	}
	return bytes, nil
}

// cursorsJob is what a process of cursors begins with.
type cursorsJob struct {
	Addr, Tenant, Namespace, Token string
	CertPEM                        []byte
	Cursors, Events                int
	Rate                           float64 // bytes per second of each cursor; 0 for as fast as they can
}

const cursorsRole = "cursors"

// serveCursors is a process of cursors, each of which reads the history over and over. It is ready when each has read
// something, and says in the end how many bytes per second it has read.
func serveCursors(ctx context.Context, j cursorsJob, parent *child.Parent) (any, error) {
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(j.CertPEM) {
		return nil, errors.New("no certificate")
	}
	c, err := client.Connect(ctx, j.Addr, client.WithToken(j.Tenant, j.Token),
		client.WithTLS(&tls.Config{RootCAs: roots, ServerName: "localhost", MinVersion: tls.VersionTLS13}))
	if err != nil {
		return nil, err
	}
	defer func() { _ = c.Close() }()
	var all atomic.Int64
	var reading, work sync.WaitGroup
	reading.Add(j.Cursors)
	errs := make([]error, j.Cursors)
	for i := range j.Cursors {
		work.Go(func() {
			begin := sync.OnceFunc(reading.Done)
			defer begin()
			began, mine := time.Now(), 0
			for ctx.Err() == nil && errs[i] == nil {
				_, errs[i] = readHistory(ctx, c, j.Namespace, j.Events, func(n int) {
					begin()
					all.Add(int64(n))
					mine += n
					if j.Rate > 0 {
						sleep(ctx, time.Until(began.Add(time.Duration(float64(mine)/j.Rate*1e9))))
					}
				})
			}
			if ctx.Err() != nil {
				errs[i] = nil // it was to end
			}
		})
	}
	reading.Wait()
	began, before := time.Now(), all.Load()
	if err := parent.Send(true); err != nil {
		return nil, err
	}
	work.Wait()
	return float64(all.Load()-before) / time.Since(began).Seconds(), errors.Join(errs...)
}

func sleep(ctx context.Context, d time.Duration) {
	select {
	case <-time.After(d):
	case <-ctx.Done():
	}
}

// besideCursors measures live delivery while cursors read the history of another stream in a process of their own.
func besideCursors(n int, paced bool) func(context.Context, *durableJob) (figures, string, error) {
	return func(ctx context.Context, j *durableJob) (f figures, said string, err error) {
		if err := warmCache(j.Shared); err != nil {
			return nil, "", err
		}
		b, err := startDurable(j.Shared, "os", historyStream, liveStream)
		if err != nil {
			return nil, "", err
		}
		defer func() { err = errors.Join(err, b.Stop()) }()
		stop := func(*float64) error { return nil }
		if n > 0 {
			if stop, err = startCursors(ctx, b, j, n, paced); err != nil {
				return nil, "", err
			}
		}
		var r *loadgen.Result
		err = j.profiled(b, func() (err error) {
			r, err = loadgen.Run(ctx, loadgen.Config{
				Target: loadgen.TargetOf(b, liveStream), Payload: durablePayload, Batch: 1, Rate: liveRate, Warmup: j.Warmup, Duration: j.Duration,
			})
			return err
		})
		var history float64
		if err = errors.Join(err, stop(&history)); err != nil {
			return nil, "", err
		}
		f = figures{p50Micros: r.Latency.P50, p99Micros: r.Latency.P99}
		if n > 0 {
			f["MB/s of history"] = history / 1e6
		}
		return f, "", nil
	}
}

func startCursors(ctx context.Context, b *brokerproc.Process, j *durableJob, n int, paced bool) (stop func(*float64) error, err error) {
	job := cursorsJob{
		Addr: b.Addr, Tenant: b.Tenant, Namespace: b.Namespace, Token: b.Token, CertPEM: b.CertPEM, Cursors: n, Events: j.historyEvents(),
	}
	if paced {
		job.Rate = j.HistoryRate / float64(n)
	}
	p, err := child.Start(ctx, cursorsRole, job, nil, new(bool))
	if err != nil {
		return nil, err
	}
	return func(history *float64) error { return p.Stop(history) }, nil
}
