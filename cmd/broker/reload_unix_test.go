//go:build unix

package main

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// hangUp sends SIGHUP and waits until the log says each of want once more than before.
func (p *program) hangUp(t *testing.T, want ...string) {
	t.Helper()
	before := p.stderr.String()
	if err := p.cmd.Process.Signal(syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	for _, want := range want {
		for deadline := time.Now().Add(20 * time.Second); strings.Count(p.stderr.String(), want) <= strings.Count(before, want); time.Sleep(time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("the log does not say %q:\n%s", want, p.stderr)
			}
		}
	}
}

func replaceFile(t *testing.T, name, text string) {
	t.Helper()
	if err := os.WriteFile(name+".new", []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(name+".new", name); err != nil {
		t.Fatal(err)
	}
}

// A broker in development mode has little to reload. It must not end.
func TestHangupEndsNothing(t *testing.T) {
	config := write(t, "config.yml", "log_level: info\nmax_connections: 100\n")
	p := startWith(t, []string{"--dev", "--config", config})
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	c := p.connect(ctx, t, p.roots(t))
	defer c.Close()
	for range 3 {
		p.hangUp(t, "event=reloading", "event=reloaded")
	}
	replaceFile(t, config, "log_level: debug\nmax_connections: 200\n")
	p.hangUp(t, "event=settings_need_a_restart keys=[max_connections]", "event=reloaded")
	replaceFile(t, config, "log_level: loud\n")
	p.hangUp(t, "event=settings_not_reloaded", "is none of debug, info, warn, error")
	if err := syscall.Unlink(config); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mkfifo(config, 0o600); err != nil {
		t.Fatal(err)
	}
	p.hangUp(t, "not a regular file")
	if err := c.Publisher(p.Namespace, p.Streams[0]).Publish(ctx, []byte("x")); err != nil {
		t.Errorf("the connection from before: %v", err)
	}
	if _, err := p.end(t); err != nil {
		t.Errorf("it ends with %v:\n%s", err, p.stderr)
	}
}

// The level of the log is one of the settings that a SIGHUP changes.
func TestHangupChangesTheLevel(t *testing.T) {
	config := write(t, "config.yml", "log_level: info\n")
	p := startWith(t, []string{"--dev", "--config", config})
	replaceFile(t, config, "log_level: warn\nmax_connections: 7\n")
	p.hangUp(t, "event=reloading", "event=settings_need_a_restart") // the second is said at the new level
	replaceFile(t, config, "log_level: debug\n")
	p.hangUp(t, "event=reloaded")
	if log := p.stderr.String(); strings.Count(log, "event=reloading") != 1 || strings.Count(log, "event=reloaded") != 1 {
		t.Errorf("lines are logged at another level than the file says:\n%s", log)
	}
	if _, err := p.end(t); err != nil {
		t.Errorf("it ends with %v:\n%s", err, p.stderr)
	}
}

// The catalog is read again, whether it has changed or not, and a source that would hang holds up nothing.
func TestHangupReadsTheCatalog(t *testing.T) {
	name := filepath.Join(t.TempDir(), "catalog.yml")
	good := validCatalog(t)
	replaceFile(t, name, good)
	p := startWith(t, []string{"--catalog", name})
	p.hangUp(t, "event=catalog_read changes=0", "event=reloaded")
	replaceFile(t, name, strings.Replace(good, "orders:", "bills:", 1))
	p.hangUp(t, "event=catalog_read")
	replaceFile(t, name, "tenants: 1\n")
	p.hangUp(t, "event=catalog_not_read")
	if err := syscall.Mkfifo(name+".fifo", 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(name+".fifo", name); err != nil {
		t.Fatal(err)
	}
	p.hangUp(t, "event=catalog_not_read", "not a regular file")
	body := get(t, p.http+"/metrics")
	for _, want := range []string{"felix_streams 1\n", "felix_catalog_last_reload_successful 0\n"} {
		if !strings.Contains(body, want) {
			t.Errorf("%q is not in the metrics", want)
		}
	}
	if _, err := p.end(t); err != nil {
		t.Errorf("it ends with %v:\n%s", err, p.stderr)
	}
}

// The certificates are read at once, those of the metrics too.
func TestHangupReadsCertificates(t *testing.T) {
	s := newSecret(t)
	s.put(t)
	p := startProgram(t, append(s.env(), "FELIX_METRICS_TLS=true", "FELIX_METRICS_CLIENT_CA_FILE="+filepath.Join(s.dir, "tls.crt"))...)
	p.hangUp(t, "event=reloaded")
	s.put(t)
	p.hangUp(t, "event=reloaded")
	for deadline := time.Now().Add(20 * time.Second); strings.Count(p.stderr.String(), "event=certificate_reloaded") < 2; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not both certificates are reloaded:\n%s", p.stderr)
		}
	}
	if _, err := p.end(t); err != nil {
		t.Errorf("it ends with %v:\n%s", err, p.stderr)
	}
}
