package broker_test

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	dto "github.com/prometheus/client_model/go"

	"github.com/felix-mq/felix/auth"
	"github.com/felix-mq/felix/broker"
	"github.com/felix-mq/felix/catalog"
	"github.com/felix-mq/felix/client"
	"github.com/felix-mq/felix/internal/buf"
	"github.com/felix-mq/felix/internal/dev"
	"github.com/felix-mq/felix/ring"
)

// served is a broker whose catalog is a file, in a directory as Kubernetes mounts a ConfigMap.
type served struct {
	*broker.Broker
	t       *testing.T
	dir     string
	version int
	signers map[string]*auth.Signer // by tenant
	roots   *x509.CertPool
}

// signer makes the key of a tenant.
func (s *served) signer(tenant string) {
	s.t.Helper()
	_, private, err := ed25519.GenerateKey(rand.Reader)
	if err == nil {
		s.signers[tenant], err = auth.NewSigner(private, tenant+"-1")
	}
	if err != nil {
		s.t.Fatal(err)
	}
}

// swap replaces the catalog as a kubelet does: in a new directory, to which the link ..data is turned.
func (s *served) swap(text []byte) {
	s.t.Helper()
	s.version++
	data := fmt.Sprintf("..%d", s.version)
	for _, step := range []func() error{
		func() error { return os.Mkdir(filepath.Join(s.dir, data), 0o700) },
		func() error { return os.WriteFile(filepath.Join(s.dir, data, "catalog.yml"), text, 0o600) },
		func() error { return os.Symlink(data, filepath.Join(s.dir, "..data_tmp")) },
		func() error {
			return os.Rename(filepath.Join(s.dir, "..data_tmp"), filepath.Join(s.dir, "..data"))
		},
	} {
		if err := step(); err != nil {
			s.t.Fatal(err)
		}
	}
}

// set swaps a catalog in and waits until the broker has it.
func (s *served) set(c *catalog.Catalog) {
	s.t.Helper()
	text, err := catalog.Marshal(c)
	if err != nil {
		s.t.Fatal(err)
	}
	before := s.metric("felix_catalog_changes_total")
	s.swap(text)
	s.await(func() bool { return s.metric("felix_catalog_changes_total") > before })
}

func (s *served) await(ok func() bool) {
	s.t.Helper()
	for ctx := testContext(s.t); !ok(); {
		if ctx.Err() != nil {
			s.t.Fatal("waited in vain")
		}
		time.Sleep(time.Millisecond)
	}
}

func (s *served) metric(name string) float64 {
	s.t.Helper()
	all, err := s.Registry().Gather()
	if err != nil {
		s.t.Fatal(err)
	}
	for _, family := range all {
		if m := family.GetMetric(); family.GetName() == name {
			if family.GetType() == dto.MetricType_COUNTER {
				return m[0].GetCounter().GetValue()
			}
			return m[0].GetGauge().GetValue()
		}
	}
	s.t.Fatalf("no metric %s", name)
	return 0
}

func (s *served) connect(tenant string) *client.Client {
	s.t.Helper()
	c, err := s.connectError(tenant)
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { c.Close() })
	return c
}

func (s *served) connectError(tenant string) (*client.Client, error) {
	s.t.Helper()
	return client.Connect(testContext(s.t), s.Addr().String(), client.WithToken(tenant, s.mint(tenant)), client.WithTLS(s.as(tenant).ClientTLS()))
}

// as is the broker in the eyes of a tenant, for helpers that know one tenant only.
func (s *served) as(tenant string) *broker.Dev {
	return &broker.Dev{Broker: s.Broker, DevOptions: broker.DevOptions{Tenant: tenant}, Token: s.mint(tenant), Roots: s.roots}
}

// mint makes a token that lets its bearer do everything in the tenant.
func (s *served) mint(tenant string) string {
	s.t.Helper()
	token, err := s.signers[tenant].Mint(auth.Claims{
		Tenant: tenant, Subject: "test", IssuedAt: time.Now(), Permissions: []string{
			"stream.publish:stream:" + tenant + "/*", "stream.subscribe:stream:" + tenant + "/*",
			"cache.read:cache:" + tenant + "/*", "cache.write:cache:" + tenant + "/*",
		},
	})
	if err != nil {
		s.t.Fatal(err)
	}
	return token
}

// tenant is a catalog's tenant with its streams and caches in the namespace default.
func (s *served) tenant(name string, streams map[string]catalog.Stream, caches ...string) catalog.Tenant {
	n := catalog.Namespace{Streams: streams, Caches: make(map[string]catalog.Cache)}
	for _, c := range caches {
		n.Caches[c] = catalog.Cache{}
	}
	return catalog.Tenant{Keys: auth.KeySet{s.signers[name].Key()}, Namespaces: map[string]catalog.Namespace{"default": n}}
}

// startServed runs a broker that serves tenant acme with the streams kept and gone and the caches kept and gone, and
// tenant other.
func startServed(t *testing.T, change func(*broker.Config)) *served {
	t.Helper()
	before := buf.Live()
	s := &served{t: t, dir: t.TempDir(), signers: make(map[string]*auth.Signer)}
	s.signer("acme")
	s.signer("other")
	text, err := catalog.Marshal(s.first())
	if err != nil {
		t.Fatal(err)
	}
	s.swap(text)
	if err := os.Symlink("..data/catalog.yml", filepath.Join(s.dir, "catalog.yml")); err != nil {
		t.Fatal(err)
	}
	cert, roots, err := dev.SelfSigned()
	if err != nil {
		t.Fatal(err)
	}
	s.roots = roots
	cfg := broker.DefaultConfig()
	cfg.Bind = "127.0.0.1:0"
	cfg.TLS = &tls.Config{Certificates: []tls.Certificate{cert}}
	cfg.Catalog = catalog.NewFile(filepath.Join(s.dir, "catalog.yml"))
	if change != nil {
		change(&cfg)
	}
	if s.Broker, err = broker.New(cfg); err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- s.Serve(context.Background()) }()
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), within)
		defer cancel()
		if err := s.Shutdown(ctx); err != nil {
			t.Errorf("shutdown: %v", err)
		}
		if err := <-served; !errors.Is(err, broker.ErrShutdown) {
			t.Errorf("serve ended with %v", err)
		}
		if n := buf.Live() - before; n != 0 {
			t.Errorf("%d chunks not given back", n)
		}
	})
	return s
}

func (s *served) first() *catalog.Catalog {
	return &catalog.Catalog{Tenants: map[string]catalog.Tenant{
		"acme":  s.tenant("acme", map[string]catalog.Stream{"kept": {}, "gone": {}}, "kept", "gone"),
		"other": s.tenant("other", map[string]catalog.Stream{"events": {}}),
	}}
}

// TestCatalogReload changes the catalog under traffic: what is in both is not touched, what is removed goes in order,
// what is new can be used at once.
func TestCatalogReload(t *testing.T) {
	tr := new(traces)
	s := startServed(t, func(cfg *broker.Config) { cfg.Trace = tr.start })
	if !tr.has("catalog felix.changes failed=false") {
		t.Error("the first catalog leaves no trace")
	}
	ctx := testContext(t)
	acme, other := s.connect("acme"), s.connect("other")
	kept, gone := subscribe(t, acme, "kept"), subscribe(t, acme, "gone")
	resuming, err := acme.Subscribe(ctx, "default", "gone", client.ResumeFor(500*time.Millisecond))
	if err != nil {
		t.Fatal(err)
	}
	keptCache, goneCache := acme.Cache("default", "kept"), acme.Cache("default", "gone")
	for _, c := range []*client.Cache{keptCache, goneCache} {
		if err := c.Put(ctx, "k", []byte("v"), client.NoExpiry); err != nil {
			t.Fatal(err)
		}
	}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(acme.Publisher("default", "gone").Publish(ctx, []byte("last")))
	must(other.Publisher("default", "events").Publish(ctx, []byte("x")))

	// Traffic on the stream that stays, until everything else has happened.
	published := make(chan int)
	stop := make(chan struct{})
	go func() {
		p := acme.Publisher("default", "kept")
		for n := 0; ; n++ {
			select {
			case <-stop:
				published <- n
				return
			default:
			}
			if err := p.Publish(ctx, fmt.Appendf(nil, "%d", n)); err != nil {
				t.Errorf("publish %d: %v", n, err)
			}
			if ev, err := kept.Next(ctx); err != nil || string(ev.Payload) != fmt.Sprint(n) {
				t.Errorf("event %d: %q, %v", n, ev.Payload, err)
			}
		}
	}()

	next := s.first()
	s.signer("late")
	acmeNext := s.tenant("acme", map[string]catalog.Stream{"kept": {}, "new": {}}, "kept", "new")
	next.Tenants = map[string]catalog.Tenant{"acme": acmeNext, "late": s.tenant("late", nil)}
	s.set(next)

	wantEvents(ctx, t, gone, "last") // what was queued comes before the end
	if _, err := gone.Next(ctx); !errors.Is(err, client.ErrEnded) {
		t.Errorf("a subscription of the removed stream ended with %v", err)
	}
	var refused *client.BrokerError
	wantEvents(ctx, t, resuming, "last")
	if _, err := resuming.Next(ctx); !errors.As(err, &refused) || !strings.HasPrefix(refused.Message, "stream not found") {
		t.Errorf("one that resumes ended with %v", err)
	}
	if err := acme.Publisher("default", "gone").Publish(ctx, nil); !errors.As(err, &refused) || !strings.HasPrefix(refused.Message, "stream not found") {
		t.Errorf("publish to the removed stream: %v", err)
	}
	if _, err := goneCache.Get(ctx, "k"); !errors.As(err, &refused) || !strings.HasPrefix(refused.Message, "cache scope not found") {
		t.Errorf("get from the removed cache: %v", err)
	}
	if v, err := keptCache.Get(ctx, "k"); err != nil || string(v) != "v" {
		t.Errorf("get from the cache that stays: %q, %v", v, err)
	}
	if err := acme.Cache("default", "new").Put(ctx, "k", nil, client.NoExpiry); err != nil {
		t.Errorf("put into the new cache: %v", err)
	}
	if err := acme.Publisher("default", "new").Publish(ctx, nil); err != nil {
		t.Errorf("publish to the new stream: %v", err)
	}
	if err := other.Publisher("default", "events").Publish(ctx, nil); !errors.As(err, &refused) {
		t.Errorf("publish to a stream of the removed tenant: %v", err)
	}
	s.connect("late") // whose key is new
	_, err = s.connectError("other")
	if !errors.Is(err, client.ErrAuth) {
		t.Errorf("a token of the removed tenant: %v", err)
	}

	close(stop)
	if n := <-published; n == 0 {
		t.Error("there was no traffic on the stream that stays")
	}
}

// TestBadCatalogKeepsTheOldOne breaks the file and mends it.
func TestBadCatalogKeepsTheOldOne(t *testing.T) {
	s := startServed(t, nil)
	ctx := testContext(t)
	p := s.connect("acme").Publisher("default", "kept")
	reloaded := func() float64 { return s.metric("felix_catalog_last_reload_successful") }
	if reloaded() != 1 {
		t.Error("not successful at the start")
	}
	s.swap([]byte("tenants: {acme: {}}"))
	s.await(func() bool { return reloaded() == 0 })
	if err := p.Publish(ctx, nil); err != nil {
		t.Errorf("publish: %v", err)
	}
	if n := s.metric("felix_catalog_errors_total"); n != 1 {
		t.Errorf("counted %v errors", n)
	}
	text, err := catalog.Marshal(s.first())
	if err != nil {
		t.Fatal(err)
	}
	s.swap(text)
	s.await(func() bool { return reloaded() == 1 })
	if err := p.Publish(ctx, nil); err != nil {
		t.Errorf("publish: %v", err)
	}
}

// TestStreamPolicies gives streams of one broker different policies, and changes one while the broker runs.
func TestStreamPolicies(t *testing.T) {
	s := startServed(t, func(c *broker.Config) { c.PublishWait = 50 * time.Millisecond })
	ctx := testContext(t)
	small := catalog.Stream{Overflow: new(ring.Block), QueueBatches: 1, ReplayBytes: -1}
	next := s.first()
	next.Tenants["acme"] = s.tenant("acme", map[string]catalog.Stream{"kept": {ReplayBytes: 1 << 20}, "small": small})
	s.set(next)
	c := s.connect("acme")

	// Nobody reads: the stream that blocks refuses its publisher at last, the other one drops.
	subscribe(t, c, "small")
	subscribe(t, c, "kept")
	payload := make([]byte, 64<<10)
	full := func(stream string) (err error) {
		for i := 0; i < 500 && err == nil; i++ {
			err = c.Publisher("default", stream).Publish(ctx, payload)
		}
		return err
	}
	var refused *client.BrokerError
	if err := full("small"); !errors.As(err, &refused) || refused.Message != "publish admission timed out" {
		t.Errorf("the stream that blocks: %v", err)
	}
	if err := full("kept"); err != nil {
		t.Errorf("the stream that drops: %v", err)
	}

	// Replay: none on the one, some on the other, until it is taken away.
	offsets := func(stream string) uint64 {
		t.Helper()
		_, err := c.Subscribe(ctx, "default", stream, client.FromOffset(0))
		cursor, ok := errors.AsType[*client.CursorError](err)
		if !ok || !cursor.TooOld {
			t.Fatalf("offset 0 of %s: %v", stream, err)
		}
		return cursor.Available
	}
	if kept := offsets("kept"); kept >= 500 || kept == 0 {
		t.Errorf("replay begins at %d of 500", kept)
	}
	next.Tenants["acme"] = s.tenant("acme", map[string]catalog.Stream{"kept": {ReplayBytes: -1}, "small": small})
	s.set(next)
	if kept := offsets("kept"); kept != 500 {
		t.Errorf("without replay it begins at %d of 500", kept)
	}
}

// TestNoCatalogNoBroker starts with a file that is not valid.
func TestNoCatalogNoBroker(t *testing.T) {
	cert, _, err := dev.SelfSigned()
	if err != nil {
		t.Fatal(err)
	}
	cfg := broker.Config{Bind: "127.0.0.1:0", TLS: &tls.Config{Certificates: []tls.Certificate{cert}}}
	cfg.Catalog = catalog.NewFile(filepath.Join(t.TempDir(), "none"))
	if _, err := broker.New(cfg); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("got %v", err)
	}
	cfg.Keys = auth.StaticKeys{}
	if _, err := broker.New(cfg); err == nil || !strings.Contains(err.Error(), "either Config.Keys or Config.Catalog") {
		t.Errorf("got %v", err)
	}
}
