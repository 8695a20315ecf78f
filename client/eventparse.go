package client

import (
	"fmt"

	"github.com/felix-mq/felix/codec"
	"github.com/felix-mq/felix/quicx"
)

// parse decodes one event frame: the four binary layouts, or the JSON forms that a broker may send
// (docs/protocol/wire.md#messages).
func (s *Subscription) parse(from *eventFeed, f quicx.Frame) error {
	payload := f.Bytes[codec.HeaderLen:]
	switch f.Header.Flags {
	case codec.LayoutShared, codec.LayoutSharedOffsets, codec.LayoutEvent, codec.LayoutEventOffsets:
		b, err := codec.ParseEventBatch(f.Header.Flags, payload)
		if err != nil {
			return err
		}
		if b.HasSubscriptionID && b.SubscriptionID != from.id {
			return fmt.Errorf("event for subscription %d on the stream of %d", b.SubscriptionID, from.id)
		}
		s.batch = Batch{items: b.Items, BaseOffset: b.BaseOffset, HasOffset: b.HasOffset}
		return nil
	case codec.LayoutJSON:
	case codec.LayoutExtension:
		return s.parseExtension(from, f)
	default:
		if err := f.Header.Flags.CheckNegotiated(from.ext); err != nil {
			return err
		}
		return fmt.Errorf("event frame with flags %#04x", uint16(f.Header.Flags))
	}
	m := &s.msg
	if err := codec.ParseMessage(payload, m); err != nil {
		return err
	}
	switch m.Type {
	case codec.MsgEvent:
		// One item in the form that all the others have. JSON events are rare: a copy does not matter.
		items, _, err := codec.ParseItems(codec.AppendItems(nil, [][]byte{m.Payload}))
		if err != nil {
			return err
		}
		s.batch = Batch{items: items, BaseOffset: m.Offset, HasOffset: m.HasOffset}
	case codec.MsgEventBatch:
		s.batch = Batch{items: m.Items, BaseOffset: m.Offset, HasOffset: m.HasOffset}
	default:
		return fmt.Errorf("%v on an event stream", m.Type)
	}
	return nil
}

// parseExtension decodes a frame of the extension gaps (docs/protocol/extensions.md#gaps).
func (s *Subscription) parseExtension(from *eventFeed, f quicx.Frame) error {
	if err := f.Header.Flags.CheckNegotiated(from.ext); err != nil {
		return err
	}
	typ, body, err := codec.ParseExtension(f.Payload())
	if err != nil {
		return err
	}
	switch typ {
	case codec.ExtensionPosition:
		p, err := codec.ParsePosition(body)
		if err != nil {
			return err
		}
		s.next = Position{p.Epoch, p.Offset}
		if s.gap == nil && (!from.resumed || s.next == s.at) {
			s.reach(p.Offset, true)
		} // else a gap follows, and the position moves when that is handed out
	case codec.ExtensionGap:
		g, err := codec.ParseGap(body)
		if err != nil {
			return err
		}
		s.next.Offset = g.Next
		s.lose(Gap{Reason: GapReason(g.Reason), Lost: g.Lost})
	case codec.ExtensionEventS2:
		e, err := codec.ParseCompressedEvents(body)
		if err != nil {
			return err
		}
		items, ok := s.decompress(e.Compressed)
		if !ok { // its publisher's fault: the next batch is as good as ever
			s.next.Offset = e.BaseOffset + uint64(e.Count)
			s.lose(Gap{Reason: GapCorrupt, Lost: uint64(e.Count)})
			return nil
		}
		s.batch = Batch{items: items, BaseOffset: e.BaseOffset, HasOffset: from.ext&codec.ExtGaps != 0}
	default:
		return fmt.Errorf("%w: %d", codec.ErrExtensionType, typ)
	}
	return nil
}
