package jsonscan

import (
	"encoding/json"
	"math/rand/v2"
	"strconv"
	"strings"
	"testing"
	"unicode/utf8"
)

// check compares Value with the standard library, which is laxer in three ways: it takes lone surrogates, bytes that
// are not UTF-8, and any depth.
func check(t *testing.T, text string) {
	t.Helper()
	b := []byte(text)
	l := Limits{Values: 1 << 30}
	end, fault := Value(b, Space(b, 0), MaxDepth, &l)
	whole := fault == None && Space(b, end) == len(b)
	valid := json.Valid(b)
	switch {
	case fault == LoneSurrogate || fault == NotUTF8 || fault == TooDeep:
		return
	case whole != valid:
		t.Fatalf("%q: %v at %d, the standard library says %v", text, fault, end, valid)
	case !whole:
		return
	case !utf8.Valid(b):
		t.Fatalf("%q is not UTF-8 and passes", text)
	}
	if b[Space(b, 0)] == '"' {
		var want string
		if err := json.Unmarshal(b, &want); err != nil {
			t.Fatal(err)
		}
		start := Space(b, 0)
		end, escaped, _ := String(b, start)
		s := b[start+1 : end-1]
		if got := string(Unescape(nil, s)); got != want || !escaped && string(s) != want {
			t.Fatalf("%q stands for %q, want %q", text, got, want)
		}
	}
	var number json.Number
	if json.Unmarshal(b, &number) == nil && number != "" && len(number) < 5000 {
		_, err := strconv.ParseFloat(string(number), 64)
		if _, fault := NumberInRange([]byte(number), 0); (fault == None) != (err == nil) {
			t.Fatalf("%s: %v, the standard library says %v", number, fault, err)
		}
	}
}

var samples = []string{
	``, ` `, `0`, `-0`, `-`, `01`, `1.`, `1.5`, `.5`, `1e`, `1e5`, `1E+5`, `1e-5`, `1e+`, `12345678901234567890`, `+1`,
	`1e308`, `1.7976931348623157e308`, `1.7976931348623158e308`, `1.7976931348623159e308`, `17976931348623158e292`,
	`17.976931348623158e307`, `0.00017976931348623159e312`, `1e309`, `-1e309`, `0e999999999999999999999`, `1e-999999999999`,
	`1e99999999999999999999999`, overflow, overflow + `.0`, `-` + overflow, strings.Repeat("9", 309), strings.Repeat("1", 309),
	overflow[:308] + `1.99999`, `0.` + strings.Repeat("0", 400) + `1e709`, `0.` + strings.Repeat("0", 400) + `1e710`,
	`1` + strings.Repeat("0", 400) + `e-92`, `1` + strings.Repeat("0", 400) + `e-91`,
	`true`, `tru`, `false`, `null`, `nul`, `nulll`, `[]`, `[ ]`, `[1,]`, `[,1]`, `[1 2]`, `[1`, `{}`, `{ }`, `{"a":1}`, `{"a" : 1 , "b":[]}`,
	`{"a":1,}`, `{,}`, `{"a"}`, `{"a":}`, `{1:1}`, `[}`, `{]`, `[[]`, `[]]`, `{"a":[}]`, `[{"a":1]`, `[[],{},[{}],{"":[]}]`,
	`""`, `"`, `"a`, `"abcdefgh"`, `"abcdefghi`, `"\`, `"\"`, `"\n\t\b\f\r\/\\\""`, `"\x"`, `"\u"`, `"\u00e9"`, `"\u00E9\u00zz"`, `"\u12"`,
	`"\ud83d\ude00"`, `"\ud83d"`, `"\ud83dx"`, `"\ude00\ud83d"`, `"\ud83d\n"`, `"abcdefg\u0041hijklmnop"`, "\"\x1f\"", "\"abcdefgh\x00\"", "\"\x7f\"",
	`"é"`, `"abcdefgé"`, `"ééééééééé"`, "\"\xff\"", "\"aaaaaaaaaa\xc3\"", "\"\xed\xa0\x80\"", "\"\U0001F600\"", "\x00", "1\x00",
	strings.Repeat("[", 128) + strings.Repeat("]", 128), strings.Repeat(`{"":`, 128) + "0" + strings.Repeat("}", 128),
	strings.Repeat(`[{"":`, 64) + "0" + strings.Repeat("}]", 64), "\t\r\n 1 \t\r\n", "\v1",
}

func TestValue(t *testing.T) {
	for _, text := range samples {
		check(t, text)
	}
}

func TestSpoiledValues(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	const letters = `{}[]",:\0123456789eE+-.truefalsn  udDcC8` + "\x00\x1f\x80\xff\xc3\xa9"
	for range 50_000 {
		b := []byte(samples[r.IntN(len(samples))])
		for range 1 + r.IntN(3) {
			at := r.IntN(len(b) + 1)
			switch c := letters[r.IntN(len(letters))]; {
			case r.IntN(2) == 0 || at == len(b):
				b = append(b[:at], append([]byte{c}, b[at:]...)...)
			case r.IntN(2) == 0:
				b[at] = c
			default:
				b = append(b[:at], b[at+1:]...)
			}
		}
		check(t, string(b))
	}
}

func TestBounds(t *testing.T) {
	for _, c := range []struct {
		text          string
		depth, values int
		want          Fault
	}{
		{`[[[]]]`, 3, 3, None},
		{`[[[]]]`, 2, 3, TooDeep},
		{`{"a":{}}`, 1, 9, TooDeep},
		{`0`, 0, 1, None},
		{`[]`, 0, 1, TooDeep},
		{`[0,0,0]`, 1, 4, None},
		{`[0,0,0]`, 1, 3, TooMany},
		{`{"a":0,"b":[]}`, 2, 3, None},
		{`{"a":0,"b":[]}`, 2, 2, TooMany},
		{strings.Repeat("[", 129) + strings.Repeat("]", 129), 1000, 1000, TooDeep},
		{strings.Repeat("[", 1<<20), 127, 1 << 30, TooDeep},
		{`1e400`, 0, 1, NumberRange},
	} {
		l := Limits{Values: c.values, Range: true}
		if _, got := Value([]byte(c.text), 0, c.depth, &l); got != c.want {
			t.Errorf("%.40s, depth %d, values %d: %v, want %v", c.text, c.depth, c.values, got, c.want)
		}
	}
}

func FuzzValue(f *testing.F) {
	for _, text := range samples {
		f.Add(text)
	}
	f.Fuzz(check)
}
