package codec

import "encoding/binary"

// The frames of the extension producer (docs/protocol/extensions.md#producer): an acknowledged publish, compressed or
// not, with an origin in front. The broker carries each batch out once, however often it comes.

// Origin is who publishes a batch, and which of its batches it is.
type Origin struct {
	Producer [16]byte // random
	Sequence uint64   // above those of the producer's batches before it
	Repeated bool     // the batch may have been sent before
}

// OriginLen is the length of an origin in bytes; it comes after the type of its frame.
const OriginLen = 25

// sequenceAt is the position of the sequence in a frame.
const sequenceAt = HeaderLen + 1 + 16

// ParseOrigin reads the origin at the begin of the body of an [ExtensionPublishFrom] or [ExtensionPublishFromS2], and
// returns the rest: what [ParsePublishAckedPrefix] reads. It fails with [ErrIncomplete]; then there is no id to answer
// to.
func ParseOrigin(body []byte) (o Origin, rest []byte, err error) {
	if len(body) < OriginLen {
		return Origin{}, nil, ErrIncomplete.with("origin of %d bytes, want %d", len(body), OriginLen)
	}
	o = Origin{Producer: [16]byte(body), Sequence: binary.BigEndian.Uint64(body[16:]), Repeated: body[24] != 0}
	return o, body[OriginLen:], nil
}

// appendOrigin appends header, type and origin of a frame that has n bytes after them.
func appendOrigin(dst []byte, t ExtensionType, o Origin, n int) []byte {
	dst = append(beginExtension(dst, t, OriginLen+n), o.Producer[:]...)
	dst = binary.BigEndian.AppendUint64(dst, o.Sequence)
	if o.Repeated {
		return append(dst, 1)
	}
	return append(dst, 0)
}

// AppendPublishFrom appends a frame of [ExtensionPublishFrom]. mode is [AckPerMessage] or [AckPerBatch]. See
// [AppendPublishBatchAcked].
func AppendPublishFrom(dst []byte, o Origin, requestID uint64, mode AckMode, tenant, namespace, stream string, items [][]byte) []byte {
	n := mustPublishBatchLen(tenant, namespace, stream, items)
	dst = appendOrigin(dst, ExtensionPublishFrom, o, publishAckedPrefixLen+n)
	return appendBatchBody(appendAckedPrefix(dst, requestID, mode), tenant, namespace, stream, items)
}

// AppendCompressedPublishFrom appends a frame of [ExtensionPublishFromS2] up to its block. mode is [AckPerMessage] or
// [AckPerBatch]. See [AppendCompressedPublish].
func AppendCompressedPublishFrom(dst []byte, o Origin, requestID uint64, mode AckMode, tenant, namespace, stream string, count, rawLen, blockLen int) []byte {
	n := mustCompressedLen(tenant, namespace, stream, blockLen)
	dst = appendOrigin(dst, ExtensionPublishFromS2, o, publishAckedPrefixLen+n)
	return appendCompressedHead(appendAckedPrefix(dst, requestID, mode), tenant, namespace, stream, count, rawLen)
}

// PutSequence writes the sequence into a frame that [AppendPublishFrom] or [AppendCompressedPublishFrom] has made: it
// may be known only when it is the frame's turn to be sent.
func PutSequence(frame []byte, sequence uint64) {
	binary.BigEndian.PutUint64(frame[sequenceAt:], sequence)
}

// notKept is the text of an acknowledgement whose stream remembers no producers.
const notKept = "not kept"

// AppendPublishAckNotKept is [AppendPublishAckOK] in answer to a publish with an origin, on a stream that remembers no
// producers: the batch would not be known if it came again.
func AppendPublishAckNotKept(dst []byte, requestID uint64) []byte {
	dst = append(AppendHeader(dst, LayoutPublishAck, publishAckLen+len(notKept)), 0)
	dst = binary.BigEndian.AppendUint64(dst, requestID)
	return appendName(dst, notKept)
}
