package codec

import (
	"slices"
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

// Consequence is what a refusal means for the stream that it came up on (session.md, section 3.3). Whatever it is, the
// refusal itself is written first.
type Consequence string

// The consequences.
const (
	StreamKept     Consequence = "kept"
	StreamCleanEnd Consequence = "clean end" // the request was the stream's last anyway
	StreamErrorEnd Consequence = "ends"      // the peer broke a rule: nothing behind the frame is looked at
	StreamByID     Consequence = "kept with request_id, else clean end"
)

// Refusal is one row of the table of errors (session.md, section 9): what a broker answers to what, and what becomes of
// the stream. Texts are for people: clients decide nothing by them. Capital words in a text stand for values.
type Refusal struct {
	Text   string
	Form   Form
	When   string
	Stream Consequence
}

// The refusals of this broker, in the order of the table. docs/errors.md is generated from them.
var (
	UnsupportedFlags = Refusal{"unsupported frame flags", FormError, "unknown flag bits, a combination that is not defined, or a layout of the wrong direction", StreamKept}

	AuthRequired    = Refusal{"auth required", FormError, "a request before auth, JSON or binary", StreamErrorEnd}
	AuthEstablished = Refusal{"auth already established", FormError, "a second auth", StreamErrorEnd}
	AuthFailed      = Refusal{"auth failed", FormError, "token, keys or permissions rejected, or the token of the stream has expired", StreamErrorEnd}

	TenantMismatch    = Refusal{"tenant mismatch", FormError, "JSON publish, subscribe or cache request for another tenant", StreamErrorEnd}
	TenantMismatchAck = Refusal{"tenant mismatch", FormPublishAck, "acknowledged binary publish for another tenant", StreamKept}

	Forbidden        = Refusal{"forbidden", FormError, "subscribe, cache request, JSON publish without request_id", StreamErrorEnd}
	ForbiddenPublish = Refusal{"forbidden", FormPublishError, "JSON publish with request_id", StreamErrorEnd}
	ForbiddenAck     = Refusal{"forbidden", FormPublishAck, "acknowledged binary publish", StreamKept}

	UnexpectedMessage    = Refusal{"unexpected message type", FormError, "a message that brokers send; no authentication is needed", StreamErrorEnd}
	CursorErrorDirection = Refusal{"subscribe_cursor_error is a server-to-client message", FormError, "client sent subscribe_cursor_error", StreamErrorEnd}
	ErrorFromClient      = Refusal{"", FormNone, "client sent error", StreamErrorEnd}
	Undecodable          = Refusal{"", FormNone, "undecodable JSON, bad header, oversized frame, bad 0x0001 body, bad 0x0009 prefix, 0x0001 for another tenant or without permission", StreamErrorEnd}

	MissingRequestID      = Refusal{"missing request_id for acked publish", FormError, "JSON publish, ack absent or not none, no id", StreamKept}
	MissingRequestIDBatch = Refusal{"missing request_id for acked publish batch", FormError, "the same for publish_batch", StreamKept}
	MalformedBatch        = Refusal{"malformed publish batch", FormPublishAck, "0x0009 with a bad body", StreamKept}

	StreamNotFound          = Refusal{"stream not found: tenant=T namespace=N stream=S", FormPublishError, "acknowledged JSON publish to a stream that does not exist", StreamKept}
	StreamNotFoundAck       = Refusal{"stream not found: tenant=T namespace=N stream=S", FormPublishAck, "acknowledged binary publish", StreamKept}
	StreamNotFoundSubscribe = Refusal{"stream not found: tenant=T namespace=N stream=S", FormError, "subscribe", StreamCleanEnd}

	AdmissionTimedOut    = Refusal{"publish admission timed out", FormPublishError, "no room in queues that block, or in memory, within FELIX_PUBLISH_QUEUE_WAIT_MS; JSON publish", StreamKept}
	AdmissionTimedOutAck = Refusal{"publish admission timed out", FormPublishAck, "the same for a binary publish", StreamKept}
	AdmissionClosed      = Refusal{"publish admission closed", FormPublishError, "the broker is going down; JSON publish", StreamKept}
	AdmissionClosedAck   = Refusal{"publish admission closed", FormPublishAck, "the same for a binary publish", StreamKept}

	MaxSubscriptions      = Refusal{"max subscriptions per connection exceeded", FormError, "subscribe above FELIX_MAX_SUBSCRIPTIONS_PER_CONN", StreamCleanEnd}
	DuplicateSubscription = Refusal{"duplicate subscription id", FormError, "subscribe with an id that is in use on the connection", StreamCleanEnd}
	CursorRefused         = Refusal{"REASON requested=N available=N", FormCursorError, "the start position is too_old or in_future", StreamCleanEnd}
	OpenUniStream         = Refusal{"open uni stream", FormError, "the event stream could not be opened: no stream credit in time, or the connection is closing", StreamCleanEnd}

	CacheScopeNotFound = Refusal{"cache scope not found: TENANT/NAMESPACE/CACHE", FormError, "unknown cache, namespace or tenant", StreamByID}
	CacheEntryTooLarge = Refusal{"cache entry too large", FormError, "cache_put whose value could not be read back within FELIX_MAX_FRAME_BYTES", StreamByID}
	CacheBytesReached  = Refusal{LimitReached("cache bytes"), FormError, "cache_put of an entry that does not fit into what its cache or its tenant may hold; nothing has changed", StreamByID}
)

var refusals = []Refusal{
	UnsupportedFlags,
	AuthRequired, AuthEstablished, AuthFailed,
	TenantMismatch, TenantMismatchAck,
	Forbidden, ForbiddenPublish, ForbiddenAck,
	UnexpectedMessage, CursorErrorDirection, ErrorFromClient, Undecodable,
	MissingRequestID, MissingRequestIDBatch, MalformedBatch,
	StreamNotFound, StreamNotFoundAck, StreamNotFoundSubscribe,
	AdmissionTimedOut, AdmissionTimedOutAck, AdmissionClosed, AdmissionClosedAck,
	MaxSubscriptions, DuplicateSubscription, CursorRefused, OpenUniStream,
	CacheScopeNotFound, CacheEntryTooLarge, CacheBytesReached,
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

// CutText returns text cut to at most limit bytes, which is not negative, before the character that would be split there.
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
