package codec

import (
	"encoding/base64"
	"encoding/binary"
	"math"
	"strconv"
)

// The encoders of JSON messages write what the reference implementation writes, byte for byte
// (docs/protocol/wire.md#encoding): type first, the other members in their order, no whitespace.

// text is what a name or a text may be given as.
type text interface{ ~string | ~[]byte }

// begin appends space for the header, and the type.
func begin(dst []byte, t MessageType) []byte {
	dst = AppendHeader(dst, LayoutJSON, 0)
	dst = append(dst, `{"type":"`...)
	dst = append(dst, messages[t].name...)
	return append(dst, '"')
}

// end closes the object and completes the header, which begins at start.
func end(dst []byte, start int) []byte {
	dst = append(dst, '}')
	n := len(dst) - start - HeaderLen
	if uint64(n) > math.MaxUint32 {
		panic("codec: message is larger than 4294967295 bytes")
	}
	binary.BigEndian.PutUint32(dst[start+8:], uint32(n))
	return dst
}

// name appends `,"name":`.
func name(dst []byte, name string) []byte {
	dst = append(dst, ',', '"')
	dst = append(dst, name...)
	return append(dst, '"', ':')
}

func stringMember[T text](dst []byte, key string, value T) []byte {
	return appendString(name(dst, key), value)
}

func numberMember(dst []byte, key string, value uint64) []byte {
	return strconv.AppendUint(name(dst, key), value, 10)
}

func optionalNumber(dst []byte, key string, value uint64, has bool) []byte {
	if !has {
		return dst
	}
	return numberMember(dst, key, value)
}

func base64Member(dst []byte, key string, value []byte) []byte {
	return appendBase64(name(dst, key), value)
}

func base64List(dst []byte, key string, values [][]byte) []byte {
	dst = append(name(dst, key), '[')
	for i, v := range values {
		if i > 0 {
			dst = append(dst, ',')
		}
		dst = appendBase64(dst, v)
	}
	return append(dst, ']')
}

func ackMember(dst []byte, ack AckMode) []byte {
	if ack == AckUnset {
		return dst
	}
	return stringMember(dst, "ack", ack.String())
}

func topicMembers[T text](dst []byte, tenant, namespace, stream T) []byte {
	dst = stringMember(dst, "tenant_id", tenant)
	dst = stringMember(dst, "namespace", namespace)
	return stringMember(dst, "stream", stream)
}

func entryMembers[T text](dst []byte, tenant, namespace, cache, key T) []byte {
	dst = stringMember(dst, "tenant_id", tenant)
	dst = stringMember(dst, "namespace", namespace)
	dst = stringMember(dst, "cache", cache)
	return stringMember(dst, "key", key)
}

func appendBase64(dst, value []byte) []byte {
	dst = append(dst, '"')
	dst = base64.StdEncoding.AppendEncode(dst, value)
	return append(dst, '"')
}

// short escapes for the control characters that have one.
var shortEscapes = [0x20]byte{'\b': 'b', '\t': 't', '\n': 'n', '\f': 'f', '\r': 'r'}

// appendString appends a JSON string. Only quotes, backslashes and control characters are escaped.
func appendString[T text](dst []byte, s T) []byte {
	const hex = "0123456789abcdef"
	dst = append(dst, '"')
	from := 0
	for i := range len(s) {
		c := s[i]
		if c >= 0x20 && c != '"' && c != '\\' {
			continue
		}
		dst = append(dst, s[from:i]...)
		from = i + 1
		switch {
		case c >= 0x20:
			dst = append(dst, '\\', c)
		case shortEscapes[c] != 0:
			dst = append(dst, '\\', shortEscapes[c])
		default:
			dst = append(dst, '\\', 'u', '0', '0', hex[c>>4], hex[c&15])
		}
	}
	dst = append(dst, s[from:]...)
	return append(dst, '"')
}

// AppendAuth appends an auth, the first message of every stream that a client opens. Without flags the client does not
// negotiate, and ext, which counts only with them, is not written; an empty ext is not either.
func AppendAuth(dst []byte, tenant, token string, clientFlags Flags, hasFlags bool, ext Extensions) []byte {
	return AppendAuthFenced(dst, tenant, token, clientFlags, hasFlags, ext, Fence{})
}

// AppendAuthFenced is [AppendAuth] with a fence, which is not written if it has no ID.
func AppendAuthFenced(dst []byte, tenant, token string, clientFlags Flags, hasFlags bool, ext Extensions, fence Fence) []byte {
	start := len(dst)
	dst = begin(dst, MsgAuth)
	dst = stringMember(dst, "tenant_id", tenant)
	dst = stringMember(dst, "token", token)
	dst = optionalNumber(dst, "client_flags", uint64(clientFlags), hasFlags)
	if hasFlags && ext != 0 {
		dst = appendExtensions(name(dst, "ext"), ext)
	}
	if fence.ID != "" {
		dst = stringMember(dst, "fence", fence.ID+"."+strconv.FormatUint(fence.Number, 10))
	}
	return end(dst, start)
}

// AppendPublish appends a publish. AckUnset leaves ack out, which brokers read as AckPerMessage.
func AppendPublish(dst []byte, tenant, namespace, stream string, payload []byte, ack AckMode, requestID uint64, hasID bool) []byte {
	start := len(dst)
	dst = begin(dst, MsgPublish)
	dst = topicMembers(dst, tenant, namespace, stream)
	dst = base64Member(dst, "payload", payload)
	dst = optionalNumber(dst, "request_id", requestID, hasID)
	return end(ackMember(dst, ack), start)
}

// AppendPublishBatchJSON appends a publish_batch. AckUnset leaves ack out, which brokers read as AckPerBatch.
func AppendPublishBatchJSON(dst []byte, tenant, namespace, stream string, payloads [][]byte, ack AckMode, requestID uint64, hasID bool) []byte {
	start := len(dst)
	dst = begin(dst, MsgPublishBatch)
	dst = topicMembers(dst, tenant, namespace, stream)
	dst = base64List(dst, "payloads", payloads)
	dst = optionalNumber(dst, "request_id", requestID, hasID)
	return end(ackMember(dst, ack), start)
}

// AppendSubscribe appends a subscribe.
func AppendSubscribe(dst []byte, tenant, namespace, stream string, from Start, subscriptionID uint64, hasID bool) []byte {
	start := len(dst)
	dst = begin(dst, MsgSubscribe)
	dst = topicMembers(dst, tenant, namespace, stream)
	dst = optionalNumber(dst, "subscription_id", subscriptionID, hasID)
	switch from.Kind {
	case StartUnset:
	case StartLatest:
		dst = stringMember(dst, "start", "latest")
	case StartEarliest:
		dst = stringMember(dst, "start", "earliest")
	case StartOffset:
		dst = append(name(dst, "start"), `{"offset":`...)
		dst = append(strconv.AppendUint(dst, from.Offset, 10), '}')
	}
	return end(dst, start)
}

// AppendResume appends a subscribe that goes on at an offset of an epoch (docs/protocol/extensions.md#gaps). It is for
// brokers that negotiated [ExtGaps] on the same stream.
func AppendResume(dst []byte, tenant, namespace, stream string, epoch, offset uint64) []byte {
	start := len(dst)
	dst = topicMembers(begin(dst, MsgSubscribe), tenant, namespace, stream)
	dst = append(name(dst, "start"), `{"offset":`...)
	dst = append(strconv.AppendUint(dst, offset, 10), '}')
	return end(numberMember(dst, "epoch", epoch), start)
}

// AppendSubscribeSince appends a subscribe that begins with the first event since a time, in milliseconds since 1970
// (docs/protocol/extensions.md#time). It is for brokers that negotiated [ExtTime] on the same stream.
func AppendSubscribeSince(dst []byte, tenant, namespace, stream string, since uint64) []byte {
	start := len(dst)
	dst = topicMembers(begin(dst, MsgSubscribe), tenant, namespace, stream)
	return end(numberMember(stringMember(dst, "start", "earliest"), "since", since), start)
}

// AppendCachePut appends a cache_put. Without a ttl the entry never expires; a ttl of 0 ms is over at once.
func AppendCachePut(dst []byte, tenant, namespace, cache, key string, value []byte, requestID uint64, hasID bool, ttl uint64, hasTTL bool) []byte {
	start := len(dst)
	dst = begin(dst, MsgCachePut)
	dst = entryMembers(dst, tenant, namespace, cache, key)
	dst = base64Member(dst, "value", value)
	dst = optionalNumber(dst, "request_id", requestID, hasID)
	if hasTTL {
		dst = numberMember(dst, "ttl_ms", ttl)
	} else {
		dst = append(name(dst, "ttl_ms"), "null"...)
	}
	return end(dst, start)
}

// AppendCacheGet appends a cache_get.
func AppendCacheGet(dst []byte, tenant, namespace, cache, key string, requestID uint64, hasID bool) []byte {
	start := len(dst)
	dst = begin(dst, MsgCacheGet)
	dst = entryMembers(dst, tenant, namespace, cache, key)
	dst = optionalNumber(dst, "request_id", requestID, hasID)
	return end(dst, start)
}

// AppendAuthOK appends an auth_ok, the answer to an auth with client_flags. ext is written, also an empty one, if the
// client offered extensions.
func AppendAuthOK(dst []byte, serverFlags Flags, ext Extensions, offered bool) []byte {
	start := len(dst)
	dst = numberMember(begin(dst, MsgAuthOK), "server_flags", uint64(serverFlags))
	if offered {
		dst = appendExtensions(name(dst, "ext"), ext)
	}
	return end(dst, start)
}

// AppendOK appends an ok.
func AppendOK(dst []byte) []byte {
	return end(begin(dst, MsgOK), len(dst))
}

// AppendError appends an error. Its place among the replies says what it is about, since it carries no id.
func AppendError(dst []byte, text string) []byte {
	return end(stringMember(begin(dst, MsgError), "message", text), len(dst))
}

// AppendPublishOK appends a publish_ok.
func AppendPublishOK(dst []byte, requestID uint64) []byte {
	return end(numberMember(begin(dst, MsgPublishOK), "request_id", requestID), len(dst))
}

// AppendPublishError appends a publish_error.
func AppendPublishError(dst []byte, requestID uint64, text string) []byte {
	start := len(dst)
	dst = numberMember(begin(dst, MsgPublishError), "request_id", requestID)
	return end(stringMember(dst, "message", text), start)
}

// AppendSubscribed appends a subscribed.
func AppendSubscribed(dst []byte, subscriptionID uint64) []byte {
	return end(numberMember(begin(dst, MsgSubscribed), "subscription_id", subscriptionID), len(dst))
}

// AppendSubscribeCursorError appends a subscribe_cursor_error. available is the oldest offset that can be served, or
// the one that the next event will get.
func AppendSubscribeCursorError(dst []byte, reason CursorReason, requested, available uint64) []byte {
	start := len(dst)
	if reason == CursorUnset {
		panic("codec: a cursor error needs a reason")
	}
	dst = stringMember(begin(dst, MsgSubscribeCursorError), "reason", reason.String())
	dst = numberMember(dst, "requested", requested)
	return end(numberMember(dst, "available", available), start)
}

// AppendCacheOK appends a cache_ok.
func AppendCacheOK(dst []byte, requestID uint64) []byte {
	return end(numberMember(begin(dst, MsgCacheOK), "request_id", requestID), len(dst))
}

// AppendCacheValue appends a cache_value. Names and key are those of the request; without a hit the value is null. The
// frame can be longer than the request by 36 bytes and the value.
func AppendCacheValue(dst, tenant, namespace, cache, key, value []byte, hit bool, requestID uint64, hasID bool) []byte {
	start := len(dst)
	dst = entryMembers(begin(dst, MsgCacheValue), tenant, namespace, cache, key)
	if hit {
		dst = base64Member(dst, "value", value)
	} else {
		dst = append(name(dst, "value"), "null"...)
	}
	return end(optionalNumber(dst, "request_id", requestID, hasID), start)
}

// AppendEventStreamHello appends an event_stream_hello, the first frame of every event stream.
func AppendEventStreamHello(dst []byte, subscriptionID uint64) []byte {
	return end(numberMember(begin(dst, MsgEventStreamHello), "subscription_id", subscriptionID), len(dst))
}

// AppendEvent appends an event. Brokers may send them, but have no reason to: binary batches are shorter.
func AppendEvent(dst []byte, tenant, namespace, stream string, payload []byte, offset uint64, hasOffset bool) []byte {
	start := len(dst)
	dst = topicMembers(begin(dst, MsgEvent), tenant, namespace, stream)
	dst = base64Member(dst, "payload", payload)
	return end(optionalNumber(dst, "offset", offset, hasOffset), start)
}

// AppendEventBatchJSON appends an event_batch, of which the same is true.
func AppendEventBatchJSON(dst []byte, tenant, namespace, stream string, payloads [][]byte, baseOffset uint64, hasOffset bool) []byte {
	start := len(dst)
	dst = topicMembers(begin(dst, MsgEventBatch), tenant, namespace, stream)
	dst = base64List(dst, "payloads", payloads)
	return end(optionalNumber(dst, "base_offset", baseOffset, hasOffset), start)
}
