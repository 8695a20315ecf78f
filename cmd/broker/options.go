package main

import (
	"errors"
	"net"
	"os"
	"slices"
	"strings"

	"github.com/felix-mq/felix/broker"
	"github.com/felix-mq/felix/catalog"
	"github.com/felix-mq/felix/internal/certfile"
	"github.com/felix-mq/felix/internal/devkey"
	"github.com/felix-mq/felix/internal/logs"
	"github.com/felix-mq/felix/internal/ops"
	"github.com/felix-mq/felix/internal/settings"
)

// defaultFile is read if no other is named and it is there (configuration.md, section 1).
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

	// Set by check:
	certs certificates
	devCA []byte // PEM, if the certificate is one for development
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

// check looks at what no single value shows: how settings go together, files and addresses. It reports every problem at
// once.
func (o *options) check(loaded *settings.Loaded) error {
	var errs []error
	problem := func(key string, err error) {
		if err != nil {
			errs = append(errs, loaded.Problem(key, err))
		}
	}
	_, err := net.ResolveUDPAddr("udp", o.broker.Bind)
	problem("quic_bind", err)
	if o.ops.Bind != "" {
		_, err := net.ResolveTCPAddr("tcp", o.ops.Bind)
		problem("metrics_bind", err)
	}
	o.certs, err = loadCertificates(o)
	if err == nil && o.broker.TLS == nil && o.Catalog != "" {
		o.broker.TLS, o.devCA, err = certfile.Development(o.broker.Bind)
	}
	problem("tls_cert_file", err)
	errs = append(errs, o.broker.Validate())
	switch {
	case o.Dev && o.Catalog != "":
		problem("catalog", errors.New("development mode makes its own catalog; leave one of them out"))
	case o.Dev:
		errs = append(errs, o.dev.Validate())
		if _, err := os.Stat(o.DevKeyFile); err == nil { // otherwise it is made
			_, err = devkey.ReadOrMake(o.DevKeyFile)
			problem("dev_key_file", err)
		}
	case o.Catalog != "":
		_, err := catalog.Load(o.Catalog)
		problem("catalog", err)
	default:
		problem("catalog", errors.New("nothing says which tenants, streams and keys exist: set catalog to a file, or use --dev"))
	}
	return errors.Join(errs...)
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
