// Command felix is the command line of Felix: a broker for development, publishing and subscribing, the cache, and what
// an operator looks at. See `felix --help`, and docs/cli.md, which is made from the same text.
//
// Begin at [newRoot]. Each command has a file of its own; how they find their broker is in connect.go.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/felix-mq/felix/client"
	"github.com/felix-mq/felix/internal/version"
)

// Exit codes. exitCodes tells them to users.
const (
	exitOK          = 0
	exitError       = 1
	exitUsage       = 2
	exitUnreachable = 3
	exitNotFound    = 4
	exitInterrupted = 5
)

const exitCodes = `Exit codes:
  0  done
  1  failed, or "felix doctor" has found something
  2  a flag, an argument, a variable or a configuration file is wrong
  3  the broker cannot be reached, or refuses the token or what it does not allow
  4  there is no such key, stream, cache, context or offset
  5  out of time, or interrupted before the end`

//go:generate go run . docs ../../docs/cli.md

func main() {
	os.Exit(run(os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
}

func run(args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	context.AfterFunc(ctx, stop) // a second signal ends the process at once

	root := newRoot()
	root.SetArgs(args)
	root.SetIn(stdin)
	root.SetOut(stdout)
	root.SetErr(stderr)
	cmd, err := root.ExecuteContextC(ctx)
	if err == nil {
		return exitOK
	}
	code, hint := classify(ctx, err)
	if ctx.Err() != nil {
		err = errInterrupted
	}
	fmt.Fprintf(stderr, "felix: %s\n", plain(err))
	if code == exitUsage {
		hint = fmt.Sprintf("see %s --help", cmd.CommandPath())
	}
	if hint != "" {
		fmt.Fprintf(stderr, "  %s\n", hint)
	}
	return code
}

// plain is the text of an error without the names of packages, which are of no use to whoever runs a command.
func plain(err error) string { return strings.ReplaceAll(err.Error(), "client: ", "") }

// app is what all commands share: the flags that every one of them takes.
type app struct {
	flags connection // as given
}

func newRoot() *cobra.Command {
	a := &app{}
	root := &cobra.Command{
		Use:   "felix COMMAND",
		Short: "Publish, subscribe and cache over QUIC",
		Long: `Publish, subscribe and cache with a Felix broker, and run one for development.

A command finds its broker by, in this order: flags, the FELIX_* variables named with them, the context, and the default.
Contexts are kept in a file (see "felix context"); "felix dev" makes one.

` + exitCodes,
		Example: `  felix dev                  # a broker, and a context that leads to it
  felix sub orders           # in another terminal
  felix pub orders hello     # in a third one`,
		SilenceErrors: true,
		SilenceUsage:  true,
		Version:       version.Get().String(),
	}
	root.SetVersionTemplate("felix {{.Version}}\n")
	a.flags.bind(root.PersistentFlags())
	root.AddCommand(
		a.newDev(), a.newPub(), a.newSub(), a.newCache(), a.newTop(), a.newBench(),
		a.newContext(), a.newToken(), a.newConfig(), newDoctor(), newVersion(), newDocs(),
	)
	mark(root)
	return root
}

// group makes a command that has subcommands only.
func group(use, short string, children ...*cobra.Command) *cobra.Command {
	c := &cobra.Command{
		Use: use + " COMMAND", Short: short, Args: cobra.NoArgs, DisableFlagsInUseLine: true,
		RunE: func(c *cobra.Command, _ []string) error {
			names := make([]string, len(children))
			for i, child := range children {
				names[i] = child.Name()
			}
			return usageError{fmt.Errorf("%s needs one of: %s", c.CommandPath(), strings.Join(names, ", "))}
		},
	}
	c.AddCommand(children...)
	return c
}

// runError is the failure of a command that has begun. What fails before that is a wrong command line.
type runError struct{ error }

func (e runError) Unwrap() error { return e.error }

// usageError is a wrong command line, variable or file that shows only once a command has begun.
type usageError struct{ error }

func (e usageError) Unwrap() error { return e.error }

// mark makes every failure of c and of its subcommands a [runError].
func mark(c *cobra.Command) {
	if do := c.RunE; do != nil {
		c.RunE = func(c *cobra.Command, args []string) error {
			if err := do(c, args); err != nil {
				return runError{err}
			}
			return nil
		}
	}
	for _, child := range c.Commands() {
		mark(child)
	}
}

// Failures of this program's own that have exit codes.
var (
	errNotFound    = errors.New("not found")
	errInterrupted = errors.New("interrupted")
)

// connectError is a failure to reach a broker.
type connectError struct {
	error
	addr string
}

func (e connectError) Unwrap() error { return e.error }

// classify returns the exit code of a failure, and what may be done about it.
func classify(ctx context.Context, err error) (code int, hint string) {
	var run runError
	var usage usageError
	if !errors.As(err, &run) || errors.As(err, &usage) {
		return exitUsage, ""
	}
	if ctx.Err() != nil {
		return exitInterrupted, ""
	}
	if errors.Is(err, client.ErrAuth) {
		return exitUnreachable, `is the token for this broker and tenant, and not expired? See "felix token inspect" and "felix config"`
	}
	if connect, ok := errors.AsType[connectError](err); ok {
		return exitUnreachable, fmt.Sprintf(`is a broker running at %s? "felix dev" starts one; "felix config" shows where the address comes from`, connect.addr)
	}
	if refusal, ok := errors.AsType[*client.BrokerError](err); ok {
		return classifyRefusal(refusal.Message)
	}
	if _, ok := errors.AsType[*client.CursorError](err); ok {
		return exitNotFound, "--from earliest begins with the oldest event that there is"
	}
	switch {
	case errors.Is(err, client.ErrMiss), errors.Is(err, errNotFound):
		return exitNotFound, ""
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, client.ErrTimeout):
		return exitInterrupted, "--timeout allows more time"
	case errors.Is(err, client.ErrDisconnected), errors.Is(err, client.ErrEnded):
		return exitUnreachable, ""
	}
	return exitError, ""
}

// classifyRefusal reads a broker's texts, which are for people (codec.Refusals): one that it does not know is a failure
// like any other.
func classifyRefusal(text string) (code int, hint string) {
	switch {
	case strings.HasPrefix(text, "stream not found"):
		return exitNotFound, `streams are made by the broker: "felix dev --stream NAME", or its catalogue`
	case strings.HasPrefix(text, "cache scope not found"):
		return exitNotFound, `caches are made by the broker: "felix dev --cache NAME", or its catalogue`
	case text == "forbidden", text == "tenant mismatch":
		return exitUnreachable, `the token does not allow this; "felix token inspect" shows what it does`
	}
	return exitError, ""
}
