package codec

// The texts of errors that have no variable part (session.md, section 9). They are for people: clients decide nothing
// by them.
const (
	TextUnsupportedFlags      = "unsupported frame flags"
	TextDuplicateSubscription = "duplicate subscription id"
	TextAuthRequired          = "auth required"
	TextAuthEstablished       = "auth already established"
	TextAuthFailed            = "auth failed"
	TextTenantMismatch        = "tenant mismatch"
	TextForbidden             = "forbidden"
	TextUnexpectedMessage     = "unexpected message type"
	TextCursorErrorDirection  = "subscribe_cursor_error is a server-to-client message"
	TextMissingRequestID      = "missing request_id for acked publish"
	TextMissingRequestIDBatch = "missing request_id for acked publish batch"
	TextMalformedBatch        = "malformed publish batch"
	TextAdmissionTimedOut     = "publish admission timed out"
	TextAdmissionClosed       = "publish admission closed"
	TextMaxSubscriptions      = "max subscriptions per connection exceeded"
	TextOpenUniStream         = "open uni stream"
)

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
