//go:build unix

package main

import (
	"bytes"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/felix-mq/felix/client/felixtest"
)

// A publish that fails ends felix pub at once, and not with the next line of an input that may never have one.
func TestPubDoesNotWaitForInputAfterAFailure(t *testing.T) {
	b := felixtest.Start(t)
	token, err := b.Token(time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	t.Setenv("FELIX_AUTH_TOKEN", token)
	t.Setenv("XDG_CONFIG_HOME", t.TempDir())
	in, lines := io.Pipe()
	defer func() { _ = lines.Close() }()
	go func() { _, _ = io.WriteString(lines, "one\n") }()
	var errOut bytes.Buffer
	ended := make(chan int, 1)
	go func() {
		ended <- run([]string{"pub", "nowhere", "--addr", b.Addr(), "--insecure", "--tenant", felixtest.Tenant}, in, io.Discard, &errOut)
	}()
	select {
	case code := <-ended:
		if code != exitNotFound || !strings.Contains(errOut.String(), "stream not found") {
			t.Errorf("exit code %d, %s", code, errOut.String())
		}
	case <-time.After(deadline):
		t.Fatal("it waits for another line")
	}
}

// Of a file that is a payload no more is read than a frame holds.
func TestPayloadFilesWithoutEnd(t *testing.T) {
	for _, args := range [][]string{{"pub", "demo", "--file", "/dev/zero"}, {"cache", "put", "k", "--file", "/dev/zero"}} {
		var errOut bytes.Buffer
		if code := run(args, strings.NewReader(""), io.Discard, &errOut); code != exitUsage || !strings.Contains(errOut.String(), "is longer than") {
			t.Errorf("%q: exit code %d, %s", args, code, errOut.String())
		}
	}
}

// felix top goes on when an answer breaks off, as those of a broker that is killed do.
func TestTopGoesOnAfterABrokenAnswer(t *testing.T) {
	var asked atomic.Int32
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/streams" {
			_, _ = io.WriteString(w, "[]")
			return
		}
		if n := asked.Add(1); n == 2 {
			w.Header().Set("Content-Length", "1000")
			_, _ = io.WriteString(w, "felix_connections ")
			panic(http.ErrAbortHandler)
		} else if n == 3 {
			_, _ = io.WriteString(w, "<html>starting</html>")
			return
		}
		_, _ = io.WriteString(w, "felix_connections 1\n")
	}))
	defer server.Close()
	cmd, out, errOut := felix(t, nil, "top", "--interval", "100ms", "-o", "ndjson", "--metrics-url", server.URL+"/metrics"), new(output), new(output)
	cmd.Stdout, cmd.Stderr = out, errOut
	start(t, cmd)
	await(t, "two more answers", func() bool { return strings.Count(out.String(), "\n") >= 3 || cmd.ProcessState != nil })
	if err := cmd.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Errorf("%v: %s", err, errOut)
	}
	if !strings.Contains(errOut.String(), "looking again") {
		t.Errorf("nothing is said of the broken answers: %s", errOut)
	}
}
