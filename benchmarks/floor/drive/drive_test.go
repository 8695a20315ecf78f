package drive

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
)

// TestMain is also the children of the tests.
func TestMain(m *testing.M) {
	Child("echo", func(_ context.Context, arg string, ready func(any) error) (any, error) { return "bye", ready(arg) })
	Child("broken", func(context.Context, string, func(any) error) (any, error) { return nil, errors.New("told to fail") })
	Child("silent", func(ctx context.Context, _ string, _ func(any) error) (any, error) {
		<-ctx.Done()
		return nil, nil
	})
	goleak.VerifyTestMain(m)
}

// deliver hands batches to all receivers at once, as a system without any delay would.
func deliver(t *testing.T, l *Load) func(uint64, int, int64) error {
	return func(first uint64, n int, at int64) error {
		for i := range l.shape.Fanout {
			if err := l.Receiver(i).Receive(at+1000, first, n*l.shape.Batch, at); err != nil {
				t.Error(err)
			}
		}
		return nil
	}
}

func TestLoad(t *testing.T) {
	s := Shape{Fanout: 3, Conns: 1, Payload: 16, Batch: 4, Window: 5, Duration: 1}
	l := New(s)
	if err := l.Publish(t.Context(), 3, deliver(t, l)); err != nil {
		if !strings.Contains(err.Error(), "too small") {
			t.Fatal(err)
		}
	}
	s.MaxDuration = time.Hour
	l = New(s)
	largest := 0
	send := deliver(t, l)
	err := l.Publish(t.Context(), 3, func(first uint64, n int, at int64) error {
		largest = max(largest, n)
		return send(first, n, at)
	})
	if err != nil {
		t.Fatal(err)
	}
	res := l.Result()
	if want := uint64(volumeFactor * 5 * 4); res.Published < want || res.Delivered != 3*res.Published || res.Unaccounted != 0 {
		t.Errorf("published %d, delivered %d, unaccounted %d, want %d or a few more", res.Published, res.Delivered, res.Unaccounted, want)
	}
	if res.Latency.Samples != int64(res.Delivered) || res.Latency.P50 != 1 || res.Latency.Max != 1 {
		t.Errorf("latency %+v", res.Latency)
	}
	if largest != 3 {
		t.Errorf("at most %d batches were sent at once, want 3", largest)
	}
}

// A shape may ask for another volume than usual.
func TestVolume(t *testing.T) {
	s := Shape{Fanout: 1, Conns: 1, Payload: 16, Batch: 5, Window: 4, Duration: 1, MaxDuration: time.Hour, Volume: 2}
	if err := s.Validate(); err != nil {
		t.Fatal(err)
	}
	l := New(s)
	if err := l.Publish(t.Context(), 1, deliver(t, l)); err != nil {
		t.Fatal(err)
	}
	if got := l.Result().Published; got < 2*5*4 || got >= volumeFactor*5*4 {
		t.Errorf("published %d, want %d or a few more", got, 2*5*4)
	}
	s.Volume = -1
	if err := s.Validate(); err == nil {
		t.Error("a negative volume is accepted")
	}
}

// One event that does not come keeps its batch in flight forever; what comes after it fails the run.
func TestReceiverRefuses(t *testing.T) {
	for name, first := range map[string]uint64{"lost": 5, "doubled": 3} {
		t.Run(name, func(t *testing.T) {
			r := New(Shape{Fanout: 1, Conns: 1, Payload: 16, Batch: 100, Window: 1, Duration: 1}).Receiver(0)
			if err := r.Receive(2, 0, 4, 1); err != nil {
				t.Fatal(err)
			}
			if err := r.Receive(3, first, 1, 1); err == nil {
				t.Errorf("event %d was accepted where 4 was next", first)
			}
		})
	}
}

func TestPublishCanceled(t *testing.T) {
	l := New(Shape{Fanout: 1, Conns: 1, Payload: 16, Batch: 1, Window: 2, Warmup: time.Hour, Duration: 1})
	cause := errors.New("enough")
	ctx, cancel := context.WithCancelCause(t.Context())
	err := l.Publish(ctx, 1, func(first uint64, _ int, _ int64) error {
		if first == 1 { // nothing arrives, so this is the last place in the window
			cancel(cause)
		}
		return nil
	})
	if !errors.Is(err, cause) {
		t.Errorf("got %v", err)
	}
}

// A run that was failed while its last event was on the way has failed, although all of them have arrived.
func TestPublishFailed(t *testing.T) {
	l := New(Shape{Fanout: 1, Conns: 1, Payload: 16, Batch: 1, Window: 1, Duration: 1, MaxDuration: time.Hour})
	cause := errors.New("one came twice")
	ctx, fail := context.WithCancelCause(t.Context())
	send := deliver(t, l)
	err := l.Publish(ctx, 1, func(first uint64, n int, at int64) error {
		if first == volumeFactor { // the warm-up has one event, so this is the last
			fail(cause)
		}
		return send(first, n, at)
	})
	if !errors.Is(err, cause) {
		t.Errorf("got %v", err)
	}
}

func TestStamp(t *testing.T) {
	b := Payload(20)
	PutStamp(b, 7, 9)
	if seq, at := Stamp(b); seq != 7 || at != 9 {
		t.Errorf("got %d, %d", seq, at)
	}
}

func TestChild(t *testing.T) {
	var hello, bye string
	p, err := Start(t.Context(), "echo", "hello", nil, &hello)
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Stop(&bye); err != nil || hello != "hello" || bye != "bye" {
		t.Errorf("got %q, %q, %v", hello, bye, err)
	}
	if _, err := Start(t.Context(), "broken", "", nil, &hello); err == nil {
		t.Error("a child that failed counts as ready")
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond) // it never becomes ready
	defer cancel()
	if _, err := Start(ctx, "silent", "", nil, &hello); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v", err)
	}
}
