package main

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/felix-mq/felix/client"
)

// state is a value with its version, as a client sees it.
type state struct {
	value   string
	version uint64
}

func read(ctx context.Context, t *testing.T, h *client.Cache, keys ...string) map[string]state {
	t.Helper()
	all := map[string]state{}
	for i, r := range h.GetMany(ctx, keys...) {
		switch {
		case r.Err == nil:
			all[keys[i]] = state{string(r.Value), r.Version}
		case !errors.Is(r.Err, client.ErrMiss):
			t.Fatal(r.Err)
		}
	}
	return all
}

// await waits until the log has an event.
func (p *program) await(t *testing.T, event string) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); !strings.Contains(p.stderr.String(), "event="+event); {
		if time.Now().After(deadline) {
			t.Fatalf("no event %s:\n%s", event, p.stderr)
		}
		time.Sleep(time.Millisecond)
	}
}

func (p *program) kill(t *testing.T) {
	t.Helper()
	if err := p.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := <-p.exited; err == nil {
		t.Error("a broker exited with 0 when it was killed")
	}
	p.exited = nil
}

// Lives of a broker with a snapshot: an orderly end keeps values, versions and lifetimes, a kill keeps what the last
// snapshot has under new versions, and a snapshot that is torn is ignored.
func TestCacheSnapshotLives(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	dir := t.TempDir()
	env := []string{"FELIX_CACHE_SNAPSHOT_DIR=" + dir, "FELIX_CACHE_SNAPSHOT_INTERVAL_SECONDS=1", "FELIX_LOG_LEVEL=debug"}
	keys := []string{"kept", "hour", "short", "other"}
	const short = 3 * time.Second
	begin := func() (*program, *client.Client, *client.Cache) {
		p := startProgram(t, env...)
		c := p.connect(ctx, t, p.roots(t))
		t.Cleanup(func() { c.Close() })
		return p, c, c.Cache(p.Namespace, p.Cache)
	}
	put := func(h *client.Cache, key, value string, ttl time.Duration) {
		t.Helper()
		if err := h.Put(ctx, key, []byte(value), ttl); err != nil {
			t.Fatal(err)
		}
	}

	p, _, h := begin()
	put(h, "kept", "1", client.NoExpiry)
	put(h, "hour", "1", time.Hour)
	put(h, "short", "1", short)
	over := time.Now().Add(short)
	before := read(ctx, t, h, keys...)
	if _, err := p.end(t); err != nil {
		t.Fatalf("%v\n%s", err, p.stderr)
	}

	p, _, h = begin()
	after := read(ctx, t, h, keys...)
	for _, key := range []string{"kept", "hour"} {
		if after[key] != before[key] {
			t.Errorf("after an orderly end %s is %+v, want %+v\n%s", key, after[key], before[key], p.stderr)
		}
	}
	if s, ok := after["short"]; ok && s != before["short"] {
		t.Errorf("after an orderly end short is %+v, want %+v", s, before["short"])
	}
	time.Sleep(time.Until(over)) // its lifetime is that of the clock, also while there was no broker
	if s := read(ctx, t, h, "short"); len(s) > 0 {
		t.Errorf("short is %+v after its lifetime", s)
	}
	version, err := h.PutIf(ctx, "kept", []byte("2"), client.NoExpiry, before["kept"].version)
	if err != nil || version <= before["hour"].version {
		t.Errorf("put-if with the version of the life before: %d, %v", version, err)
	}
	p.await(t, "cache_snapshot_written")
	highest := uint64(0)
	for i := range 2000 { // some of them after the last snapshot
		put(h, "other", strconv.Itoa(i), client.NoExpiry)
	}
	for _, s := range read(ctx, t, h, keys...) {
		highest = max(highest, s.version)
	}
	p.kill(t)

	p, c, h := begin()
	after = read(ctx, t, h, keys...)
	for _, key := range []string{"kept", "hour"} {
		want := map[string]string{"kept": "2", "hour": "1"}[key]
		if after[key].value != want || after[key].version <= highest {
			t.Errorf("after a kill %s is %+v, want %q with a version above %d\n%s", key, after[key], want, highest, p.stderr)
		}
	}
	if s, ok := after["other"]; ok && s.version <= highest {
		t.Errorf("after a kill other is %+v, and %d was given out", s, highest)
	}
	if _, err := h.PutIf(ctx, "kept", []byte("3"), client.NoExpiry, version); err == nil {
		t.Error("put-if took a version from before the kill")
	}
	c.Close()
	if _, err := p.end(t); err != nil {
		t.Fatalf("%v\n%s", err, p.stderr)
	}

	file := filepath.Join(dir, "cache.snapshot")
	info, err := os.Stat(file)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(file, info.Size()-1); err != nil {
		t.Fatal(err)
	}
	p, _, h = begin()
	p.await(t, "cache_snapshot_ignored")
	if all := read(ctx, t, h, keys...); len(all) > 0 {
		t.Errorf("from a torn snapshot came %v", all)
	}
	put(h, "kept", "4", client.NoExpiry)
	if _, err := p.end(t); err != nil {
		t.Fatalf("%v\n%s", err, p.stderr)
	}
}
