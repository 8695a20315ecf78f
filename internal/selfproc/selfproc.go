// Package selfproc starts another instance of the running program, whose processor time and memory are its own, and
// connects to its standard input and output. What the two say to each other is their business.
package selfproc

import (
	"fmt"
	"io"
	"os"
	"os/exec"
	"syscall"
)

// Process is an instance that was started. Its Wait must be called, when all of Out has been read.
type Process struct {
	*exec.Cmd
	In  io.WriteCloser // its input, which ends when this is closed
	Out io.Reader      // its output
}

// Start starts an instance with these arguments, and with env added to the environment. Its errors go to this one's.
func Start(env []string, args ...string) (*Process, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, fmt.Errorf("finding this program: %w", err)
	}
	cmd := exec.Command(self, args...)
	cmd.Env = append(os.Environ(), env...)
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	return &Process{cmd, in, out}, nil
}

// Input is the standard input of a process that [Start] has started. A reader waits as for a connection. A read of
// [os.Stdin] blocks its thread instead, and with it the process's only processor, if it has but one, until the runtime
// looks after it: nothing else runs for up to 10 ms.
func Input() *os.File {
	_ = syscall.SetNonblock(syscall.Stdin, true) // without it reads block
	return os.NewFile(uintptr(syscall.Stdin), os.Stdin.Name())
}
