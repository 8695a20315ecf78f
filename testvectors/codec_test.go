package testvectors_test

import (
	"bytes"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strconv"
	"testing"

	"github.com/felix-mq/felix/codec"
	"github.com/felix-mq/felix/testvectors"
)

// The tests of this file run every vector through package codec. Decoded values travel as maps from the names of the
// fields to strings, uint64s, slices of strings or nil, so that one comparison does for all kinds.

func TestValid(t *testing.T) {
	for _, v := range testvectors.Valid() {
		t.Run(v.Name, func(t *testing.T) {
			frame := v.Frame.Expand()
			kind, values, err := decode(frame, v.MaxFrame, negotiated(v.Negotiated))
			if err != nil {
				t.Fatalf("decoding: %v (class %q)", err, codec.ClassOf(err))
			}
			if kind != v.Kind {
				t.Errorf("kind = %q, want %q", kind, v.Kind)
			}
			compareValues(t, values, valuesOf(v.Fields, v.Kind))
			if h, err := codec.ParseHeader(frame); err != nil || uint16(h.Flags) != v.Flags {
				t.Errorf("flags = 0x%04x (%v), want 0x%04x", h.Flags, err, v.Flags)
			}
			wantFromClient := v.Direction == testvectors.ClientToBroker
			if got := fromClient(t, frame); got != wantFromClient {
				t.Errorf("may come from a client = %v, want %v", got, wantFromClient)
			}

			want := v.CanonicalFrame.Expand()
			compareBytes(t, "encoded", encode(t, nil, v.Kind, v.Flags, v.Fields), want)
			// An encoder appends.
			prefix := []byte("before")
			got := encode(t, prefix, v.Kind, v.Flags, v.Fields)
			compareBytes(t, "appended", got, append(slices.Clip(prefix), want...))
			if v.Canonical && !bytes.Equal(frame, want) {
				t.Error("the vector is canonical and has another canonical frame")
			}
		})
	}
}

func TestInvalid(t *testing.T) {
	for _, v := range testvectors.Invalid() {
		t.Run(v.Name, func(t *testing.T) {
			frame := v.Frame.Expand()
			kind, values, err := decode(frame, v.MaxFrame, 0)
			if err == nil {
				t.Fatalf("decoded to %s %.200v, want an error of class %q", kind, values, v.Class)
			}
			if class := codec.ClassOf(err); class != v.Class {
				t.Errorf("class = %q (%v), want %q", class, err, v.Class)
			}
			if v.RequestID != nil {
				id, _, _, err := codec.ParsePublishAckedPrefix(frame[codec.HeaderLen:])
				if err != nil || id != *v.RequestID {
					t.Errorf("prefix: request id %d, %v, want %d", id, err, *v.RequestID)
				}
			}
		})
	}
}

func TestRewrites(t *testing.T) {
	for _, v := range testvectors.Rewrites() {
		t.Run(v.Name, func(t *testing.T) {
			received := v.Received.Expand()
			h, err := codec.ParseHeader(received)
			if err != nil {
				t.Fatal(err)
			}
			// The payload of the acked form begins with a prefix.
			body := received[codec.HeaderLen:]
			if h.Flags == codec.LayoutPublishAcked {
				if _, _, body, err = codec.ParsePublishAckedPrefix(body); err != nil {
					t.Fatal(err)
				}
			}
			batch, err := codec.ParsePublishBatch(body)
			if err != nil {
				t.Fatal(err)
			}
			bodyAt := len(received) - len(body)
			countAt, end := bodyAt+batch.CountAt, bodyAt+batch.End
			if countAt != v.CountAt || end != v.End {
				t.Fatalf("item list at [%d, %d), want [%d, %d)", countAt, end, v.CountAt, v.End)
			}
			compareBytes(t, "items as they lie in the frame", batch.Items.Raw(), received[v.CountAt:v.End])

			// Each rewrite spoils the bytes in front of count, so it gets a copy.
			compareBytes(t, "shared", codec.RewriteShared(bytes.Clone(received), countAt, end), v.Shared.Expand())
			if countAt >= codec.HeaderLen+8 {
				got := codec.RewriteSharedOffsets(bytes.Clone(received), countAt, end, v.BaseOffset)
				compareBytes(t, "shared with offset", got, v.SharedOffsets.Expand())
			}

			// The same frames built in a side buffer, whole and in parts.
			items := batch.Items
			compareBytes(t, "shared, appended",
				codec.AppendEventPart(nil, codec.LayoutShared, 0, 0, items.Len(), items.Raw()[4:]), v.Shared.Expand())
			compareBytes(t, "shared with offset, appended",
				codec.AppendEventPart(nil, codec.LayoutSharedOffsets, 0, v.BaseOffset, items.Len(), items.Raw()[4:]),
				v.SharedOffsets.Expand())
			for _, p := range v.Parts {
				region := regionOf(items, p.From, p.To)
				compareBytes(t, fmt.Sprintf("items [%d, %d)", p.From, p.To),
					codec.AppendEventPart(nil, codec.LayoutShared, 0, 0, p.To-p.From, region), p.Shared.Expand())
				compareBytes(t, fmt.Sprintf("items [%d, %d) with offset", p.From, p.To),
					codec.AppendEventPart(nil, codec.LayoutSharedOffsets, 0, v.BaseOffset+uint64(p.From), p.To-p.From, region),
					p.SharedOffsets.Expand())
			}
		})
	}
}

// regionOf returns the lengths and bytes of the items [from, to) as they lie in the frame.
func regionOf(items codec.Items, from, to int) []byte {
	start, at := 4, 4
	for i, item := range items.All() {
		if i == from {
			start = at
		}
		if i == to {
			break
		}
		at += 4 + len(item)
	}
	return items.Raw()[start:at]
}

var errShortPayload = errors.New("the frame is shorter than its header says")

// negotiated returns the extensions of these names.
func negotiated(names []string) codec.Extensions {
	var set codec.Extensions
	for bit := range 32 {
		if e := codec.Extensions(1) << bit; len(e.Names()) == 1 && slices.Contains(names, e.Names()[0]) {
			set |= e
		}
	}
	return set
}

// decode decodes a whole frame.
func decode(frame []byte, maxFrame int, ext codec.Extensions) (kind string, values map[string]any, err error) {
	h, err := codec.ParseHeader(frame)
	if err != nil {
		return "", nil, err
	}
	if err := h.CheckLength(maxFrame); err != nil {
		return "", nil, err
	}
	payload := frame[codec.HeaderLen:]
	if len(payload) != int(h.Length) {
		return "", nil, errShortPayload
	}
	if err := h.Flags.CheckNegotiated(ext); err != nil {
		return "", nil, err
	}
	switch h.Flags {
	case codec.LayoutJSON:
		return decodeMessage(payload)
	case codec.LayoutPublish, codec.LayoutPublishAcked:
		kind = "binary_publish_batch"
		values = map[string]any{}
		if h.Flags == codec.LayoutPublishAcked {
			kind = "binary_acked_publish_batch"
			id, mode, body, err := codec.ParsePublishAckedPrefix(payload)
			if err != nil {
				return "", nil, err
			}
			values["request_id"], values["ack"] = id, ackName(mode)
			payload = body
		}
		batch, err := codec.ParsePublishBatch(payload)
		if err != nil {
			return "", nil, err
		}
		values["tenant_id"] = string(batch.Tenant)
		values["namespace"] = string(batch.Namespace)
		values["stream"] = string(batch.Stream)
		values["payloads"] = itemStrings(batch.Items)
		return kind, values, nil
	case codec.LayoutPublishAck:
		ack, err := codec.ParsePublishAck(payload)
		if err != nil {
			return "", nil, err
		}
		values = map[string]any{"request_id": ack.RequestID, "status": "ok"}
		if !ack.OK {
			values["status"], values["message"] = "error", string(ack.Message)
		}
		return "binary_publish_ack", values, nil
	case codec.LayoutEvent, codec.LayoutEventOffsets, codec.LayoutShared, codec.LayoutSharedOffsets:
		batch, err := codec.ParseEventBatch(h.Flags, payload)
		if err != nil {
			return "", nil, err
		}
		kind = "binary_shared_event_batch"
		values = map[string]any{"payloads": itemStrings(batch.Items)}
		if batch.HasSubscriptionID {
			kind = "binary_event_batch"
			values["subscription_id"] = batch.SubscriptionID
		}
		if batch.HasOffset {
			values["base_offset"] = batch.BaseOffset
		}
		return kind, values, nil
	case codec.LayoutExtension:
		return decodeExtension(payload)
	default:
	}
	return "", nil, fmt.Errorf("codec lets the flags 0x%04x pass", h.Flags)
}

func decodeExtension(payload []byte) (string, map[string]any, error) {
	typ, body, err := codec.ParseExtension(payload)
	if err != nil {
		return "", nil, err
	}
	switch typ {
	case codec.ExtensionPosition:
		p, err := codec.ParsePosition(body)
		return "extension_position", map[string]any{"epoch": p.Epoch, "offset": p.Offset}, err
	case codec.ExtensionGap:
		g, err := codec.ParseGap(body)
		return "extension_gap", map[string]any{"gap_reason": uint64(g.Reason), "lost": g.Lost, "next": g.Next}, err
	case codec.ExtensionPublishS2, codec.ExtensionPublishAckedS2:
		kind, values := "extension_publish_s2", map[string]any{}
		if typ == codec.ExtensionPublishAckedS2 {
			kind = "extension_acked_publish_s2"
			id, mode, rest, err := codec.ParsePublishAckedPrefix(body)
			if err != nil {
				return "", nil, err
			}
			values["request_id"], values["ack"], body = id, ackName(mode), rest
		}
		p, err := codec.ParseCompressedPublish(body)
		values["tenant_id"], values["namespace"], values["stream"] = string(p.Tenant), string(p.Namespace), string(p.Stream)
		addCompressed(values, p.Compressed)
		return kind, values, err
	case codec.ExtensionPublishFrom, codec.ExtensionPublishFromS2:
		return decodePublishFrom(typ, body)
	case codec.ExtensionEventS2:
		e, err := codec.ParseCompressedEvents(body)
		values := map[string]any{"base_offset": e.BaseOffset}
		addCompressed(values, e.Compressed)
		return "extension_events_s2", values, err
	case codec.ExtensionCacheRequest:
		return decodeCacheRequest(body)
	case codec.ExtensionCacheReply:
		return decodeCacheReply(body)
	case codec.ExtensionCacheEvents:
		keys, versions, kinds := []string{}, []string{}, []int{}
		for len(body) > 0 {
			var e codec.CacheEvent
			if e, body, err = codec.ParseCacheEvent(body); err != nil {
				return "", nil, err
			}
			keys, versions, kinds = append(keys, string(e.Key)), append(versions, fmt.Sprint(e.Version)), append(kinds, int(e.Kind))
		}
		return "extension_cache_events", map[string]any{"keys": keys, "versions": versions, "event_kinds": kinds}, nil
	}
	return "", nil, fmt.Errorf("unknown extension type %d", typ)
}

func decodePublishFrom(typ codec.ExtensionType, body []byte) (string, map[string]any, error) {
	o, body, err := codec.ParseOrigin(body)
	if err != nil {
		return "", nil, err
	}
	id, mode, body, err := codec.ParsePublishAckedPrefix(body)
	if err != nil {
		return "", nil, err
	}
	values := map[string]any{
		"producer": string(o.Producer[:]), "sequence": o.Sequence, "repeated": o.Repeated, "request_id": id, "ack": ackName(mode),
	}
	if typ == codec.ExtensionPublishFromS2 {
		p, err := codec.ParseCompressedPublish(body)
		values["tenant_id"], values["namespace"], values["stream"] = string(p.Tenant), string(p.Namespace), string(p.Stream)
		addCompressed(values, p.Compressed)
		return "extension_publish_from_s2", values, err
	}
	p, err := codec.ParsePublishBatch(body)
	values["tenant_id"], values["namespace"], values["stream"] = string(p.Tenant), string(p.Namespace), string(p.Stream)
	values["payloads"] = itemStrings(p.Items)
	return "extension_publish_from", values, err
}

var cacheKinds = map[codec.CacheOp]string{
	codec.CacheGet: "extension_cache_get", codec.CachePut: "extension_cache_put", codec.CacheDelete: "extension_cache_delete",
	codec.CachePutIf: "extension_cache_put_if", codec.CacheWatch: "extension_cache_watch",
}

func decodeCacheRequest(body []byte) (string, map[string]any, error) {
	r, _, err := codec.ParseCacheRequest(body)
	values := map[string]any{"request_id": r.RequestID, "namespace": string(r.Namespace), "cache": string(r.Cache)}
	switch r.Op {
	case codec.CacheGet:
		keys := []string{}
		for key, ok := r.Keys.Next(); ok; key, ok = r.Keys.Next() {
			keys = append(keys, string(key))
		}
		values["keys"] = keys
	case codec.CachePutIf:
		values["expected"] = r.Expected
		fallthrough
	case codec.CachePut:
		values["ttl_ms"], values["value"] = r.TTL, string(r.Value)
		fallthrough
	case codec.CacheDelete:
		values["key"] = string(r.Key)
	case codec.CacheWatch:
	}
	return cacheKinds[r.Op], values, err
}

func decodeCacheReply(body []byte) (string, map[string]any, error) {
	r, err := codec.ParseCacheReply(body)
	values := map[string]any{"request_id": r.RequestID, "reply_status": uint64(r.Status)}
	switch r.Status {
	case codec.CacheRefused:
		values["message"] = string(r.Text)
	case codec.CacheValues:
		versions, list := []string{}, []string{}
		for version, value, ok := r.Values.Next(); ok; version, value, ok = r.Values.Next() {
			versions, list = append(versions, fmt.Sprint(version)), append(list, string(value))
		}
		values["versions"], values["values"] = versions, list
	case codec.CacheDone, codec.CacheNot:
		values["version"] = r.Version
	}
	return "extension_cache_reply", values, err
}

// encodeCache appends a frame of the extension cache.
func encodeCache(dst []byte, kind string, f testvectors.Fields) []byte {
	id, _ := optional(f.RequestID)
	keys := []string{string(f.Key)}
	if f.Keys != nil {
		keys = texts(f.Keys)
	}
	version := func(i int) uint64 {
		n, _ := strconv.ParseUint(f.Versions[i], 10, 64)
		return n
	}
	switch kind {
	case "extension_cache_events":
		var events []byte
		for i, key := range keys {
			events = codec.AppendCacheEvent(events, codec.CacheEvent{Kind: codec.CacheEventKind(f.EventKinds[i]), Version: version(i), Key: []byte(key)})
		}
		return append(codec.AppendCacheEvents(dst, len(events)), events...)
	case "extension_cache_reply":
		switch codec.CacheStatus(*f.ReplyStatus) {
		case codec.CacheRefused:
			return codec.AppendCacheRefused(dst, id, string(f.Message))
		case codec.CacheValues:
			list := f.Values.Expand()
			dst = codec.AppendCacheValues(dst, id, len(list), len(slices.Concat(list...)))
			for i, v := range list {
				dst = append(codec.AppendCacheValueHead(dst, version(i), len(v)), v...)
			}
			return dst
		case codec.CacheDone, codec.CacheNot:
		}
		return codec.AppendCacheReply(dst, id, codec.CacheStatus(*f.ReplyStatus), *f.Version)
	}
	r := codec.CacheRequest{RequestID: id}
	r.TTL, _ = optional(f.TTL)
	r.Expected, _ = optional(f.Expected)
	if f.Value != nil {
		r.Value = f.Value.Expand()
	}
	for op, name := range cacheKinds {
		if name == kind {
			r.Op = op
		}
	}
	if r.Op == codec.CacheWatch {
		keys = nil
	}
	return codec.AppendCacheRequest(dst, &r, string(f.Namespace), string(f.Cache), keys...)
}

func texts(items testvectors.Items) []string {
	out := []string{}
	for _, item := range items.Expand() {
		out = append(out, string(item))
	}
	return out
}

func addCompressed(values map[string]any, c codec.Compressed) {
	values["count"], values["raw_length"], values["block"] = uint64(c.Count), uint64(c.RawLen), string(c.Block)
}

func decodeMessage(payload []byte) (string, map[string]any, error) {
	var m codec.Message
	if err := codec.ParseMessage(payload, &m); err != nil {
		return "", nil, err
	}
	values := map[string]any{}
	topic := func() {
		values["tenant_id"], values["namespace"], values["stream"] = string(m.Tenant), string(m.Namespace), string(m.Stream)
	}
	entry := func() {
		values["tenant_id"], values["namespace"] = string(m.Tenant), string(m.Namespace)
		values["cache"], values["key"] = string(m.Cache), string(m.Key)
	}
	optional := func(name string, value uint64, has bool) {
		if has {
			values[name] = value
		}
	}
	switch m.Type {
	case codec.MsgAuth:
		values["tenant_id"], values["token"] = string(m.Tenant), string(m.Token)
		optional("client_flags", uint64(m.ClientFlags), m.HasClientFlags)
		if m.HasExt {
			values["ext"] = m.Ext.Names()
		}
		if m.Fence != nil {
			values["fence"] = string(m.Fence)
		}
	case codec.MsgPublish, codec.MsgPublishBatch:
		topic()
		if m.Type == codec.MsgPublish {
			values["payload"] = string(m.Payload)
		} else {
			values["payloads"] = itemStrings(m.Items)
		}
		optional("request_id", m.RequestID, m.HasRequestID)
		if m.Ack != codec.AckUnset {
			values["ack"] = ackName(m.Ack)
		}
	case codec.MsgSubscribe:
		topic()
		optional("subscription_id", m.SubscriptionID, m.HasSubscriptionID)
		switch m.Start.Kind {
		case codec.StartUnset:
		case codec.StartLatest:
			values["start"] = "latest"
		case codec.StartEarliest:
			values["start"] = "earliest"
		case codec.StartOffset:
			values["start"] = m.Start.Offset
		}
		optional("epoch", m.Epoch, m.HasEpoch)
		optional("since", m.Since, m.HasSince)
	case codec.MsgCachePut:
		entry()
		values["value"] = string(m.Value)
		optional("request_id", m.RequestID, m.HasRequestID)
		optional("ttl_ms", m.TTL, m.HasTTL)
	case codec.MsgCacheGet:
		entry()
		optional("request_id", m.RequestID, m.HasRequestID)
	case codec.MsgAuthOK:
		values["server_flags"] = uint64(m.ServerFlags)
		if m.HasExt {
			values["ext"] = m.Ext.Names()
		}
	case codec.MsgOK:
	case codec.MsgError:
		values["message"] = string(m.Text)
	case codec.MsgPublishOK, codec.MsgCacheOK:
		values["request_id"] = m.RequestID
	case codec.MsgPublishError:
		values["request_id"], values["message"] = m.RequestID, string(m.Text)
	case codec.MsgSubscribed, codec.MsgEventStreamHello:
		values["subscription_id"] = m.SubscriptionID
	case codec.MsgSubscribeCursorError:
		values["reason"], values["requested"], values["available"] = m.Reason.String(), m.Requested, m.Available
	case codec.MsgCacheValue:
		entry()
		values["value"] = nil
		if m.HasValue {
			values["value"] = string(m.Value)
		}
		optional("request_id", m.RequestID, m.HasRequestID)
	case codec.MsgEvent:
		topic()
		values["payload"] = string(m.Payload)
		optional("offset", m.Offset, m.HasOffset)
	case codec.MsgEventBatch:
		topic()
		values["payloads"] = itemStrings(m.Items)
		optional("base_offset", m.Offset, m.HasOffset)
	default:
		return "", nil, fmt.Errorf("unknown message type %v", m.Type)
	}
	return m.Type.String(), values, nil
}

// fromClient reports whether codec lets a client send the frame.
func fromClient(t *testing.T, frame []byte) bool {
	t.Helper()
	h, err := codec.ParseHeader(frame)
	if err != nil {
		t.Fatal(err)
	}
	if h.Flags == codec.LayoutExtension {
		typ, _, err := codec.ParseExtension(frame[codec.HeaderLen:])
		if err != nil {
			t.Fatal(err)
		}
		return typ.FromClient()
	}
	if !h.Flags.FromClient() {
		return false
	}
	if h.Flags != codec.LayoutJSON {
		return true
	}
	var m codec.Message
	if err := codec.ParseMessage(frame[codec.HeaderLen:], &m); err != nil {
		t.Fatal(err)
	}
	return m.Type.FromClient()
}

// encode appends the frame of the given kind to dst.
func encode(t *testing.T, dst []byte, kind string, flags uint16, f testvectors.Fields) []byte {
	t.Helper()
	tenant, namespace, stream := string(f.TenantID), string(f.Namespace), string(f.Stream)
	cache, key := string(f.Cache), string(f.Key)
	id, hasID := optional(f.RequestID)
	subscription, hasSubscription := optional(f.SubscriptionID)
	switch kind {
	case "auth":
		clientFlags, has := optional(f.ClientFlags)
		fence, _ := codec.ParseFence([]byte(f.Fence))
		return codec.AppendAuthFenced(dst, tenant, string(f.Token), codec.Flags(clientFlags), has, extOf(f), fence)
	case "publish":
		return codec.AppendPublish(dst, tenant, namespace, stream, f.Payload.Expand(), ackOf(t, f.Ack), id, hasID)
	case "publish_batch":
		return codec.AppendPublishBatchJSON(dst, tenant, namespace, stream, f.Payloads.Expand(), ackOf(t, f.Ack), id, hasID)
	case "subscribe":
		if f.Epoch != nil {
			return codec.AppendResume(dst, tenant, namespace, stream, *f.Epoch, f.Start.Offset)
		}
		if f.Since != nil {
			return codec.AppendSubscribeSince(dst, tenant, namespace, stream, *f.Since)
		}
		return codec.AppendSubscribe(dst, tenant, namespace, stream, startOf(t, f.Start), subscription, hasSubscription)
	case "cache_put":
		ttl, hasTTL := optional(f.TTL)
		return codec.AppendCachePut(dst, tenant, namespace, cache, key, f.Value.Expand(), id, hasID, ttl, hasTTL)
	case "cache_get":
		return codec.AppendCacheGet(dst, tenant, namespace, cache, key, id, hasID)
	case "auth_ok":
		return codec.AppendAuthOK(dst, codec.Flags(*f.ServerFlags), extOf(f), f.Ext != nil)
	case "ok":
		return codec.AppendOK(dst)
	case "error":
		return codec.AppendError(dst, string(f.Message))
	case "publish_ok":
		return codec.AppendPublishOK(dst, id)
	case "publish_error":
		return codec.AppendPublishError(dst, id, string(f.Message))
	case "subscribed":
		return codec.AppendSubscribed(dst, subscription)
	case "subscribe_cursor_error":
		reason := codec.CursorTooOld
		if f.Reason == codec.CursorInFuture.String() {
			reason = codec.CursorInFuture
		}
		return codec.AppendSubscribeCursorError(dst, reason, *f.Requested, *f.Available)
	case "cache_ok":
		return codec.AppendCacheOK(dst, id)
	case "cache_value":
		var value []byte
		if f.Value != nil {
			value = f.Value.Expand()
		}
		return codec.AppendCacheValue(dst, []byte(tenant), []byte(namespace), []byte(cache), []byte(key),
			value, f.Value != nil, id, hasID)
	case "event_stream_hello":
		return codec.AppendEventStreamHello(dst, subscription)
	case "event":
		offset, hasOffset := optional(f.Offset)
		return codec.AppendEvent(dst, tenant, namespace, stream, f.Payload.Expand(), offset, hasOffset)
	case "event_batch":
		offset, hasOffset := optional(f.BaseOffset)
		return codec.AppendEventBatchJSON(dst, tenant, namespace, stream, f.Payloads.Expand(), offset, hasOffset)

	case "binary_publish_batch":
		items := f.Payloads.Expand()
		before := len(dst)
		dst = codec.AppendPublishBatch(dst, tenant, namespace, stream, items)
		n, err := codec.PublishBatchLen(tenant, namespace, stream, items)
		if err != nil || before+codec.HeaderLen+n != len(dst) {
			t.Errorf("PublishBatchLen = %d, %v, want %d", n, err, len(dst)-before-codec.HeaderLen)
		}
		return dst
	case "binary_acked_publish_batch":
		return codec.AppendPublishBatchAcked(dst, id, ackOf(t, f.Ack), tenant, namespace, stream, f.Payloads.Expand())
	case "binary_publish_ack":
		if f.Status == "ok" {
			return codec.AppendPublishAckOK(dst, id)
		}
		message := f.Message
		if f.UncutMessage != nil {
			message = *f.UncutMessage
		}
		return codec.AppendPublishAckError(dst, id, string(message))
	case "extension_position":
		return codec.AppendPosition(dst, codec.Position{Epoch: *f.Epoch, Offset: *f.Offset})
	case "extension_publish_s2", "extension_acked_publish_s2":
		mode := codec.AckNone
		if kind == "extension_acked_publish_s2" {
			mode = ackOf(t, f.Ack)
		}
		block := f.Block.Expand()
		dst = codec.AppendCompressedPublish(dst, id, mode, tenant, namespace, stream, *f.Count, *f.RawLength, len(block))
		return append(dst, block...)
	case "extension_publish_from", "extension_publish_from_s2":
		o := codec.Origin{Producer: [16]byte(f.Producer.Expand()), Sequence: *f.Sequence, Repeated: *f.Repeated}
		if kind == "extension_publish_from" {
			return codec.AppendPublishFrom(dst, o, id, ackOf(t, f.Ack), tenant, namespace, stream, f.Payloads.Expand())
		}
		block := f.Block.Expand()
		dst = codec.AppendCompressedPublishFrom(dst, o, id, ackOf(t, f.Ack), tenant, namespace, stream, *f.Count, *f.RawLength, len(block))
		return append(dst, block...)
	case "extension_events_s2":
		// There is no encoder: brokers make these frames out of publishes.
		block := f.Block.Expand()
		publish := codec.AppendCompressedPublish(nil, 0, codec.AckNone, "t", "n", "s", *f.Count, *f.RawLength, len(block))
		publish = append(publish, block...)
		return append(dst, codec.RewriteCompressed(publish, len(publish)-len(block)-8, *f.BaseOffset)...)
	case "extension_cache_get", "extension_cache_put", "extension_cache_delete", "extension_cache_put_if", "extension_cache_watch",
		"extension_cache_reply", "extension_cache_events":
		return encodeCache(dst, kind, f)
	case "extension_gap":
		return codec.AppendGap(dst, codec.Gap{Reason: codec.GapReason(*f.GapReason), Lost: *f.Lost, Next: *f.Next})
	case "binary_event_batch", "binary_shared_event_batch":
		offset, _ := optional(f.BaseOffset)
		return codec.AppendEventBatch(dst, codec.Flags(flags), subscription, offset, f.Payloads.Expand())
	}
	t.Fatalf("unknown kind %q", kind)
	return nil
}

func extOf(f testvectors.Fields) codec.Extensions {
	if f.Ext == nil {
		return 0
	}
	return negotiated(*f.Ext)
}

func optional[T any](p *T) (value T, has bool) {
	if p == nil {
		return value, false
	}
	return *p, true
}

func ackName(mode codec.AckMode) string {
	switch mode {
	case codec.AckPerMessage:
		return "per_message"
	case codec.AckPerBatch:
		return "per_batch"
	case codec.AckNone:
		return "none"
	default:
		return ""
	}
}

func ackOf(t *testing.T, name string) codec.AckMode {
	t.Helper()
	for _, mode := range []codec.AckMode{codec.AckUnset, codec.AckPerMessage, codec.AckPerBatch, codec.AckNone} {
		if ackName(mode) == name {
			return mode
		}
	}
	t.Fatalf("unknown ack mode %q", name)
	return codec.AckUnset
}

func startOf(t *testing.T, s *testvectors.Start) codec.Start {
	t.Helper()
	switch {
	case s == nil:
		return codec.Start{}
	case s.Keyword == "latest":
		return codec.Start{Kind: codec.StartLatest}
	case s.Keyword == "earliest":
		return codec.Start{Kind: codec.StartEarliest}
	case s.Keyword != "":
		t.Fatalf("unknown start %q", s.Keyword)
	}
	return codec.Start{Kind: codec.StartOffset, Offset: s.Offset}
}

// valuesOf returns the fields that a frame of the given kind has.
func valuesOf(f testvectors.Fields, kind string) map[string]any {
	values := map[string]any{}
	add := func(names ...string) {
		for _, name := range names {
			switch name {
			case "tenant_id":
				values[name] = string(f.TenantID)
			case "namespace":
				values[name] = string(f.Namespace)
			case "stream":
				values[name] = string(f.Stream)
			case "cache":
				values[name] = string(f.Cache)
			case "key":
				values[name] = string(f.Key)
			case "token":
				values[name] = string(f.Token)
			case "fence":
				values[name] = string(f.Fence)
			case "message":
				values[name] = string(f.Message)
			case "payload":
				values[name] = string(f.Payload.Expand())
			case "payloads":
				payloads := make([]string, len(f.Payloads))
				for i, p := range f.Payloads {
					payloads[i] = string(p.Expand())
				}
				values[name] = payloads
			case "value":
				values[name] = nil
				if f.Value != nil {
					values[name] = string(f.Value.Expand())
				}
			case "status":
				values[name] = f.Status
			case "reason":
				values[name] = f.Reason
			}
		}
	}
	for name, p := range map[string]*uint64{
		"request_id": f.RequestID, "subscription_id": f.SubscriptionID, "offset": f.Offset, "base_offset": f.BaseOffset,
		"ttl_ms": f.TTL, "requested": f.Requested, "available": f.Available,
		"epoch": f.Epoch, "since": f.Since, "lost": f.Lost, "next": f.Next,
		"version": f.Version, "expected": f.Expected,
	} {
		if p != nil {
			values[name] = *p
		}
	}
	for name, p := range map[string]*uint16{"client_flags": f.ClientFlags, "server_flags": f.ServerFlags} {
		if p != nil {
			values[name] = uint64(*p)
		}
	}
	if f.Ext != nil {
		values["ext"] = *f.Ext
	}
	if f.Sequence != nil {
		values["producer"], values["sequence"], values["repeated"] = string(f.Producer.Expand()), *f.Sequence, *f.Repeated
	}
	if f.Count != nil {
		values["count"], values["raw_length"], values["block"] = uint64(*f.Count), uint64(*f.RawLength), string(f.Block.Expand())
	}
	if f.Keys != nil {
		values["keys"] = texts(f.Keys)
	}
	if f.Versions != nil {
		values["versions"] = f.Versions
	}
	if f.Values != nil {
		values["values"] = texts(f.Values)
	}
	if f.EventKinds != nil {
		values["event_kinds"] = f.EventKinds
	}
	if f.ReplyStatus != nil {
		values["reply_status"] = uint64(*f.ReplyStatus)
		if f.Message != "" {
			add("message")
		}
	}
	if f.GapReason != nil {
		values["gap_reason"] = uint64(*f.GapReason)
	}
	if f.Ack != "" {
		values["ack"] = f.Ack
	}
	if f.Start != nil {
		values["start"] = f.Start.Offset
		if f.Start.Keyword != "" {
			values["start"] = f.Start.Keyword
		}
	}
	switch kind {
	case "auth":
		add("tenant_id", "token")
		if f.Fence != "" {
			add("fence")
		}
	case "publish", "event":
		add("tenant_id", "namespace", "stream", "payload")
	case "extension_publish_s2", "extension_acked_publish_s2", "extension_publish_from_s2":
		add("tenant_id", "namespace", "stream")
	case "publish_batch", "event_batch", "binary_publish_batch", "binary_acked_publish_batch", "extension_publish_from":
		add("tenant_id", "namespace", "stream", "payloads")
	case "subscribe":
		add("tenant_id", "namespace", "stream")
	case "cache_put", "cache_value":
		add("tenant_id", "namespace", "cache", "key", "value")
	case "extension_cache_get", "extension_cache_watch":
		add("namespace", "cache")
	case "extension_cache_delete":
		add("namespace", "cache", "key")
	case "extension_cache_put", "extension_cache_put_if":
		add("namespace", "cache", "key", "value")
	case "cache_get":
		add("tenant_id", "namespace", "cache", "key")
	case "error", "publish_error":
		add("message")
	case "subscribe_cursor_error":
		add("reason")
	case "binary_publish_ack":
		add("status")
		if f.Status == "error" {
			add("message")
		}
	case "binary_event_batch", "binary_shared_event_batch":
		add("payloads")
	}
	return values
}

func itemStrings(items codec.Items) []string {
	out := make([]string, 0, items.Len())
	for _, item := range items.All() {
		out = append(out, string(item))
	}
	return out
}

func compareValues(t *testing.T, got, want map[string]any) {
	t.Helper()
	for name, w := range want {
		g, ok := got[name]
		if !ok {
			t.Errorf("%s is absent, want %.100q", name, fmt.Sprint(w))
		} else if !reflect.DeepEqual(g, w) {
			t.Errorf("%s = %.100q, want %.100q", name, fmt.Sprint(g), fmt.Sprint(w))
		}
	}
	for name, g := range got {
		if _, ok := want[name]; !ok {
			t.Errorf("%s = %.100q, want it absent", name, fmt.Sprint(g))
		}
	}
}

func compareBytes(t *testing.T, what string, got, want []byte) {
	t.Helper()
	if bytes.Equal(got, want) {
		return
	}
	at := 0
	for at < len(got) && at < len(want) && got[at] == want[at] {
		at++
	}
	t.Errorf("%s: %d bytes, want %d; from byte %d on\n got %.64x\nwant %.64x", what, len(got), len(want), at, got[at:], want[at:])
}
