package broker

import (
	"errors"

	"github.com/felix-mq/felix/codec"
	"github.com/felix-mq/felix/quicx"
	"github.com/felix-mq/felix/telemetry"
)

// servePublish reads a uni-directional publish stream: auth, then publishes, never a reply
// (docs/protocol/session.md#publishing-without-replies). Whatever breaks a rule ends the stream, which the peer sees as
// STOP_SENDING.
func servePublish(c *conn, r *quicx.RecvStream) {
	p := new(stream)
	p.init(c, r)
	c.b.metrics.publishStreams.Add(1)
	defer c.b.metrics.publishStreamsClosed.Add(1)
	defer r.Cancel(0)
	defer p.fr.Close()
	if !c.reading(p) {
		return
	}
	defer c.doneReading(p)
	for {
		if !p.fr.Ready() {
			p.msg.Reset() // what is held while nothing comes should be little
		}
		start := telemetry.Start()
		f, err := p.fr.Next()
		telemetry.Observe(telemetry.StageRequestRead, start)
		if err == nil {
			err = p.begin()
		}
		if err != nil {
			p.readError(err)
			return
		}
		more := p.handleUni(f)
		p.done()
		if !more {
			if p.surplus {
				c.closeLater(reasonTenantConns)
			}
			return
		}
	}
}

// handleUni carries one frame out and reports whether the stream goes on.
func (s *stream) handleUni(f quicx.Frame) bool {
	if s.tooMuchUnknown(f) {
		return false
	}
	telemetry.Add(telemetry.BrokerFramesIn, 1)
	telemetry.Add(telemetry.BrokerBytesIn, len(f.Bytes))
	agreed := codec.Extensions(s.c.agreed.Load())
	if err := f.Header.Flags.CheckNegotiated(agreed); err != nil {
		s.c.b.countMalformed(err)
		return false
	}
	switch f.Header.Flags {
	case codec.LayoutPublish:
		return s.unacked(f, codec.HeaderLen, false) == keep
	case codec.LayoutExtension:
		typ, _, err := codec.ParseExtension(f.Payload())
		return err == nil && typ == codec.ExtensionPublishS2 && agreed&codec.ExtS2 != 0 && s.unacked(f, extensionAt, true) == keep
	case codec.LayoutJSON:
	default:
		return false // 0x0009 has no reply to go to (docs/start/from-the-reference.md#defects, D10)
	}
	m := &s.msg
	if err := codec.ParseMessage(f.Bytes[codec.HeaderLen:], m); err != nil {
		s.c.b.countMalformed(err)
		return false
	}
	switch m.Type {
	case codec.MsgAuth:
		return s.identity == nil && s.authenticate(m) == nil
	case codec.MsgPublish, codec.MsgPublishBatch:
	default:
		return false
	}
	if s.identity == nil || string(m.Tenant) != s.identity.Tenant || !s.resolve(m.Tenant, m.Namespace, m.Stream) {
		return false
	}
	if s.scope.topic == nil {
		return true // an unknown stream is ignored, as on the control stream
	}
	return !errors.Is(s.offerMessage(m, s.unackedWait()), errStreamEnds)
}
