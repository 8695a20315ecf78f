package felixtest_test

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/felix-mq/felix/broker"
	"github.com/felix-mq/felix/client"
	"github.com/felix-mq/felix/client/felixtest"
	"github.com/felix-mq/felix/internal/relay"
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

// TestCanceledLag cancels the question to a broker that has fallen silent.
func TestCanceledLag(t *testing.T) {
	b := felixtest.Start(t)
	silencer, err := relay.New(b.Addr())
	if err != nil {
		t.Fatal(err)
	}
	defer silencer.Close()
	token, err := b.Token(time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	c, err := client.Connect(t.Context(), silencer.Addr(), client.WithTLS(b.TLS()), client.WithToken(felixtest.Tenant, token))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	s, err := c.Subscribe(t.Context(), felixtest.Namespace, felixtest.Stream)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if err := c.Publisher(felixtest.Namespace, felixtest.Stream).Publish(t.Context(), []byte("event")); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Next(t.Context()); err != nil {
		t.Fatal(err)
	}
	silencer.Silence(true)
	cause := errors.New("no longer wanted")
	for _, before := range []bool{true, false} {
		ctx, cancel := context.WithCancelCause(t.Context())
		if before {
			cancel(cause)
		}
		done := make(chan error, 1)
		go func() {
			_, err := s.Lag(ctx)
			done <- err
		}()
		if !before {
			time.Sleep(2 * time.Millisecond) // it is waiting by then, or it is not: what is expected is the same
			cancel(cause)
		}
		if err := <-done; !errors.Is(err, cause) {
			t.Errorf("canceled before %t: %v", before, err)
		}
		cancel(nil)
	}
}
