// Package program is what the programs that measure have in common: how they begin and end, how they read their flags,
// how they say how far they are, and how they print tables and verdicts. What they measure is left to them. Begin at
// [Main].
package program

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"time"
	"unicode/utf8"

	"github.com/spf13/pflag"
)

// Main runs a command, whose context ends with SIGINT and SIGTERM, and exits with its status.
func Main(run func(ctx context.Context, args []string, stdout, stderr io.Writer) int) {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}

// Command is a part of a program. Run returns the exit status.
type Command struct {
	Name, About string
	Run         func(ctx context.Context, args []string, stdout, stderr io.Writer) int
}

// Commands is a program of several commands, of which its first argument chooses one.
func Commands(name string, all ...Command) func(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	return func(ctx context.Context, args []string, stdout, stderr io.Writer) int {
		for _, c := range all {
			if len(args) > 0 && args[0] == c.Name {
				return c.Run(ctx, args[1:], stdout, stderr)
			}
		}
		fmt.Fprintf(stderr, "%s: want one of these as first argument:\n", name)
		for _, c := range all {
			fmt.Fprintf(stderr, "  %-12s %s\n", c.Name, c.About)
		}
		return 2
	}
}

// Flags returns an empty set of flags, which bears the command's name.
func Flags(name string, stderr io.Writer) *pflag.FlagSet {
	flags := pflag.NewFlagSet(name, pflag.ContinueOnError)
	flags.SetOutput(stderr)
	return flags
}

// Parse parses the arguments of a set from [Flags]. It reports false if the command is to end with the returned status:
// 0 if only help was wanted, or 2 if the arguments are wrong, of which it has told then.
func Parse(flags *pflag.FlagSet, args []string) (code int, ok bool) {
	err := flags.Parse(args)
	switch {
	case err == nil:
		return 0, true
	case errors.Is(err, pflag.ErrHelp):
		return 0, false
	}
	fmt.Fprintln(flags.Output(), flags.Name()+":", err)
	return 2, false
}

// Tables runs those of a command's tables that are named, separated by commas, and returns the exit status.
func Tables(ctx context.Context, command, names string, tables map[string]func(context.Context) error, stderr io.Writer) int {
	for name := range strings.SplitSeq(names, ",") {
		table := tables[name]
		if table == nil {
			fmt.Fprintf(stderr, "%s: no table %q\n", command, name)
			return 2
		}
		if err := table(ctx); err != nil {
			fmt.Fprintf(stderr, "%s: %v\n", command, err)
			return 1
		}
	}
	return 0
}

// Progress is where a command says how far it is.
type Progress struct{ io.Writer }

// Say writes a line that begins with the time of day.
func (p Progress) Say(format string, args ...any) {
	fmt.Fprintf(p, "%s  "+format+"\n", append([]any{time.Now().Format(time.TimeOnly)}, args...)...)
}

// Verdicts is where a command prints what it measured next to what is wanted.
type Verdicts struct {
	io.Writer
	Missed bool // something that was wanted
}

// Say prints a line. met says whether the measured value is as it is wanted.
func (v *Verdicts) Say(what string, measured float64, wanted string, met bool) {
	v.Missed = v.Missed || !met
	fmt.Fprintf(v, "%-60s %10.3f   wanted %-14s %s\n", what, measured, wanted, map[bool]string{true: "met", false: "MISSED"}[met])
}

// FillIn puts what fill makes of it in the place of what a document has between two lines of comment, <!-- name --> and
// <!-- end of name -->.
func FillIn(file, name string, fill func(old []byte) []byte) error {
	text, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	between := regexp.MustCompile(`(?s)(<!-- ` + name + ` -->\n)(.*?)(<!-- end of ` + name + ` -->\n)`)
	if !between.Match(text) {
		return fmt.Errorf("%s has no place for %s", file, name)
	}
	text = between.ReplaceAllFunc(text, func(block []byte) []byte {
		parts := between.FindSubmatch(block)
		return slices.Concat(parts[1], fill(parts[2]), parts[3])
	})
	return os.WriteFile(file, text, 0o644)
}

// Table is lines of cells, the head first.
type Table [][]string

// Write writes the table as Markdown, with aligned columns, so that it can be read as it is. Columns after the first
// labels ones are numbers.
func (t Table) Write(out io.Writer, labels int) {
	widths := make([]int, len(t[0]))
	for _, line := range t {
		for i, cell := range line {
			widths[i] = max(widths[i], utf8.RuneCountInString(cell))
		}
	}
	for n, line := range t {
		for i, cell := range line {
			fmt.Fprintf(out, "| %-*s ", widths[i], cell)
		}
		fmt.Fprintln(out, "|")
		if n > 0 {
			continue
		}
		for i := range line {
			if i < labels {
				fmt.Fprint(out, "|", strings.Repeat("-", widths[i]+2))
			} else {
				fmt.Fprint(out, "|", strings.Repeat("-", widths[i]+1), ":")
			}
		}
		fmt.Fprintln(out, "|")
	}
}
