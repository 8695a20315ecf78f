package felixtest_test

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/felix-mq/felix/broker"
	"github.com/felix-mq/felix/client"
	"github.com/felix-mq/felix/client/felixtest"
	"github.com/felix-mq/felix/internal/race"
)

// TestStorm runs publishers and subscribers through random faults, and compares what came with what the publishers were
// told. FELIX_STORM_SEEDS sets the number of seeds, and FELIX_STORM_SEED runs a single one. Faults are losses of
// packets, of addresses and of the broker, pauses and refusals; with FELIX_STORM_FAULTS=all, as in make storm, also
// paths that take small packets alone, and a process that has no descriptor left.
//
//   - Events of a publisher come in order, none twice, and none whose publish has failed without doubt.
//   - An event that was acknowledged comes, or a gap in its place.
//   - No call takes longer than its timeout, no subscription ends, nothing panics, and no goroutine is left.
func TestStorm(t *testing.T) {
	n, atOnce := uint64(200), 16
	if testing.Short() || race.Enabled {
		n, atOnce = 20, 4 // the race detector takes ten times as long, and the timeouts stay
	}
	runStorms(t, "FELIX_STORM_SEEDS", n, atOnce, runStorm)
}

// runStorms runs as many seeds as a variable says, or n, some of them at once.
func runStorms(t *testing.T, variable string, n uint64, atOnce int, run func(*testing.T, uint64)) {
	first := uint64(0)
	if s := os.Getenv(variable); s != "" {
		n, _ = strconv.ParseUint(s, 10, 64)
	}
	if s := os.Getenv("FELIX_STORM_SEED"); s != "" {
		first, _ = strconv.ParseUint(s, 10, 64)
		n = 1
	}
	overrun.grace = stormGrace
	if s := os.Getenv("FELIX_STORM_GRACE"); s != "" {
		d, err := time.ParseDuration(s)
		if err != nil {
			t.Fatal(err)
		}
		overrun.grace = d
	}
	overrun.most.Store(0)
	places := make(chan struct{}, atOnce)
	var wg sync.WaitGroup
	for seed := first; seed < first+n && !t.Failed(); seed++ {
		places <- struct{}{}
		wg.Go(func() {
			defer func() { <-places }()
			run(t, seed)
		})
	}
	wg.Wait()
	t.Logf("%d seeds; the slowest call took %v beyond its timeout", n, time.Duration(overrun.most.Load()))
}

const (
	stormTimeout = 2 * time.Second
	// stormGrace is how long a call may take beyond its timeout. A call that hangs takes for ever, so it is long, for
	// machines that do other things; FELIX_STORM_GRACE sets another one.
	stormGrace = 20 * time.Second
)

// overrun is how long calls took beyond their timeouts, at most.
var overrun struct {
	grace time.Duration
	most  atomic.Int64
}

// descriptors is held by those who cannot do without, and alone by the one who takes them away.
var descriptors sync.RWMutex

// storm is one run.
type storm struct {
	t    *testing.T
	seed uint64
	ctx  context.Context

	calm  atomic.Bool   // the faults are over
	heard chan struct{} // closed when the subscriber has what was published then

	mu     sync.Mutex // guards publishers
	status [stormKinds]map[int]error
}

// The ways to publish. Each has a publisher of its own.
const (
	stormSync = iota
	stormAsync
	stormMixed // Publish and PublishAsync
	stormSends
	stormKinds
)

func (s *storm) errorf(format string, args ...any) {
	s.t.Errorf("seed %d: %s", s.seed, fmt.Sprintf(format, args...))
}

func runStorm(t *testing.T, seed uint64) {
	r := rand.New(rand.NewPCG(seed, 1))
	short := r.IntN(2) == 0 // tokens
	dir := ""
	if seed%3 == 0 {
		dir = t.TempDir()
	}
	descriptors.RLock()
	b, err := felixtest.New(func(c *broker.Config) {
		c.Storage.Dir, c.Storage.Headroom = dir, 0
		c.AuthTimeout = 500 * time.Millisecond
		if short {
			c.Now = func() time.Time { return time.Now().Add(58 * time.Second) } // the leeway is 60 s
		}
	})
	descriptors.RUnlock()
	if err != nil {
		t.Error(err)
		return
	}
	defer b.Close()
	life := time.Hour
	if short {
		life = 2 * time.Second
	}
	s := &storm{t: t, seed: seed}
	s.run(2*guard, b.Addr(), b.TLS(), func() (string, error) { return b.Token(life) }, func() { s.faults(b, r) })
}

// run connects clients to a broker, lets faults happen, and judges.
func (s *storm) run(limit time.Duration, addr string, tlsConfig *tls.Config, token func() (string, error), faults func()) {
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	s.ctx, s.heard = ctx, make(chan struct{})
	connect := func() *client.Client {
		opts := append(impatient(), client.WithTLS(tlsConfig), client.WithRequestTimeout(stormTimeout),
			client.WithBatching(client.Batching{MaxEvents: 8, Linger: time.Millisecond}),
			client.WithTokenSource(felixtest.Tenant, func(context.Context) (string, error) { return token() }))
		var c *client.Client
		if err := s.begin(func() (err error) {
			c, err = client.Connect(ctx, addr, opts...)
			return err
		}); err != nil {
			s.errorf("connect: %v", err)
		}
		return c
	}
	publisher, subscriber := connect(), connect()
	if publisher == nil || subscriber == nil {
		return
	}
	defer publisher.Close()
	defer subscriber.Close()
	var sub *client.Subscription
	if err := s.begin(func() (err error) {
		sub, err = subscriber.Subscribe(ctx, felixtest.Namespace, felixtest.Stream)
		return err
	}); err != nil {
		s.errorf("subscribe: %v", err)
		return
	}
	defer sub.Close()
	var wg sync.WaitGroup
	for kind := range stormKinds {
		s.status[kind] = make(map[int]error)
		calls := rand.New(rand.NewPCG(s.seed, uint64(2+kind)))
		wg.Go(func() { s.publish(publisher.Publisher(felixtest.Namespace, felixtest.Stream), kind, calls) })
	}
	got := make(chan []item, 1)
	wg.Go(func() { got <- s.receive(sub) })
	faults()
	s.calm.Store(true)
	wg.Wait()
	s.judge(<-got)
}

// begin calls f until it succeeds. Timeouts are so short that a busy machine may miss them before there is any fault.
func (s *storm) begin(f func() error) error {
	for {
		err := f()
		if err == nil || s.ctx.Err() != nil {
			return err
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// pause waits for a random time.
func (s *storm) pause(r *rand.Rand, most time.Duration) {
	select {
	case <-time.After(time.Duration(r.Int64N(int64(most)))):
	case <-s.ctx.Done():
	}
}

// faults breaks things for a while.
func (s *storm) faults(b *felixtest.Broker, r *rand.Rand) {
	pause := func(most time.Duration) { s.pause(r, most) }
	kinds := 6
	if os.Getenv("FELIX_STORM_FAULTS") == "all" {
		kinds = 8
	}
	for range 3 + r.IntN(5) {
		switch r.IntN(kinds) {
		case 0:
			b.Kick()
		case 1:
			b.Pause()
			pause(700 * time.Millisecond) // the idle timeout is within that
			b.Resume()
		case 2:
			descriptors.RLock()
			b.Restart(s.t)
			descriptors.RUnlock()
		case 3:
			b.Lose(r.Float64() / 4)
			pause(300 * time.Millisecond)
			b.Lose(0)
		case 4:
			b.Rebind()
		case 5:
			b.Refuse(true)
			b.Kick()
			pause(200 * time.Millisecond)
			b.Refuse(false)
		case 6:
			b.Shrink(1200 + r.IntN(100))
			pause(500 * time.Millisecond)
			b.Shrink(0)
		case 7:
			descriptors.Lock() // they are those of all storms
			withoutDescriptors(s.t, func() {
				b.Kick()
				pause(100 * time.Millisecond)
			})
			descriptors.Unlock()
		}
		pause(150 * time.Millisecond)
	}
}

var errPending = errors.New("no outcome yet")

func (s *storm) settle(kind, n int, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.status[kind][n] = err
}

// publish publishes in one way until all was heard.
func (s *storm) publish(pub *client.Publisher, kind int, r *rand.Rand) {
	name := func(n int) []byte { return fmt.Append(nil, kind, " ", n, " ", s.calm.Load()) }
	var open sync.WaitGroup
	for n := 0; ; n++ {
		select {
		case <-s.heard:
			if err := pub.Flush(s.ctx); err != nil && kind != stormSends {
				s.errorf("flush: %v", err)
			}
			open.Wait()
			return
		case <-s.ctx.Done():
			s.errorf("what was published when all was calm did not come")
			return
		case <-time.After(time.Duration(r.Int64N(int64(5 * time.Millisecond)))):
		}
		timeout := stormTimeout
		ctx, cancel := s.ctx, context.CancelFunc(func() {})
		if r.IntN(3) == 0 && !s.calm.Load() {
			timeout = time.Duration(r.Int64N(int64(20 * time.Millisecond)))
			ctx, cancel = context.WithTimeout(ctx, timeout)
		} else {
			ctx = context.Background()
		}
		s.settle(kind, n, errPending)
		began := time.Now()
		way := kind
		if way == stormMixed {
			way = r.IntN(2)
		}
		switch way {
		case stormSync:
			s.settle(kind, n, pub.Publish(ctx, name(n)))
		case stormAsync:
			open.Add(1)
			pub.PublishAsync(ctx, name(n), func(err error) {
				s.settle(kind, n, err)
				open.Done()
			})
		case stormSends:
			if err := pub.Send(ctx, name(n)); err != nil {
				s.settle(kind, n, err)
			}
		}
		cancel()
		over := time.Since(began) - timeout
		for most := overrun.most.Load(); int64(over) > most && !overrun.most.CompareAndSwap(most, int64(over)); {
			most = overrun.most.Load()
		}
		if over > overrun.grace {
			s.errorf("call %d of kind %d took %v beyond its timeout of %v", n, kind, over, timeout)
		}
	}
}

// item is what a subscriber was handed: an event, or a gap.
type item struct {
	gap     bool
	kind, n int
	calm    bool
}

func parseItem(p []byte) (i item) {
	_, _ = fmt.Sscan(string(p), &i.kind, &i.n, &i.calm)
	return i
}

// receive reads until each publisher has been heard when all was calm.
func (s *storm) receive(sub *client.Subscription) (got []item) {
	defer close(s.heard)
	for heard := 0; heard < 1<<stormKinds-1; {
		ev, err := sub.Next(s.ctx)
		if err != nil {
			s.errorf("the subscription: %v", err)
			return got
		}
		if ev.Gap != nil {
			got = append(got, item{gap: true})
		}
		if ev.IsGap() {
			continue
		}
		i := parseItem(ev.Payload)
		got = append(got, i)
		if i.calm {
			heard |= 1 << i.kind
		}
	}
	return got
}

// judge compares what came with the outcomes.
func (s *storm) judge(got []item) {
	for kind := range stormKinds {
		last, gap := -1, false
		for _, i := range got {
			if i.gap {
				gap = true
				continue
			}
			if i.kind != kind {
				continue
			}
			if i.n <= last {
				s.errorf("kind %d: event %d, whose publish says %v, after event %d, %v", kind, i.n, s.status[kind][i.n], last, s.status[kind][last])
				continue
			}
			for n := last + 1; n < i.n; n++ {
				if err, ok := s.status[kind][n]; ok && err == nil && !gap && kind != stormSends {
					s.errorf("kind %d: event %d was acknowledged, and is missing without a gap", kind, n)
				}
			}
			if err := s.status[kind][i.n]; err != nil && !errors.Is(err, errPending) && !errors.Is(err, client.ErrInDoubt) {
				s.errorf("kind %d: event %d came, and its publish says %v", kind, i.n, err)
			}
			last, gap = i.n, false
		}
	}
}
