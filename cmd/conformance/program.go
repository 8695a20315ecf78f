package main

import (
	"bufio"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os/exec"
	"sync"
	"time"

	"github.com/felix-mq/felix/codec"
	"github.com/felix-mq/felix/conformance/script"
)

// program lets the cases drive a client in another process, by the line protocol of docs/protocol/conformance.md: each
// call is a line on its standard input, and each answer a line on its standard output. One goroutine reads the answers,
// and ends with the process; end waits for both.
type program struct {
	cmd  *exec.Cmd
	in   io.WriteCloser
	kill context.CancelFunc
	read chan struct{} // closed when nothing more will be read

	overdue *time.Timer // ends a program that owes an answer when the case is over
	unwatch func() bool

	writing sync.Mutex // held for one line: the reader must not wait for a program that does not read

	mu      sync.Mutex // guards all below
	lastID  uint64
	waiting map[uint64]waitingCall
	fault   error // what the program did wrong as a program
	ending  bool  // it may end
	gone    bool  // it answers no more
}

type waitingCall struct {
	name   string
	answer chan answer // capacity 1; closed if there will be none
}

// fields are the members of a request other than id, call and timeout_ms.
type fields map[string]any

// answer is a line from the program.
type answer struct {
	ID           uint64  `json:"id"`
	Error        *string `json:"error"`
	Ended        bool    `json:"ended"`
	Subscription *uint64 `json:"subscription"`
	Payload      []byte  `json:"payload"` // nil if absent
	Offset       *uint64 `json:"offset"`
	Value        []byte  `json:"value"` // nil for a miss
}

const (
	// grace is how much longer than its case a program may take for an answer, and to end.
	grace = 2 * time.Second
	// longestLine is far above what any case asks for.
	longestLine = 64 << 20
)

var errProgramEnded = errors.New("the program ended")

// startProgram starts a command of sh for one case, which ctx ends.
func startProgram(ctx context.Context, command string, stderr io.Writer) (*program, error) {
	life, kill := context.WithCancel(context.WithoutCancel(ctx))
	p := &program{kill: kill, read: make(chan struct{}), waiting: make(map[uint64]waitingCall)}
	p.cmd = exec.CommandContext(life, "sh", "-c", "exec "+command) // the shell gives way to what is killed in the end
	p.cmd.Stderr, p.cmd.WaitDelay = stderr, grace
	in, errIn := p.cmd.StdinPipe()
	out, errOut := p.cmd.StdoutPipe()
	if err := errors.Join(errIn, errOut); err != nil {
		kill()
		return nil, err
	}
	p.in = in
	if err := p.cmd.Start(); err != nil {
		kill()
		return nil, err
	}
	p.overdue = time.AfterFunc(time.Hour, p.giveUp)
	p.overdue.Stop()
	p.unwatch = context.AfterFunc(ctx, func() { p.overdue.Reset(grace) })
	go p.readAnswers(out)
	return p, nil
}

func (p *program) readAnswers(out io.Reader) {
	defer close(p.read)
	lines := bufio.NewScanner(out)
	lines.Buffer(nil, longestLine)
	for lines.Scan() {
		var a answer
		if err := json.Unmarshal(lines.Bytes(), &a); err != nil {
			p.broke(fmt.Errorf("the program printed what is no answer: %.100q", lines.Bytes()))
			return
		}
		p.mu.Lock()
		w, ok := p.waiting[a.ID]
		delete(p.waiting, a.ID)
		p.ending = p.ending || w.name == "close"
		p.mu.Unlock()
		if !ok {
			p.broke(fmt.Errorf("the program answered a call with id %d, which does not wait: %.100q", a.ID, lines.Bytes()))
			return
		}
		w.answer <- a
	}
	if err := lines.Err(); err != nil {
		p.broke(fmt.Errorf("reading what the program prints: %w", err))
	} else {
		p.broke(errProgramEnded)
	}
}

// broke ends the program for a reason. What happens while it is ended anyway is no fault of its own.
func (p *program) broke(why error) {
	p.mu.Lock()
	if p.fault == nil && !p.ending {
		p.fault = why
	}
	for _, w := range p.waiting {
		close(w.answer)
	}
	clear(p.waiting)
	p.gone = true
	p.mu.Unlock()
	if !errors.Is(why, errProgramEnded) { // else its exit status is of interest
		p.kill()
	}
}

// giveUp ends a program that owes an answer. One that owes none may be asked to close yet.
func (p *program) giveUp() {
	var why error
	p.mu.Lock()
	for id, w := range p.waiting {
		why = fmt.Errorf("the program did not answer %s (id %d) in time", w.name, id)
	}
	if why == nil && !p.ending {
		p.overdue.Reset(grace)
	}
	p.mu.Unlock()
	if why != nil {
		p.broke(why)
	}
}

// end kills the program, waits for it, and returns what it did wrong as a program.
func (p *program) end() error {
	p.unwatch()
	p.overdue.Stop()
	p.mu.Lock()
	fault := p.fault
	p.ending = true
	p.mu.Unlock()
	_ = p.in.Close()
	ended := errors.Is(fault, errProgramEnded)
	if ended {
		defer time.AfterFunc(grace, p.kill).Stop() // its output has ended, so it should be about to
	} else {
		p.kill()
	}
	_ = p.cmd.Wait()
	p.kill()
	<-p.read
	if ended {
		return fmt.Errorf("%w by itself: %v", fault, p.cmd.ProcessState)
	}
	return fault
}

// call sends a request and waits for its answer. The program ends it in time; one that does not is ended when the case
// is over.
func (p *program) call(ctx context.Context, name string, f fields) (answer, error) {
	w := waitingCall{name, make(chan answer, 1)}
	p.mu.Lock()
	if p.gone {
		defer p.mu.Unlock()
		return answer{}, cmp.Or(p.fault, errProgramEnded)
	}
	p.lastID++
	request := fields{"id": p.lastID, "call": name}
	p.waiting[p.lastID] = w
	p.mu.Unlock()
	maps.Copy(request, f)
	if deadline, ok := ctx.Deadline(); ok {
		request["timeout_ms"] = max(1, time.Until(deadline).Milliseconds())
	}
	line, err := json.Marshal(request)
	if err != nil {
		panic("conformance: BUG: " + err.Error()) // strings, numbers and bytes
	}
	p.writing.Lock()
	_, _ = p.in.Write(append(line, '\n')) // if it fails, the reader hears of it too
	p.writing.Unlock()
	a, ok := <-w.answer
	switch {
	case !ok:
		p.mu.Lock()
		defer p.mu.Unlock()
		return answer{}, cmp.Or(p.fault, errProgramEnded)
	case a.Error != nil && a.Ended:
		return answer{}, fmt.Errorf("%w: %s", script.ErrEnded, *a.Error)
	case a.Error != nil:
		return answer{}, errors.New(*a.Error)
	}
	return a, nil
}

// lacks ends a program whose answer has not what it has to have.
func (p *program) lacks(call, member string) error {
	err := fmt.Errorf("the program's answer to %s has no %s", call, member)
	p.broke(err)
	return err
}

func (p *program) Connect(ctx context.Context, to script.Endpoint) error {
	_, err := p.call(ctx, "connect", fields{
		"addr": to.Addr, "server_name": to.ServerName, "ca_pem": string(to.CA), "tenant": tenant, "token": token,
	})
	return err
}

func (p *program) Publish(ctx context.Context, namespace, stream string, payload []byte) error {
	_, err := p.call(ctx, "publish", fields{"namespace": namespace, "stream": stream, "payload": notNil(payload)})
	return err
}

func (p *program) PublishBatch(ctx context.Context, namespace, stream string, payloads [][]byte) error {
	items := make([][]byte, len(payloads))
	for i := range payloads {
		items[i] = notNil(payloads[i])
	}
	_, err := p.call(ctx, "publish_batch", fields{"namespace": namespace, "stream": stream, "payloads": items})
	return err
}

func (p *program) Subscribe(ctx context.Context, namespace, stream string, start codec.Start) (script.Subscription, error) {
	f := fields{"namespace": namespace, "stream": stream}
	switch start.Kind {
	case codec.StartEarliest:
		f["start"] = "earliest"
	case codec.StartOffset:
		f["start"] = fields{"offset": start.Offset}
	case codec.StartLatest:
		f["start"] = "latest"
	case codec.StartUnset:
	}
	a, err := p.call(ctx, "subscribe", f)
	switch {
	case err != nil:
		return nil, err
	case a.Subscription == nil:
		return nil, p.lacks("subscribe", "subscription")
	}
	return &programSubscription{p, *a.Subscription}, nil
}

func (p *program) CachePut(ctx context.Context, namespace, cache, key string, value []byte) error {
	_, err := p.call(ctx, "cache_put", fields{"namespace": namespace, "cache": cache, "key": key, "value": notNil(value)})
	return err
}

func (p *program) CacheGet(ctx context.Context, namespace, cache, key string) ([]byte, bool, error) {
	a, err := p.call(ctx, "cache_get", fields{"namespace": namespace, "cache": cache, "key": key})
	return a.Value, a.Value != nil, err
}

func (p *program) Close() error {
	_, err := p.call(context.Background(), "close", nil)
	return err
}

// notNil makes JSON's "" of an empty payload, which would be null otherwise.
func notNil(b []byte) []byte { return append([]byte{}, b...) }

type programSubscription struct {
	p  *program
	id uint64
}

func (s *programSubscription) Next(ctx context.Context) (script.Event, error) {
	a, err := s.p.call(ctx, "next", fields{"subscription": s.id})
	switch {
	case err != nil:
		return script.Event{}, err
	case a.Payload == nil:
		return script.Event{}, s.p.lacks("next", "payload")
	}
	ev := script.Event{Payload: a.Payload}
	if a.Offset != nil {
		ev.Offset, ev.HasOffset = *a.Offset, true
	}
	return ev, nil
}

func (s *programSubscription) Close() error {
	_, err := s.p.call(context.Background(), "unsubscribe", fields{"subscription": s.id})
	return err
}
