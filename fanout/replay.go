package fanout

import "sort"

// replay keeps the most recent frames of a topic, up to a bound in bytes, oldest first and without a hole. It holds
// references to what the topic's packer made. All of it is guarded by the topic's turn.
type replay struct {
	maxBytes int
	bytes    int
	frames   []kept // a deque: frames[head:] are live
	head     int
	few      [2]kept // where frames begins: many topics have no more at a time
}

type kept struct {
	frame *Frame
	bytes int
}

// keptBytes is what replay counts for a frame: its chunk if it fills half of it, else its bytes.
func keptBytes(f *Frame) int {
	if len(f.wire) >= f.chunk.Cap()/2 {
		return f.chunk.Cap() + frameOverhead
	}
	return f.cost()
}

// wants reports whether add would keep a frame of that cost.
func (r *replay) wants(cost int) bool { return cost <= r.maxBytes }

// add keeps f, with a reference of its own, and drops the oldest frames over the bound.
func (r *replay) add(f *Frame) {
	bytes := keptBytes(f)
	if !r.wants(bytes) {
		r.trim(0) // what is kept must be the end of the topic, without a hole
		return
	}
	f.Retain()
	if r.frames == nil {
		r.frames = r.few[:0]
	}
	r.frames = append(r.frames, kept{f, bytes})
	r.bytes += bytes
	r.trim(r.maxBytes)
}

// trim drops the oldest frames until at most limit bytes are kept.
func (r *replay) trim(limit int) {
	for r.bytes > limit {
		k := r.frames[r.head]
		r.frames[r.head] = kept{}
		r.head++
		r.bytes -= k.bytes
		k.frame.Release()
	}
	switch {
	case r.head == len(r.frames):
		r.frames, r.head = r.frames[:0], 0
		if limit == 0 {
			r.frames = nil
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

// oldestAfter returns what oldest will be when a frame that counts for bytes has been added.
func (r *replay) oldestAfter(bytes int, tail uint64) uint64 {
	if !r.wants(bytes) {
		return tail
	}
	over := r.bytes + bytes - r.maxBytes
	i := r.head
	for ; over > 0 && i < len(r.frames); i++ {
		over -= r.frames[i].bytes
	}
	if i == len(r.frames) {
		return tail
	}
	return r.frames[i].frame.first
}

// from returns the kept frames that hold events from seq on. The first may begin before seq. The result is valid as
// long as the turn is held.
func (r *replay) from(seq uint64) []kept {
	live := r.frames[r.head:]
	i := sort.Search(len(live), func(i int) bool { return live[i].frame.end() > seq })
	return live[i:]
}
