package codec

import (
	"slices"
	"strings"
	"unicode/utf8"
)

// Form is the kind of frame that carries a refusal. JSON requests are answered in JSON, binary ones in binary.
type Form string

// The forms.
const (
	FormError        Form = "error"
	FormPublishError Form = "publish_error"
	FormPublishAck   Form = "binary acknowledgement"
	FormCursorError  Form = "subscribe_cursor_error"
	FormNone         Form = "nothing"
)

// Consequence is what a refusal means for the stream that it came up on (docs/protocol/session.md#the-end-of-a-stream).
// Whatever it is, the refusal itself is written first.
type Consequence string

// The consequences.
const (
	StreamKept     Consequence = "kept"
	StreamCleanEnd Consequence = "clean end" // the request was the stream's last anyway
	StreamErrorEnd Consequence = "ends"      // the peer broke a rule: nothing after the frame is looked at
	StreamByID     Consequence = "kept with request_id, else clean end"
)

// Refusal is one row of the table of errors (docs/protocol/errors.md): what a broker answers to what, and what
// happens to the stream. Texts are for people; programs use the code, see [CodeOf]. Capital words in a text stand for
// values.
type Refusal struct {
	Code   Code
	Text   string
	Form   Form
	When   string
	Stream Consequence
}

// The refusals of this broker, in the order of the table. docs/protocol/errors.md is generated from them.
var (
	UnsupportedFlags = Refusal{CodeInvalid, "unsupported frame flags", FormError, "unknown flag bits, a combination that is not defined, or a layout of the wrong direction", StreamKept}

	AuthRequired    = Refusal{CodeUnauthenticated, "auth required", FormError, "a request before auth, JSON or binary", StreamErrorEnd}
	AuthEstablished = Refusal{CodeInvalid, "auth already established", FormError, "a second auth", StreamErrorEnd}
	AuthFailed      = Refusal{CodeUnauthenticated, "auth failed", FormError, "token, keys or permissions rejected, or the token of the stream has expired", StreamErrorEnd}

	ConnectionsReached = Refusal{CodeLimit, LimitReached("connections"), FormError, "auth on a connection that is one more than its tenant may have; the connection is closed with the same reason", StreamErrorEnd}

	AuthRateReached = Refusal{CodeLimit, LimitReached("authentications per second"), FormError, "auth with a good token, sooner than its tenant may", StreamErrorEnd}

	TenantMismatch    = Refusal{CodeForbidden, "tenant mismatch", FormError, "JSON publish, subscribe or cache request for another tenant", StreamErrorEnd}
	TenantMismatchAck = Refusal{CodeForbidden, "tenant mismatch", FormPublishAck, "acknowledged binary publish for another tenant", StreamKept}

	Forbidden        = Refusal{CodeForbidden, "forbidden", FormError, "subscribe, cache request, JSON publish without request_id", StreamErrorEnd}
	ForbiddenPublish = Refusal{CodeForbidden, "forbidden", FormPublishError, "JSON publish with request_id", StreamErrorEnd}
	ForbiddenAck     = Refusal{CodeForbidden, "forbidden", FormPublishAck, "acknowledged binary publish", StreamKept}

	UnexpectedMessage    = Refusal{CodeInvalid, "unexpected message type", FormError, "a message that brokers send; no authentication is needed", StreamErrorEnd}
	CursorErrorDirection = Refusal{CodeInvalid, "subscribe_cursor_error is a server-to-client message", FormError, "client sent subscribe_cursor_error", StreamErrorEnd}
	ErrorFromClient      = Refusal{CodeUnknown, "", FormNone, "client sent error", StreamErrorEnd}
	Undecodable          = Refusal{CodeUnknown, "", FormNone, "undecodable JSON, bad header, oversized frame, bad 0x0001 body, bad 0x0009 prefix, 0x0001 for another tenant or without permission", StreamErrorEnd}

	MissingRequestID      = Refusal{CodeInvalid, "missing request_id for acked publish", FormError, "JSON publish, ack absent or not none, no id", StreamKept}
	MissingRequestIDBatch = Refusal{CodeInvalid, "missing request_id for acked publish batch", FormError, "the same for publish_batch", StreamKept}
	MalformedBatch        = Refusal{CodeInvalid, "malformed publish batch", FormPublishAck, "0x0009 with a bad body", StreamKept}

	StreamNotFound          = Refusal{CodeNotFound, "stream not found: tenant=T namespace=N stream=S", FormPublishError, "acknowledged JSON publish to a stream that does not exist", StreamKept}
	StreamNotFoundAck       = Refusal{CodeNotFound, "stream not found: tenant=T namespace=N stream=S", FormPublishAck, "acknowledged binary publish", StreamKept}
	StreamNotFoundSubscribe = Refusal{CodeNotFound, "stream not found: tenant=T namespace=N stream=S", FormError, "subscribe", StreamCleanEnd}

	AdmissionTimedOut    = Refusal{CodeOverloaded, "publish admission timed out", FormPublishError, "no space in queues that block, or in memory, within FELIX_PUBLISH_QUEUE_WAIT_MS; JSON publish", StreamKept}
	AdmissionTimedOutAck = Refusal{CodeOverloaded, "publish admission timed out", FormPublishAck, "the same for a binary publish", StreamKept}
	AdmissionClosed      = Refusal{CodeClosing, "publish admission closed", FormPublishError, "the broker is going down; JSON publish", StreamKept}
	AdmissionClosedAck   = Refusal{CodeClosing, "publish admission closed", FormPublishAck, "the same for a binary publish", StreamKept}

	StorageFull      = Refusal{CodeOverloaded, "storage full", FormPublishError, "a durable stream, when less than FELIX_DURABLE_HEADROOM_BYTES is free on its disk; nothing was stored; JSON publish", StreamKept}
	StorageFullAck   = Refusal{CodeOverloaded, "storage full", FormPublishAck, "the same for a binary publish", StreamKept}
	StorageFailed    = Refusal{CodeStorage, "storage failed", FormPublishError, "a durable stream, when a write or a sync of its disk has failed; the events may have been stored; JSON publish", StreamKept}
	StorageFailedAck = Refusal{CodeStorage, "storage failed", FormPublishAck, "the same for a binary publish", StreamKept}
	StorageUnread    = Refusal{CodeStorage, "storage failed", FormError, "subscribe by time to a durable stream whose log cannot be read", StreamCleanEnd}
	EventTooLarge    = Refusal{CodeTooLarge, "event too large", FormPublishError, "a durable stream, an event above 64 MiB or a batch above 256 MiB; JSON publish", StreamKept}
	EventTooLargeAck = Refusal{CodeTooLarge, "event too large", FormPublishAck, "the same for a binary publish", StreamKept}

	ProducerUnknownAck = Refusal{CodeInDoubt, "producer not known", FormPublishAck, "a repeated publish of the extension producer, when the stream remembers no producers or has forgotten this one; nothing was stored now", StreamKept}
	SequenceOldAck     = Refusal{CodeInDoubt, "sequence not known", FormPublishAck, "a publish of the extension producer whose number is below those that the stream remembers; nothing was stored now", StreamKept}

	PublishRateReached     = Refusal{CodeLimit, LimitReached("publishes per second"), FormPublishError, "JSON publish, sooner than the tenant may; one without acknowledgement waits, or is dropped without FELIX_PUB_INGRESS_WAIT", StreamKept}
	PublishRateReachedAck  = Refusal{CodeLimit, LimitReached("publishes per second"), FormPublishAck, "the same for a binary publish", StreamKept}
	PublishBytesReached    = Refusal{CodeLimit, LimitReached("publish bytes per second"), FormPublishError, "the same for the bytes of a JSON publish", StreamKept}
	PublishBytesReachedAck = Refusal{CodeLimit, LimitReached("publish bytes per second"), FormPublishAck, "the same for the bytes of a binary publish", StreamKept}

	MaxSubscriptions      = Refusal{CodeLimit, "max subscriptions per connection exceeded", FormError, "subscribe above FELIX_MAX_SUBSCRIPTIONS_PER_CONN", StreamCleanEnd}
	SubscriptionsReached  = Refusal{CodeLimit, LimitReached("subscriptions"), FormError, "subscribe beyond what the tenant may have", StreamCleanEnd}
	SubscribeRateReached  = Refusal{CodeLimit, LimitReached("subscribes per second"), FormError, "subscribe, sooner than the tenant may; a watch hears it in a reply of the extension cache", StreamCleanEnd}
	MemoryReached         = Refusal{CodeLimit, LimitReached("memory"), FormError, "subscribe, when the tenant has all the memory that it may have", StreamCleanEnd}
	DuplicateSubscription = Refusal{CodeInvalid, "duplicate subscription id", FormError, "subscribe with an id that is in use on the connection", StreamCleanEnd}
	CursorRefused         = Refusal{CodePosition, "REASON requested=N available=N", FormCursorError, "the start position is too_old or in_future", StreamCleanEnd}
	OpenUniStream         = Refusal{CodeOverloaded, "open uni stream", FormError, "the event stream could not be opened: no stream credit in time, or the connection is closing", StreamCleanEnd}

	CacheScopeNotFound = Refusal{CodeNotFound, "cache scope not found: TENANT/NAMESPACE/CACHE", FormError, "unknown cache, namespace or tenant", StreamByID}
	CacheEntryTooLarge = Refusal{CodeTooLarge, "cache entry too large", FormError, "cache_put whose value could not be read back within FELIX_MAX_FRAME_BYTES; cache_get of a value that was put in binary and does not fit in base64", StreamByID}
	WatchesReached     = Refusal{CodeLimit, LimitReached("watches"), FormError, "a watch of a cache, beyond what the tenant may have; in a reply of the extension cache", StreamKept}
	WatchMemoryReached = Refusal{CodeLimit, LimitReached("read bytes"), FormError, "a watch of a cache, when the tenant has all the memory for requests, streams and watches that it may have; in a reply of the extension cache", StreamKept}
	CacheBytesReached  = Refusal{CodeLimit, LimitReached("cache bytes"), FormError, "cache_put of an entry that does not fit into what its cache or its tenant may hold; nothing has changed", StreamByID}
)

// known are texts that brokers send and that Refusals does not list: those of the reference, and those with a prefix of
// their own. A text that ends with a space is a prefix.
var known = []struct {
	text string
	code Code
}{
	{"limit reached: ", CodeLimit},
	{"server overloaded", CodeOverloaded},
	{"publish queue full", CodeOverloaded},
	{"publish enqueue timed out", CodeOverloaded},
	{"publish ingress per-connection byte budget exhausted", CodeOverloaded},
	{"publish ingress byte budget exhausted", CodeOverloaded},
}

// Code says what kind of refusal a broker's text is. Peers send the text alone: [CodeOf] finds the code.
type Code string

// The codes.
const (
	CodeUnknown         Code = ""                // a text that is not in the table
	CodeUnauthenticated Code = "unauthenticated" // no token, or one that is not accepted
	CodeForbidden       Code = "forbidden"       // the token does not allow it
	CodeNotFound        Code = "not_found"       // there is no such stream or cache
	CodeInvalid         Code = "invalid"         // the request breaks a rule of the protocol
	CodeTooLarge        Code = "too_large"       // the request is larger than the broker takes
	CodePosition        Code = "position"        // the start position is not kept any more, or is in the future
	CodeLimit           Code = "limit"           // a limit of the tenant, the connection or the broker is reached
	CodeOverloaded      Code = "overloaded"      // the broker has no space for it at present
	CodeClosing         Code = "closing"         // the broker is shutting down
	CodeStorage         Code = "storage"         // the broker's disk has failed; it may have been stored or not
	CodeInDoubt         Code = "in_doubt"        // the broker does not know whether it has been carried out before
)

// codes is the table of codes in the order of the documentation.
var codes = []struct {
	code      Code
	retryable bool
	meaning   string
}{
	{CodeUnauthenticated, false, "no token, or one that is not accepted"},
	{CodeForbidden, false, "the token does not allow it"},
	{CodeNotFound, false, "there is no such stream or cache"},
	{CodeInvalid, false, "the request breaks a rule of the protocol"},
	{CodeTooLarge, false, "the request is larger than the broker takes"},
	{CodePosition, false, "the start position is not kept any more, or is in the future"},
	{CodeLimit, true, "a limit of the tenant, the connection or the broker is reached; such texts begin with `limit reached: `"},
	{CodeOverloaded, true, "the broker has no space for it at present"},
	{CodeClosing, true, "the broker is shutting down"},
	{CodeStorage, false, "the broker's disk has failed: it stores nothing until it is started again, and what was refused may have been stored"},
	{CodeInDoubt, false, "a repeated publish: the broker does not know whether it has been carried out before, and has not carried it out now"},
}

// Codes returns all codes but [CodeUnknown], in the order of the documentation.
func Codes() []Code {
	all := make([]Code, 0, len(codes))
	for _, c := range codes {
		all = append(all, c.code)
	}
	return all
}

// Retryable reports whether the same request may succeed later, after a pause. It is false for [CodeUnknown].
func (c Code) Retryable() bool {
	for _, row := range codes {
		if row.code == c {
			return row.retryable
		}
	}
	return false
}

// Meaning returns the description of the code in one phrase; it is "" for [CodeUnknown].
func (c Code) Meaning() string {
	for _, row := range codes {
		if row.code == c {
			return row.meaning
		}
	}
	return ""
}

// CodeOf returns the code of a broker's text, or [CodeUnknown]. It is the only place that compares texts: equal texts
// match, and those with values match by what is in front of the values.
func CodeOf(text string) Code {
	for _, row := range known {
		if text == row.text || strings.HasSuffix(row.text, " ") && strings.HasPrefix(text, row.text) {
			return row.code
		}
	}
	for _, r := range refusals {
		switch prefix, _, values := strings.Cut(r.Text, ": "); {
		case r.Text == "" || r.Form == FormCursorError || strings.HasPrefix(r.Text, LimitReached("")):
		case text == r.Text, values && (text == prefix || strings.HasPrefix(text, prefix+": ")):
			return r.Code
		}
	}
	return CodeUnknown
}

var refusals = []Refusal{
	UnsupportedFlags,
	AuthRequired, AuthEstablished, AuthFailed, ConnectionsReached, AuthRateReached,
	TenantMismatch, TenantMismatchAck,
	Forbidden, ForbiddenPublish, ForbiddenAck,
	UnexpectedMessage, CursorErrorDirection, ErrorFromClient, Undecodable,
	MissingRequestID, MissingRequestIDBatch, MalformedBatch,
	StreamNotFound, StreamNotFoundAck, StreamNotFoundSubscribe,
	AdmissionTimedOut, AdmissionTimedOutAck, AdmissionClosed, AdmissionClosedAck,
	StorageFull, StorageFullAck, StorageFailed, StorageFailedAck, StorageUnread, EventTooLarge, EventTooLargeAck,
	ProducerUnknownAck, SequenceOldAck,
	PublishRateReached, PublishRateReachedAck, PublishBytesReached, PublishBytesReachedAck,
	MaxSubscriptions, SubscriptionsReached, SubscribeRateReached, MemoryReached, DuplicateSubscription, CursorRefused, OpenUniStream,
	CacheScopeNotFound, CacheEntryTooLarge, WatchesReached, WatchMemoryReached, CacheBytesReached,
}

// Refusals returns the whole table.
func Refusals() []Refusal { return slices.Clone(refusals) }

// LimitReached returns the text of a refusal that says which limit of its tenant a request has met.
func LimitReached(limit string) string { return "limit reached: " + limit }

// AppendStreamNotFound appends the text (no frame) that tells of an unknown stream.
func AppendStreamNotFound(dst, tenant, namespace, stream []byte) []byte {
	dst = append(append(dst, "stream not found: tenant="...), tenant...)
	dst = append(append(dst, " namespace="...), namespace...)
	return append(append(dst, " stream="...), stream...)
}

// AppendCacheScopeNotFound appends the text (no frame) that tells of an unknown cache.
func AppendCacheScopeNotFound(dst, tenant, namespace, cache []byte) []byte {
	dst = append(append(dst, "cache scope not found: "...), tenant...)
	dst = append(append(dst, '/'), namespace...)
	return append(append(dst, '/'), cache...)
}

// CutText returns text cut to at most limit bytes, which is not negative, before the character that would be split
// there.
func CutText(text string, limit int) string {
	if len(text) <= limit {
		return text
	}
	n := limit
	for n > 0 && n > limit-utf8.UTFMax && !utf8.RuneStart(text[n]) {
		n--
	}
	return text[:n]
}
