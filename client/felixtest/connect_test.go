package felixtest_test

import (
	"context"
	"errors"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/felix-mq/felix/client"
	"github.com/felix-mq/felix/client/felixtest"
)

// dialed notes the addresses of attempts that failed, and of connections.
type dialed struct {
	mu             sync.Mutex
	failed, served []string
}

func (d *dialed) OnConnect(addr string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.served = append(d.served, addr)
}

func (d *dialed) OnDisconnect(string, error) {}

func (d *dialed) OnConnectFailed(addr string, _ error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.failed = append(d.failed, addr)
}

func (d *dialed) seen() (failed, served []string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Clone(d.failed), slices.Clone(d.served)
}

// silent returns an address of which no answer comes.
func silent(t *testing.T) string {
	t.Helper()
	c, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c.LocalAddr().String()
}

// TestSeeds: a client whose first address leads nowhere uses the next one, and keeps to it.
func TestSeeds(t *testing.T) {
	t.Parallel()
	b, seen := felixtest.Start(t), &dialed{}
	c, err := client.Connect(testContext(t), silent(t)+", "+b.Addr(), append(b.Options(), client.WithHooks(seen))...)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := c.Cache(felixtest.Namespace, felixtest.Cache).Put(testContext(t), "k", []byte("v"), client.NoExpiry); err != nil {
		t.Error(err)
	}
	failed, served := seen.seen()
	if len(failed) != 1 || len(served) < 2 || slices.ContainsFunc(served, func(a string) bool { return a != b.Addr() }) {
		t.Errorf("failed: %q, connected: %q", failed, served)
	}
}

// TestNoSeedAnswers: each address is tried once, and the failure is one that may pass.
func TestNoSeedAnswers(t *testing.T) {
	t.Parallel()
	b, seen := felixtest.Start(t), &dialed{}
	seeds := []string{silent(t), silent(t)}
	_, err := client.Connect(testContext(t), strings.Join(seeds, ","), append(b.Options(), client.WithHooks(seen))...)
	if !errors.Is(err, client.ErrDisconnected) || !client.Retryable(err) {
		t.Errorf("got %v", err)
	}
	if failed, _ := seen.seen(); !slices.Equal(failed, seeds) {
		t.Errorf("tried %q, want %q", failed, seeds)
	}
}

// TestConnectRetry: Connect tries again what may pass, here a token that is not there yet, with pauses and as long as
// its context lasts; and it does not try again what a broker refuses.
func TestConnectRetry(t *testing.T) {
	b := felixtest.Start(t)
	good, err := b.Token(time.Hour, "stream.publish:stream:"+felixtest.Tenant+"/*")
	if err != nil {
		t.Fatal(err)
	}
	var asked, ready atomic.Int32
	source := client.WithTokenSource(felixtest.Tenant, func(context.Context) (string, error) {
		if asked.Add(1); ready.Load() == 0 {
			return "", errors.New("no token yet")
		}
		return good, nil
	})
	opts := append(b.Options(), source, client.WithBackoff(20*time.Millisecond, 20*time.Millisecond))
	if _, err := client.Connect(testContext(t), b.Addr(), opts...); !client.Retryable(err) || asked.Load() != 1 {
		t.Errorf("without the option: %v, after %d attempts", err, asked.Load())
	}
	opts = append(opts, client.WithConnectRetry())
	short, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	if _, err := client.Connect(short, b.Addr(), opts...); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v", err)
	}
	if n := asked.Load(); n < 3 || n > 200 {
		t.Errorf("%d attempts in 200 ms with pauses of 10 ms", n)
	}

	asked.Store(0)
	connected := make(chan error, 1)
	go func() {
		c, err := client.Connect(testContext(t), b.Addr(), opts...)
		if err == nil {
			err = c.Close()
		}
		connected <- err
	}()
	for asked.Load() < 3 {
		time.Sleep(time.Millisecond)
	}
	ready.Store(1)
	if err := <-connected; err != nil {
		t.Error(err)
	}

	if _, err := client.Connect(testContext(t), b.Addr(), append(opts, client.WithToken(felixtest.Tenant, "no token"))...); !errors.Is(err, client.ErrAuth) {
		t.Errorf("with a bad token: %v", err)
	}
}

// TestPayloadsAreOwned: an event stays what it was when the next ones are read, and a view is one.
func TestPayloadsAreOwned(t *testing.T) {
	b := felixtest.Start(t)
	c := b.Connect(t)
	owned, views := subscribe(t, c), subscribe(t, c, client.WithViews())
	p := c.Publisher(felixtest.Namespace, felixtest.Stream)
	var kept, seen []client.Event
	for i := range 200 {
		if err := p.Publish(testContext(t), []byte(strings.Repeat(string(rune('a'+i%26)), 100))); err != nil {
			t.Fatal(err)
		}
		ev, err := owned.Next(testContext(t))
		if err != nil {
			t.Fatal(err)
		}
		kept = append(kept, ev)
		view, err := views.Next(testContext(t))
		if err != nil || string(view.Payload) != string(ev.Payload) {
			t.Fatalf("got %q, %v, want %q", view.Payload, err, ev.Payload)
		}
		seen = append(seen, view.Clone())
	}
	for i := range kept {
		if want := strings.Repeat(string(rune('a'+i%26)), 100); string(kept[i].Payload) != want || string(seen[i].Payload) != want {
			t.Fatalf("event %d: %q and %q, want %q", i, kept[i].Payload, seen[i].Payload, want)
		}
	}
}
