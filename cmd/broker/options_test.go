package main

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/felix-mq/felix/internal/brokerd"
	"github.com/felix-mq/felix/internal/settings"
	"github.com/felix-mq/felix/ring"
)

// write makes a file and returns its name.
func write(t *testing.T, name, text string) string {
	t.Helper()
	name = filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}

// TestLayers gives one setting everywhere, and takes the winners away one by one.
func TestLayers(t *testing.T) {
	file := write(t, "config.yml", "profile: throughput\nsubscriber_queue_bytes: 3000\nsubscriber_queue_policy: block\nsubscriber_writer_lanes: 8\n")
	environ := []string{brokerd.FileVariable + "=elsewhere", "FELIX_SUBSCRIBER_QUEUE_BYTES=4000"}
	for _, c := range []struct {
		want                 int
		origin               string
		environ, assignments []string
		file                 string
	}{
		{5000, "command line", environ, []string{"subscriber_queue_bytes=5000"}, file},
		{4000, "environment FELIX_SUBSCRIBER_QUEUE_BYTES", environ, nil, file},
		{3000, file + ":2", nil, nil, file},
		{1 << 20, "profile latency", nil, []string{"profile=latency"}, ""},
		{16 << 20, "profile throughput", []string{"FELIX_PROFILE=throughput"}, nil, ""},
		{ring.DefaultMaxBytes, "default", nil, nil, ""},
	} {
		o := defaultOptions()
		l, err := o.load(c.file, c.environ, c.assignments)
		if err != nil {
			t.Fatal(err)
		}
		if o.broker.QueueBytes != c.want {
			t.Errorf("%s: got %d, want %d", c.origin, o.broker.QueueBytes, c.want)
		}
		for _, s := range l.Settings {
			if s.Key == "subscriber_queue_bytes" && s.Origin != c.origin {
				t.Errorf("origin %q, want %q", s.Origin, c.origin)
			}
		}
		if len(l.Unknown) > 0 || (c.file != "") != (len(l.Ignored) == 1) {
			t.Errorf("%s: unknown %v, ignored %v", c.origin, l.Unknown, l.Ignored)
		}
	}
}

// TestReferenceKeys reads a file of the reference with all its keys: those that mean something here are read, the
// others are named.
func TestReferenceKeys(t *testing.T) {
	text := `quic_bind: 127.0.0.1:5001
metrics_bind: 127.0.0.1:8081
max_frame_bytes: 2000
publish_queue_wait_timeout_ms: 2001
shutdown_drain_timeout_ms: 2002
cache_conn_recv_window: 2003
cache_stream_recv_window: 20004
event_batch_max_events: 2005
event_batch_max_bytes: 2006
event_batch_max_delay_us: 2010
pub_ingress_wait: false
subscriber_queue_capacity: 2007
max_subscriptions_per_conn: 2008
subscriber_queue_policy: drop_old
subscriber_max_bytes_per_write: 2009
`
	dead := 0
	for _, w := range brokerd.WithoutEffect {
		if w.Key != "" && !strings.Contains(text, w.Key+":") {
			text += w.Key + ": 1\n"
			dead++
		}
	}
	o := defaultOptions()
	l, err := o.load(write(t, "config.yml", text), nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	if len(l.Ignored) != dead || dead != 23 {
		t.Errorf("%d keys without effect, of which %d are named", dead, len(l.Ignored))
	}
	want := defaultOptions()
	want.ops.Bind = "127.0.0.1:8081"
	want.broker.Bind = "127.0.0.1:5001"
	want.broker.MaxFrameBytes = 2000
	want.broker.EventMaxDelayMicros = 2010
	want.broker.PublishWait = 2001 * time.Millisecond
	want.broker.ShutdownDrain = 2002 * time.Millisecond
	want.broker.ConnWindow = 2003
	want.broker.StreamWindow = 20004
	want.broker.EventMaxItems = 2005
	want.broker.EventMaxBytes = 2006
	want.broker.IngressWait = false
	want.broker.QueueCapacity = 2007
	want.broker.MaxSubscriptionsPerConn = 2008
	want.broker.QueuePolicy = ring.DropOld
	want.broker.MaxWriteBytes = 2009
	if !reflect.DeepEqual(o, want) {
		t.Errorf("read %+v\nwant %+v", o, want)
	}
}

// TestSettingsAreComplete checks the tags: a key each, once, a text, and for each number bounds that hold its default
// and the values of the profiles.
func TestSettingsAreComplete(t *testing.T) {
	seen := make(map[string]bool)
	for _, s := range settings.Describe(defaultOptions().structs()...) {
		if seen[s.Key] || s.Doc == "" || s.Key == "" {
			t.Errorf("%q stands twice or says nothing", s.Key)
		}
		seen[s.Key] = true
		if s.Values() == "text" {
			continue
		}
		if _, err := defaultOptions().load("", nil, []string{s.Key + "=" + s.Default}); err != nil {
			t.Errorf("the default is refused: %v", err)
		}
		if strings.Contains(s.Values(), "…") && (s.Min == "" || s.Max == "") {
			t.Errorf("%s has one bound only", s.Key)
		}
	}
	for name := range brokerd.Profiles {
		o := defaultOptions()
		l, err := o.load("", nil, []string{"profile=" + name})
		if err != nil {
			t.Fatal(err)
		}
		set := 0
		for _, s := range l.Settings {
			if s.Origin == "profile "+name {
				set++
			}
		}
		if set != len(brokerd.Profiles[name]) {
			t.Errorf("profile %s sets %d of %d settings", name, set, len(brokerd.Profiles[name]))
		}
	}
}

// TestDumpReadsBack dumps settings from everywhere, and reads what was dumped.
func TestDumpReadsBack(t *testing.T) {
	t.Setenv("FELIX_RETRY_ABOVE", "-1")
	t.Setenv("FELIX_QUIC_SPIN", "1500us")
	stdout, stderr := newOutput(), newOutput()
	args := []string{"--profile=latency", "--set", "dev_hosts=a,b", "--dev", "--dump-config"}
	if code := run(args, stdout, stderr); code != exitOK || stderr.String() != "" {
		t.Fatalf("exit %d: %s", code, stderr)
	}
	want := defaultOptions()
	if _, err := want.load("", os.Environ(), []string{"profile=latency", "dev_hosts=a,b", "dev=true"}); err != nil {
		t.Fatal(err)
	}
	got := defaultOptions()
	if _, err := got.load(write(t, "dump.yml", stdout.String()), nil, nil); err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("read back %+v\nwant %+v", got, want)
	}
	for _, line := range []string{"retry_above: -1 # environment FELIX_RETRY_ABOVE\n", "dev_hosts: [\"a\", \"b\"] # command line\n", "subscriber_queue_bytes: 1048576 # profile latency\n", "max_connections: 65536 # default\n", "quic_bind: \"127.0.0.1:5000\" # development mode\n"} {
		if !strings.Contains(stdout.String(), line) {
			t.Errorf("%q is not in\n%s", line, stdout)
		}
	}
}

// TestDevelopmentBind binds to loopback in development mode, unless an address is set.
func TestDevelopmentBind(t *testing.T) {
	for want, assignments := range map[string][]string{
		devBind:        {"dev=true"},
		"0.0.0.0:5000": {"dev=false"},
		"0.0.0.0:1":    {"dev=true", "quic_bind=0.0.0.0:1"},
	} {
		o := defaultOptions()
		if _, err := o.load("", nil, assignments); err != nil {
			t.Fatal(err)
		}
		if o.broker.Bind != want {
			t.Errorf("%v: %s, want %s", assignments, o.broker.Bind, want)
		}
	}
}

func TestValidateConfig(t *testing.T) {
	for _, c := range []struct {
		name string
		file string
		code int
		want []string
	}{
		{"valid", "dev: true\n", exitOK, nil},
		{"values", "dev: true\nquic_sockets: 65\nquic_bnid: x\n", exitUsage, []string{":2: quic_sockets: 65 is more than 64", ":3: quic_bnid: unknown key; the nearest is quic_bind"}},
		{"nothing to serve", "max_connections: 5\n", exitUsage, []string{"catalog"}},
		{"together", "dev: true\nidle_timeout_ms: 2000\nkeep_alive_ms: 1500\nquic_bind: nowhere.invalid:5000\ndev_streams: [a/b]\n", exitUsage, []string{"keep_alive_ms", "quic_bind", "dev_streams"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			stdout, stderr := newOutput(), newOutput()
			if code := run([]string{"--config", write(t, "config.yml", c.file), "--validate-config"}, stdout, stderr); code != c.code {
				t.Errorf("exit %d, want %d", code, c.code)
			}
			for _, want := range c.want {
				if !strings.Contains(stderr.String(), want) {
					t.Errorf("%q is not in %s", want, stderr)
				}
			}
		})
	}
}

// TestReferencePage looks for each setting in the page.
func TestReferencePage(t *testing.T) {
	var page bytes.Buffer
	writeReference(&page, defaultOptions())
	for _, s := range settings.Describe(defaultOptions().structs()...) {
		if !strings.Contains(page.String(), fmt.Sprintf("| `%s` | `%s`", s.Key, s.Variables[0])) {
			t.Errorf("%s is not in the page", s.Key)
		}
	}
}
