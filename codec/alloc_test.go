package codec_test

import (
	"testing"

	"github.com/felix-mq/felix/codec"
	"github.com/felix-mq/felix/internal/race"
)

// noAllocs fails the test if f allocates.
func noAllocs(t *testing.T, name string, f func()) {
	t.Helper()
	t.Run(name, func(t *testing.T) {
		if race.Enabled {
			t.Skip("allocation counts mean nothing under the race detector")
		}
		if n := testing.AllocsPerRun(200, f); n != 0 {
			t.Errorf("%v allocations, want none", n)
		}
	})
}

// must stops a measured function without allocating itself.
func must(err error) {
	if err != nil {
		panic(err)
	}
}

var (
	allocItems = [][]byte{make([]byte, 256), {}, make([]byte, 4096)}
	allocName  = []byte("orders.eu")
	allocKey   = []byte("a \"key\"\n")
	allocBytes = make([]byte, 4096)
)

func TestAllocHeader(t *testing.T) {
	buf := make([]byte, 0, codec.HeaderLen)
	noAllocs(t, "both ways", func() {
		buf = codec.AppendHeader(buf[:0], codec.LayoutShared, 1000)
		h, err := codec.ParseHeader(buf)
		must(err)
		must(h.CheckLength(codec.DefaultMaxFrame))
		must(h.Flags.Check())
		must(h.Flags.CheckNegotiated(0))
	})
}

func TestAllocBinary(t *testing.T) {
	buf := make([]byte, 0, 64<<10)
	const at = codec.HeaderLen
	noAllocs(t, "publish batch", func() {
		_, err := codec.PublishBatchLen("acme", "default", "orders", allocItems)
		must(err)
		buf = codec.AppendPublishBatch(buf[:0], "acme", "default", "orders", allocItems)
		_, err = codec.ParsePublishBatch(buf[at:])
		must(err)
	})
	noAllocs(t, "acked batch and rewrite", func() {
		buf = codec.AppendPublishBatchAcked(buf[:0], 7, codec.AckPerBatch, "acme", "default", "orders", allocItems)
		_, _, body, err := codec.ParsePublishAckedPrefix(buf[at:])
		must(err)
		batch, err := codec.ParsePublishBatch(body)
		must(err)
		bodyAt := len(buf) - len(body)
		codec.RewriteSharedOffsets(buf, bodyAt+batch.CountAt, bodyAt+batch.End, 42)
		codec.RewriteShared(buf, bodyAt+batch.CountAt, bodyAt+batch.End)
	})
	noAllocs(t, "acknowledgements", func() {
		buf = codec.AppendPublishAckOK(buf[:0], 7)
		_, err := codec.ParsePublishAck(buf[at:])
		must(err)
		buf = codec.AppendPublishAckError(buf[:0], 7, codec.MalformedBatch.Text)
		_, err = codec.ParsePublishAck(buf[at:])
		must(err)
	})
	for name, flags := range map[string]codec.Flags{
		"event batch": codec.LayoutEvent, "event batch with offset": codec.LayoutEventOffsets,
		"shared batch": codec.LayoutShared, "shared batch with offset": codec.LayoutSharedOffsets,
	} {
		noAllocs(t, name, func() {
			buf = codec.AppendEventBatch(buf[:0], flags, 7, 42, allocItems)
			e, err := codec.ParseEventBatch(flags, buf[at:])
			must(err)
			buf = codec.AppendEventPart(buf, flags, 7, 42, e.Items.Len(), e.Items.Raw()[4:])
			buf = codec.AppendEventHead(buf, flags, 7, 42, len(e.Items.Raw()))
		})
	}
	noAllocs(t, "extension frame", func() {
		buf = append(codec.AppendHeader(buf[:0], codec.LayoutExtension, 1), 5)
		_, _, err := codec.ParseExtension(buf[at:])
		must(err)
	})
	noAllocs(t, "texts", func() {
		buf = codec.AppendStreamNotFound(buf[:0], allocName, allocName, allocName)
		buf = codec.AppendCacheScopeNotFound(buf, allocName, allocName, allocName)
	})
}

func TestAllocItems(t *testing.T) {
	list := codec.AppendItems(nil, allocItems)
	sum := 0
	noAllocs(t, "parse", func() {
		_, _, err := codec.ParseItems(list)
		must(err)
	})
	items, _, err := codec.ParseItems(list)
	if err != nil {
		t.Fatal(err)
	}
	noAllocs(t, "all", func() {
		for i, item := range items.All() {
			sum += i + len(item)
		}
	})
	noAllocs(t, "cursor", func() {
		cursor := items.Cursor()
		for item, ok := cursor.Next(); ok; item, ok = cursor.Next() {
			sum += len(item)
		}
	})
}

// TestAllocMessages encodes each hot message and parses it into the same Message, as a stream does.
func TestAllocMessages(t *testing.T) {
	buf := make([]byte, 0, 64<<10)
	m := new(codec.Message)
	for _, c := range []struct {
		name   string
		append func([]byte) []byte
	}{
		{"cache_put", func(b []byte) []byte {
			return codec.AppendCachePut(b, "acme", "default", "primary", "a \"key\"\n", allocBytes, 7, true, 1000, true)
		}},
		{"cache_put without ttl", func(b []byte) []byte {
			return codec.AppendCachePut(b, "acme", "default", "primary", "key", allocBytes, 7, true, 0, false)
		}},
		{"cache_get", func(b []byte) []byte {
			return codec.AppendCacheGet(b, "acme", "default", "primary", "a \"key\"\n", 7, true)
		}},
		{"cache_value", func(b []byte) []byte {
			return codec.AppendCacheValue(b, allocName, allocName, allocName, allocKey, allocBytes, true, 7, true)
		}},
		{"cache_value of a miss", func(b []byte) []byte {
			return codec.AppendCacheValue(b, allocName, allocName, allocName, allocKey, nil, false, 7, true)
		}},
		{"cache_ok", func(b []byte) []byte { return codec.AppendCacheOK(b, 7) }},
		{"publish", func(b []byte) []byte {
			return codec.AppendPublish(b, "acme", "default", "orders", allocBytes, codec.AckPerMessage, 7, true)
		}},
		{"publish_batch", func(b []byte) []byte {
			return codec.AppendPublishBatchJSON(b, "acme", "default", "orders", allocItems, codec.AckPerBatch, 7, true)
		}},
		{"publish_ok", func(b []byte) []byte { return codec.AppendPublishOK(b, 7) }},
		{"publish_error", func(b []byte) []byte { return codec.AppendPublishError(b, 7, codec.Forbidden.Text) }},
		{"event", func(b []byte) []byte {
			return codec.AppendEvent(b, "acme", "default", "orders", allocBytes, 42, true)
		}},
		{"event_batch", func(b []byte) []byte {
			return codec.AppendEventBatchJSON(b, "acme", "default", "orders", allocItems, 42, true)
		}},
		{"subscribe", func(b []byte) []byte {
			return codec.AppendSubscribe(b, "acme", "default", "orders", codec.Start{Kind: codec.StartOffset, Offset: 42}, 7, true)
		}},
		{"subscribed", func(b []byte) []byte { return codec.AppendSubscribed(b, 7) }},
		{"event_stream_hello", func(b []byte) []byte { return codec.AppendEventStreamHello(b, 7) }},
		{"ok", codec.AppendOK},
		{"error", func(b []byte) []byte { return codec.AppendError(b, codec.UnsupportedFlags.Text) }},
	} {
		noAllocs(t, c.name, func() {
			buf = c.append(buf[:0])
			must(codec.ParseMessage(buf[codec.HeaderLen:], m))
		})
		// A client in another language may write members in another order, and spaces.
		spaced := append([]byte(`{ "x" : [1,"\u0041",{"y":null}], `), c.append(nil)[codec.HeaderLen+1:]...)
		if c.name == "ok" {
			spaced = []byte(`{ "x" : 1, "type" : "ok" }`)
		}
		noAllocs(t, c.name+" with the type not first", func() { must(codec.ParseMessage(spaced, m)) })
	}
}
