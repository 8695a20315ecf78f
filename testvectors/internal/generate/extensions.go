package main

const flagsExtension = 0x8000

// extMember is ext of auth and auth_ok.
func extMember(names ...string) member {
	out := text(`[`)
	list := []any{}
	for i, n := range names {
		if i > 0 {
			out = cat(out, text(`,`))
		}
		out = cat(out, text(quote(n)))
		list = append(list, n)
	}
	return member{name: "ext", json: cat(out, text(`]`)), value: list}
}

// extensionFrame is a frame of docs/protocol/extensions.md: a type byte and a body.
func extensionFrame(kind, name, note string, typ int, body blob, f fields) vector {
	return vector{
		Name: kind + "/" + name, Note: note, Direction: brokerToClient, Kind: kind, Flags: flagsExtension,
		Canonical: true, Frame: frame(flagsExtension, cat(u8(typ), body)), Fields: f,
	}
}

func position(name, note string, epoch, offset uint64) vector {
	return extensionFrame("extension_position", name, note, 1, cat(be64(epoch), be64(offset)),
		fields{{"epoch", u64(epoch)}, {"offset", u64(offset)}})
}

func gap(name, note string, reason int, lost, next uint64) vector {
	return extensionFrame("extension_gap", name, note, 2, cat(u8(reason), be64(lost), be64(next)),
		fields{{"gap_reason", reason}, {"lost", u64(lost)}, {"next", u64(next)}})
}

// extensions are frames and members that only peers understand which negotiated an extension.
func extensions() []vector {
	resume := func(members ...member) message { return msg("subscribe", topic(members...)...) }
	since := func(members ...member) message {
		return resume(append([]member{enum("start", "earliest")}, members...)...)
	}
	vectors := []vector{
		canonical("ext", "An offer of extensions.",
			msg("auth", str("tenant_id", "t1"), str("token", "x"), num16("client_flags", 63), extMember("gaps"))),
		accepted("auth_ext_unknown", "Names that the receiver does not know are ignored.",
			text(`{"type":"auth","tenant_id":"t1","token":"x","client_flags":63,"ext":["gaps","nobody_knows"]}`),
			msg("auth", str("tenant_id", "t1"), str("token", "x"), num16("client_flags", 63), extMember("gaps"))),
		accepted("auth_ext_of_another_type", "A peer without extensions may use the name for anything.",
			text(`{"type":"auth","tenant_id":"t1","token":"x","client_flags":63,"ext":5}`),
			msg("auth", str("tenant_id", "t1"), str("token", "x"), num16("client_flags", 63))),
		canonical("auth_fence", "The third connection of a client that has given up the ones before.",
			msg("auth", str("tenant_id", "t1"), str("token", "x"), num16("client_flags", 63), str("fence", "k3v9.3"))),
		accepted("auth_fence_of_another_type", "A peer that knows no fence may use the name for anything.",
			text(`{"type":"auth","tenant_id":"t1","token":"x","client_flags":63,"fence":{}}`),
			msg("auth", str("tenant_id", "t1"), str("token", "x"), num16("client_flags", 63))),
		canonical("ext", "The answer to it.", msg("auth_ok", num16("server_flags", 63), extMember("gaps"))),
		canonical("ext_none", "An offer of which the broker knows nothing.", msg("auth_ok", num16("server_flags", 63), extMember())),
		canonical("resume", "Goes on at an offset of an epoch.", resume(startOffset(42), num("epoch", 7))),
		canonical("resume_max", "", resume(startOffset(maxU64), num("epoch", maxU64))),
		accepted("subscribe_epoch_of_another_type", "", text(onTopic("subscribe", `"start":{"offset":42},"epoch":"7"`)), resume(startOffset(42))),
		canonical("since", "Begins with the first event since a time.", since(num("since", 1700000000000))),
		accepted("subscribe_since_of_another_type", "", text(onTopic("subscribe", `"start":"earliest","since":"yesterday"`)), since()),
		position("plain", "", 7, 42),
		position("zero", "", 0, 0),
		position("max", "", maxU64, maxU64),
		gap("queue_full", "", 1, 5, 47),
		gap("reclaimed", "", 2, 1, 1),
		gap("expired", "", 3, maxU64, maxU64),
		gap("epoch", "Nobody knows how many events were lost.", 4, 0, 0),
		gap("reason_255", "A reason that nobody knows is no error.", 255, 3, 9),
	}
	vectors = append(vectors, compressed()...)
	vectors = append(vectors, cacheFrames()...)
	vectors = append(vectors, origins()...)
	long := gap("trailing", "Bytes behind what the type defines are ignored.", 1, 5, 47)
	long.Canonical, long.CanonicalFrame = false, long.Frame
	long.Frame = frame(flagsExtension, cat(u8(2), u8(1), be64(5), be64(47), hx("ff")))
	vectors = append(vectors, long)
	for i := range vectors {
		vectors[i].Name = "extensions/" + vectors[i].Name
		if vectors[i].Negotiated == nil {
			vectors[i].Negotiated = []string{"gaps"}
		}
	}
	return vectors
}

// s2Literal is the S2 block of a short byte string as one literal: its length as a varint, a tag, and the bytes.
func s2Literal(b blob) blob {
	if b.len() == 0 || b.len() > 60 {
		panic("a literal with a tag of one byte has 1 to 60 bytes")
	}
	return cat(u8(b.len()), u8((b.len()-1)<<2), b)
}

// compressed are the frames of the extension s2. Their blocks are literals, which every decoder has to take.
func compressed() []vector {
	items := []blob{raw("hello"), nil}
	list := cut(itemList(items), itemList(items).len())
	plain := raw(string(list.bytes()[4:]))
	body := cat(u32(2), u32(plain.len()), s2Literal(plain))
	block := field{"block", s2Literal(plain)}
	counts := fields{{"count", 2}, {"raw_length", plain.len()}, block}
	vector3 := extensionFrame("extension_publish_s2", "two_items", "", 3, cat(demo.payload(), body), append(demo.fields(), counts...))
	vector4 := extensionFrame("extension_acked_publish_s2", "two_items", "", 4, cat(ackedPrefix(7, 2), demo.payload(), body),
		append(fields{{"request_id", u64(7)}, {"ack", "per_batch"}}, append(demo.fields(), counts...)...))
	vector5 := extensionFrame("extension_events_s2", "two_items", "What a broker makes of either.", 5, cat(be64(42), body),
		append(fields{{"base_offset", u64(42)}}, counts...))
	vector3.Direction, vector4.Direction = clientToBroker, clientToBroker
	all := []vector{vector3, vector4, vector5}
	for i := range all {
		all[i].Negotiated = []string{"s2"}
	}
	return all
}

// origins are the frames of the extension producer.
func origins() []vector {
	items := []blob{raw("hello"), nil}
	id := hx("a0a1a2a3a4a5a6a7a8a9aaabacadaeaf")
	origin := func(sequence uint64, repeated int) blob { return cat(id, be64(sequence), u8(repeated)) }
	of := func(sequence uint64, repeated bool, f fields) fields {
		begin := fields{{"producer", id}, {"sequence", u64(sequence)}, {"repeated", repeated}, {"request_id", u64(7)}, {"ack", "per_batch"}}
		return append(append(begin, demo.fields()...), f...)
	}
	plain := func(name, note string, sequence uint64, repeated int) vector {
		return extensionFrame("extension_publish_from", name, note, 9,
			cat(origin(sequence, repeated), ackedPrefix(7, 2), demo.payload(), itemList(items)), of(sequence, repeated != 0, fields{listField(items)}))
	}
	list := raw(string(itemList(items).bytes()[4:]))
	s2 := extensionFrame("extension_publish_from_s2", "two_items", "", 10,
		cat(origin(43, 0), ackedPrefix(7, 2), demo.payload(), u32(2), u32(list.len()), s2Literal(list)),
		of(43, false, fields{{"count", 2}, {"raw_length", list.len()}, {"block", s2Literal(list)}}))
	s2.Negotiated = []string{"producer", "s2"}
	odd := plain("repeated_255", "Whatever is not 0 is a repeated publish.", 42, 255)
	odd.Canonical, odd.CanonicalFrame = false, plain("", "", 42, 1).Frame
	all := []vector{
		plain("first", "", 42, 0), plain("repeated", "", 42, 1), plain("max", "", maxU64, 0), odd, s2,
	}
	for i := range all {
		all[i].Direction = clientToBroker
		if all[i].Negotiated == nil {
			all[i].Negotiated = []string{"producer"}
		}
	}
	notKept := ackOK("not_kept", "The stream remembers no producers. Other receivers skip the text of a success.", 7)
	notKept.Canonical, notKept.CanonicalFrame = false, notKept.Frame
	notKept.Frame = frame(flagsPublishAck, publishAck(0, 7, text("not kept")))
	notKept.Negotiated = []string{"producer"}
	return append(all, notKept)
}

// cacheFrames are the frames of the extension cache.
func cacheFrames() []vector {
	ns, cache, key := text("default"), text("primary"), text("demo-key")
	where := fields{{"namespace", ns}, {"cache", cache}}
	request := func(kind, title, note string, op int, body blob, f fields) vector {
		v := extensionFrame("extension_cache_"+kind, title, note, 6,
			cat(be64(7), u8(op), name(ns), name(cache), body), append(append(fields{{"request_id", u64(7)}}, where...), f...))
		v.Direction = clientToBroker
		return v
	}
	reply := func(title, note string, status int, body blob, f fields) vector {
		return extensionFrame("extension_cache_reply", title, note, 7, cat(be64(7), u8(status), body),
			append(fields{{"request_id", u64(7)}, {"reply_status", status}}, f...))
	}
	value := raw("cached")
	valueOf := func(version uint64, b blob) blob { return cat(be64(version), u32(b.len()), b) }
	all := []vector{
		request("get", "one_key", "", 1, cat(u16(1), name(key)), fields{{"keys", []blob{key.asHex()}}}),
		request("get", "three_keys", "Keys are bytes that have to be UTF-8; one may be empty.", 1,
			cat(u16(3), name(key), name(nil), name(text("ü"))), fields{{"keys", []blob{key.asHex(), hx(""), text("ü").asHex()}}}),
		request("get", "no_keys", "", 1, u16(0), fields{{"keys", []blob{}}}),
		request("put", "ttl", "", 2, cat(be64(1000), name(key), value), fields{{"key", key}, {"ttl_ms", u64(1000)}, {"value", value}}),
		request("put", "forever", "An empty value.", 2, cat(be64(maxU64), name(key)), fields{{"key", key}, {"ttl_ms", u64(maxU64)}, {"value", hx("")}}),
		request("delete", "plain", "", 3, name(key), fields{{"key", key}}),
		request("put_if", "absent", "", 4, cat(be64(0), be64(0), name(key), value),
			fields{{"key", key}, {"ttl_ms", u64(0)}, {"expected", u64(0)}, {"value", value}}),
		request("put_if", "version", "", 4, cat(be64(1000), be64(42), name(key), value),
			fields{{"key", key}, {"ttl_ms", u64(1000)}, {"expected", u64(42)}, {"value", value}}),
		request("watch", "plain", "", 5, nil, nil),
		reply("done", "", 0, be64(42), fields{{"version", u64(42)}}),
		reply("refused", "", 1, name(text("forbidden")), fields{{"message", text("forbidden")}}),
		reply("not", "", 2, be64(0), fields{{"version", u64(0)}}),
		reply("values", "A value, a miss, an empty value, and one that was left out.", 3,
			cat(u16(4), valueOf(42, value), valueOf(0, nil), valueOf(43, nil), valueOf(maxU64, nil)),
			fields{
				{"versions", []any{u64(42), u64(0), u64(43), u64(maxU64)}},
				{"values", []blob{value, hx(""), hx(""), hx("")}},
			}),
		extensionFrame("extension_cache_events", "all_kinds", "Set, deleted, expired, evicted, lost.", 8, cat(
			u8(1), be64(42), name(key), u8(2), be64(43), name(key), u8(3), be64(44), name(key), u8(4), be64(45), name(key),
			u8(0), be64(0), name(nil)),
			fields{
				{"event_kinds", []any{1, 2, 3, 4, 0}},
				{"versions", []any{u64(42), u64(43), u64(44), u64(45), u64(0)}},
				{"keys", []blob{key.asHex(), key.asHex(), key.asHex(), key.asHex(), hx("")}},
			}),
	}
	for i := range all {
		all[i].Negotiated = []string{"cache"}
	}
	return all
}
