package felixtest_test

import (
	"errors"
	"fmt"
	"testing"

	"github.com/felix-mq/felix/broker"
	"github.com/felix-mq/felix/client"
	"github.com/felix-mq/felix/client/felixtest"
)

// TestLag publishes faster than a subscription is read, to a durable stream and to one in memory.
func TestLag(t *testing.T) {
	for _, dir := range []string{"", t.TempDir()} {
		t.Run(fmt.Sprintf("durable=%t", dir != ""), func(t *testing.T) {
			b := felixtest.Start(t, func(c *broker.Config) { c.Storage.Dir, c.Storage.Headroom = dir, 0 })
			ctx := t.Context()
			c := b.Connect(t)
			publish := func(n int) {
				t.Helper()
				p := c.Publisher(felixtest.Namespace, felixtest.Stream)
				for range n {
					if err := p.Publish(ctx, []byte("event")); err != nil {
						t.Fatal(err)
					}
				}
			}
			publish(3)
			s, err := c.Subscribe(ctx, felixtest.Namespace, felixtest.Stream, client.FromEarliest())
			if err != nil {
				t.Fatal(err)
			}
			if n, err := s.Lag(ctx); !errors.Is(err, client.ErrUnsupported) {
				t.Errorf("lag %d before anything was read: %v", n, err)
			}
			want := func(lag uint64) {
				t.Helper()
				if n, err := s.Lag(ctx); n != lag || err != nil {
					t.Errorf("lag %d, want %d: %v", n, lag, err)
				}
			}
			read := func(n int) {
				t.Helper()
				for range n {
					if _, err := s.Next(ctx); err != nil {
						t.Fatal(err)
					}
				}
			}
			read(1)
			want(2)
			publish(2)
			want(4)
			read(4)
			want(0)
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			if _, err := s.Lag(ctx); !errors.Is(err, client.ErrClosed) {
				t.Errorf("after Close: %v", err)
			}
			if s, err = b.Connect(t, client.WithoutExtensions()).Subscribe(ctx, felixtest.Namespace, felixtest.Stream); err != nil {
				t.Fatal(err)
			}
			if _, err := s.Lag(ctx); !errors.Is(err, client.ErrUnsupported) {
				t.Errorf("of a broker that does not tell positions: %v", err)
			}
		})
	}
}
