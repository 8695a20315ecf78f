// Package program is what the commands of package benchmarks have in common: how they begin and end, how they read
// their flags, and how they say how far they are. What they measure is left to them. Begin at [Main].
package program

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/spf13/pflag"
)

// Main runs a command, whose context ends with SIGINT and SIGTERM, and exits with its status.
func Main(run func(ctx context.Context, args []string, stdout, stderr io.Writer) int) {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
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

// Progress is where a command says how far it is.
type Progress struct{ io.Writer }

// Say writes a line that begins with the time of day.
func (p Progress) Say(format string, args ...any) {
	fmt.Fprintf(p, "%s  "+format+"\n", append([]any{time.Now().Format(time.TimeOnly)}, args...)...)
}
