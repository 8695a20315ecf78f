package fanout

import (
	"encoding/binary"
	"sync"
	"sync/atomic"

	"github.com/felix-mq/felix/internal/buf"
	"github.com/felix-mq/felix/internal/ledger"
	"github.com/felix-mq/felix/telemetry"
)

// frameOverhead is what a frame costs in addition to its bytes: the struct, and its slot in replay. It is charged, so
// that a million empty events cannot hide from a budget of bytes.
const frameOverhead = 128

// Frame is one encoded event frame, shared by all subscriptions that it is offered to. It is counted: each holder has
// a reference ([Frame.Retain], [Frame.Release]), and the last release frees the chunk its bytes lie in. The bytes are
// read-only from the moment the frame is published.
type Frame struct {
	refs  atomic.Int32
	wire  []byte
	first uint64 // sequence number of the first event, set under the topic's turn
	count int
	at    int // where in wire the sequence number is written, or 0

	chunk  *buf.Chunk
	owner  *ledger.Share // who was charged, or nil
	charge int64

	// Another form of the same events, which lives as long as somebody holds it.
	deriving    sync.Mutex // guards derived and underivable
	derived     *Frame     // without a reference
	underivable bool
	origin      *Frame // of a derived frame, which holds a reference to it

	offered telemetry.Time // when, if its time in queues is observed
}

var framePool = sync.Pool{New: func() any { return new(Frame) }}

// NewFrame returns a frame of count events whose encoded form is wire, a slice of chunk's bytes. The frame takes a
// reference of its own to chunk; the caller keeps the one it has and owns the frame's first reference.
func NewFrame(chunk *buf.Chunk, wire []byte, count int) *Frame {
	chunk.Retain()
	f, _ := framePool.Get().(*Frame)
	f.refs.Store(1)
	f.chunk, f.wire, f.count = chunk, wire, count
	return f
}

// NewLogFrame is [NewFrame] for events that come from a log: first is the sequence number of the first one, which wire
// has in it already if its layout carries an offset.
func NewLogFrame(chunk *buf.Chunk, wire []byte, count int, first uint64) *Frame {
	f := NewFrame(chunk, wire, count)
	f.first = first
	return f
}

// NumberAt makes the topic write the sequence number of the first event into the encoded frame, as 8 bytes, big-endian,
// at this position, which is not 0. It is for frames whose layout carries an offset, and called before the frame is
// published.
func (f *Frame) NumberAt(at int) { f.at = at }

// number gives f its place, under the topic's turn and before anybody else sees it.
func (f *Frame) number(first uint64) {
	f.first = first
	if f.at > 0 {
		binary.BigEndian.PutUint64(f.wire[f.at:], first)
	}
}

// Bytes returns the encoded frame, header and all. It must not be written to, and lives as long as the reference.
func (f *Frame) Bytes() []byte { return f.wire }

// First returns the sequence number of the frame's first event.
func (f *Frame) First() uint64 { return f.first }

// Count returns the number of events in the frame.
func (f *Frame) Count() int { return f.count }

// end returns the sequence number that follows the frame's last event.
func (f *Frame) end() uint64 { return f.first + uint64(f.count) }

// Derive returns another form of the frame, which has the same events, with a reference for the caller. While somebody
// holds that form all callers get the same one; with its last reference it is gone. size is what it takes in bytes, and
// is charged to the owner of f before form is called to make it. form returns a frame with a reference, which is taken
// over, or nil if there is no such form.
//
// Derive returns an error of package ledger if there is no memory for the form, and nil and no error if there is no
// form. It may wait for another caller that makes the form at that moment.
func (f *Frame) Derive(size int, form func() *Frame) (*Frame, error) {
	f.deriving.Lock()
	defer f.deriving.Unlock()
	if f.underivable {
		return nil, nil
	}
	if d := f.derived; d != nil && d.tryRetain() {
		return d, nil
	}
	charge := int64(size + frameOverhead)
	if f.owner != nil {
		if err := f.owner.Charge(charge); err != nil {
			return nil, err
		}
	}
	d := form()
	if d == nil {
		f.underivable = true
		if f.owner != nil {
			f.owner.Release(charge)
		}
		return nil, nil
	}
	d.first = f.first
	d.owner, d.charge = f.owner, charge
	f.Retain()
	d.origin = f
	f.derived = d
	return d, nil
}

// Retain adds a reference. The caller must hold one.
func (f *Frame) Retain() {
	if f.refs.Add(1) <= 1 {
		panic("fanout: retain of a freed frame")
	}
}

// tryRetain adds a reference unless the last one has been given back.
func (f *Frame) tryRetain() bool {
	for {
		n := f.refs.Load()
		if n == 0 {
			return false
		}
		if f.refs.CompareAndSwap(n, n+1) {
			return true
		}
	}
}

// Release gives a reference back.
func (f *Frame) Release() {
	n := f.refs.Add(-1)
	if n > 0 {
		return
	}
	if n < 0 {
		panic("fanout: release of a freed frame")
	}
	origin := f.origin
	if origin != nil {
		origin.deriving.Lock()
		if origin.derived == f {
			origin.derived = nil
		}
		origin.deriving.Unlock()
	}
	f.chunk.Release()
	if f.owner != nil {
		f.owner.Release(f.charge)
	}
	f.chunk, f.wire, f.owner, f.origin = nil, nil, nil, nil
	f.charge, f.first, f.count, f.at, f.underivable = 0, 0, 0, 0, false
	f.offered = telemetry.Time{}
	framePool.Put(f)
	if origin != nil {
		origin.Release()
	}
}

// cost is what the frame takes of a queue's bound.
func (f *Frame) cost() int { return len(f.wire) + frameOverhead }
