package broker

import (
	"context"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/felix-mq/felix/codec"
	"github.com/felix-mq/felix/internal/vfs"
	"github.com/felix-mq/felix/quicx"
)

// slowDisk is a file system whose syncs wait from hold on, until release.
type slowDisk struct {
	held atomic.Bool
	gate chan struct{}
	once sync.Once
}

// startSlow starts a broker with durable streams on a slow disk.
func startSlow(t *testing.T, change func(*Config)) (*Dev, *slowDisk) {
	t.Helper()
	disk := &slowDisk{gate: make(chan struct{})}
	d := startDev(t, func(cfg *Config) {
		cfg.Storage.Dir, cfg.Storage.Headroom = "data", 0
		cfg.Storage.FS = vfs.Faulty{FS: &vfs.Mem{}, Before: func(op vfs.Op, _ string) error {
			if op == vfs.OpSync && disk.held.Load() {
				<-disk.gate
			}
			return nil
		}}
		change(cfg)
	})
	t.Cleanup(disk.release)
	return d, disk
}

func (s *slowDisk) release() {
	s.once.Do(func() {
		s.held.Store(false)
		close(s.gate)
	})
}

// until waits for a condition.
func until(t *testing.T, what string, f func() bool) {
	t.Helper()
	for began := time.Now(); !f(); time.Sleep(time.Millisecond) {
		if time.Since(began) > patience {
			t.Fatal("not in time: ", what)
		}
	}
}

// putValue puts a value of n bytes into a cache, and returns a request for it.
func putValue(t *testing.T, d *Dev, n int) (get []byte) {
	t.Helper()
	fr := dialDev(t, d, quicx.Config{})(authFrame(d), codec.AppendCachePut(nil, d.Tenant, "default", "primary", "key", make([]byte, n), 1, true, 0, false))
	for range 2 {
		if _, err := fr.Next(); err != nil {
			t.Fatal(err)
		}
	}
	return codec.AppendCacheGet(nil, d.Tenant, "default", "primary", "key", 2, true)
}

// openStream opens a control stream that has begun with an auth, which has been answered.
func openStream(t *testing.T, d *Dev, auth []byte) (*quicx.Conn, *quicx.Stream) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	c, err := quicx.Dial(ctx, d.Addr().String(), d.ClientTLS(), quicx.Config{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close(0, "") })
	s, err := c.OpenStream(ctx)
	if err != nil {
		t.Fatal(err)
	}
	send(t, s, auth)
	_ = s.Recv().SetReadDeadline(time.Now().Add(patience))
	fr := quicx.NewFrameReader(s.Recv(), 0)
	defer fr.Close()
	wantAuthOK(t, fr)
	return c, s
}

func send(t *testing.T, s *quicx.Stream, frames ...[]byte) {
	t.Helper()
	if _, err := s.Send().Write(slices.Concat(frames...)); err != nil {
		t.Fatal(err)
	}
}

func durablePublish(d *Dev) []byte {
	return codec.AppendPublishBatchAcked(nil, 1, codec.AckPerBatch, d.Tenant, "default", "demo", [][]byte{[]byte("x")})
}

// TestOwedHoldsNoTurn asks for a value that takes a turn to be encoded, whose reply has to wait for a durable publish:
// others have the turn meanwhile.
func TestOwedHoldsNoTurn(t *testing.T) {
	d, disk := startSlow(t, func(cfg *Config) { cfg.InFlightRequests = 1 })
	get := putValue(t, d, heavyValue)
	_, s := openStream(t, d, authFrame(d))
	waits := d.metrics.inFlightWaits.Load()
	disk.held.Store(true)
	send(t, s, durablePublish(d), get)
	until(t, "the reply waits", func() bool { return d.metrics.inFlightWaits.Load() > waits })
	d.heavy.mu.Lock()
	defer d.heavy.mu.Unlock()
	if want := max(runtime.GOMAXPROCS(0)/2, 1); d.heavy.free != want {
		t.Errorf("%d turns are free while a reply waits, want %d", d.heavy.free, want)
	}
}

// TestOwedGivesItsChargeBack ends a connection on which a value is owed after a durable publish: nothing stays charged.
func TestOwedGivesItsChargeBack(t *testing.T) {
	d, disk := startSlow(t, func(*Config) {})
	get := putValue(t, d, heavyValue)
	disk.held.Store(true)
	client, s := openStream(t, d, authFrame(d))
	send(t, s, durablePublish(d), get)
	reads := d.tenants.get(d.Tenant).shares[kindReads]
	until(t, "the value is charged", func() bool { return reads.Used() > heavyValue })
	for _, c := range d.open() {
		_ = c.qc.Close(0, "")
	}
	<-client.Context().Done()
	disk.release()
	until(t, "the connections end", func() bool { return len(d.open()) == 0 })
	if n := reads.Used(); n != 0 {
		t.Errorf("%d bytes stay charged", n)
	}
}

// TestOwedIsChargedUntilItIsRead has replies owed to a peer that does not read: they are charged as long as that lasts.
func TestOwedIsChargedUntilItIsRead(t *testing.T) {
	d, disk := startSlow(t, func(*Config) {})
	const size = quicx.DefaultStreamWindow * 2
	get := putValue(t, d, size)
	disk.held.Store(true)
	_, s := openStream(t, d, authFrame(d))
	send(t, s, durablePublish(d), get)
	reads := d.tenants.get(d.Tenant).shares[kindReads]
	until(t, "the value is charged", func() bool { return reads.Used() > size })
	writing := func() bool {
		for _, c := range d.open() {
			c.mu.Lock()
			for s := range c.readers {
				if s.writing.Load() {
					c.mu.Unlock()
					return true
				}
			}
			c.mu.Unlock()
		}
		return false
	}
	disk.release()
	until(t, "the replies are written", writing)
	until(t, "all of them are", func() bool { return d.metrics.publishedEvents.Load() == 1 })
	if n := reads.Used(); n < size {
		t.Errorf("%d bytes are charged for a reply of more than %d", n, size)
	}
}

// TestFenceWaitsForNoDisk gives a connection up that waits for a slow disk with as many publishes as it may have: the
// next one can be used at once.
func TestFenceWaitsForNoDisk(t *testing.T) {
	d, disk := startSlow(t, func(cfg *Config) { cfg.InFlightRequests = 1 })
	_, s := openStream(t, d, fencedAuth(d, "k", 1))
	waits := d.metrics.inFlightWaits.Load()
	disk.held.Store(true)
	send(t, s, durablePublish(d), durablePublish(d))
	until(t, "a publish waits", func() bool { return d.metrics.inFlightWaits.Load() > waits })
	openStream(t, d, fencedAuth(d, "k", 2))
}
