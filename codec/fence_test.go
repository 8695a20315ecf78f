package codec_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/felix-mq/felix/codec"
)

func TestParseFence(t *testing.T) {
	for text, want := range map[string]codec.Fence{
		"k.1":                              {ID: "k", Number: 1},
		"a.b.18446744073709551615":         {ID: "a.b", Number: 1<<64 - 1},
		strings.Repeat("x", 64) + ".0":     {ID: strings.Repeat("x", 64)},
		"":                                 {},
		".1":                               {},
		"k":                                {},
		"k.":                               {},
		"k.x":                              {},
		"k.-1":                             {},
		"k.18446744073709551616":           {},
		strings.Repeat("x", 65) + ".1":     {},
		strings.Repeat("x", 1<<16) + ".12": {},
	} {
		got, ok := codec.ParseFence([]byte(text))
		if ok != (want.ID != "") || ok && got != want {
			t.Errorf("%.80q: %+v, %v", text, got, ok)
		}
	}
}

// TestFenceWithEscapes reads fences that are written with escapes, with another such member after them.
func TestFenceWithEscapes(t *testing.T) {
	for _, id := range []string{"k", strings.Repeat("\x01", 64)} {
		want := codec.Fence{ID: id, Number: 1}
		var escaped strings.Builder
		for i := range len(id) {
			fmt.Fprintf(&escaped, "\\u%04x", id[i])
		}
		var m codec.Message
		text := `{"type":"auth","tenant_id":"t","token":"x","fence":"` + escaped.String() + `.1","\u007a\u007a\u007a\u007a":1}`
		if err := codec.ParseMessage([]byte(text), &m); err != nil {
			t.Fatal(err)
		}
		if got, ok := codec.ParseFence(m.Fence); !ok || got != want {
			t.Errorf("%s: %+v, %v", text, got, ok)
		}
	}
}

// FuzzParseFence parses what an encoder makes of what was parsed.
func FuzzParseFence(f *testing.F) {
	f.Add([]byte("k.1"))
	f.Add([]byte("..0"))
	f.Add([]byte(strings.Repeat("\x01", 64) + ".18446744073709551615"))
	f.Fuzz(func(t *testing.T, b []byte) {
		fence, ok := codec.ParseFence(b)
		if !ok {
			return
		}
		auth := codec.AppendAuthFenced(nil, "t", "x", 0, false, 0, fence)
		var m codec.Message
		if err := codec.ParseMessage(auth[codec.HeaderLen:], &m); err != nil {
			return // what is not UTF-8 cannot be written
		}
		if again, ok := codec.ParseFence(m.Fence); !ok || again != fence {
			t.Errorf("%+v becomes %+v", fence, again)
		}
	})
}
