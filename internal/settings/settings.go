// Package settings reads annotated structs from a profile, a YAML file, the environment and assignments on the command
// line, each of which wins over those before it, and describes them.
//
// What a struct holds before are the defaults. A field takes part if it has the tag env or yaml:
//
//	env     names of its variable, the first of which that is set counts, and the others are aliases of
//	yaml    its key in files and assignments; without it the first variable in lower case, less the prefix FELIX_
//	doc     what it is
//	unit    what its number counts; one of "bytes" may be given with a unit, such as 512MiB
//	min     its least value, and max its greatest: numbers and durations
//	words   the words that it may be, separated by commas; a type that parses its text itself may take others
//	is      "address": host and port, or empty
//	reload  what of it is read again while the program runs
//	secret  "yes": its value is not shown
//	prefix  of a field that is a struct: its fields, which have the tag yaml, are settings too. Their keys begin with
//	        it, and their variables are those in upper case after FELIX_
//
// A duration is a bare number of milliseconds, as names ending in _MS promise, or has a unit ("2s"). A variable that is
// set and empty counts only where the empty text is a value: where the field is a text and has no words. Lists are
// separated by commas, or are lists in YAML.
//
// Begin at [Load]. Files of another shape are read with [File].
package settings

import (
	"cmp"
	"encoding"
	"errors"
	"fmt"
	"math"
	"net"
	"os"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/agext/levenshtein"
)

// Sources are what [Load] reads, the weakest first.
type Sources struct {
	// Profiles are named sets of values by key. The setting with the key "profile", if there is one, chooses.
	Profiles map[string]map[string]string
	// File names a YAML file that must be there; empty means none.
	File string
	// Environ is the environment, as [os.Environ] returns it.
	Environ []string
	// Assignments are "key=value", from the command line.
	Assignments []string

	// WithoutEffect are names that are accepted and mean nothing.
	WithoutEffect []WithoutEffect
}

// WithoutEffect is a setting of the reference implementation that has no meaning here.
type WithoutEffect struct {
	Key      string // in the file; empty if it has none there
	Variable string
	Why      string
}

// Loaded is what [Load] found.
type Loaded struct {
	Settings []*Setting // in the order of their fields
	Ignored  []Notice   // what was given and has no effect
	Unknown  []Notice   // FELIX_* variables that are not settings: perhaps of another program, perhaps misspelt
}

// Notice is something given that no setting takes.
type Notice struct{ Where, Name, Why string }

// PlaceError is one thing that is wrong with a configuration. Errors of this package hold one or more of them.
type PlaceError struct {
	Where string // "FILE:LINE", "environment" or "command line"
	Key   string // what is wrong: a key with those above it, or a variable; empty for a file as a whole
	Err   error
}

// Error is one line.
func (p *PlaceError) Error() string {
	if p.Key == "" {
		return p.Where + ": " + p.Err.Error()
	}
	return p.Where + ": " + p.Key + ": " + p.Err.Error()
}

func (p *PlaceError) Unwrap() error { return p.Err }

// Environment reads the process's environment alone into each of the structs that dst points to.
func Environment(dst ...any) error {
	_, err := Load(Sources{Environ: os.Environ()}, dst...)
	return err
}

// Load reads all sources into each of the structs that dst points to. Each value is checked, those that another one
// wins over too. The error reports every problem at once; what the structs hold then is not to be used.
func Load(src Sources, dst ...any) (*Loaded, error) {
	l := &Loaded{Settings: Describe(dst...)}
	file, fromFile := l.readFile(src)
	var problems []error
	environment := l.readEnviron(src)
	commandLine, more := l.readAssignments(src.Assignments)
	problems = append(problems, more...)
	layers := []layer{fromFile, environment, commandLine}
	if profile := l.profile(src.Profiles, layers); profile != nil {
		layers = slices.Insert(layers, 0, profile)
	}
	for _, layer := range layers {
		for _, s := range l.Settings {
			given, ok := layer[s.Key]
			if !ok {
				continue
			}
			if err := s.set(given.values, given.list); err != nil {
				if given.node != nil {
					file.problem(given.node.Line, s.Key, err)
				} else {
					problems = append(problems, &PlaceError{given.where, given.name, err})
				}
			}
			s.Origin = given.origin
		}
	}
	return l, errors.Join(append([]error{file.Err()}, problems...)...)
}

// SetDefault gives a setting that nothing was read for another value than its default, and says why. The value must be
// one that the setting takes.
func (l *Loaded) SetDefault(key, text, why string) {
	if s := l.find(key); s.Origin == "default" {
		if err := s.set([]string{text}, false); err != nil {
			panic("settings: " + key + ": " + err.Error())
		}
		s.Origin = why
	}
}

// layer is what one source gives, by key.
type layer map[string]given

type given struct {
	values []string
	list   bool
	where  string
	name   string // of a variable or key, for problems
	origin string
	node   *Node // in a file
}

func one(text, where, name, origin string) given {
	return given{values: []string{text}, where: where, name: name, origin: origin}
}

func (l *Loaded) readEnviron(src Sources) layer {
	out := make(layer)
	values := make(map[string]string, len(src.Environ))
	for _, assignment := range src.Environ {
		name, value, _ := strings.Cut(assignment, "=")
		values[name] = value
	}
	var names []string
	for _, s := range l.Settings {
		names = append(names, s.Variables...)
		for _, name := range s.Variables {
			if value, ok := values[name]; ok && (value != "" || s.mayBeEmpty()) {
				out[s.Key] = one(value, "environment", name, "environment "+name)
				break
			}
		}
	}
	for _, assignment := range src.Environ {
		name, _, _ := strings.Cut(assignment, "=")
		if !strings.HasPrefix(name, "FELIX_") || slices.Contains(names, name) {
			continue
		}
		if i := slices.IndexFunc(src.WithoutEffect, func(w WithoutEffect) bool { return w.Variable == name }); i >= 0 {
			l.Ignored = append(l.Ignored, Notice{"environment", name, src.WithoutEffect[i].Why})
			continue
		}
		l.Unknown = append(l.Unknown, Notice{"environment", name, "no setting has this name" + nearest(name, names)})
	}
	return out
}

func (l *Loaded) readAssignments(assignments []string) (layer, []error) {
	const where = "command line"
	out := make(layer)
	var problems []error
	for _, assignment := range assignments {
		key, value, ok := strings.Cut(assignment, "=")
		switch {
		case !ok:
			problems = append(problems, &PlaceError{where, assignment, errors.New("want key=value")})
		case l.find(key) == nil:
			problems = append(problems, &PlaceError{where, key, errors.New("unknown key" + nearest(key, l.keys()))})
		default:
			out[key] = one(value, where, key, where)
		}
	}
	return out, problems
}

// profile returns the layer of the profile that the setting of that name chooses in layers, or by default.
func (l *Loaded) profile(profiles map[string]map[string]string, layers []layer) layer {
	s := l.find("profile")
	if s == nil {
		return nil
	}
	name := s.Default
	for _, layer := range layers {
		if g, ok := layer["profile"]; ok {
			name = g.values[0]
		}
	}
	out := make(layer) // of an unknown one too: the check of the setting refuses it
	for key, text := range profiles[name] {
		out[key] = one(text, "profile "+name, key, "profile "+name)
	}
	return out
}

// Problem says that what a setting was given is wrong in a way that only its user can see.
func (l *Loaded) Problem(key string, err error) error {
	return &PlaceError{l.find(key).Origin, key, err}
}

func (l *Loaded) find(key string) *Setting {
	for _, s := range l.Settings {
		if s.Key == key {
			return s
		}
	}
	return nil
}

func (l *Loaded) keys() (keys []string) {
	for _, s := range l.Settings {
		keys = append(keys, s.Key)
	}
	return keys
}

// Setting is one field.
type Setting struct {
	Key       string
	Variables []string // the first and its aliases
	Doc, Unit string
	Min, Max  string // as in the tags; empty means unbounded
	Words     []string
	Reload    string
	Secret    bool
	Default   string // what the struct held
	Origin    string // "default" until something is read
	value     reflect.Value
	field, is string
}

// Describe lists the settings of the structs that dst points to, in the order of their fields.
func Describe(dst ...any) []*Setting {
	var all []*Setting
	for _, d := range dst {
		all = describe(all, reflect.ValueOf(d).Elem(), "")
	}
	return all
}

// describe appends the settings of a struct, whose keys have a prefix.
func describe(all []*Setting, v reflect.Value, prefix string) []*Setting {
	for i := range v.NumField() {
		f := v.Type().Field(i)
		tag := f.Tag.Get
		if p := tag("prefix"); p != "" {
			all = describe(all, v.Field(i), prefix+p)
			continue
		}
		if tag("env") == "" && tag("yaml") == "" {
			continue
		}
		s := &Setting{
			Key: tag("yaml"), Variables: split(tag("env")), Doc: tag("doc"), Unit: tag("unit"), Min: tag("min"), Max: tag("max"),
			Words: split(tag("words")), Reload: tag("reload"), Secret: tag("secret") == "yes", Origin: "default",
			value: v.Field(i), field: f.Name, is: tag("is"),
		}
		if s.Key == "" {
			s.Key = strings.ToLower(strings.TrimPrefix(s.Variables[0], "FELIX_"))
		}
		if prefix != "" {
			s.Key = prefix + s.Key
			s.Variables = []string{"FELIX_" + strings.ToUpper(s.Key)}
		}
		s.Default = s.Text()
		all = append(all, s)
	}
	return all
}

// mayBeEmpty reports whether the empty text is a value of the setting.
func (s *Setting) mayBeEmpty() bool { return s.value.Kind() == reflect.String && len(s.Words) == 0 }

func split(list string) []string {
	if list == "" {
		return nil
	}
	return strings.Split(list, ",")
}

// Text is the value as a file would have it; of a list, with commas.
func (s *Setting) Text() string {
	v := s.value
	if v.Kind() == reflect.Pointer {
		if v.IsNil() {
			return ""
		}
		v = v.Elem()
	}
	switch v := v.Interface().(type) {
	case time.Duration:
		if strings.HasSuffix(s.Key, "_ms") && v%time.Millisecond == 0 {
			return strconv.FormatInt(v.Milliseconds(), 10)
		}
		return v.String()
	case []string:
		return strings.Join(v, ",")
	default:
		return fmt.Sprint(v)
	}
}

// DefaultText is the default for people: a size has a unit, and a word is written as in Words.
func (s *Setting) DefaultText() string {
	if s.Unit == unitBytes {
		if n, err := strconv.ParseInt(s.Default, 10, 64); err == nil {
			return sizeText(n)
		}
	}
	for _, word := range s.Words {
		if strings.EqualFold(word, s.Default) {
			return word
		}
	}
	return s.Default
}

// Values describes what the setting may be.
func (s *Setting) Values() string {
	switch s.value.Interface().(type) {
	case bool:
		return "true, false"
	case []string:
		return "list"
	default:
		switch {
		case len(s.Words) > 0:
			return strings.Join(s.Words, ", ")
		case s.is != "":
			return s.is
		case s.Min == "" && s.Max == "":
			return "text"
		}
	}
	if s.Unit == unitBytes && s.Min != "" && s.Max != "" {
		return sizeText(s.bound(s.Min)) + " … " + sizeText(s.bound(s.Max)) + " bytes"
	}
	text := s.Min + " … " + s.Max
	if s.value.Type() != reflect.TypeFor[time.Duration]() {
		text += " " + s.Unit
	}
	return strings.TrimSpace(text)
}

// set parses what a source gives and checks it.
func (s *Setting) set(values []string, list bool) error {
	if !utf8.ValidString(strings.Join(values, "")) {
		return errors.New("is not UTF-8")
	}
	if names, ok := reflect.TypeAssert[*[]string](s.value.Addr()); ok {
		if !list {
			values = split(values[0])
		}
		if slices.Contains(values, "") {
			return errors.New("an entry of the list is empty")
		}
		*names = slices.Clone(values)
		return nil
	}
	if list {
		return errors.New("want one value, not a list")
	}
	text := values[0]
	noWord := fmt.Errorf("%q is none of %s%s", text, strings.Join(s.Words, ", "), nearest(text, s.Words))
	parses := reflect.PointerTo(s.value.Type()).Implements(reflect.TypeFor[encoding.TextUnmarshaler]())
	if len(s.Words) > 0 && !parses && !slices.Contains(s.Words, text) && text != s.Default {
		return noWord
	}
	if s.is == "address" && text != "" {
		if err := checkAddress(text); err != nil {
			return err
		}
	}
	v := s.value
	if v.Kind() == reflect.Pointer {
		v = reflect.New(v.Type().Elem()).Elem()
	}
	if s.Unit == unitBytes {
		var err error
		if text, err = plainSize(text); err != nil {
			return err
		}
	}
	if err := parse(v, text); err != nil {
		if len(s.Words) > 0 {
			return noWord
		}
		return err
	}
	if s.value.Kind() == reflect.Pointer {
		s.value.Set(v.Addr())
	}
	return s.check(v)
}

func parse(v reflect.Value, text string) error {
	switch p := v.Addr().Interface().(type) {
	case encoding.TextUnmarshaler:
		return p.UnmarshalText([]byte(text))
	case *time.Duration:
		d, err := parseDuration(text)
		*p = d
		return err
	}
	var err error
	switch v.Kind() {
	case reflect.String:
		v.SetString(text)
	case reflect.Bool:
		var b bool
		if b, err = strconv.ParseBool(text); err != nil {
			return fmt.Errorf("%q is neither true nor false", text)
		}
		v.SetBool(b)
	case reflect.Int, reflect.Int64:
		var n int64
		if n, err = strconv.ParseInt(text, 10, v.Type().Bits()); err == nil {
			v.SetInt(n)
		}
	case reflect.Uint64:
		var n uint64
		if n, err = strconv.ParseUint(text, 10, 64); err == nil {
			v.SetUint(n)
		}
	default:
		panic("settings: no parser for " + v.Type().String())
	}
	switch {
	case errors.Is(err, strconv.ErrRange):
		return fmt.Errorf("%q is out of range", text)
	case err != nil:
		return fmt.Errorf("%q is not a whole number", text)
	}
	return nil
}

func parseDuration(s string) (time.Duration, error) {
	if ms, err := strconv.ParseInt(s, 10, 64); err == nil {
		if ms > int64(math.MaxInt64/time.Millisecond) || ms < int64(math.MinInt64/time.Millisecond) {
			return 0, fmt.Errorf("%q milliseconds are out of range", s)
		}
		return time.Duration(ms) * time.Millisecond, nil
	}
	d, err := time.ParseDuration(s)
	if err != nil {
		return 0, fmt.Errorf("%q is neither a number of milliseconds nor a duration like 2s", s)
	}
	return d, nil
}

func checkAddress(text string) error {
	_, port, err := net.SplitHostPort(text)
	if err != nil {
		return fmt.Errorf("%q is not an address like 0.0.0.0:5000", text)
	}
	if _, err := strconv.ParseUint(port, 10, 16); err != nil {
		return fmt.Errorf("%q has no port from 0 to 65535", text)
	}
	return nil
}

// check compares the value with the tags min and max.
func (s *Setting) check(v reflect.Value) error {
	var n int64
	switch {
	case v.CanInt():
		n = v.Int()
	case v.Kind() == reflect.Uint64:
		n = int64(min(v.Uint(), math.MaxInt64))
	default:
		return nil
	}
	if s.Min != "" && n < s.bound(s.Min) {
		return fmt.Errorf("%v is less than %s", v.Interface(), s.Min)
	}
	if s.Max != "" && n > s.bound(s.Max) {
		return fmt.Errorf("%v is more than %s", v.Interface(), s.Max)
	}
	return nil
}

// bound reads a tag. A tag that does not parse is a mistake in the source.
func (s *Setting) bound(tag string) int64 {
	if s.value.Type() == reflect.TypeFor[time.Duration]() {
		d, err := time.ParseDuration(tag)
		if err != nil {
			panic("settings: field " + s.field + ": " + err.Error())
		}
		return int64(d)
	}
	n, err := strconv.ParseInt(tag, 10, 64)
	if err != nil {
		panic("settings: field " + s.field + ": " + err.Error())
	}
	return n
}

// nearest names the candidate that name is most like, if it is like one at all.
func nearest(name string, candidates []string) string {
	if best := NearestWord(name, candidates); best != "" {
		return "; the nearest is " + best
	}
	return ""
}

// NearestWord returns the candidate that name is most like, or "" if it is like none of them.
func NearestWord(name string, candidates []string) string {
	distance := func(c string) int { return levenshtein.Distance(name, c, nil) }
	if len(candidates) == 0 || len(name) > 100 {
		return ""
	}
	best := slices.MinFunc(candidates, func(a, b string) int { return cmp.Compare(distance(a), distance(b)) })
	if distance(best) > max(2, len(name)/3) {
		return ""
	}
	return best
}
