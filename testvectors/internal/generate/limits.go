package main

// limits are vectors at the good side of each bound. The other sides are in invalid.go.
func limits() []vector {
	hello := raw("hello")
	var vectors []vector

	// The frame length. The limit is inclusive and counts the payload alone.
	ok := canonical("frame_length", "A payload of exactly max_frame bytes.", msg("ok"))
	ok.MaxFrame = ok.Frame.len() - 12
	vectors = append(vectors, ok)

	// Default limit: the payload of each frame below is 16777216 bytes.
	// base64 makes four characters of "xyz"; the tenant's length makes the rest of the message a multiple of four.
	jsonItem := repeat(raw("xyz"), (defaultMaxFrame-88)/4)
	vectors = append(vectors, atDefaultLimit(canonical("16_MiB", "The default limit: 16777216 bytes of payload.",
		msg("publish", str("tenant_id", "tttt"), str("namespace", "default"), str("stream", "demo"),
			b64("payload", jsonItem)))))

	batchItem := repeat(hx("a5"), defaultMaxFrame-6-13-4-4)
	vectors = append(vectors, atDefaultLimit(publishBatch("16_MiB", "The default limit: 16777216 bytes of payload.", demo, batchItem)))

	// Many items: more than fit in 16 bits.
	v := publishBatch("70000_items", "count does not fit in 16 bits.", demo)
	v.Frame = frame(flagsPublish, cat(demo.payload(), u32(70000), repeat(hx("00000000"), 70000)))
	v.Fields = append(demo.fields(), field{"payloads", []any{itemRun{nil, 70000}}})
	vectors = append(vectors, v)

	// Names in binary frames have at most 65535 bytes.
	for _, n := range []int{255, 256, 65535} {
		note := "The greatest length of a name in a binary frame is 65535 bytes."
		long := longText(n)
		suffix := map[int]string{255: "255", 256: "256", 65535: "65535"}[n]
		vectors = append(vectors,
			publishBatch("tenant_"+suffix, note, topicNames{long, text("n"), text("s")}, hello),
			publishBatch("namespace_"+suffix, note, topicNames{text("t"), long, text("s")}, hello),
			publishBatch("stream_"+suffix, note, topicNames{text("t"), text("n"), long}, hello),
			ackedBatch("names_"+suffix, note, 7, 2, topicNames{long, long, long}, hello),
		)
	}
	vectors = append(vectors, canonical("long_names", "Names in JSON messages have no limit of their own.",
		msg("publish", longStr("tenant_id", "t", 65536), longStr("namespace", "n", 65536), longStr("stream", "s", 65536),
			b64("payload", hello))))

	// The text of an error acknowledgement: encoders cut it at 512 bytes, backing up to the start of a character.
	vectors = append(vectors,
		cutAck("511_bytes", "Below the cut.", longText(511), longText(511)),
		cutAck("512_bytes", "Exactly at the cut.", longText(512), longText(512)),
		cutAck("513_bytes", "One byte above.", longText(513), longText(512)),
		cutAck("100000_bytes", "More than the length field could hold.", longText(100000), longText(512)),
		cutAck("2_bytes_fit", "The last character ends exactly at byte 512.",
			cat(longText(510), text("éé")), cat(longText(510), text("é"))),
		cutAck("2_bytes_split", "A character of two bytes would be split: it goes.",
			cat(longText(511), text("é")), longText(511)),
		cutAck("3_bytes_split_after_1", "", cat(longText(511), text("世")), longText(511)),
		cutAck("3_bytes_split_after_2", "", cat(longText(510), text("世")), longText(510)),
		cutAck("4_bytes_fit", "", cat(longText(508), text("🚀🚀")), cat(longText(508), text("🚀"))),
		cutAck("4_bytes_split_after_1", "", cat(longText(511), text("🚀")), longText(511)),
		cutAck("4_bytes_split_after_2", "", cat(longText(510), text("🚀")), longText(510)),
		cutAck("4_bytes_split_after_3", "", cat(longText(509), text("🚀")), longText(509)),
		cutAck("combining_mark", "Backing up looks at code points, not at what a reader sees as one character.",
			cat(longText(511), text("e\u0301")), cat(longText(511), text("e"))),
	)
	for _, n := range []int{513, 65535} {
		v := ackError(map[int]string{513: "text_513", 65535: "text_65535"}[n],
			"A decoder takes a text of any length; an encoder cuts it.", 9, longText(n))
		v.Canonical, v.CanonicalFrame = false, frame(flagsPublishAck, publishAck(1, 9, longText(512)))
		vectors = append(vectors, v)
	}

	// A list that the remaining bytes back exactly, and with fewer items than bytes for them.
	vectors = append(vectors,
		eventBatch("plain/length_at_bound", "The only item ends with the payload.", flagsShared, 0, 0, repeat(hx("00"), 1000)),
		trailing(eventBatch("count_below_bytes", "Well-formed items behind the last counted one are trailing bytes.",
			flagsShared, 0, 0, hello), cat(u32(5), hello.asHex())),
	)
	for i := range vectors {
		vectors[i].Name = "limits/" + vectors[i].Name
	}
	return vectors
}

func atDefaultLimit(v vector) vector {
	if n := v.Frame.len() - 12; n != defaultMaxFrame {
		panic("the payload has the wrong length")
	}
	return v
}
