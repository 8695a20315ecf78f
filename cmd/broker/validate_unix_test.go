//go:build unix

package main

import (
	"bytes"
	"context"
	"errors"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// broken is a directory with files that no broker can be started with.
type broken struct {
	dir                                          string
	catalog, cert, key                           string // good ones
	fifo, empty, text, badCatalog, otherKey, big string
}

func newBroken(t *testing.T) *broken {
	t.Helper()
	b := &broken{dir: t.TempDir()}
	put := func(name string, content []byte) string {
		name = filepath.Join(b.dir, name)
		if err := os.WriteFile(name, content, 0o600); err != nil {
			t.Fatal(err)
		}
		return name
	}
	b.cert, b.key = certificateFiles(t, b.dir)
	b.catalog = put("catalog.yml", []byte(validCatalog(t)))
	b.badCatalog = put("bad.yml", []byte("tenants: 1\n"))
	b.empty = put("empty", []byte(" \n"))
	b.text = put("text", []byte("no PEM"))
	b.big = put("big", bytes.Repeat([]byte("x"), 2<<20))
	_, b.otherKey = certificateFiles(t, t.TempDir())
	b.fifo = filepath.Join(b.dir, "fifo")
	if err := syscall.Mkfifo(b.fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	return b
}

// runBinary runs the program in a process of its own and returns its exit code and what it printed.
func runBinary(t *testing.T, env []string, args ...string) (code int, output string) {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, self, args...)
	cmd.Env = append(append(os.Environ(), asBroker+"=1"), env...)
	text, err := cmd.CombinedOutput()
	if ctx.Err() != nil {
		t.Fatalf("it runs on with %v: %s", args, text)
	}
	if err == nil {
		return 0, string(text)
	}
	exit, ok := errors.AsType[*exec.ExitError](err)
	if !ok {
		t.Fatal(err)
	}
	return exit.ExitCode(), string(text)
}

// TestValidationIsWhatAStartDoes gives each configuration to a start and to --validate-config: both refuse it, with the
// same exit code and the same words.
func TestValidationIsWhatAStartDoes(t *testing.T) {
	b := newBroken(t)
	dev := []string{"dev=true"}
	served := []string{"catalog=" + b.catalog, "tls_cert_file=" + b.cert, "tls_key_file=" + b.key}
	with := func(base []string, more ...string) []string { return append(append([]string(nil), base...), more...) }
	for name, c := range map[string]struct {
		set  []string
		env  []string
		want string
	}{
		"nothing to serve":                {nil, nil, "catalog"},
		"no such setting":                 {with(dev, "quik_bind=x"), nil, "quik_bind"},
		"profile that is none":            {with(dev, "profile=fast"), nil, "latency, balanced, throughput"},
		"log level that is none":          {with(dev, "log_level=loud"), nil, "debug, info, warn, error"},
		"size with a bad unit":            {with(dev, "retained_bytes=512M"), nil, "MiB"},
		"settings that disagree":          {with(dev, "idle_timeout_ms=2000", "keep_alive_ms=1500"), nil, "keep_alive_ms"},
		"catalog and development":         {with(dev, "catalog="+b.catalog), nil, "catalog"},
		"public profiles":                 {with(dev, "pprof=true", "metrics_bind=0.0.0.0:0"), nil, "FELIX_PPROF"},
		"public profiles, any address":    {with(dev, "pprof=true", "metrics_bind=:0"), nil, "FELIX_PPROF"},
		"missing token":                   {with(dev, "metrics_token_file="+b.dir+"/none"), nil, "metrics_token_file"},
		"empty token":                     {with(dev, "metrics_token_file="+b.empty), nil, "metrics_token_file"},
		"token in a FIFO":                 {with(dev, "metrics_token_file="+b.fifo), nil, "not a regular file"},
		"metrics TLS, no certificate":     {with(dev, "metrics_tls=true"), nil, "FELIX_TLS_CERT_FILE"},
		"metrics TLS, development":        {[]string{"catalog=" + b.catalog, "metrics_tls=true"}, nil, "FELIX_TLS_CERT_FILE"},
		"metrics authorities, no TLS":     {with(served, "metrics_client_ca_file="+b.cert), nil, "FELIX_METRICS_TLS"},
		"bad metrics authorities":         {with(served, "metrics_tls=true", "metrics_client_ca_file="+b.text), nil, "holds no certificate"},
		"allowed host that is none":       {with(dev, "metrics_allowed_hosts=http://a"), nil, "metrics_allowed_hosts"},
		"metrics address that is none":    {with(dev, "metrics_bind=256.0.0.1:1"), nil, "metrics_bind"},
		"address that is none":            {with(dev, "quic_bind=nowhere.invalid:5000"), nil, "quic_bind"},
		"key file, no directory":          {with(dev, "dev_key_file="+b.dir+"/none/key.pem"), nil, "dev_key_file"},
		"key file below a file":           {with(dev, "dev_key_file="+b.text+"/key.pem"), nil, "dev_key_file"},
		"key file that is none":           {with(dev, "dev_key_file="+b.text), nil, "dev_key_file"},
		"key file is a directory":         {with(dev, "dev_key_file="+b.dir), nil, "dev_key_file"},
		"key file is a FIFO":              {with(dev, "dev_key_file="+b.fifo), nil, "not a regular file"},
		"development names that are none": {with(dev, "dev_streams=a/b"), nil, "dev_streams"},
		"development hosts that are none": {with(dev, "dev_hosts=münchen"), nil, "dev_hosts"},
		"missing catalog":                 {[]string{"catalog=" + b.dir + "/none"}, nil, "catalog"},
		"bad catalog":                     {[]string{"catalog=" + b.badCatalog}, nil, "catalog"},
		"catalog is a FIFO":               {[]string{"catalog=" + b.fifo}, nil, "not a regular file"},
		"catalog is a directory":          {[]string{"catalog=" + b.dir}, nil, "not a regular file"},
		"catalog without end":             {[]string{"catalog=/dev/zero"}, nil, "not a regular file"},
		"data directory is a file":        {with(dev, "durable_storage_dir="+b.text), nil, "durable_storage_dir"},
		"data directory below a file":     {with(dev, "durable_storage_dir="+b.text+"/a/b"), nil, "durable_storage_dir"},
		"snapshot directory is a file":    {with(dev, "cache_snapshot_dir="+b.text), nil, "cache_snapshot_dir"},
		"certificate without key":         {with(dev, "tls_cert_file="+b.cert), nil, "FELIX_TLS_KEY_FILE"},
		"certificate with another key":    {with(dev, "tls_cert_file="+b.cert, "tls_key_file="+b.otherKey), nil, "tls_cert_file"},
		"certificate in a FIFO":           {with(dev, "tls_cert_file="+b.fifo, "tls_key_file="+b.key), nil, "not a regular file"},
		"key without end":                 {with(dev, "tls_cert_file="+b.cert, "tls_key_file=/dev/zero"), nil, "not a regular file"},
		"certificate too large":           {with(dev, "tls_cert_file="+b.big, "tls_key_file="+b.key), nil, "too large"},
		"bad client authorities":          {with(served, "tls_client_ca_file="+b.text), nil, "holds no certificate"},
		"public without certificate":      {[]string{"catalog=" + b.catalog, "quic_bind=0.0.0.0:0"}, nil, "tls_cert_file"},
		"settings in a FIFO":              {dev, []string{"FELIX_BROKER_CONFIG=" + b.fifo}, "not a regular file"},
		"settings without end":            {dev, []string{"FELIX_BROKER_CONFIG=/dev/zero"}, "not a regular file"},
		"settings that are not there":     {dev, []string{"FELIX_BROKER_CONFIG=" + b.dir + "/none"}, "no such file"},
		"unknown exporter of traces":      {dev, []string{"OTEL_TRACES_EXPORTER=smoke"}, "OTEL_TRACES_EXPORTER"},
	} {
		t.Run(name, func(t *testing.T) {
			args := []string{"--set=quic_bind=127.0.0.1:0", "--set=metrics_bind=127.0.0.1:0"}
			for _, s := range c.set {
				args = append(args, "--set="+s)
			}
			code, said := runBinary(t, c.env, args...)
			validated, saidToo := runBinary(t, c.env, append(args, "--validate-config")...)
			if code != exitUsage || validated != exitUsage {
				t.Errorf("a start exits with %d and a validation with %d, want %d", code, validated, exitUsage)
			}
			if !strings.Contains(said, c.want) || !strings.Contains(saidToo, c.want) {
				t.Errorf("%q is not in\n%s\nor not in\n%s", c.want, said, saidToo)
			}
			if strings.Contains(said, "event=listening") {
				t.Errorf("it has bound its address before: %s", said)
			}
		})
	}
}

// What a validation cannot know is an error of the start, with another exit code.
func TestAddressInUseIsNoConfiguration(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	args := []string{"--dev", "--set=quic_bind=127.0.0.1:0", "--set=metrics_bind=" + taken.Addr().String()}
	if code, said := runBinary(t, nil, args...); code != exitError || !strings.Contains(said, "address already in use") {
		t.Errorf("a start exits with %d: %s", code, said)
	}
	key := filepath.Join(t.TempDir(), "key.pem")
	if code, said := runBinary(t, nil, append(args, "--set=dev_key_file="+key, "--validate-config")...); code != exitOK {
		t.Errorf("a validation exits with %d: %s", code, said)
	}
	if _, err := os.Stat(key); err == nil {
		t.Error("a validation has made the key")
	}
}

// Variables that are set and empty, as a compose file sets them, change nothing.
func TestEmptyVariablesChangeNothing(t *testing.T) {
	env := []string{"FELIX_PROFILE=", "FELIX_LOG_FORMAT=", "FELIX_LOG_LEVEL=", "FELIX_SUB_QUEUE_POLICY=", "FELIX_PPROF=", "FELIX_RETAINED_BYTES=", "FELIX_QUIC_BIND=", "FELIX_BROKER_CONFIG=", "FELIX_DEV_STREAMS="}
	if code, said := runBinary(t, env, "--dev", "--validate-config"); code != exitOK {
		t.Errorf("exits with %d: %s", code, said)
	}
}
