package auth

import (
	"os"
	"regexp"
	"strings"
	"testing"
	"time"
)

// TestProtocolExample verifies the token of docs/protocol/tokens.md with the key set that is shown there, and compares
// its parts with those of the page.
func TestProtocolExample(t *testing.T) {
	page, err := os.ReadFile("../docs/protocol/tokens.md")
	if err != nil {
		t.Fatal(err)
	}
	block := func(name string) string {
		m := regexp.MustCompile("(?m)^```" + name + "\n(.*)\n```$").FindSubmatch(page)
		if m == nil {
			t.Fatalf("the page has no block %q", name)
		}
		return string(m[1])
	}
	keys, err := ParseJWKS([]byte(block("json key set")))
	if err != nil {
		t.Fatal(err)
	}
	token := block("token")
	verifier := NewVerifier(StaticKeys{"acme": keys}, func() time.Time { return time.Unix(testNow, 0) })
	id, err := verifier.Verify(t.Context(), "acme", token)
	if err != nil {
		t.Fatal(err)
	}
	if !id.Allowed(ActionStreamPublish, KindStream, []byte("acme"), []byte("billing"), []byte("invoices")) {
		t.Error("the token does not allow what its page says")
	}
	parts := strings.Split(token, ".")
	for i, name := range []string{"json token header", "json token payload"} {
		if text, ok := decodeBase64(parts[i]); !ok || string(text) != block(name) {
			t.Errorf("%s: the token has %s, the page %s", name, text, block(name))
		}
	}
	if key := vectorSigner(t).Key(); key.Fingerprint() != keys[0].Fingerprint() {
		t.Error("the key of the page is not made of the seed that it names")
	}
}

// TestProtocolPatterns holds the table of patterns of docs/protocol/tokens.md against the matcher.
func TestProtocolPatterns(t *testing.T) {
	page, err := os.ReadFile("../docs/protocol/tokens.md")
	if err != nil {
		t.Fatal(err)
	}
	_, table, ok := strings.Cut(string(page), "| Pattern |")
	if !ok {
		t.Fatal("the page has no table of patterns")
	}
	cells := func(line string) (all []string) {
		for cell := range strings.SplitSeq(strings.Trim(line, "|"), "|") {
			all = append(all, strings.Trim(cell, " `"))
		}
		return all
	}
	rows := 0
	var resources []string
	for i, line := range strings.Split(table, "\n") {
		switch {
		case i == 0:
			resources = cells(line)
		case !strings.HasPrefix(line, "|"):
			if rows != 6 || len(resources) != 4 {
				t.Errorf("the table has %d rows and %d resources", rows, len(resources))
			}
			return
		case i > 1:
			rows++
			row := cells(line)
			for k, want := range row[1:] {
				if got := glob([]byte(row[0]), []byte(resources[k])); got != (want == "yes") {
					t.Errorf("%s on %s: %v, the page says %s", row[0], resources[k], got, want)
				}
			}
		}
	}
}
