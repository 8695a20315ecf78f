package broker

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/felix-mq/felix/codec"
	"github.com/felix-mq/felix/quicx"
)

// patience bounds everything that a test waits for; it only ever passes when something is broken.
const patience = time.Minute

// startDev serves a development broker until the test ends.
func startDev(tb testing.TB, change func(*Config)) *Dev {
	tb.Helper()
	cfg := DefaultConfig()
	cfg.Bind = "127.0.0.1:0"
	if change != nil {
		change(&cfg)
	}
	d, err := NewDev(cfg, DevOptions{})
	if err != nil {
		tb.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- d.Serve(context.Background()) }()
	tb.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		if err := d.Shutdown(ctx); err != nil {
			tb.Errorf("shutdown: %v", err)
		}
		if err := <-served; !errors.Is(err, ErrShutdown) {
			tb.Errorf("serve ended with %v", err)
		}
	})
	return d
}

// dialDev connects to a broker and opens streams that begin with what is given.
func dialDev(tb testing.TB, d *Dev, cfg quicx.Config) (open func(...[]byte) *quicx.FrameReader) {
	tb.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	c, err := quicx.Dial(ctx, d.Addr().String(), d.ClientTLS(), cfg)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _ = c.Close(0, "") })
	return func(frames ...[]byte) *quicx.FrameReader {
		tb.Helper()
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		s, err := c.OpenStream(ctx)
		if err == nil {
			_, err = s.Send().Write(slices.Concat(frames...))
		}
		if err != nil {
			tb.Fatal(err)
		}
		_ = s.Recv().SetReadDeadline(time.Now().Add(patience))
		fr := quicx.NewFrameReader(s.Recv(), 0)
		tb.Cleanup(fr.Close)
		return fr
	}
}

func authFrame(d *Dev) []byte {
	return codec.AppendAuth(nil, d.Tenant, d.Token, codec.KnownFlags, true, codec.KnownExtensions())
}

// lockTaker is a log handler that needs the locks that nobody may hold who logs.
type lockTaker struct {
	slog.Handler
	b     atomic.Pointer[Broker]
	lines atomic.Int64
}

func (l *lockTaker) Enabled(context.Context, slog.Level) bool { return true }

func (l *lockTaker) Handle(context.Context, slog.Record) error {
	if b := l.b.Load(); b != nil {
		for _, c := range b.open() {
			c.mu.Lock()
			c.mu.Unlock() //nolint:staticcheck // to be able to lock it is the test
		}
		l.lines.Add(1)
	}
	return nil
}

// TestLogsWithoutLocks makes a broker log for limits of connections, streams and tokens: its lines are written by
// nobody who holds the broker's or a connection's lock. One that is would never end.
func TestLogsWithoutLocks(t *testing.T) {
	handler := &lockTaker{}
	var ahead atomic.Int64
	d := startDev(t, func(cfg *Config) {
		cfg.Logger = slog.New(handler)
		cfg.AuthTimeout, cfg.FrameTimeout = time.Second, time.Second
		cfg.MaxUnauthenticatedConns, cfg.InFlightRequests = 4, 1
		cfg.Now = func() time.Time { return time.Now().Add(time.Duration(ahead.Load())) }
	})
	handler.b.Store(d.Broker)
	known := dialDev(t, d, quicx.Config{})
	stream := known(authFrame(d))
	if _, err := stream.Next(); err != nil {
		t.Fatal(err)
	}
	for _, first := range [][]byte{{'F'}, nil, codec.AppendAuth(nil, "t1", "no token", 0, false, 0), nil, nil, nil, nil} {
		open := dialDev(t, d, quicx.Config{})
		if first != nil {
			open(first)
		}
	}
	unfinished := known(authFrame(d), []byte{'F'})
	for _, err := unfinished.Next(); err == nil; _, err = unfinished.Next() { // until the frame has taken too long
	}
	ahead.Store(int64(48 * time.Hour))
	for _, err := stream.Next(); err == nil; _, err = stream.Next() { // until the token has expired
	}
	if handler.lines.Load() < 4 {
		t.Errorf("%d lines", handler.lines.Load())
	}
}

// TestScrapeTakesNoConnectionLock gathers all metrics while the lock of a connection with subscriptions is held.
func TestScrapeTakesNoConnectionLock(t *testing.T) {
	d := startDev(t, nil)
	fr := dialDev(t, d, quicx.Config{})(authFrame(d), codec.AppendSubscribe(nil, d.Tenant, d.Namespace, d.Streams[0], codec.Start{}, 0, false))
	for range 2 {
		if _, err := fr.Next(); err != nil {
			t.Fatal(err)
		}
	}
	conns := d.open()
	for _, c := range conns {
		c.mu.Lock()
		defer c.mu.Unlock()
	}
	gathered := make(chan error, 1)
	go func() {
		_, err := d.Registry().Gather()
		gathered <- err
	}()
	select {
	case err := <-gathered:
		if err != nil || len(conns) != 1 {
			t.Errorf("%d connections, %v", len(conns), err)
		}
	case <-time.After(patience):
		t.Error("a scrape waits for a connection's lock")
	}
}

// BenchmarkScaleScrape gathers all metrics of a broker with 10 000 subscriptions of a stream that is published to all
// the time.
func BenchmarkScaleScrape(b *testing.B) {
	const subscriptions, perConn = 10_000, 2500
	d := startDev(b, func(cfg *Config) { cfg.MaxStreamsPerConn = perConn + 10 })
	subscribe := codec.AppendSubscribe(nil, d.Tenant, d.Namespace, d.Streams[0], codec.Start{}, 0, false)
	for range subscriptions / perConn {
		open := dialDev(b, d, quicx.Config{MaxStreams: perConn + 10})
		for range perConn {
			fr := open(authFrame(d), subscribe)
			for range 2 {
				if _, err := fr.Next(); err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
					b.Fatal(err)
				}
			}
			fr.Close()
		}
	}
	publisher := dialDev(b, d, quicx.Config{})
	stop := make(chan struct{})
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		for id := uint64(0); ; id++ {
			select {
			case <-stop:
				return
			default:
			}
			fr := publisher(authFrame(d), codec.AppendPublish(nil, d.Tenant, d.Namespace, d.Streams[0], make([]byte, 100), codec.AckPerMessage, id, true))
			_, _ = fr.Next()
			_, _ = fr.Next()
		}
	}()
	for b.Loop() {
		if _, err := d.Registry().Gather(); err != nil {
			b.Fatal(err)
		}
	}
	close(stop)
	<-stopped
}
