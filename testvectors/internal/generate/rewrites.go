package main

// rewrites are received publish frames and the frames a broker makes of them without touching an item,
// docs/protocol/wire.md#delivery-without-encoding.
func rewrites() []rewrite {
	hello, empty := raw("hello"), blob(nil)
	short := topicNames{text("t"), text("n"), text("s")}
	mixed := []blob{raw("a"), nil, allBytes(), hx("00000000"), raw("e")}
	extra := hx("00000001ff")

	return []rewrite{
		newRewrite("plain", "", nil, demo, 42, nil, hello, empty),
		newRewrite("acked", "", ackedPrefix(7, 1), demo, 42, nil, hello, empty),
		newRewrite("acked_extremes", "The id of the request and the offset have nothing to do with each other.",
			ackedPrefix(maxU64, 2), demo, maxU64, nil, hello),
		newRewrite("offset_0", "", nil, demo, 0, nil, hello),
		newRewrite("empty_items", "", nil, demo, 42, nil, empty, empty, empty),
		newRewrite("shortest_names", "21 bytes are in front of count and the longer form needs 20.", nil, short, 42, nil, hello),
		newRewrite("shortest_names_acked", "", ackedPrefix(7, 2), short, 42, nil, hello),
		newRewrite("empty_names", "18 bytes are in front of count: the form with an offset does not fit in place.",
			nil, topicNames{}, 42, nil, hello),
		newRewrite("empty_names_acked", "27 bytes are in front of count: both forms fit in place.",
			ackedPrefix(7, 2), topicNames{}, 42, nil, hello),
		newRewrite("long_names", "", nil, topicNames{longText(65535), longText(65535), longText(65535)}, 42, nil, hello),
		newRewrite("trailing", "Bytes behind the last item are not forwarded.", nil, demo, 42, extra, hello, empty),
		newRewrite("trailing_acked", "", ackedPrefix(7, 1), demo, 42, extra, hello, empty),
		newRewrite("trailing_item", "What follows looks like one more item, but count does not count it.",
			nil, demo, 42, hx("0000000568656c6c6f"), hello),
		newRewrite("no_items", "The frames are well-formed, but a broker delivers nothing.", nil, demo, 42, nil),
		newRewrite("no_items_trailing", "", ackedPrefix(7, 2), demo, 42, extra),
		newRewrite("one_byte_items", "", nil, demo, 42, nil, raw("a"), raw("b"), raw("c")).split(1, 1, 1),
		newRewrite("split", "Each part has its own count and the offset of its first item.",
			nil, demo, 42, nil, mixed...).split(2, 2, 1),
		newRewrite("split_acked_trailing", "", ackedPrefix(7, 2), demo, 1<<53, extra, mixed...).split(1, 4),
	}
}

// newRewrite is the rewrite of a publish batch, which is acked if it has a prefix.
func newRewrite(name, note string, prefix blob, t topicNames, base uint64, extra blob, items ...blob) rewrite {
	flags := uint16(flagsPublish)
	if prefix != nil {
		flags = flagsPublishAcked
	}
	head, list := cat(prefix, t.payload()), itemList(items)
	return rewrite{
		Name: name, Note: note,
		Received:      frame(flags, cat(head, list, extra)),
		CountAt:       12 + head.len(),
		End:           12 + head.len() + list.len(),
		BaseOffset:    u64(base),
		Shared:        frame(flagsShared, list),
		SharedOffsets: frame(flagsSharedOffsets, cat(be64(base), list)),
		items:         items,
	}
}

// split adds the frames of a delivery in parts of the given numbers of items.
func (r rewrite) split(sizes ...int) rewrite {
	from := 0
	for _, n := range sizes {
		list := itemList(r.items[from : from+n])
		r.Parts = append(r.Parts, rewritePart{
			From: from, To: from + n,
			Shared:        frame(flagsShared, list),
			SharedOffsets: frame(flagsSharedOffsets, cat(be64(uint64(r.BaseOffset)+uint64(from)), list)),
		})
		from += n
	}
	if from != len(r.items) {
		panic("the parts do not add up")
	}
	return r
}
