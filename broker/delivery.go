package broker

import (
	"cmp"
	"context"
	"encoding/binary"
	"fmt"
	"sync"

	"github.com/klauspost/compress/s2"

	"github.com/felix-mq/felix/codec"
	"github.com/felix-mq/felix/fanout"
	"github.com/felix-mq/felix/internal/buf"
	"github.com/felix-mq/felix/telemetry"
)

// Frames are made once, in the form that carries offsets ([codec.LayoutSharedOffsets]), because our clients ask for
// it. Other clients get the same item list after a shorter head.

// numberAt is where such a frame has its offset, listAt where its item list begins.
const (
	numberAt = codec.HeaderLen
	listAt   = codec.HeaderLen + 8
)

// legacyMaxItems is how many events of one frame the reference client buffers; it drops the others
// (docs/protocol/wire.md#delivery-without-encoding).
const legacyMaxItems = 256

// burst is what one goroutine takes from a subscription and writes together, and the lists that it needs for that. It
// is borrowed for as long as there is something to write: with small events such lists are longer than all else of a
// subscription.
type burst struct {
	batch  []fanout.Delivery
	frames [][]byte
	heads  []byte // heads of frames and gap frames, until they are written
}

var bursts = sync.Pool{New: func() any { return new(burst) }}

// release gives the frames back.
func (b *burst) release() {
	for i := range b.batch {
		if f := b.batch[i].Frame; f != nil {
			f.Release()
		}
		b.batch[i] = fanout.Delivery{}
	}
	b.batch = b.batch[:0]
}

// head queues what was appended to b.heads. Earlier heads stay where they are even if the array moved.
func (b *burst) head(heads []byte) {
	b.frames = append(b.frames, heads[len(b.heads):])
	b.heads = heads
}

// writeBatch writes what the writer has taken, in order: frames that go out as they are in one write together, those
// that have to be cut part by part. It returns how many events and bytes of frames went out.
func (s *subscription) writeBatch(b *burst) (events, bytes uint64, err error) {
	start := telemetry.Start()
	for _, d := range b.batch {
		if d.Reason != fanout.GapNone && s.gaps {
			b.head(codec.AppendGap(b.heads, codec.Gap{Reason: gapReasons[d.Reason], Lost: d.Gap, Next: d.Next}))
		}
		n, size := 0, 0
		switch {
		case d.Frame == nil:
			continue
		case isCompressed(d.Frame) && !s.takesCompressed(d):
			n, size, err = s.writeDecompressed(b, d)
		case isCompressed(d.Frame):
			n, size = d.Frame.Count(), len(d.Frame.Bytes())
			b.frames = append(b.frames, d.Frame.Bytes())
		default:
			n, size = d.Frame.Count()-d.Skip, len(d.Frame.Bytes())
			err = s.addFrame(b, d.Frame, d.Skip)
		}
		if err != nil {
			return 0, 0, err
		}
		events += uint64(n)
		bytes += uint64(size)
	}
	telemetry.Observe(telemetry.StageDeliverBuild, start)
	return events, bytes, s.writeFrames(b)
}

// takesCompressed reports whether a compressed frame can go out as it is.
func (s *subscription) takesCompressed(d fanout.Delivery) bool {
	return s.s2 && d.Skip == 0 && (s.maxItems == 0 || d.Frame.Count() <= s.maxItems) && s.maxBytes == 0
}

// writeDecompressed writes what is queued and the plain form of a compressed frame, or queues a gap if it has none.
func (s *subscription) writeDecompressed(b *burst, d fanout.Delivery) (events, bytes int, err error) {
	plain, reason := s.decompressed(d)
	if plain == nil {
		if s.gaps {
			lost, next := uint64(d.Frame.Count()-d.Skip), d.Frame.First()+uint64(d.Frame.Count())
			b.head(codec.AppendGap(b.heads, codec.Gap{Reason: reason, Lost: lost, Next: next}))
		}
		return 0, 0, nil
	}
	defer plain.Release()
	// It is written before the next one is made, so that one subscription holds one of them at a time.
	if err = s.addFrame(b, plain, d.Skip); err == nil {
		err = s.writeFrames(b)
	}
	return plain.Count() - d.Skip, len(plain.Bytes()), err
}

// addFrame queues a plain frame to be written as the peer wants it. One that has to be cut is written at once.
func (s *subscription) addFrame(b *burst, frame *fanout.Frame, skip int) error {
	wire, count := frame.Bytes(), frame.Count()
	switch {
	case skip > 0 || s.tooLarge(wire, count):
		if err := s.writeFrames(b); err != nil {
			return err
		}
		return s.writeParts(frame, skip)
	case s.offsets:
		b.frames = append(b.frames, wire)
	default:
		b.head(codec.AppendEventHead(b.heads, codec.LayoutShared, 0, 0, len(wire)-listAt))
		b.frames = append(b.frames, wire[listAt:])
	}
	return nil
}

var gapReasons = [...]codec.GapReason{
	fanout.GapNone:      codec.GapUnknown,
	fanout.GapQueueFull: codec.GapQueueFull,
	fanout.GapReclaimed: codec.GapReclaimed,
	fanout.GapExpired:   codec.GapExpired,
	fanout.GapEpoch:     codec.GapEpoch,
}

func (s *subscription) writeFrames(b *burst) error {
	if len(b.frames) == 0 {
		return nil
	}
	start := telemetry.Start()
	inline := s.inline.total.Load()
	err := s.w.WriteBatch(b.frames)
	if err == nil {
		s.inlineSettled(inline) // the write could not begin before that was in packets
	}
	telemetry.Observe(telemetry.StageDeliverWrite, start)
	clear(b.frames)
	b.frames, b.heads = b.frames[:0], b.heads[:0]
	return err
}

// tooLarge reports whether a frame has to be cut for this subscriber.
func (s *subscription) tooLarge(wire []byte, count int) bool {
	return s.maxItems > 0 && count > s.maxItems ||
		s.maxBytes > 0 && count > 1 && len(wire)-listAt-4-4*count > s.maxBytes
}

// tryBatch writes what was taken if it is one small frame and the stream takes it at once.
func (s *subscription) tryBatch(b *burst, limit int) (events, bytes uint64, ok bool) {
	if len(b.batch) != 1 {
		return 0, 0, false
	}
	d := b.batch[0]
	if d.Frame == nil || d.Skip > 0 || d.Reason != fanout.GapNone {
		return 0, 0, false
	}
	wire, count := d.Frame.Bytes(), d.Frame.Count()
	compressed := isCompressed(d.Frame)
	if len(wire) > limit || s.tooLarge(wire, count) || compressed && !s.s2 || !s.mayInline(len(wire)) {
		return 0, 0, false
	}
	if !s.offsets && !compressed {
		b.heads = codec.AppendEventHead(b.heads[:0], codec.LayoutShared, 0, 0, len(wire)-listAt)
		b.heads = append(b.heads, wire[listAt:]...)
		wire = b.heads
	}
	start := telemetry.Start()
	if s.out.TryWrite(wire) != nil {
		return 0, 0, false // whatever is wrong shows again when a writer writes
	}
	s.inline.total.Add(uint64(len(wire)))
	telemetry.Observe(telemetry.StageDeliverInline, start)
	return uint64(count), uint64(len(wire)), true
}

// writeParts cuts a frame: it leaves out the events before the subscription's start and splits the rest at the bounds
// on items and bytes (0 means none); a single larger event goes alone. Only this needs a copy
// (docs/protocol/wire.md#delivery-without-encoding).
func (s *subscription) writeParts(frame *fanout.Frame, skip int) error {
	items, _, err := codec.ParseItems(frame.Bytes()[listAt:])
	if err != nil {
		panic("broker: retained event frame does not parse: " + err.Error())
	}
	layout := codec.LayoutShared
	if s.offsets {
		layout = codec.LayoutSharedOffsets
	}
	region := items.Raw()[4:]
	base := frame.First()
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
		if index < skip {
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

// isCompressed reports whether a frame is one of the extension s2.
func isCompressed(f *fanout.Frame) bool {
	return codec.Flags(binary.BigEndian.Uint16(f.Bytes()[6:])) == codec.LayoutExtension
}

// decompressed returns the plain form of a compressed frame, with a reference, for subscriptions that cannot have it as
// it is. All that write it at the same time share one. It is nil, with the reason, if the frame's publisher sent
// something that cannot be decompressed, which nobody has looked at before, or if the tenant has no memory for it.
func (s *subscription) decompressed(d fanout.Delivery) (*fanout.Frame, codec.GapReason) {
	b, f := s.c.b, d.Frame
	c, size, err := parseCompressed(f)
	tried := false
	plain, short := f.Derive(size, func() (made *fanout.Frame) {
		if tried = true; err == nil {
			_ = b.heavy.enter(context.Background(), s.tenant.name) // cannot fail, and waits for milliseconds
			made, err = decompress(f.Count(), &c)
			b.heavy.leave()
		}
		return made
	})
	switch {
	case short != nil:
		s.events.Lost(f.Count() - d.Skip)
		return nil, codec.GapReclaimed
	case tried && err != nil:
		b.metrics.corruptBatches.Add(1)
		b.log.Warn("compressed batch is corrupt", "events", f.Count(), "error", err)
	case tried:
		b.metrics.decompressed.Add(1)
	}
	return plain, codec.GapCorrupt
}

// parseCompressed parses a compressed frame. size is the capacity of the chunk that its plain form takes, or 0.
func parseCompressed(f *fanout.Frame) (c codec.CompressedEvents, size int, err error) {
	if c, err = codec.ParseCompressedEvents(f.Bytes()[extensionAt:]); err != nil {
		return c, 0, err
	}
	if n, err := s2.DecodedLen(c.Block); err != nil || n != c.RawLen {
		return c, 0, fmt.Errorf("broker: block of %d bytes, %d declared: %w", n, c.RawLen, cmp.Or(err, s2.ErrCorrupt))
	}
	return c, buf.CapOf(listAt + 4 + c.RawLen), nil
}

func decompress(count int, c *codec.CompressedEvents) (*fanout.Frame, error) {
	chunk := buf.Get(listAt + 4 + c.RawLen)
	defer chunk.Release()
	wire := codec.AppendEventHead(chunk.Bytes()[:0], codec.LayoutSharedOffsets, 0, c.BaseOffset, 4+c.RawLen)
	wire = wire[:listAt+4+c.RawLen]
	if _, err := s2.Decode(wire[listAt+4:], c.Block); err != nil {
		return nil, fmt.Errorf("broker: decompressing: %w", err)
	}
	if _, err := c.Items(wire[listAt:]); err != nil {
		return nil, err
	}
	return fanout.NewFrame(chunk, wire, count), nil
}
