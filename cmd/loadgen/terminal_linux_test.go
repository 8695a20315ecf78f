package main

import (
	"fmt"
	"os"
	"regexp"
	"strings"
	"syscall"
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
	cmd := program(t, "--duration=1m", "--rate=2000", "--warmup=250ms", "--interval=100ms", "--json")
	cmd.Stderr = terminal
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	_ = terminal.Close()
	progress := regexp.MustCompile(`\d+/s  p99 [\d.]+ .?s  0 dropped  \d+s to go`)
	var shown, b []byte
	for b = make([]byte, 4096); ; {
		n, err := control.Read(b)
		before := progress.Match(shown)
		if shown = append(shown, b[:n]...); !before && progress.Match(shown) { // seen enough
			if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
				t.Error(err)
			}
		}
		if err != nil { // the program has let go of the terminal
			break
		}
	}
	_ = cmd.Wait()
	text, _, _ := strings.Cut(string(shown), "      stage,") // what a build with telemetry adds
	if !regexp.MustCompile(`^(\r\x1b\[K[^\r\n]*)+\r\x1b\[Kloadgen: ended by a signal\r\n$`).MatchString(text) {
		t.Errorf("not one line: %q", text)
	}
	if !progress.MatchString(text) {
		t.Errorf("got %q", text)
	}
}
