// Package jsonscan checks JSON text in one pass and without memory of its own. It owns the grammar of RFC 8259 and the
// bounds on what nobody wants to read: how deep it may be nested, and how many values it may hold. The parsers of
// messages and of tokens share it.
//
// Every function takes the text and a position in it, reads each byte a constant number of times, and returns the
// position after what it has read. After a fault, the position is where the fault was found.
package jsonscan

import (
	"bytes"
	"encoding/binary"
	"math/bits"
	"strings"
	"unicode/utf16"
	"unicode/utf8"
)

// Fault says what is wrong with a text. The zero value is none.
type Fault uint8

// The faults.
const (
	None Fault = iota
	NoValue
	NoName
	NoColon
	NoCommaOrBrace
	NoCommaOrBracket
	OpenString
	ControlCharacter
	UnknownEscape
	MalformedEscape
	LoneSurrogate
	NotUTF8
	MalformedNumber
	NumberRange
	TooDeep
	TooMany
)

var texts = [...]string{
	None: "no fault", NoValue: "want a value", NoName: "want the name of a member", NoColon: "want a colon",
	NoCommaOrBrace: "want a comma or a brace", NoCommaOrBracket: "want a comma or a bracket",
	OpenString: "string is not closed", ControlCharacter: "control character in a string",
	UnknownEscape: "unknown escape", MalformedEscape: "malformed escape", LoneSurrogate: "lone surrogate",
	NotUTF8: "string is not UTF-8", MalformedNumber: "malformed number",
	NumberRange: "number beyond the range of a double", TooDeep: "nested too deep", TooMany: "too many ignored values",
}

// String returns the fault in words.
func (f Fault) String() string { return texts[f] }

// MaxDepth is the largest number of levels that [Limits] can allow.
const MaxDepth = 128

// Limits are the bounds on values that are read past. One Limits may serve many values, which then share Values.
type Limits struct {
	Values int  // how many values may still follow, those inside others included
	Range  bool // whether numbers must be in the range of a double
}

// Space returns the position after white space.
func Space(b []byte, i int) int {
	for i < len(b) && (b[i] == ' ' || b[i] == '\n' || b[i] == '\t' || b[i] == '\r') {
		i++
	}
	return i
}

const (
	ones   = 0x0101010101010101
	highs  = 0x8080808080808080
	quotes = '"' * ones
	slash  = '\\' * ones
	blanks = ' ' * ones
)

// String reads the string whose opening quote is at i. escaped reports whether it has escapes; without, what lies
// between the quotes is the string itself.
func String(b []byte, i int) (end int, escaped bool, fault Fault) {
	i++
	start := i
	var foreign uint64 // not zero if there are bytes beyond ASCII
	for {
		// Eight bytes at a time: is there a quote, a backslash or a control character? Borrows make false hits above a
		// true one only, so that the lowest hit is right.
		for i+8 <= len(b) {
			w := binary.LittleEndian.Uint64(b[i:])
			hit := ((w - blanks) | ((w ^ quotes) - ones) | ((w ^ slash) - ones)) &^ w & highs
			if hit != 0 {
				n := bits.TrailingZeros64(hit)
				foreign |= w & highs & (1<<n - 1)
				i += n / 8
				break
			}
			foreign |= w & highs
			i += 8
		}
		if i >= len(b) {
			return i, escaped, OpenString
		}
		switch c := b[i]; {
		case c == '"':
			if foreign != 0 && !utf8.Valid(b[start:i]) { // escapes are ASCII and stand for whole characters
				return start, escaped, NotUTF8
			}
			return i + 1, escaped, None
		case c == '\\':
			escaped = true
			for i < len(b) && b[i] == '\\' {
				if i, fault = escape(b, i+1); fault != None {
					return i, escaped, fault
				}
			}
		case c < ' ':
			return i, escaped, ControlCharacter
		default: // in the last bytes
			foreign |= uint64(c) & 0x80
			i++
		}
	}
}

// short holds what the escapes of one letter stand for.
var short = [256]byte{'"': '"', '\\': '\\', '/': '/', 'b': '\b', 'f': '\f', 'n': '\n', 'r': '\r', 't': '\t'}

// escape reads what follows a backslash.
func escape(b []byte, i int) (int, Fault) {
	if i < len(b) && short[b[i]] != 0 {
		return i + 1, None
	}
	if i >= len(b) || b[i] != 'u' {
		return i, UnknownEscape
	}
	r, ok := hex4(b, i+1)
	if !ok {
		return i, MalformedEscape
	}
	i += 5
	if !utf16.IsSurrogate(r) {
		return i, None
	}
	if i+1 >= len(b) || b[i] != '\\' || b[i+1] != 'u' {
		return i, LoneSurrogate
	}
	low, ok := hex4(b, i+2)
	if !ok || utf16.DecodeRune(r, low) == utf8.RuneError {
		return i, LoneSurrogate
	}
	return i + 6, None
}

// digit16 holds the values of hexadecimal digits, and 0xff for all else.
var digit16 = func() (t [256]uint8) {
	for c := range t {
		t[c] = 0xff
	}
	for i := range 10 {
		t['0'+i] = uint8(i)
	}
	for i := range 6 {
		t['a'+i], t['A'+i] = uint8(10+i), uint8(10+i)
	}
	return t
}()

func hex4(b []byte, i int) (rune, bool) {
	if len(b)-i < 4 {
		return 0, false
	}
	h0, h1, h2, h3 := digit16[b[i]], digit16[b[i+1]], digit16[b[i+2]], digit16[b[i+3]]
	return rune(h0)<<12 | rune(h1)<<8 | rune(h2)<<4 | rune(h3), h0|h1|h2|h3 < 16
}

// Unescape appends what s stands for, which lies between the quotes of a string that [String] has found good. It
// appends at most len(s) bytes.
func Unescape(dst, s []byte) []byte {
	for i := 0; i < len(s); {
		c := s[i]
		switch {
		case c != '\\':
			dst = append(dst, c)
			i++
		case s[i+1] != 'u':
			dst = append(dst, short[s[i+1]])
			i += 2
		default:
			r, _ := hex4(s, i+2)
			i += 6
			if utf16.IsSurrogate(r) {
				low, _ := hex4(s, i+2)
				r = utf16.DecodeRune(r, low)
				i += 6
			}
			dst = utf8.AppendRune(dst, r)
		}
	}
	return dst
}

// digits returns the position after the decimal digits at i.
func digits(b []byte, i int) int {
	for i+8 <= len(b) {
		w := binary.LittleEndian.Uint64(b[i:])
		if ((w^0x30*ones)|((w+0x06*ones)^0x30*ones))&(0xf0*ones) != 0 {
			break
		}
		i += 8
	}
	for i < len(b) && b[i]-'0' < 10 {
		i++
	}
	return i
}

// Number reads the number at i, as the grammar has it.
func Number(b []byte, i int) (int, Fault) {
	_, _, end, fault := number(b, i)
	return end, fault
}

// number also returns where the whole digits and where all digits of the number end.
func number(b []byte, i int) (point, e, end int, fault Fault) {
	if i < len(b) && b[i] == '-' {
		i++
	}
	start := i
	if i < len(b) && b[i] == '0' {
		i++
	} else if i = digits(b, i); i == start {
		return 0, 0, i, MalformedNumber
	}
	point = i
	if i < len(b) && b[i] == '.' {
		i++
		start = i
		if i = digits(b, i); i == start {
			return 0, 0, i, MalformedNumber
		}
	}
	e = i
	if i < len(b) && b[i]|0x20 == 'e' {
		i++
		if i < len(b) && (b[i] == '+' || b[i] == '-') {
			i++
		}
		start = i
		if i = digits(b, i); i == start {
			return 0, 0, i, MalformedNumber
		}
	}
	return point, e, i, None
}

// alwaysInRange is a number of characters that cannot hold too large a number without an exponent.
const alwaysInRange = 300

// NumberInRange is [Number] for numbers that a double can hold: the largest is the last that rounds to a finite one.
func NumberInRange(b []byte, i int) (int, Fault) {
	point, e, end, fault := number(b, i)
	if fault == None && (e < end || end-i > alwaysInRange) && !inRange(b[i:end], point-i, e-i) {
		return i, NumberRange
	}
	return end, fault
}

// overflow is 2^1024 - 2^970, the smallest number that rounds to infinity.
const overflow = "17976931348623158079372897140530341507993413271003782693617377898044496829276475094664901797758720" +
	"7096330286416692887910946555547851940402630657488671505820681908902000708383676273854845817711531" +
	"7644757302700698555713669596228429148198608349364752927190741684443655107043427115596995080930428" +
	"80177904174497792"

// inRange reports whether the well-formed number is less than overflow in magnitude. Its digits end at end, the whole
// ones at point.
func inRange(num []byte, point, end int) bool {
	first := 0 // digit that is not 0
	for first < end && (num[first] == '0' || num[first] == '.' || num[first] == '-') {
		first++
	}
	if first == end {
		return true
	}
	magnitude := point - first // how many digits stand before the point
	if first > point {
		magnitude++
	}
	if end < len(num) {
		magnitude += exponentOf(num[end+1:])
	}
	if magnitude != len(overflow) {
		return magnitude < len(overflow)
	}
	rest := overflow
	for _, c := range num[first:end] {
		switch {
		case c == '.':
		case rest == "":
			return false
		case c != rest[0]:
			return c < rest[0]
		default:
			rest = rest[1:]
		}
	}
	return strings.Trim(rest, "0") != ""
}

// exponentOf returns the exponent, cut to what no number of digits in memory makes up for.
func exponentOf(s []byte) int {
	const enough = 1 << 40
	negative := s[0] == '-'
	if negative || s[0] == '+' {
		s = s[1:]
	}
	e := int64(0)
	for _, c := range bytes.TrimLeft(s, "0") {
		if e = e*10 + int64(c-'0'); e > enough {
			e = enough
			break
		}
	}
	if negative {
		e = -e
	}
	return int(max(min(e, 1<<30), -1<<30))
}

// Value reads past the value at i, which may open at most depth levels of arrays and objects, and checks all of it.
func Value(b []byte, i, depth int, l *Limits) (int, Fault) {
	depth = min(depth, MaxDepth)
	var objects [MaxDepth / 64]uint64 // a bit for each open level
	open := 0
	var fault Fault
value:
	if l.Values--; l.Values < 0 {
		return i, TooMany
	}
	if i >= len(b) {
		return i, NoValue
	}
	switch c := b[i]; c {
	case '"':
		if i, _, fault = String(b, i); fault != None {
			return i, fault
		}
	case '[', '{':
		if open >= depth {
			return i, TooDeep
		}
		i = Space(b, i+1)
		if i < len(b) && b[i] == c+2 { // an empty one
			i++
			break
		}
		bit := uint64(1) << (open & 63)
		objects[open>>6] &^= bit
		open++
		if c == '{' {
			objects[(open-1)>>6] |= bit
			goto name
		}
		goto value
	case 't':
		if i, fault = literal(b, i, "true"); fault != None {
			return i, fault
		}
	case 'f':
		if i, fault = literal(b, i, "false"); fault != None {
			return i, fault
		}
	case 'n':
		if i, fault = literal(b, i, "null"); fault != None {
			return i, fault
		}
	default:
		if c != '-' && c-'0' > 9 {
			return i, NoValue
		}
		if l.Range {
			i, fault = NumberInRange(b, i)
		} else {
			i, fault = Number(b, i)
		}
		if fault != None {
			return i, fault
		}
	}
	for open > 0 {
		i = Space(b, i)
		object := objects[(open-1)>>6]>>((open-1)&63)&1 != 0
		var c byte
		if i < len(b) {
			c = b[i]
		}
		switch {
		case c == ',':
			i = Space(b, i+1)
			if object {
				goto name
			}
			goto value
		case c == '}' && object, c == ']' && !object:
			i++
			open--
		case object:
			return i, NoCommaOrBrace
		default:
			return i, NoCommaOrBracket
		}
	}
	return i, None
name:
	if i >= len(b) || b[i] != '"' {
		return i, NoName
	}
	if i, _, fault = String(b, i); fault != None {
		return i, fault
	}
	i = Space(b, i)
	if i >= len(b) || b[i] != ':' {
		return i, NoColon
	}
	i = Space(b, i+1)
	goto value
}

func literal(b []byte, i int, word string) (int, Fault) {
	if len(b)-i < len(word) || string(b[i:i+len(word)]) != word {
		return i, NoValue
	}
	return i + len(word), None
}
