package main

import (
	"fmt"
	"strings"
)

// The classes of failure. They are part of the file format; the package's README says what each one means.
const (
	classShortHeader     = "short_header"
	classBadMagic        = "bad_magic"
	classBadVersion      = "bad_version"
	classFrameTooLarge   = "frame_too_large"
	classUnknownFlags    = "unknown_flags"
	classFlagCombination = "flag_combination"
	classIncomplete      = "incomplete"
	classNotUTF8         = "not_utf8"
	classAckMode         = "ack_mode"
	classAckStatus       = "ack_status"
	classSyntax          = "json_syntax"
	classType            = "json_type"
	classMissing         = "json_missing_field"
	classDuplicate       = "json_duplicate_field"
	classUnknownType     = "json_unknown_type"
	classBase64          = "base64"
)

func bad(class, name, note string, f blob) invalidVector {
	return invalidVector{Name: name, Note: note, Class: class, Frame: f}
}

// badPayload is a frame with a good header of the given flags and a payload to refuse.
func badPayload(class, name, note string, flags uint16, payload blob) invalidVector {
	v := bad(class, name, note, frame(flags, payload))
	v.Flags = &flags
	return v
}

func badJSON(class, name, note, payload string) invalidVector {
	return badPayload(class, name, note, flagsJSON, text(payload))
}

// invalidHeaders fail before a byte of the payload is looked at, docs/protocol/wire.md#reading-a-frame.
func invalidHeaders() []invalidVector {
	ok := msg("ok").payload()
	vectors := []invalidVector{
		bad(classBadMagic, "magic/zero", "", cat(hx("00000000 0001 0000"), u32(ok.len()), ok)),
		bad(classBadMagic, "magic/first_byte", "", cat(hx("474c5831 0001 0000"), u32(ok.len()), ok)),
		bad(classBadMagic, "magic/last_byte", "The version belongs to its own field.", cat(hx("464c5832 0001 0000"), u32(ok.len()), ok)),
		bad(classBadMagic, "magic/lower_case", "", cat(hx("666c7831 0001 0000"), u32(ok.len()), ok)),
		bad(classBadMagic, "magic/little_endian", "", cat(hx("31584c46 0001 0000"), u32(ok.len()), ok)),
		bad(classBadMagic, "magic/before_version", "The magic is checked first.", cat(hx("00000000 0002 0000"), u32(ok.len()), ok)),
		bad(classBadVersion, "version/0", "", cat(hx("464c5831 0000 0000"), u32(ok.len()), ok)),
		bad(classBadVersion, "version/2", "", cat(hx("464c5831 0002 0000"), u32(ok.len()), ok)),
		bad(classBadVersion, "version/little_endian", "", cat(hx("464c5831 0100 0000"), u32(ok.len()), ok)),
		bad(classBadVersion, "version/max", "", cat(hx("464c5831 ffff 0000"), u32(ok.len()), ok)),
		bad(classBadVersion, "version/before_length", "The version is checked before the length.", cat(hx("464c5831 0002 0000"), u32(maxU32))),
		bad(classFrameTooLarge, "length/default_limit_plus_1",
			"The header alone: a decoder refuses it without waiting for the payload or allocating room for it.",
			header(flagsJSON, defaultMaxFrame+1)),
		bad(classFrameTooLarge, "length/max", "", header(flagsPublish, maxU32)),
		bad(classFrameTooLarge, "length/sign_bit", "Negative if read into 32 bits with a sign.", header(flagsPublish, uint32(1<<31))),
		bad(classFrameTooLarge, "length/before_flags", "The length is checked while framing, the flags after it.",
			header(0xffff, defaultMaxFrame+1)),
	}
	limited := bad(classFrameTooLarge, "length/limit_plus_1", "One byte above max_frame.", frame(flagsJSON, ok))
	limited.MaxFrame = ok.len() - 1
	vectors = append(vectors, limited)
	for n := range 12 {
		vectors = append(vectors, bad(classShortHeader, fmt.Sprintf("short/%d_bytes", n),
			"The stream ends inside the header.", cut(frame(flagsJSON, ok), n)))
	}
	return vectors
}

// invalidFlags are frames whose payload nobody looks at, docs/protocol/wire.md#flags.
func invalidFlags() []invalidVector {
	var vectors []invalidVector
	payload := msg("ok").payload()
	for bit := 6; bit < 16; bit++ {
		note := ""
		if bit == 15 {
			note = "Unknown unless both sides have negotiated an extension that uses it."
		}
		vectors = append(vectors, badPayload(classUnknownFlags, fmt.Sprintf("unknown/bit_%d", bit), note, 1<<bit, payload))
	}
	for _, flags := range []uint16{0x0041, 0x8009, 0x007f, 0xffc0, 0xffff} {
		vectors = append(vectors, badPayload(classUnknownFlags, fmt.Sprintf("unknown/0x%04x", flags),
			"Unknown bits are not masked off.", flags, payload))
	}
	legal := map[uint16]bool{
		flagsJSON: true, flagsPublish: true, flagsPublishAcked: true, flagsPublishAck: true,
		flagsEvent: true, flagsEventOffsets: true, flagsShared: true, flagsSharedOffsets: true,
	}
	for flags := range uint16(64) {
		if !legal[flags] {
			vectors = append(vectors, badPayload(classFlagCombination, fmt.Sprintf("combination/0x%04x", flags), "", flags, payload))
		}
	}
	return vectors
}

// cut returns the first n bytes of b.
func cut(b blob, n int) blob { return raw(string(b.bytes()[:n])) }

// notUTF8 are byte strings that are not UTF-8, each for a reason of its own.
var notUTF8 = []struct{ name, note, bytes string }{
	{"fffe", "Bytes that never occur in UTF-8.", "\xff\xfe"},
	{"continuation", "A continuation byte without a beginning.", "\x80"},
	{"truncated", "A character of three bytes without its last.", "\xe4\xb8"},
	{"overlong", "U+002F in two bytes.", "\xc0\xaf"},
	{"overlong_nul", "U+0000 in two bytes.", "\xc0\x80"},
	{"surrogate", "U+D800 in three bytes.", "\xed\xa0\x80"},
	{"beyond_unicode", "U+110000.", "\xf4\x90\x80\x80"},
	{"latin_1", "", "caf\xe9"},
}

// invalidBinary are binary payloads to refuse, docs/protocol/wire.md#binary-payloads.
func invalidBinary() []invalidVector {
	t, n, s := text("t"), text("n"), text("s")
	item, empty := raw("i"), blob(nil)
	id := u64(7)
	batch := cat(names(t, n, s), itemList([]blob{item, empty}))
	var vectors []invalidVector
	add := func(class, name, note string, flags uint16, payload blob) {
		vectors = append(vectors, badPayload(class, name, note, flags, payload))
	}
	// The id is in the vectors whose prefix is good: only then is there somebody to answer to.
	answerable := func(class, name, note string, body blob) {
		v := badPayload(class, name, note, flagsPublishAcked, cat(ackedPrefix(uint64(id), 2), body))
		v.RequestID = &id
		vectors = append(vectors, v)
	}

	// Every payload that ends too early.
	for i := range batch.len() {
		add(classIncomplete, fmt.Sprintf("publish_batch/cut_at_%d", i), "", flagsPublish, cut(batch, i))
	}
	prefix := ackedPrefix(uint64(id), 2)
	for i := range prefix.len() {
		add(classIncomplete, fmt.Sprintf("acked_publish_batch/prefix_cut_at_%d", i), "", flagsPublishAcked, cut(prefix, i))
	}
	for i := range batch.len() {
		answerable(classIncomplete, fmt.Sprintf("acked_publish_batch/cut_at_%d", prefix.len()+i), "", cut(batch, i))
	}
	ack := publishAck(1, uint64(id), text("no"))
	for i := range ack.len() {
		add(classIncomplete, fmt.Sprintf("publish_ack/cut_at_%d", i), "", flagsPublishAck, cut(ack, i))
	}
	for _, layout := range []struct {
		name  string
		flags uint16
		head  blob
	}{
		{"event_batch", flagsEvent, be64(5)},
		{"event_batch_offsets", flagsEventOffsets, cat(be64(5), be64(42))},
		{"shared_event_batch", flagsShared, nil},
		{"shared_event_batch_offsets", flagsSharedOffsets, be64(42)},
	} {
		whole := cat(layout.head, itemList([]blob{item, empty}))
		for i := range whole.len() {
			add(classIncomplete, fmt.Sprintf("%s/cut_at_%d", layout.name, i), "", layout.flags, cut(whole, i))
		}
	}

	// Bad item lists, after each layout's beginning.
	lists := []struct {
		name, note string
		list       blob
	}{
		{"count_1_nothing", "", u32(1)},
		{"count_above_bound", "The bytes can back three items, count says four.", cat(u32(4), hx("00000000 00000000 00000000"))},
		{"count_above_bound_3_spare", "15 bytes back three items.", cat(u32(4), hx("00000000 00000000 00000000 000000"))},
		{"count_max", "Without a check of count this asks for 2^32-1 entries.", u32(maxU32)},
		{"count_max_with_item", "", cat(u32(maxU32), u32(1), item)},
		{"count_sign_bit", "Negative if read into 32 bits with a sign.", cat(hx("80000000"), u32(1), item)},
		{"length_above_bound", "", cat(u32(1), u32(2), item)},
		{"length_max", "Position plus length overflows 32 bits.", cat(u32(1), u32(maxU32), item)},
		{"length_sign_bit", "Negative if read into 32 bits with a sign.", cat(u32(1), hx("80000000"), item)},
		{"length_wraps", "Position plus length is a small number in 32 bits.", cat(u32(1), hx("fffffffc"), item)},
		{"second_length_above_bound", "", cat(u32(2), u32(1), item, u32(1))},
		{"second_length_missing", "The first item takes the bytes that count was checked against.", cat(u32(2), u32(4), raw("item"))},
	}
	for _, l := range lists {
		add(classIncomplete, "publish_batch/"+l.name, l.note, flagsPublish, cat(names(t, n, s), l.list))
		answerable(classIncomplete, "acked_publish_batch/"+l.name, l.note, cat(names(t, n, s), l.list))
		add(classIncomplete, "event_batch/"+l.name, l.note, flagsEvent, cat(be64(5), l.list))
		add(classIncomplete, "event_batch_offsets/"+l.name, l.note, flagsEventOffsets, cat(be64(5), be64(42), l.list))
		add(classIncomplete, "shared_event_batch/"+l.name, l.note, flagsShared, l.list)
		add(classIncomplete, "shared_event_batch_offsets/"+l.name, l.note, flagsSharedOffsets, cat(be64(42), l.list))
	}

	// Names.
	tail := itemList([]blob{item})
	add(classIncomplete, "publish_batch/tenant_length_max", "", flagsPublish, cat(u16(maxU16), t.asHex(), name(n), name(s), tail))
	add(classIncomplete, "publish_batch/stream_length_max", "", flagsPublish, cat(name(t), name(n), u16(maxU16), s.asHex(), tail))
	add(classIncomplete, "publish_batch/no_bytes_after_tenant", "The length that follows is asked for together with the name.",
		flagsPublish, hx("0002 fffe"))
	add(classIncomplete, "publish_batch/stream_without_count", "The same for the last name and the 4 bytes of count.",
		flagsPublish, cat(name(t), name(n), hx("0002 fffe 0000")))
	for _, c := range notUTF8 {
		b := raw(c.bytes)
		add(classNotUTF8, "publish_batch/tenant_"+c.name, c.note, flagsPublish, cat(names(b, n, s), tail))
		add(classNotUTF8, "publish_batch/namespace_"+c.name, c.note, flagsPublish, cat(names(t, b, s), tail))
		add(classNotUTF8, "publish_batch/stream_"+c.name, c.note, flagsPublish, cat(names(t, n, b), tail))
		answerable(classNotUTF8, "acked_publish_batch/stream_"+c.name, c.note, cat(names(t, n, b), tail))
		add(classNotUTF8, "publish_ack/message_"+c.name, c.note, flagsPublishAck, publishAck(1, uint64(id), b))
	}
	add(classNotUTF8, "publish_batch/split_over_names", "Each name is UTF-8 by itself, or not.", flagsPublish,
		cat(names(raw("\xc3"), raw("\xa9"), s), tail))

	// Modes and states.
	for _, mode := range []int{0, 3, 255} {
		add(classAckMode, fmt.Sprintf("acked_publish_batch/mode_%d", mode), "", flagsPublishAcked,
			cat(ackedPrefix(uint64(id), mode), batch))
	}
	add(classAckMode, "acked_publish_batch/mode_0_bad_body", "The prefix is checked first.", flagsPublishAcked, ackedPrefix(uint64(id), 0))
	add(classIncomplete, "publish_ack/message_length_max", "", flagsPublishAck, hx("01 0000000000000001 ffff"))
	for _, status := range []int{2, 7, 255} {
		add(classAckStatus, fmt.Sprintf("publish_ack/status_%d", status), "", flagsPublishAck, publishAck(status, uint64(id), nil))
	}
	add(classIncomplete, "publish_ack/status_0_message_above_bound", "The text of a success is skipped, but must be there.",
		flagsPublishAck, cat(u8(0), be64(uint64(id)), u16(3), raw("no")))
	return vectors
}

// full has every member of every message, in its order; an r marks the required ones.
var full = []struct {
	m        message
	required string
}{
	{msg("auth", str("tenant_id", "t1"), str("token", "x"), num16("client_flags", 63)), "tenant_id token"},
	{
		msg("publish", topic(b64("payload", raw("hello")), num("request_id", 7), enum("ack", "per_message"))...),
		"tenant_id namespace stream payload",
	},
	{
		msg("publish_batch", topic(b64s(raw("hello")), num("request_id", 7), enum("ack", "per_batch"))...),
		"tenant_id namespace stream payloads",
	},
	{msg("subscribe", topic(num("subscription_id", 5), startOffset(42))...), "tenant_id namespace stream"},
	{
		msg("cache_put", entry(b64("value", raw("v")), num("request_id", 1), num("ttl_ms", 1000))...),
		"tenant_id namespace cache key value",
	},
	{msg("cache_get", entry(num("request_id", 2))...), "tenant_id namespace cache key"},
	{msg("auth_ok", num16("server_flags", 63)), "server_flags"},
	{msg("ok"), ""},
	{msg("error", str("message", "oops")), "message"},
	{msg("publish_ok", num("request_id", 7)), "request_id"},
	{msg("publish_error", num("request_id", 7), str("message", "oops")), "request_id message"},
	{msg("subscribed", num("subscription_id", 5)), "subscription_id"},
	{
		msg("subscribe_cursor_error", enum("reason", "too_old"), num("requested", 3), num("available", 16)),
		"reason requested available",
	},
	{msg("cache_ok", num("request_id", 1)), "request_id"},
	{msg("cache_value", entry(b64("value", raw("v")), num("request_id", 2))...), "tenant_id namespace cache key value"},
	{msg("event_stream_hello", num("subscription_id", 5)), "subscription_id"},
	{msg("event", topic(b64("payload", raw("world")), num("offset", 42))...), "tenant_id namespace stream payload"},
	{msg("event_batch", topic(b64s(raw("world")), num("base_offset", 42))...), "tenant_id namespace stream payloads"},
}

// invalidMembers takes each message and spoils one member after the other, docs/protocol/wire.md#decoding.
func invalidMembers() []invalidVector {
	var vectors []invalidVector
	add := func(class, name, note string, payload blob) {
		vectors = append(vectors, badPayload(class, name, note, flagsJSON, payload))
	}
	// with returns the message with one more member at its end.
	with := func(m message, extra blob) blob {
		whole := m.payload()
		last := &whole[len(whole)-1]
		last.Text = strings.TrimSuffix(last.Text, "}")
		return cat(whole, text(","), extra, text("}"))
	}
	for _, f := range full {
		add(classDuplicate, f.m.kind+"/type_twice", "", with(f.m, text(`"type":"`+f.m.kind+`"`)))
		for _, member := range f.m.members {
			required := strings.Contains(" "+f.required+" ", " "+member.name+" ")
			id := f.m.kind + "/" + member.name
			if required {
				add(classMissing, id+"_missing", "", f.m.without(member.name).payload())
				if f.m.kind != "cache_value" || member.name != "value" {
					add(classMissing, id+"_null", "", f.m.with(member.name, "null").payload())
				}
			}
			add(classDuplicate, id+"_twice", "", with(f.m, cat(text(`"`+member.name+`":`), member.json)))
			if !required {
				add(classDuplicate, id+"_null_and_value", "null counts as an occurrence.",
					with(f.m.with(member.name, "null"), cat(text(`"`+member.name+`":`), member.json)))
			}
			for _, wrong := range []struct{ name, json string }{
				{"bool", "true"}, {"number", "5"}, {"string", `"5"`}, {"array", "[]"}, {"object", "{}"},
			} {
				if !wrongType(member, wrong.name) {
					continue
				}
				add(classType, id+"_"+wrong.name, "", f.m.with(member.name, wrong.json).payload())
			}
		}
	}
	return vectors
}

// wrongType reports whether no value of the given JSON type is right for m.
func wrongType(m member, jsonType string) bool {
	switch m.value.(type) {
	case u64, uint16:
		return jsonType != "number"
	case []any:
		return jsonType != "array"
	}
	return jsonType != "string"
}

// invalidJSON are the other payloads that are no message, docs/protocol/wire.md#decoding.
func invalidJSON() []invalidVector {
	var vectors []invalidVector
	add := func(class, name, note, payload string) {
		vectors = append(vectors, badJSON(class, name, note, payload))
	}
	addRaw := func(class, name, note, payload string) {
		vectors = append(vectors, badPayload(class, name, note, flagsJSON, raw(payload)))
	}

	// Not one JSON object.
	whole := `{"type":"ok"}`
	for i := range len(whole) {
		note := ""
		if i == 0 {
			note = "An empty payload is legal for the framing and no message."
		}
		add(classSyntax, fmt.Sprintf("syntax/cut_at_%d", i), note, whole[:i])
	}
	for _, c := range []struct{ name, payload string }{
		{"whitespace_alone", " \t\r\n"},
		{"object_and_object", whole + whole},
		{"object_and_brace", whole + "}"},
		{"object_and_comma", whole + ","},
		{"object_and_letter", whole + " x"},
		{"trailing_comma", `{"type":"ok",}`},
		{"leading_comma", `{,"type":"ok"}`},
		{"two_commas", `{"type":"ok",,"x":1}`},
		{"no_comma", `{"type":"ok" "x":1}`},
		{"no_colon", `{"type" "ok"}`},
		{"two_colons", `{"type"::"ok"}`},
		{"equals", `{"type"="ok"}`},
		{"no_value", `{"type":"ok","x":}`},
		{"no_name", `{"type":"ok",:1}`},
		{"name_alone", `{"type":"ok","x"}`},
		{"name_not_quoted", `{type:"ok"}`},
		{"name_number", `{"type":"ok",1:2}`},
		{"single_quotes", `{'type':'ok'}`},
		{"wrong_bracket", `{"type":"ok"]`},
		{"comment", `{"type":"ok"/**/}`},
		{"array_trailing_comma", `{"type":"ok","x":[1,]}`},
		{"array_no_comma", `{"type":"ok","x":[1 2]}`},
		{"array_not_closed", `{"type":"ok","x":[1}`},
		{"array_wrong_bracket", `{"type":"ok","x":[1}]`},
		{"literal_case", `{"type":"ok","x":True}`},
		{"literal_cut", `{"type":"ok","x":nul}`},
		{"literal_long", `{"type":"ok","x":nulll}`},
		{"undefined", `{"type":"ok","x":undefined}`},
	} {
		add(classSyntax, "syntax/"+c.name, "", c.payload)
	}
	addRaw(classSyntax, "syntax/byte_order_mark", "", "\xef\xbb\xbf"+whole)
	addRaw(classSyntax, "syntax/vertical_tab", "Not one of the four characters of whitespace.", "{\v\"type\":\"ok\"}")
	addRaw(classSyntax, "syntax/form_feed", "", "{\f\"type\":\"ok\"}")
	addRaw(classSyntax, "syntax/no_break_space", "", "{\u00a0\"type\":\"ok\"}")
	addRaw(classSyntax, "syntax/trailing_nul", "", whole+"\x00")

	// Numbers, in a member nobody knows: it is parsed all the same.
	for _, c := range []struct{ name, json string }{
		{"plus", "+1"},
		{"leading_zero", "01"},
		{"leading_zeros", "00"},
		{"minus_leading_zero", "-01"},
		{"no_integer", ".5"},
		{"no_fraction", "1."},
		{"no_fraction_exponent", "1.e1"},
		{"no_exponent", "1e"},
		{"no_exponent_sign", "1e+"},
		{"minus_alone", "-"},
		{"two_minus", "--1"},
		{"two_dots", "1.2.3"},
		{"hex", "0x10"},
		{"nan", "NaN"},
		{"infinity", "Infinity"},
		{"minus_infinity", "-Infinity"},
		{"underscore", "1_000"},
	} {
		add(classSyntax, "number/"+c.name, "", `{"type":"ok","x":`+c.json+`}`)
	}
	for _, c := range []struct{ name, json string }{
		{"1e400", "1e400"},
		{"minus_1e400", "-1e400"},
		{"1e309", "1e309"},
		{"just_above_double", "1.8e308"},
		{"exponent_overflow", "1e99999999999999999999"},
		{"nested", `[{"y":1E400}]`},
	} {
		add(classSyntax, "number/"+c.name, "Beyond the range of a double.", `{"type":"ok","x":`+c.json+`}`)
	}
	vectors = append(vectors, badPayload(classSyntax, "number/400_digits", "Beyond the range of a double.", flagsJSON,
		cat(text(`{"type":"ok","x":1`), repeat(text("0"), 399), text(`}`))))

	// Strings.
	for _, c := range []struct{ name, json string }{
		{"unknown_escape", `\x41`},
		{"escaped_quote_single", `\'`},
		{"octal_escape", `\0`},
		{"unicode_upper", `\U0041`},
		{"unicode_3_digits", `\u004`},
		{"unicode_not_hex", `\u00g1`},
		{"unicode_sign", `\u+041`},
		{"backslash_alone", `\`},
		{"high_surrogate_alone", `\ud800`},
		{"high_surrogate_and_text", `\ud800x`},
		{"low_surrogate_alone", `\udc00`},
		{"surrogates_swapped", `\udc00\ud800`},
		{"two_high_surrogates", `\ud800\ud800`},
		{"high_surrogate_and_escape", `\ud800\u0041`},
		{"high_surrogate_and_newline", `\ud800\n`},
	} {
		add(classSyntax, "string/known_"+c.name, "", `{"type":"error","message":"`+c.json+`"}`)
		add(classSyntax, "string/unknown_"+c.name, "Ignored members are parsed too.", `{"type":"ok","x":"`+c.json+`"}`)
		add(classSyntax, "string/name_"+c.name, "So are the names of members.", `{"type":"ok","`+c.json+`":1}`)
	}
	for _, c := range []byte{0x00, '\b', '\t', '\n', '\r', 0x1f} {
		addRaw(classSyntax, fmt.Sprintf("string/raw_control_%02x", c), "Control characters must be escaped.",
			`{"type":"error","message":"`+string(c)+`"}`)
	}
	for _, c := range notUTF8 {
		addRaw(classNotUTF8, "string/known_"+c.name, c.note, `{"type":"error","message":"`+c.bytes+`"}`)
		addRaw(classNotUTF8, "string/unknown_"+c.name, c.note, `{"type":"ok","x":["`+c.bytes+`"]}`)
		addRaw(classNotUTF8, "string/name_"+c.name, c.note, `{"type":"ok","`+c.bytes+`":1}`)
	}

	// Depth.
	nested := func(open, inner, shut string, depth int) blob {
		return cat(text(`{"type":"ok","x":`), repeat(text(open), depth), text(inner), repeat(text(shut), depth), text(`}`))
	}
	for _, c := range []struct {
		name    string
		payload blob
	}{
		{"128_arrays", nested("[", "", "]", 127)},
		{"128_objects", nested(`{"x":`, "0", "}", 127)},
		{"100000_arrays", nested("[", "", "]", 100000)},
		{"128_before_type", cat(text(`{"x":`), repeat(text("["), 127), repeat(text("]"), 127), text(`,"type":"ok"}`))},
	} {
		vectors = append(vectors, badPayload(classSyntax, "depth/"+c.name, "127 levels are the most, the message included.",
			flagsJSON, c.payload))
	}

	// An object is wanted.
	for _, c := range []struct{ name, payload string }{
		{"null", "null"},
		{"true", "true"},
		{"number", "5"},
		{"string", `"ok"`},
		{"empty_array", "[]"},
		{"tagged_array", `["cache_ok",5]`},
		{"array_of_message", `[{"type":"ok"}]`},
	} {
		add(classType, "object/"+c.name, "", c.payload)
	}

	// The type.
	for _, c := range []struct{ class, name, payload string }{
		{classMissing, "missing", `{}`},
		{classMissing, "missing_with_members", `{"request_id":7}`},
		{classMissing, "other_case", `{"Type":"ok"}`},
		{classMissing, "null", `{"type":null}`},
		{classMissing, "inside", `{"x":{"type":"ok"}}`},
		{classType, "number", `{"type":5}`},
		{classType, "object", `{"type":{"ok":null}}`},
		{classType, "array", `{"type":["ok"]}`},
		{classUnknownType, "empty", `{"type":""}`},
		{classUnknownType, "upper_case", `{"type":"OK"}`},
		{classUnknownType, "unknown", `{"type":"publish_many"}`},
		{classUnknownType, "prefix", `{"type":"publis"}`},
		{classUnknownType, "longer", `{"type":"ok "}`},
		{classUnknownType, "camel_case", `{"type":"publishOk","request_id":7}`},
		{classUnknownType, "with_nul", `{"type":"ok\u0000"}`},
		{classDuplicate, "twice", `{"type":"ok","type":"ok"}`},
		{classDuplicate, "twice_different", `{"type":"ok","type":"error","message":"x"}`},
		{classDuplicate, "twice_escaped", `{"type":"ok","\u0074ype":"ok"}`},
	} {
		add(c.class, "type/"+c.name, "", c.payload)
	}
	add(classDuplicate, "duplicate/escaped", "Names are compared after unescaping.", `{"type":"publish_ok","request_id":7,"request\u005fid":7}`)
	add(classDuplicate, "duplicate/before_type", "", `{"request_id":7,"request_id":7,"type":"publish_ok"}`)
	add(classMissing, "case/request_id", "Names are compared with their case.", `{"type":"publish_ok","Request_ID":7}`)

	// Integers: of 64 bits in request_id and offset, of 16 bits in the flags.
	for _, c := range []struct{ name, json string }{
		{"fraction", "1.0"},
		{"exponent", "1e3"},
		{"exponent_upper", "1E0"},
		{"minus_zero", "-0"},
		{"minus_one", "-1"},
		{"string", `"1"`},
		{"empty_string", `""`},
		{"above_u64", "18446744073709551616"},
		{"far_above_u64", "99999999999999999999999"},
		{"wraps_u64", "18446744073709551623"},
	} {
		add(classType, "integer/u64_"+c.name, "", `{"type":"publish_ok","request_id":`+c.json+`}`)
		add(classType, "integer/u16_"+c.name, "", `{"type":"auth_ok","server_flags":`+c.json+`}`)
		add(classType, "integer/optional_"+c.name, "", onEntry("cache_put", `"value":"","ttl_ms":`+c.json))
		add(classType, "integer/start_"+c.name, "", onTopic("subscribe", `"start":{"offset":`+c.json+`}`))
	}
	add(classType, "integer/u16_above", "", `{"type":"auth_ok","server_flags":65536}`)
	add(classType, "integer/u16_wraps", "63 if cut to 16 bits.", `{"type":"auth_ok","server_flags":65599}`)
	add(classType, "integer/client_flags_above", "", `{"type":"auth","tenant_id":"t1","token":"x","client_flags":65536}`)

	// Enumerations.
	start := func(json string) string {
		return onTopic("subscribe", `"start":`+json)
	}
	for _, c := range []struct{ name, json string }{
		{"number", "42"},
		{"offset_string", `"offset"`},
		{"unknown_string", `"newest"`},
		{"upper_case", `"Latest"`},
		{"empty_string", `""`},
		{"empty_object", "{}"},
		{"null_offset", `{"offset":null}`},
		{"unknown_member", `{"position":42}`},
		{"two_members", `{"offset":42,"x":1}`},
		{"offset_twice", `{"offset":42,"offset":42}`},
		{"array", `["offset",42]`},
		{"offset_array", `{"offset":[42]}`},
		{"offset_object", `{"offset":{}}`},
	} {
		add(classType, "start/"+c.name, "", start(c.json))
	}
	for _, c := range []struct{ name, json string }{
		{"unknown", `"all"`}, {"upper_case", `"None"`}, {"camel_case", `"perBatch"`}, {"empty", `""`}, {"number", "1"}, {"longer", `"none "`},
	} {
		add(classType, "ack/publish_"+c.name, "", onTopic("publish", `"payload":"","ack":`+c.json))
		add(classType, "ack/publish_batch_"+c.name, "", onTopic("publish_batch", `"payloads":[],"ack":`+c.json))
	}
	for _, c := range []struct{ name, json string }{
		{"unknown", `"too_new"`}, {"upper_case", `"TOO_OLD"`}, {"empty", `""`},
	} {
		add(classType, "reason/"+c.name, "", `{"type":"subscribe_cursor_error","reason":`+c.json+`,"requested":3,"available":16}`)
	}

	// Lists of payloads.
	for _, c := range []struct{ name, json string }{
		{"null_item", "[null]"}, {"number_item", "[5]"}, {"array_item", `[["aGVsbG8="]]`}, {"second_item", `["aGVsbG8=",true]`},
	} {
		add(classType, "payloads/"+c.name, "", onTopic("publish_batch", `"payloads":`+c.json))
	}
	add(classSyntax, "payloads/trailing_comma", "", onTopic("publish_batch", `"payloads":["aGVsbG8=",]`))
	add(classSyntax, "payloads/no_comma", "", onTopic("publish_batch", `"payloads":["aGVsbG8=" ""]`))

	// base64.
	for _, c := range []struct{ name, note, value string }{
		{"no_padding_1", "", "aGVsbG8"},
		{"no_padding_2", "", "aA"},
		{"half_padding", "", "aA="},
		{"excess_padding", "", "aGVsbG8=="},
		{"padding_after_whole", "", "aGVs="},
		{"padding_alone", "", "===="},
		{"one_padding_alone", "", "="},
		{"padding_inside", "", "aA==aGVs"},
		{"padding_in_front", "", "=aGV"},
		{"three_padding", "", "a==="},
		{"one_character", "", "a"},
		{"five_characters", "", "aGVsb"},
		{"space", "", "aGVs bG8="},
		{"leading_space", "", " aGVsbG8="},
		{"trailing_space", "", "aGVsbG8= "},
		{"newline", "Line breaks are refused, wherever they are.", `aGVs\nbG8=`},
		{"trailing_newline", "", `aGVsbG8=\n`},
		{"newline_in_padding", "", `aA=\n=`},
		{"carriage_return", "", `aGVs\r\nbG8=`},
		{"tab", "", `aGVs\tbG8=`},
		{"nul", "", `aGVs\u0000bG8=`},
		{"url_safe_minus", "The URL-safe alphabet is another one.", "-_-_"},
		{"url_safe_mixed", "", "+/-_"},
		{"other_character", "", "aGV!"},
		{"not_ascii", "", "aGVé"},
		{"leftover_bits_1", "The last character has bits that no byte takes.", "aGVsbG9="},
		{"leftover_bits_2", "", "aB=="},
		{"leftover_bits_all", "", "//=="},
	} {
		add(classBase64, "base64/payload_"+c.name, c.note, onTopic("publish", `"payload":"`+c.value+`"`))
		add(classBase64, "base64/item_"+c.name, c.note, onTopic("publish_batch", `"payloads":["aGVsbG8=","`+c.value+`"]`))
		add(classBase64, "base64/value_"+c.name, c.note, onEntry("cache_value", `"value":"`+c.value+`"`))
	}
	return vectors
}
