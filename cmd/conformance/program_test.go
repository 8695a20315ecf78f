package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/felix-mq/felix/codec"
	"github.com/felix-mq/felix/conformance/script"
)

// lineProgramEnv makes the test binary a program that speaks the line protocol; its value names the program's fault.
const lineProgramEnv = "FELIX_CONFORMANCE_LINE_PROGRAM"

// lineRequest is a request of the line protocol (docs/protocol/conformance.md).
type lineRequest struct {
	ID           uint64          `json:"id"`
	Call         string          `json:"call"`
	TimeoutMS    int64           `json:"timeout_ms"`
	Addr         string          `json:"addr"`
	ServerName   string          `json:"server_name"`
	CAPEM        string          `json:"ca_pem"`
	Namespace    string          `json:"namespace"`
	Stream       string          `json:"stream"`
	Payload      []byte          `json:"payload"`
	Payloads     [][]byte        `json:"payloads"`
	Start        json.RawMessage `json:"start"`
	Subscription uint64          `json:"subscription"`
	Cache        string          `json:"cache"`
	Key          string          `json:"key"`
	Value        []byte          `json:"value"`
}

// lineAnswer is an answer: the members that its call has.
type lineAnswer map[string]any

// lineServer is the example of a program for --exec: it serves package client over the line protocol. Each call has a
// goroutine of its own, because a call may wait for what another one does.
type lineServer struct {
	c     goClient
	wrong string

	mu   sync.Mutex // guards all below
	out  io.Writer
	subs map[uint64]script.Subscription
}

func lineProgram(in io.Reader, out io.Writer, wrong string) (code int) {
	s := &lineServer{wrong: wrong, out: out, subs: make(map[uint64]script.Subscription)}
	var calls sync.WaitGroup
	defer calls.Wait()
	defer s.c.Close()
	lines := bufio.NewScanner(in)
	lines.Buffer(nil, longestLine)
	for lines.Scan() {
		var r lineRequest
		if err := json.Unmarshal(lines.Bytes(), &r); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		if r.Call == "publish" {
			switch s.wrong {
			case "ends":
				return 3
			case "silent":
				continue
			case "deaf":
				select {}
			}
		}
		calls.Go(func() { s.serve(&r) })
	}
	return 0
}

func (s *lineServer) serve(r *lineRequest) {
	ctx, cancel := context.Background(), context.CancelFunc(func() {})
	if r.TimeoutMS > 0 {
		ctx, cancel = context.WithTimeout(ctx, time.Duration(r.TimeoutMS)*time.Millisecond)
	}
	defer cancel()
	a, err := s.call(ctx, r)
	if err != nil {
		a = lineAnswer{"error": err.Error()}
		if errors.Is(err, script.ErrEnded) {
			a["ended"] = true
		}
	}
	a["id"] = r.ID
	if s.wrong == "wrong id" && r.Call == "publish" {
		a["id"] = r.ID + 1000
	}
	line, err := json.Marshal(a)
	if err != nil {
		panic(err)
	}
	if s.wrong == "garbage" && r.Call == "publish" {
		line = []byte("publishing...")
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	_, _ = s.out.Write(append(line, '\n'))
	if r.Call == "close" && s.wrong == "ends after close" {
		os.Exit(0)
	}
}

func (s *lineServer) call(ctx context.Context, r *lineRequest) (lineAnswer, error) {
	a := lineAnswer{}
	switch r.Call {
	case "connect":
		return a, s.c.Connect(ctx, script.Endpoint{Addr: r.Addr, ServerName: r.ServerName, CA: []byte(r.CAPEM)})
	case "publish":
		return a, s.c.Publish(ctx, r.Namespace, r.Stream, r.Payload)
	case "publish_batch":
		return a, s.c.PublishBatch(ctx, r.Namespace, r.Stream, r.Payloads)
	case "subscribe":
		return s.subscribe(ctx, r)
	case "next":
		ev, err := s.sub(r).Next(ctx)
		if err != nil {
			return nil, err
		}
		if s.wrong != "no payload" {
			a["payload"] = notNil(ev.Payload)
		}
		if ev.HasOffset {
			a["offset"] = ev.Offset
		}
		return a, nil
	case "unsubscribe":
		return a, s.sub(r).Close()
	case "cache_put":
		return a, s.c.CachePut(ctx, r.Namespace, r.Cache, r.Key, r.Value)
	case "cache_get":
		value, hit, err := s.c.CacheGet(ctx, r.Namespace, r.Cache, r.Key)
		a["value"] = nil
		if hit {
			a["value"] = notNil(value)
		}
		return a, err
	case "close":
		return a, s.c.Close()
	default:
		return nil, fmt.Errorf("unknown call %q", r.Call)
	}
}

func (s *lineServer) subscribe(ctx context.Context, r *lineRequest) (lineAnswer, error) {
	start := codec.Start{Kind: codec.StartUnset}
	switch text := string(r.Start); text {
	case "":
	case `"latest"`:
		start.Kind = codec.StartLatest
	case `"earliest"`:
		start.Kind = codec.StartEarliest
	default:
		at := struct{ Offset *uint64 }{&start.Offset}
		if err := json.Unmarshal(r.Start, &at); err != nil {
			return nil, err
		}
		start.Kind = codec.StartOffset
	}
	sub, err := s.c.Subscribe(ctx, r.Namespace, r.Stream, start)
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	id := uint64(len(s.subs))
	s.subs[id] = sub
	return lineAnswer{"subscription": id}, nil
}

func (s *lineServer) sub(r *lineRequest) script.Subscription {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.subs[r.Subscription]
}

// lineCommand is a shell command that runs the test binary as such a program.
func lineCommand(t *testing.T, wrong string) string {
	t.Helper()
	path, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	quote := func(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }
	return "env " + quote(lineProgramEnv+"="+wrong) + " " + quote(path)
}

func TestExec(t *testing.T) {
	code, stdout, stderr := runArgs("client", "--exec", lineCommand(t, ""), "--timeout", "30s")
	if code != exitOK {
		t.Errorf("status %d\n%s%s", code, stdout, stderr)
	}
}

// TestExecEnds sees that a program may end by itself once it is closed.
func TestExecEnds(t *testing.T) {
	code, stdout, stderr := runArgs("client", "--exec", lineCommand(t, "ends after close"), "--run", "^C3-0")
	if code != exitOK {
		t.Errorf("status %d\n%s%s", code, stdout, stderr)
	}
}

// TestExecFaults judges programs that do not keep to the line protocol.
func TestExecFaults(t *testing.T) {
	for _, tc := range []struct{ name, command, run, want string }{
		{"ends", lineCommand(t, "ends"), "^IC-35", "the program ended by itself: exit status 3"},
		{"garbage", lineCommand(t, "garbage"), "^IC-35", `what is no answer: "publishing..."`},
		{"wrong id", lineCommand(t, "wrong id"), "^IC-35", "which does not wait"},
		{"no payload", lineCommand(t, "no payload"), "^IC-35", "has no payload"},
		{"silent", lineCommand(t, "silent"), "^IC-35", "did not answer publish"},
		{"deaf", lineCommand(t, "deaf"), "^IC-35", "did not answer"},
		// The end of the program is an error, which is what the case waits for.
		{"ends where an error is wanted", lineCommand(t, "ends"), "^C3-04a", "the program ended by itself"},
		{"no such program", "/nowhere", "^IC-35", "the program ended by itself: exit status"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			code, stdout, stderr := runArgs("client", "--exec", tc.command, "--run", tc.run, "--timeout", "2s")
			if code != exitFailed || !strings.Contains(stdout, tc.want) {
				t.Errorf("status %d, no %q in\n%s%s", code, tc.want, stdout, stderr)
			}
		})
	}
}

// TestExecStderr sees that what a program says on the side is passed through.
func TestExecStderr(t *testing.T) {
	_, _, stderr := runArgs("client", "--exec", "cat /nowhere/at/all", "--run", "^IC-35")
	if !strings.Contains(stderr, "/nowhere/at/all") {
		t.Errorf("standard error: %q", stderr)
	}
}
