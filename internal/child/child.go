// Package child runs roles of this program in processes of their own, whose processor time and memory are their own.
//
// A child is another instance of the running program. The two talk in lines of JSON: the parent sends a job and then,
// perhaps, questions on the child's standard input; the child answers on its standard output, first when it is ready.
// The child ends when its input does, which also happens when the parent dies, in whatever way.
//
// Begin at [Serve] for the child's side and at [Start] for the parent's.
package child

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"strings"
	"sync"
	"syscall"
	"time"
)

// roleArg is the first argument of a child. Its role follows.
const roleArg = "__child"

// endTimeout bounds the end of a child.
const endTimeout = 20 * time.Second

// ErrEnd is the cause of the end of a child's context.
var ErrEnd = errors.New("child: the parent process has ended this one")

// Parent is the parent process as its child sees it. Receive has one caller at a time; Send may be called from any
// goroutine.
type Parent struct {
	ctx context.Context // ends with the input
	in  <-chan json.RawMessage

	mu  sync.Mutex
	out *json.Encoder // guarded by mu
}

// Receive reads the next question of [Process.Ask]. It returns [io.EOF] when the parent wants the child to end.
func (p *Parent) Receive(v any) error {
	select {
	case text := <-p.in:
		if err := json.Unmarshal(text, v); err != nil {
			return fmt.Errorf("child: %s: %w", text, err)
		}
		return nil
	case <-p.ctx.Done():
		return io.EOF
	}
}

// Send sends something to the parent: that this process is ready, or an answer.
func (p *Parent) Send(v any) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.out.Encode(v)
}

// Serve makes [Start] possible for a role. A program calls it in main before it looks at its arguments. In a child of
// that role it runs serve and exits; in any other process it returns at once.
//
// serve gets a context that ends when the parent wants the child to end, and the job that Start was given. It sends
// once that the child is ready, and returns what [Process.Stop] shall receive. A child that takes too long to end is
// exited.
func Serve[Job any](role string, serve func(ctx context.Context, job Job, p *Parent) (account any, err error)) {
	if len(os.Args) != 3 || os.Args[1] != roleArg || os.Args[2] != role {
		return
	}
	// An interrupt from the terminal goes to the whole family. A child ends when its parent closes its input.
	signal.Ignore(os.Interrupt)
	exit := func(err error) {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	ctx, end := context.WithCancelCause(context.Background())
	in := json.NewDecoder(input())
	var job Job
	if err := in.Decode(&job); err != nil {
		exit(fmt.Errorf("child: the job of %s: %w", role, err))
	}
	questions := make(chan json.RawMessage)
	go func() { // ends with the process
		for {
			var text json.RawMessage
			if in.Decode(&text) != nil { // it is closed, however
				break
			}
			questions <- text
		}
		end(ErrEnd)
		time.AfterFunc(endTimeout, func() { exit(fmt.Errorf("child: %s did not end in time", role)) })
	}()
	p := &Parent{ctx: ctx, in: questions, out: json.NewEncoder(os.Stdout)}
	account, err := serve(ctx, job, p)
	if err == nil {
		err = p.Send(account)
	}
	if err != nil {
		exit(err)
	}
	os.Exit(0)
}

// input is the standard input of a child. A reader waits as for a connection. A read of [os.Stdin] blocks its thread
// instead, and with it the process's only processor, if it has but one, until the runtime looks after it: nothing else
// runs for up to 10 ms.
func input() *os.File {
	_ = syscall.SetNonblock(syscall.Stdin, true) // without it reads block
	return os.NewFile(uintptr(syscall.Stdin), os.Stdin.Name())
}

// Process is a child that was started. Its methods may be called from any goroutine, but for Stop, which is called
// once.
type Process struct {
	PID int

	role   string
	cmd    *exec.Cmd
	stderr *stderr

	mu  sync.Mutex // one question at a time
	in  io.WriteCloser
	out *json.Decoder

	once   sync.Once
	killed *time.Timer // kills it; runs from End on
}

// Start starts a child of that role and hands it a job. env is added to its environment. It returns when the child is
// ready, with what it said in ready; if ctx ends before, it ends the child. The error of a child that did not become
// ready has what that wrote to its standard error. The caller has to stop the process.
func Start(ctx context.Context, role string, job any, env []string, ready any) (*Process, error) {
	p, err := Spawn(role, job, env)
	if err != nil {
		return nil, err
	}
	if err := p.Ready(ctx, ready); err != nil {
		return nil, err
	}
	return p, nil
}

// Spawn starts a child and does not wait for it: the caller calls [Process.Ready], and then stops it.
func Spawn(role string, job any, env []string) (*Process, error) {
	p := &Process{role: role, stderr: &stderr{}}
	self, err := os.Executable()
	if err == nil {
		p.cmd = exec.Command(self, roleArg, role)
		p.cmd.Env, p.cmd.Stderr = append(os.Environ(), env...), p.stderr
		p.in, err = p.cmd.StdinPipe()
	}
	var out io.Reader
	if err == nil {
		out, err = p.cmd.StdoutPipe()
	}
	if err == nil {
		err = p.cmd.Start()
	}
	if err != nil {
		return nil, fmt.Errorf("child: %s: %w", role, err)
	}
	p.PID, p.out = p.cmd.Process.Pid, json.NewDecoder(out)
	_ = json.NewEncoder(p.in).Encode(job) // a child that did not read it does not become ready
	return p, nil
}

// Ready waits for the first thing that the child sends, or for the end of ctx. With an error the child has ended.
func (p *Process) Ready(ctx context.Context, ready any) error {
	unbind := context.AfterFunc(ctx, p.End)
	err := p.out.Decode(ready)
	if unbind(); ctx.Err() != nil {
		_ = p.Stop(nil) // why it failed is known
		return fmt.Errorf("child: %s: %w", p.role, context.Cause(ctx))
	}
	if err != nil {
		if errors.Is(err, io.EOF) {
			err = nil // its exit status and what it wrote say why
		}
		err = errors.Join(err, p.Stop(nil))
		return fmt.Errorf("child: %s did not become ready: %w\n%s", p.role, err, strings.TrimSpace(p.stderr.text()))
	}
	p.stderr.pass()
	return nil
}

// Ask sends a question and waits for the answer.
func (p *Process) Ask(question, answer any) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	err := json.NewEncoder(p.in).Encode(question)
	if err == nil {
		err = p.out.Decode(answer)
	}
	if err != nil {
		return fmt.Errorf("child: asking %s: %w", p.role, err)
	}
	return nil
}

// Signal sends the child a signal.
func (p *Process) Signal(s os.Signal) error { return p.cmd.Process.Signal(s) }

// Kill ends the child at once, so that it cannot tell anybody. Only Stop waits for that.
func (p *Process) Kill() error { return p.cmd.Process.Kill() }

// End tells the child to end, and sees to it that it does. It does not wait for that, as Stop does.
func (p *Process) End() {
	p.once.Do(func() {
		_ = p.in.Close()
		p.killed = time.AfterFunc(endTimeout+time.Second, func() { _ = p.Kill() })
	})
}

// Stop ends the child and waits until it has gone; one that takes too long is killed. account, unless it is nil,
// receives what the child said in the end. The error is that of the child's exit status.
func (p *Process) Stop(account any) error {
	p.End()
	defer p.killed.Stop()
	if account == nil {
		account = new(json.RawMessage)
	}
	err := p.out.Decode(account)
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		err = nil // the exit status says why it printed nothing
	}
	if err = errors.Join(err, p.cmd.Wait()); err != nil {
		return fmt.Errorf("child: %s: %w", p.role, err)
	}
	return nil
}

// CPUTime returns the processor time that a child took which has been stopped, with that of its own children.
func (p *Process) CPUTime() time.Duration {
	return p.cmd.ProcessState.UserTime() + p.cmd.ProcessState.SystemTime()
}

// stderr keeps what a child writes until it is ready, and passes on what comes from then on.
type stderr struct {
	mu    sync.Mutex
	kept  bytes.Buffer // guarded by mu, like ready
	ready bool
}

func (s *stderr) Write(b []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ready {
		return os.Stderr.Write(b)
	}
	return s.kept.Write(b)
}

func (s *stderr) text() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.kept.String()
}

func (s *stderr) pass() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ready = true
	_, _ = s.kept.WriteTo(os.Stderr)
}
