package conformance

import (
	"fmt"
	"slices"
	"strings"

	"github.com/felix-mq/felix/codec"
	"github.com/felix-mq/felix/testvectors"
)

// vectorCases send every vector of package testvectors to the broker, each on an authenticated control stream of its
// own. A case is a group of vectors: those of one kind or of one class of failure.
func vectorCases() []Case {
	type group struct {
		id, name string
		vectors  []vector
	}
	var groups []*group
	add := func(id, name string, v vector) {
		i := slices.IndexFunc(groups, func(g *group) bool { return g.id == id })
		if i < 0 {
			i = len(groups)
			groups = append(groups, &group{id: id, name: name})
		}
		groups[i].vectors = append(groups[i].vectors, v)
	}
	for _, v := range testvectors.Valid() {
		add("VEC-"+v.Direction+"/"+v.Kind, "valid "+v.Kind, validVector{v})
	}
	for _, v := range testvectors.Invalid() {
		add("VEC-invalid/"+v.Class, "invalid, "+v.Class, invalidVector{v})
	}
	all := make([]Case, len(groups))
	for i, g := range groups {
		all[i] = Case{
			ID: g.id, Name: fmt.Sprintf("%s (%d vectors)", g.name, len(g.vectors)),
			run: func(p *probe) { sendVectors(p, g.vectors) },
		}
	}
	return all
}

// vector is a frame and what the protocol makes of it.
type vector interface {
	name() string
	frame() testvectors.Bytes
	predict(*Fixture) prediction
}

// prediction is the model's word on a frame that an authenticated client sends on a control stream. The model is
// written from docs/protocol/session.md and shares no decision with a broker: it looks at the fields that the vector
// states, not at the frame.
type prediction struct {
	replies []string
	then    consequence
	// events are those that the broker publishes to the fixture's stream.
	events []string
	// fin says that the frame is the beginning of one, and ends with the stream.
	fin bool
	// start is set for a subscribe that is carried out or refused by where it starts, which is known at that time
	// alone.
	start *codec.Start
}

// sendVectors goes through all vectors and reports those that failed, the first in full.
func sendVectors(p *probe, vectors []vector) {
	c := p.dial(plain)
	e := c.subscribe(p.fx.Stream, live)
	var failed []string
	var worst *failure
	for _, v := range vectors {
		if p.ctx.Err() != nil {
			p.fail("all vectors in time", "out of time at "+v.name())
		}
		if f := p.attempt(func() { sendVector(c, e, v) }); f != nil {
			if failed = append(failed, v.name()); worst == nil {
				worst = f
			}
			c = p.dial(plain)
			e = c.subscribe(p.fx.Stream, live)
		}
	}
	if worst != nil {
		p.fail(fmt.Sprintf("%s: %s", failed[0], worst.expected),
			fmt.Sprintf("%s (%d of %d vectors failed: %s)", worst.seen, len(failed), len(vectors), strings.Join(failed, ", ")))
	}
}

func sendVector(c *conn, e *events, v vector) {
	if c.p.fx.Reference && v.frame().Len() > 1<<20 {
		return // its queue may refuse it
	}
	want := v.predict(c.p.fx)
	if v.frame().Len()-codec.HeaderLen > c.p.fx.MaxFrameBytes {
		want = prediction{then: ends} // whatever is in it
	}
	if want.start != nil {
		c = c.p.dial(plain) // ids of vectors are used again and again
		want.replies = []string{startReply(c, *want.start, want.replies[0])}
	}
	s := c.authed()
	exchange{send: v.frame().Expand(), fin: want.fin, replies: want.replies, then: want.then}.on(s)
	e.expect(want.events...)
	s.drop()
}

// startReply predicts the answer to a subscribe to the fixture's stream: subscribed is it if the start can be served.
func startReply(c *conn, start codec.Start, subscribed string) string {
	if start.Kind != codec.StartOffset {
		return subscribed
	}
	t := c.p.fx.topic()
	if tail := c.tail(t); start.Offset > tail {
		return fmt.Sprintf("subscribe_cursor_error in_future requested=%d available=%d", start.Offset, tail)
	}
	trial := c.authed()
	trial.send(t.subscribe(start))
	if got := trial.recv(); strings.HasPrefix(got, "subscribe_cursor_error too_old") {
		return got // RAW-42f has its numbers
	}
	return subscribed
}

type validVector struct{ testvectors.Vector }

func (v validVector) name() string             { return v.Name }
func (v validVector) frame() testvectors.Bytes { return v.Frame }

func (v validVector) predict(f *Fixture) prediction {
	x := &v.Fields
	t := topic{string(x.TenantID), string(x.Namespace), string(x.Stream)}
	exists := t.namespace == f.Namespace && (t.stream == f.Stream || t.stream == f.OtherStream)
	foreign := t.tenant != f.Tenant
	if !clientLayout(v.Flags) {
		return prediction{replies: []string{errorReply("unsupported frame flags")}}
	}
	switch v.Kind {
	case "auth":
		return prediction{replies: []string{errorReply("auth already established")}, then: ends}
	case "publish", "publish_batch":
		return v.predictPublish(f, t, foreign, exists)
	case "binary_publish_batch":
		switch {
		case foreign:
			return prediction{then: ends}
		case !exists:
			return prediction{}
		}
		return prediction{events: v.events(f, t)}
	case "binary_acked_publish_batch":
		return v.predictAcked(f, t, foreign, exists)
	case "subscribe":
		switch {
		case foreign:
			return prediction{replies: []string{errorReply("tenant mismatch")}, then: ends}
		case !exists || t.stream != f.Stream:
			return prediction{replies: []string{errorReply(t.notFound())}, then: clean}
		}
		want := prediction{replies: []string{"subscribed …"}, then: clean, start: &codec.Start{}}
		if x.SubscriptionID != nil {
			want.replies[0] = fmt.Sprintf("subscribed %d", *x.SubscriptionID)
		}
		if x.Start != nil && x.Start.Keyword == "" {
			want.start = &codec.Start{Kind: codec.StartOffset, Offset: x.Start.Offset}
		}
		return want
	case "cache_put", "cache_get":
		return v.predictCache(f, foreign)
	case "error":
		return prediction{then: ends}
	case "subscribe_cursor_error":
		return prediction{replies: []string{errorReply(cursorErrorDirection)}, then: ends}
	default: // the other messages of a broker
		return prediction{replies: []string{errorReply(unexpectedMessage)}, then: ends}
	}
}

// clientLayout reports whether a client may send frames with these flags (docs/protocol/wire.md#layouts). All others
// are refused before anything is decoded, those of an extension included, since none is negotiated here.
func clientLayout(flags uint16) bool { return flags == 0x0000 || flags == 0x0001 || flags == 0x0009 }

// events are those that the vector publishes to the stream that is listened to.
func (v validVector) events(f *Fixture, t topic) []string {
	if t != f.topic() {
		return nil
	}
	if v.Kind == "publish" {
		return []string{string(v.Fields.Payload.Expand())}
	}
	var payloads []string
	for _, item := range v.Fields.Payloads {
		payloads = append(payloads, string(item.Expand()))
	}
	return payloads
}

// predictPublish follows docs/protocol/session.md#checks-of-a-json-publish.
func (v validVector) predictPublish(f *Fixture, t topic, foreign, exists bool) prediction {
	id, acked := v.Fields.RequestID, v.Fields.Ack != "none"
	missing := "missing request_id for acked publish"
	if v.Kind == "publish_batch" {
		missing += " batch"
	}
	switch {
	case foreign:
		return prediction{replies: []string{errorReply("tenant mismatch")}, then: ends}
	case acked && id == nil:
		return prediction{replies: []string{errorReply(missing)}}
	case !exists && acked:
		return prediction{replies: []string{fmt.Sprintf("publish_error %d %s", *id, short(t.notFound()))}}
	case !exists:
		return prediction{}
	case acked:
		return prediction{replies: []string{fmt.Sprintf("publish_ok %d", *id)}, events: v.events(f, t)}
	}
	return prediction{events: v.events(f, t)}
}

// predictAcked follows docs/protocol/session.md#checks-of-a-binary-publish.
func (v validVector) predictAcked(f *Fixture, t topic, foreign, exists bool) prediction {
	ack := func(text string) prediction {
		return prediction{replies: []string{fmt.Sprintf("ack %d %s", *v.Fields.RequestID, text)}}
	}
	switch {
	case foreign:
		return ack(short("tenant mismatch"))
	case !exists:
		return ack(short(cutText(t.notFound())))
	}
	want := ack("ok")
	want.events = v.events(f, t)
	return want
}

// cutText is how much of a text an acknowledgement carries: 512 bytes, in whole characters
// (docs/protocol/wire.md#publish-acknowledgement).
func cutText(text string) string {
	const most = 512
	if len(text) <= most {
		return text
	}
	end := 0
	for i := range text {
		if i > most {
			break
		}
		end = i
	}
	return text[:end]
}

// predictCache follows docs/protocol/session.md#cache. Whether a get hits depends on who ran before, so any value will
// do.
func (v validVector) predictCache(f *Fixture, foreign bool) prediction {
	x := &v.Fields
	c := store{string(x.TenantID), string(x.Namespace), string(x.Cache)}
	want := prediction{then: clean}
	if x.RequestID != nil {
		want.then = kept
	}
	switch {
	case foreign:
		return prediction{replies: []string{errorReply("tenant mismatch")}, then: ends}
	case c != f.store():
		want.replies = []string{errorReply(c.notFound())}
	case v.Kind == "cache_get":
		want.replies = []string{"cache_value " + f.entry(string(x.Key)) + " …"}
	case x.RequestID != nil:
		want.replies = []string{fmt.Sprintf("cache_ok %d", *x.RequestID)}
	default:
		want.replies = []string{"ok"}
	}
	return want
}

type invalidVector struct{ testvectors.InvalidVector }

func (v invalidVector) name() string             { return v.Name }
func (v invalidVector) frame() testvectors.Bytes { return v.Frame }

func (v invalidVector) predict(f *Fixture) prediction {
	switch v.Class {
	case "short_header":
		return prediction{then: ends, fin: true}
	case "bad_magic", "bad_version":
		return prediction{then: ends}
	case "frame_too_large":
		if v.MaxFrame < f.MaxFrameBytes && v.Frame.Len() > codec.HeaderLen {
			// Too large under its own limit alone: here it is an ok, from the wrong side.
			return prediction{replies: []string{errorReply(unexpectedMessage)}, then: ends}
		}
		return prediction{then: ends}
	}
	switch {
	case !clientLayout(*v.Flags):
		return prediction{replies: []string{errorReply("unsupported frame flags")}}
	case v.RequestID != nil:
		return prediction{replies: []string{fmt.Sprintf("ack %d %q", *v.RequestID, "malformed publish batch")}}
	}
	return prediction{then: ends}
}
