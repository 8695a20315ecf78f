package main

import (
	"context"
	"errors"
	"net"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/felix-mq/felix/broker"
	"github.com/felix-mq/felix/catalog"
	"github.com/felix-mq/felix/internal/brokerd"
	"github.com/felix-mq/felix/internal/certfile"
	"github.com/felix-mq/felix/internal/dev"
	"github.com/felix-mq/felix/internal/logs"
	"github.com/felix-mq/felix/internal/ops"
	"github.com/felix-mq/felix/internal/settings"
	"github.com/felix-mq/felix/internal/traces"
)

// defaultFile is read if no other is named and it is there (docs/operate/configuration.md).
const defaultFile = "/usr/local/felix/config.yml"

// options are all settings of this program.
type options struct {
	brokerd.Process
	broker broker.Config
	dev    broker.DevOptions
	files  certfile.Files
	ops    ops.Settings
	logs   logs.Settings

	// Set by prepare:
	certs  certificates
	devCA  []byte        // PEM, if the certificate is one for development
	source *catalog.File // nil in development mode
	tracer *traces.Tracer

	hangups *ops.Hangups
}

func defaultOptions() *options {
	return &options{
		Process: brokerd.DefaultProcess(),
		broker:  broker.DefaultConfig(),
		dev:     broker.DefaultDevOptions(),
		ops:     ops.DefaultSettings(),
		logs:    logs.DefaultSettings(),
	}
}

// structs are where settings are read into.
func (o *options) structs() []any {
	return []any{&o.Process, &o.broker, &o.dev, &o.files, &o.ops, &o.logs}
}

// load reads all sources. file is that of the command line, or empty.
func (o *options) load(file string, environ, assignments []string) (*settings.Loaded, error) {
	if file == "" {
		file = os.Getenv(brokerd.FileVariable)
	}
	if file == "" {
		if _, err := os.Stat(defaultFile); err == nil {
			file = defaultFile
		}
	}
	loaded, err := settings.Load(settings.Sources{
		Profiles:      brokerd.Profiles,
		File:          file,
		Environ:       slices.DeleteFunc(environ, func(v string) bool { return strings.HasPrefix(v, brokerd.FileVariable+"=") }),
		Assignments:   assignments,
		WithoutEffect: brokerd.WithoutEffect,
	}, o.structs()...)
	if err == nil && o.Dev {
		// It prints a token for everything, which other machines should not be able to use unless somebody wants that.
		loaded.SetDefault("quic_bind", devBind, "development mode")
	}
	return loaded, err
}

// devBind is where development mode listens unless another address is set.
const devBind = "127.0.0.1:5000"

// prepare does everything that a start does before it binds addresses, and reports every problem of the settings, and
// of the files and addresses that they name, at once. Nothing is made or changed; what it holds is released by release.
func (o *options) prepare(loaded *settings.Loaded) error {
	var errs []error
	problem := func(key string, err error) {
		if err != nil {
			errs = append(errs, loaded.Problem(key, err))
		}
	}
	_, err := net.ResolveUDPAddr("udp", o.broker.Bind)
	problem("quic_bind", err)
	o.certs, err = loadCertificates(o)
	if err == nil && o.broker.TLS == nil && o.Catalog != "" {
		o.broker.TLS, o.devCA, err = dev.LoopbackTLS(o.broker.Bind)
	}
	problem("tls_cert_file", err)
	if err == nil { // without its certificate there is one problem, not two
		errs = append(errs, o.metricsConfig().Validate())
	}
	errs = append(errs, o.broker.Validate())
	if dir := o.broker.Storage.Dir; dir != "" {
		problem("durable_storage_dir", dev.CheckMadeDir(dir))
	}
	if dir := o.broker.CacheSnapshot.Dir; dir != "" {
		problem("cache_snapshot_dir", dev.CheckMadeDir(dir))
	}
	o.tracer, err = traces.Start(context.Background(), "felix-broker", o.broker.Logger)
	if err != nil {
		errs = append(errs, err)
	}
	switch {
	case o.Dev && o.Catalog != "":
		problem("catalog", errors.New("development mode makes its own catalog; leave one of them out"))
	case o.Dev:
		errs = append(errs, o.prepareDev(problem))
	case o.Catalog != "":
		o.source = catalog.NewFile(o.Catalog)
		snapshot, err := o.source.Snapshot(context.Background())
		if err == nil {
			err = o.broker.CheckCatalog(snapshot)
		}
		problem("catalog", err)
	default:
		problem("catalog", errors.New("nothing says which tenants, streams and keys exist: set catalog to a file, or use --dev"))
	}
	return errors.Join(errs...)
}

func (o *options) prepareDev(problem func(key string, err error)) error {
	if o.DevKeyFile != "" {
		problem("dev_key_file", dev.CheckKey(o.DevKeyFile)) // it is made at the start if it is not there
	}
	if o.broker.TLS == nil {
		cert, _, err := dev.SelfSigned(dev.Localhost(o.dev.Hosts...)...)
		problem("dev_hosts", err)
		o.dev.Certificate = &cert
	}
	return o.dev.Validate()
}

// metricsConfig is that of the HTTP server, as far as settings say it.
func (o *options) metricsConfig() *ops.Config {
	return &ops.Config{Settings: o.ops, Certificate: o.certs.metricsTLS(), Log: o.broker.Logger}
}

// tracesTimeout bounds what the end of the process waits for a collector.
const tracesTimeout = time.Second

// release gives back what prepare holds.
func (o *options) release() {
	ctx, cancel := context.WithTimeout(context.Background(), tracesTimeout)
	defer cancel()
	_ = o.tracer.Close(ctx) // what is not sent has been logged
}
