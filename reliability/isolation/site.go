package isolation

import (
	"bufio"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/felix-mq/felix/auth"
	"github.com/felix-mq/felix/broker"
	"github.com/felix-mq/felix/catalog"
	"github.com/felix-mq/felix/internal/child"
	"github.com/felix-mq/felix/internal/dev"
	"github.com/felix-mq/felix/internal/settings"
	"github.com/felix-mq/felix/ring"
)

// What the catalog has, for each of the tenants.
const (
	tenantA, tenantB = "a", "b"
	namespace        = "default"

	streamEvents = "events" // B's load; A publishes here as well, to its own
	streamOther  = "other"
	streamBlock  = "block" // publishers wait for its subscriptions
	streamDeep   = "deep"  // has a replay of 16 MiB
	streamKept   = "kept"  // B's events from before the attack
	cacheEntries = "entries"
)

// budgets are small, so that attacks meet them soon. --set and an attack's own settings win over them.
var budgets = []string{
	"FELIX_RETAINED_BYTES=48MiB", "FELIX_READ_BYTES=48MiB", "FELIX_CACHE_MAX_BYTES=32MiB", "FELIX_CONN_READ_BYTES=32MiB",
	"FELIX_SHUTDOWN_DRAIN_TIMEOUT_MS=5000",
}

// endWithin bounds the broker's end: its time for a shutdown, and as much for what comes after it.
const endWithin = 10 * time.Second

// site is a broker that is attacked, in a process of its own.
type site struct {
	job
	cfg    broker.Config // as far as its settings say; for the memory that it may have
	tls    *tls.Config
	token  string // of B
	dir    string
	log    *os.File
	cmd    *exec.Cmd
	exited chan struct{} // is closed when the process has ended
	peak   atomic.Int64
}

// job is what an attacker has to know. Everything but its own key could be known to a tenant's client; what is on the
// broker's machine, such as the catalog, is for attacks that need a hand there.
type job struct {
	Attack           string
	Addr, HTTP       string
	CertPEM          string
	PID              int
	Catalog          string
	SeedA, OtherA    []byte // of A's keys: the one in the catalog, and one that is not
	PublicB          []byte // JWKS
	ReplayOfA        int
	QueueBytesOfDeep int
}

func seed() []byte {
	b := make([]byte, ed25519.SeedSize)
	_, _ = rand.Read(b) // never fails
	return b
}

func signer(tenant string, seed []byte) (*auth.Signer, error) {
	return auth.NewSigner(ed25519.NewKeyFromSeed(seed), tenant+"-1")
}

// token returns one that may do everything in its tenant.
func token(tenant string, s *auth.Signer, expires time.Time) (string, error) {
	return s.Mint(auth.Claims{
		Tenant: tenant, Subject: "isolation", IssuedAt: time.Now().Add(-2 * time.Hour), Expires: expires,
		Permissions: []string{
			"stream.publish:stream:" + tenant + "/*", "stream.subscribe:stream:" + tenant + "/*",
			"cache.read:cache:" + tenant + "/*", "cache.write:cache:" + tenant + "/*",
		},
	})
}

// catalogOf is what the broker serves: B, and A with that key unless it is nil.
func catalogOf(keyA []byte, keysB []byte) (*catalog.Catalog, error) {
	block := ring.Block
	streams := map[string]catalog.Stream{
		streamEvents: {}, streamOther: {}, streamBlock: {Overflow: &block}, streamDeep: {ReplayBytes: 16 << 20}, streamKept: {},
	}
	for i := range fillers {
		streams[filler(i)] = catalog.Stream{ReplayBytes: 16 << 20}
	}
	spaces := map[string]catalog.Namespace{namespace: {Streams: streams, Caches: map[string]catalog.Cache{cacheEntries: {}}}}
	b, err := auth.ParseJWKS(keysB)
	if err != nil {
		return nil, err
	}
	c := &catalog.Catalog{Tenants: map[string]catalog.Tenant{tenantB: {Keys: b, Namespaces: spaces}}}
	if keyA != nil {
		s, err := signer(tenantA, keyA)
		if err != nil {
			return nil, err
		}
		c.Tenants[tenantA] = catalog.Tenant{Keys: auth.KeySet{s.Key()}, Namespaces: spaces}
	}
	return c, nil
}

// fillers are streams with much replay, of which A has more than the process may retain.
const fillers = 8

func filler(i int) string { return fmt.Sprintf("filler-%d", i) }

// buildBroker builds the broker of this tree into dir.
func buildBroker(ctx context.Context, dir string) (string, error) {
	file := filepath.Join(dir, "broker")
	if out, err := exec.CommandContext(ctx, "go", "build", "-pgo=auto", "-o", file, "github.com/felix-mq/felix/cmd/broker").CombinedOutput(); err != nil {
		return "", fmt.Errorf("building the broker: %w\n%s", err, out)
	}
	return file, nil
}

// startSite starts the broker with those settings; the last one of a name counts.
func startSite(ctx context.Context, binary, dir, attack string, set []string) (_ *site, err error) {
	s := &site{dir: dir, exited: make(chan struct{}), job: job{Attack: attack, Catalog: filepath.Join(dir, "catalog.yml"), SeedA: seed(), OtherA: seed()}}
	b, err := signer(tenantB, seed())
	if err != nil {
		return nil, err
	}
	s.PublicB = b.JWKS()
	if s.token, err = token(tenantB, b, time.Now().Add(24*time.Hour)); err != nil {
		return nil, err
	}
	c, err := catalogOf(s.SeedA, s.PublicB)
	if err == nil {
		err = catalog.Write(s.Catalog, c)
	}
	if err != nil {
		return nil, err
	}
	var env []string
	for _, v := range os.Environ() {
		if !strings.HasPrefix(v, "FELIX_") {
			env = append(env, v)
		}
	}
	env = append(env, budgets...)
	env = append(env, "FELIX_CATALOG="+s.Catalog, "FELIX_QUIC_BIND=127.0.0.1:0", "FELIX_BROKER_METRICS_BIND=127.0.0.1:0", "FELIX_PPROF=true")
	env = append(env, set...)
	s.cfg = broker.DefaultConfig()
	if _, err := settings.Load(settings.Sources{Environ: env}, &s.cfg); err != nil {
		return nil, err
	}
	if s.log, err = os.Create(filepath.Join(dir, "broker.log")); err != nil {
		return nil, err
	}
	s.cmd = exec.Command(binary)
	s.cmd.Env, s.cmd.Stderr = env, s.log
	stdout, err := s.cmd.StdoutPipe()
	if err == nil {
		err = s.cmd.Start()
	}
	if err != nil {
		return nil, errors.Join(err, s.log.Close())
	}
	s.PID = s.cmd.Process.Pid
	runSecond(s.PID)
	var ready struct {
		Addr   string `json:"addr"`
		CACert string `json:"ca_pem"`
	}
	err = json.NewDecoder(stdout).Decode(&ready)
	go func() {
		_, _ = io.Copy(io.Discard, stdout)
		_ = s.cmd.Wait() // a broker that was killed says so
		close(s.exited)
	}()
	if err == nil {
		s.Addr, s.CertPEM = ready.Addr, ready.CACert
		s.tls, err = dev.ClientTLS([]byte(s.CertPEM))
	}
	if err == nil {
		s.HTTP, err = s.metricsAddr(ctx)
	}
	if err != nil {
		err = errors.Join(err, s.stop())
		said, _ := os.ReadFile(s.log.Name())
		return nil, fmt.Errorf("the broker does not start: %w\n%s", err, said)
	}
	return s, nil
}

// metricsAddr waits for the line of the log that says where the probes are.
func (s *site) metricsAddr(ctx context.Context) (string, error) {
	for range 1000 {
		text, err := os.ReadFile(s.log.Name())
		if err != nil {
			return "", err
		}
		if _, after, ok := strings.Cut(string(text), "event=metrics_served addr="); ok {
			if addr, _, whole := strings.Cut(after, "\n"); whole {
				return addr, nil
			}
		}
		if err := pause(ctx, 5*time.Millisecond); err != nil {
			return "", err
		}
	}
	return "", errors.New("its log does not say where the metrics are")
}

// pause waits for d, or less if ctx ends.
func pause(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// stop ends the broker as an operator does. It fails if that takes too long.
func (s *site) stop() error {
	defer func() { _ = s.log.Close() }()
	_ = s.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-s.exited:
		return nil
	case <-time.After(endWithin):
		_ = s.cmd.Process.Kill()
		<-s.exited
		return fmt.Errorf("SIGTERM does not end the broker within %v", endWithin)
	}
}

// resident returns the bytes of memory that the broker has.
func (s *site) resident() int64 { return child.Resident(s.PID) }

// watch keeps the most memory that the broker has, until ctx ends.
func (s *site) watch(ctx context.Context) {
	for pause(ctx, 20*time.Millisecond) == nil {
		s.peak.Store(max(s.peak.Load(), s.resident()))
	}
}

var probes = &http.Client{Timeout: 2 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}

// probe asks the broker whether it is ready, as a load balancer does.
func (s *site) probe(ctx context.Context) error {
	return s.http(ctx, "/ready", io.Discard)
}

// http gets a page of the broker.
func (s *site) http(ctx context.Context, path string, to io.Writer) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+s.HTTP+path, http.NoBody)
	if err != nil {
		return err
	}
	resp, err := probes.Do(req)
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: %s", path, resp.Status)
	}
	_, err = io.Copy(to, resp.Body)
	return err
}

// metric returns a gauge of the broker; 0 if it does not tell.
func (s *site) metric(ctx context.Context, name string) int {
	r, w := io.Pipe()
	go func() { _ = w.CloseWithError(s.http(ctx, "/metrics", w)) }()
	defer func() { _ = r.Close() }()
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		var n float64
		if _, err := fmt.Sscanf(lines.Text(), name+" %g", &n); err == nil {
			return int(n)
		}
	}
	return 0
}

// forgetA removes what A has stored, by taking it out of the catalog and putting it back.
func (s *site) forgetA(ctx context.Context) error {
	for _, keyA := range [][]byte{nil, s.SeedA} {
		c, err := catalogOf(keyA, s.PublicB)
		if err == nil {
			err = catalog.Write(s.Catalog, c)
		}
		if err == nil {
			err = hangUp(s.PID)
		}
		if err != nil {
			return err
		}
		want := 0
		for _, t := range c.Tenants {
			want += len(t.Namespaces[namespace].Streams)
		}
		for tries := 0; s.metric(ctx, "felix_streams") != want; tries++ {
			if tries == 100 {
				return errors.New("the broker does not take another catalog")
			}
			if err := pause(ctx, 50*time.Millisecond); err != nil {
				return err
			}
		}
	}
	return nil
}

// bound is the memory that the budgets and so many connections may take.
func (s *site) bound(connections int) int64 { return s.cfg.MemoryLimitFor(connections) }

// profile keeps a profile of the broker's heap after a collection.
func (s *site) profile(ctx context.Context, file string) error {
	f, err := os.Create(file)
	if err != nil {
		return err
	}
	return errors.Join(s.http(ctx, "/debug/pprof/heap?gc=1", f), f.Close())
}
