package codec_test

import (
	"bytes"
	"fmt"
	"reflect"
	"strings"
	"testing"

	"github.com/felix-mq/felix/codec"
)

// The functions of this file hold an input against both implementations. They serve tests and fuzz targets alike.

var eventLayouts = []codec.Flags{codec.LayoutEvent, codec.LayoutEventOffsets, codec.LayoutShared, codec.LayoutSharedOffsets}

// sameClass compares the verdict on a binary input, where the order of the checks is given.
func sameClass(t *testing.T, err error, want string) {
	t.Helper()
	if got := codec.ClassOf(err); got != want || (err == nil) != (want == "") {
		t.Fatalf("class %q (%v), want %q", got, err, want)
	}
}

// untouched returns a function that fails the test if b has been modified.
func untouched(t *testing.T, b []byte) func() {
	t.Helper()
	before := bytes.Clone(b)
	return func() {
		t.Helper()
		if !bytes.Equal(b, before) {
			t.Fatalf("input was modified to %x", b)
		}
	}
}

// endsWithItself fails the test if an append to the view could write over what lies after it.
func endsWithItself(t *testing.T, what string, view []byte) {
	t.Helper()
	if len(view) != cap(view) {
		t.Errorf("%s has %d bytes and a capacity of %d", what, len(view), cap(view))
	}
}

func equal(t *testing.T, what string, got, want any) {
	t.Helper()
	if !reflect.DeepEqual(got, want) {
		t.Fatalf("%s\n got %+v\nwant %+v", what, got, want)
	}
}

func equalBytes(t *testing.T, what string, got, want []byte) {
	t.Helper()
	if !bytes.Equal(got, want) {
		t.Fatalf("%s\n got %q\nwant %q", what, got, want)
	}
}

// byteSlices returns the items as encoders take them.
func byteSlices(items []string) [][]byte {
	var out [][]byte
	for _, item := range items {
		out = append(out, []byte(item))
	}
	return out
}

// checkItems compares a list in all the ways in which it can be read.
func checkItems(t *testing.T, items codec.Items, want []string) {
	t.Helper()
	if items.Len() != len(want) {
		t.Fatalf("%d items, want %d", items.Len(), len(want))
	}
	endsWithItself(t, "list", items.Raw())
	cursor := items.Cursor()
	n := 0
	for i, item := range items.All() {
		next, ok := cursor.Next()
		if i != n || !ok || string(item) != want[i] || string(next) != want[i] {
			t.Fatalf("item %d: All yields %d %q, Next %q %v, want %q", n, i, item, next, ok, want[i])
		}
		endsWithItself(t, "item", item)
		endsWithItself(t, "item", next)
		n++
	}
	if n != len(want) {
		t.Fatalf("All yields %d items, want %d", n, len(want))
	}
	for range 2 {
		if item, ok := cursor.Next(); ok || item != nil {
			t.Fatalf("Next after the last item: %q, %v", item, ok)
		}
	}
	if items.Raw() != nil {
		equalBytes(t, "list as it lies in the frame", items.Raw(), []byte(slowList(want)))
	}
}

func checkHeader(t *testing.T, in []byte) {
	t.Helper()
	defer untouched(t, in)()
	flags, length, class := slowParseHeader(in)
	h, err := codec.ParseHeader(in)
	sameClass(t, err, class)
	equal(t, "header", h, codec.Header{Flags: flags, Length: length})
	if err == nil && uint64(h.Length) <= maxPayload {
		equalBytes(t, "header, encoded again", codec.AppendHeader(nil, h.Flags, int(h.Length)), in[:codec.HeaderLen])
	}
}

func checkParseItems(t *testing.T, in []byte) {
	t.Helper()
	defer untouched(t, in)()
	want, wantEnd, class := slowParseItems(in)
	items, end, err := codec.ParseItems(in)
	sameClass(t, err, class)
	if err != nil {
		equal(t, "list of an error", items, codec.Items{})
		equal(t, "end of an error", end, 0)
		return
	}
	equal(t, "end", end, wantEnd)
	checkItems(t, items, want)
	equalBytes(t, "list, encoded again", codec.AppendItems(nil, byteSlices(want)), in[:end])
}

func checkPublishBatch(t *testing.T, in []byte) {
	t.Helper()
	defer untouched(t, in)()
	want, class := slowParsePublish(in)
	p, err := codec.ParsePublishBatch(in)
	sameClass(t, err, class)
	if err != nil {
		equal(t, "batch of an error", p, codec.PublishBatch{})
		return
	}
	equal(t, "batch", slowPublish{
		string(p.Tenant), string(p.Namespace), string(p.Stream), itemStrings(p.Items), p.CountAt, p.End,
	}, want)
	endsWithItself(t, "tenant", p.Tenant)
	endsWithItself(t, "namespace", p.Namespace)
	endsWithItself(t, "stream", p.Stream)
	checkItems(t, p.Items, want.Items)

	frame := codec.AppendPublishBatch(nil, want.Tenant, want.Namespace, want.Stream, byteSlices(want.Items))
	equalBytes(t, "batch, encoded again", frame, slowFrame(codec.LayoutPublish, string(in[:p.End])))
	n, err := codec.PublishBatchLen(want.Tenant, want.Namespace, want.Stream, byteSlices(want.Items))
	equal(t, "length", fmt.Sprint(n, err), fmt.Sprint(p.End, nil))

	// The same bytes as the payload of a frame, made into event frames.
	received := slowFrame(codec.LayoutPublish, string(in))
	countAt, end := codec.HeaderLen+p.CountAt, codec.HeaderLen+p.End
	checkRewrite(t, received, countAt, end, want.Items)
}

// checkRewrite makes both event frames of a received publish frame.
func checkRewrite(t *testing.T, received []byte, countAt, end int, items []string) {
	t.Helper()
	const offset = 0x0102030405060708
	for _, r := range []struct {
		flags codec.Flags
		head  int
		do    func([]byte) []byte
	}{
		{codec.LayoutShared, 12, func(b []byte) []byte { return codec.RewriteShared(b, countAt, end) }},
		{codec.LayoutSharedOffsets, 20, func(b []byte) []byte { return codec.RewriteSharedOffsets(b, countAt, end, offset) }},
	} {
		if countAt < r.head {
			continue
		}
		frame := bytes.Clone(received)
		out := r.do(frame)
		equalBytes(t, fmt.Sprintf("rewritten to %#04x", uint16(r.flags)), out, slowEventFrame(r.flags, 0, offset, items))
		endsWithItself(t, "rewritten frame", out)
		if &out[0] != &frame[countAt-r.head] {
			t.Error("rewritten frame is not a part of the received one")
		}
		equalBytes(t, "bytes in front of the rewritten frame", frame[:countAt-r.head], received[:countAt-r.head])
		equalBytes(t, "bytes after the rewritten frame", frame[end:], received[end:])
	}
}

func checkPublishAcked(t *testing.T, in []byte) {
	t.Helper()
	defer untouched(t, in)()
	wantID, wantMode, wantBody, class := slowParseAckedPrefix(in)
	id, mode, body, err := codec.ParsePublishAckedPrefix(in)
	sameClass(t, err, class)
	if err != nil {
		equal(t, "prefix of an error", fmt.Sprint(id, mode, body == nil), fmt.Sprint(0, codec.AckUnset, true))
		return
	}
	equal(t, "prefix", fmt.Sprint(id, mode), fmt.Sprint(wantID, wantMode))
	equalBytes(t, "body", body, []byte(wantBody))
	checkPublishBatch(t, body)
	batch, err := codec.ParsePublishBatch(body)
	if err != nil {
		return
	}
	end := 9 + batch.End
	frame := codec.AppendPublishBatchAcked(nil, id, mode, string(batch.Tenant), string(batch.Namespace),
		string(batch.Stream), byteSlices(itemStrings(batch.Items)))
	equalBytes(t, "batch, encoded again", frame, slowFrame(codec.LayoutPublishAcked, string(in[:end])))
	checkRewrite(t, slowFrame(codec.LayoutPublishAcked, string(in)), codec.HeaderLen+9+batch.CountAt,
		codec.HeaderLen+end, itemStrings(batch.Items))
}

func checkPublishAck(t *testing.T, in []byte) {
	t.Helper()
	defer untouched(t, in)()
	want, class := slowParseAck(in)
	a, err := codec.ParsePublishAck(in)
	sameClass(t, err, class)
	if err != nil {
		equal(t, "acknowledgement of an error", a, codec.PublishAck{})
		return
	}
	equal(t, "acknowledgement", slowAck{a.RequestID, a.OK, string(a.Message)}, want)
	endsWithItself(t, "text", a.Message)
	if a.OK {
		equal(t, "text of a success", a.Message == nil, true)
		frame := codec.AppendPublishAckOK(nil, a.RequestID)
		equalBytes(t, "acknowledgement, encoded again", frame, slowFrame(codec.LayoutPublishAck, big(1, 0)+big(8, a.RequestID)+big(2, 0)))
		return
	}
	frame := codec.AppendPublishAckError(nil, a.RequestID, want.Message)
	equalBytes(t, "acknowledgement, encoded again", frame, slowAckErrorFrame(a.RequestID, want.Message))
	again, err := codec.ParsePublishAck(frame[codec.HeaderLen:])
	if err != nil || !strings.HasPrefix(want.Message, string(again.Message)) || len(again.Message) < min(len(want.Message), 509) {
		t.Errorf("text read back as %q, %v", again.Message, err)
	}
}

func checkEventBatch(t *testing.T, flags codec.Flags, in []byte) {
	t.Helper()
	defer untouched(t, in)()
	want, class := slowParseEvent(flags, in)
	e, err := codec.ParseEventBatch(flags, in)
	sameClass(t, err, class)
	if err != nil {
		equal(t, "batch of an error", e, codec.EventBatch{})
		return
	}
	equal(t, "batch", slowEvent{e.SubscriptionID, e.BaseOffset, e.HasSubscriptionID, e.HasOffset, itemStrings(e.Items)}, want)
	checkItems(t, e.Items, want.Items)
	frame := codec.AppendEventBatch(nil, flags, e.SubscriptionID, e.BaseOffset, byteSlices(want.Items))
	equalBytes(t, "batch, encoded again", frame, slowEventFrame(flags, want.SubscriptionID, want.BaseOffset, want.Items))
	equalBytes(t, "payload, encoded again", frame[codec.HeaderLen:], in[:len(frame)-codec.HeaderLen])
}

func checkExtension(t *testing.T, in []byte) {
	t.Helper()
	defer untouched(t, in)()
	typ, rest, err := codec.ParseExtension(in)
	if len(in) == 0 {
		sameClass(t, err, incomplete)
		return
	}
	sameClass(t, err, "")
	equal(t, "type", byte(typ), in[0])
	equalBytes(t, "rest", rest, in[1:])
	if p, err := codec.ParsePosition(rest); err == nil {
		equalBytes(t, "position", codec.AppendPosition(nil, p)[codec.HeaderLen+1:], rest[:16])
	} else if len(rest) >= 16 {
		t.Errorf("position: %v", err)
	}
	if p, err := codec.ParseCompressedPublish(rest); err == nil && p.CountAt+8+len(p.Block) != len(rest) {
		t.Errorf("compressed publish does not take all of its payload: %+v", p)
	}
	if e, err := codec.ParseCompressedEvents(rest); err == nil {
		if len(e.Block) != len(rest)-16 || 4*e.Count > e.RawLen {
			t.Errorf("compressed events: %+v", e)
		}
		_, _ = e.Items(append([]byte("    "), e.Block...))
	}
	if o, after, err := codec.ParseOrigin(rest); err == nil {
		frame := codec.AppendPublishFrom(nil, o, 0, codec.AckPerBatch, "", "", "", nil)
		want := append([]byte(nil), rest[:codec.OriginLen]...)
		want[24] = min(want[24], 1)
		equalBytes(t, "origin", frame[codec.HeaderLen+1:codec.HeaderLen+1+codec.OriginLen], want)
		equalBytes(t, "after the origin", after, rest[codec.OriginLen:])
	} else if len(rest) >= codec.OriginLen {
		t.Errorf("origin: %v", err)
	}
	if g, err := codec.ParseGap(rest); err == nil {
		equalBytes(t, "gap", codec.AppendGap(nil, g)[codec.HeaderLen+1:], rest[:17])
	} else if len(rest) >= 17 {
		t.Errorf("gap: %v", err)
	}
}

// busy is a message that leaves something in every corner of a Message, and in its memory.
func busy(t *testing.T) *codec.Message {
	t.Helper()
	m := new(codec.Message)
	for _, payload := range []string{
		`{"type":"publish_batch","tenant_id":"\u0041","namespace":"\n","stream":"s","payloads":["\u0041AAA","AAAA"],"request_id":1,"ack":"none"}`,
		`{"type":"cache_put","tenant_id":"\u0041","namespace":"\n","cache":"c","key":"k","value":"AAAA","request_id":7,"ttl_ms":1}`,
	} {
		if err := codec.ParseMessage([]byte(payload), m); err != nil {
			t.Fatal(err)
		}
	}
	return m
}

// checkMessage parses into a new message and into a used one.
func checkMessage(t *testing.T, payload []byte) {
	t.Helper()
	defer untouched(t, payload)()
	want, faults := slowParseMessage(payload)
	for _, m := range []*codec.Message{new(codec.Message), busy(t)} {
		err := codec.ParseMessage(payload, m)
		if class := codec.ClassOf(err); (err == nil) != (len(faults) == 0) || err != nil && !faults[class] {
			t.Fatalf("class %q (%v), want one of %v", class, err, faults)
		}
		if err != nil {
			continue
		}
		equal(t, "message", decodedOf(m), want)
		checkItems(t, m.Items, want.Items)
		for what, view := range map[string][]byte{
			"tenant": m.Tenant, "namespace": m.Namespace, "stream": m.Stream, "cache": m.Cache, "key": m.Key, "token": m.Token,
			"text": m.Text, "payload": m.Payload, "value": m.Value,
		} {
			endsWithItself(t, what, view)
		}

		frame := fastMessageFrame(t, nil, want)
		equalBytes(t, "message, encoded again", frame, slowMessageFrame(want))
		if err := codec.ParseMessage(frame[codec.HeaderLen:], m); err != nil {
			t.Fatalf("parsing what was encoded, %q: %v", frame, err)
		}
		equal(t, "message, parsed again", decodedOf(m), want.expressible())
	}
}

// fastMessageFrame encodes a message with package codec.
func fastMessageFrame(t *testing.T, dst []byte, d decoded) []byte {
	t.Helper()
	items := byteSlices(d.Items)
	switch d.Type {
	case codec.MsgAuth:
		return codec.AppendAuth(dst, d.Tenant, d.Token, d.ClientFlags, d.HasClientFlags, d.Ext)
	case codec.MsgPublish:
		return codec.AppendPublish(dst, d.Tenant, d.Namespace, d.Stream, []byte(d.Payload), d.Ack, d.RequestID, d.HasRequestID)
	case codec.MsgPublishBatch:
		return codec.AppendPublishBatchJSON(dst, d.Tenant, d.Namespace, d.Stream, items, d.Ack, d.RequestID, d.HasRequestID)
	case codec.MsgSubscribe:
		if d.HasEpoch && !d.HasSubscriptionID && d.Start.Kind == codec.StartOffset {
			return codec.AppendResume(dst, d.Tenant, d.Namespace, d.Stream, d.Epoch, d.Start.Offset)
		}
		if d.HasSince && !d.HasSubscriptionID && d.Start.Kind == codec.StartEarliest {
			return codec.AppendSubscribeSince(dst, d.Tenant, d.Namespace, d.Stream, d.Since)
		}
		return codec.AppendSubscribe(dst, d.Tenant, d.Namespace, d.Stream, d.Start, d.SubscriptionID, d.HasSubscriptionID)
	case codec.MsgCachePut:
		return codec.AppendCachePut(dst, d.Tenant, d.Namespace, d.Cache, d.Key, []byte(d.Value), d.RequestID, d.HasRequestID, d.TTL, d.HasTTL)
	case codec.MsgCacheGet:
		return codec.AppendCacheGet(dst, d.Tenant, d.Namespace, d.Cache, d.Key, d.RequestID, d.HasRequestID)
	case codec.MsgAuthOK:
		return codec.AppendAuthOK(dst, d.ServerFlags, d.Ext, d.HasExt)
	case codec.MsgOK:
		return codec.AppendOK(dst)
	case codec.MsgError:
		return codec.AppendError(dst, d.Text)
	case codec.MsgPublishOK:
		return codec.AppendPublishOK(dst, d.RequestID)
	case codec.MsgPublishError:
		return codec.AppendPublishError(dst, d.RequestID, d.Text)
	case codec.MsgSubscribed:
		return codec.AppendSubscribed(dst, d.SubscriptionID)
	case codec.MsgSubscribeCursorError:
		return codec.AppendSubscribeCursorError(dst, d.Reason, d.Requested, d.Available)
	case codec.MsgCacheOK:
		return codec.AppendCacheOK(dst, d.RequestID)
	case codec.MsgCacheValue:
		return codec.AppendCacheValue(dst, []byte(d.Tenant), []byte(d.Namespace), []byte(d.Cache), []byte(d.Key), []byte(d.Value),
			d.HasValue, d.RequestID, d.HasRequestID)
	case codec.MsgEventStreamHello:
		return codec.AppendEventStreamHello(dst, d.SubscriptionID)
	case codec.MsgEvent:
		return codec.AppendEvent(dst, d.Tenant, d.Namespace, d.Stream, []byte(d.Payload), d.Offset, d.HasOffset)
	case codec.MsgEventBatch:
		return codec.AppendEventBatchJSON(dst, d.Tenant, d.Namespace, d.Stream, items, d.Offset, d.HasOffset)
	default:
		t.Fatalf("no encoder for %v", d.Type)
		return nil
	}
}
