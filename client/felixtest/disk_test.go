package felixtest_test

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/felix-mq/felix/broker"
	"github.com/felix-mq/felix/catalog"
	"github.com/felix-mq/felix/client"
	"github.com/felix-mq/felix/client/felixtest"
)

// TestCrash shows what a program may rely on: what a broker has acknowledged is there after a loss of power, under the
// same offsets, and a subscription goes on.
func TestCrash(t *testing.T) {
	disk := felixtest.NewDisk()
	b := felixtest.Start(t, disk.Use)
	ctx := t.Context()
	s, err := b.Connect(t, quick()...).Subscribe(ctx, felixtest.Namespace, felixtest.Stream, client.FromEarliest())
	if err != nil {
		t.Fatal(err)
	}
	const lives, each = 3, 5
	for life := range lives {
		p := b.Connect(t).Publisher(felixtest.Namespace, felixtest.Stream)
		for i := range each {
			if err := p.Publish(ctx, fmt.Appendf(nil, "event %d", life*each+i)); err != nil {
				t.Fatal(err)
			}
		}
		b.Crash(t)
	}
	for i := range lives * each {
		ev, err := s.Next(ctx)
		if err != nil || ev.IsGap() || ev.Offset != uint64(i) || string(ev.Payload) != fmt.Sprint("event ", i) {
			t.Fatalf("got %q at %d, gap %v, error %v, want event %d", ev.Payload, ev.Offset, ev.Gap, err, i)
		}
	}
}

// quick are options with which a client notices soon that its broker is gone.
func quick() []client.Option {
	return []client.Option{
		client.WithBackoff(time.Millisecond, 20*time.Millisecond),
		client.WithTransport(client.Transport{KeepAlive: 100 * time.Millisecond, IdleTimeout: time.Second}),
	}
}

// TestCrashLosesWhatIsNotSynced publishes to a stream whose events are acknowledged before they are on the device.
func TestCrashLosesWhatIsNotSynced(t *testing.T) {
	disk := felixtest.NewDisk()
	b := felixtest.Start(t, disk.Use, func(c *broker.Config) { c.Storage.Ack, c.Storage.SyncEvery = catalog.AckOS, time.Hour })
	ctx := t.Context()
	publish := func(n int) {
		t.Helper()
		p := b.Connect(t).Publisher(felixtest.Namespace, felixtest.Stream)
		for range n {
			if err := p.Publish(ctx, []byte("event")); err != nil {
				t.Fatal(err)
			}
		}
	}
	tail := func() uint64 {
		t.Helper()
		_, err := b.Connect(t).Subscribe(ctx, felixtest.Namespace, felixtest.Stream, client.FromOffset(1<<60))
		cursor, ok := errors.AsType[*client.CursorError](err)
		if !ok {
			t.Fatal(err)
		}
		return cursor.Available
	}
	publish(5)
	b.Restart(t)
	if n := tail(); n != 5 {
		t.Errorf("%d events after the end of the process, want 5", n)
	}
	publish(5)
	b.Crash(t)
	if n := tail(); n < 5 || n >= 10 {
		t.Errorf("%d events after the crash, want those of before and not all", n)
	}
}

// TestFullDisk publishes until the broker has seen that its disk is full, and then until there is space again.
func TestFullDisk(t *testing.T) {
	disk := felixtest.NewDisk()
	b := felixtest.Start(t, disk.Use)
	p := b.Connect(t).Publisher(felixtest.Namespace, felixtest.Stream)
	until := func(full bool) {
		t.Helper()
		disk.Full(full)
		for {
			err := p.Publish(t.Context(), []byte("event"))
			switch {
			case err != nil && (!errors.Is(err, client.ErrOverloaded) || !client.Retryable(err)):
				t.Fatal(err)
			case (err != nil) == full:
				return
			}
		}
	}
	until(true)
	until(false)
}

// TestSlowDisk publishes to a slow disk: nothing is acknowledged before it is synced.
func TestSlowDisk(t *testing.T) {
	disk := felixtest.NewDisk()
	b := felixtest.Start(t, disk.Use)
	p := b.Connect(t).Publisher(felixtest.Namespace, felixtest.Stream)
	const by = 50 * time.Millisecond
	disk.Slow(by)
	began := time.Now()
	if err := p.Publish(t.Context(), []byte("event")); err != nil || time.Since(began) < by {
		t.Errorf("after %v: %v", time.Since(began), err)
	}
}
