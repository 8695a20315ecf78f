package client

import (
	"slices"
	"sync/atomic"

	"github.com/klauspost/compress/s2"
	"github.com/valyala/bytebufferpool"

	"github.com/felix-mq/felix/codec"
)

const (
	// Smaller batches fit a packet anyway.
	minCompress = 1024
	// A batch that does not shrink by an eighth is sent as it is, and so are this many after it: a stream of payloads
	// that do not compress costs next to nothing.
	skipCompress = 32
)

// compressor decides for one request stream whether batches are worth compressing. It may be used from many goroutines.
type compressor struct{ skip atomic.Int32 }

// due reports whether the next batch is to be tried.
func (c *compressor) due() bool {
	if c.skip.Load() <= 0 {
		return true
	}
	c.skip.Add(-1)
	return false
}

// appendBatch appends the frame of a publish batch, compressed if that was negotiated and is worth it. Without an
// acknowledgement mode is AckNone. frameLen is the length of the plain frame.
func (p *Publisher) appendBatch(dst []byte, r *requestStream, c *call, mode codec.AckMode, payloads [][]byte, frameLen int) []byte {
	if p.c.o.compress && r.ctl.ext&codec.ExtS2 != 0 && frameLen >= minCompress && r.compressor.due() {
		if out, ok := p.appendCompressed(dst, c, mode, payloads); ok {
			return out
		}
		r.compressor.skip.Store(skipCompress)
	}
	dst = slices.Grow(dst, frameLen)
	switch {
	case mode == codec.AckNone:
		return codec.AppendPublishBatch(dst, p.c.o.tenant, p.namespace, p.stream, payloads)
	case c.slot != nil:
		return codec.AppendPublishFrom(dst, c.origin(), c.id, mode, p.c.o.tenant, p.namespace, p.stream, payloads)
	}
	return codec.AppendPublishBatchAcked(dst, c.id, mode, p.c.o.tenant, p.namespace, p.stream, payloads)
}

func (p *Publisher) appendCompressed(dst []byte, c *call, mode codec.AckMode, payloads [][]byte) ([]byte, bool) {
	plain, block := bytebufferpool.Get(), bytebufferpool.Get()
	defer bytebufferpool.Put(plain)
	defer bytebufferpool.Put(block)
	plain.B = codec.AppendItems(plain.B, payloads)
	raw := plain.B[4:] // without the count
	most := s2.MaxEncodedLen(len(raw))
	if most < 0 {
		return dst, false // beyond what the format takes
	}
	block.B = s2.Encode(slices.Grow(block.B, most)[:most], raw)
	if len(block.B) > len(raw)/8*7 {
		return dst, false
	}
	switch {
	case mode == codec.AckNone:
		dst = codec.AppendCompressedPublish(dst, 0, mode, p.c.o.tenant, p.namespace, p.stream, len(payloads), len(raw), len(block.B))
	case c.slot != nil:
		dst = codec.AppendCompressedPublishFrom(dst, c.origin(), c.id, mode, p.c.o.tenant, p.namespace, p.stream, len(payloads), len(raw), len(block.B))
	default:
		dst = codec.AppendCompressedPublish(dst, c.id, mode, p.c.o.tenant, p.namespace, p.stream, len(payloads), len(raw), len(block.B))
	}
	return append(dst, block.B...), true
}

// decompress decodes a compressed batch into the subscription's own memory. It reports false for one that is not what
// its publisher says.
func (s *Subscription) decompress(c codec.Compressed) (items codec.Items, ok bool) {
	if c.RawLen > s.c.o.maxFrame+frameSlack {
		return codec.Items{}, false
	}
	if n, err := s2.DecodedLen(c.Block); err != nil || n != c.RawLen {
		return codec.Items{}, false
	}
	s.plain = slices.Grow(s.plain[:0], 4+c.RawLen)[:4+c.RawLen]
	if _, err := s2.Decode(s.plain[4:], c.Block); err != nil {
		return codec.Items{}, false
	}
	items, err := c.Items(s.plain)
	return items, err == nil
}
