package cache

import (
	"sync"
	"time"
)

// manualClock is a [Clock] that stands still until [manualClock.Advance] moves it.
type manualClock struct {
	mu      sync.Mutex
	now     time.Time
	tickers map[*manualTicker]struct{}
}

// newManualClock returns a clock that shows start.
func newManualClock(start time.Time) *manualClock {
	return &manualClock{now: start, tickers: make(map[*manualTicker]struct{})}
}

// Now returns the time the clock shows.
func (m *manualClock) Now() time.Time {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.now
}

// NewTicker returns a ticker whose first tick is due one period after the time the clock shows. It panics if period is
// not positive, as [time.NewTicker] does.
func (m *manualClock) NewTicker(period time.Duration) Ticker {
	if period <= 0 {
		panic("cache: ticker period must be positive")
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	t := &manualTicker{clock: m, c: make(chan time.Time, 1), period: period, due: m.now.Add(period)}
	m.tickers[t] = struct{}{}
	return t
}

// Advance moves the clock forward by d, which must not be negative, and puts the ticks that have become due into
// their channels before it returns. It does not wait for anybody to receive them: a test that must see each tick
// handled advances by one period and waits for the effect.
func (m *manualClock) Advance(d time.Duration) {
	if d < 0 {
		panic("cache: time does not run backwards")
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.now = m.now.Add(d)
	for t := range m.tickers {
		for ; !t.due.After(m.now); t.due = t.due.Add(t.period) {
			select {
			case t.c <- t.due:
			default: // the consumer is late
			}
		}
	}
}

// Tickers returns the number of tickers that are not stopped, so that a test can see them come and go.
func (m *manualClock) Tickers() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return len(m.tickers)
}

type manualTicker struct {
	clock  *manualClock
	c      chan time.Time
	period time.Duration

	due time.Time // of the next tick; guarded by clock.mu
}

func (t *manualTicker) C() <-chan time.Time { return t.c }

func (t *manualTicker) Stop() {
	t.clock.mu.Lock()
	defer t.clock.mu.Unlock()
	delete(t.clock.tickers, t)
}
