package main

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// console is a terminal that a process is started at, seen from the side of the keyboard and the screen.
type console struct {
	control *os.File
	shown   strings.Builder
}

// startAt starts this program as felix at a terminal of its own.
func startAt(t *testing.T, env []string, args ...string) (*console, *exec.Cmd) {
	t.Helper()
	control, err := os.OpenFile("/dev/ptmx", os.O_RDWR, 0)
	if err != nil {
		t.Skipf("no terminals here: %v", err)
	}
	t.Cleanup(func() { control.Close() })
	number, err := unix.IoctlGetInt(int(control.Fd()), unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.IoctlSetPointerInt(int(control.Fd()), unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	terminal, err := os.OpenFile(fmt.Sprintf("/dev/pts/%d", number), os.O_RDWR|syscall.O_NOCTTY, 0)
	if err != nil {
		t.Skipf("no terminals here: %v", err)
	}
	defer terminal.Close()
	cmd := felix(t, env, args...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = terminal, terminal, terminal
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	return &console{control: control}, cmd
}

// await reads the screen until it shows something, or the process has let go of it.
func (c *console) await(t *testing.T, want string) {
	t.Helper()
	for b := make([]byte, 4096); !strings.Contains(c.shown.String(), want); {
		n, err := c.control.Read(b)
		c.shown.Write(b[:n])
		if err != nil {
			t.Fatalf("the terminal never showed %q: %q", want, c.shown.String())
		}
	}
}

func (c *console) typeKeys(t *testing.T, keys string) {
	t.Helper()
	if _, err := c.control.WriteString(keys); err != nil {
		t.Fatal(err)
	}
}

// Commands that read from a terminal say so, and the first Ctrl-C ends them.
func TestInterruptAtTerminal(t *testing.T) {
	for _, tt := range []struct{ args, says string }{
		{"cache put k", "reading the value"},
		{"token inspect -", "reading the token"},
	} {
		c, cmd := startAt(t, nil, strings.Fields(tt.args)...)
		c.await(t, tt.says)
		c.typeKeys(t, "\x03")
		c.await(t, "felix: interrupted")
		_ = cmd.Wait()
		if code := cmd.ProcessState.ExitCode(); code != exitInterrupted {
			t.Errorf("%s: exit code %d, want %d", tt.args, code, exitInterrupted)
		}
	}
}
