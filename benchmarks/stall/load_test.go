package main

import (
	"context"
	"errors"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/felix-mq/felix/broker"
	"github.com/felix-mq/felix/client"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// TestLoadAccounts: every event that was published is delivered to every reader, or counted as lost.
func TestLoadAccounts(t *testing.T) {
	cfg := broker.DefaultConfig()
	cfg.Bind = "127.0.0.1:0"
	streams := []string{"a", "b", "c"}
	d, err := broker.NewDev(cfg, broker.DevOptions{Streams: streams})
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- d.Serve(context.Background()) }()
	defer func() {
		if err := d.Shutdown(context.Background()); err != nil {
			t.Error(err)
		}
		if err := <-served; !errors.Is(err, broker.ErrShutdown) {
			t.Error(err)
		}
	}()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	c, err := client.Connect(ctx, d.Addr().String(), client.WithTLS(d.ClientTLS()), client.WithToken(d.Tenant, d.Token))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	readers, unsubscribe, err := subscribe(ctx, c, d.Namespace, streams, 2)
	defer unsubscribe()
	if err != nil {
		t.Fatal(err)
	}
	l := &load{namespace: d.Namespace, streams: streams, batch: 4, rate: 100, duration: 100 * time.Millisecond}
	f, err := l.run(ctx, c, readers)
	if err != nil {
		t.Fatal(err)
	}
	if published := int64(110 * 4); f.delivered+f.lost != 2*published || f.lost != 0 {
		t.Errorf("%d delivered and %d lost of %d, want all delivered", f.delivered, f.lost, 2*published)
	}
	if f.p50 <= 0 || f.p99 < f.p50 || f.longest <= 0 {
		t.Errorf("times %v, %v, %v are not measured", f.p50, f.p99, f.longest)
	}
}

func TestMedian(t *testing.T) {
	rows := []row{{p99: 9}, {p99: 1}, {p99: 5}}
	if got := median(rows, func(r row) float64 { return r.p99 }); got != 5 {
		t.Errorf("median %v, want 5", got)
	}
}
