package broker

import (
	"github.com/felix-mq/felix/codec"
	"github.com/felix-mq/felix/fanout"
	"github.com/felix-mq/felix/internal/buf"
)

// Frames are made once, in the form that carries offsets ([codec.LayoutSharedOffsets]), because that is what clients of
// ours ask for. Towards others the same item list goes out behind a shorter head.

// numberAt is where such a frame has its offset, listAt where its item list begins.
const (
	numberAt = codec.HeaderLen
	listAt   = codec.HeaderLen + 8
)

// legacyMaxItems is how many events of one frame the reference client buffers; it drops the others (wire.md, section 6,
// rule 7).
const legacyMaxItems = 256

// writeBatch writes what the writer has taken, in order: frames that go out as they are in one write together, those
// that have to be cut part by part. It returns how many events and bytes of frames went out.
func (s *subscription) writeBatch() (events, bytes uint64, err error) {
	s.frames, s.heads = s.frames[:0], s.heads[:0]
	for _, d := range s.batch {
		if d.Reason != fanout.GapNone && s.gaps {
			s.head(codec.AppendGap(s.heads, codec.Gap{Reason: gapReasons[d.Reason], Lost: d.Gap, Next: d.Next}))
		}
		if d.Frame == nil {
			continue
		}
		wire, count := d.Frame.Bytes(), d.Frame.Count()
		events += uint64(count - d.Skip)
		bytes += uint64(len(wire))
		switch {
		case d.Skip > 0 || s.tooLarge(wire, count):
			if err := s.writeFrames(); err != nil {
				return 0, 0, err
			}
			if err := s.writeParts(d); err != nil {
				return 0, 0, err
			}
		case s.offsets:
			s.frames = append(s.frames, wire)
		default:
			s.head(codec.AppendEventHead(s.heads, codec.LayoutShared, 0, 0, len(wire)-listAt))
			s.frames = append(s.frames, wire[listAt:])
		}
	}
	return events, bytes, s.writeFrames()
}

var gapReasons = [...]codec.GapReason{
	fanout.GapNone:      codec.GapUnknown,
	fanout.GapQueueFull: codec.GapQueueFull,
	fanout.GapReclaimed: codec.GapReclaimed,
	fanout.GapExpired:   codec.GapExpired,
	fanout.GapEpoch:     codec.GapEpoch,
}

// head queues what was appended to s.heads. Earlier heads stay where they are even if the array moved.
func (s *subscription) head(heads []byte) {
	s.frames = append(s.frames, heads[len(s.heads):])
	s.heads = heads
}

func (s *subscription) writeFrames() error {
	err := s.w.WriteBatch(s.frames)
	clear(s.frames)
	s.frames, s.heads = s.frames[:0], s.heads[:0]
	return err
}

// tooLarge reports whether a frame has to be cut for this subscriber.
func (s *subscription) tooLarge(wire []byte, count int) bool {
	return s.maxItems > 0 && count > s.maxItems ||
		s.maxBytes > 0 && count > 1 && len(wire)-listAt-4-4*count > s.maxBytes
}

// tryBatch writes what was taken if it is one small frame and the stream takes it at once.
func (s *subscription) tryBatch(limit int) (events, bytes uint64, ok bool) {
	if len(s.batch) != 1 {
		return 0, 0, false
	}
	d := s.batch[0]
	if d.Frame == nil || d.Skip > 0 || d.Reason != fanout.GapNone {
		return 0, 0, false
	}
	wire, count := d.Frame.Bytes(), d.Frame.Count()
	if len(wire) > limit || s.tooLarge(wire, count) {
		return 0, 0, false
	}
	if !s.offsets {
		s.heads = codec.AppendEventHead(s.heads[:0], codec.LayoutShared, 0, 0, len(wire)-listAt)
		s.heads = append(s.heads, wire[listAt:]...)
		wire = s.heads
	}
	if s.out.TryWrite(wire) != nil {
		return 0, 0, false // whatever is wrong shows again when a writer writes
	}
	return uint64(count), uint64(len(wire)), true
}

// writeParts cuts a frame: it leaves out the events before the subscription's start and splits the rest at the bounds
// on items and bytes (0 means none); a single larger event goes alone. Only this needs a copy (wire.md, section 6,
// rule 7).
func (s *subscription) writeParts(d fanout.Delivery) error {
	items, _, err := codec.ParseItems(d.Frame.Bytes()[listAt:])
	if err != nil {
		panic("broker: retained event frame does not parse: " + err.Error())
	}
	layout := codec.LayoutShared
	if s.offsets {
		layout = codec.LayoutSharedOffsets
	}
	region := items.Raw()[4:]
	base := d.Frame.First()
	start, at, count, size, index := 0, 0, 0, 0, 0
	flush := func() error {
		if count == 0 {
			return nil
		}
		part := buf.Get(codec.EventHeadLen + 4 + at - start)
		defer part.Release()
		offset := base + uint64(index-count)
		_, err := s.out.Write(codec.AppendEventPart(part.Bytes()[:0], layout, 0, offset, count, region[start:at]))
		start, count, size = at, 0, 0
		return err
	}
	for _, item := range items.All() {
		if index < d.Skip {
			index++
			at += 4 + len(item)
			start = at
			continue
		}
		if count > 0 && (count == s.maxItems || s.maxBytes > 0 && size+len(item) > s.maxBytes) {
			if err := flush(); err != nil {
				return err
			}
		}
		index++
		at += 4 + len(item)
		count++
		size += len(item)
	}
	return flush()
}
