package codec

import (
	"encoding/binary"
	"math"
)

// The frames of the extension s2 (docs/protocol/extensions.md#s2). What is compressed is an item list without its
// count; how is left to others, since this package knows the standard library alone. Publish and event frames end in
// the same bytes, so that a broker forwards a compressed batch without looking inside:
//
//	├───────┼─────────┼───────────── ─ ─
//	  count   rawLen    block

// Compressed is a compressed item list.
type Compressed struct {
	Count  int    // of items
	RawLen int    // length of what Block decompresses to: the lengths and bytes of Count items, without the count
	Block  []byte // a view
}

const compressedHead = 8 // count and rawLen

// parseCompressed reads a compressed list, which takes all of b. It refuses what cannot be true, so that nobody
// allocates memory for it: items take at least the 4 bytes of their length.
func parseCompressed(b []byte) (Compressed, error) {
	if len(b) < compressedHead {
		return Compressed{}, ErrIncomplete.with("compressed list of %d bytes, want at least %d", len(b), compressedHead)
	}
	count, raw := binary.BigEndian.Uint32(b), binary.BigEndian.Uint32(b[4:])
	if uint64(count)*4 > uint64(raw) {
		return Compressed{}, ErrIncomplete.with("%d items declared in %d bytes", count, raw)
	}
	return Compressed{Count: int(count), RawLen: int(raw), Block: b[compressedHead:len(b):len(b)]}, nil
}

// Items returns the list. prefixed is 4 bytes of space, where the count is written, and after them the decompressed
// block. It fails with [ErrIncomplete] if that is not what c says.
func (c Compressed) Items(prefixed []byte) (Items, error) {
	if len(prefixed) != 4+c.RawLen {
		return Items{}, ErrIncomplete.with("%d bytes decompressed, %d declared", len(prefixed)-4, c.RawLen)
	}
	binary.BigEndian.PutUint32(prefixed, uint32(c.Count))
	items, end, err := ParseItems(prefixed)
	if err == nil && end != len(prefixed) {
		err = ErrIncomplete.with("%d bytes after the last of %d items", len(prefixed)-end, c.Count)
	}
	return items, err
}

// CompressedPublish is a decoded publish of a compressed batch; its fields are views.
type CompressedPublish struct {
	Tenant, Namespace, Stream []byte
	Compressed
	// CountAt is the position of the list in the parsed bytes; it goes on to their end. See [RewriteCompressed].
	CountAt int
}

// ParseCompressedPublish reads the body of an [ExtensionPublishS2], or what [ParsePublishAckedPrefix] leaves of that of
// an [ExtensionPublishAckedS2]. It fails with [ErrIncomplete] or [ErrNotUTF8].
func ParseCompressedPublish(b []byte) (CompressedPublish, error) {
	var p CompressedPublish
	rest, err := b, error(nil)
	if p.Tenant, rest, err = cutName(rest, "tenant", 2); err != nil {
		return CompressedPublish{}, err
	}
	if p.Namespace, rest, err = cutName(rest, "namespace", 2); err != nil {
		return CompressedPublish{}, err
	}
	if p.Stream, rest, err = cutName(rest, "stream", compressedHead); err != nil {
		return CompressedPublish{}, err
	}
	p.CountAt = len(b) - len(rest)
	p.Compressed, err = parseCompressed(rest)
	return p, err
}

// AppendCompressedPublish appends the frame of a compressed batch up to its block, which has blockLen bytes and is for
// the caller to append. With an ack mode other than [AckNone] and [AckUnset] the broker acknowledges it under
// requestID. Names have at most 65 535 bytes.
func AppendCompressedPublish(dst []byte, requestID uint64, mode AckMode, tenant, namespace, stream string, count, rawLen, blockLen int) []byte {
	t, n := ExtensionPublishS2, mustCompressedLen(tenant, namespace, stream, blockLen)
	acked := mode == AckPerMessage || mode == AckPerBatch
	if acked {
		t, n = ExtensionPublishAckedS2, n+publishAckedPrefixLen
	}
	dst = beginExtension(dst, t, n)
	if acked {
		dst = appendAckedPrefix(dst, requestID, mode)
	}
	return appendCompressedHead(dst, tenant, namespace, stream, count, rawLen)
}

func mustCompressedLen(tenant, namespace, stream string, blockLen int) int {
	if max(len(tenant), len(namespace), len(stream)) > math.MaxUint16 {
		panic(ErrNameTooLong.Error())
	}
	return 6 + len(tenant) + len(namespace) + len(stream) + compressedHead + blockLen
}

func appendCompressedHead(dst []byte, tenant, namespace, stream string, count, rawLen int) []byte {
	dst = appendName(dst, tenant)
	dst = appendName(dst, namespace)
	dst = appendName(dst, stream)
	dst = binary.BigEndian.AppendUint32(dst, uint32(count))
	return binary.BigEndian.AppendUint32(dst, uint32(rawLen))
}

// CompressedEvents is a decoded event frame with a compressed batch.
type CompressedEvents struct {
	BaseOffset uint64 // of the first item
	Compressed
}

// CompressedEventsLen is the number of bytes in front of the list in an [ExtensionEventS2] frame, header included, and
// CompressedOffsetAt the position of the base offset in it.
const (
	CompressedEventsLen = HeaderLen + 1 + 8
	CompressedOffsetAt  = HeaderLen + 1
)

// ParseCompressedEvents reads the body of an [ExtensionEventS2]. It fails with [ErrIncomplete].
func ParseCompressedEvents(b []byte) (CompressedEvents, error) {
	if len(b) < 8 {
		return CompressedEvents{}, ErrIncomplete.with("compressed events of %d bytes", len(b))
	}
	c, err := parseCompressed(b[8:])
	return CompressedEvents{BaseOffset: binary.BigEndian.Uint64(b), Compressed: c}, err
}

// RewriteCompressed makes an event frame out of a received publish frame of a compressed batch, in place, under the
// rules of [RewriteShared]. The list lies at [countAt, len(frame)). Names that are not empty leave enough space.
func RewriteCompressed(frame []byte, countAt int, baseOffset uint64) []byte {
	out := frame[countAt-CompressedEventsLen : len(frame) : len(frame)]
	putHeader(out, LayoutExtension, len(out)-HeaderLen)
	out[HeaderLen] = byte(ExtensionEventS2)
	binary.BigEndian.PutUint64(out[CompressedOffsetAt:], baseOffset)
	return out
}
