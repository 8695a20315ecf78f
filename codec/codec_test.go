package codec_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math"
	"reflect"
	"strconv"
	"strings"
	"testing"

	"github.com/felix-mq/felix/codec"
)

func TestFlags(t *testing.T) {
	fromClient := map[codec.Flags]bool{0x0000: true, 0x0001: true, 0x0009: true}
	layouts := map[codec.Flags]bool{
		0x0000: true, 0x0001: true, 0x0009: true, 0x0010: true, 0x0002: true, 0x0022: true, 0x0004: true, 0x0024: true,
	}
	for i := range 1 << 16 {
		f := codec.Flags(i)
		want := ""
		switch {
		case layouts[f]:
		case i >= 64:
			want = "unknown_flags"
		default:
			want = badFlags
		}
		if got := codec.ClassOf(f.Check()); got != want || (f.Check() == nil) != layouts[f] {
			t.Errorf("%#04x: class %q, want %q", i, got, want)
		}
		if got := codec.ClassOf(f.CheckNegotiated(0)); got != want {
			t.Errorf("%#04x without extensions: class %q, want %q", i, got, want)
		}
		if f == 0x8000 {
			want = ""
		}
		for _, ext := range []codec.Extensions{1, 1 << 31, math.MaxUint32} {
			if got := codec.ClassOf(f.CheckNegotiated(ext)); got != want || (f.CheckNegotiated(ext) == nil) != (want == "") {
				t.Errorf("%#04x with extensions %#x: class %q, want %q", i, ext, got, want)
			}
		}
		if f.FromClient() != fromClient[f] {
			t.Errorf("%#04x may come from a client: %v", i, f.FromClient())
		}
	}
}

// maxPayload is the length of the largest frame payload of which this system can express the length.
const maxPayload = min(math.MaxUint32, math.MaxInt)

func TestCheckLength(t *testing.T) {
	for _, c := range []struct {
		length uint32
		limit  int64
		ok     bool
	}{
		{0, 0, true},
		{0, -1, true},
		{1, 0, false},
		{1, -1, false},
		{1, math.MinInt, false},
		{codec.DefaultMaxFrame, codec.DefaultMaxFrame, true},
		{codec.DefaultMaxFrame + 1, codec.DefaultMaxFrame, false},
		{math.MaxUint32, math.MaxUint32, true},
		{math.MaxUint32, math.MaxUint32 - 1, false},
		{math.MaxUint32, math.MaxInt, math.MaxInt > math.MaxUint32},
	} {
		limit := int(c.limit)
		if int64(limit) != c.limit {
			continue // this system has no such int
		}
		err := codec.Header{Length: c.length}.CheckLength(limit)
		if (err == nil) != c.ok || !c.ok && !errors.Is(err, codec.ErrFrameTooLarge) {
			t.Errorf("length %d, limit %d: %v", c.length, c.limit, err)
		}
	}
}

// parseMessage returns the error of parsing a payload.
func parseMessage(payload string) error {
	return codec.ParseMessage([]byte(payload), new(codec.Message))
}

func TestErrorClasses(t *testing.T) {
	event := func(flags codec.Flags, payload string) error {
		_, err := codec.ParseEventBatch(flags, []byte(payload))
		return err
	}
	header := func(b string) error {
		_, err := codec.ParseHeader([]byte(b))
		return err
	}
	_, _, _, ackModeErr := codec.ParsePublishAckedPrefix(make([]byte, 9))
	_, ackStatusErr := codec.ParsePublishAck(append([]byte{2}, make([]byte, 10)...))
	_, utf8Err := codec.ParsePublishBatch([]byte(slowPublishBody("\xff", "", "", nil)))
	all := []struct {
		class string
		base  *codec.Error
		err   error // as a decoder returns it
	}{
		{"short_header", codec.ErrShortHeader, header("FLX1")},
		{"bad_magic", codec.ErrMagic, header("FLX2aaaabbbb")},
		{"bad_version", codec.ErrVersion, header("FLX1aaaabbbb")},
		{"frame_too_large", codec.ErrFrameTooLarge, codec.Header{Length: 2}.CheckLength(1)},
		{"unknown_flags", codec.ErrUnknownFlags, codec.Flags(0x40).Check()},
		{"flag_combination", codec.ErrFlagCombination, codec.Flags(0x08).Check()},
		{"incomplete", codec.ErrIncomplete, event(codec.LayoutShared, "")},
		{"not_utf8", codec.ErrNotUTF8, utf8Err},
		{"ack_mode", codec.ErrAckMode, ackModeErr},
		{"ack_status", codec.ErrAckStatus, ackStatusErr},
		{"json_syntax", codec.ErrSyntax, parseMessage(`{`)},
		{"json_type", codec.ErrType, parseMessage(`[]`)},
		{"json_missing_field", codec.ErrMissingField, parseMessage(`{}`)},
		{"json_duplicate_field", codec.ErrDuplicateField, parseMessage(`{"type":"ok","type":"ok"}`)},
		{"json_unknown_type", codec.ErrUnknownType, parseMessage(`{"type":"okay"}`)},
		{"base64", codec.ErrBase64, parseMessage(`{"type":"publish","payload":"A"}`)},
		{"extension_type", codec.ErrExtensionType, codec.ErrExtensionType},
	}
	for i, e := range all {
		wrapped := fmt.Errorf("reading a frame: %w", e.err)
		if got := codec.ClassOf(wrapped); got != e.class || codec.ClassOf(e.base) != e.class {
			t.Errorf("class %q, of the value %q, want %q", got, codec.ClassOf(e.base), e.class)
		}
		if !strings.HasPrefix(e.err.Error(), "codec: ") || !strings.HasPrefix(e.base.Error(), "codec: ") {
			t.Errorf("texts %q and %q", e.err, e.base)
		}
		for j, other := range all {
			if got := errors.Is(wrapped, other.base); got != (i == j) {
				t.Errorf("%v is %s: %v", wrapped, other.class, got)
			}
		}
	}
	for _, err := range []error{nil, io.EOF, codec.ErrNameTooLong, codec.ErrBatchTooLarge} {
		if got := codec.ClassOf(err); got != "" {
			t.Errorf("class of %v: %q", err, got)
		}
		for _, e := range all {
			if errors.Is(err, e.base) || e.base.Is(err) {
				t.Errorf("%v is %s", err, e.class)
			}
		}
	}
}

func TestNames(t *testing.T) {
	for i, m := range slowMessages {
		if m.typ.String() != m.name {
			t.Errorf("%s is called %q", m.name, m.typ.String())
		}
		if got := m.typ.FromClient(); got != (i < 6) {
			t.Errorf("%s may come from a client: %v", m.name, got)
		}
	}
	for _, typ := range []codec.MessageType{codec.MsgInvalid, codec.MsgEventBatch + 1, math.MaxUint8} {
		if typ.String() != "invalid" || typ.FromClient() {
			t.Errorf("type %d is called %q, from a client: %v", typ, typ.String(), typ.FromClient())
		}
	}
	for name, mode := range slowAcks {
		if mode.String() != name {
			t.Errorf("%s is called %q", name, mode.String())
		}
	}
	for name, reason := range slowReasons {
		if reason.String() != name {
			t.Errorf("%s is called %q", name, reason.String())
		}
	}
	if codec.AckUnset.String() != "" || codec.AckMode(99).String() != "" || codec.CursorUnset.String() != "" || codec.CursorReason(99).String() != "" {
		t.Error("values without a name have one")
	}
}

// TestMessages holds what several rules of docs/protocol/wire.md say together, and what is near the odd corners of the
// parser. Both implementations are held against the classes, which are the ones that may be found first.
func TestMessages(t *testing.T) {
	const topic = `"tenant_id":"t","namespace":"n","stream":"s"`
	nested := func(levels int) string { return strings.Repeat("[", levels) + strings.Repeat("]", levels) }
	for _, c := range []struct{ name, payload, classes string }{
		{"ok", `{"type":"ok"}`, ""},
		{"spaces around type", ` { "type" : "ok" } `, ""},
		{"escaped type", `{"type":"o\u006B"}`, ""},
		{"escaped name of type", `{"\u0074ype":"ok"}`, ""},
		{"name after the type is a prefix", `{"type":"ok" }`, ""},
		{"null type first", `{"type":null,"type":"ok"}`, duplicateField},
		{"null type last", `{"type":"ok","type":null}`, duplicateField},
		{"null types alone", `{"type":null,"type":null}`, duplicateField + " " + missingField},
		{"null type", `{"type":null}`, missingField},
		{"unknown type first", `{"type":"x","type":"ok"}`, duplicateField + " " + unknownType},
		{"unknown type after a space", `{ "type":"x"}`, unknownType},
		{"type of the wrong type", `{"type":5}`, jsonType},
		{"type of the wrong type after the right one", `{ "type":"ok","type":{}}`, duplicateField + " " + jsonType},
		{"type inside another member", `{"x":{"type":"ok"}}`, missingField},
		{"type is an unfinished object", `{"type":{`, jsonSyntax + " " + jsonType},
		{"type is not UTF-8", "{\"type\":\"\xff\"}", notUTF8},
		{"no type and something after it", `{} {`, missingField + " " + jsonSyntax},
		{"something after it", `{"type":"ok"} x`, jsonSyntax},
		{"nothing", ``, jsonSyntax},
		{"NUL", "\x00", jsonSyntax},
		{"NUL at the end", "{\"type\":\"ok\"}\x00", jsonSyntax},
		{"NUL in a string", "{\"type\":\"ok\",\"x\":\"\x00\"}", jsonSyntax},
		{"NUL after an escape", "{\"type\":\"ok\",\"x\":\"\\n\x00\"}", jsonSyntax},
		{"array", `[{"type":"ok"}]`, jsonType},
		{"number out of range alone", `1e999`, jsonSyntax},
		{"string that is not UTF-8 alone", "\"\xc3\"", notUTF8},
		{"ends in an escape", `{"type":"ok","x":"\`, jsonSyntax},
		{"ends in a long escape", `{"type":"ok","x":"\u12`, jsonSyntax},
		{"ends in a surrogate", `{"type":"ok","x":"\ud800`, jsonSyntax},
		{"ends after a surrogate", `{"type":"ok","x":"\ud800\`, jsonSyntax},
		{"ends in a second surrogate", `{"type":"ok","x":"\ud800\udc`, jsonSyntax},
		{"surrogate and another escape", `{"type":"ok","x":"\ud800\n"}`, jsonSyntax},
		{"surrogate and a letter", `{"type":"ok","x":"\ud800\u0041"}`, jsonSyntax},
		{"surrogate and U+FFFD", `{"type":"ok","x":"\ud800\ufffd"}`, jsonSyntax},
		{"surrogates in the wrong order", `{"type":"ok","x":"\udc00\ud800"}`, jsonSyntax},
		{"U+FFFD", `{"type":"error","message":"\ufffd"}`, ""},
		{"last character", `{"type":"error","message":"\udbff\uDFFF"}`, ""},
		{"bytes that an escape must not complete", "{\"type\":\"ok\",\"x\":\"\xe2\\u0082\xac\"}", notUTF8},
		{"raw and escaped characters", "{\"type\":\"error\",\"message\":\"é\\u00e9\U0001f600\\ud83d\\ude00\"}", ""},
		{"127 levels", `{"type":"ok","x":` + nested(126) + `}`, ""},
		{"128 levels", `{"type":"ok","x":` + nested(127) + `}`, jsonSyntax},
		{"127 levels in front of the type", `{"x":` + nested(126) + `,"type":"ok"}`, ""},
		{"128 levels in front of the type", `{"x":` + nested(127) + `,"type":"ok"}`, jsonSyntax},
		{"127 levels where a string should be", `{"type":"error","message":` + nested(126) + `}`, jsonType},
		{"128 levels where a string should be", `{"type":"error","message":` + nested(127) + `}`, jsonSyntax + " " + jsonType},
		{"levels side by side", `{"type":"ok","x":[` + nested(125) + `,` + nested(125) + `]}`, ""},
		{"scalar at the bottom", `{"type":"ok","x":` + strings.Repeat("[", 126) + "1" + strings.Repeat("]", 126) + `}`, ""},
		{"127 arrays alone", nested(127), jsonType},
		{"128 arrays alone", nested(128), jsonSyntax},
		{"300 digits", `{"type":"ok","x":` + strings.Repeat("9", 300) + `}`, ""},
		{"309 digits", `{"type":"ok","x":` + strings.Repeat("9", 309) + `}`, jsonSyntax},
		{"309 digits with a fraction", `{"type":"ok","x":` + strings.Repeat("9", 309) + `.5}`, jsonSyntax},
		{"500 digits of a fraction", `{"type":"ok","x":0.` + strings.Repeat("9", 500) + `}`, ""},
		{"309 digits in a known member", `{"type":"cache_ok","request_id":` + strings.Repeat("9", 309) + `}`, jsonSyntax},
		{"308 digits in a known member", `{"type":"cache_ok","request_id":` + strings.Repeat("9", 308) + `}`, jsonType},
		{"leading zero in a known member", `{"type":"cache_ok","request_id":07}`, jsonSyntax},
		{"greatest number", `{"type":"cache_ok","request_id":18446744073709551615}`, ""},
		{"one more", `{"type":"cache_ok","request_id":18446744073709551616}`, jsonType},
		{"ten times more", `{"type":"cache_ok","request_id":184467440737095516150}`, jsonType},
		{"flags beyond their width", `{"type":"auth_ok","server_flags":65536}`, jsonType},
		{"flags of ten times their width", `{"type":"auth_ok","server_flags":655350}`, jsonType},
		{"number that ends the payload", `{"type":"cache_ok","request_id":1`, jsonSyntax},
		{"null then a number", `{"type":"cache_ok","request_id":null,"request_id":1}`, duplicateField},
		{"escaped duplicate", `{"type":"cache_ok","request_id":1,"request\u005fid":1}`, duplicateField},
		{"duplicate that is no JSON", `{"type":"cache_ok","request_id":1,"request_id":}`, duplicateField + " " + jsonSyntax},
		{"miss without the rest", `{"type":"cache_value","value":null}`, missingField},
		{"null value of a put", `{"type":"cache_put","tenant_id":"t","namespace":"n","cache":"c","key":"k","value":null}`, missingField},
		{"start with two offsets", `{"type":"subscribe",` + topic + `,"start":{"offset":1,"offset":1}}`, jsonType},
		{"start with an escaped offset", `{"type":"subscribe",` + topic + `,"start":{"\u006fffset":1}}`, ""},
		{"start with null and an offset", `{"type":"subscribe",` + topic + `,"start":{"x":null,"offset":1}}`, jsonType},
		{"start with a bad number", `{"type":"subscribe",` + topic + `,"start":{"offset":1e999}}`, jsonSyntax},
		{"start that is an array", `{"type":"subscribe",` + topic + `,"start":["latest"]}`, jsonType},
		{"start that is null", `{"type":"subscribe",` + topic + `,"start":null}`, ""},
		{"ack of the wrong type", `{"type":"publish",` + topic + `,"payload":"","ack":["none"]}`, jsonType},
		{"list with several faults", `{"type":"publish_batch",` + topic + `,"payloads":["AAA",5,{`, badBase64 + " " + jsonSyntax},
		{"list with null", `{"type":"publish_batch",` + topic + `,"payloads":[null]}`, jsonType},
		{"list with escapes", `{"type":"publish_batch",` + topic + `,"payloads":["AAAA","\u0041AA=","","A\u0041==","\u0041\/\/\/"]}`, ""},
		{"list with escaped nonsense", `{"type":"publish_batch",` + topic + `,"payloads":["AAAA","\u0041AA"]}`, badBase64},
		{"list with escaped bits left over", `{"type":"publish_batch",` + topic + `,"payloads":["A\u0042=="]}`, badBase64},
		{"base64 with escaped line breaks", `{"type":"event",` + topic + `,"payload":"AA\nAA\r\nA"}`, badBase64},
		{"base64 with four escaped line breaks", `{"type":"event",` + topic + `,"payload":"AAAA\n\n\n\n"}`, badBase64},
		{"base64 with raw line breaks", `{"type":"event",` + topic + `,"payload":"AAAA` + "\n\n\n\n" + `"}`, jsonSyntax},
		{"base64 with a padding of three", `{"type":"event",` + topic + `,"payload":"A==="}`, badBase64},
		{"base64 with a padding of four", `{"type":"event",` + topic + `,"payload":"===="}`, badBase64},
		{"base64 that is not UTF-8", `{"type":"event",` + topic + ",\"payload\":\"AA\xffA\"}", notUTF8},
		{"base64 with two paddings", `{"type":"event",` + topic + `,"payload":"AA==AA=="}`, badBase64},

		{"ext", `{"type":"auth","tenant_id":"t","token":"x","client_flags":63,"ext":["nobody","knows",""]}`, ""},
		{"ext without flags", `{"type":"auth","tenant_id":"t","token":"x","ext":["nobody"]}`, ""},
		{"empty ext", `{"type":"auth_ok","server_flags":63,"ext":[]}`, ""},
		{"null ext", `{"type":"auth_ok","server_flags":63,"ext":null}`, ""},
		{"ext of a number", `{"type":"auth_ok","server_flags":63,"ext":[1]}`, ""},
		{"ext of null", `{"type":"auth_ok","server_flags":63,"ext":[null]}`, ""},
		{"ext that is a string", `{"type":"auth_ok","server_flags":63,"ext":"nobody"}`, ""},
		{"ext that is not UTF-8", "{\"type\":\"auth_ok\",\"server_flags\":63,\"ext\":[\"\xff\"]}", notUTF8},
		{"ext twice", `{"type":"auth_ok","server_flags":63,"ext":[],"ext":5}`, ""},
		{"epoch", `{"type":"subscribe","tenant_id":"t","namespace":"n","stream":"s","start":{"offset":1},"epoch":18446744073709551615}`, ""},
		{"epoch above u64", `{"type":"subscribe","tenant_id":"t","namespace":"n","stream":"s","epoch":18446744073709551616}`, ""},
		{"epoch that is a string", `{"type":"subscribe","tenant_id":"t","namespace":"n","stream":"s","epoch":"1"}`, ""},
		{"epoch with a fraction", `{"type":"subscribe","tenant_id":"t","namespace":"n","stream":"s","epoch":1.0}`, ""},
		{"epoch below zero", `{"type":"subscribe","tenant_id":"t","namespace":"n","stream":"s","epoch":-1}`, ""},
		{"epoch twice", `{"type":"subscribe","tenant_id":"t","namespace":"n","stream":"s","epoch":null,"epoch":7}`, ""},
		{"since", `{"type":"subscribe","tenant_id":"t","namespace":"n","stream":"s","start":"earliest","since":18446744073709551615}`, ""},
		{"since that is a string", `{"type":"subscribe","tenant_id":"t","namespace":"n","stream":"s","since":"1"}`, ""},
		{"since twice", `{"type":"subscribe","tenant_id":"t","namespace":"n","stream":"s","since":1,"since":7}`, ""},
		{"epoch that is no JSON", `{"type":"subscribe","tenant_id":"t","namespace":"n","stream":"s","epoch":01}`, jsonSyntax},
		{"ext where nobody expects it", `{"type":"ok","ext":5,"ext":{}}`, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			checkMessage(t, []byte(c.payload))
			want := faults{}
			for class := range strings.FieldsSeq(c.classes) {
				want[class] = true
			}
			if _, got := slowParseMessage([]byte(c.payload)); !reflect.DeepEqual(got, want) {
				t.Errorf("the slow implementation finds %v, want %v", got, want)
			}
		})
	}
}

// TestMessageViews proves which parts of a message lie in the payload and which in the message's own memory.
func TestMessageViews(t *testing.T) {
	payload := []byte(`{"type":"cache_put","tenant_id":"plain","namespace":"\u0065scaped","cache":"c","key":"","value":"AAAA"}`)
	var m codec.Message
	if err := codec.ParseMessage(payload, &m); err != nil {
		t.Fatal(err)
	}
	if at := bytes.Index(payload, []byte("plain")); &m.Tenant[0] != &payload[at] {
		t.Error("a text without escapes was copied")
	}
	clear(payload)
	equal(t, "texts with the payload gone", fmt.Sprintf("%q %q %q", m.Tenant, m.Namespace, m.Value),
		fmt.Sprintf("%q %q %q", make([]byte, 5), "escaped", make([]byte, 3)))

	// Appending to a view writes over nothing else, in either memory.
	payload = []byte(`{"type":"publish_batch","tenant_id":"t","namespace":"\u006e","stream":"\u0073","payloads":["QUFB","QkJC"]}`)
	before := bytes.Clone(payload)
	if err := codec.ParseMessage(payload, &m); err != nil {
		t.Fatal(err)
	}
	want := decodedOf(&m)
	for _, view := range [][]byte{m.Tenant, m.Namespace, m.Stream, m.Items.Raw()} {
		_ = append(view, "overwritten"...)
	}
	for _, item := range m.Items.All() {
		_ = append(item, "overwritten"...)
	}
	equal(t, "message after appends to its views", decodedOf(&m), want)
	equalBytes(t, "payload after appends to views", payload, before)
}

// TestMessageReuse parses every ordered pair of messages into the same Message: nothing of the first may remain.
func TestMessageReuse(t *testing.T) {
	var payloads [][]byte
	for _, m := range slowMessages {
		d := decoded{Type: m.typ}
		fill(&d, func(f slowField) bool { return true })
		payloads = append(payloads, slowMessageFrame(d)[codec.HeaderLen:])
		d = decoded{Type: m.typ}
		fill(&d, func(f slowField) bool { return !f.optional })
		payloads = append(payloads, slowMessageFrame(d)[codec.HeaderLen:])
	}
	var m codec.Message
	for _, first := range payloads {
		for _, second := range payloads {
			for _, payload := range [][]byte{first, second} {
				if err := codec.ParseMessage(payload, &m); err != nil {
					t.Fatalf("%s: %v", payload, err)
				}
			}
			want, _ := slowParseMessage(second)
			equal(t, fmt.Sprintf("%s after %s", second, first), decodedOf(&m), want)
		}
	}
	m.Reset()
	equal(t, "message after Reset", decodedOf(&m), decoded{})
}

// fill gives values to the chosen members of a message.
func fill(d *decoded, chosen func(slowField) bool) {
	for _, f := range slowFields(d.Type) {
		if !chosen(f) {
			continue
		}
		switch f.kind {
		case "text":
			*d.text(f.name) = "some \"" + f.name + "\""
		case "base64", "base64-or-null":
			*d.text(f.name) = "bytes of " + f.name
			d.HasValue = f.name == "value"
		case "list":
			d.Items = []string{"a", "", "ccc"}
		case "u64":
			value, has := d.number(f.name)
			*value, *has = 77, true
		case "u16":
			value, has := d.flags(f.name)
			*value, *has = 63, true
		case "ack":
			d.Ack = codec.AckPerBatch
		case "reason":
			d.Reason = codec.CursorInFuture
		case "start":
			d.Start = codec.Start{Kind: codec.StartOffset, Offset: 7}
		case "ext":
			d.HasExt = true
		case "epoch":
			d.HasEpoch, d.Epoch = true, 1<<63
		case "since":
			d.HasSince, d.Since = true, 1<<62
		}
	}
}

func TestMessageGivesUpMemory(t *testing.T) {
	parse := func(m *codec.Message, size int) {
		t.Helper()
		frame := codec.AppendEvent(nil, "t", "n", "s", make([]byte, size), 0, false)
		if err := codec.ParseMessage(frame[codec.HeaderLen:], m); err != nil {
			t.Fatal(err)
		}
	}
	var m codec.Message
	parse(&m, 1000)
	small := codec.ScratchCap(&m)
	if small < 1000 || small > codec.KeepScratch {
		t.Fatalf("a small message holds %d bytes", small)
	}
	m.Reset()
	if got := codec.ScratchCap(&m); got != small {
		t.Errorf("Reset keeps %d of %d bytes", got, small)
	}
	parse(&m, codec.KeepScratch+1)
	m.Reset()
	if got := codec.ScratchCap(&m); got != 0 {
		t.Errorf("Reset keeps %d bytes of a large message", got)
	}
	// A message that follows a large one lets go too.
	parse(&m, 10*codec.KeepScratch)
	parse(&m, 10)
	if got := codec.ScratchCap(&m); got > codec.KeepScratch {
		t.Errorf("a small message after a large one holds %d bytes", got)
	}
}

func TestItems(t *testing.T) {
	var zero codec.Items
	checkItems(t, zero, nil)
	if zero.Raw() != nil {
		t.Error("the zero value has bytes")
	}
	if item, ok := new(codec.ItemCursor).Next(); ok || item != nil {
		t.Error("the zero cursor has an item")
	}

	for _, want := range [][]string{
		nil,
		{""},
		{"", "", ""},
		{"a"},
		{"a", "", "ccc", strings.Repeat("d", 1000)},
	} {
		list := codec.AppendItems([]byte("front"), byteSlices(want))
		equalBytes(t, "list", list, []byte("front"+slowList(want)))
		// Bytes after the list are not part of it.
		in := append(list[5:], "\x00\x00\x00\x01x"...)
		items, end, err := codec.ParseItems(in)
		if err != nil || end != len(in)-5 {
			t.Fatalf("%q: end %d of %d, %v", want, end, len(in), err)
		}
		checkItems(t, items, want)
		if &items.Raw()[0] != &in[0] {
			t.Error("the list was copied")
		}
	}

	items, _, err := codec.ParseItems([]byte(slowList([]string{"a", "b", "c"})))
	if err != nil {
		t.Fatal(err)
	}
	var seen strings.Builder
	for i, item := range items.All() {
		seen.WriteString(string(item))
		if i == 1 {
			break
		}
	}
	if seen.String() != "ab" {
		t.Errorf("saw %q until the break", seen.String())
	}
	// Cursors are independent of each other, and a copied one goes on from where it was.
	a := items.Cursor()
	a.Next()
	b := a
	a.Next()
	if item, _ := b.Next(); string(item) != "b" {
		t.Errorf("the copy goes on with %q", item)
	}
	if item, _ := a.Next(); string(item) != "c" {
		t.Errorf("the original goes on with %q", item)
	}
}

func TestRewrite(t *testing.T) {
	lists := [][]string{nil, {""}, {"hello", ""}, {strings.Repeat("x", 300)}}
	for _, items := range lists {
		for _, trailing := range []string{"", "\x00", "\x00\x00\x00\x01z"} {
			for _, name := range []string{"", "t", "tenant"} {
				for _, acked := range []bool{false, true} {
					body := slowPublishBody(name, name, name, items)
					frame := slowFrame(codec.LayoutPublish, body+trailing)
					prefix := 0
					if acked {
						frame, prefix = slowFrame(codec.LayoutPublishAcked, big(8, 7)+big(1, 1)+body+trailing), 9
					}
					batch, err := codec.ParsePublishBatch(frame[codec.HeaderLen+prefix:])
					if err != nil {
						t.Fatal(err)
					}
					at := codec.HeaderLen + prefix
					checkRewrite(t, frame, at+batch.CountAt, at+batch.End, items)

					// A frame that is read into a larger buffer has capacity after it; the event frame must not.
					buf := append(make([]byte, 0, len(frame)+100), frame...)
					checkRewrite(t, buf, at+batch.CountAt, at+batch.End, items)
				}
			}
		}
	}
}

func TestAppendEventPart(t *testing.T) {
	items := []string{"a", "", "ccc", strings.Repeat("d", 100), "e"}
	list, _, err := codec.ParseItems([]byte(slowList(items)))
	if err != nil {
		t.Fatal(err)
	}
	// Where each item begins in the region, and where the last one ends.
	bounds := []int{0}
	for _, item := range list.All() {
		bounds = append(bounds, bounds[len(bounds)-1]+4+len(item))
	}
	region := list.Raw()[4:]
	for _, flags := range eventLayouts {
		for from := range len(items) + 1 {
			for to := from; to <= len(items); to++ {
				const subscription, offset = 5, math.MaxUint64 - 10
				want := slowEventFrame(flags, subscription, offset+uint64(from), items[from:to])
				got := codec.AppendEventPart([]byte("x"), flags, subscription, offset+uint64(from), to-from, region[bounds[from]:bounds[to]])
				equalBytes(t, "part", got[1:], want)

				head := codec.AppendEventHead(nil, flags, subscription, offset+uint64(from), 4+bounds[to]-bounds[from])
				if len(head) > codec.EventHeadLen || (len(head) == codec.EventHeadLen) != (flags == codec.LayoutEventOffsets) {
					t.Errorf("%#04x: a head has %d bytes, at most %d were promised", uint16(flags), len(head), codec.EventHeadLen)
				}
				equalBytes(t, "head and list", append(head, slowList(items[from:to])...), want)
			}
		}
		// Merging: two regions after one head.
		merged := append(bytes.Clone(region), region...)
		equalBytes(t, "merged", codec.AppendEventPart(nil, flags, 1, 2, 2*len(items), merged),
			slowEventFrame(flags, 1, 2, append(append([]string{}, items...), items...)))
	}
}

func TestAckTextIsCut(t *testing.T) {
	for _, c := range []struct {
		text string
		want int
	}{
		{"", 0},
		{strings.Repeat("a", 511), 511},
		{strings.Repeat("a", 512), 512},
		{strings.Repeat("a", 513), 512},
		{strings.Repeat("a", 511) + "é", 511},
		{strings.Repeat("a", 510) + "éé", 512},
		{strings.Repeat("a", 510) + "€", 510},
		{strings.Repeat("a", 511) + "€", 511},
		{strings.Repeat("a", 509) + "€€", 512},
		{strings.Repeat("a", 508) + "😀a", 512},
		{strings.Repeat("a", 509) + "😀", 509},
		{strings.Repeat("a", 510) + "😀", 510},
		{strings.Repeat("a", 511) + "😀", 511},
		{strings.Repeat("😀", 200), 512},
		{strings.Repeat("€", 1<<20), 510},
	} {
		frame := codec.AppendPublishAckError([]byte("x"), 9, c.text)[1:]
		a, err := codec.ParsePublishAck(frame[codec.HeaderLen:])
		if err != nil || len(a.Message) != c.want || !strings.HasPrefix(c.text, string(a.Message)) {
			t.Errorf("%d bytes were cut to %d (%v), want %d", len(c.text), len(a.Message), err, c.want)
		}
		equalBytes(t, "frame", frame, slowAckErrorFrame(9, c.text))
	}
}

// itemsOf returns a list with n bytes of items in all, which share their memory.
func itemsOf(n uint64) [][]byte {
	chunk := make([]byte, 1<<20)
	var items [][]byte
	for n > uint64(len(chunk)) {
		items = append(items, chunk)
		n -= uint64(len(chunk))
	}
	return append(items, chunk[:n])
}

func TestPublishBatchLen(t *testing.T) {
	long := strings.Repeat("n", math.MaxUint16)
	for _, c := range []struct {
		name                      string
		tenant, namespace, stream string
		items                     [][]byte
		want                      int
		err                       error
	}{
		{"empty", "", "", "", nil, 10, nil},
		{"short", "t1", "default", "demo", [][]byte{[]byte("hello"), {}}, 36, nil},
		{"longest names", long, long, long, nil, 10 + 3*math.MaxUint16, nil},
		{"long tenant", long + "n", "", "", nil, 0, codec.ErrNameTooLong},
		{"long namespace", "", long + "n", "", nil, 0, codec.ErrNameTooLong},
		{"long stream", "", "", long + "n", nil, 0, codec.ErrNameTooLong},
		{"long name and large batch", "", "", long + "n", itemsOf(1 << 32), 0, codec.ErrNameTooLong},
		// The prefix of an acknowledged batch has to fit too.
		{"largest", "t", "n", "s", largest("tns", 0), maxPayload - 9, nil},
		{"one byte more", "t", "n", "s", largest("tns", 1), 0, codec.ErrBatchTooLarge},
		{"ten bytes more", "t", "n", "s", largest("tns", 10), 0, codec.ErrBatchTooLarge},
		{"twice as much", "t", "n", "s", itemsOf(1 << 33), 0, codec.ErrBatchTooLarge},
		{"names alone are too much", long, long, long, largest("", 0), 0, codec.ErrBatchTooLarge},
	} {
		t.Run(c.name, func(t *testing.T) {
			n, err := codec.PublishBatchLen(c.tenant, c.namespace, c.stream, c.items)
			if n != c.want || !errors.Is(err, c.err) {
				t.Errorf("%d, %v, want %d, %v", n, err, c.want, c.err)
			}
		})
	}
}

// largest returns the largest list that goes with the names, and more bytes.
func largest(names string, more int) [][]byte {
	room := maxPayload - 9 - 6 - len(names) - 4
	n := room
	for {
		items := itemsOf(uint64(n))
		over := n + 4*len(items) - room
		if over <= 0 {
			last := len(items) - 1
			items[last] = items[last][:len(items[last])-over+more]
			return items
		}
		n -= over
	}
}

func TestEncodersPanic(t *testing.T) {
	long := strings.Repeat("n", math.MaxUint16+1)
	large := itemsOf(1 << 32)
	above := uint64(1) << 32 // which is 0 as an int of 32 bits
	panics := map[string]func(){
		"negative length":         func() { codec.AppendHeader(nil, 0, -1) },
		"long tenant":             func() { codec.AppendPublishBatch(nil, long, "", "", nil) },
		"long namespace":          func() { codec.AppendPublishBatch(nil, "", long, "", nil) },
		"long stream":             func() { codec.AppendPublishBatchAcked(nil, 1, codec.AckPerBatch, "", "", long, nil) },
		"large batch":             func() { codec.AppendPublishBatch(nil, "", "", "", large) },
		"large acked batch":       func() { codec.AppendPublishBatchAcked(nil, 1, codec.AckPerBatch, "", "", "", large) },
		"acked batch without ack": func() { codec.AppendPublishBatchAcked(nil, 1, codec.AckNone, "", "", "", nil) },
		"acked batch, unset ack":  func() { codec.AppendPublishBatchAcked(nil, 1, codec.AckUnset, "", "", "", nil) },
		"large event batch":       func() { codec.AppendEventBatch(nil, codec.LayoutShared, 0, 0, large) },
		"event list that is fine without its head": func() {
			codec.AppendEventHead(nil, codec.LayoutEventOffsets, 0, 0, maxPayload-15)
		},
		"event list of the largest int":   func() { codec.AppendEventHead(nil, codec.LayoutEvent, 0, 0, math.MaxInt) },
		"event list of a negative length": func() { codec.AppendEventHead(nil, codec.LayoutShared, 0, 0, -1) },
		"offset without space for it": func() {
			frame := slowFrame(codec.LayoutPublish, slowPublishBody("", "", "", nil))
			codec.RewriteSharedOffsets(frame, 18, len(frame), 0)
		},
	}
	if strconv.IntSize > 32 {
		panics["length of 33 bits"] = func() { codec.AppendHeader(nil, 0, int(above)) }
		panics["large event part"] = func() { codec.AppendEventHead(nil, codec.LayoutShared, 0, 0, int(above)) }
	}
	for name, f := range panics {
		t.Run(name, func(t *testing.T) {
			defer func() {
				if recover() == nil {
					t.Error("no panic")
				}
			}()
			f()
		})
	}
	// One byte less is fine.
	codec.AppendHeader(nil, 0, maxPayload)
	codec.AppendEventHead(nil, codec.LayoutEventOffsets, 0, 0, maxPayload-16)
}

func TestTexts(t *testing.T) {
	for _, c := range []struct{ got, want string }{
		{string(codec.AppendStreamNotFound([]byte("> "), []byte("t"), []byte("n"), []byte("s"))), "> stream not found: tenant=t namespace=n stream=s"},
		{string(codec.AppendCacheScopeNotFound([]byte("> "), []byte("t"), []byte("n"), []byte("c"))), "> cache scope not found: t/n/c"},
	} {
		if c.got != c.want {
			t.Errorf("%q, want %q", c.got, c.want)
		}
	}
}

func TestRefusals(t *testing.T) {
	type key struct {
		text string
		form codec.Form
	}
	seen := map[key]codec.Consequence{}
	for _, r := range codec.Refusals() {
		if got := codec.CodeOf(r.Text); r.Form != codec.FormNone && r.Form != codec.FormCursorError && (got != r.Code || got == codec.CodeUnknown) {
			t.Errorf("%q has code %q, want %q", r.Text, got, r.Code)
		}
		if (r.Text == "") != (r.Form == codec.FormNone) || r.When == "" || r.Stream == "" {
			t.Errorf("incomplete: %+v", r)
		}
		k := key{r.Text, r.Form}
		if _, twice := seen[k]; twice && r.Form != codec.FormNone {
			t.Errorf("%q as %s stands there twice", r.Text, r.Form)
		}
		seen[k] = r.Stream
	}
	for limit, want := range []string{"", "a", "a", "a\u00e9", "a\u00e9", "a\u00e9", "a\u00e9", "a\u00e9\U0001d11e", "a\u00e9\U0001d11e"} {
		if got := codec.CutText("a\u00e9\U0001d11e", limit); got != want {
			t.Errorf("cut at %d: %q, want %q", limit, got, want)
		}
	}
}

func TestCodeOf(t *testing.T) {
	for text, want := range map[string]codec.Code{
		"":          codec.CodeUnknown,
		"forbidden": codec.CodeForbidden,
		"Forbidden": codec.CodeUnknown,
		"stream not found: tenant=t1 namespace=default stream=auth failed": codec.CodeNotFound,
		"stream not found":               codec.CodeNotFound,
		"stream not founded":             codec.CodeUnknown,
		"cache scope not found: a/b/c":   codec.CodeNotFound,
		"limit reached: streams (10)":    codec.CodeLimit,
		"limit reached: publishes":       codec.CodeLimit,
		"limit reached":                  codec.CodeUnknown,
		"publish admission timed out":    codec.CodeOverloaded,
		"server overloaded":              codec.CodeOverloaded,
		"publish admission closed":       codec.CodeClosing,
		"REASON requested=N available=N": codec.CodeUnknown,
	} {
		if got := codec.CodeOf(text); got != want {
			t.Errorf("%q has code %q, want %q", text, got, want)
		}
	}
	for _, c := range codec.Codes() {
		want := c == codec.CodeLimit || c == codec.CodeOverloaded || c == codec.CodeClosing
		if c.Retryable() != want || c.Meaning() == "" {
			t.Errorf("%q: retryable %v, meaning %q", c, c.Retryable(), c.Meaning())
		}
	}
	if codec.CodeUnknown.Retryable() || codec.CodeUnknown.Meaning() != "" {
		t.Error("an unknown code has properties")
	}
}
