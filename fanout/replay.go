package fanout

import (
	"sync/atomic"

	"github.com/felix-mq/felix/internal/buf"
)

// segmentBytes is the size of the chunks that small frames are packed into while they are kept for replay. A topic's
// first ones are smaller, no larger than what it keeps already: 100 000 quiet topics must not pin 100 000 segments.
const segmentBytes = 64 << 10

// minSegment is the size of the first segment of a topic, and what a copy has to free for it to pay.
const minSegment = 1 << 10

// replay keeps the most recent frames of a topic, up to a bound in bytes, oldest first. A frame that fills at least
// half of its chunk is kept as it is and charged the whole chunk; any other is copied, small ones packed together,
// so that what replay pins is what it is charged. All of it is guarded by the topic's turn.
type replay struct {
	budget   *budget
	topics   *atomic.Int32 // the hub's count of topics that keep something
	maxBytes int
	bytes    int
	frames   []kept // a deque: frames[head:] are live
	head     int

	segment *buf.Chunk // where small copies are packed; nil until the first
	used    int        // bytes of it
}

type kept struct {
	frame *Frame
	bytes int
}

// add keeps f and drops the oldest frames over the bound. While the budget has no room for a copy, or publishers wait
// for it, replay gives way instead of growing.
func (r *replay) add(f *Frame) {
	if r.maxBytes <= 0 {
		return
	}
	if f.cost() > r.maxBytes || r.budget.waiting.Load() > 0 {
		r.trim(0) // what is kept must be the end of the topic, without a hole
		return
	}
	k := kept{f, f.chunk.Cap() + frameOverhead}
	if len(f.wire) >= f.chunk.Cap()/2 {
		f.Retain()
	} else {
		k = r.copyOf(f)
		if !r.budget.try(k.frame) {
			k.frame.Release()
			r.trim(0)
			return
		}
	}
	if r.bytes == 0 {
		r.topics.Add(1)
	}
	r.frames = append(r.frames, k)
	r.bytes += k.bytes
	r.trim(r.maxBytes)
}

func (r *replay) copyOf(f *Frame) kept {
	n := len(f.wire)
	if r.segment == nil || r.used+n > r.segment.Cap() {
		size := min(max(r.bytes, minSegment), segmentBytes)
		if n > size/4 {
			own := buf.Get(n)
			defer own.Release()
			return kept{f.copyTo(own, 0), own.Cap() + frameOverhead}
		}
		r.closeSegment()
		r.segment = buf.Get(size)
	}
	c := f.copyTo(r.segment, r.used)
	r.used += n
	return kept{c, c.cost()}
}

func (r *replay) closeSegment() {
	if r.segment != nil {
		r.segment.Release()
	}
	r.segment, r.used = nil, 0
}

// trim drops the oldest frames until at most limit bytes are kept.
func (r *replay) trim(limit int) {
	before := r.bytes
	for r.bytes > limit {
		k := r.frames[r.head]
		r.frames[r.head] = kept{}
		r.head++
		r.bytes -= k.bytes
		k.frame.Release()
	}
	if before > 0 && r.bytes == 0 {
		r.topics.Add(-1)
	}
	switch {
	case r.head == len(r.frames):
		r.frames, r.head = r.frames[:0], 0
		if limit == 0 {
			r.frames = nil
			r.closeSegment()
		}
	case r.head > len(r.frames)/2 && r.head >= 32:
		n := copy(r.frames, r.frames[r.head:])
		clear(r.frames[n:])
		r.frames, r.head = r.frames[:n], 0
	}
}

// oldest returns the first sequence number that can be replayed; tail if nothing is kept.
func (r *replay) oldest(tail uint64) uint64 {
	if r.head == len(r.frames) {
		return tail
	}
	return r.frames[r.head].frame.first
}

// from returns the kept frames that hold events from seq on, each with a reference for the caller. The first may
// begin before seq.
func (r *replay) from(seq uint64) []*Frame {
	live := r.frames[r.head:]
	i := 0
	for i < len(live) && live[i].frame.first+uint64(live[i].frame.count) <= seq {
		i++
	}
	if i == len(live) {
		return nil
	}
	out := make([]*Frame, 0, len(live)-i)
	for _, k := range live[i:] {
		k.frame.Retain()
		out = append(out, k.frame)
	}
	return out
}
