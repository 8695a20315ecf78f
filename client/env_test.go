package client_test

import (
	"bytes"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"

	"github.com/felix-mq/felix/client"
	"github.com/felix-mq/felix/conformance/script"
)

// TestFromEnv connects with nothing but the environment and a certificate, and reports every bad variable at once.
func TestFromEnv(t *testing.T) {
	p := newPeer(t)
	p.serve(script.NewNormal())
	for name, value := range map[string]string{
		"FELIX_AUTH_TENANT": " t1 ", "FELIX_AUTH_TOKEN": "token", "FELIX_PUB_CONN_POOL": "2", "FELIX_PUB_STREAMS_PER_CONN": "0",
		"FELIX_PUB_SHARDING": "rr", "FELIX_SUB_CONNS": "3", "FELIX_EVENT_STREAM_RECV_WINDOW": "65536", "FELIX_PUBLISH_CHUNK_BYTES": "1",
	} {
		t.Setenv(name, value)
	}
	var log bytes.Buffer
	c, err := client.Connect(p.ctx, p.Addr(), client.WithTLS(p.ClientTLS()),
		client.WithLogger(slog.New(slog.NewTextHandler(&log, nil))), client.FromEnv())
	p.must(err)
	p.must(c.Publisher("default", "demo").Publish(p.ctx, nil))
	p.must(c.Close())
	if !strings.Contains(log.String(), "FELIX_PUBLISH_CHUNK_BYTES") || !strings.Contains(log.String(), "felix: connected") {
		t.Errorf("logged %s", log.String())
	}
	t.Setenv("FELIX_PUB_CONN_POOL", "many")
	t.Setenv("FELIX_MAX_FRAME_BYTES", "-1")
	_, err = client.Connect(p.ctx, p.Addr(), client.WithTLS(p.ClientTLS()), client.FromEnv())
	if err == nil || !strings.Contains(err.Error(), "FELIX_PUB_CONN_POOL") || !strings.Contains(err.Error(), "FELIX_MAX_FRAME_BYTES") {
		t.Errorf("got %v", err)
	}
	t.Setenv("FELIX_PUB_CONN_POOL", "")
	t.Setenv("FELIX_MAX_FRAME_BYTES", "")
	t.Setenv("FELIX_PUB_SHARDING", "sometimes")
	if _, err = client.Connect(p.ctx, p.Addr(), client.WithTLS(p.ClientTLS()), client.FromEnv()); err == nil || !strings.Contains(err.Error(), "FELIX_PUB_SHARDING") {
		t.Errorf("got %v", err)
	}
}

// TestFromEnvFile reads the file that a variable names, which variables win over.
func TestFromEnvFile(t *testing.T) {
	p := newPeer(t)
	p.serve(script.NewNormal())
	file := filepath.Join(t.TempDir(), "client.yaml")
	write := func(text string) { p.must(os.WriteFile(file, []byte(text), 0o600)) }
	write("auth_tenant_id: t1\nauth_token: token\npublish_conn_pool: 0\nevent_send_window: 1\nmax_frame_bytes: 1\n")
	t.Setenv("FELIX_CLIENT_CONFIG", file)
	t.Setenv("FELIX_MAX_FRAME_BYTES", "65536")
	t.Setenv("FELIX_CONN_STATS_MS", "1")
	var log lockedBuffer
	c, err := client.Connect(p.ctx, p.Addr(), client.WithTLS(p.ClientTLS()),
		client.WithLogger(slog.New(slog.NewTextHandler(&log, nil))), client.FromEnv())
	p.must(err)
	p.must(c.Publisher("default", "demo").Publish(p.ctx, make([]byte, 100)))
	for !strings.Contains(log.String(), "felix: connections") {
		p.must(p.ctx.Err())
		runtime.Gosched()
	}
	p.must(c.Close())
	if !strings.Contains(log.String(), "event_send_window") {
		t.Errorf("logged %s", log.String())
	}
	for text, want := range map[string]string{
		"\npublish_con_pool: 2\n":   file + ":2: publish_con_pool: unknown key; the nearest is publish_conn_pool",
		"publish_conn_pool: many\n": file + ":1: publish_conn_pool: \"many\"",
		"[":                         file,
	} {
		write(text)
		if _, err := client.Connect(p.ctx, p.Addr(), client.WithTLS(p.ClientTLS()), client.FromEnv()); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: got %v", text, err)
		}
	}
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}
