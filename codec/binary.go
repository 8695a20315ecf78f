package codec

import (
	"encoding/binary"
	"math"
	"unicode/utf8"
)

// PublishBatch is a decoded publish batch; its fields are views.
type PublishBatch struct {
	Tenant, Namespace, Stream []byte
	Items                     Items
	// CountAt and End are the positions in the parsed bytes where the item list begins and where it ends; both are
	// what [RewriteShared] needs, counted from the beginning of the frame there.
	CountAt, End int
}

// ParsePublishBatch reads the payload of [LayoutPublish], or what [ParsePublishAckedPrefix] leaves of that of
// [LayoutPublishAcked] (docs/protocol/wire.md#publish-batch). Bytes after the last item are ignored and must not be
// forwarded. It fails with [ErrIncomplete] or [ErrNotUTF8].
func ParsePublishBatch(b []byte) (PublishBatch, error) {
	var p PublishBatch
	rest, err := b, error(nil)
	// A name is asked for together with the length that follows it: 2 bytes, or the 4 of count.
	if p.Tenant, rest, err = cutName(rest, "tenant", 2); err != nil {
		return PublishBatch{}, err
	}
	if p.Namespace, rest, err = cutName(rest, "namespace", 2); err != nil {
		return PublishBatch{}, err
	}
	if p.Stream, rest, err = cutName(rest, "stream", 4); err != nil {
		return PublishBatch{}, err
	}
	p.CountAt = len(b) - len(rest)
	items, n, err := ParseItems(rest)
	if err != nil {
		return PublishBatch{}, err
	}
	p.Items, p.End = items, p.CountAt+n
	return p, nil
}

// cutName takes a name off the front of b, after which at least follow bytes must come.
func cutName(b []byte, what string, follow int) (name, rest []byte, err error) {
	if len(b) < 2 {
		return nil, nil, ErrIncomplete.with("no length of the %s", what)
	}
	n := int(binary.BigEndian.Uint16(b))
	b = b[2:]
	if len(b) < n+follow {
		return nil, nil, ErrIncomplete.with("%s of %d bytes and %d more, %d are left", what, n, follow, len(b))
	}
	name = b[:n:n]
	if !utf8.Valid(name) {
		return nil, nil, ErrNotUTF8.with("%s is not UTF-8", what)
	}
	return name, b[n:], nil
}

// publishAckedPrefixLen is the request id and the ack mode in front of an acknowledged batch.
const publishAckedPrefixLen = 9

// ParsePublishAckedPrefix reads what precedes the publish batch in the payload of [LayoutPublishAcked], and returns the
// rest for [ParsePublishBatch]. It fails with [ErrIncomplete] or [ErrAckMode]; then there is no id to answer to,
// whereas a bad body is answered (docs/protocol/wire.md#acknowledged-publish-batch).
func ParsePublishAckedPrefix(b []byte) (requestID uint64, mode AckMode, body []byte, err error) {
	if len(b) < publishAckedPrefixLen {
		return 0, AckUnset, nil, ErrIncomplete.with("prefix of an acknowledged batch has %d bytes, want %d", len(b), publishAckedPrefixLen)
	}
	switch b[8] {
	case 1:
		mode = AckPerMessage
	case 2:
		mode = AckPerBatch
	default:
		return 0, AckUnset, nil, ErrAckMode.with("unknown ack mode %d", b[8])
	}
	return binary.BigEndian.Uint64(b), mode, b[publishAckedPrefixLen:], nil
}

// PublishBatchLen returns the payload length of the frame that [AppendPublishBatch] appends, for the caller to compare
// with the limit that it observes; an acknowledged batch has 9 bytes more. It fails with [ErrNameTooLong] or
// [ErrBatchTooLarge] if the format cannot express the batch.
func PublishBatchLen(tenant, namespace, stream string, items [][]byte) (int, error) {
	if max(len(tenant), len(namespace), len(stream)) > math.MaxUint16 {
		return 0, ErrNameTooLong
	}
	n, ok := itemsLen(items)
	n += 6 + uint64(len(tenant)) + uint64(len(namespace)) + uint64(len(stream))
	if !ok || n+publishAckedPrefixLen > min(math.MaxUint32, math.MaxInt) { // the latter where an int has 32 bits
		return 0, ErrBatchTooLarge
	}
	return int(n), nil
}

// AppendPublishBatch appends a frame of [LayoutPublish].
func AppendPublishBatch(dst []byte, tenant, namespace, stream string, items [][]byte) []byte {
	n := mustPublishBatchLen(tenant, namespace, stream, items)
	return appendBatchBody(AppendHeader(dst, LayoutPublish, n), tenant, namespace, stream, items)
}

// AppendPublishBatchAcked appends a frame of [LayoutPublishAcked]. mode is [AckPerMessage] or [AckPerBatch].
func AppendPublishBatchAcked(dst []byte, requestID uint64, mode AckMode, tenant, namespace, stream string, items [][]byte) []byte {
	n := mustPublishBatchLen(tenant, namespace, stream, items)
	dst = AppendHeader(dst, LayoutPublishAcked, publishAckedPrefixLen+n)
	return appendBatchBody(appendAckedPrefix(dst, requestID, mode), tenant, namespace, stream, items)
}

func appendAckedPrefix(dst []byte, requestID uint64, mode AckMode) []byte {
	dst = binary.BigEndian.AppendUint64(dst, requestID)
	switch mode {
	case AckPerMessage:
		return append(dst, 1)
	case AckPerBatch:
		return append(dst, 2)
	case AckUnset, AckNone:
	}
	panic("codec: an acknowledged batch needs an ack mode")
}

func mustPublishBatchLen(tenant, namespace, stream string, items [][]byte) int {
	n, err := PublishBatchLen(tenant, namespace, stream, items)
	if err != nil {
		panic(err.Error())
	}
	return n
}

func appendBatchBody(dst []byte, tenant, namespace, stream string, items [][]byte) []byte {
	dst = appendName(dst, tenant)
	dst = appendName(dst, namespace)
	dst = appendName(dst, stream)
	return AppendItems(dst, items)
}

func appendName(dst []byte, name string) []byte {
	return append(binary.BigEndian.AppendUint16(dst, uint16(len(name))), name...)
}

// PublishAck is a decoded binary acknowledgement.
type PublishAck struct {
	RequestID uint64
	OK        bool
	Message   []byte // why it was refused, a view; nil if it was not
	NotKept   bool   // of a publish with an [Origin], which would not be known if it came again
}

const publishAckLen = 11 // without the text

// ParsePublishAck reads the payload of [LayoutPublishAck] (docs/protocol/wire.md#publish-acknowledgement). It fails
// with [ErrIncomplete], [ErrAckStatus] or [ErrNotUTF8].
func ParsePublishAck(b []byte) (PublishAck, error) {
	if len(b) < publishAckLen {
		return PublishAck{}, ErrIncomplete.with("acknowledgement has %d bytes, want %d", len(b), publishAckLen)
	}
	a := PublishAck{RequestID: binary.BigEndian.Uint64(b[1:]), OK: b[0] == 0}
	n := int(binary.BigEndian.Uint16(b[9:]))
	if len(b)-publishAckLen < n {
		return PublishAck{}, ErrIncomplete.with("acknowledgement with a text of %d bytes, %d are left", n, len(b)-publishAckLen)
	}
	if b[0] > 1 {
		return PublishAck{}, ErrAckStatus.with("unknown acknowledgement status %d", b[0])
	}
	if a.OK {
		a.NotKept = string(b[publishAckLen:publishAckLen+n]) == notKept
		return a, nil // any other text is skipped, whatever it is
	}
	a.Message = b[publishAckLen : publishAckLen+n : publishAckLen+n]
	if !utf8.Valid(a.Message) {
		return PublishAck{}, ErrNotUTF8.with("text of an acknowledgement is not UTF-8")
	}
	return a, nil
}

// AppendPublishAckOK appends the acknowledgement of a publish that was carried out.
func AppendPublishAckOK(dst []byte, requestID uint64) []byte {
	dst = append(AppendHeader(dst, LayoutPublishAck, publishAckLen), 0)
	dst = binary.BigEndian.AppendUint64(dst, requestID)
	return append(dst, 0, 0)
}

// maxAckText is where encoders cut the text of an error acknowledgement, in bytes.
const maxAckText = 512

// AppendPublishAckError appends the acknowledgement of a publish that was refused. The text is cut at 512 bytes, or
// before the character that would be split there.
func AppendPublishAckError(dst []byte, requestID uint64, text string) []byte {
	text = CutText(text, maxAckText)
	dst = append(AppendHeader(dst, LayoutPublishAck, publishAckLen+len(text)), 1)
	dst = binary.BigEndian.AppendUint64(dst, requestID)
	return appendName(dst, text)
}

// EventBatch is a decoded event batch.
type EventBatch struct {
	SubscriptionID    uint64 // meaningful if HasSubscriptionID
	BaseOffset        uint64 // of the first item, meaningful if HasOffset
	HasSubscriptionID bool
	HasOffset         bool
	Items             Items // views
}

// ParseEventBatch reads the payload of one of the four event layouts (docs/protocol/wire.md#event-batch); the flags
// choose which. It fails with [ErrIncomplete], and with [ErrFlagCombination] for other flags.
func ParseEventBatch(flags Flags, b []byte) (EventBatch, error) {
	var e EventBatch
	switch flags {
	case LayoutEvent, LayoutEventOffsets:
		e.HasSubscriptionID = true
	case LayoutShared, LayoutSharedOffsets:
	default:
		return EventBatch{}, ErrFlagCombination.with("the flags %#04x are none of an event batch", uint16(flags))
	}
	e.HasOffset = flags&FlagEventOffsets != 0
	if head := eventHeadLen(flags); len(b) < head+4 {
		return EventBatch{}, ErrIncomplete.with("event batch of %d bytes, want at least %d", len(b), head+4)
	}
	if e.HasSubscriptionID {
		e.SubscriptionID, b = binary.BigEndian.Uint64(b), b[8:]
	}
	if e.HasOffset {
		e.BaseOffset, b = binary.BigEndian.Uint64(b), b[8:]
	}
	var err error
	if e.Items, _, err = ParseItems(b); err != nil {
		return EventBatch{}, err
	}
	return e, nil
}

// eventHeadLen is how many bytes an event layout has in front of its item list.
func eventHeadLen(flags Flags) int {
	n := 0
	if flags&FlagEventBatch != 0 {
		n += 8
	}
	if flags&FlagEventOffsets != 0 {
		n += 8
	}
	return n
}

// AppendEventBatch appends a frame of one of the four event layouts. subscriptionID and baseOffset are written if the
// layout has them.
func AppendEventBatch(dst []byte, flags Flags, subscriptionID, baseOffset uint64, items [][]byte) []byte {
	n, ok := itemsLen(items)
	if !ok {
		panic(ErrBatchTooLarge.Error())
	}
	return AppendItems(AppendEventHead(dst, flags, subscriptionID, baseOffset, int(n)), items)
}

// AppendEventPart appends an event frame of count items whose lengths and bytes are region, a piece of another frame's
// item list: that is how a batch is split, and how several are merged
// (docs/protocol/wire.md#delivery-without-encoding).
func AppendEventPart(dst []byte, flags Flags, subscriptionID, baseOffset uint64, count int, region []byte) []byte {
	dst = AppendEventHead(dst, flags, subscriptionID, baseOffset, 4+len(region))
	dst = binary.BigEndian.AppendUint32(dst, uint32(count))
	return append(dst, region...)
}

// EventHeadLen is the most that [AppendEventHead] appends.
const EventHeadLen = HeaderLen + 16

// AppendEventHead appends what an event layout has in front of its item list: the header of a frame whose list has
// listLen bytes, count included, the subscription's id and the base offset, as the layout wants. A list that several
// subscriptions share is written after a head of each one's own.
func AppendEventHead(dst []byte, flags Flags, subscriptionID, baseOffset uint64, listLen int) []byte {
	if flags&^(FlagEventBatch|FlagEventBatchShared|FlagEventOffsets) != 0 || flags.Check() != nil || flags == 0 {
		panic("codec: not the flags of an event layout")
	}
	dst = AppendHeader(dst, flags, eventHeadLen(flags)+listLen)
	if flags&FlagEventBatch != 0 {
		dst = binary.BigEndian.AppendUint64(dst, subscriptionID)
	}
	if flags&FlagEventOffsets != 0 {
		dst = binary.BigEndian.AppendUint64(dst, baseOffset)
	}
	return dst
}

// RewriteShared makes the event frame of [LayoutShared] out of a received publish frame, in place: a header is written
// over the bytes in front of the item list, which lies at [countAt, end) of frame, and the slice that is the new frame
// is returned (docs/protocol/wire.md#delivery-without-encoding). Names that were parsed from frame are overwritten.
//
// The caller has parsed the batch, holds the only reference to the bytes, and treats them as read-only from here on.
// Header and names always leave enough space.
func RewriteShared(frame []byte, countAt, end int) []byte {
	out := frame[countAt-HeaderLen : end : end]
	putHeader(out, LayoutShared, end-countAt)
	return out
}

// RewriteSharedOffsets does the same for [LayoutSharedOffsets]. It needs countAt to be at least 20, which names that
// are not empty guarantee.
func RewriteSharedOffsets(frame []byte, countAt, end int, baseOffset uint64) []byte {
	out := frame[countAt-HeaderLen-8 : end : end]
	putHeader(out, LayoutSharedOffsets, 8+end-countAt)
	binary.BigEndian.PutUint64(out[HeaderLen:], baseOffset)
	return out
}
