package codec_test

import (
	"bytes"
	"fmt"
	"testing"

	"github.com/felix-mq/felix/codec"
)

// eachBatch runs a benchmark for batches of several shapes.
func eachBatch(b *testing.B, f func(b *testing.B, items [][]byte)) {
	b.Helper()
	for _, n := range []int{1, 64} {
		for _, size := range []int{256, 4096} {
			b.Run(fmt.Sprintf("items=%d/size=%d", n, size), func(b *testing.B) {
				items := make([][]byte, n)
				for i := range items {
					items[i] = bytes.Repeat([]byte{byte(i)}, size)
				}
				b.ReportAllocs()
				b.SetBytes(int64(n * size))
				f(b, items)
			})
		}
	}
}

func publishFrame(items [][]byte) []byte {
	return codec.AppendPublishBatch(nil, "acme", "default", "orders", items)
}

func BenchmarkParseHeader(b *testing.B) {
	header := codec.AppendHeader(nil, codec.LayoutShared, 4096)
	b.ReportAllocs()
	b.SetBytes(codec.HeaderLen)
	for b.Loop() {
		h, err := codec.ParseHeader(header)
		if err != nil || h.Length != 4096 {
			b.Fatal(err)
		}
	}
}

func BenchmarkParsePublishBatch(b *testing.B) {
	eachBatch(b, func(b *testing.B, items [][]byte) {
		payload := publishFrame(items)[codec.HeaderLen:]
		for b.Loop() {
			if _, err := codec.ParsePublishBatch(payload); err != nil {
				b.Fatal(err)
			}
		}
	})
}

func BenchmarkAppendPublishBatch(b *testing.B) {
	eachBatch(b, func(b *testing.B, items [][]byte) {
		var buf []byte
		for b.Loop() {
			buf = codec.AppendPublishBatch(buf[:0], "acme", "default", "orders", items)
		}
	})
}

func BenchmarkRewriteShared(b *testing.B) {
	eachBatch(b, func(b *testing.B, items [][]byte) {
		frame := publishFrame(items)
		batch, err := codec.ParsePublishBatch(frame[codec.HeaderLen:])
		if err != nil {
			b.Fatal(err)
		}
		for b.Loop() {
			codec.RewriteShared(frame, codec.HeaderLen+batch.CountAt, codec.HeaderLen+batch.End)
		}
	})
}

func BenchmarkItems(b *testing.B) {
	parse := func(b *testing.B, list [][]byte) codec.Items {
		b.Helper()
		items, _, err := codec.ParseItems(codec.AppendItems(nil, list))
		if err != nil {
			b.Fatal(err)
		}
		return items
	}
	b.Run("by=all", func(b *testing.B) {
		eachBatch(b, func(b *testing.B, list [][]byte) {
			items, sum := parse(b, list), 0
			for b.Loop() {
				for _, item := range items.All() {
					sum += len(item)
				}
			}
		})
	})
	b.Run("by=cursor", func(b *testing.B) {
		eachBatch(b, func(b *testing.B, list [][]byte) {
			items, sum := parse(b, list), 0
			for b.Loop() {
				cursor := items.Cursor()
				for item, ok := cursor.Next(); ok; item, ok = cursor.Next() {
					sum += len(item)
				}
			}
		})
	})
}

func BenchmarkParseMessage(b *testing.B) {
	value := bytes.Repeat([]byte("v"), 1024)
	for _, c := range []struct {
		name  string
		frame []byte
	}{
		{"publish", codec.AppendPublish(nil, "acme", "default", "orders", value, codec.AckPerMessage, 7, true)},
		{"cache_put", codec.AppendCachePut(nil, "acme", "default", "primary", "session/42", value, 7, true, 60000, true)},
		{"cache_get", codec.AppendCacheGet(nil, "acme", "default", "primary", "session/42", 7, true)},
	} {
		b.Run("type="+c.name, func(b *testing.B) {
			payload := c.frame[codec.HeaderLen:]
			var m codec.Message
			b.ReportAllocs()
			b.SetBytes(int64(len(payload)))
			for b.Loop() {
				if err := codec.ParseMessage(payload, &m); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkAppendCacheValue(b *testing.B) {
	for _, size := range []int{256, 4096} {
		b.Run(fmt.Sprintf("size=%d", size), func(b *testing.B) {
			name, key, value := []byte("primary"), []byte("session/42"), make([]byte, size)
			var buf []byte
			b.ReportAllocs()
			b.SetBytes(int64(size))
			for b.Loop() {
				buf = codec.AppendCacheValue(buf[:0], name, name, name, key, value, true, 7, true)
			}
		})
	}
}
