package settings

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/felix-mq/felix/ring"
)

type options struct {
	Size    int            `env:"FELIX_SIZE,FELIX_OLD_SIZE" unit:"bytes" min:"10" max:"100" doc:"a size"`
	Wait    time.Duration  `env:"FELIX_WAIT_MS" unit:"ms" min:"1ms" max:"1h" doc:"a wait"`
	Spin    time.Duration  `env:"FELIX_SPIN" doc:"another"`
	Window  uint64         `yaml:"receive_window" env:"FELIX_WINDOW" min:"5" doc:"a window"`
	Policy  ring.Overflow  `env:"FELIX_POLICY" words:"block,drop_new,drop_old" doc:"a policy"`
	Other   *ring.Overflow `yaml:"other" words:"block,drop_new,drop_old" doc:"a policy that may be absent"`
	On      bool           `env:"FELIX_ON" doc:"a switch"`
	Names   []string       `env:"FELIX_NAMES" doc:"names"`
	Bind    string         `env:"FELIX_BIND" is:"address" doc:"an address"`
	Token   string         `env:"FELIX_TOKEN" secret:"yes" doc:"a token"`
	Profile string         `env:"FELIX_PROFILE" words:"plain,fancy" doc:"a profile"`
	Inner   func()
}

func defaults() *options {
	return &options{Size: 50, Wait: time.Second, Window: 7, Policy: ring.DropOld, Names: []string{"a"}, Profile: "plain"}
}

var profiles = map[string]map[string]string{"fancy": {"size": "11", "wait_ms": "11", "receive_window": "11", "on": "true"}}

// write makes a file of text and returns its name.
func write(t *testing.T, text string) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "config.yml")
	if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}

func TestEachSourceWinsOverTheOneBefore(t *testing.T) {
	o := defaults()
	name := write(t, "profile: fancy\nwait_ms: 12\nreceive_window: 12\non: false\nold_thing: 1\n")
	l, err := Load(Sources{
		Profiles: profiles, File: name,
		Environ:       []string{"FELIX_WINDOW=13", "FELIX_OLD_SIZE=13", "FELIX_NAMES=x,y", "PATH=z", "FELIX_ON=", "FELIX_OLDER=1", "FELIX_SIZ=1"},
		Assignments:   []string{"size=14", "bind=:0"},
		WithoutEffect: []WithoutEffect{{"old_thing", "FELIX_OLD_THING", "it is old"}, {"", "FELIX_OLDER", "it is older"}},
	}, o)
	if err != nil {
		t.Fatal(err)
	}
	want := &options{
		Size: 14, Wait: 12 * time.Millisecond, Window: 13, Policy: ring.DropOld, Names: []string{"x", "y"}, Bind: ":0", Profile: "fancy",
	}
	if !reflect.DeepEqual(o, want) {
		t.Errorf("read %+v, want %+v", o, want)
	}
	origins := map[string]string{
		"size": "command line", "wait_ms": name + ":2", "receive_window": "environment FELIX_WINDOW", "on": name + ":4",
		"policy": "default", "profile": name + ":1",
	}
	for _, s := range l.Settings {
		if want, ok := origins[s.Key]; ok && s.Origin != want {
			t.Errorf("%s comes from %q, want %q", s.Key, s.Origin, want)
		}
	}
	if want := []Notice{{name + ":5", "old_thing", "it is old"}, {"environment", "FELIX_OLDER", "it is older"}}; !reflect.DeepEqual(l.Ignored, want) {
		t.Errorf("ignored %v, want %v", l.Ignored, want)
	}
	if want := []Notice{{"environment", "FELIX_SIZ", "no setting has this name; the nearest is FELIX_SIZE"}}; !reflect.DeepEqual(l.Unknown, want) {
		t.Errorf("unknown %v, want %v", l.Unknown, want)
	}
}

func TestValues(t *testing.T) {
	for _, c := range []struct {
		file string
		get  func(*options) any
		want any
	}{
		{"wait_ms: 2s", func(o *options) any { return o.Wait }, 2 * time.Second},
		{"spin: 100us", func(o *options) any { return o.Spin }, 100 * time.Microsecond},
		{"size: '42'", func(o *options) any { return o.Size }, 42},
		{"receive_window: 18446744073709551615", func(o *options) any { return o.Window }, uint64(1<<64 - 1)},
		{"policy: block", func(o *options) any { return o.Policy }, ring.Block},
		{"other: block", func(o *options) any { return *o.Other }, ring.Block},
		{"names: [x, y]", func(o *options) any { return o.Names }, []string{"x", "y"}},
		{"names: x,y", func(o *options) any { return o.Names }, []string{"x", "y"}},
		{"names: []", func(o *options) any { return len(o.Names) }, 0},
		{"token: 'null'", func(o *options) any { return o.Token }, "null"},
		{"bind: '[::1]:80'", func(o *options) any { return o.Bind }, "[::1]:80"},
		{"# nothing", func(o *options) any { return o.Size }, 50},
		{"", func(o *options) any { return o.Size }, 50},
	} {
		o := defaults()
		if _, err := Load(Sources{File: write(t, c.file)}, o); err != nil || !reflect.DeepEqual(c.get(o), c.want) {
			t.Errorf("%s: got %v, %v; want %v", c.file, c.get(o), err, c.want)
		}
	}
	o := defaults()
	o.Bind = ":1"
	if _, err := Load(Sources{Environ: []string{"FELIX_BIND="}}, o); err != nil || o.Bind != "" {
		t.Errorf("a text that is set and empty is %q, %v", o.Bind, err)
	}
}

// TestEveryProblemAtOnce gives one bad value of each kind by each source, and expects each with its place.
func TestEveryProblemAtOnce(t *testing.T) {
	name := write(t, `size: 101
wait_ms: soon
receive_windo: 7
policy: drop_nwe
on: maybe
names: [a, [b]]
size: 20
bind: localhost
token:
spin: {a: 1}
`)
	_, err := Load(Sources{
		File:        name,
		Environ:     []string{"FELIX_WINDOW=4", "FELIX_SIZE=many", "FELIX_TOKEN=\xff", "FELIX_WAIT_MS=9223372036854775807"},
		Assignments: []string{"on", "sizes=1", "receive_window=-1", "bind=h:70000", "size=999999999999999999999", "profile=fance", "names=a,,b"},
	}, defaults())
	if err == nil {
		t.Fatal("accepted")
	}
	want := []string{
		name + `:1: size: 101 is more than 100`,
		name + `:2: wait_ms: "soon" is neither a number of milliseconds nor a duration like 2s`,
		name + `:3: receive_windo: unknown key; the nearest is receive_window`,
		name + `:4: policy: "drop_nwe" is none of block, drop_new, drop_old; the nearest is drop_new`,
		name + `:5: on: "maybe" is neither true nor false`,
		name + `:6: names: want words in the list, not a list`,
		name + `:7: size: stands twice; first in line 1`,
		name + `:8: bind: "localhost" is not an address like 0.0.0.0:5000`,
		name + `:9: token: has no value`,
		name + `:10: spin: want a value, not keys and values`,
		`command line: on: want key=value`,
		`command line: sizes: unknown key; the nearest is size`,
		`environment: FELIX_SIZE: "many" is not a whole number`,
		`environment: FELIX_WAIT_MS: "9223372036854775807" milliseconds are out of range`,
		`environment: FELIX_WINDOW: 4 is less than 5`,
		`environment: FELIX_TOKEN: is not UTF-8`,
		`command line: size: "999999999999999999999" is out of range`,
		`command line: receive_window: "-1" is not a whole number`,
		`command line: names: an entry of the list is empty`,
		`command line: bind: "h:70000" has no port from 0 to 65535`,
		`command line: profile: "fance" is none of plain, fancy; the nearest is fancy`,
	}
	if got := err.Error(); got != strings.Join(want, "\n") {
		t.Errorf("got\n%s\nwant\n%s", got, strings.Join(want, "\n"))
	}
	if p, ok := errors.AsType[*PlaceError](err); !ok || p.Key != "size" || p.Where != name+":1" {
		t.Errorf("first problem %+v", p)
	}
}

func TestFilesThatAreNone(t *testing.T) {
	for text, want := range map[string]string{
		"[":                   "did not find",
		"- a\n":               "want keys and values, not a list",
		"a":                   "want keys and values, not a single value",
		"size: 20\n---\na: b": "only one document",
		"? [a]\n: b\n":        "a key must be a word",
		"a: &x 1\nsize: *x":   "aliases are not read",
		"size: [20]":          "size: want one value, not a list",
	} {
		name := write(t, text)
		if _, err := Load(Sources{File: name}, defaults()); err == nil || !strings.Contains(err.Error(), name) || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: got %v, want %q", text, err, want)
		}
	}
	if _, err := Load(Sources{File: filepath.Join(t.TempDir(), "none")}, defaults()); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("got %v", err)
	}
	name := write(t, "")
	if err := os.Truncate(name, MaxFileBytes+1); err != nil {
		t.Fatal(err)
	}
	if _, err := Load(Sources{File: name}, defaults()); err == nil || !strings.Contains(err.Error(), "more than") {
		t.Errorf("got %v", err)
	}
}

// TestDump writes what was read and reads it again.
func TestDump(t *testing.T) {
	o := defaults()
	l, err := Load(Sources{Environ: []string{"FELIX_BIND=:1", "FELIX_TOKEN=open sesame", "FELIX_NAMES=true,\n#,'"}, Assignments: []string{"spin=1500us", "other=block"}}, o)
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	if err := l.Dump(&out); err != nil {
		t.Fatal(err)
	}
	if strings.Contains(out.String(), "sesame") || !strings.Contains(out.String(), "# token: (secret) # environment FELIX_TOKEN") {
		t.Errorf("the secret is not left out: %s", &out)
	}
	for _, want := range []string{"size: 50 # default\n", "wait_ms: 1000 # default\n", "spin: 1.5ms # command line\n", "bind: \":1\" # environment FELIX_BIND\n"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("%q is not in\n%s", want, &out)
		}
	}
	back := new(options)
	if _, err := Load(Sources{File: write(t, out.String())}, back); err != nil {
		t.Fatalf("%v in\n%s", err, &out)
	}
	back.Token = o.Token
	if !reflect.DeepEqual(back, o) {
		t.Errorf("read back %+v, want %+v", back, o)
	}
}

// TestPrefix: the fields of a struct inside are settings with a prefix, from all sources.
func TestPrefix(t *testing.T) {
	type inner struct {
		Size *int64 `yaml:"size" unit:"bytes" min:"0" max:"10000" doc:"a size that may be absent"`
		Rate *int64 `yaml:"rate" min:"0" max:"9" doc:"a rate"`
	}
	var o struct {
		On   bool  `env:"FELIX_ON" doc:"a switch"`
		Each inner `prefix:"each_"`
	}
	l, err := Load(Sources{Environ: []string{"FELIX_EACH_SIZE=2KiB"}}, &o)
	if err != nil {
		t.Fatal(err)
	}
	if len(l.Settings) != 3 || l.Settings[2].Key != "each_rate" || o.Each.Size == nil || *o.Each.Size != 2048 || o.Each.Rate != nil {
		t.Errorf("%d settings, read %+v", len(l.Settings), o)
	}
	if _, err := Load(Sources{Assignments: []string{"each_rate=10"}}, &o); err == nil {
		t.Error("a value out of range is accepted")
	}
}

func TestDescribe(t *testing.T) {
	all := Describe(defaults())
	if len(all) != 11 {
		t.Fatalf("%d settings, want 11", len(all))
	}
	if s := all[1]; s.Key != "wait_ms" || s.Unit != "ms" || s.Default != "1000" || s.Doc != "a wait" || s.Variables[0] != "FELIX_WAIT_MS" {
		t.Errorf("got %+v", s)
	}
	if s := all[4]; s.Default != "drop_old" {
		t.Errorf("got %+v", s)
	}
}

// FuzzLoad reads any file: it neither panics nor lets a value out of its range, and what was read can be dumped and
// read again.
func FuzzLoad(f *testing.F) {
	for _, seed := range []string{"size: 20\nnames: [a, b]\n", "size: 101", "wait_ms: 2s\nprofile: fancy", "? [a]\n: b", "a: &x 1\nsize: *x", "[", "token: \"\\0\\n\"", "names: ['', x]", "---\n---\n", "bind: !!binary aGVsbG8="} {
		f.Add([]byte(seed), "FELIX_BIND=:1", "size=30")
	}
	name := filepath.Join(f.TempDir(), "fuzz.yml")
	back := filepath.Join(f.TempDir(), "back.yml")
	f.Fuzz(func(t *testing.T, text []byte, variable, assignment string) {
		if err := os.WriteFile(name, text, 0o600); err != nil {
			t.Fatal(err)
		}
		o := defaults()
		l, err := Load(Sources{Profiles: profiles, File: name, Environ: []string{variable}, Assignments: []string{assignment}}, o)
		if err != nil {
			return
		}
		if o.Size < 10 || o.Size > 100 || o.Wait < time.Millisecond || o.Wait > time.Hour || o.Window < 5 {
			t.Errorf("out of range: %+v", o)
		}
		var out bytes.Buffer
		if err := l.Dump(&out); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(back, out.Bytes(), 0o600); err != nil {
			t.Fatal(err)
		}
		again := defaults()
		if _, err := Load(Sources{Profiles: profiles, File: back}, again); err != nil {
			t.Fatalf("%v in\n%s", err, &out)
		}
		again.Token = o.Token
		if len(o.Names) == 0 {
			o.Names, again.Names = nil, nil
		}
		if !reflect.DeepEqual(again, o) {
			t.Errorf("read back %+v, want %+v", again, o)
		}
	})
}
