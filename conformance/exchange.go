package conformance

import (
	"encoding/binary"
	"fmt"

	"github.com/felix-mq/felix/codec"
)

// consequence is what happens to a control stream after a request (docs/protocol/session.md#the-end-of-a-stream).
type consequence uint8

const (
	kept  consequence = iota // a valid request after it is answered
	ends                     // an error end: FIN and STOP_SENDING; the reference may lose the error in front of it
	clean                    // a clean end: the same, and nothing is lost
)

// exchange is a case of one request on a fresh stream: what is sent, what is answered, and what happens to the stream.
type exchange struct {
	id, name string
	bare     bool     // sent without auth
	may      []string // permissions of the token; nil means all. What keeps its stream needs cache.read for the proof
	send     []byte
	fin      bool // FIN after it
	replies  []string
	then     consequence
}

func (x exchange) Case() Case {
	return Case{ID: x.id, Name: x.name, run: func(p *probe) {
		c := p.dial(plain)
		var s *control
		if x.bare {
			s = c.open()
		} else {
			s = c.authed(x.may...)
		}
		x.on(s)
	}}
}

// on carries the exchange out on a stream.
func (x exchange) on(s *control) {
	s.send(x.send)
	if x.fin {
		s.finish()
	}
	switch x.then {
	case kept:
		s.expect(x.replies...)
		s.expectServed()
	case clean:
		s.expect(x.replies...)
		s.expectEnd()
	case ends:
		s.expectErrorEnd(x.replies...)
	}
}

func cases(exchanges ...exchange) []Case {
	all := make([]Case, len(exchanges))
	for i, x := range exchanges {
		all[i] = x.Case()
	}
	return all
}

// errorReply is an error message in the notation of replies.
func errorReply(text string) string { return "error " + short(text) }

// Texts of docs/protocol/errors.md that occur in several places. They are written out here, as all texts are, so that a
// slip in package codec does not go unnoticed.
const (
	unexpectedMessage    = "unexpected message type"
	cursorErrorDirection = "subscribe_cursor_error is a server-to-client message"
)

// topic builds requests for one stream.
type topic struct{ tenant, namespace, stream string }

func (f *Fixture) topic() topic { return topic{f.Tenant, f.Namespace, f.Stream} }

// The names of what does not exist.
const (
	noTenant = "conformance-other"
	noStream = "conformance-none"
)

// missing and foreign are a stream that does not exist and one of another tenant.
func (f *Fixture) missing() topic { return topic{f.Tenant, f.Namespace, noStream} }
func (f *Fixture) foreign() topic { return topic{noTenant, f.Namespace, f.Stream} }

// notFound is the text that tells of the stream being unknown.
func (t topic) notFound() string {
	return fmt.Sprintf("stream not found: tenant=%s namespace=%s stream=%s", t.tenant, t.namespace, t.stream)
}

// publish is a JSON publish, with a request id if one is given.
func (t topic) publish(ack codec.AckMode, id ...uint64) []byte {
	return codec.AppendPublish(nil, t.tenant, t.namespace, t.stream, []byte("x"), ack, first(id), len(id) > 0)
}

// batch is a JSON publish_batch of two items.
func (t topic) batch(ack codec.AckMode, id ...uint64) []byte {
	return codec.AppendPublishBatchJSON(nil, t.tenant, t.namespace, t.stream, [][]byte{[]byte("x"), nil}, ack, first(id), len(id) > 0)
}

// binary is a publish batch without acknowledgement.
func (t topic) binary(items ...string) []byte {
	return codec.AppendPublishBatch(nil, t.tenant, t.namespace, t.stream, byteItems(items))
}

// acked is a publish batch with acknowledgement.
func (t topic) acked(id uint64, items ...string) []byte {
	return codec.AppendPublishBatchAcked(nil, id, codec.AckPerBatch, t.tenant, t.namespace, t.stream, byteItems(items))
}

func (t topic) subscribe(from codec.Start, id ...uint64) []byte {
	return codec.AppendSubscribe(nil, t.tenant, t.namespace, t.stream, from, first(id), len(id) > 0)
}

// store builds requests for one cache.
type store struct{ tenant, namespace, cache string }

func (f *Fixture) store() store        { return store{f.Tenant, f.Namespace, f.Cache} }
func (f *Fixture) missingStore() store { return store{f.Tenant, f.Namespace, noStream} }
func (f *Fixture) foreignStore() store { return store{noTenant, f.Namespace, f.Cache} }

func (c store) notFound() string {
	return fmt.Sprintf("cache scope not found: %s/%s/%s", c.tenant, c.namespace, c.cache)
}

func (c store) put(key, value string, id ...uint64) []byte {
	return codec.AppendCachePut(nil, c.tenant, c.namespace, c.cache, key, []byte(value), first(id), len(id) > 0, 0, false)
}

func (c store) putTTL(key, value string, ttl, id uint64) []byte {
	return codec.AppendCachePut(nil, c.tenant, c.namespace, c.cache, key, []byte(value), id, true, ttl, true)
}

func (c store) get(key string, id ...uint64) []byte {
	return codec.AppendCacheGet(nil, c.tenant, c.namespace, c.cache, key, first(id), len(id) > 0)
}

// value and miss are the answers to get.
func (c store) value(key, value string, id ...uint64) string {
	return c.answer(key, "= "+short(value), id)
}
func (c store) miss(key string, id ...uint64) string { return c.answer(key, "miss", id) }

func (c store) answer(key, what string, id []uint64) string {
	text := "cache_value " + entry(c.tenant, c.namespace, c.cache, key) + " " + what
	if len(id) > 0 {
		text += fmt.Sprintf(" id=%d", id[0])
	}
	return text
}

func first(id []uint64) uint64 {
	if len(id) > 0 {
		return id[0]
	}
	return 0
}

func byteItems(items []string) [][]byte {
	out := make([][]byte, len(items))
	for i, item := range items {
		out[i] = []byte(item)
	}
	return out
}

// frame is a frame with any flags and any payload.
func frame(flags uint16, payload string) []byte {
	return append(codec.AppendHeader(nil, codec.Flags(flags), len(payload)), payload...)
}

// message is a JSON frame, right or wrong.
func message(format string, args ...any) []byte { return frame(0, fmt.Sprintf(format, args...)) }

// rawAcked is a 0x0009 frame with the given ack mode and body.
func rawAcked(id uint64, mode byte, body string) []byte {
	prefix := append(binary.BigEndian.AppendUint64(nil, id), mode)
	return frame(0x0009, string(prefix)+body)
}

// body is the publish batch in a frame of [topic.binary].
func body(f []byte) string { return string(f[codec.HeaderLen:]) }
