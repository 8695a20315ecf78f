package main

import (
	"errors"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"strconv"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
)

func TestMain(m *testing.M) {
	// Under nohup a hangup is ignored, by the processes that the tests start too. What is handled here is not.
	if filepath.Base(os.Args[0]) != "felix" {
		signal.Notify(make(chan os.Signal, 1), syscall.SIGHUP)
	}
	testscript.Main(m, map[string]func(){"felix": main})
}

// deadline bounds whatever is waited for.
const deadline = 30 * time.Second

// goRace keeps the race detector from waiting a second at the end of each process, of which there are hundreds.
const goRace = "atexit_sleep_ms=0"

// The scripts run felix as a process, against a broker in another one: `felix dev` in the background.
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata/script",
		RequireExplicitExec: true,
		Setup: func(e *testscript.Env) error {
			e.Setenv("XDG_CONFIG_HOME", filepath.Join(e.WorkDir, "config"))
			e.Setenv("HOME", e.WorkDir)
			e.Setenv("GORACE", goRace)
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"code": code, "ready": ready, "waitfor": waitFor,
		},
	})
}

// code runs a command and checks its exit code: code 4 felix cache get nothing.
func code(ts *testscript.TestScript, _ bool, args []string) {
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	got := 0
	if err := ts.Exec(args[1], args[2:]...); err != nil {
		exit, ok := errors.AsType[*exec.ExitError](err)
		if !ok {
			ts.Fatalf("%v", err)
		}
		got = exit.ExitCode()
	}
	if got != want {
		ts.Fatalf("exit code %d, want %d", got, want)
	}
}

// ready waits until the broker that the context "dev" leads to answers.
func ready(ts *testscript.TestScript, _ bool, _ []string) {
	for until := time.Now().Add(deadline); ; {
		err := ts.Exec("felix", "top", "--once", "--context", "dev", "--timeout", "1s")
		if err == nil {
			return
		}
		if time.Now().After(until) {
			ts.Fatalf("no broker: %v", err)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// waitFor waits until a file holds a match: waitfor FILE REGEXP.
func waitFor(ts *testscript.TestScript, _ bool, args []string) {
	want := regexp.MustCompile(args[1])
	for until := time.Now().Add(deadline); ; {
		content, err := os.ReadFile(ts.MkAbs(args[0]))
		if err == nil && want.Match(content) {
			return
		}
		if time.Now().After(until) {
			ts.Fatalf("no %q in %s: %v\n%s", want, args[0], err, content)
		}
		time.Sleep(20 * time.Millisecond)
	}
}
