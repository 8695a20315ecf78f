package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
	"github.com/spf13/cobra"

	"github.com/felix-mq/felix/internal/vfs"
	"github.com/felix-mq/felix/storage"
)

// diskBench is what the flags of felix storage bench say.
type diskBench struct {
	dir         string
	payload     size
	batch       int
	concurrency []int
	classes     []string
	duration    time.Duration
	rounds      int
	json        bool
}

// diskRun is one kind of appends, and what all rounds of it have measured.
type diskRun struct {
	label       string // bare, or the class
	class       storage.Class
	concurrency int

	took      time.Duration
	latencies *hdrhistogram.Histogram // of appends, in nanoseconds
}

// diskResult is a line of JSON, as the tool of the reference implementation prints it.
type diskResult struct {
	Event       string        `json:"event"`
	Label       string        `json:"label"`
	Fsync       string        `json:"fsync"`
	Records     int64         `json:"records"`
	Batch       int           `json:"batch"`
	Payload     int           `json:"payload_bytes"`
	Concurrency int           `json:"concurrency"`
	Seconds     float64       `json:"seconds"`
	Rate        float64       `json:"records_per_second"`
	Appends     int64         `json:"appends"`
	Latency     diskLatencies `json:"latency_us"`
}

// diskLatencies are in microseconds.
type diskLatencies struct {
	P50  float64 `json:"p50"`
	P90  float64 `json:"p90"`
	P99  float64 `json:"p99"`
	P999 float64 `json:"p999"`
	Max  float64 `json:"max"`
}

const labelBare = "bare"

func newStorageBench() *cobra.Command {
	b := diskBench{payload: 128}
	c := &cobra.Command{
		Use:   "bench DIR",
		Short: "Measure the disk that a directory is on, as durable streams use it",
		Long: `Measure acknowledged appends per second and their latencies, of the classes device and os, on the disk that a directory
is on. Next to them is a bare loop of a write and a sync (fdatasync), one after the other, which is what the disk does. All of
them take turns in each round, so that what else the machine does meanwhile concerns all.

The files are in a directory of their own, which is removed at the end. For each second of class os up to a few GiB are
written. A latency is that of one append, with all records of its batch. For class os the sync that comes later is not in
the time.

--json prints an object for each of them, as the tool of the reference implementation does.`,
		Example: `  felix storage bench /var/lib/felix
  felix storage bench /var/lib/felix --concurrency 1,8,64,512 --duration 5s`,
		Args: arguments(1, 1),
		RunE: func(c *cobra.Command, args []string) error {
			b.dir = args[0]
			return b.run(c)
		},
	}
	f := c.Flags()
	f.Var(&b.payload, "payload", "`size` of a record, such as 128 or 4KiB")
	f.IntVar(&b.batch, "batch", 1, "`records` in one append")
	f.IntSliceVar(&b.concurrency, "concurrency", []int{1, 64}, "`appends` at the same time, each of which waits for its acknowledgement; several are measured one by one")
	f.StringSliceVar(&b.classes, "class", []string{storage.ClassDevice.String(), storage.ClassOS.String()}, "`classes` of acknowledgement: device, os")
	f.DurationVar(&b.duration, "duration", time.Second, "time of each in a round")
	f.IntVar(&b.rounds, "rounds", 3, "`number` of rounds")
	f.BoolVar(&b.json, "json", false, "an object of JSON in a line for each")
	completeWords(c, "class", storage.ClassDevice.String(), storage.ClassOS.String())
	return c
}

// runs are what is measured, in this order in each round.
func (b *diskBench) runs() ([]*diskRun, error) {
	classes := map[string]storage.Class{}
	for _, class := range []storage.Class{storage.ClassDevice, storage.ClassOS} {
		classes[class.String()] = class
	}
	all := []*diskRun{{label: labelBare, concurrency: 1}}
	for _, name := range b.classes {
		class, ok := classes[name]
		if !ok {
			return nil, usagef("--class %q: want device or os", name)
		}
		for _, n := range b.concurrency {
			if n < 1 || n > 1<<16 {
				return nil, usagef("--concurrency %d: want 1 to 65536", n)
			}
			all = append(all, &diskRun{label: name, class: class, concurrency: n})
		}
	}
	for _, r := range all {
		r.latencies = hdrhistogram.New(1, int64(time.Hour), 3)
	}
	switch {
	case b.batch < 1 || b.payload < 1 || b.payload > storage.MaxPayload || int64(b.batch)*int64(b.payload) > 64<<20:
		return nil, usagef("--batch and --payload are at least 1, and 64 MiB together at most")
	case b.duration <= 0 || b.rounds < 1:
		return nil, usagef("--duration and --rounds are more than 0")
	}
	return all, nil
}

func (b *diskBench) run(c *cobra.Command) (err error) {
	runs, err := b.runs()
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp(b.dir, "felix-bench-*")
	if err != nil {
		return usageError{error: err}
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	batch := make([][]byte, b.batch)
	for i := range batch {
		batch[i] = make([]byte, b.payload)
		for k := range batch[i] {
			batch[i][k] = byte(rand.Uint32()) // which nothing compresses
		}
	}
	ctx, errOut := c.Context(), c.ErrOrStderr()
	for round := range b.rounds {
		for i, r := range runs {
			if isTerminal(errOut) {
				fmt.Fprintf(errOut, "\r\x1b[Kround %d of %d: %s, %d at a time", round+1, b.rounds, r.label, r.concurrency)
			}
			if err = r.measure(ctx, filepath.Join(dir, fmt.Sprint(round, "-", i)), batch, b.duration); err != nil {
				break
			}
		}
		if err != nil {
			break
		}
	}
	if isTerminal(errOut) {
		fmt.Fprint(errOut, "\r\x1b[K")
	}
	if err != nil {
		return err
	}
	results := make([]diskResult, len(runs))
	for i, r := range runs {
		results[i] = r.result(b)
	}
	if b.json {
		return printList(c.OutOrStdout(), formatNDJSON, results, "", nil)
	}
	bare := results[0].Rate
	return printList(c.OutOrStdout(), formatTable, results, "CLASS\tAT A TIME\tRECORDS/S\tOF BARE\tP50\tP90\tP99\tP99.9\tMAX", func(r diskResult) string {
		l := r.Latency
		return fmt.Sprintf("%s\t%d\t%.0f\t%.2f\t%s\t%s\t%s\t%s\t%s", r.Label, r.Concurrency, r.Rate, r.Rate/bare,
			micros(l.P50), micros(l.P90), micros(l.P99), micros(l.P999), micros(l.Max))
	})
}

// micros is a number of microseconds for people.
func micros(us float64) string {
	d := time.Duration(us * 1e3)
	return d.Round(max(d/1000, 100*time.Nanosecond)).String()
}

// measure does it for a time, with files in a directory that it makes and removes.
func (r *diskRun) measure(ctx context.Context, dir string, batch [][]byte, duration time.Duration) (err error) {
	if err := os.Mkdir(dir, 0o750); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	if r.label == labelBare {
		return r.bare(ctx, filepath.Join(dir, labelBare), batch, duration)
	}
	s, err := storage.Open(dir, storage.Options{Headroom: 128 << 20})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.Close()) }()
	l, err := s.Log(storage.Key{Tenant: "bench", Namespace: "bench", Stream: "bench"})
	if err != nil {
		return err
	}
	appendOne := func(done chan error) error {
		if _, err := l.Append(batch, r.class, func(err error) { done <- err }); err != nil {
			return err
		}
		return <-done
	}
	if err := appendOne(make(chan error, 1)); err != nil { // which makes the files
		return err
	}
	errs := make([]error, r.concurrency)
	var recording sync.Mutex
	var work sync.WaitGroup
	began := time.Now()
	for i := range errs {
		work.Go(func() {
			done := make(chan error, 1)
			for errs[i] == nil && time.Since(began) < duration {
				start := time.Now()
				if errs[i] = appendOne(done); errs[i] == nil {
					recording.Lock()
					errs[i] = r.latencies.RecordValue(int64(time.Since(start)))
					recording.Unlock()
				}
				if errs[i] == nil {
					errs[i] = context.Cause(ctx)
				}
			}
		})
	}
	work.Wait()
	r.took += time.Since(began)
	return errors.Join(errs...)
}

// bareSpace is how much space is reserved at once, as the journal does.
const bareSpace = 64 << 20

// bare writes and syncs, one after the other.
func (r *diskRun) bare(ctx context.Context, name string, batch [][]byte, duration time.Duration) (err error) {
	f, err := vfs.OS{}.Create(name)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if err := f.Reserve(bareSpace); err != nil {
		return err
	}
	content := slices.Concat(batch...)
	began := time.Now()
	for at := int64(0); time.Since(began) < duration && ctx.Err() == nil; at = (at + int64(len(content))) % bareSpace {
		start := time.Now()
		if _, err := f.WriteAt(content, at); err != nil {
			return err
		}
		if err := f.Sync(); err != nil {
			return err
		}
		if err := r.latencies.RecordValue(int64(time.Since(start))); err != nil {
			return err
		}
	}
	r.took += time.Since(began)
	return context.Cause(ctx)
}

func (r *diskRun) result(b *diskBench) diskResult {
	fsync := "on_commit"
	if r.class == storage.ClassOS {
		fsync = "periodic"
	}
	at := func(percent float64) float64 { return float64(r.latencies.ValueAtPercentile(percent)) / 1e3 }
	appends := r.latencies.TotalCount()
	return diskResult{
		Event: "bench", Label: r.label, Fsync: fsync, Records: appends * int64(b.batch), Batch: b.batch, Payload: int(b.payload),
		Concurrency: r.concurrency, Seconds: r.took.Seconds(), Rate: float64(appends) * float64(b.batch) / r.took.Seconds(), Appends: appends,
		Latency: diskLatencies{at(50), at(90), at(99), at(99.9), float64(r.latencies.Max()) / 1e3},
	}
}
