package broker_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/felix-mq/felix/broker"
	"github.com/felix-mq/felix/client"
	"github.com/felix-mq/felix/internal/relay"
)

// series returns the values of a metric by the value of its only label, without those that are 0.
func series(t *testing.T, d *broker.Dev, name string) map[string]float64 {
	t.Helper()
	families, err := d.Registry().Gather()
	if err != nil {
		t.Fatal(err)
	}
	all := make(map[string]float64)
	for _, f := range families {
		if f.GetName() != name {
			continue
		}
		for _, m := range f.GetMetric() {
			if n := m.GetCounter().GetValue(); n != 0 {
				all[m.GetLabel()[0].GetValue()] = n
			}
		}
	}
	return all
}

func wantSeries(t *testing.T, d *broker.Dev, name string, want string) {
	t.Helper()
	got := ""
	for ctx := testContext(t); ctx.Err() == nil; time.Sleep(time.Millisecond) {
		if got = fmt.Sprint(series(t, d, name)); got == want {
			return
		}
	}
	t.Errorf("%s = %s, want %s", name, got, want)
}

func TestMetricsNameTheReason(t *testing.T) {
	d := start(t, nil)
	ctx := testContext(t)
	c := connect(t, d)
	reader, err := d.Mint("stream.subscribe:stream:t1/*")
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Publisher("default", "missing").Publish(ctx, nil); err == nil {
		t.Error("published to a stream that does not exist")
	}
	forbidden := connect(t, d, client.WithToken(d.Tenant, reader))
	for range 2 {
		if err := forbidden.Publisher("default", "demo").Publish(ctx, nil); err == nil {
			t.Error("published without permission")
		}
	}
	wantSeries(t, d, "felix_publish_refused_total", "map[forbidden:2 unknown_stream:1]")

	for _, token := range []string{"x", reader + "x", reader[:len(reader)-4] + "AAAA"} {
		if _, err := client.Connect(ctx, d.Addr().String(), client.WithTLS(d.ClientTLS()), client.WithToken(d.Tenant, token)); err == nil {
			t.Error("connected with a bad token")
		}
	}
	got := series(t, d, "felix_auth_failures_total")
	if got["encoding"] == 0 || got["signature"] == 0 || len(got) != 2 {
		t.Errorf("refused tokens: %v", got)
	}

	forbidden.Close()
	c.Close()
	awaitMetric(t, d, "felix_connections", 0)
	before := series(t, d, "felix_connections_closed_total")
	if before["peer"] == 0 || len(before) != 1 {
		t.Errorf("connections closed by clients: %v", before)
	}
	subscribe(t, connect(t, d), "demo")
	d.CloseConnections()
	awaitMetric(t, d, "felix_connections", 0)
	if after := series(t, d, "felix_connections_closed_total"); after["broker"] == 0 || after["peer"] != before["peer"] || len(after) != 2 {
		t.Errorf("connections closed by the broker: %v, before that %v", after, before)
	}
	if started, done := metric(t, d, "felix_handshakes_started_total"), metric(t, d, "felix_connections_total"); started != done || done == 0 {
		t.Errorf("%v handshakes started, %v connections", started, done)
	}
}

// Names, units and help texts are as Prometheus wants them.
func TestMetricsLint(t *testing.T) {
	d := start(t, nil)
	problems, err := testutil.GatherAndLint(d.Registry())
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range problems {
		t.Errorf("%s: %s", p.Metric, p.Text)
	}
}

// Thousands of caches have a bounded number of series, and none is left out of their sum.
func TestCacheSeriesAreBounded(t *testing.T) {
	d := start(t, nil)
	ctx := testContext(t)
	const caches = 1000
	c := connect(t, d)
	for i := range caches {
		name := fmt.Sprint("c", i)
		if err := d.AddCache(d.Tenant, "many", name); err != nil {
			t.Fatal(err)
		}
		if err := c.Cache("many", name).Put(ctx, "k", []byte("v"), client.NoExpiry); err != nil {
			t.Fatal(err)
		}
	}
	n, err := testutil.GatherAndCount(d.Registry(), "felix_cache_entries")
	if err != nil || n != 101 {
		t.Errorf("%d series for %d caches, %v", n, caches, err)
	}
	if entries := metric(t, d, "felix_cache_entries"); entries != caches {
		t.Errorf("%v entries in all series, want %d", entries, caches)
	}
}

// traces records operations, in the order in which they ended.
type traces struct {
	mu  sync.Mutex
	all []string
}

func (tr *traces) start(operation string, attrs ...slog.Attr) (end func(error)) {
	return func(err error) {
		tr.mu.Lock()
		defer tr.mu.Unlock()
		names := make([]string, len(attrs))
		for i, a := range attrs {
			names[i] = a.Key
		}
		tr.all = append(tr.all, fmt.Sprint(operation, " ", strings.Join(names, ","), " failed=", err != nil))
	}
}

func (tr *traces) has(what string) bool {
	tr.mu.Lock()
	defer tr.mu.Unlock()
	return slices.Contains(tr.all, what)
}

func TestTrace(t *testing.T) {
	tr := new(traces)
	d := start(t, func(cfg *broker.Config) { cfg.Trace = tr.start })
	ctx := testContext(t)
	await := func(what string) {
		t.Helper()
		for !tr.has(what) {
			select {
			case <-ctx.Done():
				tr.mu.Lock()
				defer tr.mu.Unlock()
				t.Fatalf("no %q in %q", what, tr.all)
			case <-time.After(time.Millisecond):
			}
		}
	}
	c := connect(t, d)
	subscribe(t, c, "demo")
	await("connect network.peer.address failed=false")
	await("auth felix.tenant,network.peer.address failed=false")
	await("subscribe felix.tenant,felix.namespace,felix.stream,network.peer.address failed=false")
	if _, err := c.Subscribe(ctx, "default", "missing"); err == nil {
		t.Error("subscribed to a stream that does not exist")
	}
	await("subscribe felix.tenant,felix.namespace,felix.stream,network.peer.address failed=true")
	if _, err := client.Connect(ctx, d.Addr().String(), client.WithTLS(d.ClientTLS()), client.WithToken(d.Tenant, "x")); err == nil {
		t.Error("connected with a bad token")
	}
	await("auth felix.tenant,network.peer.address failed=true")
	await("connect network.peer.address failed=true")
	if err := d.Shutdown(ctx); err != nil {
		t.Error(err)
	}
	await("drain felix.connections failed=false")
}

// What was acknowledged before a shutdown has reached every subscription, on whatever connection, and on paths that
// lose packets.
func TestShutdownDeliversWhatWasAcknowledged(t *testing.T) {
	for range 2 {
		d := start(t, nil)
		lossy, err := relay.New(d.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer lossy.Close()
		ctx, cancel := context.WithTimeout(t.Context(), within)
		received := make(chan map[string]bool, 6)
		for i := range cap(received) {
			addr := d.Addr().String()
			if i%2 == 0 {
				addr = lossy.Addr()
			}
			c, err := client.Connect(ctx, addr, client.WithTLS(d.ClientTLS()), client.WithToken(d.Tenant, d.Token),
				client.WithTransport(client.Transport{IdleTimeout: time.Second, KeepAlive: 300 * time.Millisecond}))
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			s := subscribe(t, c, "demo")
			go func() {
				all := make(map[string]bool)
				for {
					ev, err := s.Next(ctx)
					if err != nil {
						received <- all
						return
					}
					all[string(ev.Payload)] = true
				}
			}()
		}
		acked := make(chan []string, 4)
		for w := range cap(acked) {
			c := connect(t, d, client.WithWhileDown(client.WhileDownFail))
			go func() {
				var all []string
				for p := c.Publisher("default", "demo"); ; {
					payload := fmt.Sprint(w, " ", len(all))
					if err := p.Publish(ctx, []byte(payload)); err != nil {
						acked <- all
						return
					}
					all = append(all, payload)
				}
			}()
		}
		lossy.Lose(0.05)
		time.Sleep(20 * time.Millisecond) // whatever has happened by then
		if err := d.Shutdown(ctx); err != nil {
			t.Fatal(err)
		}
		var want []string
		for range cap(acked) {
			want = append(want, <-acked...)
		}
		for range cap(received) {
			got := <-received
			missing := slices.DeleteFunc(slices.Clone(want), func(p string) bool { return got[p] })
			if len(missing) > 0 {
				t.Errorf("%d of %d acknowledged events are missing: %.200q", len(missing), len(want), missing)
			}
		}
		if len(want) == 0 {
			t.Error("nothing was acknowledged")
		}
		cancel()
	}
}

// A connection that is attempted while a broker drains is refused, not left without an answer.
func TestShutdownRefusesConnections(t *testing.T) {
	d := start(t, func(cfg *broker.Config) { cfg.ShutdownDrain = time.Minute })
	s := subscribe(t, connect(t, d), "demo")
	ctx := testContext(t)
	shut := make(chan error, 1)
	go func() { shut <- d.Shutdown(ctx) }()
	for {
		c, err := client.Connect(ctx, d.Addr().String(), client.WithTLS(d.ClientTLS()), client.WithToken(d.Tenant, d.Token))
		if err != nil {
			break
		}
		c.Close()
	}
	if err := <-shut; err != nil {
		t.Error(err)
	}
	if _, err := s.Next(ctx); !errors.Is(err, client.ErrDisconnected) {
		t.Errorf("the subscription ended with %v", err)
	}
}
