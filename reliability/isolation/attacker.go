package isolation

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/felix-mq/felix/auth"
	"github.com/felix-mq/felix/client"
	"github.com/felix-mq/felix/codec"
	"github.com/felix-mq/felix/internal/child"
	"github.com/felix-mq/felix/internal/dev"
	"github.com/felix-mq/felix/quicx"
)

// attackerRole is the role of a process that attacks. It is ready when all is set up.
const attackerRole = "attacker"

// said is what the attacker's process tells in the end.
type said struct {
	Did    string   // how often
	Faults []string // what the broker must not do
}

// serveAttacker attacks and exits if this is an attacker's process. In any other it returns at once.
func serveAttacker() {
	child.Serve(attackerRole, func(ctx context.Context, j job, parent *child.Parent) (any, error) {
		return (&attacker{job: j, parent: parent}).serve(ctx)
	})
}

func (a *attacker) serve(ctx context.Context) (any, error) {
	runLast()
	chosen, err := choose([]string{a.Attack})
	if err != nil {
		return nil, err
	}
	if a.tls, err = dev.ClientTLS([]byte(a.CertPEM)); err != nil {
		return nil, err
	}
	if a.signer, err = signer(tenantA, a.SeedA); err != nil {
		return nil, err
	}
	if a.token, err = token(tenantA, a.signer, time.Now().Add(24*time.Hour)); err != nil {
		return nil, err
	}
	if err := attempt(func() { chosen[0].run(ctx, a) }); err != nil && ctx.Err() == nil {
		a.fault(fmt.Sprintf("the attack itself fails: %.300v", err))
	}
	a.stands()
	<-ctx.Done()
	a.wg.Wait()
	a.closeAll()
	a.mu.Lock()
	defer a.mu.Unlock()
	return said{Did: fmt.Sprintf("%d done, %d refused%s", a.did.Load(), a.refused.Load(), a.sample), Faults: a.faults}, nil
}

// attacker is tenant A, in its own process.
type attacker struct {
	job
	parent *child.Parent
	tls    *tls.Config
	signer *auth.Signer
	token  string

	wg           sync.WaitGroup // what it has started
	did, refused atomic.Int64   // whatever it does
	once         sync.Once      // it stands

	mu     sync.Mutex // guards all below
	conns  []*quicx.Conn
	ends   []func()
	faults []string
	sample string // of a refusal
}

// stands says that all is set up.
func (a *attacker) stands() {
	a.once.Do(func() { _ = a.parent.Send("stands") })
}

// fault tells of something that the broker must not do.
func (a *attacker) fault(text string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if !slices.Contains(a.faults, text) && len(a.faults) < 5 {
		a.faults = append(a.faults, text)
	}
}

// try counts an outcome. A refusal is what an attacker has to expect: it goes on.
func (a *attacker) try(err error) bool {
	if err == nil {
		a.did.Add(1)
		return true
	}
	if a.refused.Add(1) == 1 {
		a.mu.Lock()
		a.sample = fmt.Sprintf(" (%.120v)", err)
		a.mu.Unlock()
	}
	return false
}

// atTheEnd is called when the attack is over.
func (a *attacker) atTheEnd(f func()) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.ends = append(a.ends, f)
}

func (a *attacker) closeAll() {
	a.mu.Lock()
	conns, ends := a.conns, a.ends
	a.mu.Unlock()
	var wg sync.WaitGroup
	for _, c := range conns {
		wg.Go(func() { _ = c.Close(0, "") })
	}
	for _, f := range ends {
		wg.Go(f)
	}
	wg.Wait()
}

// stepEnd is what a step panics with to end.
type stepEnd struct{ err error }

// check ends the step under way if err is not nil. A step is the attack itself, or what it has crowd, repeat or attempt
// do: it reads as a conversation, as the cases of package conformance do.
func check(err error) {
	if err != nil {
		panic(stepEnd{err})
	}
}

// must returns what a call returned, or ends the step.
func must[T any](v T, err error) T {
	check(err)
	return v
}

// attempt does a step and returns the error that ended it, or nil.
func attempt(step func()) (err error) {
	defer func() {
		switch r := recover().(type) {
		case nil:
		case stepEnd:
			err = r.err
		default:
			panic(r)
		}
	}()
	step()
	return nil
}

// crowd does n steps, some at a time, and waits for them.
func (a *attacker) crowd(ctx context.Context, n, atATime int, step func(i int)) {
	var wg sync.WaitGroup
	var next atomic.Int64
	for range min(n, atATime) {
		wg.Go(func() {
			for i := next.Add(1); i <= int64(n) && ctx.Err() == nil; i = next.Add(1) {
				a.try(attempt(func() { step(int(i - 1)) }))
			}
		})
	}
	wg.Wait()
}

// repeat does a step again and again on so many goroutines until ctx ends, with a pause after a refusal. every is the
// least time between the beginnings of two of one goroutine; 0 for none.
func (a *attacker) repeat(ctx context.Context, goroutines int, every time.Duration, step func()) {
	for range goroutines {
		a.wg.Go(func() {
			for ctx.Err() == nil {
				began := time.Now()
				if !a.try(attempt(step)) {
					_ = pause(ctx, 20*time.Millisecond)
				}
				if left := every - time.Since(began); left > 0 {
					_ = pause(ctx, left)
				}
			}
		})
	}
}

// small is how an attacker dials that has many connections: one has no more than the broker, where it counts.
func small() quicx.Config {
	return quicx.Config{DisableGRO: true, RecvBuffer: 64 << 10, SendBuffer: 64 << 10, KeepAlive: -1, StreamWindow: 16 << 10, StreamsHint: 1, MaxStreams: 5000}
}

// dial connects. The connection is closed when the attack is over.
func (a *attacker) dial(ctx context.Context, cfg quicx.Config) *quicx.Conn {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	c := must(quicx.Dial(ctx, a.Addr, a.tls, cfg))
	a.mu.Lock()
	defer a.mu.Unlock()
	a.conns = append(a.conns, c)
	return c
}

// dials is that many connections, as far as they are granted. There is at least one.
func (a *attacker) dials(ctx context.Context, n int, cfg quicx.Config) (all []*quicx.Conn) {
	var mu sync.Mutex
	var last error
	a.crowd(ctx, n, 4, func(int) {
		var c *quicx.Conn
		err := attempt(func() { c = a.dial(ctx, cfg) })
		mu.Lock()
		defer mu.Unlock()
		last = err
		check(err)
		all = append(all, c)
	})
	if len(all) == 0 {
		check(fmt.Errorf("no connection: %w", last))
	}
	return all
}

// connect returns a client of A. It is closed when the attack is over.
func (a *attacker) connect(ctx context.Context) *client.Client {
	c := must(client.Connect(ctx, a.Addr, client.WithTLS(a.tls), client.WithToken(tenantA, a.token)))
	a.atTheEnd(func() { _ = c.Close() })
	return c
}

// auth is the first frame of a stream.
func (a *attacker) auth(ext codec.Extensions) []byte {
	return codec.AppendAuth(nil, tenantA, a.token, codec.KnownFlags, true, ext)
}

// open opens a control stream, authenticates and writes frames.
func (a *attacker) open(ctx context.Context, c *quicx.Conn, ext codec.Extensions, frames ...[]byte) *quicx.Stream {
	s := must(c.OpenStream(ctx))
	must(s.Send().Write(slices.Concat(append([][]byte{a.auth(ext)}, frames...)...)))
	return s
}

// openUni opens a publish stream on a connection, which has to know the token already if ext is not empty.
func (a *attacker) openUni(ctx context.Context, c *quicx.Conn, frames ...[]byte) *quicx.SendStream {
	s := must(c.OpenUniStream(ctx))
	must(s.Write(slices.Concat(append([][]byte{a.auth(codec.KnownExtensions())}, frames...)...)))
	return s
}

// errRefused is an error message of the broker.
var errRefused = errors.New("refused")

// replies reads so many replies on a stream, of which none may be a refusal.
func replies(ctx context.Context, s *quicx.Stream, n int) {
	stop := context.AfterFunc(ctx, func() { s.Recv().Cancel(0) })
	defer stop()
	fr := quicx.NewFrameReader(s.Recv(), 0)
	defer fr.Close()
	for range n {
		f := must(fr.Next())
		if f.Header.Flags != codec.LayoutJSON {
			continue
		}
		var m codec.Message
		check(codec.ParseMessage(f.Payload(), &m))
		if m.Type == codec.MsgError || m.Type == codec.MsgPublishError {
			check(fmt.Errorf("%w: %s", errRefused, m.Text))
		}
	}
}

// finish says that a stream has nothing more to send. The broker may have stopped reading it.
func finish(s *quicx.Stream) { _ = s.Send().Close() }

// known authenticates a connection.
func (a *attacker) known(ctx context.Context, c *quicx.Conn) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	s := a.open(ctx, c, codec.KnownExtensions())
	defer finish(s)
	replies(ctx, s, 1)
}

// subscribe makes a subscription. Its event stream is left to the caller, who need not accept it.
func (a *attacker) subscribe(ctx context.Context, c *quicx.Conn, ext codec.Extensions, stream string, from codec.StartKind) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	s := a.open(ctx, c, ext, codec.AppendSubscribe(nil, tenantA, namespace, stream, codec.Start{Kind: from}, 0, false))
	defer s.Recv().Cancel(0)
	finish(s)
	replies(ctx, s, 2)
}

// process is an attacker's process, seen from the measurement.
type process struct {
	*child.Process
	stands chan struct{} // is closed when the attack is set up
	failed chan error    // or gets why it was not
}

// startAttacker starts one.
func startAttacker(j job) (*process, error) {
	p, err := child.Spawn(attackerRole, j, nil)
	if err != nil {
		return nil, err
	}
	at := &process{p, make(chan struct{}), make(chan error, 1)}
	go func() { // ends with the process at the latest
		if err := p.Ready(context.Background(), new(string)); err != nil {
			at.failed <- err
			return
		}
		close(at.stands)
	}()
	return at, nil
}

// awaitStanding waits until the attack is set up, or ctx ends.
func (p *process) awaitStanding(ctx context.Context) {
	select {
	case <-p.stands:
	case <-ctx.Done():
	}
}

// stopWithin bounds the end of an attacker, which closes its connections.
const stopWithin = 5 * time.Second

// stop ends the attack.
func (p *process) stop() (did string, faults []string) {
	late := ""
	select {
	case <-p.stands:
	default:
		late = fmt.Sprintf(", not all set up within %v", standsWithin)
	}
	kill := time.AfterFunc(stopWithin, func() { _ = p.Kill() })
	p.End()
	var l said
	var err error
	select {
	case err = <-p.failed:
	case <-p.stands: // at the latest when it is to end
		err = p.Stop(&l)
	}
	if !kill.Stop() {
		return "(was killed)" + late, nil
	}
	if err != nil {
		l.Faults = append(l.Faults, fmt.Sprintf("the attacker's end: %v", err))
	}
	return l.Did + late, l.Faults
}
