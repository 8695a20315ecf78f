package conformance

import (
	"crypto/ed25519"
	"encoding/json"
	"slices"
	"strings"
	"testing"
)

func goodFixture(t *testing.T) map[string]any {
	t.Helper()
	_, key, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	text, err := EncodeKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return map[string]any{
		"tenant": "t1", "namespace": "default", "stream": "demo", "other_stream": "other", "cache": "primary",
		"signing_key": text, "kid": "k1",
	}
}

func TestParseFixture(t *testing.T) {
	f, err := ParseFixture(mustJSON(goodFixture(t)))
	if err != nil {
		t.Fatal(err)
	}
	if f.MaxFrameBytes != 16<<20 || f.MaxStreams != 1024 || f.key == nil {
		t.Errorf("defaults are missing: %+v", f)
	}
}

func TestParseFixtureProblems(t *testing.T) {
	for _, tc := range []struct {
		name   string
		change func(map[string]any)
		want   []string
	}{
		{"unknown member", func(m map[string]any) { m["tennant"] = "t1" }, []string{`"tennant"`}},
		{"missing members", func(m map[string]any) { delete(m, "tenant"); delete(m, "kid") }, []string{`"tenant"`, `"kid"`}},
		{"one stream", func(m map[string]any) { m["other_stream"] = "demo" }, []string{"the same"}},
		{"no key", func(m map[string]any) { m["signing_key"] = "x" }, []string{`"signing_key"`, "PEM"}},
		{"no certificate", func(m map[string]any) { m["ca"] = "x" }, []string{`"ca"`}},
		{"negative", func(m map[string]any) { m["max_streams"] = -1 }, []string{`"max_streams"`}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			m := goodFixture(t)
			tc.change(m)
			_, err := ParseFixture(mustJSON(m))
			if err == nil {
				t.Fatal("accepted")
			}
			for _, want := range tc.want {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("%q does not say %s", err, want)
				}
			}
		})
	}
	if _, err := ParseFixture(append(mustJSON(goodFixture(t)), "{}"...)); err == nil {
		t.Error("accepted something after the object")
	}
}

// TestCases checks the list itself: ids are unique, every row of the checklist is there, and skipped.txt fits.
func TestCases(t *testing.T) {
	seen := make(map[string]bool)
	for _, c := range Cases() {
		if seen[c.ID] {
			t.Errorf("%s occurs twice", c.ID)
		}
		seen[c.ID] = true
	}
	for n := 1; n <= 60; n++ {
		number := "-" + string([]byte{byte('0' + n/10), byte('0' + n%10)})
		if !slices.ContainsFunc(Cases(), func(c Case) bool {
			_, rest, ok := strings.Cut(c.ID, number)
			return ok && !strings.HasPrefix(c.ID, "S") && len(rest) <= 1
		}) {
			t.Errorf("row %d of the checklist is missing", n)
		}
	}
	for _, f := range []Fixture{{}, {Reference: true}} {
		for _, long := range []bool{false, true} {
			if _, err := skipsFor(Cases(), &f, Options{Long: long}); err != nil {
				t.Error(err)
			}
		}
	}
	if _, err := skipsFor(Cases()[:1], &Fixture{}, Options{}); err == nil {
		t.Error("a line of skipped.txt without its case goes unnoticed")
	}
	if _, err := skipsFor(append(Cases(), Case{ID: "X"}), &Fixture{}, Options{}); err == nil {
		t.Error("a case that cannot run and is not listed goes unnoticed")
	}
	for _, s := range parseSkips(skippedText) {
		if s.reason == "" {
			t.Errorf("%s is skipped without a reason", s.id)
		}
	}
}

func TestDescribe(t *testing.T) {
	if got := short(strings.Repeat("x", 1000)); len(got) > 200 || !strings.Contains(got, "920 bytes") {
		t.Errorf("a long text is written as %s", got)
	}
	if !matches("ack 7 …", "ack 7 ok") || matches("ack 7 ok", "ack 7 okay") || matches("ack 7 …", "ack 8 ok") {
		t.Error("matches is wrong")
	}
	if got := cutText(strings.Repeat("é", 400)); len(got) != 512 {
		t.Errorf("a text is cut at %d bytes", len(got))
	}
	if got := cutText("x" + strings.Repeat("é", 400)); len(got) != 511 {
		t.Errorf("a text is cut at %d bytes", len(got))
	}
}

func TestForge(t *testing.T) {
	f, err := ParseFixture(mustJSON(goodFixture(t)))
	if err != nil {
		t.Fatal(err)
	}
	token := f.forge([]string{"cache.read:*"}, func(t *forgery) { t.header["alg"] = "none"; t.unsigned = true })
	if !strings.HasSuffix(token, ".") || strings.Count(token, ".") != 2 {
		t.Errorf("unsigned token %s", token)
	}
	if json.Valid([]byte(token)) {
		t.Error("a token is not JSON")
	}
}
