package main

import "strings"

// jsonDecoding are payloads that no encoder here writes and every decoder accepts, docs/protocol/wire.md#decoding.
func jsonDecoding() []vector {
	ok := msg("ok")
	publish := msg("publish", topic(b64("payload", raw("hello")), num("request_id", 7), enum("ack", "per_batch"))...)
	put := msg("cache_put", entry(b64("value", raw("v")), nullTTL())...)
	nested := func(open, inner, shut string, depth int) blob {
		return cat(text(`{"type":"ok","x":`), repeat(text(open), depth), text(inner), repeat(text(shut), depth), text(`}`))
	}
	okWith := func(name, note, member string) vector {
		return accepted(name, note, text(`{"type":"ok",`+member+`}`), ok)
	}

	return []vector{
		// Order and whitespace.
		accepted("type_last", "Members come in any order.",
			text(`{"tenant_id":"t1","token":"demo-token","client_flags":63,"type":"auth"}`),
			msg("auth", str("tenant_id", "t1"), str("token", "demo-token"), num16("client_flags", 63))),
		accepted("members_reversed", "", text(`{"ack":"per_batch","request_id":7,"payload":"aGVsbG8=","stream":"demo",`+
			`"namespace":"default","tenant_id":"t1","type":"publish"}`), publish),
		accepted("type_in_the_middle", "", text(`{"payloads":["aGVsbG8=",""],"stream":"demo","type":"event_batch",`+
			`"base_offset":42,"namespace":"default","tenant_id":"t1"}`),
			msg("event_batch", topic(b64s(raw("hello"), blob(nil)), num("base_offset", 42))...)),
		accepted("whitespace", "The four characters of whitespace around every token.",
			text(" \t\r\n{ \t\r\n\"type\" \t\r\n: \t\r\n\"ok\" \t\r\n} \t\r\n"), ok),
		accepted("whitespace_in_values", "", text("{\n  \"type\": \"publish_batch\",\n  \"tenant_id\": \"t1\",\n"+
			"  \"namespace\": \"default\",\n  \"stream\": \"demo\",\n  \"payloads\": [ \"aGVsbG8=\" , \"\" ],\n"+
			"  \"request_id\": 7,\n  \"ack\": \"none\"\n}\n"),
			msg("publish_batch", topic(b64s(raw("hello"), blob(nil)), num("request_id", 7), enum("ack", "none"))...)),
		accepted("whitespace_in_start", "", text(onTopic("subscribe", `"start": { "offset" : 42 } `)), msg("subscribe", topic(startOffset(42))...)),
		accepted("whitespace_in_empty_list", "", text(onTopic("publish_batch", `"payloads":[ ]`)), msg("publish_batch", topic(b64s())...)),

		// null and absent are the same for an optional member.
		accepted("null/auth_client_flags", "", text(`{"type":"auth","tenant_id":"t1","token":"x","client_flags":null}`),
			msg("auth", str("tenant_id", "t1"), str("token", "x"))),
		accepted("null/publish", "", text(onTopic("publish", `"payload":"aGVsbG8=","request_id":null,"ack":null`)), msg("publish", topic(b64("payload", raw("hello")))...)),
		accepted("null/publish_batch", "", text(onTopic("publish_batch", `"payloads":["aGVsbG8="],"request_id":null,"ack":null`)),
			msg("publish_batch", topic(b64s(raw("hello")))...)),
		accepted("null/subscribe", "", text(onTopic("subscribe", `"subscription_id":null,"start":null`)), msg("subscribe", topic()...)),
		accepted("null/cache_put", "", text(onEntry("cache_put", `"value":"dg==","request_id":null,"ttl_ms":null`)), put),
		accepted("absent/cache_put_ttl_ms", "An encoder writes null here, a decoder takes absent as well.",
			text(onEntry("cache_put", `"value":"dg=="`)), put),
		accepted("null/cache_get", "", text(onEntry("cache_get", `"request_id":null`)), msg("cache_get", entry()...)),
		accepted("null/cache_value", "", text(onEntry("cache_value", `"value":null,"request_id":null`)), msg("cache_value", entry(nullValue())...)),
		accepted("null/event", "", text(onTopic("event", `"payload":"d29ybGQ=","offset":null`)), msg("event", topic(b64("payload", raw("world")))...)),
		accepted("null/event_batch", "", text(onTopic("event_batch", `"payloads":[""],"base_offset":null`)), msg("event_batch", topic(b64s(blob(nil)))...)),

		// Unknown members.
		okWith("unknown/string", "Unknown members of any type are ignored.", `"x":"y"`),
		okWith("unknown/empty_name", "", `"":0`),
		okWith("unknown/number", "", `"x":-12.5e-3`),
		okWith("unknown/true", "", `"x":true`),
		okWith("unknown/false", "", `"x":false`),
		okWith("unknown/null", "", `"x":null`),
		okWith("unknown/array", "", `"x":[1,"2",[],{},null]`),
		okWith("unknown/object", "", `"x":{"y":{"z":[{"type":"error"}]},"type":"error"}`),
		okWith("unknown/repeated", "Only members of the message must not repeat.", `"x":1,"x":"2","x":null`),
		okWith("unknown/repeated_inside", "", `"x":{"y":1,"y":2}`),
		okWith("unknown/other_case", "Names are compared with their case.", `"Type":"error","TYPE":5`),
		okWith("unknown/member_of_another_message", "Known is what the message's own type has: ok has no request_id.",
			`"request_id":"not a number","request_id":null,"message":5,"payload":"not base64!"`),
		accepted("unknown/member_of_another_message_first", "The same before the type is known.",
			text(`{"request_id":"not a number","message":5,"message":6,"payload":[],"type":"ok"}`), ok),
		accepted("unknown/offset_in_event_batch", "The batch has base_offset, not offset.",
			text(onTopic("event_batch", `"payloads":[],"offset":"x"`)), msg("event_batch", topic(b64s())...)),
		accepted("unknown/base_offset_in_event", "The single event has offset, not base_offset.",
			text(onTopic("event", `"payload":"","base_offset":-1`)), msg("event", topic(b64("payload", blob(nil)))...)),
		accepted("unknown/between", "", text(`{"a":[],"type":"publish_ok","b":{},"request_id":7,"c":"}"}`),
			msg("publish_ok", num("request_id", 7))),

		// What is ignored is parsed nevertheless; these are at the good side of each bound.
		okWith("unknown/greatest_double", "", `"x":1.7976931348623157e308`),
		okWith("unknown/least_double", "", `"x":-1.7976931348623157E+308`),
		okWith("unknown/underflow", "Too small is zero, not an error.", `"x":1e-400`),
		okWith("unknown/big_integer", "An integer beyond 64 bits is within a double.", `"x":123456789012345678901234567890`),
		okWith("unknown/negative_zero", "", `"x":[-0,-0.0,0e0,0E+5]`),
		okWith("unknown/escapes", "", `"x":"\"\\\/\b\f\n\r\t\u0000\u00Ff\ud834\udd1e"`),
		okWith("unknown/structural_characters_in_string", "", `"x":"}],{[\"\\","y":"\\\\"`),

		// Escapes.
		accepted("escapes/every_escape", "", text(`{"type":"error","message":"\"\\\/\b\f\n\r\t\u0041\u00e9\u00E9\u4e16"}`),
			msg("error", str("message", "\"\\/\b\f\n\r\tAéé世"))),
		accepted("escapes/long_forms", "The reference client's batch encoder writes U+0008 and U+000C this way.",
			text(`{"type":"publish_batch","tenant_id":"t1","namespace":"\u0008\u000c","stream":"demo","payloads":[]}`),
			msg("publish_batch", str("tenant_id", "t1"), str("namespace", "\b\f"), str("stream", "demo"), b64s())),
		accepted("escapes/surrogate_pairs", "", text(`{"type":"error","message":"\ud834\udd1e \uDBFF\uDFFF \ud800\udc00"}`),
			msg("error", str("message", "\U0001d11e \U0010ffff \U00010000"))),
		accepted("escapes/member_name", "Names are compared after unescaping.",
			text(`{"\u0074ype":"publish_ok","request\u005fid":7}`), msg("publish_ok", num("request_id", 7))),
		accepted("escapes/type", "", text(`{"type":"\u006fk"}`), ok),
		accepted("escapes/ack", "", text(onTopic("publish", `"payload":"aGVsbG8=","request_id":7,"ack":"per\u005fbatch"`)), publish),
		accepted("escapes/reason", "",
			text(`{"type":"subscribe_cursor_error","reason":"too\u005fold","requested":3,"available":16}`),
			msg("subscribe_cursor_error", enum("reason", "too_old"), num("requested", 3), num("available", 16))),
		accepted("escapes/start", "", text(onTopic("subscribe", `"start":"\u0065arliest"`)), msg("subscribe", topic(enum("start", "earliest"))...)),
		accepted("escapes/start_offset", "", text(onTopic("subscribe", `"start":{"\u006fffset":42}`)), msg("subscribe", topic(startOffset(42))...)),
		accepted("escapes/base64", "The string is unescaped first.", text(onTopic("event", `"payload":"\u0061GVsbG8\u003d"`)), msg("event", topic(b64("payload", raw("hello")))...)),
		accepted("escapes/base64_slash", "A solidus may be escaped.", text(onTopic("publish_batch", `"payloads":["+\/+\/"]`)), msg("publish_batch", topic(b64s(hx("fbffbf")))...)),

		// Depth. The message object is the first level.
		accepted("depth/127_arrays", "The deepest legal nesting.", nested("[", "", "]", 126), ok),
		accepted("depth/127_objects", "", nested(`{"x":`, "0", "}", 126), ok),
		accepted("depth/127_twice", "Depth goes down again.", cat(text(`{"x":`), repeat(text("["), 126), repeat(text("]"), 126),
			text(`,"type":"ok","y":`), repeat(text("["), 126), repeat(text("]"), 126), text(`}`)), ok),
		okWith("depth/wide", "Many values side by side are not deep.", `"x":[`+strings.Repeat("[],", 200)+`[]]`),
	}
}
