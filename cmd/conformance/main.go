// Command conformance judges Felix brokers and clients by the protocol. Against a broker it sends frames written by
// hand and compares what comes back (this file); for a client it is a broker that follows a script (client.go). The
// client is package client (goclient.go), or a program that speaks a line protocol (program.go). See `conformance
// --help`.
package main

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/felix-mq/felix/broker"
	"github.com/felix-mq/felix/conformance"
	"github.com/felix-mq/felix/internal/settings"
	"github.com/felix-mq/felix/internal/version"
	"github.com/felix-mq/felix/internal/vfs"
)

// Exit codes.
const (
	exitOK     = 0
	exitFailed = 1 // a case failed, or the run did not come to its end
	exitUsage  = 2 // a flag, a variable or the fixture is wrong
)

func main() {
	os.Exit(run(os.Args[1:], os.Stdout, os.Stderr))
}

func run(args []string, stdout, stderr io.Writer) int {
	if len(args) > 0 && args[0] == "client" {
		return runClient(args[1:], stdout, stderr)
	}
	return runBroker(args, stdout, stderr)
}

// brokerOptions are the flags of the broker mode.
type brokerOptions struct {
	reportOptions
	addr, fixture  string
	embedded, long bool
	version        bool
}

func runBroker(args []string, stdout, stderr io.Writer) (code int) {
	var o brokerOptions
	flags := newFlagSet("conformance", stderr, brokerHelp)
	flags.StringVar(&o.addr, "addr", "", "`host:port` of the broker to judge")
	flags.StringVar(&o.fixture, "fixture", "", "JSON `file` that says what it was set up with; docs/protocol/conformance.md has the members")
	flags.BoolVar(&o.embedded, "embedded", false, "judge a development broker in this process, in place of --addr and --fixture")
	flags.BoolVar(&o.long, "long", false, "also run the cases that take more than a second or two")
	flags.BoolVar(&o.version, "version", false, "print the version")
	o.add(flags, "how long to wait for each thing that has to come")
	if code, ok := parse(flags, args, stderr, o.check); !ok {
		return code
	}
	if o.version {
		fmt.Fprintln(stdout, "conformance", version.Get())
		return exitOK
	}
	if o.list {
		for _, c := range conformance.Cases() {
			o.printTitle(stdout, c.Title())
		}
		return exitOK
	}
	ctx, stop := interrupted()
	defer stop()

	opts := conformance.Options{Match: o.regexp, Long: o.long, ReplyTimeout: o.timeout}
	target := conformance.Target{Addr: o.addr}
	var err error
	if o.embedded {
		end, err := embed(&target, &opts)
		if err != nil {
			fmt.Fprintln(stderr, err)
			return exitUsage
		}
		defer func() {
			if err := end(); err != nil {
				fmt.Fprintln(stderr, "conformance: the broker's end:", err)
				code = exitFailed
			}
		}()
	} else if target.Fixture, err = conformance.ReadFixture(o.fixture); err != nil {
		fmt.Fprintln(stderr, err)
		return exitUsage
	}
	var clear func()
	opts.OnResult, clear = progress(stderr)
	report := conformance.Run(ctx, target, opts)
	clear()
	return o.finish(stdout, stderr, &report)
}

const brokerHelp = `Usage: conformance --addr host:port --fixture FILE [flags]
       conformance --embedded [flags]
       conformance client [--exec COMMAND] [flags]

Judges a Felix broker by the protocol: every case of the interop checklist that can be written by hand, every error text
with its consequence, known defects, and every test vector. Nobody else may use the fixture's streams meanwhile. With the
first argument "client" it judges a client instead: conformance client --help.

  conformance --embedded                                 a development broker in this process
  conformance --addr localhost:5000 --fixture f.json     a broker that is already there
  conformance --embedded --run 'RAW-4[0-9]'              some cases
  conformance --embedded --list                          what there is
  conformance --embedded --long --junit report.xml       all cases, with a report for CI

Flags:
%s
The embedded broker is tuned by the FELIX_* variables of cmd/broker. The report says which cases do not run, and why;
the list is conformance/skipped.txt.

Exit status: 0 no case failed; 1 a case failed or the run was cut short; 2 usage.
`

// check reports every problem of the flags at once.
func (o *brokerOptions) check() error {
	errs := []error{o.reportOptions.check()}
	switch {
	case o.list, o.version:
	case o.embedded && (o.addr != "" || o.fixture != ""):
		errs = append(errs, errors.New("conformance: --embedded stands in place of --addr and --fixture"))
	case !o.embedded && (o.addr == "" || o.fixture == ""):
		errs = append(errs, errors.New("conformance: --addr and --fixture, or --embedded, are needed"))
	}
	return errors.Join(errs...)
}

// shutdownTime bounds the end of the embedded broker.
const shutdownTime = 5 * time.Second

// embed starts a development broker on loopback and makes it the target. end shuts it down and waits for it.
func embed(target *conformance.Target, opts *conformance.Options) (end func() error, err error) {
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("conformance: %w", err)
	}
	pem, err := conformance.EncodeKey(key)
	if err != nil {
		return nil, err
	}
	cfg := broker.DefaultConfig()
	if err := settings.Environment(&cfg); err != nil {
		return nil, fmt.Errorf("conformance: environment:\n%w", err)
	}
	cfg.Bind = "127.0.0.1:0"
	// The durable stream needs no disk to be judged.
	cfg.Storage.FS, cfg.Storage.Dir = &vfs.Mem{}, "data"
	d, err := broker.NewDev(cfg, broker.DevOptions{Streams: []string{"durable"}, Key: key})
	if err == nil {
		err = errors.Join(d.AddStream(d.Tenant, d.Namespace, "demo"), d.AddStream(d.Tenant, d.Namespace, "other"))
	}
	if err != nil {
		return nil, fmt.Errorf("conformance: %w", err)
	}
	target.Addr, target.TLS = d.Addr().String(), d.ClientTLS()
	target.Fixture = conformance.Fixture{
		Tenant: d.Tenant, Namespace: d.Namespace, Stream: "demo", OtherStream: "other", DurableStream: d.Streams[0], Cache: d.Cache,
		SigningKey: pem, KeyID: broker.DevKeyID,
		MaxFrameBytes: cfg.MaxFrameBytes, MaxStreams: cfg.MaxStreamsPerConn, MaxSubscriptions: cfg.MaxSubscriptionsPerConn,
		ReplayBytes: max(cfg.ReplayBytes, 0),
	}
	opts.CreateStream = func(name string) error { return d.AddStream(d.Tenant, d.Namespace, name) }

	served := make(chan error, 1)
	go func() { served <- d.Serve(context.Background()) }()
	return func() error {
		ctx, cancel := context.WithTimeout(context.Background(), shutdownTime)
		defer cancel()
		err := d.Shutdown(ctx)
		if served := <-served; !errors.Is(served, broker.ErrShutdown) {
			err = errors.Join(err, served)
		}
		return err
	}, nil
}
