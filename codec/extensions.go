package codec

import "encoding/binary"

// Extensions is a set of extensions of the protocol: of those in the registry below, the ones that a peer offered or
// that both sides agreed on. The rules of negotiation are in docs/protocol/extensions.md.
type Extensions uint32

// extension is an entry of the registry.
type extension struct {
	name string // in ext of auth and auth_ok
	set  Extensions
}

// registry holds every extension, in the order in which names are written. docs/protocol/extensions.md lists the same.
var registry = []extension{
	{"gaps", ExtGaps},
	{"s2", ExtS2},
	{"cache", ExtCache},
	{"time", ExtTime},
	{"producer", ExtProducer},
}

// The extensions.
const (
	// ExtGaps tells a subscriber what it lost, and lets it resume on streams that live in memory.
	ExtGaps Extensions = 1 << iota
	// ExtS2 carries batches that were compressed once, by their publisher.
	ExtS2
	// ExtCache has binary cache requests, with more operations than JSON has, and watches.
	ExtCache
	// ExtTime lets a subscription begin with the first event since a time.
	ExtTime
	// ExtProducer has publishes that the broker knows when they come again.
	ExtProducer
)

// KnownExtensions returns all extensions of the registry: what a complete implementation offers.
func KnownExtensions() Extensions {
	var all Extensions
	for _, e := range registry {
		all |= e.set
	}
	return all
}

// Names returns the names of the extensions in the set, in the order of the registry.
func (e Extensions) Names() []string {
	names := []string{}
	for _, r := range registry {
		if e&r.set != 0 {
			names = append(names, r.name)
		}
	}
	return names
}

// extensionOf returns the extension of that name, or none.
func extensionOf(name []byte) Extensions {
	for _, r := range registry {
		if r.name == string(name) {
			return r.set
		}
	}
	return 0
}

// appendExtensions appends the set as a JSON array of names.
func appendExtensions(dst []byte, e Extensions) []byte {
	dst = append(dst, '[')
	first := true
	for _, r := range registry {
		if e&r.set == 0 {
			continue
		}
		if !first {
			dst = append(dst, ',')
		}
		first = false
		dst = appendString(dst, r.name)
	}
	return append(dst, ']')
}

// ExtensionType is the first byte of the payload of an extension frame.
type ExtensionType uint8

// The types of extension frames.
const (
	ExtensionPosition ExtensionType = 1 // a [Position], of ExtGaps
	ExtensionGap      ExtensionType = 2 // a [Gap], of ExtGaps

	ExtensionPublishS2      ExtensionType = 3 // a [CompressedPublish], of ExtS2; client to broker
	ExtensionPublishAckedS2 ExtensionType = 4 // the same with a request id and an ack mode in front
	ExtensionEventS2        ExtensionType = 5 // a [CompressedEvents], of ExtS2; broker to client

	ExtensionCacheRequest ExtensionType = 6 // a [CacheRequest], of ExtCache; client to broker
	ExtensionCacheReply   ExtensionType = 7 // a [CacheReply], of ExtCache; broker to client
	ExtensionCacheEvents  ExtensionType = 8 // some [CacheEvent], of ExtCache; broker to client, on the event stream of a watch

	ExtensionPublishFrom   ExtensionType = 9  // an [Origin] and an acknowledged publish, of ExtProducer; client to broker
	ExtensionPublishFromS2 ExtensionType = 10 // the same with a [CompressedPublish], of ExtProducer and ExtS2
)

// FromClient reports whether clients send frames of this type; those of all other known types come from brokers.
func (t ExtensionType) FromClient() bool {
	switch t {
	case ExtensionPublishS2, ExtensionPublishAckedS2, ExtensionCacheRequest, ExtensionPublishFrom, ExtensionPublishFromS2:
		return true
	default:
		return false
	}
}

// CheckNegotiated is [Flags.Check] for a stream on which the given extensions were negotiated: with any, the extension
// bit alone is a layout too.
func (f Flags) CheckNegotiated(ext Extensions) error {
	if f == LayoutExtension && ext != 0 {
		return nil
	}
	return f.Check()
}

// ParseExtension reads the type of an extension frame and returns the rest of the payload. It fails with
// [ErrIncomplete]; whether the type is known, and belongs to an extension that was negotiated, is for the caller to
// check.
func ParseExtension(b []byte) (ExtensionType, []byte, error) {
	if len(b) == 0 {
		return 0, nil, ErrIncomplete.with("extension frame without a type")
	}
	return ExtensionType(b[0]), b[1:], nil
}

// beginExtension appends header and type of an extension frame whose body has n bytes.
func beginExtension(dst []byte, t ExtensionType, n int) []byte {
	return append(AppendHeader(dst, LayoutExtension, 1+n), byte(t))
}

// Position says where an event stream begins. It is the second frame of the stream, after the hello.
type Position struct {
	Epoch  uint64 // in which offsets of the stream count; it changes when the broker forgets the stream's past
	Offset uint64 // of the first event to come
}

const positionLen = 16

// AppendPosition appends a frame of [ExtensionPosition].
func AppendPosition(dst []byte, p Position) []byte {
	dst = beginExtension(dst, ExtensionPosition, positionLen)
	dst = binary.BigEndian.AppendUint64(dst, p.Epoch)
	return binary.BigEndian.AppendUint64(dst, p.Offset)
}

// ParsePosition reads the body of an [ExtensionPosition], which [ParseExtension] returns. Bytes after it are ignored.
// It fails with [ErrIncomplete].
func ParsePosition(body []byte) (Position, error) {
	if len(body) < positionLen {
		return Position{}, ErrIncomplete.with("position of %d bytes, want %d", len(body), positionLen)
	}
	return Position{Epoch: binary.BigEndian.Uint64(body), Offset: binary.BigEndian.Uint64(body[8:])}, nil
}

// GapReason says why events were lost. Receivers treat a value that they do not know as an unknown reason.
type GapReason uint8

// The reasons.
const (
	GapUnknown   GapReason = 0
	GapQueueFull GapReason = 1 // the subscription's queue was full, and its policy dropped events
	GapReclaimed GapReason = 2 // the broker needed the memory of a queue whose subscriber did not read
	GapExpired   GapReason = 3 // the position to resume at is no longer kept
	GapEpoch     GapReason = 4 // the position to resume at belongs to another epoch
	GapCorrupt   GapReason = 5 // a compressed batch could not be decompressed
)

// String returns a word for logs and metrics.
func (r GapReason) String() string {
	switch r {
	case GapQueueFull:
		return "queue_full"
	case GapReclaimed:
		return "reclaimed"
	case GapExpired:
		return "expired"
	case GapEpoch:
		return "epoch"
	case GapCorrupt:
		return "corrupt"
	default:
		return "unknown"
	}
}

// Gap says that events are missing between the last one and the next.
type Gap struct {
	Reason GapReason
	Lost   uint64 // events; 0 if nobody knows how many
	Next   uint64 // offset of the next event
}

const gapLen = 17

// AppendGap appends a frame of [ExtensionGap].
func AppendGap(dst []byte, g Gap) []byte {
	dst = append(beginExtension(dst, ExtensionGap, gapLen), byte(g.Reason))
	dst = binary.BigEndian.AppendUint64(dst, g.Lost)
	return binary.BigEndian.AppendUint64(dst, g.Next)
}

// ParseGap reads the body of an [ExtensionGap], which [ParseExtension] returns. Bytes after it are ignored. It fails
// with [ErrIncomplete].
func ParseGap(body []byte) (Gap, error) {
	if len(body) < gapLen {
		return Gap{}, ErrIncomplete.with("gap of %d bytes, want %d", len(body), gapLen)
	}
	return Gap{
		Reason: GapReason(body[0]), Lost: binary.BigEndian.Uint64(body[1:]), Next: binary.BigEndian.Uint64(body[9:]),
	}, nil
}
