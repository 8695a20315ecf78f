//go:build unix

package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/felix-mq/felix/client"
	"github.com/felix-mq/felix/client/felixtest"
)

// reader starts felix sub --resume as a process, at a broker whose streams a test fills.
type reader struct {
	broker *felixtest.Broker
	pub    *client.Publisher
	file   string
	env    []string
}

func newReader(t *testing.T) *reader {
	b := felixtest.Start(t)
	token, err := b.Token(time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	return &reader{
		broker: b, pub: b.Connect(t).Publisher(felixtest.Namespace, felixtest.Stream),
		file: filepath.Join(t.TempDir(), "position"), env: []string{"FELIX_AUTH_TOKEN=" + token},
	}
}

// publish publishes n events, PREFIX-0 and so on, even while the broker restarts.
func (r *reader) publish(t *testing.T, prefix string, n int) {
	t.Helper()
	for i := range n {
		await(t, "publish", func() bool { return r.pub.Publish(t.Context(), fmt.Appendf(nil, "%s-%d", prefix, i)) == nil })
	}
}

func (r *reader) command(t *testing.T, args ...string) (cmd *exec.Cmd, out, errOut *output) {
	t.Helper()
	args = append([]string{
		"sub", felixtest.Stream, "--addr", r.broker.Addr(), "--insecure", "--tenant", felixtest.Tenant, "--namespace", felixtest.Namespace,
		"--resume", r.file, "-o", "raw",
	}, args...)
	cmd, out, errOut = felix(t, r.env, args...), new(output), new(output)
	cmd.Stdout, cmd.Stderr = out, errOut
	return cmd, out, errOut
}

func start(t *testing.T, cmd *exec.Cmd) {
	t.Helper()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
}

// position returns the offset in the file, or -1.
func (r *reader) position() (offset int) {
	text, err := os.ReadFile(r.file)
	if err != nil {
		return -1
	}
	p, err := parsePosition(string(text))
	if err != nil {
		return -1
	}
	return int(p.Offset)
}

func (r *reader) awaitPosition(t *testing.T, want int) {
	t.Helper()
	await(t, fmt.Sprintf("position %d", want), func() bool { return r.position() == want })
}

// rest runs the command until it has printed the last event that there is, and returns the events.
func (r *reader) rest(t *testing.T, last string, args ...string) []string {
	t.Helper()
	cmd, out, errOut := r.command(t, args...)
	start(t, cmd)
	await(t, "the event "+last, func() bool { return strings.Contains(out.String(), last+"\n") })
	end(t, cmd, syscall.SIGINT)
	if code := cmd.ProcessState.ExitCode(); code != exitOK {
		t.Errorf("exit code %d: %s", code, errOut)
	}
	return strings.Fields(out.String())
}

func end(t *testing.T, cmd *exec.Cmd, signal os.Signal) {
	t.Helper()
	if err := cmd.Process.Signal(signal); err != nil {
		t.Error(err)
	}
	_ = cmd.Wait()
}

// Every way to end saves the position after the last printed event.
func TestResumeAfterEveryEnd(t *testing.T) {
	for _, tt := range []struct {
		signal syscall.Signal
		code   int
	}{{syscall.SIGINT, exitOK}, {syscall.SIGTERM, exitOK}, {syscall.SIGHUP, exitOK}, {syscall.SIGKILL, -1}} {
		t.Run(tt.signal.String(), func(t *testing.T) {
			t.Parallel()
			r := newReader(t)
			cmd, out, errOut := r.command(t)
			start(t, cmd)
			r.awaitPosition(t, 0) // at once, before any event
			r.publish(t, "one", 3)
			await(t, "events", func() bool { return strings.Contains(out.String(), "one-2") })
			if tt.signal == syscall.SIGKILL {
				r.awaitPosition(t, 3) // in time, although nothing else comes
			}
			end(t, cmd, tt.signal)
			if code := cmd.ProcessState.ExitCode(); code != tt.code {
				t.Errorf("exit code %d, want %d: %s", code, tt.code, errOut)
			}
			r.awaitPosition(t, 3)
			r.publish(t, "two", 3)
			if got := r.rest(t, "two-2"); got[0] != "two-0" {
				t.Errorf("goes on with %v", got)
			}
		})
	}
}

// A position of a broker's earlier life is not mixed with that of its present one.
func TestResumeAfterRestart(t *testing.T) {
	r := newReader(t)
	cmd, out, errOut := r.command(t)
	start(t, cmd)
	r.awaitPosition(t, 0)
	r.publish(t, "old", 20)
	await(t, "events", func() bool { return strings.Contains(out.String(), "old-19") })
	r.awaitPosition(t, 20)
	r.broker.Restart(t)
	await(t, "subscribed again", func() bool { return strings.Contains(errOut.String(), "subscribed again") })
	r.awaitPosition(t, 0)
	end(t, cmd, syscall.SIGINT)
	r.publish(t, "new", 30)
	if got := r.rest(t, "new-29"); got[0] != "new-0" || len(got) != 30 {
		t.Errorf("goes on with %v", got)
	}
}

// What could not be written is printed again.
func TestResumeAfterFailedOutput(t *testing.T) {
	r := newReader(t)
	r.publish(t, "e", 3)
	full, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
	if err != nil {
		t.Skip(err)
	}
	defer full.Close()
	cmd, _, errOut := r.command(t, "--from", "earliest")
	cmd.Stdout = full
	_ = cmd.Run()
	if code := cmd.ProcessState.ExitCode(); code != exitError || !strings.Contains(errOut.String(), "no space left") {
		t.Errorf("exit code %d: %s", code, errOut)
	}

	read, write, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	read.Close()
	cmd, _, errOut = r.command(t, "--from", "earliest")
	cmd.Stdout = write
	_ = cmd.Run()
	write.Close()
	if status, ok := cmd.ProcessState.Sys().(syscall.WaitStatus); !ok || !status.Signaled() || status.Signal() != syscall.SIGPIPE {
		t.Errorf("ended with %v, want SIGPIPE: %s", cmd.ProcessState, errOut)
	}
	if got := r.rest(t, "e-2", "--from", "earliest"); len(got) != 3 {
		t.Errorf("goes on with %v", got)
	}
	r.awaitPosition(t, 3)
}

// An output that nobody reads holds up neither the end nor the position.
func TestResumeWithBlockedOutput(t *testing.T) {
	t.Parallel()
	r := newReader(t)
	r.publish(t, "e", 3)
	read, write, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer read.Close()
	cmd, _, errOut := r.command(t, "--from", "earliest")
	cmd.Stdout = write
	start(t, cmd)
	write.Close()
	r.awaitPosition(t, 3)
	if err := r.pub.Publish(t.Context(), make([]byte, 200<<10)); err != nil { // more than a pipe holds
		t.Fatal(err)
	}
	one := make([]byte, len("e-0\ne-1\ne-2\n")+1)
	for n := 0; n < len(one); { // with the first byte of the large event it is being written
		k, err := read.Read(one[n:])
		if err != nil {
			t.Fatal(err)
		}
		n += k
	}
	end(t, cmd, syscall.SIGTERM)
	if code := cmd.ProcessState.ExitCode(); code != exitInterrupted || !strings.Contains(errOut.String(), "interrupted") {
		t.Errorf("exit code %d: %s", code, errOut)
	}
	r.awaitPosition(t, 3)
}

// A file that cannot be written is an error at the start, and is not hidden by an interrupt.
func TestResumeFileCannotBeWritten(t *testing.T) {
	r := newReader(t)
	r.file = filepath.Join(t.TempDir(), "missing", "position")
	cmd, _, errOut := r.command(t)
	_ = cmd.Run()
	if code := cmd.ProcessState.ExitCode(); code != exitUsage || !strings.Contains(errOut.String(), "--resume") {
		t.Errorf("exit code %d: %s", code, errOut)
	}

	dir := t.TempDir()
	r.file = filepath.Join(dir, "position")
	cmd, out, errOut := r.command(t)
	start(t, cmd)
	r.awaitPosition(t, 0)
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	r.publish(t, "e", 1)
	await(t, "the event", func() bool { return strings.Contains(out.String(), "e-0") })
	_ = cmd.Process.Signal(syscall.SIGINT) // it may have ended by itself
	_ = cmd.Wait()
	if code := cmd.ProcessState.ExitCode(); code != exitError || !strings.Contains(errOut.String(), "saving the position") {
		t.Errorf("exit code %d: %s", code, errOut)
	}
}
