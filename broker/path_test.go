package broker_test

import (
	"context"
	"testing"
	"time"

	"github.com/felix-mq/felix/broker"
	"github.com/felix-mq/felix/client"
	"github.com/felix-mq/felix/internal/relay"
)

// TestPathShrinks publishes and subscribes on a path that drops all packets of more than 1300 bytes from some moment
// on. Both go on, on connections that are made again.
func TestPathShrinks(t *testing.T) {
	for _, tt := range []struct {
		name                  string
		publishes, subscribes bool // on that path
	}{
		{"publisher", true, false},
		{"subscriber", false, true},
		{"both", true, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			// The process remembers such paths, and the next test is to begin with large packets.
			t.Setenv("FELIX_MTU_BLACK_HOLE_COOLDOWN_MS", "100")
			d := start(t, func(c *broker.Config) { c.BlackHoleCooldown = 100 * time.Millisecond })
			path, err := relay.New(d.Addr().String())
			if err != nil {
				t.Fatal(err)
			}
			defer path.Close()
			via := func(shrinks bool) *client.Client {
				addr := d.Addr().String()
				if shrinks {
					addr = path.Addr()
				}
				c, err := client.Connect(t.Context(), addr, client.WithTLS(d.ClientTLS()), client.WithToken(d.Tenant, d.Token), client.FromEnv())
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { _ = c.Close() })
				return c
			}
			publisher := via(tt.publishes).Publisher("default", "demo")
			sub, err := via(tt.subscribes).Subscribe(t.Context(), "default", "demo")
			if err != nil {
				t.Fatal(err)
			}
			defer sub.Close()
			payload := make([]byte, 20_000)
			pass := func(limit time.Duration) error {
				ctx, cancel := context.WithTimeout(t.Context(), limit)
				defer cancel()
				if err := publisher.Publish(ctx, payload); err != nil {
					return err
				}
				_, err := sub.Next(ctx)
				return err
			}
			for range 200 { // so that the packet size is found
				if err := pass(within); err != nil {
					t.Fatal(err)
				}
			}
			path.Shrink(1300)
			for deadline := time.Now().Add(30 * time.Second); ; {
				err := pass(3 * time.Second)
				if err == nil {
					break
				}
				if time.Now().After(deadline) {
					t.Fatalf("nothing passes: %v", err)
				}
			}
		})
	}
}
