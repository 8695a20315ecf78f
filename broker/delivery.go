package broker

import (
	"github.com/felix-mq/felix/codec"
	"github.com/felix-mq/felix/fanout"
	"github.com/felix-mq/felix/internal/buf"
)

// writeBatch writes what the writer has taken, in order: frames that go out as they are in one write together, those
// that have to be cut part by part. It returns how many events and bytes of frames went out.
func (s *subscription) writeBatch() (events, bytes uint64, err error) {
	cfg := &s.c.b.cfg
	s.frames = s.frames[:0]
	for _, d := range s.batch {
		wire, count := d.Frame.Bytes(), d.Frame.Count()
		events += uint64(count - d.Skip)
		bytes += uint64(len(wire))
		if d.Skip == 0 && count <= cfg.EventMaxItems && (cfg.EventMaxBytes == 0 || itemBytes(wire, count) <= cfg.EventMaxBytes) {
			s.frames = append(s.frames, wire)
			continue
		}
		if err := s.writeFrames(); err != nil {
			return 0, 0, err
		}
		if err := s.writeParts(d, cfg.EventMaxItems, cfg.EventMaxBytes); err != nil {
			return 0, 0, err
		}
	}
	return events, bytes, s.writeFrames()
}

func (s *subscription) writeFrames() error {
	err := s.w.WriteBatch(s.frames)
	clear(s.frames)
	s.frames = s.frames[:0]
	return err
}

// itemBytes is the sum of the item lengths of a shared event frame.
func itemBytes(wire []byte, count int) int {
	return len(wire) - codec.HeaderLen - 4 - 4*count
}

// writeParts cuts a frame: it leaves out the events before the subscription's start and splits the rest at the bounds
// on items and bytes (0 means none); a single larger event goes alone. Only this needs a copy (wire.md, section 6,
// rule 7).
func (s *subscription) writeParts(d fanout.Delivery, maxItems, maxBytes int) error {
	items, _, err := codec.ParseItems(d.Frame.Bytes()[codec.HeaderLen:])
	if err != nil {
		panic("broker: retained event frame does not parse: " + err.Error())
	}
	region := items.Raw()[4:]
	start, at, count, size, index := 0, 0, 0, 0, 0
	flush := func() error {
		if count == 0 {
			return nil
		}
		part := buf.Get(codec.HeaderLen + 4 + at - start)
		defer part.Release()
		_, err := s.out.Write(codec.AppendEventPart(part.Bytes()[:0], codec.LayoutShared, 0, 0, count, region[start:at]))
		start, count, size = at, 0, 0
		return err
	}
	for _, item := range items.All() {
		if index++; index <= d.Skip {
			at += 4 + len(item)
			start = at
			continue
		}
		if count == maxItems || (count > 0 && maxBytes > 0 && size+len(item) > maxBytes) {
			if err := flush(); err != nil {
				return err
			}
		}
		at += 4 + len(item)
		count++
		size += len(item)
	}
	return flush()
}
