package felixtest_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/felix-mq/felix/broker"
	"github.com/felix-mq/felix/client"
	"github.com/felix-mq/felix/client/felixtest"
)

// TestDurableResume restarts a broker again and again while publishers and subscribers go on. A subscription resumes by
// itself and gets every event that was acknowledged, once, in the order of offsets, and no gap. A position that another
// one has stored leads on from there.
func TestDurableResume(t *testing.T) {
	b := felixtest.Start(t, func(c *broker.Config) {
		c.Storage.Dir, c.Storage.Headroom, c.ReplayBytes = t.TempDir(), 0, 4<<10
	})
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	// They notice soon that a broker is gone.
	fast := func(o ...client.Option) []client.Option {
		return append(o, client.WithBackoff(time.Millisecond, 20*time.Millisecond), client.WithRequestTimeout(2*time.Second),
			client.WithTransport(client.Transport{KeepAlive: 200 * time.Millisecond, IdleTimeout: time.Second}))
	}
	c := b.Connect(t, fast()...)
	s, err := c.Subscribe(ctx, felixtest.Namespace, felixtest.Stream, client.FromEarliest())
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()

	const publishers, restarts = 4, 3
	var mu sync.Mutex
	var life atomic.Int64
	acked := map[string]bool{}
	stop := make(chan struct{})
	pace := time.NewTicker(100 * time.Microsecond) // a resumed subscription has to catch up
	defer pace.Stop()
	var publishing sync.WaitGroup
	for i := range publishers {
		p := b.Connect(t, fast()...).Publisher(felixtest.Namespace, felixtest.Stream)
		publishing.Go(func() {
			for k := 0; ; k++ {
				<-pace.C
				select {
				case <-stop:
					return
				default:
				}
				payload := fmt.Sprintf("%d/%d/%d", life.Load(), i, k)
				switch err := p.Publish(ctx, []byte(payload)); {
				case err == nil:
					mu.Lock()
					acked[payload] = true
					mu.Unlock()
				case !errors.Is(err, client.ErrInDoubt) && !client.Retryable(err):
					t.Errorf("publish: %v", err)
					return
				}
			}
		})
	}
	var events []string
	var half client.Position
	read := func() {
		ev, err := s.Next(ctx)
		if err != nil || ev.Gap != nil || ev.Offset != uint64(len(events)) {
			t.Fatalf("got offset %d, gap %v, error %v, want offset %d", ev.Offset, ev.Gap, err, len(events))
		}
		events = append(events, string(ev.Payload))
	}
	for i := range restarts {
		life.Store(int64(i))
		for began := fmt.Sprint(i, "/"); len(events) < 300*(i+1) || !strings.HasPrefix(events[len(events)-1], began); {
			read() // until it is published and resumed again
		}
		b.Restart(t)
		half, _ = s.Position()
	}
	close(stop)
	publishing.Wait()
	last := c.Publisher(felixtest.Namespace, felixtest.Stream)
	for err = last.Publish(ctx, []byte("last")); err != nil; err = last.Publish(ctx, []byte("last")) {
		if ctx.Err() != nil {
			t.Fatal(err)
		}
	}
	for len(events) == 0 || events[len(events)-1] != "last" {
		read()
	}
	seen := map[string]bool{}
	for _, e := range events {
		if e != "last" && seen[e] {
			t.Errorf("%q came twice", e)
		}
		seen[e] = true
	}
	for e := range acked {
		if !seen[e] {
			t.Errorf("%q was acknowledged and did not come", e)
		}
	}
	again, err := b.Connect(t).Subscribe(ctx, felixtest.Namespace, felixtest.Stream, client.FromPosition(half))
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	for offset := half.Offset; offset < uint64(len(events)); offset++ {
		ev, err := again.Next(ctx)
		if err != nil || ev.Gap != nil || ev.Offset != offset || string(ev.Payload) != events[offset] {
			t.Fatalf("from a stored position: got offset %d, gap %v, error %v, want offset %d", ev.Offset, ev.Gap, err, offset)
		}
	}
	t.Logf("%d events, %d acknowledged", len(events), len(acked))
}
