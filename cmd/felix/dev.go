package main

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/spf13/cobra"

	"github.com/felix-mq/felix/broker"
	"github.com/felix-mq/felix/internal/brokerd"
	"github.com/felix-mq/felix/internal/certfile"
	"github.com/felix-mq/felix/internal/dev"
	"github.com/felix-mq/felix/internal/logs"
	"github.com/felix-mq/felix/internal/ops"
	"github.com/felix-mq/felix/internal/settings"
	"github.com/felix-mq/felix/storage"
)

func (a *app) newDev() *cobra.Command {
	d := development{app: a, bind: "127.0.0.1:5000", metrics: "127.0.0.1:0", streams: []string{"orders", "demo"}, cache: defaultCache, life: 30 * 24 * time.Hour}
	c := &cobra.Command{
		Use:   "dev",
		Short: "Run a broker for development, and make a context that leads to it",
		Long: `Run a broker for development until an interrupt (Ctrl-C), SIGTERM or SIGHUP: with a tenant, streams, a cache, a
certificate and a token for everything in the tenant. Events and cache entries live in memory; with --data events are kept
in a directory, and are there at the next start (docs/operate/durability.md). A terminal that closes sends SIGHUP,
which nohup has it ignore. In contrast to the broker, it does not read files again on SIGHUP.

When it ends it delivers what has been published, and leaves each subscriber up to a second to read that.

It makes the context "dev" (or the one of --context), which is used at once if there is no other. If another felix dev
runs and has that context, it makes "dev-2" and so on, which ends with it. Where there is no place for contexts, or
with --no-context, it prints the flags that lead to the broker instead.

The settings of the broker hold for it too: FELIX_* variables, and the file that FELIX_BROKER_CONFIG names; flags win
over them. It logs to the standard error, as FELIX_LOG_LEVEL and FELIX_LOG_FORMAT say.

What it makes is kept in a directory, which it names, so that clients and their tokens go on over a restart: by
default one for each context, next to the file of contexts. With --dir '' nothing is kept, and the context is at the end
what it was before.
  ca.pem, ca-key.pem  certificate authority that clients trust, and its private key
  cert.pem, key.pem   certificate of the broker, and its private key; another of the same authority is made when they expire
  signing-key.pem     private key that signs tokens (felix token mint --key)
  token               token for everything
  catalog.yaml        what it serves: at the next start too if no streams and no cache are named, or for broker --catalog`,
		Example: `  felix dev
  felix dev --data ./felix-data
  felix dev --dir ./felix-dev --stream orders,payments --bind 127.0.0.1:0`,
		Args: arguments(0, 0),
		RunE: func(c *cobra.Command, _ []string) error { return d.run(c) },
	}
	f := c.Flags()
	f.StringVar(&d.dir, "dir", "", "`directory` that keeps what the broker makes, instead of that of the context; '' for none")
	f.StringVar(&d.data, "data", "", "`directory` that keeps the events of streams, made if it is missing")
	f.StringVar(&d.bind, "bind", d.bind, "UDP `address` to listen on; port 0 takes any")
	f.StringVar(&d.metrics, "metrics-bind", d.metrics, "TCP `address` for /metrics; empty for none")
	f.StringSliceVar(&d.streams, "stream", d.streams, "`names` of streams")
	f.StringVar(&d.cache, "cache", d.cache, "`name` of the cache")
	f.DurationVar(&d.life, "token-lifetime", d.life, "time until the token expires")
	f.BoolVar(&d.noContext, "no-context", false, "make no context")
	c.AddCommand(newDevCert())
	return c
}

// development is a felix dev.
type development struct {
	*app

	// Flags.
	dir, data, bind, metrics, cache string
	streams                         []string
	life                            time.Duration
	noContext                       bool

	// Settings of the broker.
	process brokerd.Process
	broker  broker.Config
	options broker.DevOptions
	files   certfile.Files
	ops     ops.Settings
	logs    logs.Settings

	home *devHome
}

// load reads the settings: flags win over variables, these over the file, and that over the defaults of this command.
// It reports whether streams and the cache were named.
func (d *development) load(c *cobra.Command) (loaded *settings.Loaded, streams, cache bool, err error) {
	d.process, d.broker, d.ops, d.logs = brokerd.DefaultProcess(), broker.DefaultConfig(), ops.DefaultSettings(), logs.DefaultSettings()
	d.broker.Bind, d.ops.Bind, d.ops.DrainDelay = d.bind, d.metrics, 0
	d.options = broker.DevOptions{Streams: d.streams, Cache: d.cache, TokenLife: d.life}
	given := c.Flags().Changed
	flags := []struct {
		is  bool
		set func()
	}{
		{given("bind"), func() { d.broker.Bind = d.bind }},
		{given("metrics-bind"), func() { d.ops.Bind = d.metrics }},
		{given("data"), func() { d.broker.Storage.Dir = d.data }},
		{given("stream"), func() { d.options.Streams = d.streams }},
		{given("cache"), func() { d.options.Cache = d.cache }},
		{given("token-lifetime"), func() { d.options.TokenLife = d.life }},
		{d.flags.Tenant != "", func() { d.options.Tenant = d.flags.Tenant }},
		{d.flags.Namespace != "", func() { d.options.Namespace = d.flags.Namespace }},
	}
	loaded, err = settings.Load(settings.Sources{
		Profiles: brokerd.Profiles, File: os.Getenv(brokerd.FileVariable), WithoutEffect: brokerd.WithoutEffect,
		Environ: slices.DeleteFunc(os.Environ(), func(v string) bool { return strings.HasPrefix(v, brokerd.FileVariable+"=") }),
	}, &d.process, &d.broker, &d.options, &d.files, &d.ops, &d.logs)
	if err != nil {
		return nil, false, false, usageError{error: err}
	}
	if d.process.Catalog != "" {
		return nil, false, false, usageError{
			loaded.Problem("catalog", errors.New("felix dev makes its own catalog")), "broker --catalog serves that of a file",
		}
	}
	for _, flag := range flags {
		if flag.is {
			flag.set()
		}
	}
	if _, err := net.ResolveUDPAddr("udp", d.broker.Bind); err != nil {
		return nil, false, false, usagef("--bind: %w", err)
	}
	if given("token-lifetime") && d.life < time.Second {
		return nil, false, false, usagef("--token-lifetime %v: want at least 1s", d.life)
	}
	if err := d.options.Validate(); err != nil {
		return nil, false, false, usageError{error: err}
	}
	named := func(flag, key string) bool {
		return given(flag) || slices.ContainsFunc(loaded.Settings, func(s *settings.Setting) bool { return s.Key == key && s.Origin != fromDefault })
	}
	return loaded, named("stream", "dev_streams"), named("cache", "dev_cache"), nil
}

func (d *development) run(c *cobra.Command) (err error) {
	d.patient.Store(true) // the drain has a time of its own
	loaded, streams, cache, err := d.load(c)
	if err != nil {
		return err
	}
	errOut := c.ErrOrStderr()
	log, _ := logs.New(errOut, d.logs)
	for _, n := range loaded.Ignored {
		log.Warn("setting has no effect", "name", n.Name, "where", n.Where, "why", n.Why)
	}
	d.broker.Logger = log
	var dir *string
	if c.Flags().Changed("dir") {
		dir = &d.dir
	}
	if d.home, err = openHome(d.flags.context, dir, d.noContext, errOut); err != nil {
		return err
	}
	defer d.home.close()
	certs, err := d.prepare(streams, cache, errOut)
	if err != nil {
		return err
	}
	d.broker.TuneRuntime()
	dev, err := broker.NewDev(d.broker, d.options)
	if errors.Is(err, storage.ErrInUse) {
		return usageError{fmt.Errorf("--data: %w", err), "another broker has it"}
	}
	if errors.Is(err, syscall.EADDRINUSE) {
		return fmt.Errorf("%w: another broker? --bind 127.0.0.1:0 takes any free port", err)
	}
	if err != nil {
		return err
	}
	return d.serve(c, dev, certs)
}

// prepare makes or reads keys and the certificate. It returns the source of a certificate from files, or nil.
func (d *development) prepare(streams, cache bool, errOut io.Writer) (*certfile.Source, error) {
	var certs *certfile.Source
	if d.process.DevKeyFile != "" {
		key, err := dev.ReadOrMakeKey(d.process.DevKeyFile)
		if err != nil {
			return nil, usagef("dev_key_file: %w", err)
		}
		d.options.Key = key
	}
	if d.files != (certfile.Files{}) {
		var err error
		if certs, err = certfile.Load(d.files, d.broker.Logger); err != nil {
			return nil, usageError{error: err}
		}
		d.broker.TLS = certs.TLS()
	}
	if d.home.dir == "" {
		return certs, nil
	}
	var err error
	d.options.Certificate, err = d.home.readKept(&d.options, certs == nil, streams, cache, errOut)
	return certs, err
}

// serve serves until an interrupt.
func (d *development) serve(c *cobra.Command, dev *broker.Dev, certs *certfile.Source) error {
	ctx, log := c.Context(), d.broker.Logger
	served := make(chan error, 1)
	go func() { served <- dev.Serve(context.Background()) }() // ends with Shutdown, below
	background, stop := context.WithCancel(context.Background())
	var work sync.WaitGroup
	if certs != nil {
		work.Go(func() { certs.Watch(background, certfile.Every) })
	}
	var life ops.Lifecycle
	server, err := d.startHTTP(dev, certs, &life)
	if err == nil {
		log.Info("listening", "addr", dev.Addr().String())
		life.Serving()
		err = d.announce(c.OutOrStdout(), dev, server)
	}
	if err == nil {
		select {
		case err = <-served:
			served <- err
		case <-ctx.Done():
		}
	}
	budget, cancel := context.WithTimeout(context.Background(), d.broker.ShutdownDrain)
	defer cancel()
	life.Draining()
	if subscriptions := subscriptionsOf(dev); err == nil && subscriptions > 0 {
		log.Info("draining", "subscriptions", subscriptions, "why", "each subscriber has up to a second to read what it was sent", "budget", d.broker.ShutdownDrain)
	}
	if err == nil && d.ops.DrainDelay > 0 {
		<-time.After(min(d.ops.DrainDelay, d.broker.ShutdownDrain/2))
	}
	err = errors.Join(err, dev.Shutdown(budget))
	if serveErr := <-served; !errors.Is(serveErr, broker.ErrShutdown) {
		err = errors.Join(err, serveErr)
	}
	server.Close()
	stop()
	work.Wait()
	return err
}

// subscriptionsOf returns how many subscriptions a broker has.
func subscriptionsOf(dev *broker.Dev) (n int) {
	for _, s := range dev.StreamStats() {
		n += s.Subscriptions
	}
	return n
}

// startHTTP starts the server of metrics and probes, which is nil if there is none.
func (d *development) startHTTP(dev *broker.Dev, certs *certfile.Source, life *ops.Lifecycle) (*ops.Server, error) {
	registry := dev.Registry()
	registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	conf := ops.Config{
		Settings: d.ops, Metrics: registry, Checks: []ops.Check{life.Check(), {Name: "storage", Err: dev.StorageError}}, Streams: http.HandlerFunc(dev.ServeStreams), Log: d.broker.Logger,
	}
	if d.ops.TLS {
		switch {
		case certs != nil && d.ops.ClientCA != "":
			files := d.files
			files.ClientCA = d.ops.ClientCA
			own, err := certfile.Load(files, d.broker.Logger)
			if err != nil {
				return nil, usageError{error: err}
			}
			conf.Certificate = own.TLS()
		case certs != nil:
			conf.Certificate = certs.TLS()
		default:
			conf.Certificate = &tls.Config{MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{*dev.Certificate}}
		}
	}
	server, err := ops.Start(conf)
	if err != nil {
		return nil, usageError{fmt.Errorf("metrics: %w", err), "--metrics-bind names another address"}
	}
	return server, nil
}

// leads is what leads to the broker.
func (d *development) leads(dev *broker.Dev, server *ops.Server) (connection, error) {
	one := connection{Addr: reachable(dev.Addr()), Tenant: dev.Tenant, Namespace: dev.Namespace, Dev: true}
	if server != nil {
		scheme := "http://"
		if d.ops.TLS {
			scheme = "https://"
		}
		one.MetricsURL = scheme + reachable(server.Addr()) + "/metrics"
		one.MetricsToken = d.ops.TokenFile
	}
	if dev.CertPEM == nil {
		one.CA = d.files.Cert // whatever has issued it
	} else if d.home.dir == "" {
		one.CAPEM = string(dev.CertPEM)
	} else {
		one.CA = filepath.Join(d.home.dir, fileCA)
	}
	if d.home.dir == "" {
		one.Token = dev.Token
	} else {
		one.TokenFile = filepath.Join(d.home.dir, fileToken)
		if err := writeFile(one.TokenFile, []byte(dev.Token+"\n")); err != nil {
			return one, fmt.Errorf("keeping the token: %w", err)
		}
		if err := writeCatalog(filepath.Join(d.home.dir, fileCatalog), dev.DevOptions, d.broker.Storage.Dir != ""); err != nil {
			return one, fmt.Errorf("keeping the catalog: %w", err)
		}
	}
	return one, one.makeAbsolute()
}

// announce makes the context and prints what can be done with the broker.
func (d *development) announce(stdout io.Writer, dev *broker.Dev, server *ops.Server) error {
	one, err := d.leads(dev, server)
	if err != nil {
		return err
	}
	flags := ""
	if d.home.context != "" {
		current := ""
		err = changeContexts(func(all *contexts) error {
			all.Contexts[d.home.context] = one
			if all.Current == "" {
				all.Current, d.home.madeCurrent = d.home.context, true
			}
			current = all.Current
			return nil
		})
		if cmp.Or(os.Getenv("FELIX_CONTEXT"), current) != d.home.context {
			flags = " --context " + d.home.context
		}
	} else {
		flags = fmt.Sprintf(" --addr %s --tenant %s --namespace %s --token-file %s --ca %s", one.Addr, one.Tenant, one.Namespace, one.TokenFile, one.CA)
	}
	if err != nil {
		return err
	}
	felix := os.Args[0] + flags // as it was called, so that the lines can be copied
	fmt.Fprintf(stdout, "A broker listens on %s until Ctrl-C. In other terminals:\n", one.Addr)
	fmt.Fprintf(stdout, "  %[1]s sub %[2]s\n  %[1]s pub %[2]s hello\n  %[1]s cache put greeting hello%[3]s\n", felix, dev.Streams[0], cacheFlag(dev.Cache))
	if d.home.dir != "" && !d.home.removeDir {
		fmt.Fprintf(stdout, "Certificates, keys and catalog are kept in %s\n", filepath.Dir(one.TokenFile))
	}
	return nil
}

// reachable is an address that leads to a socket from this machine: one that is bound to all addresses has no name in
// the certificate.
func reachable(bound net.Addr) string {
	switch addr := bound.(type) {
	case *net.UDPAddr:
		if addr.IP.IsUnspecified() {
			return net.JoinHostPort("localhost", strconv.Itoa(addr.Port))
		}
	case *net.TCPAddr:
		if addr.IP.IsUnspecified() {
			return net.JoinHostPort("localhost", strconv.Itoa(addr.Port))
		}
	}
	return bound.String()
}

// cacheFlag is the flag that leads to a cache other than the default one.
func cacheFlag(name string) string {
	if name == defaultCache {
		return ""
	}
	return " --cache " + name
}

func newDevCert() *cobra.Command {
	var dir string
	var force bool
	c := &cobra.Command{
		Use:   "cert [HOST...]",
		Short: "Make a certificate authority for development, and a certificate for a broker",
		Long: `Make a certificate authority for development, and a certificate of it for hosts, which are names and IP addresses:
localhost and the loopback addresses if there are none. It is for servers and clients, and lives for 30 days. The
authority's key is not kept: another call makes another authority.

It writes ca.pem, cert.pem and key.pem, and replaces none without --force.`,
		Example: `  felix dev cert --dir ./felix-dev broker.internal 10.0.0.7`,
		RunE: func(c *cobra.Command, hosts []string) error {
			if _, err := os.Stat(filepath.Join(dir, fileCert)); err == nil && !force {
				return fmt.Errorf("%s is there already: --force replaces it", filepath.Join(dir, fileCert))
			}
			if err := os.MkdirAll(dir, 0o755); err != nil { // keys have a mode of their own
				return err
			}
			ca, err := dev.NewCA()
			if err != nil {
				return err
			}
			if _, err := issue(ca, dir, hosts, false); err != nil {
				return err
			}
			for _, name := range []string{fileCA, fileCert, fileKey} {
				if _, err := fmt.Fprintln(c.OutOrStdout(), filepath.Join(dir, name)); err != nil {
					return asOutput(err)
				}
			}
			return nil
		},
	}
	c.Flags().StringVar(&dir, "dir", ".", "`directory` to write to")
	c.Flags().BoolVar(&force, "force", false, "replace a certificate")
	return c
}
