package felixtest

import (
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/felix-mq/felix/broker"
	"github.com/felix-mq/felix/internal/vfs"
)

// Disk is a data directory in memory that can fail as a disk does. The streams of a broker that uses it are durable:
//
//	disk := felixtest.NewDisk()
//	b := felixtest.Start(t, disk.Use)
//	...
//	b.Crash(t) // loses what was not synced
//
// One broker uses it at a time. Its methods may be called from many goroutines, at any time.
type Disk struct {
	delay atomic.Int64

	mu  sync.Mutex
	mem *vfs.Mem
}

// NewDisk returns a disk with nothing on it, of endless space and without delay.
func NewDisk() *Disk { return &Disk{mem: &vfs.Mem{}} }

// diskFS stands in a configuration for what the next broker gets.
type diskFS struct {
	vfs.FS
	d *Disk
}

// Use makes a broker use the disk; it is for [Start] and [New].
func (d *Disk) Use(c *broker.Config) { c.Storage.Dir, c.Storage.FS = "data", diskFS{d: d} }

// Full makes the disk full, or gives it space again. A broker looks at it once a second and after some MiB that it has
// written. From then on publishes to durable streams fail with [client.ErrOverloaded], until it
// has seen that there is space. Subscribers read on.
func (d *Disk) Full(on bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if on {
		d.mem.SetFree(1)
	} else {
		d.mem.SetFree(0) // which is without bound
	}
}

// Slow makes each sync of a file take that much longer, from now on. With 0 the disk is as fast as memory.
func (d *Disk) Slow(by time.Duration) { d.delay.Store(int64(by)) }

// fs returns the disk as a broker uses it until the next crash.
func (d *Disk) fs() vfs.FS {
	d.mu.Lock()
	defer d.mu.Unlock()
	return vfs.Faulty{FS: d.mem, Before: func(op vfs.Op, _ string) error {
		if by := time.Duration(d.delay.Load()); op == vfs.OpSync && by > 0 {
			time.Sleep(by) //nolint:forbidigo // that is what it is asked for
		}
		return nil
	}}
}

// crash forgets what was not synced. All that uses the disk gets errors from then on.
func (d *Disk) crash() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.mem = d.mem.Crash(vfs.KeepNone, rand.New(rand.NewPCG(0, 0))) // of which none is cast
}

// Crash makes the machine of the broker lose its power, and starts another broker at the same address on the same
// [Disk], which the broker has to use. Everything that was not synced is lost: events of streams with the class os or
// memory that were acknowledged just before, and events whose publish was not answered. Events of the class device that
// were acknowledged, or delivered, are there.
func (b *Broker) Crash(tb testing.TB) {
	tb.Helper()
	disk, ok := b.cfg.Storage.FS.(diskFS)
	if !ok {
		tb.Fatal("felixtest: the broker does not use a Disk")
	}
	b.relay.Silence(true)
	disk.d.crash()
	b.Restart(tb)
}
