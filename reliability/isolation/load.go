package isolation

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"

	"github.com/felix-mq/felix/client"
	"github.com/felix-mq/felix/internal/stats"
)

// What B does: calls at a fixed rate, whether those before have ended or not.
const (
	publishesPerSecond = 200
	getsPerSecond      = 200
	connectsPerSecond  = 10
	probesPerSecond    = 4

	eventSize   = 512
	keptEvents  = 100
	keptSize    = 1 << 10
	keys        = 200
	valueSize   = 1 << 10
	callTimeout = 5 * time.Second // a call that takes longer has failed
	mostAtATime = 512             // calls of a kind; one beyond it waits, and that counts
)

// load is what B does, and what it keeps at the broker all the time.
type load struct {
	s      *site
	c      *client.Client
	sub    *client.Subscription
	stop   context.CancelFunc
	read   sync.WaitGroup
	base   time.Time
	number atomic.Uint64 // of the last event

	mu      sync.Mutex
	waiting map[uint64]*phase // events that have not come yet
	now     *phase            // whose errors those of the subscription are
}

// phase is one measurement.
type phase struct {
	mu                    sync.Mutex
	deliver, get, connect *hdrhistogram.Histogram
	calls                 int
	errors                map[string]int
}

func newPhase() *phase {
	return &phase{deliver: stats.NewHistogram(), get: stats.NewHistogram(), connect: stats.NewHistogram(), errors: make(map[string]int)}
}

func (p *phase) record(h *hdrhistogram.Histogram, d time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	_ = h.RecordValue(stats.Clamp(d))
}

// failed counts an error by its text.
func (p *phase) failed(text string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.errors[text]++
}

// done counts a call.
func (p *phase) done(what string, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.calls++
	if err != nil {
		p.errors[fmt.Sprintf("%s: %.200v", what, err)]++
	}
}

// latencies returns the p99 of what was recorded.
func (p *phase) latencies() latencies {
	p.mu.Lock()
	defer p.mu.Unlock()
	at := func(h *hdrhistogram.Histogram) time.Duration { return time.Duration(h.ValueAtPercentile(99)) }
	return latencies{Deliver: at(p.deliver), Get: at(p.get), Connect: at(p.connect)}
}

func (s *site) connect(ctx context.Context) (*client.Client, error) {
	return client.Connect(ctx, s.Addr, client.WithTLS(s.tls), client.WithToken(tenantB, s.token),
		client.WithWhileDown(client.WhileDownFail), client.WithRequestTimeout(callTimeout))
}

// newLoad connects B and stores what it keeps.
func newLoad(ctx context.Context, s *site) (_ *load, err error) {
	l := &load{s: s, base: time.Now(), waiting: make(map[uint64]*phase), now: newPhase()}
	if l.c, err = s.connect(ctx); err != nil {
		return nil, err
	}
	readCtx, stop := context.WithCancel(context.Background())
	l.stop = stop
	defer func() {
		if err != nil {
			err = errors.Join(err, l.close())
		}
	}()
	if l.sub, err = l.c.Subscribe(ctx, namespace, streamEvents); err != nil {
		return nil, err
	}
	l.read.Go(func() { l.receive(readCtx) })
	pub, cache := l.c.Publisher(namespace, streamKept), l.c.Cache(namespace, cacheEntries)
	for i := range keptEvents {
		if err := pub.Publish(ctx, kept(i)); err != nil {
			return nil, err
		}
	}
	for i := range keys {
		if err := cache.Put(ctx, key(i), value(i), client.NoExpiry); err != nil {
			return nil, err
		}
	}
	return l, nil
}

func (l *load) close() error {
	l.stop()
	l.read.Wait()
	return l.c.Close()
}

func kept(i int) []byte  { return bytes.Repeat([]byte{byte(i)}, keptSize) }
func key(i int) string   { return fmt.Sprintf("key-%d", i) }
func value(i int) []byte { return bytes.Repeat([]byte{byte(i)}, valueSize) }

// receive takes events until ctx ends.
func (l *load) receive(ctx context.Context) {
	for {
		b, err := l.sub.NextBatch(ctx)
		if ctx.Err() != nil {
			return
		}
		at := time.Since(l.base)
		if err != nil {
			l.current().failed(fmt.Sprintf("subscription: %.200v", err))
			return
		}
		if b.Gap != nil {
			l.current().failed("a gap between events")
		}
		for _, p := range b.Payloads() {
			if ph := l.arrived(binary.BigEndian.Uint64(p)); ph != nil {
				ph.record(ph.deliver, at-time.Duration(binary.BigEndian.Uint64(p[8:])))
			}
		}
	}
}

func (l *load) current() *phase {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.now
}

// arrived forgets an event and returns the phase that it belongs to; nil if nobody waits for it.
func (l *load) arrived(n uint64) *phase {
	l.mu.Lock()
	defer l.mu.Unlock()
	p := l.waiting[n]
	delete(l.waiting, n)
	return p
}

// missing returns how many events of a phase have not come.
func (l *load) missing(p *phase) (n int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, of := range l.waiting {
		if of == p {
			n++
		}
	}
	return n
}

// run makes calls until stop ends, and waits for their outcome.
func (l *load) run(ctx, stop context.Context) *phase {
	runFirst() // each time: threads that have begun since have no priority
	p := newPhase()
	l.mu.Lock()
	l.now = p
	l.mu.Unlock()
	pub, cache := l.c.Publisher(namespace, streamEvents), l.c.Cache(namespace, cacheEntries)
	var pacers sync.WaitGroup
	for _, call := range []struct {
		what   string
		rate   int
		do     func(ctx context.Context, i int, due time.Duration) error
		record *hdrhistogram.Histogram
	}{
		{"publish", publishesPerSecond, func(ctx context.Context, _ int, due time.Duration) error { return l.publish(ctx, pub, p, due) }, nil},
		{"get", getsPerSecond, func(ctx context.Context, i int, _ time.Duration) error { return get(ctx, cache, i%keys) }, p.get},
		{"connect", connectsPerSecond, func(ctx context.Context, _ int, _ time.Duration) error {
			c, err := l.s.connect(ctx)
			if err == nil {
				go func() { _ = c.Close() }() // which waits for the broker, and is not what is measured
			}
			return err
		}, p.connect},
		{"probe", probesPerSecond, func(ctx context.Context, _ int, _ time.Duration) error { return l.s.probe(ctx) }, nil},
	} {
		pacers.Go(func() {
			l.pace(ctx, stop, call.rate, func(ctx context.Context, i int, due time.Duration) {
				err := call.do(ctx, i, due)
				if err == nil && call.record != nil {
					p.record(call.record, time.Since(l.base)-due)
				}
				p.done(call.what, err)
			})
		})
	}
	pacers.Wait()
	for deadline := time.Now().Add(callTimeout); l.missing(p) > 0 && time.Now().Before(deadline); {
		_ = pause(ctx, time.Millisecond)
	}
	l.mu.Lock()
	for n, of := range l.waiting {
		if of == p {
			delete(l.waiting, n)
			p.failed("an acknowledged event did not come")
		}
	}
	l.mu.Unlock()
	return p
}

// pace makes calls at a rate until stop ends, each on a goroutine of its own, and waits for them.
func (l *load) pace(ctx, stop context.Context, rate int, call func(ctx context.Context, i int, due time.Duration)) {
	var calls sync.WaitGroup
	defer calls.Wait()
	slots := make(chan struct{}, mostAtATime)
	timer := time.NewTimer(0)
	defer timer.Stop()
	begin := time.Since(l.base)
	for i := 0; ; i++ {
		due := begin + time.Duration(i)*time.Second/time.Duration(rate)
		if wait := due - time.Since(l.base); wait > 0 {
			timer.Reset(wait)
			select {
			case <-timer.C:
			case <-stop.Done():
				return
			}
			due = time.Since(l.base) // the timer's own lateness is nobody's fault
		}
		select {
		case slots <- struct{}{}:
		case <-stop.Done():
			return
		}
		calls.Go(func() {
			defer func() { <-slots }()
			ctx, cancel := context.WithTimeout(ctx, callTimeout)
			defer cancel()
			call(ctx, i, due)
		})
	}
}

// publish publishes an event that is waited for.
func (l *load) publish(ctx context.Context, pub *client.Publisher, p *phase, due time.Duration) error {
	n := l.number.Add(1)
	event := make([]byte, eventSize)
	binary.BigEndian.PutUint64(event, n)
	binary.BigEndian.PutUint64(event[8:], uint64(due))
	l.mu.Lock()
	l.waiting[n] = p
	l.mu.Unlock()
	err := pub.Publish(ctx, event)
	if err != nil {
		l.arrived(n) // one error is enough
	}
	return err
}

func get(ctx context.Context, cache *client.Cache, i int) error {
	got, err := cache.Get(ctx, key(i))
	if err == nil && !bytes.Equal(got, value(i)) {
		err = errors.New("another value")
	}
	return err
}

// keeps says what is lost of the events and entries that B had before the attack.
func (l *load) keeps(ctx context.Context) (said []string) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	if n, err := l.keptEvents(ctx); err != nil {
		said = append(said, fmt.Sprintf("%d of %d events of B are left in its replay: %v", n, keptEvents, err))
	}
	cache, lost := l.c.Cache(namespace, cacheEntries), 0
	var last error
	for i := range keys {
		if err := get(ctx, cache, i); err != nil {
			lost, last = lost+1, err
		}
	}
	if lost > 0 {
		said = append(said, fmt.Sprintf("%d of %d entries of B are not readable: %v", lost, keys, last))
	}
	return said
}

// keptEvents reads the kept stream from its beginning.
func (l *load) keptEvents(ctx context.Context) (n int, _ error) {
	c, err := l.s.connect(ctx)
	if err != nil {
		return 0, err
	}
	defer func() { _ = c.Close() }()
	sub, err := c.Subscribe(ctx, namespace, streamKept, client.FromEarliest())
	if err != nil {
		return 0, err
	}
	for n < keptEvents {
		b, err := sub.NextBatch(ctx)
		if err != nil {
			return n, err
		}
		for _, p := range b.Payloads() {
			if !bytes.Equal(p, kept(n)) {
				return n, errors.New("another event")
			}
			n++
		}
	}
	return n, nil
}
