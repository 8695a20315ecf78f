package codec_test

import (
	"encoding/hex"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/felix-mq/felix/codec"
	"github.com/felix-mq/felix/testvectors"
)

// examples are the frames of docs/protocol/wire.md, and payloads that have to be refused.
var examples = []struct {
	flags   codec.Flags
	payload string // hex
}{
	{0x0001, "0002 7431 0007 64656661756c74 0004 64656d6f 00000002 00000005 68656c6c6f 00000000"},
	{0x0009, "0000000000000007 01 0002 7431 0007 64656661756c74 0004 64656d6f 00000002 00000005 68656c6c6f 00000000"},
	{0x0004, "00000002 00000005 68656c6c6f 00000000"},
	{0x0024, "000000000000002a 00000002 00000005 68656c6c6f 00000000"},
	{0x0002, "0000000000000005 00000002 00000005 68656c6c6f 00000000"},
	{0x0022, "0000000000000005 000000000000002a 00000002 00000005 68656c6c6f 00000000"},
	{0x0002, "0000000000000007 00000003 00000000 00000000 00000000"},
	{0x0001, "00"},
	{0x0001, "0002 fffe"},
	{0x0001, "0002 fffe 0000 0000 00000000"},
	{0x0001, "0002 7431 0002 6e73 0002 7374 ffffffff"},
	{0x0009, "0000000000000000"},
	{0x0009, "0000000000000001 00 0000 0000 0000 00000000"},
	{0x0010, "0000"},
	{0x0010, "07 0000000000000001 0000"},
	{0x0010, "01 0000000000000001 ffff"},
	{0x0002, "0000000000000001 ffffffff"},
	{0x0004, "ffffffff"},
	{0x0002, "73686f7274"},
}

// seeds yields the frames of the examples and of the test vectors, good and bad, that are not too large to fuzz with.
func seeds(tb testing.TB, yield func(flags codec.Flags, frame []byte)) {
	tb.Helper()
	for _, e := range examples {
		payload, err := hex.DecodeString(strings.ReplaceAll(e.payload, " ", ""))
		if err != nil {
			tb.Fatal(err)
		}
		yield(e.flags, slowFrame(e.flags, string(payload)))
	}
	const most = 64 << 10
	for _, v := range testvectors.Valid() {
		if v.Frame.Len() <= most {
			yield(codec.Flags(v.Flags), v.Frame.Expand())
		}
	}
	for _, v := range testvectors.Invalid() {
		if v.Flags != nil && v.Frame.Len() <= most && v.Frame.Len() >= codec.HeaderLen {
			yield(codec.Flags(*v.Flags), v.Frame.Expand())
		}
	}
	for _, v := range testvectors.Rewrites() {
		if v.Received.Len() <= most {
			frame := v.Received.Expand()
			yield(codec.Flags(frame[6])<<8|codec.Flags(frame[7]), frame)
		}
	}
}

// fuzzPayload fuzzes a check with the payloads of frames with these flags.
func fuzzPayload(f *testing.F, check func(*testing.T, []byte), layout codec.Flags) {
	f.Helper()
	seeds(f, func(flags codec.Flags, frame []byte) {
		if flags == layout {
			f.Add(frame[codec.HeaderLen:])
		}
	})
	f.Fuzz(func(t *testing.T, payload []byte) { check(t, payload) })
}

func FuzzParseHeader(f *testing.F) {
	seeds(f, func(_ codec.Flags, frame []byte) { f.Add(frame[:codec.HeaderLen], uint32(codec.DefaultMaxFrame)) })
	for _, v := range testvectors.Invalid() {
		if v.Flags == nil {
			f.Add(v.Frame.Expand(), uint32(v.MaxFrame))
		}
	}
	f.Fuzz(func(t *testing.T, in []byte, limit uint32) {
		checkHeader(t, in)
		h, err := codec.ParseHeader(in)
		if err != nil || uint64(limit) > maxPayload {
			return
		}
		if got, want := h.CheckLength(int(limit)) == nil, h.Length <= limit; got != want {
			t.Errorf("length %d within a limit of %d: %v", h.Length, limit, got)
		}
	})
}

func FuzzParseMessage(f *testing.F) { fuzzPayload(f, checkMessage, codec.LayoutJSON) }

func FuzzParseItems(f *testing.F) { fuzzPayload(f, checkParseItems, codec.LayoutShared) }

func FuzzParsePublishBatch(f *testing.F) { fuzzPayload(f, checkPublishBatch, codec.LayoutPublish) }

func FuzzParsePublishAcked(f *testing.F) { fuzzPayload(f, checkPublishAcked, codec.LayoutPublishAcked) }

func FuzzParsePublishAck(f *testing.F) { fuzzPayload(f, checkPublishAck, codec.LayoutPublishAck) }

func FuzzParseEventBatch(f *testing.F) {
	seeds(f, func(flags codec.Flags, frame []byte) {
		if slices.Contains(eventLayouts, flags) {
			f.Add(uint16(flags), frame[codec.HeaderLen:])
		}
	})
	f.Add(uint16(codec.FlagEventOffsets), []byte(big(16, 0)))
	f.Fuzz(func(t *testing.T, flags uint16, payload []byte) { checkEventBatch(t, codec.Flags(flags), payload) })
}

func FuzzParseExtension(f *testing.F) {
	f.Add([]byte{})
	f.Add([]byte{0})
	f.Add([]byte("\x01body"))
	f.Fuzz(func(t *testing.T, payload []byte) { checkExtension(t, payload) })
}

// random makes inputs out of its own generator, so that a failure can be repeated with the seed.
type random struct{ *rand.Rand }

// newRandom logs its seed, which is shown if the test fails.
func newRandom(t *testing.T) random {
	t.Helper()
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	return random{rand.New(rand.NewPCG(seed, 1))}
}

func pick[T any](r random, from ...T) T { return from[r.IntN(len(from))] }

func (r random) text() string {
	pieces := []string{
		"a", "tenant", "\"", "\\", "/", "<>&", "\b\t\n\f\r", "\x00", "\x1f", "\x7f", "é", "€", "😀", "\u2028\u2029", "\ufffd", " ",
		`\u0041`, "\ufeff", "\U0010ffff",
	}
	var out strings.Builder
	for range r.IntN(6) {
		out.WriteString(pick(r, pieces...))
	}
	return out.String()
}

func (r random) bytes() string {
	out := make([]byte, pick(r, 0, 1, 2, 3, r.IntN(20), r.IntN(700)))
	for i := range out {
		out[i] = byte(r.Uint32())
	}
	return string(out)
}

func (r random) items() []string {
	var items []string
	for range pick(r, 0, 1, 2, r.IntN(70)) {
		items = append(items, r.bytes())
	}
	return items
}

func (r random) number() uint64 {
	return pick(r, 0, 1, 7, 1<<53+1, math.MaxUint64, r.Uint64(), r.Uint64()>>r.IntN(64))
}

// message makes a message with some of its optional members.
func (r random) message() decoded {
	d := decoded{Type: slowMessages[r.IntN(len(slowMessages))].typ}
	for _, f := range slowFields(d.Type) {
		if f.optional && r.IntN(3) == 0 {
			continue
		}
		switch f.kind {
		case "text":
			*d.text(f.name) = r.text()
		case "base64":
			*d.text(f.name) = r.bytes()
			d.HasValue = f.name == "value"
		case "base64-or-null":
			if d.HasValue = r.IntN(2) == 0; d.HasValue {
				d.Value = r.bytes()
			}
		case "list":
			d.Items = r.items()
		case "u64":
			value, has := d.number(f.name)
			*value, *has = r.number(), true
		case "u16":
			value, has := d.flags(f.name)
			*value, *has = codec.Flags(r.number()), true
		case "ack":
			d.Ack = pick(r, codec.AckNone, codec.AckPerMessage, codec.AckPerBatch)
		case "reason":
			d.Reason = pick(r, codec.CursorTooOld, codec.CursorInFuture)
		case "start":
			d.Start.Kind = pick(r, codec.StartLatest, codec.StartEarliest, codec.StartOffset)
			if d.Start.Kind == codec.StartOffset {
				d.Start.Offset = r.number()
			}
		case "ext":
			d.HasExt = true
			d.Ext = codec.Extensions(r.Uint32()) & codec.KnownExtensions()
		}
	}
	return d.expressible()
}

// TestEncoders compares all encoders with the slow ones, appending to what is there.
func TestEncoders(t *testing.T) {
	defer codec.SetRegistry("one", "two", "three")()
	r := newRandom(t)
	buf := make([]byte, 0, 1<<10) // grows at times, and is reused at others
	for range 3000 {
		prefix := r.bytes()
		buf = append(buf[:0], prefix...)
		appended := func(what string, out, want []byte) {
			t.Helper()
			equalBytes(t, what, out, append([]byte(prefix), want...))
		}

		d := r.message()
		want := slowMessageFrame(d)
		appended(d.Type.String(), fastMessageFrame(t, buf, d), want)
		got, faults := slowParseMessage(want[codec.HeaderLen:])
		equal(t, "faults of what was encoded", len(faults), 0)
		equal(t, "what was encoded", got, d)

		tenant, namespace, stream, items := r.text(), r.text(), r.text(), r.items()
		id, offset := r.number(), r.number()
		body := slowPublishBody(tenant, namespace, stream, items)
		appended("publish batch", codec.AppendPublishBatch(buf, tenant, namespace, stream, byteSlices(items)),
			slowFrame(codec.LayoutPublish, body))
		n := 1 + uint64(r.IntN(2))
		mode := map[uint64]codec.AckMode{1: codec.AckPerMessage, 2: codec.AckPerBatch}[n]
		appended("acked batch", codec.AppendPublishBatchAcked(buf, id, mode, tenant, namespace, stream, byteSlices(items)),
			slowFrame(codec.LayoutPublishAcked, big(8, id)+big(1, n)+body))
		for _, flags := range eventLayouts {
			appended("event batch", codec.AppendEventBatch(buf, flags, id, offset, byteSlices(items)),
				slowEventFrame(flags, id, offset, items))
		}
		appended("ok", codec.AppendPublishAckOK(buf, id), slowFrame(codec.LayoutPublishAck, big(1, 0)+big(8, id)+big(2, 0)))
		text := strings.Repeat(r.text(), r.IntN(60))
		appended("error", codec.AppendPublishAckError(buf, id, text), slowAckErrorFrame(id, text))
		flags, length := codec.Flags(r.Uint32()), int(r.Uint32()&min(math.MaxUint32, math.MaxInt))
		appended("header", codec.AppendHeader(buf, flags, length), []byte("FLX1\x00\x01"+big(2, uint64(flags))+big(4, uint64(length))))
	}
}

// mutate spoils an input, or perhaps not.
func (r random) mutate(in string) string {
	tokens := []string{
		"null", "true", "{", "}", "[", "]", ",", ":", `"`, `\`, `\u00`, `\ud800`, `\udc00`, `\n`, " ", "\t", "\x00", "\xff", "é", "0", "-", "1e5",
		".0", "1e999", "type", `"type":"ok"`, `"type":null,`, "offset", `"AAA="`, "=", `{"offset":1}`, `,"x":[{}]`, strings.Repeat("[", 127),
		"\x00\x00\x00\x01", "\xff\xff\xff\xff",
	}
	for range 1 + r.IntN(3) {
		at := r.IntN(len(in) + 1)
		end := min(len(in), at+r.IntN(12))
		switch r.IntN(5) {
		case 0:
			in = in[:at] + in[end:]
		case 1:
			in = in[:at] + pick(r, tokens...) + in[at:]
		case 2:
			in = in[:at] + pick(r, tokens...) + in[end:]
		case 3:
			in = in[:end] + in[at:]
		case 4:
			if at < len(in) {
				in = in[:at] + string([]byte{byte(r.Uint32())}) + in[at+1:]
			}
		}
	}
	return in
}

// TestSpoiledInput is what the fuzz targets do, in a moment and from frames of all kinds.
func TestSpoiledInput(t *testing.T) {
	r := newRandom(t)
	for range 3000 {
		t.Run("", func(t *testing.T) {
			payload := []byte(r.mutate(string(slowMessageFrame(r.message())[codec.HeaderLen:])))
			logInput(t, "message", payload)
			checkMessage(t, payload)
		})
		t.Run("", func(t *testing.T) {
			body := slowPublishBody(r.text(), r.text(), r.text(), r.items())
			payload := []byte(r.mutate(body))
			logInput(t, "publish batch", payload)
			checkPublishBatch(t, payload)
			payload = []byte(r.mutate(big(8, r.number()) + big(1, 1+uint64(r.IntN(2))) + body))
			logInput(t, "acked batch", payload)
			checkPublishAcked(t, payload)
		})
		t.Run("", func(t *testing.T) {
			flags := pick(r, eventLayouts...)
			payload := []byte(r.mutate(string(slowEventFrame(flags, r.number(), r.number(), r.items())[codec.HeaderLen:])))
			logInput(t, fmt.Sprintf("event batch %#04x", uint16(flags)), payload)
			checkEventBatch(t, flags, payload)
		})
		t.Run("", func(t *testing.T) {
			payload := []byte(r.mutate(string(slowAckErrorFrame(r.number(), r.text())[codec.HeaderLen:])))
			logInput(t, "acknowledgement", payload)
			checkPublishAck(t, payload)
		})
		if t.Failed() {
			return
		}
	}
}

func logInput(t *testing.T, what string, payload []byte) {
	t.Helper()
	t.Logf("%s %q", what, payload)
}

// FuzzCacheFrames parses bodies of the extension cache and encodes what came out again.
func FuzzCacheFrames(f *testing.F) {
	seeds(f, func(flags codec.Flags, frame []byte) {
		if flags == codec.LayoutExtension && len(frame) > codec.HeaderLen+1 {
			f.Add(frame[codec.HeaderLen+1:])
		}
	})
	const head = codec.HeaderLen + 1
	f.Fuzz(func(t *testing.T, body []byte) {
		if r, _, err := codec.ParseCacheRequest(body); err == nil {
			keys := []string{string(r.Key)}
			switch r.Op {
			case codec.CacheGet:
				keys = nil
				for key, ok := r.Keys.Next(); ok; key, ok = r.Keys.Next() {
					keys = append(keys, string(key))
				}
			case codec.CacheWatch:
				keys = nil
			default:
			}
			again := codec.AppendCacheRequest(nil, &r, string(r.Namespace), string(r.Cache), keys...)[head:]
			if !strings.HasPrefix(string(body), string(again)) {
				t.Errorf("request %x became %x", body, again)
			}
		}
		if r, err := codec.ParseCacheReply(body); err == nil && r.Status == codec.CacheValues {
			total := 0
			for _, value, ok := r.Values.Next(); ok; _, value, ok = r.Values.Next() {
				total += codec.CacheValueHead + len(value)
			}
			if total > len(body) {
				t.Errorf("%d bytes of values in %d", total, len(body))
			}
		}
		for rest := body; len(rest) > 0; {
			_, next, err := codec.ParseCacheEvent(rest)
			if err != nil {
				break
			}
			rest = next
		}
	})
}
