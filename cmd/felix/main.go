// Command felix is the command line of Felix: a broker for development, publishing and subscribing, the cache, and what
// an operator looks at. See `felix --help`, and docs/use/cli.md, which is made from the same text.
//
// Begin at [newRoot]. Each command has a file of its own; how they find their broker is in connect.go.
package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/signal"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/felix-mq/felix/internal/version"
)

//go:generate go run . docs --page ../../docs/use/cli.md

func main() {
	os.Exit(run(os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
}

func run(args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	a := &app{}
	ctx, stop := a.untilSignal(stderr)
	defer stop()

	root := newRoot(a)
	root.SetArgs(args)
	root.SetIn(stdin)
	root.SetOut(stdout)
	root.SetErr(stderr)
	cmd, err := root.ExecuteContextC(ctx)
	if err == nil {
		return exitOK
	}
	if isBrokenPipe(err) {
		dieOfBrokenPipe(stdout)
	}
	code, hint := classify(ctx, err)
	fmt.Fprintf(stderr, "felix: %s\n", plain(err))
	if code == exitUsage && hint == "" {
		hint = fmt.Sprintf("see %s --help", cmd.CommandPath())
	}
	if hint != "" {
		fmt.Fprintf(stderr, "  %s\n", hint)
	}
	return code
}

// app is what all commands share.
type app struct {
	flags   connection  // as given, of every command
	patient atomic.Bool // the command bounds by itself how long its end takes
}

// grace is how long a command may take to end after a signal, unless it is patient: it may wait for a peer, or for
// the reader of its output.
const grace = 5 * time.Second

// untilSignal returns a context that ends at the first signal that asks the process to end. A second one ends it at
// once, and so does the passing of [grace].
func (a *app) untilSignal(stderr io.Writer) (context.Context, func()) {
	ctx, cancel := context.WithCancelCause(context.Background())
	ends := []os.Signal{os.Interrupt, syscall.SIGTERM}
	if !signal.Ignored(syscall.SIGHUP) { // as nohup has it
		ends = append(ends, syscall.SIGHUP)
	}
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, ends...)
	// Without this a write to a closed pipe ends the process before it has saved anything.
	pipes := make(chan os.Signal, 1)
	signal.Notify(pipes, syscall.SIGPIPE)

	done := make(chan struct{})
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		select {
		case <-signals:
		case <-done:
			return
		}
		signal.Stop(signals)
		cancel(errInterrupted)
		select {
		case <-done:
		case <-time.After(grace):
			if a.patient.Load() {
				<-done
				return
			}
			fmt.Fprintln(stderr, "felix: interrupted; what was still on its way may be done or not")
			os.Exit(exitInterrupted)
		}
	}()
	return ctx, func() {
		close(done)
		<-ended
		signal.Stop(signals)
		signal.Stop(pipes)
		cancel(nil)
	}
}

func newRoot(a *app) *cobra.Command {
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
		Args:          noCommand,
		RunE:          func(c *cobra.Command, _ []string) error { return c.Help() },
		SilenceErrors: true,
		SilenceUsage:  true,
		Version:       version.Get().String(),
	}
	root.SetVersionTemplate("felix {{.Version}}\n")
	a.flags.bind(root.PersistentFlags())
	root.AddCommand(
		a.newDev(), a.newPub(), a.newSub(), a.newCache(), a.newStream(), a.newTop(), a.newBench(), newStorage(),
		a.newContext(), a.newToken(), a.newConfig(), newDoctor(), newVersion(), newDocs(),
	)
	root.SetFlagErrorFunc(flagError)
	root.SetHelpCommand(newHelp())
	setUsage(root)
	mark(root)
	return root
}
