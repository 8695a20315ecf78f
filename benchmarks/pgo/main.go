// Command pgo makes the profiles by which `go build` optimizes the broker and the load generator: default.pgo in the
// directories of the two commands. It runs a load that is to stand for all others, large and small events, alone and in
// batches, to few and to many subscriptions, and cache requests, and profiles the broker's process and its own.
//
// What it is itself built with does not matter: the compiler finds its way by names of functions and lines in them. It
// runs in the root of the module and takes about 90 seconds.
package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"runtime/pprof"
	"sync"
	"syscall"
	"time"

	"github.com/google/pprof/profile"
	"github.com/spf13/pflag"

	"github.com/felix-mq/felix/benchmarks/internal/brokerproc"
	"github.com/felix-mq/felix/client"
	"github.com/felix-mq/felix/loadgen"
)

// The files that this program makes.
var (
	brokerFile  = filepath.Join("cmd", "broker", "default.pgo")
	loadgenFile = filepath.Join("cmd", "loadgen", "default.pgo")
)

func main() {
	brokerproc.Serve()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code := run(ctx, os.Args[1:], os.Stderr)
	stop()
	os.Exit(code)
}

func run(ctx context.Context, args []string, stderr io.Writer) int {
	flags := pflag.NewFlagSet("pgo", pflag.ContinueOnError)
	flags.SetOutput(stderr)
	duration := flags.Duration("duration", 5*time.Second, "of each load")
	fanouts := flags.IntSlice("fanouts", []int{1, 10, 64}, "subscriptions of the loads")
	if err := flags.Parse(args); err != nil {
		if errors.Is(err, pflag.ErrHelp) {
			return 0
		}
		fmt.Fprintln(stderr, "pgo:", err)
		return 2
	}
	if *duration < 100*time.Millisecond || *duration > time.Minute || flags.NArg() > 0 {
		fmt.Fprintln(stderr, "pgo: want a duration from 100ms to 1m, and no arguments")
		return 2
	}
	if err := makeProfiles(ctx, *fanouts, *duration, stderr); err != nil {
		fmt.Fprintln(stderr, "pgo:", err)
		return 1
	}
	return 0
}

func makeProfiles(ctx context.Context, fanouts []int, duration time.Duration, stderr io.Writer) (err error) {
	broker, err := brokerproc.Start("FELIX_SUB_QUEUE_POLICY=block")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, broker.Stop()) }()
	if err := broker.StartCPUProfile(); err != nil {
		return err
	}
	var own bytes.Buffer
	if err := pprof.StartCPUProfile(&own); err != nil {
		return err
	}
	err = load(ctx, broker, fanouts, duration, stderr)
	pprof.StopCPUProfile()
	brokers, profileErr := broker.CPUProfile()
	if err := errors.Join(err, profileErr); err != nil {
		return err
	}
	owns, err := profile.ParseData(own.Bytes())
	if err != nil {
		return err
	}
	return errors.Join(write(brokerFile, brokers), write(loadgenFile, owns))
}

// load runs each load in turn. All of them weigh the same.
func load(ctx context.Context, broker *brokerproc.Process, fanouts []int, duration time.Duration, stderr io.Writer) error {
	for _, fanout := range fanouts {
		for _, payload := range []int{256, 4096} {
			for _, batch := range []int{1, 64} {
				fmt.Fprintf(stderr, "fanout %d, %d B × %d\n", fanout, payload, batch)
				cfg := loadgen.Config{
					Target: broker.Target("demo"), Fanout: fanout, Payload: payload, Batch: batch, Window: 4,
					Warmup: 100 * time.Millisecond, Duration: duration, MaxDuration: time.Minute,
				}
				if _, err := loadgen.Run(ctx, cfg); err != nil {
					return err
				}
			}
		}
	}
	fmt.Fprintln(stderr, "cache")
	return cacheLoad(ctx, broker, duration)
}

// cacheCallers is how many cache requests are under way at a time.
const cacheCallers = 16

// cacheLoad puts values and gets each of them nine times.
func cacheLoad(ctx context.Context, broker *brokerproc.Process, duration time.Duration) (err error) {
	c, err := broker.Connect(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, c.Close()) }()
	ctx, fail := context.WithCancelCause(ctx)
	defer fail(nil)
	cache, end := c.Cache(broker.Namespace, "primary"), time.Now().Add(duration)
	var wg sync.WaitGroup
	for i := range cacheCallers {
		wg.Go(func() {
			key, value := fmt.Sprint("key-", i), make([]byte, 256<<(i%4))
			for time.Now().Before(end) {
				if err := cache.Put(ctx, key, value, client.NoExpiry); err != nil {
					fail(err)
					return
				}
				for range 9 {
					if _, err := cache.Get(ctx, key); err != nil {
						fail(err)
						return
					}
				}
			}
		})
	}
	wg.Wait()
	return context.Cause(ctx)
}

// write makes a profile small, as only functions and lines matter to the compiler, and replaces the file.
func write(file string, p *profile.Profile) error {
	if err := p.Aggregate(true, true, true, true, false, false); err != nil {
		return err
	}
	p, err := profile.Merge([]*profile.Profile{p}) // joins samples whose stacks do not differ any more
	if err != nil {
		return err
	}
	var b bytes.Buffer
	if err := p.Write(&b); err != nil {
		return err
	}
	return os.WriteFile(file, b.Bytes(), 0o644)
}
