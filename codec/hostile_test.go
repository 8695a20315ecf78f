package codec_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/felix-mq/felix/codec"
)

// hostileSize is the size of the messages that a peer may send before it has authenticated, by default.
const hostileSize = 128 << 10

// hostile is a well-formed message that costs a parser the most for its size, in one of many ways.
type hostile struct {
	name    string
	payload string
}

// hostileMessages returns messages of nearly size bytes.
func hostileMessages(size int) []hostile {
	const head, tail = `{"type":"auth","tenant_id":"t","token":"x"`, `}`
	// Each list is the text before the repeated part, the part, and the text after it.
	fill := func(before, part, after string) string {
		n := (size - len(head) - len(tail) - len(before) - len(after)) / len(part)
		return before + strings.Repeat(part, n) + after
	}
	var out []hostile
	add := func(name, members string) { out = append(out, hostile{name, head + members + tail}) }
	nest := func(opening, closing string, depth int) string {
		return strings.Repeat(opening, depth) + strings.Repeat(closing, depth)
	}
	add("members", fill("", `,"":0`, ""))
	add("member names with escapes", fill("", `,"\n":0`, ""))
	add("nulls of a known member", fill(`,"x":[`, `null,`, `0]`))
	add("numbers", fill(`,"x":[`, `0,`, `0]`))
	add("numbers with exponents", fill(`,"x":[`, `1e9,`, `0]`))
	add("numbers that are hard to round", fill(`,"x":[`, `9007199254740993e-300,`, `0]`))
	add("long number", fill(`,"x":0.`, `1`, ``))
	add("long numbers", fill(`,"x":[`, strings.Repeat("1", 301)+`,`, `0]`))
	add("long exponents", fill(`,"x":[`, `0e`+strings.Repeat("0", 1000)+`,`, `0]`))
	add("strings", fill(`,"x":[`, `"",`, `0]`))
	add("long string", fill(`,"x":"`, `a`, `"`))
	add("long string not ASCII", fill(`,"x":"`, `é`, `"`))
	add("long string of 4-byte characters", fill(`,"x":"`, "\U0001F600", `"`))
	add("short escapes", fill(`,"x":"`, `\n`, `"`))
	add("unicode escapes", fill(`,"x":"`, `\u00e9`, `"`))
	add("surrogates", fill(`,"x":"`, `\ud83d\ude00`, `"`))
	add("strings with escapes", fill(`,"x":[`, `"\n",`, `0]`))
	add("nesting", fill(`,"x":[`, nest(`[`, `]`, 120)+`,`, `0]`))
	add("nested objects", fill(`,"x":[`, nest(`{"":`, `}`, 120)[:4*120]+"0"+strings.Repeat("}", 120)+`,`, `0]`))
	add("empty arrays", fill(`,"x":[`, `[],`, `0]`))
	add("empty objects", fill(`,"x":[`, `{},`, `0]`))
	add("space", fill("", ` `, ``))
	add("space between", fill(`,"x":[`, "0 , ", `0]`))
	add("literals", fill(`,"x":[`, "false,", `0]`))
	add("duplicates of an extension", fill("", `,"ext":0`, ""))
	add("extensions", fill(`,"ext":[`, `"",`, `0]`))
	add("extensions with escapes", fill(`,"ext":["`, `\u0067`, `"]`))
	add("token with escapes", fill(`,"token2":"","client_flags":0,"y":"`, `\u0061`, `"`))
	late := fill(`{"a":0`, `,"":0`, `,"type":"auth","tenant_id":"t","token":"x"}`)
	out = append(out, hostile{"type at the end", late})
	out = append(out, hostile{"escaped type", fill(`{"\u0074ype":"auth","tenant_id":"t","token":"x"`, `,"":0`, `}`)})
	topic := `"tenant_id":"t","namespace":"n","stream":"s",`
	out = append(out, hostile{"items", fill(`{"type":"publish_batch",`+topic+`"payloads":["AAAA"`, `,""`, `]}`)})
	out = append(out, hostile{"items with escapes", fill(`{"type":"publish_batch",`+topic+`"payloads":["AAAA"`, `,"\u0041AAA"`, `]}`)})
	return out
}

// TestHostileMessages has them parsed or refused for the number of their values, and for nothing else, and without
// memory for what is ignored.
func TestHostileMessages(t *testing.T) {
	refused := 0
	for _, h := range hostileMessages(hostileSize) {
		if len(h.payload) > hostileSize || len(h.payload) < hostileSize-2000 {
			t.Errorf("%s: %d bytes", h.name, len(h.payload))
		}
		var m codec.Message
		err := codec.ParseMessage([]byte(h.payload), &m)
		if err != nil {
			refused++
			if !strings.Contains(err.Error(), "ignored values at byte") || !errors.Is(err, codec.ErrSyntax) {
				t.Errorf("%s: %v", h.name, err)
			}
		}
		if n := codec.ScratchCap(&m); m.Type == codec.MsgAuth && n > 1024 {
			t.Errorf("%s: %d bytes for what is ignored", h.name, n)
		}
	}
	if refused == 0 {
		t.Error("none has too many values")
	}
}

// TestIgnoredValues counts what the bound counts: everything that the message does not have, at every depth.
func TestIgnoredValues(t *testing.T) {
	const most = codec.MaxIgnoredValues
	list := func(part string, n int) string { return strings.TrimSuffix(strings.Repeat(part+",", n), ",") }
	auth := func(members string) string { return `{"type":"auth","tenant_id":"t","token":"x",` + members + `}` }
	batch := func(payloads, more string) string {
		return `{"type":"publish_batch","tenant_id":"t","namespace":"n","stream":"s","payloads":[` + payloads + `]` + more + `}`
	}
	for _, c := range []struct {
		name, payload string
		ok            bool
	}{
		{"members", auth(list(`"a":0`, most)), true},
		{"a member too many", auth(list(`"a":0`, most+1)), false},
		{"elements", auth(`"a":[` + list(`0`, most-1) + `]`), true},
		{"an element too many", auth(`"a":[` + list(`0`, most) + `]`), false},
		{"members within", auth(`"a":{` + list(`"":{}`, most-1) + `}`), true},
		{"a member within too many", auth(`"a":{` + list(`"":{}`, most) + `}`), false},
		{"shared", auth(`"a":[` + list(`0`, most/2-1) + `],"b":[` + list(`0`, most/2-1) + `]`), true},
		{"shared and one too many", auth(`"a":[` + list(`0`, most/2-1) + `],"b":[` + list(`0`, most/2) + `]`), false},
		{"extensions", auth(`"ext":[` + list(`"x"`, most) + `]`), true},
		{"an extension too many", auth(`"ext":[` + list(`"x"`, most+1) + `]`), false},
		{"extensions of other types", auth(`"ext":[` + list(`0`, most+1) + `]`), false},
		{"items", batch(list(`""`, 3*most), ``), true},
		{"items and members", batch(list(`""`, 3*most), `,`+list(`"a":0`, most)), true},
		{"items and a member too many", batch(list(`""`, 3*most), `,`+list(`"a":0`, most+1)), false},
		{"items before the type", strings.Replace(batch(list(`""`, 3*most), `,"type":"publish_batch"`), `"type":"publish_batch",`, ``, 1), true},
		{"members before the type", `{` + list(`"a":0`, most) + `,"type":"auth","tenant_id":"t","token":"x"}`, true},
		{"a member too many before the type", `{` + list(`"a":0`, most+1) + `,"type":"auth","tenant_id":"t","token":"x"}`, false},
	} {
		var m codec.Message
		err := codec.ParseMessage([]byte(c.payload), &m)
		if c.ok && err != nil || !c.ok && !errors.Is(err, codec.ErrSyntax) {
			t.Errorf("%s: %v", c.name, err)
		}
		checkMessage(t, []byte(c.payload))
	}
}

func BenchmarkParseHostile(b *testing.B) {
	for _, h := range hostileMessages(hostileSize) {
		b.Run(h.name, func(b *testing.B) {
			payload := []byte(h.payload)
			var m codec.Message
			b.ReportAllocs()
			for b.Loop() {
				_ = codec.ParseMessage(payload, &m) // parsed or refused: see TestHostileMessages
			}
		})
	}
}
