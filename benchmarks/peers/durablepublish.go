package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	natsserver "github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/felix-mq/felix/client"
	"github.com/felix-mq/felix/internal/child"
	"github.com/felix-mq/felix/internal/stats"
	"github.com/felix-mq/felix/internal/vfs"
	"github.com/felix-mq/felix/loadgen/brokerproc"
)

// Acknowledged publishes: each publisher sends one batch, waits for its acknowledgement, and sends the next.

// Figures of publishing.
const (
	perSecond = "publishes/s"
	p50Micros = "p50 µs"
	p99Micros = "p99 µs"
	megabytes = "MB/s"
	perSync   = "KiB per sync"
	shared    = "publishes per sync"
)

// Names of systems that only this table has.
const (
	bareName      = "bare"
	jetStreamName = "jetstream"
)

const durablePayload = 1 << 10

// publishLoad is a load of publishers, spread evenly over streams.
type publishLoad struct {
	publishers, streams int
	batch, payload      int
}

func (l publishLoad) row(name, title string, shown []string, goals ...durableGoal) durableRow {
	return durableRow{
		name: "publish/" + name, title: title, shown: shown, goals: goals,
		systems: []durableSystem{
			{jetStreamName, "JetStream R1, sync always", l.runJetStream},
			{felixName, "Felix, device", l.runFelix},
		},
	}
}

// copies is how often Felix writes an event to the disk: to the journal, and to the stream's segment.
const copies = 2

func publishRows() []durableRow {
	tenfold := durableGoal{perSecond, felixName, jetStreamName, limit{true, 10}}
	rates := []string{perSecond, p50Micros, p99Micros, shared}
	one := publishLoad{1, 1, 1, durablePayload}.row("1x1", "1 publisher, 1 KiB", rates,
		durableGoal{p50Micros, felixName, bareName, limit{false, 1.3}},
		durableGoal{p99Micros, felixName, bareName, limit{false, 2}})
	one.systems = append([]durableSystem{{bareName, "Bare write and fdatasync", runBare}}, one.systems...)
	bulk := publishLoad{16, 1, 64, 4096}
	return []durableRow{
		one,
		publishLoad{64, 1, 1, durablePayload}.row("64x1", "64 publishers, 1 stream, 1 KiB", rates, tenfold),
		publishLoad{1000, 1000, 1, durablePayload}.row("1000x1000", "1 000 publishers, 1 000 streams, 1 KiB", rates, tenfold),
		{
			name: "publish/bulk", title: "16 publishers, 1 stream, 4 KiB × 64", shown: []string{megabytes, perSync},
			systems: []durableSystem{
				{felixName, "Felix, device", bulk.runFelix},
				{bareName, fmt.Sprintf("Bare writes and fdatasyncs as large as Felix's, 1/%d", copies), runBareBulk},
			},
			goals: []durableGoal{{megabytes, felixName, bareName, limit{true, 0.8}}},
		},
	}
}

// way is a way to use a system. open returns a function that publishes for each publisher.
type way struct {
	name string
	open func(ctx context.Context) (publish []func(context.Context) error, closeAll func(), err error)
}

// best tries all ways for the time of the warm-up, takes the one with the highest rate, and measures it.
func (j *durableJob) best(ctx context.Context, ways []way) (l *loop, name string, err error) {
	w, err := fastest(ways, func(w way) (float64, error) {
		l, err := j.use(ctx, w, j.Warmup/4, j.Warmup)
		if err != nil {
			return 0, err
		}
		return l.rate(), nil
	})
	if err != nil {
		return nil, "", err
	}
	l, err = j.use(ctx, w, j.Warmup, j.Duration)
	return l, w.name, err
}

// fastest returns the way with the highest rate. If there is but one, rate is not called.
func fastest(ways []way, rate func(way) (float64, error)) (best way, err error) {
	highest := -1.0
	for _, w := range ways {
		if len(ways) == 1 {
			return w, nil
		}
		r, err := rate(w)
		if err != nil {
			return way{}, err
		}
		if r > highest {
			best, highest = w, r
		}
	}
	return best, nil
}

func (j *durableJob) use(ctx context.Context, w way, warmup, duration time.Duration) (*loop, error) {
	publish, closeAll, err := w.open(ctx)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", w.name, err)
	}
	defer closeAll()
	l, err := closedLoop(ctx, publish, warmup, duration)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", w.name, err)
	}
	return l, nil
}

// loop is what a closed loop measured.
type loop struct {
	duration  time.Duration
	latencies []time.Duration // sorted
}

func (l *loop) rate() float64 { return float64(len(l.latencies)) / l.duration.Seconds() }

// micros returns a percentile in microseconds.
func (l *loop) micros(p float64) float64 {
	return float64(stats.Percentile(l.latencies, p).Nanoseconds()) / 1e3
}

func (l *loop) figures() figures {
	return figures{perSecond: l.rate(), p50Micros: l.micros(50), p99Micros: l.micros(99)}
}

// closedLoop has each publisher publish over and over. What ends within the measured time counts, and the first publish
// of each publisher that ends after it, if none has ended within; the measured time then is longer.
func closedLoop(ctx context.Context, publish []func(context.Context) error, warmup, duration time.Duration) (*loop, error) {
	begin := time.Now().Add(warmup)
	end := begin.Add(duration)
	all := make([][]time.Duration, len(publish))
	last := make([]time.Time, len(publish))
	errs := make([]error, len(publish))
	var failed atomic.Bool
	var work sync.WaitGroup
	for i, publish := range publish {
		work.Go(func() {
			for start := time.Now(); (start.Before(end) || len(all[i]) == 0) && !failed.Load(); {
				if err := publish(ctx); err != nil {
					errs[i] = err
					failed.Store(true)
					return
				}
				now := time.Now()
				if !now.Before(begin) && (now.Before(end) || len(all[i]) == 0) {
					all[i] = append(all[i], now.Sub(start))
					last[i] = now
				}
				start = now
			}
		})
	}
	work.Wait()
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	l := &loop{duration: max(duration, slices.MaxFunc(last, time.Time.Compare).Sub(begin)), latencies: slices.Concat(all...)}
	slices.Sort(l.latencies)
	return l, nil
}

func randomBytes(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(rand.Uint32())
	}
	return b
}

// streamNames are the names of n streams.
func streamNames(n int) []string {
	all := make([]string, n)
	for i := range all {
		all[i] = fmt.Sprint("s", i)
	}
	return all
}

// startDurable starts a broker with a data directory and streams of a class.
func startDurable(dir, class string, streams ...string) (*brokerproc.Process, error) {
	return brokerproc.Start("FELIX_DURABLE_STORAGE_DIR="+dir, "FELIX_DURABLE_FSYNC_MODE="+class,
		"FELIX_SUB_QUEUE_POLICY=block", "FELIX_DEV_STREAMS="+strings.Join(streams, ","))
}

// profiled calls measure, with a processor profile of the broker if profiles are kept.
func (j *durableJob) profiled(b *brokerproc.Process, measure func() error) error {
	if j.Profiles == "" {
		return measure()
	}
	if err := b.StartCPUProfile(); err != nil {
		return err
	}
	err := measure()
	p, e := b.CPUProfile()
	if err = errors.Join(err, e); err != nil {
		return err
	}
	f, err := os.Create(filepath.Join(j.Profiles, strings.ReplaceAll(j.Row+"-"+j.System, "/", "-")+".pprof"))
	if err != nil {
		return err
	}
	return errors.Join(p.Write(f), f.Close())
}

func (load publishLoad) runFelix(ctx context.Context, j *durableJob) (f figures, said string, err error) {
	names := streamNames(load.streams)
	b, err := startDurable(j.Dir, "device", names...)
	if err != nil {
		return nil, "", err
	}
	defer func() { err = errors.Join(err, b.Stop()) }()
	items := make([][]byte, load.batch)
	for i := range items {
		items[i] = randomBytes(load.payload)
	}
	open := func(t client.Transport) func(context.Context) ([]func(context.Context) error, func(), error) {
		return func(ctx context.Context) ([]func(context.Context) error, func(), error) {
			c, err := b.Connect(ctx, client.WithTransport(t))
			if err != nil {
				return nil, nil, err
			}
			all := make([]func(context.Context) error, load.publishers)
			for i := range all {
				p := c.Publisher(b.Namespace, names[i%load.streams])
				all[i] = func(ctx context.Context) error { return p.Publish(ctx, items...) }
			}
			return all, func() { _ = c.Close() }, nil
		}
	}
	ways := []way{{"1 connection", open(client.Transport{})}}
	if load.publishers > 1 {
		ways = append(ways, way{"4 connections", open(client.Transport{PublishConns: 4, RoundRobin: load.streams == 1})})
	}
	var l *loop
	before, err := b.Metrics()
	if err != nil {
		return nil, "", err
	}
	if err := j.profiled(b, func() error { l, said, err = j.best(ctx, ways); return err }); err != nil {
		return nil, "", err
	}
	after, err := b.Metrics()
	if err != nil {
		return nil, "", err
	}
	f = l.figures()
	size := float64(load.batch * load.payload)
	f[megabytes] = f[perSecond] * size / 1e6
	const commits, appends = "felix_storage_commits_total", "felix_storage_appends_total"
	if n := after[commits] - before[commits]; n > 0 {
		f[shared] = (after[appends] - before[appends]) / n
		f[perSync] = f[shared] * size / 1024
	}
	return f, said, nil
}

// jetStreamJob is what a JetStream server begins with.
type jetStreamJob struct{ Dir string }

const jetStreamRole = "jetstream"

// serveJetStream is the process of a NATS server with JetStream.
func serveJetStream(ctx context.Context, j jetStreamJob, parent *child.Parent) (any, error) {
	s, err := natsserver.NewServer(&natsserver.Options{
		Host: "127.0.0.1", Port: natsserver.RANDOM_PORT, NoLog: true, NoSigs: true,
		JetStream: true, StoreDir: j.Dir, SyncAlways: true,
	})
	if err != nil {
		return nil, fmt.Errorf("nats: %w", err)
	}
	s.Start()
	if !s.ReadyForConnections(10 * time.Second) {
		err = errors.New("nats: the server did not become ready")
	} else if c := s.JetStreamConfig(); c == nil || !c.SyncAlways {
		err = errors.New("nats: JetStream does not sync always")
	} else {
		err = parent.Send(natsReady{Addr: s.Addr().String()})
	}
	if err == nil {
		<-ctx.Done()
	}
	s.Shutdown()
	s.WaitForShutdown()
	return nil, err
}

// runJetStream publishes to streams with one replica in files. Publishers wait for their acknowledgement with Publish,
// or with PublishAsync and one event in flight; all share one connection, or use eight: whichever is fastest.
func (load publishLoad) runJetStream(ctx context.Context, j *durableJob) (f figures, said string, err error) {
	var r natsReady
	p, err := child.Start(ctx, jetStreamRole, jetStreamJob{j.Dir}, nil, &r)
	if err != nil {
		return nil, "", err
	}
	defer func() { err = errors.Join(err, p.Stop(nil)) }()
	names := streamNames(load.streams)
	if err := makeJetStreams(ctx, r.Addr, names); err != nil {
		return nil, "", err
	}
	payload := randomBytes(load.payload)
	open := func(conns int, async bool) func(context.Context) ([]func(context.Context) error, func(), error) {
		return func(context.Context) ([]func(context.Context) error, func(), error) {
			var open []*nats.Conn
			closeAll := func() {
				for _, c := range open {
					c.Close()
				}
			}
			for range conns {
				c, err := nats.Connect("nats://"+r.Addr, nats.NoReconnect())
				if err != nil {
					closeAll()
					return nil, nil, err
				}
				open = append(open, c)
			}
			all := make([]func(context.Context) error, load.publishers)
			for i := range all {
				js, err := jetstream.New(open[i%conns], jetstream.WithPublishAsyncMaxPending(1))
				if err != nil {
					closeAll()
					return nil, nil, err
				}
				name := names[i%load.streams]
				all[i] = func(ctx context.Context) error {
					_, err := js.Publish(ctx, name, payload)
					return err
				}
				if async {
					all[i] = func(ctx context.Context) error { return publishAsync(ctx, js, name, payload) }
				}
			}
			return all, closeAll, nil
		}
	}
	ways := []way{{"Publish, 1 connection", open(1, false)}, {"PublishAsync, 1 connection", open(1, true)}}
	if load.publishers > 1 {
		ways = append(ways, way{"Publish, 8 connections", open(8, false)}, way{"PublishAsync, 8 connections", open(8, true)})
	}
	l, said, err := j.best(ctx, ways)
	if err != nil {
		return nil, "", err
	}
	return l.figures(), said, nil
}

func makeJetStreams(ctx context.Context, addr string, names []string) error {
	c, err := nats.Connect("nats://"+addr, nats.NoReconnect())
	if err != nil {
		return err
	}
	defer c.Close()
	js, err := jetstream.New(c)
	if err != nil {
		return err
	}
	for _, name := range names {
		_, err := js.CreateStream(ctx, jetstream.StreamConfig{Name: name, Subjects: []string{name}, Storage: jetstream.FileStorage, Replicas: 1})
		if err != nil {
			return err
		}
	}
	return nil
}

func publishAsync(ctx context.Context, js jetstream.JetStream, name string, payload []byte) error {
	ack, err := js.PublishAsync(name, payload)
	if err != nil {
		return err
	}
	select {
	case <-ack.Ok():
		return nil
	case err := <-ack.Err():
		return err
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// bareFile is the size of the file that bare loops write to, again and again, as a journal does.
const bareFile = 64 << 20

// bareLoop writes to a file whose space is there, and syncs each write.
func (j *durableJob) bareLoop(ctx context.Context, size int) (l *loop, err error) {
	f, err := vfs.OS{}.Create(filepath.Join(j.Dir, "bare"))
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if err := f.Reserve(bareFile); err != nil {
		return nil, err
	}
	b, at := randomBytes(size), int64(0)
	return closedLoop(ctx, []func(context.Context) error{func(context.Context) error {
		if at+int64(size) > bareFile {
			at = 0
		}
		_, err := f.WriteAt(b, at)
		at += int64(size)
		return errors.Join(err, f.Sync())
	}}, j.Warmup, j.Duration)
}

func runBare(ctx context.Context, j *durableJob) (figures, string, error) {
	l, err := j.bareLoop(ctx, durablePayload)
	if err != nil {
		return nil, "", err
	}
	return l.figures(), "", nil
}

// runBareBulk writes as much with each sync as Felix did in the same round.
func runBareBulk(ctx context.Context, j *durableJob) (figures, string, error) {
	size := int(j.Round[perSync] * 1024)
	if size == 0 {
		return nil, "", errors.New("it is not known how much Felix writes with each sync")
	}
	l, err := j.bareLoop(ctx, min(size, bareFile))
	if err != nil {
		return nil, "", err
	}
	whole := l.rate() * float64(size) / 1e6
	return figures{megabytes: whole / copies, perSync: float64(size) / 1024}, "", nil
}
