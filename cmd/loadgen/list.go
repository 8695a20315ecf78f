package main

import (
	"strings"

	"github.com/spf13/pflag"

	"github.com/felix-mq/felix/loadgen/report"
)

// list is a flag that may have several values, separated by commas, all of which its inner value accepts.
type list struct {
	pflag.Value
	values []string
}

// Set checks all values and leaves the first one set.
func (l *list) Set(text string) error {
	l.values = strings.Split(text, ",")
	for i, v := range l.values {
		if err := l.Value.Set(v); err != nil {
			return err
		}
		l.values[i] = l.String() // without units, as plots and file names need it
	}
	return l.Value.Set(l.values[0])
}

// sweepable makes lists of all flags.
func sweepable(f *pflag.FlagSet) {
	f.VisitAll(func(flag *pflag.Flag) { flag.Value = &list{Value: flag.Value} })
}

// sweep calls do for each combination of the values of lists, with these set. The last list changes fastest.
func sweep(f *pflag.FlagSet, do func([]report.Axis) error) error {
	type swept struct {
		name string
		list *list
	}
	var lists []swept
	f.VisitAll(func(flag *pflag.Flag) {
		if l, ok := flag.Value.(*list); ok && len(l.values) > 1 {
			lists = append(lists, swept{flag.Name, l})
		}
	})
	var each func(axes []report.Axis) error
	each = func(axes []report.Axis) error {
		if len(axes) == len(lists) {
			return do(append([]report.Axis(nil), axes...))
		}
		l := lists[len(axes)]
		for _, v := range l.list.values {
			if err := l.list.Value.Set(v); err != nil {
				return err
			}
			if err := each(append(axes, report.Axis{Name: l.name, Value: v})); err != nil {
				return err
			}
		}
		return nil
	}
	return each(nil)
}
