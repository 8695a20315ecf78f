//go:build unix

package main

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// What somebody with a fresh clone does, and how long that may take, without the build.
const (
	maxCommands = 5
	maxTime     = time.Minute
)

// firstMessage is the page that leads a newcomer to the first event.
const firstMessage = "../../docs/start/first-message.md"

// quickStart returns the commands of the quick start, by terminal.
func quickStart(t *testing.T) (terminals [][]string) {
	t.Helper()
	page, err := os.ReadFile(firstMessage)
	if err != nil {
		t.Fatal(err)
	}
	_, section, _ := strings.Cut(string(page), "\n## Quick start\n")
	section, _, _ = strings.Cut(section, "\n## ")
	for _, block := range regexp.MustCompile("(?s)```sh\n(.*?)```").FindAllStringSubmatch(section, 3) {
		terminals = append(terminals, strings.Split(strings.TrimSpace(block[1]), "\n"))
	}
	return terminals
}

// terminal is a shell that runs commands as they are typed, and what it has printed.
type terminal struct {
	cmd *exec.Cmd

	mu   sync.Mutex
	text bytes.Buffer
}

func (s *terminal) Write(b []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.text.Write(b)
}

func (s *terminal) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.text.String()
}

func openTerminal(ctx context.Context, t *testing.T, dir string, commands []string) *terminal {
	t.Helper()
	s := &terminal{}
	s.cmd = exec.CommandContext(ctx, "bash", "-e", "-c", strings.Join(commands, "\n"))
	s.cmd.Dir, s.cmd.Stdout, s.cmd.Stderr = dir, s, s
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // Ctrl-C goes to all of its processes
	if err := s.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	return s
}

// await waits until the terminal shows something.
func (s *terminal) await(ctx context.Context, t *testing.T, want string) {
	t.Helper()
	for !strings.Contains(s.String(), want) {
		if ctx.Err() != nil {
			t.Fatalf("%s never printed %q:\n%s", s.cmd.Args[3], want, s)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// interrupt is Ctrl-C.
func (s *terminal) interrupt(t *testing.T) {
	t.Helper()
	if err := syscall.Kill(-s.cmd.Process.Pid, syscall.SIGINT); err != nil {
		t.Error(err)
	}
	if err := s.cmd.Wait(); err != nil {
		t.Errorf("%s: %v\n%s", s.cmd.Args[3], err, s)
	}
}

// The page's own commands bring an event from one terminal to another.
func TestQuickStart(t *testing.T) {
	terminals := quickStart(t)
	if len(terminals) != 3 || !strings.HasPrefix(terminals[0][0], "go build ") {
		t.Fatalf("not three terminals that begin with go build: %q", terminals)
	}
	if n := len(terminals[0]) + len(terminals[1]) + len(terminals[2]); n > maxCommands {
		t.Errorf("%d commands, want at most %d", n, maxCommands)
	}

	// What go build has made: this program, which is felix under that name. Nothing else of the machine comes in.
	dir := t.TempDir()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(dir, "bin"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(self, filepath.Join(dir, "bin", "felix")); err != nil {
		t.Fatal(err)
	}
	t.Setenv("XDG_CONFIG_HOME", dir)
	t.Setenv("HOME", dir)
	t.Setenv("GORACE", goRace)
	t.Setenv("FELIX_QUIC_BIND", "127.0.0.1:0") // others may use the machine as well

	ctx, cancel := context.WithTimeout(t.Context(), maxTime)
	defer cancel()
	began := time.Now()
	broker := openTerminal(ctx, t, dir, terminals[0][1:])
	broker.await(ctx, t, "sub orders") // it says what to do next
	subscriber := openTerminal(ctx, t, dir, terminals[1])
	subscriber.await(ctx, t, "subscribed")
	publisher := openTerminal(ctx, t, dir, terminals[2])
	if err := publisher.cmd.Wait(); err != nil {
		t.Errorf("%v\n%s", err, publisher)
	}
	subscriber.await(ctx, t, "0  hello\n")
	t.Logf("%d commands and %v to the first event", len(terminals[0])+len(terminals[1])+len(terminals[2]), time.Since(began).Round(time.Millisecond))
	subscriber.interrupt(t)
	broker.interrupt(t)
}

// The page's program compiles as it is printed.
func TestFirstProgram(t *testing.T) {
	page, err := os.ReadFile(firstMessage)
	if err != nil {
		t.Fatal(err)
	}
	program := regexp.MustCompile("(?s)```go\n(package main\n.*?)```").FindSubmatch(page)
	if program == nil {
		t.Fatal("there is none")
	}
	file := filepath.Join(t.TempDir(), "main.go")
	if err := os.WriteFile(file, program[1], 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.CommandContext(t.Context(), "go", "vet", file).CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}
