package codec

// MessageType is the type of a JSON message.
type MessageType uint8

// The message types of docs/protocol/wire.md#messages: the first six are sent by clients, the others by brokers.
const (
	MsgInvalid MessageType = iota
	MsgAuth
	MsgPublish
	MsgPublishBatch
	MsgSubscribe
	MsgCachePut
	MsgCacheGet
	MsgAuthOK
	MsgOK
	MsgError
	MsgPublishOK
	MsgPublishError
	MsgSubscribed
	MsgSubscribeCursorError
	MsgCacheOK
	MsgCacheValue
	MsgEventStreamHello
	MsgEvent
	MsgEventBatch
)

// String returns the type as it is written on the wire.
func (t MessageType) String() string {
	if int(t) >= len(messages) || t == MsgInvalid {
		return "invalid"
	}
	return messages[t].name
}

// FromClient reports whether clients send messages of this type; all others come from brokers.
func (t MessageType) FromClient() bool { return t >= MsgAuth && t <= MsgCacheGet }

// member is a member of some message: a bit, so that sets of them are masks.
type member uint32

const (
	mTenant member = 1 << iota
	mNamespace
	mStream
	mCache
	mKey
	mToken
	mMessage
	mPayload
	mPayloads
	mValue
	mRequestID
	mSubscriptionID
	mOffset
	mBaseOffset
	mTTL
	mAck
	mStart
	mClientFlags
	mServerFlags
	mReason
	mRequested
	mAvailable
	mExt
	mEpoch
	mSince
	mFence
)

const (
	mTopic = mTenant | mNamespace | mStream
	mEntry = mTenant | mNamespace | mCache | mKey

	// Members of extensions. A peer that knows nothing of extensions may use the same names for anything at all, so
	// values of another type are ignored, as those of unknown members are.
	mExtension = mExt | mEpoch | mSince | mFence
)

// messages says which members each type has; every other member is unknown to it and ignored.
var messages = [...]struct {
	name               string
	required, optional member
}{
	MsgAuth:                 {"auth", mTenant | mToken, mClientFlags | mExt | mFence},
	MsgPublish:              {"publish", mTopic | mPayload, mRequestID | mAck},
	MsgPublishBatch:         {"publish_batch", mTopic | mPayloads, mRequestID | mAck},
	MsgSubscribe:            {"subscribe", mTopic, mSubscriptionID | mStart | mEpoch | mSince},
	MsgCachePut:             {"cache_put", mEntry | mValue, mRequestID | mTTL},
	MsgCacheGet:             {"cache_get", mEntry, mRequestID},
	MsgAuthOK:               {"auth_ok", mServerFlags, mExt},
	MsgOK:                   {"ok", 0, 0},
	MsgError:                {"error", mMessage, 0},
	MsgPublishOK:            {"publish_ok", mRequestID, 0},
	MsgPublishError:         {"publish_error", mRequestID | mMessage, 0},
	MsgSubscribed:           {"subscribed", mSubscriptionID, 0},
	MsgSubscribeCursorError: {"subscribe_cursor_error", mReason | mRequested | mAvailable, 0},
	MsgCacheOK:              {"cache_ok", mRequestID, 0},
	MsgCacheValue:           {"cache_value", mEntry | mValue, mRequestID},
	MsgEventStreamHello:     {"event_stream_hello", mSubscriptionID, 0},
	MsgEvent:                {"event", mTopic | mPayload, mOffset},
	MsgEventBatch:           {"event_batch", mTopic | mPayloads, mBaseOffset},
}

// typeOf returns the message type of that name, or MsgInvalid.
func typeOf(name []byte) MessageType {
	switch string(name) {
	case "auth":
		return MsgAuth
	case "publish":
		return MsgPublish
	case "publish_batch":
		return MsgPublishBatch
	case "subscribe":
		return MsgSubscribe
	case "cache_put":
		return MsgCachePut
	case "cache_get":
		return MsgCacheGet
	case "auth_ok":
		return MsgAuthOK
	case "ok":
		return MsgOK
	case "error":
		return MsgError
	case "publish_ok":
		return MsgPublishOK
	case "publish_error":
		return MsgPublishError
	case "subscribed":
		return MsgSubscribed
	case "subscribe_cursor_error":
		return MsgSubscribeCursorError
	case "cache_ok":
		return MsgCacheOK
	case "cache_value":
		return MsgCacheValue
	case "event_stream_hello":
		return MsgEventStreamHello
	case "event":
		return MsgEvent
	case "event_batch":
		return MsgEventBatch
	}
	return MsgInvalid
}

// memberOf returns the member of that name, or 0.
func memberOf(name []byte) member {
	switch string(name) {
	case "tenant_id":
		return mTenant
	case "namespace":
		return mNamespace
	case "stream":
		return mStream
	case "cache":
		return mCache
	case "key":
		return mKey
	case "token":
		return mToken
	case "message":
		return mMessage
	case "payload":
		return mPayload
	case "payloads":
		return mPayloads
	case "value":
		return mValue
	case "request_id":
		return mRequestID
	case "subscription_id":
		return mSubscriptionID
	case "offset":
		return mOffset
	case "base_offset":
		return mBaseOffset
	case "ttl_ms":
		return mTTL
	case "ack":
		return mAck
	case "start":
		return mStart
	case "client_flags":
		return mClientFlags
	case "server_flags":
		return mServerFlags
	case "reason":
		return mReason
	case "requested":
		return mRequested
	case "available":
		return mAvailable
	case "ext":
		return mExt
	case "epoch":
		return mEpoch
	case "since":
		return mSince
	case "fence":
		return mFence
	}
	return 0
}

// Message is a decoded JSON message. Which fields mean something depends on Type; the others are zero. An optional
// member that was absent or null leaves its Has field false.
//
// Texts, payloads and items are views into the parsed bytes, or into memory of the Message where they had to be
// unescaped or decoded; they live until the next [ParseMessage] into the same Message, and the parsed bytes live.
// Parse into the same Message again and again: then it allocates nothing.
type Message struct {
	Type MessageType

	Tenant    []byte // tenant_id
	Namespace []byte
	Stream    []byte
	Cache     []byte
	Key       []byte
	Token     []byte
	Text      []byte // message of error and publish_error

	Payload  []byte // of publish and event
	Items    Items  // payloads of publish_batch and event_batch, in the form that binary batches have
	Value    []byte // of cache_put and cache_value
	HasValue bool   // false in a cache_value that reports a miss

	RequestID         uint64
	SubscriptionID    uint64
	Offset            uint64 // offset of event, base_offset of event_batch
	TTL               uint64 // ttl_ms, in milliseconds
	HasRequestID      bool
	HasSubscriptionID bool
	HasOffset         bool
	HasTTL            bool // false: the entry never expires

	Ack   AckMode
	Start Start

	ClientFlags    Flags
	ServerFlags    Flags
	Ext            Extensions // those of ext that this implementation knows
	HasClientFlags bool       // false: a client that does not negotiate
	HasExt         bool

	Fence []byte // of auth: see [ParseFence]; nil if there is none

	Epoch    uint64 // of Start.Offset: the subscription is one to resume; see docs/protocol/extensions.md
	HasEpoch bool
	Since    uint64 // of subscribe: the time of the first event, in milliseconds since 1970; see docs/protocol/extensions.md
	HasSince bool

	Reason    CursorReason
	Requested uint64
	Available uint64

	scratch []byte
}

// keepScratch is how much memory a Message keeps for the next one.
const keepScratch = 16 << 10

// Reset forgets the message, and gives up its memory if the last message needed a lot of it. A caller that is going
// to wait for the next message calls it, so that an idle stream holds little.
func (m *Message) Reset() {
	scratch := m.scratch[:0]
	if cap(scratch) > keepScratch {
		scratch = nil
	}
	*m = Message{scratch: scratch}
}

// AckMode says whether and how a publish is acknowledged.
type AckMode uint8

// The ack modes. An absent one means per message for publish, and per batch for publish_batch.
const (
	AckUnset AckMode = iota
	AckNone
	AckPerMessage
	AckPerBatch
)

// String returns the mode as it is written in JSON, and "" for AckUnset.
func (a AckMode) String() string {
	switch a {
	case AckNone:
		return "none"
	case AckPerMessage:
		return "per_message"
	case AckPerBatch:
		return "per_batch"
	default:
		return ""
	}
}

// StartKind is a kind of start position.
type StartKind uint8

// The kinds. An absent start position means the live tail, as StartLatest does.
const (
	StartUnset StartKind = iota
	StartLatest
	StartEarliest
	StartOffset
)

// Start is where a subscription begins. Offset counts for StartOffset alone.
type Start struct {
	Kind   StartKind
	Offset uint64
}

// CursorReason says why a start position cannot be served.
type CursorReason uint8

// The reasons.
const (
	CursorUnset CursorReason = iota
	CursorTooOld
	CursorInFuture
)

// String returns the reason as it is written in JSON, and "" for CursorUnset.
func (r CursorReason) String() string {
	switch r {
	case CursorTooOld:
		return "too_old"
	case CursorInFuture:
		return "in_future"
	default:
		return ""
	}
}
