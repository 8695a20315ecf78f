package broker

import (
	"errors"
	"testing"

	"github.com/felix-mq/felix/fanout"
	"github.com/felix-mq/felix/internal/buf"
)

// limitedMemory is memory of which there is a limit.
type limitedMemory struct{ now, most, limit int }

var errNoMemory = errors.New("no memory")

func (c *limitedMemory) Charge(n int) error {
	if c.now+n > c.limit {
		return errNoMemory
	}
	c.now += n
	c.most = max(c.most, c.now)
	return nil
}

func (c *limitedMemory) Release(n int) { c.now -= n }

// TestReadsAreCharged reads a log: what a read needs is charged before it is taken, the buffer for the records too, and
// without enough of it the same events come later.
func TestReadsAreCharged(t *testing.T) {
	d := withStorage(t, "demo")
	const size = 50_000
	l := appendTo(t, d, "demo", make([]byte, 10), make([]byte, size), make([]byte, 10))
	log := logOf(d.lookup(fanout.Key{Tenant: d.Tenant, Namespace: d.Namespace, Stream: "demo"}))
	for _, from := range []uint64{0, 1} {
		r, err := log.Read(from)
		if err != nil {
			t.Fatal(err)
		}
		m := limitedMemory{limit: 1 << 20}
		f, err := r.Next(1, l.Tail(), &m)
		if err != nil {
			t.Fatal(err)
		}
		if want := buf.CapOf(len(f.Bytes())); m.now != want || f.First() != from {
			t.Errorf("%d bytes are charged for a frame at %d, want %d", m.now, f.First(), want)
		}
		f.Release()
		need := m.most
		records := []int{10, size}[from]
		if least := records + buf.CapOf(records); need < least {
			t.Errorf("a read at %d takes %d bytes, want at least %d", from, need, least)
		}
		if r, err = log.Read(from); err != nil {
			t.Fatal(err)
		}
		m = limitedMemory{limit: records}
		if _, err := r.Next(1, l.Tail(), &m); !errors.Is(err, errNoMemory) || m.now != 0 {
			t.Errorf("with too little: %v, %d bytes charged", err, m.now)
		}
		m.limit = 1 << 20
		if f, err := r.Next(1, l.Tail(), &m); err != nil || f.First() != from {
			t.Errorf("after that: %v", err)
		} else {
			f.Release()
		}
	}
}
