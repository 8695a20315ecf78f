package floor

import (
	"context"
	"errors"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/felix-mq/felix/loadgen"
)

// TestMain is also the other process of the tests.
func TestMain(m *testing.M) {
	Serve()
	goleak.VerifyTestMain(m)
}

func TestPipe(t *testing.T) {
	res, err := RunPipe(t.Context(), 0, time.Millisecond, nil)
	if err != nil {
		t.Fatal(err)
	}
	if res.Bytes < pipeWrite || res.BytesPerSecond <= 0 {
		t.Errorf("got %+v", res)
	}
}

func TestRelay(t *testing.T) {
	for name, s := range map[string]loadgen.Config{
		"closed loop": {Fanout: 3, Conns: 2, Payload: 1024, Batch: 1, Window: 1},
		"joined":      {Fanout: 3, Conns: 8, Payload: 64, Batch: 8, Window: 16},
		"large":       {Fanout: 2, Conns: 1, Payload: 4096, Batch: 64, Window: 2},
	} {
		t.Run(name, func(t *testing.T) {
			s.Warmup, s.Duration, s.MaxDuration = 1, time.Millisecond, time.Hour // until the volume is enough
			res, err := RunRelay(t.Context(), s, []string{"GOMAXPROCS=1"})
			if err != nil {
				t.Fatal(err)
			}
			if res.Published == 0 || res.Delivered != res.Published*uint64(s.Fanout) || res.Unaccounted != 0 {
				t.Errorf("published %d, delivered %d, unaccounted %d", res.Published, res.Delivered, res.Unaccounted)
			}
			if l := res.Latency; l.Samples != int64(res.Delivered) || l.P50 <= 0 || l.P50 > l.P99 || l.P99 > l.P999 {
				t.Errorf("latency %+v of %d deliveries", l, res.Delivered)
			}
			if res.DeliveredBytesPerSecond <= 0 || res.Broker.ReceiveBuffer == 0 {
				t.Errorf("got %+v", res)
			}
		})
	}
}

// A run ends with its context, and what it started ends with it.
func TestRelayCanceled(t *testing.T) {
	s := loadgen.Config{Fanout: 2, Conns: 2, Payload: 1024, Batch: 8, Window: 4, Duration: time.Hour}
	cause := errors.New("enough")
	for name, when := range map[string]time.Duration{"at the start": 0, "under way": 200 * time.Millisecond} {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithTimeoutCause(t.Context(), when, cause)
			defer cancel()
			if res, err := RunRelay(ctx, s, nil); !errors.Is(err, cause) || res != nil {
				t.Errorf("got %+v, %v", res, err)
			}
		})
	}
}

func TestRelayRefuses(t *testing.T) {
	for name, s := range map[string]loadgen.Config{
		"no stamp":  {Fanout: 1, Conns: 1, Payload: 15, Batch: 1, Window: 1, Duration: 1},
		"too large": {Fanout: 1, Conns: 1, Payload: 1 << 20, Batch: 17, Window: 1, Duration: 1},
	} {
		t.Run(name, func(t *testing.T) {
			if res, err := RunRelay(t.Context(), s, nil); err == nil {
				t.Errorf("got %+v", res)
			}
		})
	}
}
