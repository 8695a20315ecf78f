package loadgen

import (
	"context"
	"errors"
	"testing"
	"time"
)

func TestPacer(t *testing.T) {
	p := pacer{start: 1000, batch: 10, rate: 3e4}
	for i, want := range map[int64]int64{0: 1000, 1: 1000 + 333_333, 3: 1000 + 1_000_000, 3_000_000: 1000 + 1e15/1000} {
		if got := p.due(i); got != want {
			t.Errorf("batch %d is due at %d, want %d", i, got, want)
		}
	}
	for d, want := range map[time.Duration]int64{time.Second: 3000, time.Millisecond: 3, time.Microsecond: 1} {
		if got := p.batches(d); got != want {
			t.Errorf("%d batches in %v, want %d", got, d, want)
		}
	}
}

func TestPunctuality(t *testing.T) {
	p := punctuality{lag: newLatencies()}
	p.sent(100, 100)
	p.sent(100, 100+int64(lateAfter))
	p.sent(100, 101+int64(lateAfter))
	p.sent(100, 50)
	if p.late != 1 || p.lag.histogram().TotalCount() != 4 || p.lag.clamped != 0 {
		t.Errorf("%d late of %d", p.late, p.lag.histogram().TotalCount())
	}
}

func TestAlarm(t *testing.T) {
	for name, make := range map[string]func(context.Context) alarm{
		"system": newAlarm,
		"plain":  func(ctx context.Context) alarm { return timerAlarm{ctx} },
	} {
		t.Run(name, func(t *testing.T) {
			cause := errors.New("enough")
			ctx, cancel := context.WithCancelCause(t.Context())
			a := make(ctx)
			defer a.close()
			for range 3 {
				begin := time.Now()
				if err := a.wait(100 * time.Microsecond); err != nil {
					t.Fatal(err)
				}
				if d := time.Since(begin); d < 100*time.Microsecond {
					t.Errorf("woke after %v", d)
				}
			}
			go cancel(cause)
			if err := a.wait(time.Hour); !errors.Is(err, cause) {
				t.Errorf("got %v, want the cause", err)
			}
		})
	}
}
