package codec

import (
	"bytes"
	"encoding/binary"
	"math"
)

// The frames of the extension cache (docs/protocol/extensions.md#cache): requests and replies without JSON and base64,
// and the changes that a watch tells.

// CacheOp is what a [CacheRequest] asks for.
type CacheOp uint8

// The operations.
const (
	CacheGet    CacheOp = 1 // the values of some keys
	CachePut    CacheOp = 2
	CacheDelete CacheOp = 3
	CachePutIf  CacheOp = 4 // a put, if the key's version is the expected one
	CacheWatch  CacheOp = 5 // the changes of all keys from now on
)

// CacheForever is the lifetime, in milliseconds, of an entry that does not expire.
const CacheForever = math.MaxUint64

// CacheRequest is a decoded cache request; its fields are views. Which of them mean something depends on Op.
type CacheRequest struct {
	RequestID        uint64
	Op               CacheOp
	Namespace, Cache []byte
	Keys             CacheKeys // of CacheGet
	Key              []byte    // of the others
	Value            []byte
	TTL              uint64 // in milliseconds, or CacheForever
	Expected         uint64 // version; 0: no entry
}

// CacheKeys is a list of keys: a view whose lengths have been checked.
type CacheKeys struct {
	n   int
	raw []byte
}

// Len returns the number of keys left.
func (k CacheKeys) Len() int { return k.n }

// Next takes the first key off the list, or returns false.
func (k *CacheKeys) Next() ([]byte, bool) {
	if k.n == 0 {
		return nil, false
	}
	end := 2 + int(binary.BigEndian.Uint16(k.raw))
	key := k.raw[2:end:end]
	k.raw = k.raw[end:]
	k.n--
	return key, true
}

// ParseCacheRequest reads the body of an [ExtensionCacheRequest]. It fails with [ErrIncomplete], [ErrNotUTF8], or
// [ErrExtensionType] for an unknown operation; the id is valid if hasID.
func ParseCacheRequest(b []byte) (r CacheRequest, hasID bool, err error) {
	if len(b) < 9 {
		return r, false, ErrIncomplete.with("cache request of %d bytes", len(b))
	}
	r.RequestID, r.Op = binary.BigEndian.Uint64(b), CacheOp(b[8])
	if r.Namespace, b, err = cutName(b[9:], "namespace", 2); err != nil {
		return r, true, err
	}
	if r.Cache, b, err = cutName(b, "cache", 0); err != nil {
		return r, true, err
	}
	switch r.Op {
	case CacheGet:
		r.Keys, err = parseCacheKeys(b)
	case CacheDelete:
		r.Key, _, err = cutName(b, "key", 0)
	case CachePut, CachePutIf:
		head := 8
		if r.Op == CachePutIf {
			head = 16
		}
		if len(b) < head {
			return r, true, ErrIncomplete.with("put with %d bytes after the cache", len(b))
		}
		r.TTL = binary.BigEndian.Uint64(b)
		if r.Op == CachePutIf {
			r.Expected = binary.BigEndian.Uint64(b[8:])
		}
		r.Key, r.Value, err = cutName(b[head:], "key", 0)
	case CacheWatch:
	default:
		err = ErrExtensionType.with("unknown cache operation %d", uint8(r.Op))
	}
	return r, true, err
}

func parseCacheKeys(b []byte) (CacheKeys, error) {
	if len(b) < 2 {
		return CacheKeys{}, ErrIncomplete.with("no count of keys")
	}
	keys := CacheKeys{n: int(binary.BigEndian.Uint16(b)), raw: b[2:]}
	rest := keys.raw
	var err error
	for range keys.n {
		if _, rest, err = cutName(rest, "key", 0); err != nil {
			return CacheKeys{}, err
		}
	}
	return keys, nil
}

// AppendCacheRequest appends a frame of [ExtensionCacheRequest]. keys is what CacheGet asks for, or the one key of the
// others but CacheWatch. Names and keys have at most 65 535 bytes, and there are at most 65 535 keys.
func AppendCacheRequest(dst []byte, r *CacheRequest, namespace, cache string, keys ...string) []byte {
	n := 8 + 1 + 2 + len(namespace) + 2 + len(cache)
	for _, k := range keys {
		n += 2 + len(k)
		if len(k) > math.MaxUint16 {
			panic(ErrNameTooLong.Error())
		}
	}
	switch r.Op {
	case CacheGet:
		n += 2
	case CachePut:
		n += 8 + len(r.Value)
	case CachePutIf:
		n += 16 + len(r.Value)
	case CacheDelete, CacheWatch:
	}
	dst = binary.BigEndian.AppendUint64(beginExtension(dst, ExtensionCacheRequest, n), r.RequestID)
	dst = append(dst, byte(r.Op))
	dst = appendName(dst, namespace)
	dst = appendName(dst, cache)
	switch r.Op {
	case CacheGet:
		dst = binary.BigEndian.AppendUint16(dst, uint16(len(keys)))
	case CachePut, CachePutIf:
		dst = binary.BigEndian.AppendUint64(dst, r.TTL)
		if r.Op == CachePutIf {
			dst = binary.BigEndian.AppendUint64(dst, r.Expected)
		}
	case CacheDelete, CacheWatch:
	}
	for _, k := range keys {
		dst = appendName(dst, k)
	}
	return append(dst, r.Value...)
}

// CacheStatus says what became of a cache request.
type CacheStatus uint8

// The statuses. Receivers treat one that they do not know as malformed.
const (
	CacheDone    CacheStatus = 0 // with the version of the change
	CacheRefused CacheStatus = 1 // with a text
	CacheNot     CacheStatus = 2 // nothing to delete, or another version than expected, with the present one or 0
	CacheValues  CacheStatus = 3
)

// CacheReply is a decoded cache reply; its fields are views.
type CacheReply struct {
	RequestID uint64
	Status    CacheStatus
	Version   uint64 // of CacheDone and CacheNot; of a watch the id of its event stream
	Text      []byte // of CacheRefused
	Values    CacheValueList
}

// CacheLeftOut is the version of a value that did not fit into the frame: it has to be asked for again, by itself.
const CacheLeftOut = math.MaxUint64

// CacheValueList is the list of values in a reply, in the order of the keys: a view whose lengths have been checked.
type CacheValueList struct {
	n   int
	raw []byte
}

// Len returns the number of values left.
func (l CacheValueList) Len() int { return l.n }

// Next takes the first value off the list. Version 0 is a miss. It returns false after the last one.
func (l *CacheValueList) Next() (version uint64, value []byte, ok bool) {
	if l.n == 0 {
		return 0, nil, false
	}
	end := CacheValueHead + int(binary.BigEndian.Uint32(l.raw[8:]))
	version, value = binary.BigEndian.Uint64(l.raw), l.raw[CacheValueHead:end:end]
	l.raw = l.raw[end:]
	l.n--
	return version, value, true
}

// Clone returns a list of its own memory, one allocation for all values.
func (l CacheValueList) Clone() CacheValueList {
	return CacheValueList{n: l.n, raw: bytes.Clone(l.raw)}
}

// Lengths of the parts of a reply with values: of all in front of the first one, header included, and of what precedes
// each value.
const (
	CacheValuesHead = HeaderLen + 1 + 8 + 1 + 2
	CacheValueHead  = 12
)

// ParseCacheReply reads the body of an [ExtensionCacheReply]. It fails with [ErrIncomplete], [ErrNotUTF8] or
// [ErrAckStatus].
func ParseCacheReply(b []byte) (CacheReply, error) {
	if len(b) < 9 {
		return CacheReply{}, ErrIncomplete.with("cache reply of %d bytes", len(b))
	}
	r := CacheReply{RequestID: binary.BigEndian.Uint64(b), Status: CacheStatus(b[8])}
	b = b[9:]
	var err error
	switch r.Status {
	case CacheDone, CacheNot:
		if len(b) < 8 {
			return r, ErrIncomplete.with("cache reply without a version")
		}
		r.Version = binary.BigEndian.Uint64(b)
	case CacheRefused:
		r.Text, _, err = cutName(b, "text", 0)
	case CacheValues:
		if len(b) < 2 {
			return r, ErrIncomplete.with("no count of values")
		}
		r.Values = CacheValueList{n: int(binary.BigEndian.Uint16(b)), raw: b[2:]}
		rest := r.Values.raw
		for i := range r.Values.n {
			if len(rest) < CacheValueHead {
				return r, ErrIncomplete.with("value %d of %d is missing", i, r.Values.n)
			}
			n := binary.BigEndian.Uint32(rest[8:])
			if rest = rest[CacheValueHead:]; uint64(n) > uint64(len(rest)) {
				return r, ErrIncomplete.with("value %d of %d has %d bytes, %d are left", i, r.Values.n, n, len(rest))
			}
			rest = rest[n:]
		}
	default:
		err = ErrAckStatus.with("unknown status %d of a cache reply", uint8(r.Status))
	}
	return r, err
}

// AppendCacheReply appends a reply with a version: CacheDone or CacheNot.
func AppendCacheReply(dst []byte, requestID uint64, status CacheStatus, version uint64) []byte {
	dst = binary.BigEndian.AppendUint64(beginExtension(dst, ExtensionCacheReply, 17), requestID)
	return binary.BigEndian.AppendUint64(append(dst, byte(status)), version)
}

// AppendCacheRefused appends a reply with a text, which is cut at 512 bytes.
func AppendCacheRefused(dst []byte, requestID uint64, text string) []byte {
	text = CutText(text, maxAckText)
	dst = binary.BigEndian.AppendUint64(beginExtension(dst, ExtensionCacheReply, 9+2+len(text)), requestID)
	return appendName(append(dst, byte(CacheRefused)), text)
}

// AppendCacheValues appends the beginning of a reply with count values, which follow one by one. valueBytes is the sum
// of their lengths.
func AppendCacheValues(dst []byte, requestID uint64, count, valueBytes int) []byte {
	n := 9 + 2 + count*CacheValueHead + valueBytes
	dst = binary.BigEndian.AppendUint64(beginExtension(dst, ExtensionCacheReply, n), requestID)
	return binary.BigEndian.AppendUint16(append(dst, byte(CacheValues)), uint16(count))
}

// AppendCacheValueHead appends what precedes a value of n bytes.
func AppendCacheValueHead(dst []byte, version uint64, n int) []byte {
	return binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint64(dst, version), uint32(n))
}

// CacheEventKind is what has happened to a key that is watched, or to the watch.
type CacheEventKind uint8

// The kinds. Receivers treat one that they do not know like CacheLost.
const (
	CacheLost    CacheEventKind = 0 // changes are missing, of any key
	CacheSet     CacheEventKind = 1
	CacheDeleted CacheEventKind = 2
	CacheExpired CacheEventKind = 3
	CacheEvicted CacheEventKind = 4
	CacheEnded   CacheEventKind = 5 // the watch; Key is a text that says why
)

// CacheEvent is a change of a key that is watched.
type CacheEvent struct {
	Kind    CacheEventKind
	Version uint64 // of the value that was set, or of the removal; else 0
	Key     []byte
}

// Lengths of an event in a frame, its key apart, and of all in front of the first one, header included.
const (
	CacheEventLen   = 1 + 8 + 2
	CacheEventsHead = HeaderLen + 1
)

// ParseCacheEvent takes the first event off the body of an [ExtensionCacheEvents]; an empty rest is the end. It fails
// with [ErrIncomplete] or [ErrNotUTF8].
func ParseCacheEvent(b []byte) (e CacheEvent, rest []byte, err error) {
	if len(b) < CacheEventLen {
		return e, nil, ErrIncomplete.with("cache event of %d bytes", len(b))
	}
	e.Kind, e.Version = CacheEventKind(b[0]), binary.BigEndian.Uint64(b[1:])
	e.Key, rest, err = cutName(b[9:], "key", 0)
	return e, rest, err
}

// CacheEventSize returns the length in bytes of the first event of b, which is a list of whole events and not empty.
func CacheEventSize(b []byte) int {
	return CacheEventLen + int(binary.BigEndian.Uint16(b[CacheEventLen-2:]))
}

// AppendCacheEvents appends the beginning of a frame of [ExtensionCacheEvents] with events of n bytes together.
func AppendCacheEvents(dst []byte, n int) []byte { return beginExtension(dst, ExtensionCacheEvents, n) }

// AppendCacheEvent appends an event to a frame that was begun for it.
func AppendCacheEvent(dst []byte, e CacheEvent) []byte {
	dst = binary.BigEndian.AppendUint64(append(dst, byte(e.Kind)), e.Version)
	dst = binary.BigEndian.AppendUint16(dst, uint16(len(e.Key)))
	return append(dst, e.Key...)
}
