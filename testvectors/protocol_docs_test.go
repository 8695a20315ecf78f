package testvectors_test

import (
	"encoding/hex"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/felix-mq/felix/codec"
	"github.com/felix-mq/felix/testvectors"
)

// example is a fenced block of docs/protocol that shows a vector: ```frame NAME holds the bytes of a frame, ```json
// NAME the payload of a JSON message.
type example struct {
	page, form, vector, text string
}

var fence = regexp.MustCompile("(?ms)^```(frame|json) (\\S+)\n(.*?)^```$")

func examples(t *testing.T) []example {
	t.Helper()
	pages, err := filepath.Glob("../docs/protocol/*.md")
	if err != nil || len(pages) == 0 {
		t.Fatalf("no pages in docs/protocol: %v", err)
	}
	var all []example
	for _, page := range pages {
		text, err := os.ReadFile(page)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range fence.FindAllStringSubmatch(string(text), -1) {
			all = append(all, example{filepath.Base(page), m[1], m[2], m[3]})
		}
	}
	return all
}

// frame returns the bytes that the block shows. Hex digits come first on a line; a comment follows two spaces.
func (e example) frame() ([]byte, error) {
	if e.form == "json" {
		payload := strings.TrimSuffix(e.text, "\n")
		return append(codec.AppendHeader(nil, codec.LayoutJSON, len(payload)), payload...), nil
	}
	var frame []byte
	for line := range strings.Lines(e.text) {
		digits, _, _ := strings.Cut(strings.TrimSuffix(line, "\n"), "  ")
		b, err := hex.DecodeString(strings.ReplaceAll(digits, " ", ""))
		if err != nil {
			return nil, err
		}
		frame = append(frame, b...)
	}
	return frame, nil
}

// TestProtocolExamples decodes each example of docs/protocol and encodes it again.
func TestProtocolExamples(t *testing.T) {
	vectors := map[string]testvectors.Vector{}
	for _, v := range testvectors.Valid() {
		vectors[v.Name] = v
	}
	type layout struct {
		kind  string
		flags uint16
	}
	shown := map[layout]bool{}
	for _, e := range examples(t) {
		t.Run(e.page+"/"+e.vector, func(t *testing.T) {
			v, ok := vectors[e.vector]
			if !ok {
				t.Fatal("there is no vector of this name")
			}
			frame, err := e.frame()
			if err != nil {
				t.Fatal(err)
			}
			compareBytes(t, "the page", frame, v.Frame.Expand())
			kind, values, err := decode(frame, v.MaxFrame, negotiated(v.Negotiated))
			if err != nil {
				t.Fatalf("decoding: %v", err)
			}
			compareValues(t, values, valuesOf(v.Fields, kind))
			compareBytes(t, "encoded", encode(t, nil, kind, v.Flags, v.Fields), v.CanonicalFrame.Expand())
			shown[layout{kind, v.Flags}] = true
		})
	}
	for _, v := range vectors {
		if l := (layout{v.Kind, v.Flags}); !shown[l] {
			shown[l] = true
			t.Errorf("docs/protocol has no example of %s with the flags %#04x", l.kind, l.flags)
		}
	}
}

// TestProtocolExamplesAreJudged shows that an example with one wrong byte would be found.
func TestProtocolExamplesAreJudged(t *testing.T) {
	good := example{form: "frame", text: "46 4c 58 31 00 01 00 00 00 00 00 0d  header\n7b 22 74 79 70 65 22 3a 22 6f 6b 22 7d  {\"type\":\"ok\"}\n"}
	frame, err := good.frame()
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := decode(frame, codec.DefaultMaxFrame, 0); err != nil {
		t.Fatal(err)
	}
	bad := good
	bad.text = strings.Replace(good.text, "0d", "0e", 1)
	if frame, err = bad.frame(); err != nil {
		t.Fatal(err)
	}
	if _, _, err := decode(frame, codec.DefaultMaxFrame, 0); err == nil {
		t.Error("a frame with a wrong length was decoded")
	}
}
