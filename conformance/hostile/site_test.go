package hostile

import (
	"context"
	"crypto/ed25519"
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"maps"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/felix-mq/felix/broker"
	"github.com/felix-mq/felix/client"
	"github.com/felix-mq/felix/internal/buf"
)

var (
	seedFlag   = flag.Uint64("hostile.seed", 1, "seed of the damaged streams; 0 takes a new one")
	framesFlag = flag.Int("hostile.frames", 20_000, "frames of the damaged streams")
	roundsFlag = flag.Int("hostile.rounds", 1, "times that each behavior is repeated as often as by default")
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// within bounds each single thing that is waited for. It passes only when something is broken.
const within = 30 * time.Second

// Streams of the broker that is attacked.
const (
	liveStream    = "live"    // hostile peers publish here
	healthyStream = "healthy" // the healthy pair does
)

// site is a broker under attack, with a healthy pair in addition to the attackers.
type site struct {
	*broker.Dev
	pair *pair
	base account
}

// newSite starts a broker whose time-outs are short enough for tests. It is shut down with the test, and must then have
// given everything back.
func newSite(t *testing.T, change func(*broker.Config)) *site {
	t.Helper()
	before := buf.Live()
	cfg := broker.DefaultConfig()
	cfg.Bind = "127.0.0.1:0"
	cfg.IdleTimeout, cfg.KeepAlive = idleTimeout, idleTimeout/3
	cfg.ReplyTimeout = 300 * time.Millisecond
	if change != nil {
		change(&cfg)
	}
	d, err := broker.NewDev(cfg, broker.DevOptions{
		Streams: []string{liveStream, healthyStream},
		Key:     ed25519.NewKeyFromSeed(make([]byte, ed25519.SeedSize)), // so that scripts can sign tokens of their own
	})
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- d.Serve(context.Background()) }()
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), within)
		defer cancel()
		if err := d.Shutdown(ctx); err != nil {
			t.Errorf("shutdown: %v", err)
		}
		if err := <-served; !errors.Is(err, broker.ErrShutdown) {
			t.Errorf("serve ended with %v", err)
		}
		if n := buf.Live() - before; n != 0 {
			t.Errorf("%d chunks not given back", n)
		}
	})
	return &site{Dev: d, pair: newPair(t, d)}
}

// idleTimeout is when the broker gives up on a peer that is gone. The healthy pair has to live with it too.
const idleTimeout = 3 * time.Second

// account is what a broker holds for its peers, by name. Everything in it has to come back to where it was. The healthy
// pair and the test itself are in it too, so it is compared while both rest.
type account map[string]int64

func (s *site) account() (account, error) {
	a := account{"chunks": buf.Live(), "goroutines": int64(runtime.NumGoroutine())}
	if fds, err := os.ReadDir("/proc/self/fd"); err == nil { // on Linux
		a["descriptors"] = int64(len(fds))
	}
	families, err := s.Registry().Gather()
	if err != nil {
		return nil, err
	}
	for _, f := range families {
		switch f.GetName() {
		case "felix_connections", "felix_control_streams", "felix_publish_streams", "felix_subscriptions":
			a[f.GetName()] = int64(f.GetMetric()[0].GetGauge().GetValue())
		case "felix_cache_entries": // each holds its value in a chunk, and is no peer's
			for _, m := range f.GetMetric() {
				a["chunks"] -= int64(m.GetGauge().GetValue())
			}
		}
	}
	return a, nil
}

// takeBase reads the account before an attack, when it is twice the same. It is called at the depth of subtests at
// which restored will be, since a test has a goroutine too.
func (s *site) takeBase(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), within)
	defer cancel()
	resume, err := s.pair.rest(ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer resume()
	if err := poll(ctx, 20*time.Millisecond, func() error {
		last := s.base
		if s.base, err = s.account(); err == nil && !maps.Equal(s.base, last) {
			err = errors.New("the account does not come to rest")
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
}

// restored waits until the account is back at its base, and the healthy pair works.
func (s *site) restored(ctx context.Context) error {
	resume, err := s.pair.rest(ctx)
	if err != nil {
		return err
	}
	defer resume()
	return poll(ctx, time.Millisecond, func() error {
		a, err := s.account()
		if err != nil {
			return err
		}
		var more []string
		for name, n := range s.base {
			if a[name] > n {
				more = append(more, fmt.Sprintf("%d more %s", a[name]-n, name))
			}
		}
		if more != nil {
			slices.Sort(more)
			return errors.New("the broker still holds " + strings.Join(more, ", "))
		}
		return nil
	})
}

// poll calls check until it returns nil, or ctx ends, and then returns its last error. It is for what tells nobody when
// it changes.
func poll(ctx context.Context, every time.Duration, check func() error) error {
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		err := check()
		if err == nil {
			return nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return err
		}
	}
}

// pair is a healthy publisher and a healthy subscriber. They are at work for as long as the test lasts, and the
// subscriber must receive every event.
type pair struct {
	publisher *client.Publisher

	mu   sync.Mutex // held for each publish
	sent uint64

	reached chan uint64 // events that ask for an answer, by the subscriber
}

// pairEvery is the pace of the healthy publisher.
const pairEvery = 2 * time.Millisecond

// An event of the pair: a name that nobody else knows, a number, and whether an answer is wanted.
const (
	pairName     = "healthy pair"
	pairEventLen = len(pairName) + 9
)

func newPair(t *testing.T, d *broker.Dev) *pair {
	t.Helper()
	ctx, stop := context.WithCancel(context.Background())
	connect := func() *client.Client {
		c, err := client.Connect(ctx, d.Addr().String(), client.WithTLS(d.ClientTLS()), client.WithToken(d.Tenant, d.Token))
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	out, in := connect(), connect()
	sub, err := in.Subscribe(ctx, d.Namespace, healthyStream)
	if err != nil {
		t.Fatal(err)
	}
	p := &pair{publisher: out.Publisher(d.Namespace, healthyStream), reached: make(chan uint64, 1)}
	var wg sync.WaitGroup
	wg.Go(func() {
		if n, err := p.subscribe(ctx, sub); err != nil {
			t.Errorf("healthy subscriber, after %d events: %v", n, err)
		} else {
			t.Logf("healthy subscriber: %d events, 0 lost", n)
		}
	})
	wg.Go(func() {
		if err := p.publish(ctx); err != nil {
			t.Errorf("healthy publisher: %v", err)
		}
	})
	t.Cleanup(func() {
		stop()
		wg.Wait()
		_ = sub.Close()
		_ = in.Close()
		_ = out.Close()
	})
	return p
}

func (p *pair) publish(ctx context.Context) error {
	tick := time.NewTicker(pairEvery)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
		p.mu.Lock()
		err := p.publishOne(ctx, false)
		p.mu.Unlock()
		if err != nil && ctx.Err() == nil {
			return err
		}
	}
}

// publishOne is called with p.mu held.
func (p *pair) publishOne(ctx context.Context, answer bool) error {
	event := binary.BigEndian.AppendUint64([]byte(pairName), p.sent)
	if answer {
		event = append(event, 1)
	} else {
		event = append(event, 0)
	}
	p.sent++
	return p.publisher.Publish(ctx, event)
}

// subscribe returns how many events came, with an error if one was lost.
func (p *pair) subscribe(ctx context.Context, sub *client.Subscription) (next uint64, _ error) {
	for {
		ev, err := sub.Next(ctx)
		select {
		case <-ctx.Done():
			return next, nil
		default:
		}
		if err != nil {
			return next, err
		}
		if ev.Gap != nil {
			return next, fmt.Errorf("the broker tells of a gap: %+v", *ev.Gap)
		}
		name, rest := ev.Payload[:min(len(pairName), len(ev.Payload))], ev.Payload[min(len(pairName), len(ev.Payload)):]
		if string(name) != pairName || len(ev.Payload) != pairEventLen {
			continue // damage has made an event of this stream
		}
		if n := binary.BigEndian.Uint64(rest); n != next {
			return next, fmt.Errorf("event %d came instead of %d", n, next)
		}
		if next++; rest[8] == 1 {
			p.reached <- next
		}
	}
}

// rest sees one more event through, by which all those before it have arrived, and lets the publisher pause until
// resume is called.
func (p *pair) rest(ctx context.Context) (resume func(), _ error) {
	p.mu.Lock()
	if err := p.publishOne(ctx, true); err != nil {
		p.mu.Unlock()
		return nil, fmt.Errorf("healthy publisher: %w", err)
	}
	select {
	case <-p.reached:
		return p.mu.Unlock, nil
	case <-ctx.Done():
		p.mu.Unlock()
		return nil, errors.New("the healthy subscriber does not receive what is published")
	}
}
