package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"unicode"
	"unicode/utf16"
	"unicode/utf8"

	"github.com/spf13/cobra"
	"golang.org/x/term"
)

// format is the value of --output.
type format string

const (
	formatTable  format = "table"
	formatJSON   format = "json"
	formatNDJSON format = "ndjson"
	formatRaw    format = "raw"  // payloads as they are, where a command has payloads
	formatText   format = "text" // the same for people, a line each
)

// String implements pflag.Value.
func (f *format) String() string { return string(*f) }

// Set implements pflag.Value.
func (f *format) Set(s string) error {
	switch format(s) {
	case formatTable, formatJSON, formatNDJSON:
		*f = format(s)
		return nil
	default:
		return errors.New("want table, json or ndjson")
	}
}

// Type implements pflag.Value.
func (f *format) Type() string { return "format" }

func (f *format) bind(c *cobra.Command) {
	c.Flags().VarP(f, "output", "o", "table, json or ndjson")
	completeWords(c, "output", string(formatTable), string(formatJSON), string(formatNDJSON))
}

// payloadFormat is a format that may also be raw, or one more.
type payloadFormat struct {
	format
	more format // empty for none
}

func (f *payloadFormat) words() []string {
	words := []string{string(formatTable), string(formatJSON), string(formatNDJSON), string(formatRaw)}
	if f.more != "" {
		words = append(words, string(f.more))
	}
	return words
}

// Set implements pflag.Value.
func (f *payloadFormat) Set(s string) error {
	if !slices.Contains(f.words(), s) {
		return errors.New("want " + alternatives(f.words()))
	}
	f.format = format(s)
	return nil
}

func (f *payloadFormat) bind(c *cobra.Command, usage string) {
	c.Flags().VarP(f, "output", "o", alternatives(f.words())+usage)
	completeWords(c, "output", f.words()...)
}

// alternatives lists words with "or" in front of the last.
func alternatives(words []string) string {
	last := len(words) - 1
	return strings.Join(words[:last], ", ") + " or " + words[last]
}

// completeWords has the shell offer words for a flag. It panics if there is no such flag, a mistake in the source.
func completeWords(c *cobra.Command, flag string, words ...string) {
	if err := c.RegisterFlagCompletionFunc(flag, cobra.FixedCompletions(words, cobra.ShellCompDirectiveNoFileComp)); err != nil {
		panic(err)
	}
}

// printList prints a list: a table with tabs between its columns, one JSON array, or an object per line.
func printList[T any](w io.Writer, f format, items []T, header string, line func(T) string) error {
	switch f {
	case formatJSON:
		return printJSON(w, f, items)
	case formatNDJSON:
		for _, item := range items {
			if err := printJSON(w, f, item); err != nil {
				return err
			}
		}
		return nil
	default:
		t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
		fmt.Fprintln(t, header)
		for _, item := range items {
			fmt.Fprintln(t, line(item))
		}
		return asOutput(t.Flush())
	}
}

// printJSON prints one value, over several lines or, for ndjson, in one.
func printJSON(w io.Writer, f format, v any) error {
	var text bytes.Buffer
	e := json.NewEncoder(&text)
	e.SetEscapeHTML(false)
	if f == formatJSON {
		e.SetIndent("", "  ")
	}
	if err := e.Encode(v); err != nil {
		return err
	}
	_, err := w.Write(escapeJSON(text.Bytes()))
	return asOutput(err)
}

// escapeJSON escapes the characters of JSON strings that are not printable and that JSON itself leaves alone, such as
// marks that change the direction of text. The values stay the same.
func escapeJSON(text []byte) []byte {
	odd := func(r rune) bool { return r >= utf8.RuneSelf && !unicode.IsPrint(r) }
	if bytes.IndexFunc(text, odd) < 0 {
		return text
	}
	out := make([]byte, 0, len(text)+16)
	for _, r := range string(text) { // which is UTF-8: it has been encoded
		switch {
		case !odd(r):
			out = utf8.AppendRune(out, r)
		case r > 0xffff:
			high, low := utf16.EncodeRune(r)
			out = fmt.Appendf(out, `\u%04x\u%04x`, high, low)
		default:
			out = fmt.Appendf(out, `\u%04x`, r)
		}
	}
	return out
}

// jsonList prints values as they come: for json as one array, for ndjson one per line.
type jsonList struct {
	w      io.Writer
	format format
	n      int
}

func (l *jsonList) add(v any) error {
	if l.format == formatJSON {
		if _, err := io.WriteString(l.w, map[bool]string{true: "[\n", false: ","}[l.n == 0]); err != nil {
			return asOutput(err)
		}
	}
	l.n++
	return printJSON(l.w, formatNDJSON, v)
}

// end ends the array.
func (l *jsonList) end() error {
	if l.format != formatJSON {
		return nil
	}
	_, err := io.WriteString(l.w, map[bool]string{true: "[]\n", false: "]\n"}[l.n == 0])
	return asOutput(err)
}

// payload is an event's or a cache entry's bytes in JSON: text where they are text, else base64.
type payload struct {
	Text  *string `json:"payload,omitempty"`
	Bytes []byte  `json:"payload_base64,omitempty"`
}

func newPayload(b []byte) payload {
	if utf8.Valid(b) {
		s := string(b)
		return payload{Text: &s}
	}
	return payload{Bytes: b}
}

// printable is the payload in a table.
func (p payload) printable() string {
	if p.Text != nil {
		return printable([]byte(*p.Text))
	}
	return printable(p.Bytes)
}

// printable is a payload in a table: as it is, or quoted if it could do something else to a terminal than print.
func printable(b []byte) string {
	if s := string(b); isPrintable(s) {
		return s
	}
	return strconv.Quote(string(b))
}

// isTerminal reports whether w is a terminal.
func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}

// The colors that are used, as SGR parameters.
const (
	dim    = "2"
	red    = "31"
	green  = "32"
	yellow = "33"
)

// colored returns s in a color, if w is a terminal and NO_COLOR is not set (no-color.org).
func colored(w io.Writer, color, s string) string {
	if os.Getenv("NO_COLOR") != "" || !isTerminal(w) {
		return s
	}
	return "\x1b[" + color + "m" + s + "\x1b[0m"
}
