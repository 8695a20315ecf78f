// Package hostile attacks a broker over real QUIC and checks that it answers as documented and keeps working, and that
// its other clients notice nothing.
//
// There are two kinds of attack. TestMutatedFrames sends streams of valid frames of which many were damaged, made by
// [Corpus.Stream] from a seed and a number alone, so that any of them can be made again. TestBehaviors plays scripts
// that no damage to bytes would find: peers that stop, vanish, never read or come in crowds. During both, a healthy
// publisher and a healthy subscriber on connections of their own must not lose an event, and afterwards the broker must
// hold no more memory, goroutines, descriptors, connections, streams and subscriptions than before.
//
// What the documented ends are is written in docs/operate/limits.md. The harness lives in the tests; what the package
// exports is the maker of damaged streams. Begin at [NewCorpus].
package hostile

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"

	"github.com/felix-mq/felix/codec"
	"github.com/felix-mq/felix/testvectors"
)

// Target is what a peer knows of a broker: names that exist there, and a token that may use them.
type Target struct {
	Tenant, Token, Namespace, Stream, Cache string
}

// Corpus holds the valid frames that damaged streams are made of. It is read-only once made.
type Corpus struct {
	auths  [][]byte // good ones
	live   [][]byte // for names that exist
	golden [][]byte // test vectors, of both directions
}

// maxGolden is the size of the test vectors that are used. Larger ones would make most of the traffic.
const maxGolden = 64 << 10

// NewCorpus returns the corpus for a broker.
func NewCorpus(t Target) *Corpus {
	c := &Corpus{auths: [][]byte{
		codec.AppendAuth(nil, t.Tenant, t.Token, 0, false, 0),
		codec.AppendAuth(nil, t.Tenant, t.Token, codec.KnownFlags, true, 0),
		codec.AppendAuth(nil, t.Tenant, t.Token, codec.KnownFlags, true, codec.KnownExtensions()),
	}}
	for _, v := range testvectors.Valid() {
		if v.Frame.Len() < maxGolden {
			c.golden = append(c.golden, v.Frame.Expand())
		}
	}
	add := func(frame []byte) { c.live = append(c.live, frame) }
	items := [][]byte{[]byte("a"), {}, bytes.Repeat([]byte("hostile "), 100)}
	large := [][]byte{bytes.Repeat([]byte{0xff}, 32<<10)}
	many := make([][]byte, 1000) // more than one delivered frame holds
	for _, batch := range [][][]byte{items, large, many, nil} {
		add(codec.AppendPublishBatch(nil, t.Tenant, t.Namespace, t.Stream, batch))
		add(codec.AppendPublishBatchAcked(nil, 7, codec.AckPerBatch, t.Tenant, t.Namespace, t.Stream, batch))
		add(codec.AppendPublishBatchJSON(nil, t.Tenant, t.Namespace, t.Stream, batch, codec.AckPerBatch, 8, true))
	}
	add(codec.AppendPublish(nil, t.Tenant, t.Namespace, t.Stream, items[2], codec.AckPerMessage, 9, true))
	add(codec.AppendPublish(nil, t.Tenant, t.Namespace, t.Stream, items[0], codec.AckNone, 0, false))
	for _, start := range []codec.Start{{}, {Kind: codec.StartLatest}, {Kind: codec.StartEarliest}, {Kind: codec.StartOffset, Offset: 3}} {
		add(codec.AppendSubscribe(nil, t.Tenant, t.Namespace, t.Stream, start, 0, false))
		add(codec.AppendSubscribe(nil, t.Tenant, t.Namespace, t.Stream, start, 5, true))
	}
	add(codec.AppendCachePut(nil, t.Tenant, t.Namespace, t.Cache, "key", items[2], 10, true, 1000, true))
	add(codec.AppendCachePut(nil, t.Tenant, t.Namespace, t.Cache, "key", nil, 0, false, 0, false))
	add(codec.AppendCacheGet(nil, t.Tenant, t.Namespace, t.Cache, "key", 11, true))
	add(codec.AppendCacheGet(nil, t.Tenant, t.Namespace, t.Cache, "none", 0, false))
	c.live = append(c.live, c.auths...)
	return c
}

// Stream is what a hostile peer sends on one stream.
type Stream struct {
	Uni    bool     // uni-directional
	Frames [][]byte // to be sent in order; many are no frames any more
	How    []string // what was done to each
	Reset  bool     // the peer resets the stream after the last of them, instead of finishing it
}

// Stream makes the stream of that number. It is the same for the same corpus, seed and number, and may be called from
// many goroutines.
func (c *Corpus) Stream(seed, number uint64) Stream {
	rng := rand.New(rand.NewPCG(seed, number))
	s := Stream{Uni: rng.IntN(5) == 0, Reset: rng.IntN(10) == 0}
	add := func(how string, frame []byte) {
		s.Frames, s.How = append(s.Frames, frame), append(s.How, how)
	}
	auth := c.auths[rng.IntN(len(c.auths))]
	if rng.IntN(10) > 0 { // otherwise late, or never
		add("auth", auth)
	}
	for n := 1 + rng.IntN(6); n > 0; n-- {
		switch frame := c.pick(rng); {
		case rng.IntN(12) == 0:
			add("another auth", auth)
		case rng.IntN(3) > 0:
			add("as it is", frame)
		default:
			m := mutations[rng.IntN(len(mutations))]
			add(m.how, m.do(rng, bytes.Clone(frame), c.pick(rng)))
		}
	}
	if rng.IntN(4) == 0 { // after auth, or not
		rng.Shuffle(len(s.Frames), func(i, j int) {
			s.Frames[i], s.Frames[j] = s.Frames[j], s.Frames[i]
			s.How[i], s.How[j] = s.How[j], s.How[i]
		})
	}
	return s
}

// pick returns a frame. Most name what exists: of the others a broker refuses most at once.
func (c *Corpus) pick(rng *rand.Rand) []byte {
	from := c.live
	if rng.IntN(4) == 0 {
		from = c.golden
	}
	return from[rng.IntN(len(from))]
}

// mutations do damage. Each is given a frame of its own, at least a header long, and another one to take from.
var mutations = []struct {
	how string
	do  func(rng *rand.Rand, frame, other []byte) []byte
}{
	{"length too small", func(rng *rand.Rand, f, _ []byte) []byte {
		return setLength(f, uint32(rng.IntN(max(1, payloadLen(f)))))
	}},
	{"length too large", func(rng *rand.Rand, f, _ []byte) []byte {
		return setLength(f, uint32(payloadLen(f)+1+rng.IntN(100)))
	}},
	{"length at a limit", func(rng *rand.Rand, f, _ []byte) []byte {
		limits := []uint32{0, 1, codec.DefaultMaxFrame, codec.DefaultMaxFrame + 1, 1 << 31, 1<<32 - 1}
		return setLength(f, limits[rng.IntN(len(limits))])
	}},
	{"truncated", func(rng *rand.Rand, f, _ []byte) []byte { return f[:rng.IntN(len(f))] }},
	{"truncated payload", func(rng *rand.Rand, f, _ []byte) []byte {
		return fixLength(f[:codec.HeaderLen+rng.IntN(max(1, payloadLen(f)))])
	}},
	{"bits of the header", func(rng *rand.Rand, f, _ []byte) []byte { return flip(rng, f, 0, codec.HeaderLen) }},
	{"bits of the payload", func(rng *rand.Rand, f, _ []byte) []byte { return flip(rng, f, codec.HeaderLen, len(f)) }},
	{"flags of another layout", func(rng *rand.Rand, f, _ []byte) []byte {
		binary.BigEndian.PutUint16(f[6:], uint16(rng.IntN(64)))
		return f
	}},
	{"unknown flags", func(rng *rand.Rand, f, _ []byte) []byte {
		binary.BigEndian.PutUint16(f[6:], uint16(64+rng.IntN(1<<16-64)))
		return f
	}},
	{"payload of another frame", func(_ *rand.Rand, f, other []byte) []byte {
		return fixLength(append(f[:codec.HeaderLen], other[codec.HeaderLen:]...))
	}},
	{"spliced", func(rng *rand.Rand, f, other []byte) []byte {
		f = f[:codec.HeaderLen+rng.IntN(payloadLen(f)+1)]
		return fixLength(append(f, other[codec.HeaderLen+rng.IntN(payloadLen(other)+1):]...))
	}},
	{"inside another frame", func(_ *rand.Rand, f, other []byte) []byte {
		return fixLength(append(bytes.Clone(other), f...))
	}},
	{"twice", func(_ *rand.Rand, f, _ []byte) []byte { return append(f, f...) }},
	{"bytes taken out", func(rng *rand.Rand, f, _ []byte) []byte {
		from, to := span(rng, f)
		return fixLength(append(f[:from], f[to:]...))
	}},
	{"bytes repeated", func(rng *rand.Rand, f, _ []byte) []byte {
		from, to := span(rng, f)
		to = min(to, from+64)
		again := bytes.Repeat(f[from:to], 1+rng.IntN(200))
		return fixLength(append(f[:to:to], append(again, f[to:]...)...))
	}},
	{"a number at a limit", func(rng *rand.Rand, f, _ []byte) []byte {
		if payloadLen(f) < 4 {
			return f
		}
		limits := []uint32{0, 1, 1<<15 - 1, 1<<16 - 1, 1 << 16, 1<<31 - 1, 1 << 31, 1<<32 - 1}
		binary.BigEndian.PutUint32(f[codec.HeaderLen+rng.IntN(payloadLen(f)-3):], limits[rng.IntN(len(limits))])
		return f
	}},
	{"random payload", func(rng *rand.Rand, f, _ []byte) []byte {
		fill(rng, f[codec.HeaderLen:])
		return f
	}},
	{"garbage", func(rng *rand.Rand, f, _ []byte) []byte {
		fill(rng, f)
		return f
	}},
}

func payloadLen(f []byte) int { return len(f) - codec.HeaderLen }

func setLength(f []byte, n uint32) []byte {
	binary.BigEndian.PutUint32(f[8:], n)
	return f
}

// fixLength makes the header agree with what is there.
func fixLength(f []byte) []byte { return setLength(f, uint32(payloadLen(f))) }

// flip flips one to three bits of f[from:to].
func flip(rng *rand.Rand, f []byte, from, to int) []byte {
	for n := 1 + rng.IntN(3); n > 0 && from < to; n-- {
		f[from+rng.IntN(to-from)] ^= 1 << rng.IntN(8)
	}
	return f
}

// span chooses a stretch of the payload, which may be empty.
func span(rng *rand.Rand, f []byte) (from, to int) {
	from = codec.HeaderLen + rng.IntN(payloadLen(f)+1)
	return from, from + rng.IntN(len(f)-from+1)
}

func fill(rng *rand.Rand, b []byte) {
	for i := range b {
		b[i] = byte(rng.Uint32())
	}
}
