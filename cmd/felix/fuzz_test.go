package main

import (
	"bytes"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/felix-mq/felix/client"
	"github.com/felix-mq/felix/storage"
)

func FuzzInspect(f *testing.F) {
	f.Add("eyJhbGciOiJFZERTQSJ9.eyJ0aWQiOiJ0NyIsInBlcm1zIjpbImEiXX0.c2ln")
	f.Add("..")
	f.Fuzz(func(_ *testing.T, token string) { _, _ = inspect(token) })
}

// What is read of an export is written, and read again as it was.
func FuzzReadExportJSON(f *testing.F) {
	f.Add("{\"felix_export\":1,\"base_offset\":7,\"tail_offset\":9}\n{\"offset\":7,\"time_us\":-1,\"payload\":\"a\\u2028\"}\n{\"offset\":8,\"time_us\":2,\"payload_base64\":\"/w==\"}\n")
	f.Add("{}")
	read := func(text string) (base, tail uint64, all []storage.Record, err error) {
		err = readExportJSON(strings.NewReader(text), func(b, t uint64) error {
			base, tail = b, t
			return nil
		}, func(r storage.Record) error {
			all = append(all, r)
			return nil
		})
		return base, tail, all, err
	}
	f.Fuzz(func(t *testing.T, text string) {
		base, tail, all, err := read(text)
		if err != nil {
			return
		}
		var w strings.Builder
		if err := printJSON(&w, formatNDJSON, exportHead{exportVersion, base, tail}); err != nil {
			t.Fatal(err)
		}
		for _, r := range all {
			if err := printJSON(&w, formatNDJSON, exported{r.Offset, r.Time, newPayload(r.Payload)}); err != nil {
				t.Fatal(err)
			}
		}
		base2, tail2, again, err := read(w.String())
		if err != nil || base2 != base || tail2 != tail || !slices.EqualFunc(all, again, func(a, b storage.Record) bool {
			return a.Offset == b.Offset && a.Time == b.Time && bytes.Equal(a.Payload, b.Payload)
		}) {
			t.Errorf("%v is written as %s, and read as %v: %v", all, w.String(), again, err)
		}
	})
}

// What is a file of contexts is saved and read back as it was.
func FuzzContexts(f *testing.F) {
	f.Add("current: a\ncontexts:\n  a: {addr: 'x:1', token_file: t, insecure: true}\n")
	f.Add("contexts: 3")
	f.Add("")
	f.Setenv("XDG_CONFIG_HOME", f.TempDir())
	f.Setenv("HOME", f.TempDir())
	path, err := contextsPath()
	if err != nil {
		f.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, text string) {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		first, err := loadContexts()
		if err != nil {
			return
		}
		if err := first.save(); err != nil {
			t.Fatal(err)
		}
		second, err := loadContexts()
		if err != nil {
			t.Fatalf("%q is read, saved, and not read again: %v", text, err)
		}
		if first.Current != second.Current || len(first.Contexts) != len(second.Contexts) {
			t.Errorf("saved as %+v, read as %+v", first, second)
		}
	})
}

func FuzzPosition(f *testing.F) {
	f.Add("1:2\n")
	f.Add("18446744073709551616:0")
	f.Fuzz(func(t *testing.T, text string) {
		p, err := parsePosition(text)
		if err != nil {
			return
		}
		if again, err := parsePosition(formatPosition(p)); err != nil || again != p {
			t.Errorf("%+v is written and read as %+v: %v", p, again, err)
		}
	})
}

func TestPayloadsDoNotReachTheTerminal(t *testing.T) {
	for in, want := range map[string]string{
		"plain, ünïcode":  "plain, ünïcode",
		"\x1b[2Jgone":     `"\x1b[2Jgone"`,
		"a\nb":            `"a\nb"`,
		"\xff\xfe":        `"\xff\xfe"`,
		"right\u202eleft": `"right\u202eleft"`,
		"":                "",
	} {
		if got := printable([]byte(in)); got != want {
			t.Errorf("%q is printed as %s, want %s", in, got, want)
		}
	}
}

func TestGapsAreTold(t *testing.T) {
	for reason := client.GapUnknown; reason <= client.GapCorrupt+1; reason++ {
		if gapReason(reason) == "" {
			t.Errorf("no words for gap reason %d", reason)
		}
	}
}
