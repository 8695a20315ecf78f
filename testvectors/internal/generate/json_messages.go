package main

// topic and entry are the members that most messages begin with.

func topic(more ...member) []member {
	return append([]member{str("tenant_id", "t1"), str("namespace", "default"), str("stream", "demo")}, more...)
}

func entry(more ...member) []member {
	return append([]member{
		str("tenant_id", "t1"), str("namespace", "default"), str("cache", "primary"), str("key", "k"),
	}, more...)
}

// onTopic and onEntry are the texts of messages that begin with these members, for what no encoder writes.

func onTopic(kind, more string) string {
	return `{"type":"` + kind + `","tenant_id":"t1","namespace":"default","stream":"demo",` + more + `}`
}

func onEntry(kind, more string) string {
	return `{"type":"` + kind + `","tenant_id":"t1","namespace":"default","cache":"primary","key":"k",` + more + `}`
}

// allBytes is every value of a byte once.
func allBytes() blob {
	b := make([]byte, 256)
	for i := range b {
		b[i] = byte(i)
	}
	return raw(string(b))
}

// A text with every character that has an escape of its own, every other control character, and those that other
// encoders escape although this protocol does not.
const (
	controlText = "\x00\x01\x02\x03\x04\x05\x06\a\b\t\n\v\f\r\x0e\x0f" +
		"\x10\x11\x12\x13\x14\x15\x16\x17\x18\x19\x1a\x1b\x1c\x1d\x1e\x1f"
	rawText     = "/ < > & ' ` \x7f \u0080 \u00a0 \u2028 \u2029 \ufeff \ufffd \uffff"
	unicodeText = "Grüße, 世界, Ελλάδα, שלום, e\u0301, 👩\u200d🚀, \U0001d11e, \U0010ffff"
)

// jsonMessages are the eighteen messages as an encoder writes them, with and without each optional member.
func jsonMessages() []vector {
	hello, empty := raw("hello"), blob(nil)
	return []vector{
		// Client to broker.
		canonical("no_client_flags", "A client without negotiation; the answer is ok.",
			msg("auth", str("tenant_id", "t1"), str("token", "demo-token"))),
		canonical("client_flags", "What a client with every feature sends.",
			msg("auth", str("tenant_id", "t1"), str("token", "demo-token"), num16("client_flags", 63))),
		canonical("client_flags_subset", "Neither none nor all, so that a constant in place of the member shows.",
			msg("auth", str("tenant_id", "t1"), str("token", "demo-token"), num16("client_flags", 25))),
		canonical("client_flags_0", "0 asks for negotiation and is not the same as absent.",
			msg("auth", str("tenant_id", "t1"), str("token", "demo-token"), num16("client_flags", 0))),
		canonical("client_flags_max", "The greatest u16.",
			msg("auth", str("tenant_id", "t1"), str("token", "demo-token"), num16("client_flags", maxU16))),
		canonical("empty_strings", "Empty texts pass the codec.",
			msg("auth", str("tenant_id", ""), str("token", ""))),

		canonical("minimal", "No ack: a broker reads it as per_message, and then wants a request_id. A vector for the codec.",
			msg("publish", topic(b64("payload", hello))...)),
		canonical("request_id", "", msg("publish", topic(b64("payload", hello), num("request_id", 7))...)),
		canonical("ack_none", "", msg("publish", topic(b64("payload", hello), enum("ack", "none"))...)),
		canonical("ack_per_message", "",
			msg("publish", topic(b64("payload", hello), num("request_id", 7), enum("ack", "per_message"))...)),
		canonical("ack_per_batch", "",
			msg("publish", topic(b64("payload", hello), num("request_id", 7), enum("ack", "per_batch"))...)),
		canonical("request_id_0", "0 is an id like any other, not the same as absent.",
			msg("publish", topic(b64("payload", hello), num("request_id", 0))...)),
		canonical("request_id_beyond_double", "2^53+1 does not survive a double.",
			msg("publish", topic(b64("payload", hello), num("request_id", 1<<53+1))...)),
		canonical("request_id_max", "The greatest u64.",
			msg("publish", topic(b64("payload", hello), num("request_id", maxU64))...)),
		canonical("payload_empty", "", msg("publish", topic(b64("payload", empty))...)),
		canonical("payload_1_byte", "Two padding characters.", msg("publish", topic(b64("payload", hx("ff")))...)),
		canonical("payload_2_bytes", "One padding character.", msg("publish", topic(b64("payload", hx("fffe")))...)),
		canonical("payload_3_bytes", "No padding; the characters + and /, which the URL-safe alphabet lacks.",
			msg("publish", topic(b64("payload", hx("fbffbf")))...)),
		canonical("payload_every_byte", "", msg("publish", topic(b64("payload", allBytes()))...)),
		canonical("empty_names", "Empty names pass the codec.",
			msg("publish", str("tenant_id", ""), str("namespace", ""), str("stream", ""), b64("payload", hello))),
		canonical("unicode_names", "", msg("publish", str("tenant_id", "Köln"), str("namespace", "名前"),
			str("stream", "поток/*🚀"), b64("payload", hello))),

		canonical("minimal", "No ack: a broker reads it as per_batch.",
			msg("publish_batch", topic(b64s(hello, empty))...)),
		canonical("request_id", "", msg("publish_batch", topic(b64s(hello), num("request_id", 7))...)),
		canonical("ack_none", "", msg("publish_batch", topic(b64s(hello), enum("ack", "none"))...)),
		canonical("ack_per_message", "", msg("publish_batch",
			topic(b64s(hello, empty), num("request_id", 7), enum("ack", "per_message"))...)),
		canonical("ack_per_batch", "", msg("publish_batch",
			topic(b64s(hello, empty), num("request_id", 7), enum("ack", "per_batch"))...)),
		canonical("request_id_max", "", msg("publish_batch", topic(b64s(hello), num("request_id", maxU64))...)),
		canonical("no_items", "An empty batch is legal.", msg("publish_batch", topic(b64s())...)),
		canonical("empty_items", "", msg("publish_batch", topic(b64s(empty, empty, empty))...)),
		canonical("mixed_items", "Items of every length modulo 3.",
			msg("publish_batch", topic(b64s(raw("a"), raw("bc"), raw("def"), raw("ghij"), allBytes()))...)),

		canonical("minimal", "No subscription_id: the broker chooses one. No start: the live tail.",
			msg("subscribe", topic()...)),
		canonical("subscription_id", "", msg("subscribe", topic(num("subscription_id", 5))...)),
		canonical("subscription_id_0", "", msg("subscribe", topic(num("subscription_id", 0))...)),
		canonical("subscription_id_max", "", msg("subscribe", topic(num("subscription_id", maxU64))...)),
		canonical("start_latest", "", msg("subscribe", topic(enum("start", "latest"))...)),
		canonical("start_earliest", "", msg("subscribe", topic(enum("start", "earliest"))...)),
		canonical("start_offset", "", msg("subscribe", topic(startOffset(42))...)),
		canonical("start_offset_0", "", msg("subscribe", topic(startOffset(0))...)),
		canonical("start_offset_max", "", msg("subscribe", topic(startOffset(maxU64))...)),
		canonical("all_members", "", msg("subscribe", topic(num("subscription_id", 5), startOffset(42))...)),

		canonical("no_ttl", "An absent ttl_ms is written as null. The entry never expires.",
			msg("cache_put", entry(b64("value", raw("v")), nullTTL())...)),
		canonical("ttl", "", msg("cache_put", entry(b64("value", raw("v")), num("ttl_ms", 1000))...)),
		canonical("ttl_0", "Expired at once: not the same as absent.",
			msg("cache_put", entry(b64("value", raw("v")), num("ttl_ms", 0))...)),
		canonical("ttl_max", "", msg("cache_put", entry(b64("value", raw("v")), num("ttl_ms", maxU64))...)),
		canonical("request_id_no_ttl", "request_id comes before ttl_ms.",
			msg("cache_put", entry(b64("value", raw("v")), num("request_id", 1), nullTTL())...)),
		canonical("all_members", "",
			msg("cache_put", entry(b64("value", raw("v")), num("request_id", maxU64), num("ttl_ms", 1000))...)),
		canonical("empty_value", "", msg("cache_put", entry(b64("value", empty), nullTTL())...)),
		canonical("awkward_key", "", msg("cache_put", str("tenant_id", "t1"), str("namespace", "default"),
			str("cache", "primary"), str("key", `"\/`+"\x00\n"+`{}[]:,*`), b64("value", raw("v")), nullTTL())),

		canonical("minimal", "", msg("cache_get", entry()...)),
		canonical("request_id", "", msg("cache_get", entry(num("request_id", 2))...)),
		canonical("request_id_max", "", msg("cache_get", entry(num("request_id", maxU64))...)),
		canonical("empty_key", "", msg("cache_get", str("tenant_id", "t1"), str("namespace", "default"),
			str("cache", "primary"), str("key", ""))),

		// Broker to client, on the stream of the request.
		canonical("all_flags", "", msg("auth_ok", num16("server_flags", 63))),
		canonical("subset", "", msg("auth_ok", num16("server_flags", 25))),
		canonical("flags_0", "", msg("auth_ok", num16("server_flags", 0))),
		canonical("flags_max", "The greatest u16: bits that are not known yet are no error here.",
			msg("auth_ok", num16("server_flags", maxU16))),

		canonical("ok", "", msg("ok")),

		canonical("text", "", msg("error", str("message", "auth required"))),
		canonical("empty", "", msg("error", str("message", ""))),
		canonical("short_escapes", `The seven escapes of two characters.`,
			msg("error", str("message", "\" \\ \b \t \n \f \r"))),
		canonical("control_characters", "The other control characters are \\u00xx with lower-case digits.",
			msg("error", str("message", controlText))),
		canonical("raw_characters", "None of these is escaped, although other encoders do it.",
			msg("error", str("message", rawText))),
		canonical("unicode", "UTF-8 of one to four bytes, the greatest code point included.",
			msg("error", str("message", unicodeText))),

		canonical("request_id", "", msg("publish_ok", num("request_id", 7))),
		canonical("request_id_0", "", msg("publish_ok", num("request_id", 0))),
		canonical("request_id_max", "", msg("publish_ok", num("request_id", maxU64))),

		canonical("text", "", msg("publish_error", num("request_id", 7), str("message", "forbidden"))),
		canonical("empty", "", msg("publish_error", num("request_id", 0), str("message", ""))),
		canonical("request_id_max", "", msg("publish_error", num("request_id", maxU64),
			str("message", "stream not found: tenant=t1 namespace=default stream=demo"))),
		canonical("long_text", "Only the binary acknowledgement cuts its text at 512 bytes.",
			msg("publish_error", num("request_id", 7), longStr("message", "x", 600))),

		canonical("subscription_id", "", msg("subscribed", num("subscription_id", 5))),
		canonical("subscription_id_0", "", msg("subscribed", num("subscription_id", 0))),
		canonical("subscription_id_max", "", msg("subscribed", num("subscription_id", maxU64))),

		canonical("too_old", "available is the oldest offset that can be served.",
			msg("subscribe_cursor_error", enum("reason", "too_old"), num("requested", 3), num("available", 16))),
		canonical("in_future", "available is the offset the next record will get.",
			msg("subscribe_cursor_error", enum("reason", "in_future"), num("requested", 17), num("available", 16))),
		canonical("extremes", "",
			msg("subscribe_cursor_error", enum("reason", "in_future"), num("requested", maxU64), num("available", 0))),

		canonical("request_id", "", msg("cache_ok", num("request_id", 1))),
		canonical("request_id_0", "", msg("cache_ok", num("request_id", 0))),
		canonical("request_id_max", "", msg("cache_ok", num("request_id", maxU64))),

		canonical("hit", "", msg("cache_value", entry(b64("value", raw("cached")))...)),
		canonical("hit_request_id", "", msg("cache_value", entry(b64("value", raw("cached")), num("request_id", 2))...)),
		canonical("hit_empty_value", "An empty value is a hit.", msg("cache_value", entry(b64("value", empty))...)),
		canonical("miss", "The member is there and null.", msg("cache_value", entry(nullValue())...)),
		canonical("miss_request_id", "", msg("cache_value", entry(nullValue(), num("request_id", 2))...)),
		canonical("request_id_max", "", msg("cache_value", entry(nullValue(), num("request_id", maxU64))...)),

		// Broker to client, on an event stream.
		canonical("subscription_id", "", msg("event_stream_hello", num("subscription_id", 5))),
		canonical("subscription_id_0", "", msg("event_stream_hello", num("subscription_id", 0))),
		canonical("subscription_id_max", "", msg("event_stream_hello", num("subscription_id", maxU64))),

		canonical("no_offset", "", msg("event", topic(b64("payload", raw("world")))...)),
		canonical("offset", "", msg("event", topic(b64("payload", raw("world")), num("offset", 42))...)),
		canonical("offset_0", "", msg("event", topic(b64("payload", raw("world")), num("offset", 0))...)),
		canonical("offset_max", "", msg("event", topic(b64("payload", raw("world")), num("offset", maxU64))...)),
		canonical("empty_payload", "", msg("event", topic(b64("payload", empty))...)),

		canonical("no_offset", "", msg("event_batch", topic(b64s(hello, empty))...)),
		canonical("base_offset", "Item i has offset base_offset + i.",
			msg("event_batch", topic(b64s(hello, empty), num("base_offset", 42))...)),
		canonical("base_offset_0", "", msg("event_batch", topic(b64s(hello), num("base_offset", 0))...)),
		canonical("base_offset_max", "", msg("event_batch", topic(b64s(hello), num("base_offset", maxU64))...)),
		canonical("no_items", "", msg("event_batch", topic(b64s())...)),
	}
}
