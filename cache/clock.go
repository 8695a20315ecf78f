package cache

import "time"

// Clock tells the time and makes tickers: that of the machine, or in tests one that they drive. It may be used from
// many goroutines.
type Clock interface {
	// Now returns the present time.
	Now() time.Time
	// NewTicker returns a ticker with the given period, which must be positive. Its caller stops it.
	NewTicker(period time.Duration) Ticker
}

// Ticker is the part of [time.Ticker] that a [Clock] can imitate.
type Ticker interface {
	// C returns the channel on which ticks arrive, always the same one. It holds one tick; those that find it full
	// are dropped. It is never closed.
	C() <-chan time.Time
	// Stop ends the ticks. It may be called twice.
	Stop()
}

// realClock is the clock of the machine.
type realClock struct{}

func (realClock) Now() time.Time { return time.Now() }

func (realClock) NewTicker(period time.Duration) Ticker { return realTicker{time.NewTicker(period)} }

type realTicker struct{ t *time.Ticker }

func (t realTicker) C() <-chan time.Time { return t.t.C }
func (t realTicker) Stop()               { t.t.Stop() }
