package cache

import (
	"testing"
	"testing/synctest"
	"time"
)

// ticked returns the tick in t's channel, or the zero time.
func ticked(t Ticker) time.Time {
	select {
	case at := <-t.C():
		return at
	default:
		return time.Time{}
	}
}

func TestManualClock(t *testing.T) {
	start := time.Unix(1000, 0)
	m := newManualClock(start)
	if got := m.Now(); !got.Equal(start) {
		t.Fatalf("shows %v, want %v", got, start)
	}
	second, minute := m.NewTicker(time.Second), m.NewTicker(time.Minute)

	m.Advance(time.Second - 1)
	if at := ticked(second); !at.IsZero() {
		t.Errorf("ticked early, at %v", at)
	}
	m.Advance(1)
	if at, want := ticked(second), start.Add(time.Second); !at.Equal(want) {
		t.Errorf("ticked at %v, want %v", at, want)
	}
	if at := ticked(second); !at.IsZero() {
		t.Errorf("ticked twice, at %v", at)
	}

	m.Advance(time.Minute)
	if at, want := ticked(second), start.Add(2*time.Second); !at.Equal(want) {
		t.Errorf("the channel holds %v, want the first of many ticks, %v", at, want)
	}
	if at := ticked(second); !at.IsZero() {
		t.Errorf("the channel holds a second tick, %v", at)
	}
	if at, want := ticked(minute), start.Add(time.Minute); !at.Equal(want) {
		t.Errorf("ticked at %v, want %v", at, want)
	}
	m.Advance(time.Second)
	if at, want := ticked(second), start.Add(62*time.Second); !at.Equal(want) {
		t.Errorf("ticked at %v, want %v", at, want)
	}

	second.Stop()
	second.Stop()
	m.Advance(time.Hour)
	if at := ticked(second); !at.IsZero() {
		t.Errorf("ticked after Stop, at %v", at)
	}
	if n := m.Tickers(); n != 1 {
		t.Errorf("%d tickers, want 1", n)
	}
	minute.Stop()
	if n := m.Tickers(); n != 0 {
		t.Errorf("%d tickers, want 0", n)
	}
}

func TestManualClockPanics(t *testing.T) {
	for name, f := range map[string]func(*manualClock){
		"period":    func(m *manualClock) { m.NewTicker(0) },
		"backwards": func(m *manualClock) { m.Advance(-1) },
	} {
		t.Run(name, func(t *testing.T) {
			defer func() {
				if recover() == nil {
					t.Error("no panic")
				}
			}()
			f(newManualClock(time.Time{}))
		})
	}
}

func TestRealClock(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := Clock(realClock{})
		start := c.Now()
		ticker := c.NewTicker(time.Second)
		defer ticker.Stop()
		for i := range 3 {
			at := <-ticker.C()
			if got, want := at.Sub(start), time.Duration(i+1)*time.Second; got != want {
				t.Errorf("tick %d after %v, want %v", i, got, want)
			}
		}
		if got := c.Now().Sub(start); got != 3*time.Second {
			t.Errorf("%v have passed, want 3 s", got)
		}
	})
}
