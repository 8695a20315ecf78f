// Package envconfig reads FELIX_* environment variables into annotated configuration structs and describes them.
//
// A field takes part if it has the tag env, the name of its variable. doc says what it is, unit what its number
// counts, min and max bound it. Values that are there before reading are the defaults. Parsing is caarlos0/env's; a
// duration is a bare number of milliseconds, as the names ending in _MS promise, or has a unit ("2s").
package envconfig

import (
	"errors"
	"fmt"
	"os"
	"reflect"
	"strconv"
	"time"

	"github.com/caarlos0/env/v11"
)

// Load reads the environment into each of the structs that dst points to. It reports every problem at once, by the
// name of the variable.
func Load(dst ...any) error { return load(nil, dst...) }

// load reads environ instead of the process's environment unless it is nil.
func load(environ map[string]string, dst ...any) error {
	var errs []error
	for _, d := range dst {
		names := make(map[string]string) // by field
		for _, f := range fields(d) {
			names[f.field] = f.Name
		}
		err := env.ParseWithOptions(d, env.Options{
			Environment: environ,
			FuncMap:     map[reflect.Type]env.ParserFunc{reflect.TypeFor[time.Duration](): parseDuration},
		})
		var all env.AggregateError
		switch {
		case errors.As(err, &all):
			for _, err := range all.Errors {
				errs = append(errs, named(err, names))
			}
		case err != nil:
			errs = append(errs, err)
		}
		for _, f := range fields(d) {
			f.setEmpty(environ)
			errs = append(errs, f.check())
		}
	}
	return errors.Join(errs...)
}

// setEmpty makes a variable that is set and empty mean the empty string, where a field is one: the library takes it for
// absent.
func (v Var) setEmpty(environ map[string]string) {
	if v.value.Kind() != reflect.String {
		return
	}
	value, ok := environ[v.Name]
	if environ == nil {
		value, ok = os.LookupEnv(v.Name)
	}
	if ok && value == "" {
		v.value.SetString("")
	}
}

func named(err error, names map[string]string) error {
	if p, ok := errors.AsType[env.ParseError](err); ok {
		return fmt.Errorf("%s: %w", names[p.Name], p.Err)
	}
	return err
}

func parseDuration(s string) (any, error) {
	if ms, err := strconv.ParseInt(s, 10, 64); err == nil {
		if ms > int64(1<<63-1)/int64(time.Millisecond) || ms < -int64(1<<63-1)/int64(time.Millisecond) {
			return nil, fmt.Errorf("%q milliseconds are out of range", s)
		}
		return time.Duration(ms) * time.Millisecond, nil
	}
	d, err := time.ParseDuration(s)
	if err != nil {
		return nil, fmt.Errorf("%q is neither a number of milliseconds nor a duration like 2s", s)
	}
	return d, nil
}

// Var describes one variable.
type Var struct {
	Name, Doc, Unit string
	Min, Max        string // as in the tags; empty means unbounded
	Default         string // the value that the struct holds

	field string
	value reflect.Value
}

// Describe lists the variables of the structs that dst points to, in the order of their fields.
func Describe(dst ...any) []Var {
	all := make([]Var, 0, 32)
	for _, d := range dst {
		all = append(all, fields(d)...)
	}
	return all
}

func fields(dst any) []Var {
	v := reflect.ValueOf(dst).Elem()
	var out []Var
	for i := range v.NumField() {
		f := v.Type().Field(i)
		name := f.Tag.Get("env")
		if name == "" {
			continue
		}
		out = append(out, Var{
			Name: name, Doc: f.Tag.Get("doc"), Unit: f.Tag.Get("unit"), Min: f.Tag.Get("min"), Max: f.Tag.Get("max"),
			Default: fmt.Sprint(v.Field(i).Interface()), field: f.Name, value: v.Field(i),
		})
	}
	return out
}

// check compares the value with the tags min and max.
func (v Var) check() error {
	n, ok := number(v.value)
	if !ok {
		return nil
	}
	if v.Min != "" && n < v.bound(v.Min) {
		return fmt.Errorf("%s: %v is less than %s", v.Name, v.value.Interface(), v.Min)
	}
	if v.Max != "" && n > v.bound(v.Max) {
		return fmt.Errorf("%s: %v is more than %s", v.Name, v.value.Interface(), v.Max)
	}
	return nil
}

func number(v reflect.Value) (int64, bool) {
	switch {
	case v.CanInt():
		return v.Int(), true
	case v.CanUint() && v.Kind() != reflect.Uint8: // small kinds are enumerations
		return int64(min(v.Uint(), 1<<63-1)), true
	}
	return 0, false
}

// bound reads a tag. A tag that does not parse is a mistake in the source.
func (v Var) bound(tag string) int64 {
	if v.value.Type() == reflect.TypeFor[time.Duration]() {
		d, err := time.ParseDuration(tag)
		if err != nil {
			panic("envconfig: field " + v.field + ": " + err.Error())
		}
		return int64(d)
	}
	n, err := strconv.ParseInt(tag, 10, 64)
	if err != nil {
		panic("envconfig: field " + v.field + ": " + err.Error())
	}
	return n
}
