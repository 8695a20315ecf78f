package settings

import (
	"bytes"
	"fmt"
	"log/slog"
	"math"
	"strings"
	"testing"
)

type sizes struct {
	Small int        `env:"FELIX_SMALL" unit:"bytes" min:"-1" max:"2147483647" doc:"a size"`
	Large int64      `env:"FELIX_LARGE" unit:"bytes" min:"1024" max:"1125899906842624" doc:"a size"`
	Huge  uint64     `env:"FELIX_HUGE" unit:"bytes" min:"0" max:"9223372036854775807" doc:"a size"`
	Count int        `env:"FELIX_COUNT" min:"0" max:"2147483647" doc:"no size"`
	Level slog.Level `env:"FELIX_LEVEL" words:"debug,info,warn,error" doc:"a level"`
	Form  string     `env:"FELIX_FORM" words:"text,json" doc:"a form"`
	Path  string     `env:"FELIX_PATH" doc:"a text"`
}

// TestSizes gives each size by each source.
func TestSizes(t *testing.T) {
	for _, c := range []struct {
		text string
		want int64
	}{
		{"4096", 4096},
		{"4096B", 4096},
		{"64KiB", 64 << 10},
		{"64 KiB", 64 << 10},
		{"64kib", 64 << 10},
		{"512MiB", 512 << 20},
		{"1GB", 1e9},
		{"1500KB", 1500e3},
		{"2MB", 2e6},
		{"3GiB", 3 << 30},
		{"1TiB", 1 << 40},
		{"1TB", 1e12},
		{"1PiB", 1 << 50},
	} {
		for source, src := range map[string]Sources{
			"file":         {File: write(t, "large: "+c.text+"\n")},
			"environment":  {Environ: []string{"FELIX_LARGE=" + c.text}},
			"command line": {Assignments: []string{"large=" + c.text}},
		} {
			var s sizes
			if _, err := Load(src, &s); err != nil || s.Large != c.want {
				t.Errorf("%s from the %s is %d, %v; want %d", c.text, source, s.Large, err, c.want)
			}
		}
	}
	for text, want := range map[string]string{
		"large=512M":                    `"512M" is not a size: the units are B, KB, MB,`,
		"large=1.5GiB":                  `"1.5GiB" is not a whole number with a unit`,
		"large=MiB":                     `"MiB" is not a whole number`,
		"large=":                        `"" is not a whole number`,
		"large=2PiB":                    "is more than 1125899906842624",
		"large=1B":                      "is less than 1024",
		"large=8192PiB":                 `"8192PiB" is out of range`,
		"large=99999999999999999KB":     `"99999999999999999KB" is out of range`,
		"large=-9223372036854776KB":     `is out of range`,
		"large=99999999999999999999MiB": `is out of range`,
		"huge=-1KiB":                    "is not a whole number",
		"count=1KiB":                    `"1KiB" is not a whole number`,
	} {
		if _, err := Load(Sources{Assignments: []string{text}}, &sizes{}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", text, err, want)
		}
	}
}

func TestSizesRoundTrip(t *testing.T) {
	for _, n := range []int64{-1, 0, 1, 1023, 1024, 1025, 1200, 64 << 10, 1000000, 512 << 20, 3 << 30, math.MaxInt32, 1 << 50, math.MaxInt64} {
		text, err := plainSize(sizeText(n))
		if err != nil || text != fmt.Sprint(n) {
			t.Errorf("%d is written %s and read as %s, %v", n, sizeText(n), text, err)
		}
	}
	for n, want := range map[int64]string{0: "0", 1200: "1200", 64 << 10: "64KiB", 1536 << 10: "1536KiB", 512 << 20: "512MiB", 1 << 50: "1PiB"} {
		if got := sizeText(n); got != want {
			t.Errorf("%d is written %s, want %s", n, got, want)
		}
	}
	s := sizes{Small: -1, Large: 512 << 20, Huge: 1 << 40, Form: "text"}
	l, err := Load(Sources{Assignments: []string{"small=64KiB"}}, &s)
	if err != nil {
		t.Fatal(err)
	}
	var dump bytes.Buffer
	if err := l.Dump(&dump); err != nil {
		t.Fatal(err)
	}
	back := sizes{}
	if _, err := Load(Sources{File: write(t, dump.String())}, &back); err != nil || back != s {
		t.Errorf("read back %+v, %v; want %+v from\n%s", back, err, s, dump.String())
	}
	all := Describe(&s)
	if got := all[1].DefaultText() + ", " + all[1].Values(); got != "512MiB, 1KiB … 1PiB bytes" {
		t.Errorf("described as %s", got)
	}
}

// A variable that is set and empty, as a compose file sets it, counts only where the empty text is a value.
func TestEmptyVariables(t *testing.T) {
	s := sizes{Small: 1, Large: 2048, Form: "text", Level: slog.LevelWarn, Path: "x"}
	want := s
	want.Path = ""
	var environ []string
	for _, setting := range Describe(&s) {
		environ = append(environ, setting.Variables[0]+"=")
	}
	l, err := Load(Sources{Environ: environ}, &s)
	if err != nil || s != want {
		t.Errorf("read %+v, %v; want %+v", s, err, want)
	}
	for _, setting := range l.Settings {
		if want := setting.Key == "path"; want != (setting.Origin != "default") {
			t.Errorf("%s comes from %s", setting.Key, setting.Origin)
		}
	}
}

func TestLevelNamesWhatIsAllowed(t *testing.T) {
	var s sizes
	_, err := Load(Sources{Assignments: []string{"level=loud"}}, &s)
	if want := `"loud" is none of debug, info, warn, error`; err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("%v, want %s", err, want)
	}
	for text, want := range map[string]slog.Level{"debug": slog.LevelDebug, "WARN": slog.LevelWarn, "info+2": slog.LevelInfo + 2} {
		if _, err := Load(Sources{Assignments: []string{"level=" + text}}, &s); err != nil || s.Level != want {
			t.Errorf("%s is %v, %v", text, s.Level, err)
		}
	}
	if got := Describe(&sizes{})[4].DefaultText(); got != "info" {
		t.Errorf("the default is shown as %s", got)
	}
}

// FuzzSize reads any size, and never takes one for another.
func FuzzSize(f *testing.F) {
	f.Add("512MiB")
	f.Add("-1")
	f.Add("9223372036854775807B")
	f.Add("1 kb")
	f.Fuzz(func(t *testing.T, text string) {
		var s sizes
		if err := Describe(&s)[1].set([]string{text}, false); err != nil {
			return
		}
		again, err := plainSize(sizeText(s.Large))
		if err != nil || again != fmt.Sprint(s.Large) {
			t.Errorf("%q is %d, which is written %s and read as %s, %v", text, s.Large, sizeText(s.Large), again, err)
		}
	})
}

func TestParseSize(t *testing.T) {
	for text, want := range map[string]int64{"0": 0, "4096": 4096, "4KiB": 4096, "64 KB": 64000, "-1": -1, "1gib": 1 << 30} {
		if n, err := ParseSize(text); n != want || err != nil {
			t.Errorf("%q is read as %d, %v, want %d", text, n, err, want)
		}
	}
	for _, text := range []string{"", "large", "4K", "1.5KiB", "8EiB", "9223372036854775808", "9000PiB"} {
		if n, err := ParseSize(text); err == nil {
			t.Errorf("%q is read as %d", text, n)
		}
	}
}
