package main

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"slices"
	"strings"
)

// part is one stretch of bytes: hex or UTF-8 text, written count times (0 means once). The names of the members are
// part of the file format; see the package's README.
type part struct {
	Hex   string `json:"hex,omitempty"`
	Text  string `json:"text,omitempty"`
	Count int    `json:"count,omitempty"`
}

func (p part) unitLen() int { return len(p.Hex)/2 + len(p.Text) }

func (p part) times() int { return max(p.Count, 1) }

// blob is a byte string in run-length form, so that a frame of 16 MiB stays a few lines in the generator and in the
// file.
type blob []part

func hx(s string) blob { return blob{{Hex: strings.ReplaceAll(s, " ", "")}} }

func raw(s string) blob { return blob{{Hex: hex.EncodeToString([]byte(s))}} }

func text(s string) blob { return blob{{Text: s}} }

// repeat returns n copies of b, which has one part without a count of its own.
func repeat(b blob, n int) blob {
	if len(b) != 1 || b[0].Count != 0 {
		panic("repeat wants one plain part")
	}
	b = slices.Clone(b)
	b[0].Count = n
	return b
}

// cat joins blobs and merges neighbors of the same form.
func cat(blobs ...blob) blob {
	var out blob
	for _, b := range blobs {
		for _, p := range b {
			if p.unitLen() == 0 {
				continue
			}
			if n := len(out) - 1; n >= 0 && p.Count == 0 && out[n].Count == 0 && (p.Text == "") == (out[n].Text == "") {
				out[n].Hex += p.Hex
				out[n].Text += p.Text
				continue
			}
			out = append(out, p)
		}
	}
	return out
}

// asHex returns b with its texts turned into hex.
func (b blob) asHex() blob {
	out := slices.Clone(b)
	for i, p := range out {
		out[i].Hex, out[i].Text = p.Hex+hex.EncodeToString([]byte(p.Text)), ""
	}
	return out
}

func (b blob) len() int {
	n := 0
	for _, p := range b {
		n += p.unitLen() * p.times()
	}
	return n
}

func (b blob) bytes() []byte {
	out := make([]byte, 0, b.len())
	for _, p := range b {
		unit, err := hex.DecodeString(p.Hex)
		if err != nil {
			panic(err)
		}
		unit = append(unit, p.Text...)
		out = append(out, bytes.Repeat(unit, p.times())...)
	}
	return out
}

// MarshalJSON writes plain bytes as one hex string and everything else as an array of parts.
func (b blob) MarshalJSON() ([]byte, error) {
	if len(b) == 0 {
		return []byte(`""`), nil
	}
	if len(b) == 1 && b[0].Text == "" && b[0].Count == 0 {
		return plainJSON(b[0].Hex)
	}
	return plainJSON([]part(b))
}

// textValue is a text in the decoded fields: a JSON string, or parts if it is long.
type textValue blob

func (t textValue) MarshalJSON() ([]byte, error) {
	if len(t) == 0 {
		return []byte(`""`), nil
	}
	if len(t) == 1 && t[0].Count == 0 {
		return plainJSON(t[0].Text)
	}
	return plainJSON([]part(t))
}

// itemRun stands for Count equal items in a row in a list of items.
type itemRun struct {
	Item  blob `json:"item"`
	Count int  `json:"count"`
}

// fields is a JSON object whose members keep their order.
type fields []field

type field struct {
	name  string
	value any
}

func (f fields) MarshalJSON() ([]byte, error) {
	var out bytes.Buffer
	out.WriteByte('{')
	for i, m := range f {
		if i > 0 {
			out.WriteByte(',')
		}
		value, err := plainJSON(m.value)
		if err != nil {
			return nil, err
		}
		out.WriteString(`"` + m.name + `":`)
		out.Write(value)
	}
	out.WriteByte('}')
	return out.Bytes(), nil
}

// plainJSON is json.Marshal without the escaping of <, > and &, which would make frames hard to read.
func plainJSON(v any) ([]byte, error) {
	var out bytes.Buffer
	enc := json.NewEncoder(&out)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		return nil, err
	}
	return bytes.TrimSuffix(out.Bytes(), []byte("\n")), nil
}

// The three kinds of vectors and the file around them, in the order in which the members are written.

type vector struct {
	Name           string   `json:"name"`
	Note           string   `json:"note,omitempty"`
	Direction      string   `json:"direction"`
	Kind           string   `json:"kind"`
	Flags          uint16   `json:"flags"`
	MaxFrame       int      `json:"max_frame,omitempty"`
	Negotiated     []string `json:"negotiated,omitempty"`
	Canonical      bool     `json:"canonical"`
	Frame          blob     `json:"frame"`
	CanonicalFrame blob     `json:"canonical_frame,omitempty"`
	Fields         fields   `json:"fields"`
}

type invalidVector struct {
	Name      string  `json:"name"`
	Note      string  `json:"note,omitempty"`
	Class     string  `json:"class"`
	Flags     *uint16 `json:"flags,omitempty"`
	MaxFrame  int     `json:"max_frame,omitempty"`
	RequestID *u64    `json:"request_id,omitempty"`
	Frame     blob    `json:"frame"`
}

type rewrite struct {
	Name          string        `json:"name"`
	Note          string        `json:"note,omitempty"`
	Received      blob          `json:"received"`
	CountAt       int           `json:"count_at"`
	End           int           `json:"end"`
	BaseOffset    u64           `json:"base_offset"`
	Shared        blob          `json:"shared"`
	SharedOffsets blob          `json:"shared_offsets"`
	Parts         []rewritePart `json:"parts,omitempty"`

	items []blob
}

type rewritePart struct {
	From          int  `json:"from"`
	To            int  `json:"to"`
	Shared        blob `json:"shared"`
	SharedOffsets blob `json:"shared_offsets"`
}

type file struct {
	path    string
	About   string `json:"about"`
	Vectors any    `json:"vectors"`
}

// encode returns the text of the file.
func (f file) encode() ([]byte, error) {
	var out bytes.Buffer
	enc := json.NewEncoder(&out)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	err := enc.Encode(f)
	return out.Bytes(), err
}
