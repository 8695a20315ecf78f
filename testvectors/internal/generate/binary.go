package main

import "strings"

// Decoded fields of binary payloads have the names of their JSON counterparts.

// longText is a text of n bytes for names and messages that reach a limit.
func longText(n int) blob { return repeat(text("a"), n) }

func listField(items []blob) field {
	list := []any{}
	for _, item := range items {
		list = append(list, item.asHex())
	}
	return field{"payloads", list}
}

// topicNames are the names of a publish batch.
type topicNames struct{ tenant, namespace, stream blob }

var demo = topicNames{text("t1"), text("default"), text("demo")}

func (t topicNames) payload() blob { return names(t.tenant, t.namespace, t.stream) }

func (t topicNames) fields() fields {
	return fields{
		{"tenant_id", textValue(t.tenant)},
		{"namespace", textValue(t.namespace)},
		{"stream", textValue(t.stream)},
	}
}

func publishBatch(name, note string, t topicNames, items ...blob) vector {
	return vector{
		Name: "binary_publish_batch/" + name, Note: note, Direction: clientToBroker, Kind: "binary_publish_batch",
		Flags: flagsPublish, Canonical: true,
		Frame:  frame(flagsPublish, cat(t.payload(), itemList(items))),
		Fields: append(t.fields(), listField(items)),
	}
}

var ackModes = map[int]string{1: "per_message", 2: "per_batch"}

func ackedBatch(name, note string, id uint64, mode int, t topicNames, items ...blob) vector {
	return vector{
		Name: "binary_acked_publish_batch/" + name, Note: note, Direction: clientToBroker, Kind: "binary_acked_publish_batch",
		Flags: flagsPublishAcked, Canonical: true,
		Frame: frame(flagsPublishAcked, cat(ackedPrefix(id, mode), t.payload(), itemList(items))),
		Fields: append(fields{{"request_id", u64(id)}, {"ack", ackModes[mode]}},
			append(t.fields(), listField(items))...),
	}
}

func ackOK(name, note string, id uint64) vector {
	return vector{
		Name: "binary_publish_ack/" + name, Note: note, Direction: brokerToClient, Kind: "binary_publish_ack",
		Flags: flagsPublishAck, Canonical: true, Frame: frame(flagsPublishAck, publishAck(0, id, nil)),
		Fields: fields{{"status", "ok"}, {"request_id", u64(id)}},
	}
}

func ackError(name, note string, id uint64, message blob) vector {
	return vector{
		Name: "binary_publish_ack/" + name, Note: note, Direction: brokerToClient, Kind: "binary_publish_ack",
		Flags: flagsPublishAck, Canonical: true, Frame: frame(flagsPublishAck, publishAck(1, id, message)),
		Fields: fields{{"status", "error"}, {"request_id", u64(id)}, {"message", textValue(message)}},
	}
}

// cutAck is an error acknowledgement whose sender was given full and keeps the text kept,
// docs/protocol/wire.md#publish-acknowledgement.
func cutAck(name, note string, full, kept blob) vector {
	v := ackError("cut/"+name, note, 9, kept)
	v.Fields = append(v.Fields, field{"uncut_message", textValue(full)})
	return v
}

// eventBatch is a vector of one of the four event layouts; ids and offsets that the layout lacks are ignored.
func eventBatch(name, note string, flags uint16, subscription, base uint64, items ...blob) vector {
	v := vector{Note: note, Direction: brokerToClient, Flags: flags, Canonical: true}
	var prefix blob
	if flags == flagsEvent || flags == flagsEventOffsets {
		v.Kind = "binary_event_batch"
		prefix = be64(subscription)
		v.Fields = append(v.Fields, field{"subscription_id", u64(subscription)})
	} else {
		v.Kind = "binary_shared_event_batch"
	}
	if flags == flagsEventOffsets || flags == flagsSharedOffsets {
		prefix = cat(prefix, be64(base))
		v.Fields = append(v.Fields, field{"base_offset", u64(base)})
	}
	v.Name = v.Kind + "/" + name
	v.Frame = frame(flags, cat(prefix, itemList(items)))
	v.Fields = append(v.Fields, listField(items))
	return v
}

// trailing returns v with bytes after its last item or text: accepted, ignored and never sent.
func trailing(v vector, extra blob) vector {
	v.Name = strings.Replace(v.Name, "/", "/trailing/", 1)
	v.Canonical, v.CanonicalFrame = false, v.Frame
	payload := v.Frame.bytes()[12:]
	v.Frame = frame(v.Flags, cat(raw(string(payload)), extra))
	return v
}

func binaryVectors() []vector {
	hello, empty := raw("hello"), blob(nil)
	shortNames := topicNames{text("t"), text("n"), text("s")}
	noNames := topicNames{}
	unicodeNames := topicNames{text("Köln"), text("名前"), text("поток/*\x00🚀")}
	threeEmpty := []blob{nil, nil, nil}
	mixed := []blob{raw("a"), nil, allBytes(), hx("00000000"), hx("464c5831")}

	vectors := []vector{
		publishBatch("two_items", "", demo, hello, empty),
		publishBatch("one_item", "", demo, hello),
		publishBatch("no_items", "An empty batch is legal.", demo),
		publishBatch("empty_items", "count is exactly what the remaining bytes can back.", demo, threeEmpty...),
		publishBatch("mixed_items", "Items are opaque, whatever they look like.", demo, mixed...),
		publishBatch("short_names", "The least names of which both rewrites of a received frame fit in place.", shortNames, hello),
		publishBatch("empty_names", "Names of no bytes pass the codec.", noNames, hello),
		publishBatch("unicode_names", "Lengths count bytes, not characters.", unicodeNames, hello),

		ackedBatch("per_message", "", 7, 1, demo, hello, empty),
		ackedBatch("per_batch", "", 7, 2, demo, hello, empty),
		ackedBatch("no_items", "", 7, 2, demo),
		ackedBatch("empty_items", "", 7, 2, demo, threeEmpty...),
		ackedBatch("mixed_items", "", 7, 1, demo, mixed...),
		ackedBatch("request_id_0", "", 0, 1, demo, hello),
		ackedBatch("request_id_beyond_double", "2^53+1 does not survive a double.", 1<<53+1, 1, demo, hello),
		ackedBatch("request_id_max", "", maxU64, 2, demo, hello),
		ackedBatch("empty_names", "", 7, 2, noNames, hello),
		ackedBatch("unicode_names", "", 7, 2, unicodeNames, hello),

		ackOK("ok", "", 7),
		ackOK("ok_request_id_0", "", 0),
		ackOK("ok_request_id_max", "", maxU64),
		ackError("error", "", 9, text("stream not found")),
		ackError("error_empty", "Status 1 with an empty text is still an error.", 9, nil),
		ackError("error_request_id_max", "", maxU64, text("forbidden")),
		ackError("error_unicode", "", 9, text(unicodeText)),
		ackError("error_control_characters", "Nothing is escaped in binary payloads.", 9, text(controlText+"\"\\")),
	}

	for _, layout := range []struct {
		name  string
		flags uint16
	}{
		{"plain", flagsEvent}, {"offsets", flagsEventOffsets}, {"plain", flagsShared}, {"offsets", flagsSharedOffsets},
	} {
		event := func(name, note string, subscription, base uint64, items ...blob) vector {
			return eventBatch(layout.name+"/"+name, note, layout.flags, subscription, base, items...)
		}
		vectors = append(vectors,
			event("two_items", "", 5, 42, hello, empty),
			event("one_item", "", 5, 42, hello),
			event("no_items", "The shortest payload of this layout. A broker delivers nothing instead.", 5, 42),
			event("empty_items", "count is exactly what the remaining bytes can back.", 7, 42, threeEmpty...),
			event("mixed_items", "", 5, 42, mixed...),
			event("zero", "", 0, 0, hello),
			event("max", "The greatest ids and offsets that the layout has.", maxU64, maxU64, hello),
		)
	}

	// Trailing bytes: decoders accept and ignore them, encoders never write them.
	extra := hx("00000001ff")
	vectors = append(vectors,
		trailing(publishBatch("one_item", "The bytes after the last item are no item.", demo, hello), extra),
		trailing(publishBatch("no_items", "count is 0 and bytes follow.", demo), hx("0000000568656c6c6f")),
		trailing(ackedBatch("one_item", "", 7, 2, demo, hello), extra),
		trailing(ackOK("ok", "", 7), extra),
		trailing(ackError("error", "", 9, text("stream not found")), hx("ff")),
		trailing(eventBatch("plain", "", flagsEvent, 5, 42, hello), extra),
		trailing(eventBatch("offsets", "", flagsEventOffsets, 5, 42, hello), extra),
		trailing(eventBatch("plain", "", flagsShared, 5, 42, hello), extra),
		trailing(eventBatch("offsets", "", flagsSharedOffsets, 5, 42, hello), extra),
		trailing(eventBatch("one_byte", "", flagsShared, 5, 42, hello), hx("00")),
	)

	// A success with a text: the text is skipped, whatever it is.
	for _, c := range []struct{ name, note, message string }{
		{"ok_with_text", "A decoder skips the text of a success.", "fine"},
		{"ok_with_text_not_utf8", "It is not even looked at.", "\xff\xfe"},
	} {
		v := ackOK(c.name, c.note, 7)
		v.Canonical, v.CanonicalFrame = false, v.Frame
		v.Frame = frame(flagsPublishAck, publishAck(0, 7, raw(c.message)))
		vectors = append(vectors, v)
	}
	return vectors
}
