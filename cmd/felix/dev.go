package main

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/spf13/cobra"

	"github.com/felix-mq/felix/auth"
	"github.com/felix-mq/felix/broker"
	"github.com/felix-mq/felix/catalog"
	"github.com/felix-mq/felix/internal/devca"
	"github.com/felix-mq/felix/internal/devkey"
	"github.com/felix-mq/felix/internal/ops"
	"github.com/felix-mq/felix/internal/settings"
)

// Files that felix dev keeps in the directory of --dir.
const (
	fileCA   = "ca.pem"
	fileCert = "cert.pem"
	fileKey  = "key.pem"
	// With fileSigningKey tokens are signed; fileToken is one for everything.
	fileSigningKey = "signing-key.pem"
	fileToken      = "token"
	fileCatalog    = "catalog.yaml"
)

// devContext is the context that felix dev makes.
const devContext = "dev"

func (a *app) newDev() *cobra.Command {
	cfg := broker.DefaultConfig()
	cfg.Bind = "127.0.0.1:5000"
	o := broker.DevOptions{Streams: []string{"orders", "demo"}, Cache: defaultCache, TokenLife: 30 * 24 * time.Hour}
	envErr := settings.Environment(&cfg, &o) // what it finds are the defaults of flags
	var dir, metrics string
	c := &cobra.Command{
		Use:   "dev",
		Short: "Run a broker for development, and make a context that leads to it",
		Long: `Run a broker for development until an interrupt: with a tenant, streams, a cache, a certificate and a token for everything
in the tenant. What it serves lives in memory. It makes the context "dev" (or the one of --context), which is used at
once if there is no other.

The FELIX_* variables of the broker tune it.

With --dir, certificate, keys and token are kept in a directory: other programs can use them, and they outlive a restart.
  ca.pem             certificate authority that clients trust
  cert.pem, key.pem  certificate of the broker, and its private key; made anew when they have expired
  signing-key.pem    private key that signs tokens (felix token mint --key)
  token              token for everything
  catalog.yaml       what it serves, for a broker that is to stay: broker --catalog`,
		Example: `  felix dev
  felix dev --dir ./felix-dev --stream orders,payments --bind 127.0.0.1:0`,
		Args: arguments(0, 0),
		RunE: func(c *cobra.Command, _ []string) error {
			if envErr != nil {
				return usageError{error: fmt.Errorf("environment: %w", envErr)}
			}
			o.Tenant, o.Namespace = cmp.Or(a.flags.Tenant, o.Tenant), cmp.Or(a.flags.Namespace, o.Namespace)
			return a.runDev(c.Context(), cfg, o, dir, metrics, c.OutOrStdout(), c.ErrOrStderr())
		},
	}
	f := c.Flags()
	f.StringVar(&dir, "dir", "", "`directory` that keeps what the broker makes; empty for none")
	f.StringVar(&cfg.Bind, "bind", cfg.Bind, "UDP `address` to listen on; port 0 takes any")
	f.StringVar(&metrics, "metrics-bind", "127.0.0.1:0", "TCP `address` for /metrics; empty for none")
	f.StringSliceVar(&o.Streams, "stream", o.Streams, "`names` of streams")
	f.StringVar(&o.Cache, "cache", o.Cache, "`name` of the cache")
	f.DurationVar(&o.TokenLife, "token-lifetime", o.TokenLife, "time until the token expires")
	c.AddCommand(newDevCert())
	return c
}

func (a *app) runDev(ctx context.Context, cfg broker.Config, o broker.DevOptions, dir, metrics string, stdout, stderr io.Writer) error {
	name := cmp.Or(a.flags.context, devContext)
	all, err := loadContexts()
	if err != nil {
		return err
	}
	if old, ok := all.Contexts[name]; ok && !old.Dev {
		return usageError{error: fmt.Errorf("context %q was not made by felix dev: use --context with another name", name)}
	}
	if dir != "" {
		if err := prepareDir(dir, &o, stderr); err != nil {
			return err
		}
	}
	cfg.TuneRuntime()
	cfg.Logger = slog.New(slog.NewTextHandler(stderr, &slog.HandlerOptions{Level: slog.LevelWarn}))
	d, err := broker.NewDev(cfg, o)
	if errors.Is(err, syscall.EADDRINUSE) {
		return fmt.Errorf("%w: another broker? --bind 127.0.0.1:0 takes any free port", err)
	}
	if err != nil {
		return err
	}
	one := connection{Addr: reachable(d.Addr()), Tenant: d.Tenant, Namespace: d.Namespace, Dev: true, Token: d.Token, CAPEM: string(d.CertPEM)}
	served := make(chan error, 1)
	go func() { served <- d.Serve(context.Background()) }() // ends with Shutdown, below
	registry := d.Registry()
	registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	server, err := ops.Start(ops.Config{
		Settings: ops.Settings{Bind: metrics}, Metrics: registry, Streams: http.HandlerFunc(d.ServeStreams), Log: cfg.Logger,
	})
	if err != nil {
		err = usageError{error: fmt.Errorf("--metrics-bind: %w", err)}
	}
	if server != nil {
		one.MetricsURL = "http://" + server.Addr().String() + "/metrics"
	}
	if err == nil {
		err = announce(all, name, one, dir, d.DevOptions, stdout)
	}
	if err == nil {
		select {
		case err = <-served:
			served <- err
		case <-ctx.Done():
		}
	}
	drain, cancel := context.WithTimeout(context.Background(), cfg.ShutdownDrain)
	defer cancel()
	err = errors.Join(err, d.Shutdown(drain))
	if serveErr := <-served; !errors.Is(serveErr, broker.ErrShutdown) {
		err = errors.Join(err, serveErr)
	}
	server.Close()
	return err
}

// reachable is an address that leads to a socket from this machine: one that is bound to all addresses has no name in the
// certificate.
func reachable(bound net.Addr) string {
	if addr, ok := bound.(*net.UDPAddr); ok && addr.IP.IsUnspecified() {
		return net.JoinHostPort("localhost", strconv.Itoa(addr.Port))
	}
	return bound.String()
}

// announce makes the context and prints what can be done with it.
func announce(all *contexts, name string, one connection, dir string, o broker.DevOptions, stdout io.Writer) error {
	if dir != "" {
		token := filepath.Join(dir, fileToken)
		if err := writeFile(token, []byte(one.Token+"\n")); err != nil {
			return fmt.Errorf("keeping the token: %w", err)
		}
		if err := writeCatalog(filepath.Join(dir, fileCatalog), o); err != nil {
			return fmt.Errorf("keeping the catalog: %w", err)
		}
		one.Token, one.CAPEM = "", ""
		one.TokenFile, one.CA = token, filepath.Join(dir, fileCA)
		if err := one.makeAbsolute(); err != nil {
			return err
		}
	}
	all.Contexts[name] = one
	if all.Current == "" {
		all.Current = name
	}
	if err := all.save(); err != nil {
		return err
	}
	felix := os.Args[0] // as it was called, so that the lines can be copied
	if all.Current != name {
		felix += " --context " + name
	}
	fmt.Fprintf(stdout, "A broker listens on %s until Ctrl-C. In other terminals:\n", one.Addr)
	fmt.Fprintf(stdout, "  %[1]s sub %[2]s\n  %[1]s pub %[2]s hello\n  %[1]s cache put greeting hello%[3]s\n", felix, o.Streams[0], cacheFlag(o.Cache))
	return nil
}

// writeCatalog writes what the broker serves, as others can serve it.
func writeCatalog(file string, o broker.DevOptions) error {
	signer, err := auth.NewSigner(o.Key, broker.DevKeyID)
	if err != nil {
		return err
	}
	streams := make(map[string]catalog.Stream)
	for _, name := range o.Streams {
		streams[name] = catalog.Stream{}
	}
	namespace := catalog.Namespace{Streams: streams, Caches: map[string]catalog.Cache{o.Cache: {}}}
	return catalog.Write(file, &catalog.Catalog{Tenants: map[string]catalog.Tenant{
		o.Tenant: {Keys: auth.KeySet{signer.Key()}, Namespaces: map[string]catalog.Namespace{o.Namespace: namespace}},
	}})
}

// cacheFlag is the flag that leads to a cache other than the default one.
func cacheFlag(name string) string {
	if name == defaultCache {
		return ""
	}
	return " --cache " + name
}

// prepareDir reads what an earlier broker has left in the directory, and makes what is missing.
func prepareDir(dir string, o *broker.DevOptions, stderr io.Writer) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	cert, err := tls.LoadX509KeyPair(filepath.Join(dir, fileCert), filepath.Join(dir, fileKey))
	expired := err == nil && time.Until(cert.Leaf.NotAfter) < time.Hour
	if expired {
		fmt.Fprintf(stderr, "%s has expired; making another, and an authority\n", filepath.Join(dir, fileCert))
	}
	if expired || errors.Is(err, fs.ErrNotExist) {
		cert, err = makeCertificate(dir, append([]string{"localhost", "127.0.0.1", "::1"}, o.Hosts...))
	}
	if err != nil {
		return err
	}
	o.Certificate = &cert
	o.Key, err = devkey.ReadOrMake(filepath.Join(dir, fileSigningKey))
	return err
}

func newDevCert() *cobra.Command {
	var dir string
	var force bool
	c := &cobra.Command{
		Use:   "cert [HOST...]",
		Short: "Make a certificate authority for development, and a certificate for a broker",
		Long: `Make a certificate authority for development, and a certificate of it for hosts, which are names and IP addresses: localhost
and the loopback addresses if there are none. It is for servers and clients, and lives for 30 days. The authority's key is
not kept: another call makes another authority.

It writes ca.pem, cert.pem and key.pem, and replaces none without --force.`,
		Example: `  felix dev cert --dir ./felix-dev broker.internal 10.0.0.7`,
		RunE: func(c *cobra.Command, hosts []string) error {
			if _, err := os.Stat(filepath.Join(dir, fileCert)); err == nil && !force {
				return fmt.Errorf("%s is there already: --force replaces it", filepath.Join(dir, fileCert))
			}
			if err := os.MkdirAll(dir, 0o700); err != nil {
				return err
			}
			if _, err := makeCertificate(dir, hosts); err != nil {
				return err
			}
			for _, name := range []string{fileCA, fileCert, fileKey} {
				fmt.Fprintln(c.OutOrStdout(), filepath.Join(dir, name))
			}
			return nil
		},
	}
	c.Flags().StringVar(&dir, "dir", ".", "`directory` to write to")
	c.Flags().BoolVar(&force, "force", false, "replace a certificate")
	return c
}

// makeCertificate makes an authority and a certificate, and writes both to the directory.
func makeCertificate(dir string, hosts []string) (tls.Certificate, error) {
	ca, err := devca.New()
	if err != nil {
		return tls.Certificate{}, err
	}
	cert, err := ca.Issue(hosts...)
	if err != nil {
		return tls.Certificate{}, err
	}
	key, err := devca.KeyPEM(cert)
	if err != nil {
		return tls.Certificate{}, err
	}
	for name, content := range map[string][]byte{fileCA: ca.CertPEM(), fileCert: devca.CertPEM(cert.Leaf), fileKey: key} {
		if err := writeFile(filepath.Join(dir, name), content); err != nil {
			return tls.Certificate{}, err
		}
	}
	return cert, nil
}
