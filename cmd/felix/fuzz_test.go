package main

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/felix-mq/felix/client"
)

func FuzzInspect(f *testing.F) {
	f.Add("eyJhbGciOiJFZERTQSJ9.eyJ0aWQiOiJ0NyIsInBlcm1zIjpbImEiXX0.c2ln")
	f.Add("..")
	f.Fuzz(func(_ *testing.T, token string) { _, _ = inspect(token) })
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
