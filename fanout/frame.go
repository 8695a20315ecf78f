package fanout

import (
	"encoding/binary"
	"sync"
	"sync/atomic"

	"github.com/felix-mq/felix/internal/buf"
	"github.com/felix-mq/felix/telemetry"
)

// frameOverhead is what a frame costs beside its bytes: the struct, and its slots in rings and replay. It is charged
// with them, so that a million empty events cannot hide from a budget of bytes.
const frameOverhead = 128

// Frame is one encoded event frame, shared by all subscriptions that it is offered to. It is counted: whoever keeps
// it holds a reference ([Frame.Retain], [Frame.Release]), and the last release frees the chunk its bytes lie in. The
// bytes are read-only from the moment the frame is made.
type Frame struct {
	refs  atomic.Int32
	wire  []byte
	first uint64 // sequence number of the first event, set under the topic's turn
	count int
	at    int // where in wire the sequence number is written, or 0

	chunk  *buf.Chunk
	budget *budget // set when it was charged
	charge int64   // changed by its publisher before it is shared, by the sweep later

	// A copy of this frame in memory of its own size, made once when the original pins a much larger chunk.
	copied atomic.Pointer[Frame]
	// Another form of the same events, made once when the first subscription needs it.
	deriving    sync.Mutex // guards derived and underivable
	derived     *Frame
	underivable bool

	offered telemetry.Time // when, if its time in queues is observed

	settled atomic.Bool // the sweep has dealt with this frame: copied it, or charged its chunk
	pinned  bool        // the sweep has charged its chunk; written by the sweep, which holds a reference
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

// Derive returns another form of the frame, which has the same events and lives as long as the caller's reference to f.
// make is called by the first who asks, and returns a frame with a reference that is taken over, or nil if there is no
// such form; all others get the same answer. The form is charged to the budget, beyond its bound if need be: whoever
// asks is about to write it.
func (f *Frame) Derive(make func() *Frame) *Frame {
	f.deriving.Lock()
	defer f.deriving.Unlock()
	if f.derived == nil && !f.underivable {
		d := make()
		if d == nil {
			f.underivable = true
			return nil
		}
		d.first = f.first
		if f.budget != nil {
			f.budget.force(d, int64(d.chunk.Cap()+frameOverhead))
		}
		f.derived = d
	}
	return f.derived
}

// Retain adds a reference. The caller must hold one.
func (f *Frame) Retain() {
	if f.refs.Add(1) <= 1 {
		panic("fanout: retain of a freed frame")
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
	if c := f.copied.Load(); c != nil {
		c.Release()
		f.copied.Store(nil)
	}
	if f.derived != nil {
		f.derived.Release()
	}
	f.derived, f.underivable = nil, false
	if f.pinned && f.chunk.Unpin() {
		f.charge += int64(f.chunk.Cap())
	}
	if f.budget != nil {
		f.budget.release(f.charge)
	}
	f.chunk.Release()
	f.chunk, f.wire, f.budget, f.charge, f.first, f.count, f.at, f.pinned = nil, nil, nil, 0, 0, 0, 0, false
	f.offered = telemetry.Time{}
	f.settled.Store(false)
	framePool.Put(f)
}

// cost is what the frame is charged for while anybody holds it, and what it takes of a ring's bound.
func (f *Frame) cost() int { return len(f.wire) + frameOverhead }

// copyTo returns a new frame with the same events whose bytes are a copy in chunk at position at.
func (f *Frame) copyTo(chunk *buf.Chunk, at int) *Frame {
	n := copy(chunk.Bytes()[at:], f.wire)
	c := NewFrame(chunk, chunk.Bytes()[at:at+n:at+n], f.count)
	c.first = f.first
	return c
}

// settle makes a frame that stays queued behind a blocked writer stop pinning memory that nobody accounts for. A
// frame smaller than 1/8 of its chunk is copied out once, and the one copy serves all rings; for a larger one, or where
// the copy would take as much as it frees, the whole chunk is charged instead of the frame's share. It consumes the reference to f and returns the
// one to keep instead. Only the sweep may call it.
func (f *Frame) settle(b *budget) *Frame {
	if c := f.copied.Load(); c != nil {
		c.Retain()
		f.Release()
		return c
	}
	if !f.settled.CompareAndSwap(false, true) {
		return f
	}
	if max(len(f.wire), minSegment) >= f.chunk.Cap()/8 {
		if f.pinned = true; f.chunk.Pin() {
			b.used.Add(int64(f.chunk.Cap()))
		}
		if share := f.charge - frameOverhead; share > 0 { // the chunk's charge covers it now
			f.charge = frameOverhead
			b.release(share)
		}
		return f
	}
	own := buf.Get(len(f.wire))
	defer own.Release()
	c := f.copyTo(own, 0)
	c.settled.Store(true)
	b.force(c, int64(own.Cap()+frameOverhead))
	f.copied.Store(c) // f's own reference to its copy
	c.Retain()
	f.Release()
	return c
}
