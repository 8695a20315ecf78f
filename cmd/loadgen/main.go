// Command loadgen measures a Felix broker: publish→deliver latency and throughput, with every event accounted for.
// `loadgen cache` measures its cache. See `loadgen --help` and `loadgen cache --help`.
package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/pflag"
	"golang.org/x/term"

	"github.com/felix-mq/felix/broker"
	"github.com/felix-mq/felix/internal/settings"
	"github.com/felix-mq/felix/internal/version"
	"github.com/felix-mq/felix/loadgen"
)

// Exit codes.
const (
	exitOK     = 0
	exitFailed = 1 // the run failed, lost events, or was too small
	exitUsage  = 2 // a flag or a variable is wrong, or the run would be too small
)

func main() {
	loadgen.ServeBroker(tune)
	os.Exit(run(os.Args[1:], os.Stdout, os.Stderr))
}

// tune reads the FELIX_* variables that cmd/broker reads.
func tune(cfg *broker.Config) error { return settings.Environment(cfg) }

// options are the flags that do not go into a [loadgen.Config] as they are.
type options struct {
	kind                                              string
	window                                            int
	addr, tenant, namespace, stream, token, authority string
	insecure, json, version                           bool
}

func run(args []string, stdout, stderr io.Writer) int {
	if len(args) > 0 && args[0] == "cache" {
		return runCache(args[1:], stdout, stderr)
	}
	var cfg loadgen.Config
	var o options
	flags := newFlags(&cfg, &o, stderr)
	if err := flags.Parse(args); err != nil {
		if errors.Is(err, pflag.ErrHelp) {
			return exitOK
		}
		fmt.Fprintf(stderr, "loadgen: %v; see loadgen --help\n", err)
		return exitUsage
	}
	if o.version {
		fmt.Fprintln(stdout, "loadgen", version.Get())
		return exitOK
	}
	if err := o.apply(flags, &cfg); err != nil {
		fmt.Fprintf(stderr, "%v\nSee loadgen --help.\n", err)
		return exitUsage
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	clear := func() {}
	if f, ok := stderr.(*os.File); ok && term.IsTerminal(int(f.Fd())) {
		cfg.Progress = func(p loadgen.Progress) { fmt.Fprintf(stderr, "\r\x1b[K%v", p) }
		clear = func() { fmt.Fprint(stderr, "\r\x1b[K") }
	}
	res, err := loadgen.Run(ctx, cfg)
	clear()
	if res != nil {
		if printErr := o.print(stdout, res); printErr != nil {
			err = errors.Join(err, printErr)
		}
	}
	switch {
	case err == nil:
		return exitOK
	case ctx.Err() != nil:
		fmt.Fprintln(stderr, "loadgen: ended by a signal")
	default:
		fmt.Fprintln(stderr, err)
	}
	return exitFailed
}

func (o *options) print(w io.Writer, res *loadgen.Result) error {
	if o.json {
		return json.NewEncoder(w).Encode(res)
	}
	return res.WriteText(w)
}

// apply turns the flags into a valid configuration. It reports every problem at once.
func (o *options) apply(flags *pflag.FlagSet, cfg *loadgen.Config) error {
	var errs []error
	if flags.NArg() > 0 {
		errs = append(errs, fmt.Errorf("loadgen: unexpected argument %q", flags.Arg(0)))
	}
	// Zero means the default to the library and nothing, or no bound, to the user.
	for _, name := range []string{"fanout", "payload", "batch", "conns", "processes"} {
		if f := flags.Lookup(name); f.Value.String() == "0" {
			errs = append(errs, fmt.Errorf("loadgen: --%s 0 is less than 1", name))
		}
	}
	switch {
	case flags.Changed("window") && o.window == 0:
		cfg.Window = loadgen.Unbounded
	case flags.Changed("window") || cfg.Rate == 0:
		cfg.Window = o.window
	}
	if cfg.Warmup == 0 {
		cfg.Warmup = 1 // one batch
	}
	var err error
	if cfg.Kind, err = loadgen.ParsePayloadKind(o.kind); err != nil {
		errs = append(errs, err)
	}
	if o.addr == "" {
		if flags.Changed("ca") || flags.Changed("insecure") || flags.Changed("tenant") || flags.Changed("namespace") ||
			flags.Changed("stream") || flags.Changed("token") {
			errs = append(errs, errors.New("loadgen: --tenant, --namespace, --stream, --token, --ca and --insecure need --addr"))
		}
		scratch := broker.DefaultConfig()
		if err := tune(&scratch); err != nil {
			errs = append(errs, fmt.Errorf("loadgen: environment: %w", err))
		}
		cfg.Tune = tune
	} else {
		if !flags.Changed("processes") {
			cfg.Processes = 0
		}
		tlsConf, err := o.tls()
		if err != nil {
			errs = append(errs, err)
			tlsConf = &tls.Config{} // reported already
		}
		cfg.Target = &loadgen.Target{
			Addr: o.addr, Tenant: o.tenant, Namespace: o.namespace, Stream: o.stream, Token: o.token, TLS: tlsConf,
		}
	}
	return errors.Join(append(errs, cfg.Validate())...)
}

func (o *options) tls() (*tls.Config, error) {
	conf := &tls.Config{MinVersion: tls.VersionTLS13, InsecureSkipVerify: o.insecure} // what --insecure says
	if o.authority == "" {
		return conf, nil
	}
	pem, err := os.ReadFile(o.authority)
	if err != nil {
		return nil, fmt.Errorf("loadgen: --ca: %w", err)
	}
	conf.RootCAs = x509.NewCertPool()
	if !conf.RootCAs.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("loadgen: --ca: no certificate in %s", o.authority)
	}
	return conf, nil
}
