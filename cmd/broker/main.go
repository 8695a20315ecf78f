// Command broker runs a Felix broker, tuned by FELIX_* environment variables. See `broker --help`.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"sync/atomic"
	"syscall"
	"text/tabwriter"
	"time"

	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"github.com/spf13/pflag"

	"github.com/felix-mq/felix/broker"
	"github.com/felix-mq/felix/internal/envconfig"
)

// Exit codes.
const (
	exitOK    = 0
	exitError = 1 // the broker could not start, or could not end in time
	exitUsage = 2 // a flag or a variable is wrong
)

// process is what concerns this program beside the broker in it.
type process struct {
	Dev         bool   `env:"FELIX_DEV" doc:"development mode: makes a tenant, streams, a cache, a certificate and a token, and prints what clients need as one line of JSON"`
	DevKeyFile  string `env:"FELIX_DEV_KEY_FILE" doc:"PEM file of the key that signs the tokens of development mode, made if it is not there; empty makes a new key at each start"`
	MetricsBind string `env:"FELIX_BROKER_METRICS_BIND" doc:"TCP address for /metrics, /live and /ready; empty for none"`
}

func main() {
	os.Exit(run(os.Args[1:], os.Stdout, os.Stderr))
}

func run(args []string, stdout, stderr io.Writer) int {
	p := process{MetricsBind: "127.0.0.1:8080"}
	cfg := broker.DefaultConfig()
	var dev broker.DevOptions

	flags := pflag.NewFlagSet("broker", pflag.ContinueOnError)
	flags.SetOutput(stderr)
	flags.Usage = func() { usage(stderr, flags, &p, &cfg, &dev) }
	devFlag := flags.Bool("dev", false, "development mode, like FELIX_DEV=true")
	if err := flags.Parse(args); err != nil {
		if errors.Is(err, pflag.ErrHelp) {
			return exitOK
		}
		fmt.Fprintln(stderr, "broker:", err)
		return exitUsage
	}
	if flags.NArg() > 0 {
		fmt.Fprintf(stderr, "broker: unexpected argument %q; see broker --help\n", flags.Arg(0))
		return exitUsage
	}
	if err := envconfig.Load(&p, &cfg, &dev); err != nil {
		fmt.Fprintf(stderr, "broker: environment:\n%v\n", err)
		return exitUsage
	}
	if !p.Dev && !*devFlag {
		fmt.Fprintln(stderr, "broker: nothing says which tenants, streams and keys exist: only development mode does so far. Use --dev or FELIX_DEV=true.")
		return exitUsage
	}
	log := slog.New(slog.NewTextHandler(stderr, nil))
	warnVariables(log, os.Environ(), &p, &cfg, &dev)
	cfg.Logger = log
	if err := serve(p, cfg, dev, stdout, log); err != nil {
		log.Error("broker ended", "error", err)
		return exitError
	}
	return exitOK
}

func usage(w io.Writer, flags *pflag.FlagSet, structs ...any) {
	fmt.Fprintf(w, "Usage: broker [--dev]\n\nRuns a Felix broker until SIGTERM or SIGINT, which drain it; a second signal ends it at once.\n\nFlags:\n%s\nEnvironment (default in brackets; times without a unit are milliseconds):\n", flags.FlagUsages())
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, v := range envconfig.Describe(structs...) {
		fmt.Fprintf(tw, "  %s\t%s [%s]\n", v.Name, v.Doc, v.Default)
	}
	_ = tw.Flush()
	fmt.Fprintln(w, "\nGOGC and GOMEMLIMIT are Go's; without them they are 400 and 5/4 of the retained, unfinished and cached bytes together.")
}

// ready is the line that development mode prints when clients can connect.
type ready struct {
	Addr      string   `json:"addr"`
	Tenant    string   `json:"tenant"`
	Namespace string   `json:"namespace"`
	Streams   []string `json:"streams"`
	Cache     string   `json:"cache"`
	Token     string   `json:"token"`
	CACert    string   `json:"ca_pem"`
}

func serve(p process, cfg broker.Config, o broker.DevOptions, stdout io.Writer, log *slog.Logger) error {
	if p.DevKeyFile != "" {
		key, err := devKey(p.DevKeyFile)
		if err != nil {
			return fmt.Errorf("FELIX_DEV_KEY_FILE: %w", err)
		}
		o.Key = key
	}
	cfg.TuneRuntime()
	d, err := broker.NewDev(cfg, o)
	if err != nil {
		return err
	}
	socket := d.Socket()
	log.Info("listening", "addr", d.Addr().String(),
		"receive_buffer", socket.RecvBufferGranted, "send_buffer", socket.SendBufferGranted, "gro", socket.GRO, "gso", socket.GSO)

	ctx, stopSignals := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	defer stopSignals()

	var draining atomic.Bool
	stopHTTP, err := serveHTTP(p.MetricsBind, d, &draining, log)
	if err != nil {
		_ = d.Shutdown(context.Background())
		return err
	}
	defer stopHTTP()

	served := make(chan error, 1)
	go func() { served <- d.Serve(context.Background()) }()
	if err := json.NewEncoder(stdout).Encode(ready{
		d.Addr().String(), d.Tenant, d.Namespace, d.Streams, d.Cache, d.Token, string(d.CertPEM),
	}); err != nil {
		return fmt.Errorf("printing the ready line: %w", err)
	}
	select {
	case err := <-served:
		return err
	case <-ctx.Done():
	}
	stopSignals() // a second signal ends the process at once
	draining.Store(true)
	log.Info("draining", "budget", cfg.ShutdownDrain)
	drainCtx, cancel := context.WithTimeout(context.Background(), cfg.ShutdownDrain)
	defer cancel()
	err = d.Shutdown(drainCtx)
	if served := <-served; !errors.Is(served, broker.ErrShutdown) {
		err = errors.Join(err, served)
	}
	if err != nil {
		return fmt.Errorf("drain cut short: %w", err)
	}
	log.Info("drained")
	return nil
}

// serveHTTP serves metrics and probes. An address that cannot be bound is an error: a broker that nobody can watch is
// not what was asked for.
func serveHTTP(addr string, d *broker.Dev, draining *atomic.Bool, log *slog.Logger) (stop func(), err error) {
	if addr == "" {
		return func() {}, nil
	}
	registry := d.Registry()
	registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(registry, promhttp.HandlerOpts{}))
	mux.HandleFunc("GET /live", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "ok") })
	mux.HandleFunc("GET /ready", func(w http.ResponseWriter, _ *http.Request) {
		if draining.Load() {
			http.Error(w, "draining", http.StatusServiceUnavailable)
			return
		}
		fmt.Fprintln(w, "ok")
	})
	listener, err := net.Listen("tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("FELIX_BROKER_METRICS_BIND: %w", err)
	}
	log.Info("metrics", "addr", listener.Addr().String())
	server := &http.Server{Handler: mux, ReadHeaderTimeout: 5 * time.Second}
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
			log.Error("metrics server ended", "error", err)
		}
	}()
	return func() {
		_ = server.Close()
		<-done
	}, nil
}
