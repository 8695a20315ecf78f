package main

import (
	"fmt"
	"io"
	"os"
	"regexp"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// A terminal gets one line that is written over, and nothing of it stays.
func TestLiveLine(t *testing.T) {
	control, err := os.OpenFile("/dev/ptmx", os.O_RDWR, 0)
	if err != nil {
		t.Skipf("no terminals here: %v", err)
	}
	defer func() { _ = control.Close() }()
	number, err := unix.IoctlGetInt(int(control.Fd()), unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.IoctlSetPointerInt(int(control.Fd()), unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	terminal, err := os.OpenFile(fmt.Sprintf("/dev/pts/%d", number), os.O_RDWR, 0)
	if err != nil {
		t.Skipf("no terminals here: %v", err)
	}
	cmd := program(t, "--duration=1s", "--rate=2000", "--warmup=250ms", "--interval=100ms", "--json")
	cmd.Stderr = terminal
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	_ = terminal.Close()
	shown := make(chan string)
	go func() {
		b, _ := io.ReadAll(control) // ends with an error when the program has let go of the terminal
		shown <- string(b)
	}()
	if err := cmd.Wait(); err != nil {
		t.Error(err)
	}
	text, _, _ := strings.Cut(<-shown, "      stage,") // what a build with telemetry adds
	if !regexp.MustCompile(`^(\r\x1b\[K[^\r\n]*)+\r\x1b\[K$`).MatchString(text) {
		t.Errorf("not one line: %q", text)
	}
	if !regexp.MustCompile(`\d+/s  p99 [\d.]+ .?s  0 dropped  \d+s to go`).MatchString(text) {
		t.Errorf("got %q", text)
	}
}
