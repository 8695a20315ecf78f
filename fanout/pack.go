package fanout

import (
	"github.com/felix-mq/felix/internal/buf"
	"github.com/felix-mq/felix/internal/ledger"
)

// segmentBytes is the size of the chunks that small frames are packed into. A topic's first ones are smaller, no larger
// than what its replay keeps already: 100 000 quiet topics must not hold 100 000 full segments.
const segmentBytes = 64 << 10

// minSegment is the size of the first segment of a topic.
const minSegment = 1 << 10

// packer decides who holds the bytes of an event from its publish on, and has them charged to the topic's tenant. A
// frame that fills at least half of the chunk it arrived in is kept as it is, and the whole chunk is charged. Any other
// frame is copied once, small ones packed together, and that copy is what replay and all queues hold. So nobody keeps
// memory that is not charged, and nothing is held twice. It is guarded by the topic's turn.
type packer struct {
	owner   *ledger.Share
	segment *buf.Chunk // where small copies are packed; nil until the first. Its owner is charged until the last copy is gone
	used    int        // bytes of it
}

// keep returns the frame that is to be kept for f, with a reference for the caller, or an error of package ledger if
// there is no memory for it. held is what the topic's replay keeps, in bytes. f itself may be the result.
func (p *packer) keep(f *Frame, held int) (*Frame, error) {
	n := len(f.wire)
	if n >= f.chunk.Cap()/2 {
		charge, err := p.charge(f.chunk.Cap())
		if err != nil {
			return nil, err
		}
		f.owner, f.charge = p.owner, charge
		f.Retain()
		return f, nil
	}
	if p.segment != nil && p.used+n <= p.segment.Cap() {
		charge, err := p.charge(0)
		if err != nil {
			return nil, err
		}
		k := f.copyTo(p.segment, p.used)
		p.used += n
		k.owner, k.charge = p.owner, charge
		return k, nil
	}
	if size := buf.CapOf(min(max(held, minSegment), segmentBytes)); n <= size/4 {
		if p.owner.Charge(int64(size+frameOverhead)) == nil {
			p.close()
			p.segment, p.used = buf.Get(size), n
			p.segment.SetOwner(p.owner)
			k := f.copyTo(p.segment, 0)
			k.owner, k.charge = p.owner, frameOverhead
			return k, nil
		} // there may be memory for this frame alone
	}
	size := buf.CapOf(n)
	charge, err := p.charge(size)
	if err != nil {
		return nil, err
	}
	chunk := buf.Get(size)
	defer chunk.Release()
	k := f.copyTo(chunk, 0)
	k.owner, k.charge = p.owner, charge
	return k, nil
}

// size returns what f has to be charged with at least, which is also what replay will count for it at most.
func (p *packer) size(f *Frame) int {
	n := len(f.wire)
	if n >= f.chunk.Cap()/2 {
		return f.chunk.Cap() + frameOverhead
	}
	return buf.CapOf(n) + frameOverhead
}

// charge charges the owner for a frame and n bytes of memory, and returns what it has charged. A frame that is larger
// than all that the owner can have passes when nearly nothing else is held, and takes what is left.
func (p *packer) charge(n int) (int64, error) {
	charge := int64(n + frameOverhead)
	err := p.owner.Charge(charge)
	if err != nil {
		if reach := p.owner.Reach(); charge > reach {
			if left := reach - p.owner.Used(); left >= reach/8*7 {
				charge = left
				err = p.owner.Charge(charge)
			}
		}
	}
	return charge, err
}

// close lets go of the segment. Frames in it stay.
func (p *packer) close() {
	if p.segment != nil {
		p.segment.Release()
	}
	p.segment, p.used = nil, 0
}

// copyTo returns a new frame with the same events whose bytes are a copy in chunk at position at.
func (f *Frame) copyTo(chunk *buf.Chunk, at int) *Frame {
	n := copy(chunk.Bytes()[at:], f.wire)
	c := NewFrame(chunk, chunk.Bytes()[at:at+n:at+n], f.count)
	c.at = f.at
	return c
}
