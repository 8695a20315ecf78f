// Command conformance judges a Felix broker: it sends frames written by hand and compares what comes back with the
// protocol. See `conformance --help`.
package main

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"regexp"
	"syscall"
	"time"

	"github.com/spf13/pflag"
	"golang.org/x/term"

	"github.com/felix-mq/felix/broker"
	"github.com/felix-mq/felix/conformance"
	"github.com/felix-mq/felix/internal/envconfig"
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

// options are the flags.
type options struct {
	addr, fixture, json, junit, match string
	embedded, list, long              bool
	timeout                           time.Duration
}

func run(args []string, stdout, stderr io.Writer) (code int) {
	var o options
	flags := newFlags(&o, stderr)
	if err := flags.Parse(args); err != nil {
		if errors.Is(err, pflag.ErrHelp) {
			return exitOK
		}
		fmt.Fprintf(stderr, "conformance: %v; see conformance --help\n", err)
		return exitUsage
	}
	match, err := o.check(flags)
	if err != nil {
		fmt.Fprintf(stderr, "%v\nSee conformance --help.\n", err)
		return exitUsage
	}
	if o.list {
		list(stdout, match)
		return exitOK
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()

	opts := conformance.Options{Match: match, Long: o.long, ReplyTimeout: o.timeout}
	target := conformance.Target{Addr: o.addr}
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
	clear := func() {}
	if f, ok := stderr.(*os.File); ok && term.IsTerminal(int(f.Fd())) {
		opts.OnResult = func(r conformance.Result) { fmt.Fprintf(stderr, "\r\x1b[K%s %s", r.ID, r.Status) }
		clear = func() { fmt.Fprint(stderr, "\r\x1b[K") }
	}
	report := conformance.Run(ctx, target, opts)
	clear()
	if err := o.print(stdout, &report); err != nil {
		fmt.Fprintln(stderr, "conformance:", err)
		return exitFailed
	}
	if !report.OK() {
		return exitFailed
	}
	return exitOK
}

func newFlags(o *options, stderr io.Writer) *pflag.FlagSet {
	flags := pflag.NewFlagSet("conformance", pflag.ContinueOnError)
	flags.SetOutput(stderr)
	flags.SortFlags = false
	flags.StringVar(&o.addr, "addr", "", "`host:port` of the broker to judge")
	flags.StringVar(&o.fixture, "fixture", "", "JSON `file` that says what it was set up with; docs/conformance.md has the members")
	flags.BoolVar(&o.embedded, "embedded", false, "judge a development broker in this process, in place of --addr and --fixture")
	flags.StringVar(&o.match, "run", "", "run only the cases whose \"ID name\" matches the `regexp`")
	flags.BoolVar(&o.long, "long", false, "also run the cases that take more than a second or two")
	flags.DurationVar(&o.timeout, "timeout", 10*time.Second, "how long to wait for each thing that has to come")
	flags.BoolVar(&o.list, "list", false, "list the cases and run none")
	flags.StringVar(&o.json, "json", "", "write the report as JSON to `file`; - is standard output, in place of the table")
	flags.StringVar(&o.junit, "junit", "", "write the report as JUnit XML to `file`")
	flags.Usage = func() { fmt.Fprintf(stderr, help, flags.FlagUsages()) }
	return flags
}

const help = `Usage: conformance --addr host:port --fixture FILE [flags]
       conformance --embedded [flags]

Judges a Felix broker by the protocol: every case of the interop checklist that can be written by hand, every error text
with its consequence, known defects, and every test vector. Nobody else may use the fixture's streams meanwhile.

  conformance --embedded                                 a development broker in this process
  conformance --addr localhost:5000 --fixture f.json     a broker that is already there
  conformance --embedded --run 'RAW-4[0-9]'              some cases
  conformance --embedded --list                          what there is
  conformance --embedded --long --junit report.xml       all cases, with a report for CI

Flags:
%s
The embedded broker is tuned by the FELIX_* variables of cmd/broker. Which cases do not run, and why, is told in the
report; the list is conformance/skipped.txt.

Exit status: 0 no case failed; 1 a case failed or the run was cut short; 2 usage.
`

// check reports every problem of the flags at once.
func (o *options) check(flags *pflag.FlagSet) (*regexp.Regexp, error) {
	var errs []error
	if flags.NArg() > 0 {
		errs = append(errs, fmt.Errorf("conformance: unexpected argument %q", flags.Arg(0)))
	}
	switch {
	case o.list:
	case o.embedded && (o.addr != "" || o.fixture != ""):
		errs = append(errs, errors.New("conformance: --embedded stands in place of --addr and --fixture"))
	case !o.embedded && (o.addr == "" || o.fixture == ""):
		errs = append(errs, errors.New("conformance: --addr and --fixture, or --embedded, are needed"))
	}
	if o.timeout <= 0 {
		errs = append(errs, fmt.Errorf("conformance: --timeout %v is not above 0", o.timeout))
	}
	match, err := regexp.Compile(o.match)
	if err != nil {
		errs = append(errs, fmt.Errorf("conformance: --run: %w", err))
	}
	return match, errors.Join(errs...)
}

func list(w io.Writer, match *regexp.Regexp) {
	for _, c := range conformance.Cases() {
		if match.MatchString(c.Title()) {
			fmt.Fprintln(w, c.Title())
		}
	}
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
	if err := envconfig.Load(&cfg); err != nil {
		return nil, fmt.Errorf("conformance: environment:\n%w", err)
	}
	cfg.Bind = "127.0.0.1:0"
	d, err := broker.NewDev(cfg, broker.DevOptions{Streams: []string{"demo", "other"}, Key: key})
	if err != nil {
		return nil, fmt.Errorf("conformance: %w", err)
	}
	target.Addr, target.TLS = d.Addr().String(), d.ClientTLS()
	target.Fixture = conformance.Fixture{
		Tenant: d.Tenant, Namespace: d.Namespace, Stream: d.Streams[0], OtherStream: d.Streams[1], Cache: d.Cache,
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

// print writes the report in all forms that were asked for.
func (o *options) print(stdout io.Writer, report *conformance.Report) error {
	var errs []error
	if o.json == "-" {
		errs = append(errs, report.WriteJSON(stdout))
	} else {
		errs = append(errs, report.WriteText(stdout))
		if o.json != "" {
			errs = append(errs, writeFile(o.json, report.WriteJSON))
		}
	}
	if o.junit != "" {
		errs = append(errs, writeFile(o.junit, report.WriteJUnit))
	}
	return errors.Join(errs...)
}

func writeFile(path string, write func(io.Writer) error) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	return errors.Join(write(f), f.Close())
}
