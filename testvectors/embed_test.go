package testvectors_test

import (
	"encoding/json"
	"os"
	"reflect"
	"regexp"
	"strings"
	"testing"

	"github.com/felix-mq/felix/testvectors"
)

// TestReadme keeps the two tables of README.md complete: every class of failure and every kind is there, and no other.
func TestReadme(t *testing.T) {
	readme, err := os.ReadFile("README.md")
	if err != nil {
		t.Fatal(err)
	}
	used := map[string]map[string]bool{"class": {}, "kind": {}}
	for _, v := range testvectors.Invalid() {
		used["class"][v.Class] = true
	}
	for _, v := range testvectors.Valid() {
		used["kind"][v.Kind] = true
	}
	row := regexp.MustCompile("(?m)^\\| `([a-z0-9_]+)`")
	for what, names := range used {
		_, section, ok := strings.Cut(string(readme), "<!-- table: "+what+" -->")
		if !ok {
			t.Fatalf("README.md has no table of each %s", what)
		}
		section, _, _ = strings.Cut(section, "\n#")
		documented := map[string]bool{}
		for _, m := range row.FindAllStringSubmatch(section, -1) {
			documented[m[1]] = true
		}
		if !reflect.DeepEqual(names, documented) {
			t.Errorf("%s: the vectors use %v, README.md documents %v", what, names, documented)
		}
	}
}

// TestCoverage names what must not get lost when vectors are edited.
func TestCoverage(t *testing.T) {
	canonical := map[string]int{}
	flags := map[uint16]int{}
	for _, v := range testvectors.Valid() {
		if v.Canonical {
			canonical[v.Kind]++
		}
		flags[v.Flags]++
		if v.Direction != testvectors.ClientToBroker && v.Direction != testvectors.BrokerToClient {
			t.Errorf("%s: direction %q", v.Name, v.Direction)
		}
		if v.Frame.Len()-12 > v.MaxFrame {
			t.Errorf("%s: a payload of %d bytes is above the limit", v.Name, v.Frame.Len()-12)
		}
	}
	if len(canonical) != 18+5+14 {
		t.Errorf("canonical vectors of %d kinds: %v, want 18 JSON messages, 5 binary kinds and 14 of extensions", len(canonical), canonical)
	}
	for _, layout := range []uint16{0x0000, 0x0001, 0x0009, 0x0010, 0x0002, 0x0022, 0x0004, 0x0024, 0x8000} {
		if flags[layout] == 0 {
			t.Errorf("no vector with the flags 0x%04x", layout)
		}
	}
	if len(flags) != 9 {
		t.Errorf("flags %v, want the eight layouts and that of extensions", flags)
	}
	if n := len(testvectors.Rewrites()); n == 0 {
		t.Error("no rewrites")
	}
}

func TestNotation(t *testing.T) {
	type byteStrings struct {
		B testvectors.Bytes
		T testvectors.Text
		I testvectors.Items
		S *testvectors.Start
	}
	for _, c := range []struct {
		name, json string
		want       string // everything that was read, one after the other
	}{
		{"hex", `{"B":"464C58"}`, "FLX"},
		{"empty", `{"B":""}`, ""},
		{"parts", `{"B":[{"hex":"46"},{"text":"é"},{"hex":"4c58","count":2}]}`, "FéLXLX"},
		{"text", `{"T":"a\u0000é"}`, "a\x00é"},
		{"text of parts", `{"T":[{"text":"é","count":3},{"text":"x"}]}`, "éééx"},
		{"items", `{"I":["46","",[{"hex":"4c","count":2}],{"item":"58","count":3}]}`, "F||LL|X|X|X"},
		{"no items", `{"I":[]}`, ""},
		{"keyword", `{"S":"latest"}`, "latest 0"},
		{"offset", `{"S":{"offset":"18446744073709551615"}}`, " 18446744073709551615"},
	} {
		t.Run(c.name, func(t *testing.T) {
			var v byteStrings
			if err := json.Unmarshal([]byte(c.json), &v); err != nil {
				t.Fatal(err)
			}
			got := string(v.B.Expand()) + string(v.T)
			var items []string
			for _, item := range v.I.Expand() {
				items = append(items, string(item))
			}
			got += strings.Join(items, "|")
			if v.S != nil {
				offset, err := json.Marshal(v.S.Offset)
				if err != nil {
					t.Fatal(err)
				}
				got += v.S.Keyword + " " + string(offset)
			}
			if got != c.want {
				t.Errorf("got %q, want %q", got, c.want)
			}
			if n := len(v.B.Expand()); n != v.B.Len() {
				t.Errorf("Len = %d, want %d", v.B.Len(), n)
			}
		})
	}
	for _, bad := range []string{
		`{"B":"4"}`, `{"B":"xx"}`, `{"B":5}`, `{"B":[{}]}`, `{"B":[{"hex":"46","text":"F"}]}`, `{"B":[{"hex":"46","count":0}]}`,
		`{"B":[{"hex":"46","times":2}]}`, `{"T":5}`, `{"I":"46"}`, `{"I":[{"item":"58","times":3}]}`, `{"S":{"position":"1"}}`, `{"S":5}`,
	} {
		var v byteStrings
		if err := json.Unmarshal([]byte(bad), &v); err == nil {
			t.Errorf("%s was read as %v", bad, v)
		}
	}
}
