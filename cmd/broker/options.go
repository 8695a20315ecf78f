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
	"github.com/felix-mq/felix/internal/certfile"
	"github.com/felix-mq/felix/internal/devkey"
	"github.com/felix-mq/felix/internal/logs"
	"github.com/felix-mq/felix/internal/ops"
	"github.com/felix-mq/felix/internal/settings"
	"github.com/felix-mq/felix/internal/traces"
	"github.com/felix-mq/felix/quicx"
)

// defaultFile is read if no other is named and it is there (docs/configuration.md).
const defaultFile = "/usr/local/felix/config.yml"

// fileVariable names the file of settings.
const fileVariable = "FELIX_BROKER_CONFIG"

// process is what concerns this program beside the broker in it.
type process struct {
	Profile    string `env:"FELIX_PROFILE" words:"latency,balanced,throughput" doc:"set of values for everything that nothing else says; see Profiles"`
	Catalog    string `env:"FELIX_CATALOG" reload:"content" doc:"YAML file of the tenants, streams, caches and keys that the broker serves; see [catalog.md](catalog.md)"`
	Dev        bool   `env:"FELIX_DEV" doc:"development mode: makes a tenant, streams, a cache, a certificate and a token, and prints what clients need as one line of JSON"`
	DevKeyFile string `env:"FELIX_DEV_KEY_FILE" doc:"PEM file of the key that signs the tokens of development mode, made if it is not there; empty makes a new key at each start"`
}

// options are all settings of this program.
type options struct {
	process
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
		process: process{Profile: "balanced"},
		broker:  broker.DefaultConfig(),
		dev:     broker.DefaultDevOptions(),
		ops:     ops.DefaultSettings(),
		logs:    logs.DefaultSettings(),
	}
}

// structs are where settings are read into.
func (o *options) structs() []any {
	return []any{&o.process, &o.broker, &o.dev, &o.files, &o.ops, &o.logs}
}

// load reads all sources. file is that of the command line, or empty.
func (o *options) load(file string, environ, assignments []string) (*settings.Loaded, error) {
	if file == "" {
		file = os.Getenv(fileVariable)
	}
	if file == "" {
		if _, err := os.Stat(defaultFile); err == nil {
			file = defaultFile
		}
	}
	return settings.Load(settings.Sources{
		Profiles:      profiles,
		File:          file,
		Environ:       slices.DeleteFunc(environ, func(v string) bool { return strings.HasPrefix(v, fileVariable+"=") }),
		Assignments:   assignments,
		WithoutEffect: withoutEffect,
	}, o.structs()...)
}

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
		o.broker.TLS, o.devCA, err = certfile.Development(o.broker.Bind)
	}
	problem("tls_cert_file", err)
	if err == nil { // without its certificate there is one problem, not two
		errs = append(errs, o.metricsConfig().Validate())
	}
	errs = append(errs, o.broker.Validate())
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
		_, err := o.source.Snapshot(context.Background())
		problem("catalog", err)
	default:
		problem("catalog", errors.New("nothing says which tenants, streams and keys exist: set catalog to a file, or use --dev"))
	}
	return errors.Join(errs...)
}

func (o *options) prepareDev(problem func(key string, err error)) error {
	if o.DevKeyFile != "" {
		problem("dev_key_file", devkey.Check(o.DevKeyFile)) // it is made at the start if it is not there
	}
	if o.broker.TLS == nil {
		cert, _, err := quicx.DevCertificate(append([]string{"localhost", "127.0.0.1", "::1"}, o.dev.Hosts...)...)
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

// profiles are what the setting of this name chooses; docs/configuration.md says why.
var profiles = map[string]map[string]string{
	"balanced": {},
	"latency": {
		"subscriber_queue_bytes":    "1048576",
		"subscriber_queue_capacity": "128",
		"cache_stream_recv_window":  "131072",
	},
	"throughput": {
		"subscriber_max_bytes_per_write": "262144",
		"subscriber_queue_bytes":         "16777216",
		"subscriber_queue_capacity":      "2048",
		"cache_stream_recv_window":       "1048576",
	},
}
