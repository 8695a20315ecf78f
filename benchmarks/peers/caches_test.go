package main

import (
	"bytes"
	"context"
	"errors"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/felix-mq/felix/loadgen"
)

// Without other servers Felix is measured alone, and what is missing is named.
func TestCachesAlone(t *testing.T) {
	t.Setenv("PATH", "")
	var out, errs bytes.Buffer
	if status := runCaches(t.Context(), []string{"--rounds", "1", "--duration", "5ms", "--warmup", "1ms"}, &out, &errs); status != 0 || errs.Len() > 0 {
		t.Fatalf("status %d\n%s", status, &errs)
	}
	const head = "Not measured: Redis over TLS 1.3: redis-server is not installed.\n\nNot measured: memcached: memcached is not installed.\n\n" +
		"| Load | Value | Cache | keys/s | p50 µs | p99 µs | p999 µs |\n|---|--:|---|--:|--:|--:|--:|\n"
	rows, found := strings.CutPrefix(out.String(), head)
	if !found {
		t.Fatalf("got %s", &out)
	}
	row := regexp.MustCompile(`^\| (1 caller|32 callers|32 callers × 16 keys) \| (256|4096) B \| felix(, JSON)? \| \d+ \| \d+ \| \d+ \| \d+ \|$`)
	lines := strings.Split(strings.TrimSuffix(rows, "\n"), "\n")
	for _, line := range lines {
		if !row.MatchString(line) {
			t.Errorf("row %q", line)
		}
	}
	if len(lines) != 2*2*len(cacheShapes) {
		t.Errorf("%d rows\n%s", len(lines), rows)
	}
}

func TestCacheArguments(t *testing.T) {
	for _, args := range [][]string{{"--rounds", "0"}, {"--duration", "0s"}, {"--warmup", "-1s"}, {"--get-ratio", "2"}, {"--only", "x"}, {"more"}} {
		var out, errs bytes.Buffer
		if status := runCaches(t.Context(), args, &out, &errs); status != 2 || errs.Len() == 0 || out.Len() > 0 {
			t.Errorf("%v: status %d, said %q", args, status, &errs)
		}
	}
	var out, errs bytes.Buffer
	if status := runCaches(t.Context(), []string{"--help"}, &out, &errs); status != 0 || !strings.Contains(errs.String(), "--get-ratio") {
		t.Errorf("--help: status %d, said %q", status, &errs)
	}
}

// What the adapters make of hits, misses and lifetimes, with the servers that this machine has.
func TestForeignCaches(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	check := func(t *testing.T, store loadgen.CacheStore) {
		t.Helper()
		for key, ttl := range map[string]time.Duration{"forever": 0, "hour": time.Hour} {
			if err := store.Put(ctx, key, []byte("value"), ttl); err != nil {
				t.Fatal(err)
			}
		}
		for _, tc := range []struct {
			keys []string
			hits int
		}{
			{[]string{"forever"}, 1},
			{[]string{"hour"}, 1},
			{[]string{"absent"}, 0},
			{[]string{"forever", "absent", "hour"}, 2},
			{[]string{"absent", "too"}, 0},
		} {
			if hits, err := store.Get(ctx, tc.keys); hits != tc.hits || err != nil {
				t.Errorf("%v: %d hits, %v; want %d", tc.keys, hits, err, tc.hits)
			}
		}
	}
	t.Run("redis", func(t *testing.T) {
		stores, stop, err := startRedisCache(ctx)
		defer stop()
		skipMissing(t, err)
		for name, store := range stores {
			t.Run(name, func(t *testing.T) { check(t, store) })
		}
	})
	t.Run("memcached", func(t *testing.T) {
		store, stop, err := startMemcached(ctx)
		defer stop()
		skipMissing(t, err)
		check(t, store)
	})
}

func skipMissing(t *testing.T, err error) {
	t.Helper()
	if _, missing := errors.AsType[*missingError](err); missing {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
}
