package script

import (
	"errors"
	"fmt"
	"slices"

	"github.com/felix-mq/felix/codec"
	"github.com/felix-mq/felix/quicx"
)

// Control is a bi-directional stream that the client opened. One goroutine may read and one may send.
type Control struct {
	server *Server
	s      *quicx.Stream
	fr     *quicx.FrameReader
	msg    codec.Message
}

// Request is a frame from the client. Nothing in it is a view.
type Request struct {
	Type  codec.MessageType // MsgPublishBatch also for the binary forms
	Flags codec.Flags       // LayoutJSON, LayoutPublish, LayoutPublishAcked, or LayoutExtension of a publish with an origin
	From  codec.Origin      // of that

	Tenant, Namespace, Stream string
	Cache, Key, Token         string

	ID    uint64 // request_id
	HasID bool
	Ack   codec.AckMode // AckNone for LayoutPublish

	Payloads [][]byte // of publishes; one for publish
	Value    []byte   // of cache_put
	TTL      uint64
	HasTTL   bool
	Start    codec.Start
	Epoch    uint64 // of Start, with the extension gaps
	HasEpoch bool

	ClientFlags    codec.Flags // of auth
	HasClientFlags bool
}

// Payload returns the first payload as text, or "".
func (r *Request) Payload() string {
	if len(r.Payloads) == 0 {
		return ""
	}
	return string(r.Payloads[0])
}

// Next reads the next frame, whatever it is. It returns [io.EOF] if the client finished its half. What cannot be read
// is also kept for [Server.Violation].
func (c *Control) Next() (*Request, error) {
	f, err := c.fr.Next()
	switch {
	case codec.ClassOf(err) != "" || errors.Is(err, quicx.ErrTruncated):
		return nil, c.server.violated(fmt.Errorf("script: the client sent: %w", err))
	case err != nil:
		return nil, err
	}
	r, err := c.decode(f)
	if err != nil {
		return nil, c.server.violated(err)
	}
	return r, nil
}

func (c *Control) decode(f quicx.Frame) (*Request, error) {
	r := &Request{Type: codec.MsgPublishBatch, Flags: f.Header.Flags}
	payload := f.Payload()
	switch f.Header.Flags {
	case codec.LayoutJSON:
		return r, r.fromJSON(&c.msg, payload)
	case codec.LayoutPublish:
		r.Ack = codec.AckNone
	case codec.LayoutPublishAcked:
		var err error
		if r.ID, r.Ack, payload, err = codec.ParsePublishAckedPrefix(payload); err != nil {
			return nil, fmt.Errorf("script: the client sent: %w", err)
		}
		r.HasID = true
	case codec.LayoutExtension:
		typ, body, err := codec.ParseExtension(payload)
		if err != nil || typ != codec.ExtensionPublishFrom {
			return nil, fmt.Errorf("script: the client sent an extension frame of type %d, %w", typ, err)
		}
		if r.From, body, err = codec.ParseOrigin(body); err == nil {
			r.ID, r.Ack, payload, err = codec.ParsePublishAckedPrefix(body)
		}
		if err != nil {
			return nil, fmt.Errorf("script: the client sent: %w", err)
		}
		r.HasID = true
	default:
		return nil, fmt.Errorf("script: the client sent flags %#04x", uint16(f.Header.Flags))
	}
	b, err := codec.ParsePublishBatch(payload)
	if err != nil {
		return nil, fmt.Errorf("script: the client sent: %w", err)
	}
	r.Tenant, r.Namespace, r.Stream = string(b.Tenant), string(b.Namespace), string(b.Stream)
	r.setPayloads(b.Items)
	return r, nil
}

func (r *Request) fromJSON(m *codec.Message, payload []byte) error {
	if err := codec.ParseMessage(payload, m); err != nil {
		return fmt.Errorf("script: the client sent: %w", err)
	}
	r.Type = m.Type
	r.Tenant, r.Namespace, r.Stream = string(m.Tenant), string(m.Namespace), string(m.Stream)
	r.Cache, r.Key, r.Token = string(m.Cache), string(m.Key), string(m.Token)
	r.ID, r.HasID, r.Ack = m.RequestID, m.HasRequestID, m.Ack
	r.Value, r.TTL, r.HasTTL, r.Start = slices.Clone(m.Value), m.TTL, m.HasTTL, m.Start
	r.Epoch, r.HasEpoch = m.Epoch, m.HasEpoch
	r.ClientFlags, r.HasClientFlags = m.ClientFlags, m.HasClientFlags
	if m.Type == codec.MsgPublish {
		r.Payloads = [][]byte{slices.Clone(m.Payload)}
	} else {
		r.setPayloads(m.Items)
	}
	return nil
}

// setPayloads copies the items, all into one piece of memory.
func (r *Request) setPayloads(items codec.Items) {
	copied, _, err := codec.ParseItems(slices.Clone(items.Raw()))
	if err != nil {
		return // there are none
	}
	for _, p := range copied.All() {
		r.Payloads = append(r.Payloads, p)
	}
}

// Expect reads the next frame, which has to be of type t.
func (c *Control) Expect(t codec.MessageType) (*Request, error) {
	r, err := c.Next()
	if err != nil {
		return nil, fmt.Errorf("script: waiting for %v: %w", t, err)
	}
	if r.Type != t {
		return nil, fmt.Errorf("script: the client sent %v, want %v", r.Type, t)
	}
	return r, nil
}

// ExpectEnd waits until the client has finished or given up its half; a request before that is an error.
func (c *Control) ExpectEnd() error {
	if r, err := c.Next(); err == nil {
		return fmt.Errorf("script: the client sent %v, want nothing more", r.Type)
	}
	return nil
}

// Auth expects an auth that asks for negotiation and answers it with the flags given.
func (c *Control) Auth(flags codec.Flags) error { return c.AuthExt(flags, 0) }

// AuthExt is Auth with extensions that are agreed on, if there are any.
func (c *Control) AuthExt(flags codec.Flags, ext codec.Extensions) error {
	r, err := c.Expect(codec.MsgAuth)
	if err != nil {
		return err
	}
	if !r.HasClientFlags {
		return c.Send(codec.AppendOK(nil))
	}
	return c.Send(codec.AppendAuthOK(nil, flags, ext, ext != 0))
}

// AuthLegacy expects an auth and answers with a plain ok, as a broker does that knows no negotiation.
func (c *Control) AuthLegacy() error {
	if _, err := c.Expect(codec.MsgAuth); err != nil {
		return err
	}
	return c.Send(codec.AppendOK(nil))
}

// Ack acknowledges a publish in the encoding that it came in, with an error if text is not empty. A publish that wants
// no acknowledgement gets none.
func (c *Control) Ack(r *Request, text string) error {
	binary, refused := r.Flags != codec.LayoutJSON, text != ""
	switch {
	case r.Ack == codec.AckNone:
		return nil
	case binary && refused:
		return c.Send(codec.AppendPublishAckError(nil, r.ID, text))
	case binary:
		return c.Send(codec.AppendPublishAckOK(nil, r.ID))
	case refused:
		return c.Send(codec.AppendPublishError(nil, r.ID, text))
	default:
		return c.Send(codec.AppendPublishOK(nil, r.ID))
	}
}

// CacheValue answers a cache_get; a nil value is a miss.
func (c *Control) CacheValue(r *Request, value []byte) error {
	return c.Send(codec.AppendCacheValue(nil, []byte(r.Tenant), []byte(r.Namespace), []byte(r.Cache), []byte(r.Key),
		value, value != nil, r.ID, r.HasID))
}

// Send writes bytes as they are: a frame, several, or a part of one.
func (c *Control) Send(b []byte) error { return c.server.send(c.s.Send(), b) }

// SendPieces writes b in writes of n bytes each.
func (c *Control) SendPieces(b []byte, n int) error { return sendPieces(c.s.Send(), b, n) }

// Finish ends the replies with FIN. The client's half is left as it is. If the client has stopped the replies, because
// it has what it wanted, they have ended already.
func (c *Control) Finish() { _ = c.s.Send().Close() }

// Reset ends the replies with RESET_STREAM.
func (c *Control) Reset() { c.s.Send().Cancel(0) }

// StopReading asks the client to stop sending. The replies are left as they are. It must not be called during a read.
func (c *Control) StopReading() {
	c.s.Recv().Cancel(0)
	c.fr.Close()
}

// End ends both halves, as a broker does after a violation: FIN after the replies, STOP_SENDING.
func (c *Control) End() {
	c.StopReading()
	c.Finish()
}

// Sink reads until the stream ends, acknowledges binary publishes that ask for it, and looks at nothing else. It does
// not allocate: it is the other end of a benchmark.
func (c *Control) Sink() error {
	var reply []byte
	for {
		f, err := c.fr.Next()
		if err != nil {
			return err
		}
		if f.Header.Flags != codec.LayoutPublishAcked {
			continue
		}
		id, _, _, err := codec.ParsePublishAckedPrefix(f.Payload())
		if err != nil {
			return fmt.Errorf("script: the client sent: %w", err)
		}
		reply = codec.AppendPublishAckOK(reply[:0], id)
		if err := c.Send(reply); err != nil {
			return err
		}
	}
}
