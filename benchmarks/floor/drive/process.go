package drive

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"sync"
	"time"

	"github.com/felix-mq/felix/internal/selfproc"
)

// A child process prints two lines of JSON: the first when it is ready, the second, its account, when its input was
// closed and it has come to its end. Its input is closed as well when the parent dies, in whatever way, so that no
// child outlives its parent for long.

// childArg is the first argument of a child; its name and, perhaps, one argument of its own follow.
const childArg = "__bench-child"

// endTimeout bounds the end of a child.
const endTimeout = 10 * time.Second

// Child makes [Start] possible for that name. A program calls it in main before it looks at its arguments. In the child
// it runs serve and exits; in any other process it returns at once.
//
// serve gets a context that ends when the parent wants the child to end, and the argument that Start was given. It
// calls ready once, with what Start shall receive, which returns when the context has ended, and returns what
// [Process.Stop] shall receive. A child that takes too long to end is exited.
func Child(name string, serve func(ctx context.Context, arg string, ready func(any) error) (account any, err error)) {
	if len(os.Args) != 4 || os.Args[1] != childArg || os.Args[2] != name {
		return
	}
	// An interrupt from the terminal goes to the whole family. A child ends when its parent closes its input.
	signal.Ignore(os.Interrupt)
	ctx, end := context.WithCancelCause(context.Background())
	go func() { // ends with the process
		_, _ = io.Copy(io.Discard, selfproc.Input()) // until it is closed, however
		end(errEnd)
		time.AfterFunc(endTimeout, func() {
			fmt.Fprintf(os.Stderr, "drive: child %s did not end in time\n", name)
			os.Exit(1)
		})
	}()
	out := json.NewEncoder(os.Stdout)
	account, err := serve(ctx, os.Args[3], func(v any) error {
		if err := out.Encode(v); err != nil {
			return err
		}
		<-ctx.Done()
		return nil
	})
	if err == nil {
		err = out.Encode(account)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

var errEnd = errors.New("drive: the parent process has ended this one")

// Process is a child that was started.
type Process struct {
	name string
	proc *selfproc.Process
	out  *json.Decoder

	once sync.Once
	kill *time.Timer // runs from end on
}

// end tells the child to end, and sees to it that it does.
func (p *Process) end() {
	p.once.Do(func() {
		_ = p.proc.In.Close()
		p.kill = time.AfterFunc(endTimeout+time.Second, func() { _ = p.proc.Process.Kill() })
	})
}

// Start starts a child of that name with an argument and settings that are added to its environment. It returns when
// the child is ready, with what it said in ready; if ctx ends before, it ends the child. The caller has to stop the
// process.
func Start(ctx context.Context, name, arg string, env []string, ready any) (*Process, error) {
	proc, err := selfproc.Start(env, childArg, name, arg)
	if err != nil {
		return nil, fmt.Errorf("drive: child %s: %w", name, err)
	}
	p := &Process{name: name, proc: proc, out: json.NewDecoder(proc.Out)}
	unbind := context.AfterFunc(ctx, p.end)
	err = p.out.Decode(ready)
	unbind()
	if ctx.Err() != nil {
		_ = p.Stop(nil) // why it failed is known
		return nil, fmt.Errorf("drive: child %s: %w", name, context.Cause(ctx))
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("drive: child %s did not become ready: %w", name, err), p.Stop(nil))
	}
	return p, nil
}

// Stop ends the child and waits until it has gone; one that does not end within some seconds is killed. account, unless
// it is nil, receives what the child said in the end.
func (p *Process) Stop(account any) error {
	p.end()
	defer p.kill.Stop()
	var err error
	if account != nil {
		if err = p.out.Decode(account); errors.Is(err, io.EOF) {
			err = nil // the exit status says why it printed nothing
		}
	}
	if err = errors.Join(err, p.proc.Wait()); err != nil {
		return fmt.Errorf("drive: child %s: %w", p.name, err)
	}
	return nil
}
