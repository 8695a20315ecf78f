package isolation

import (
	"context"
	"crypto/tls"
	"crypto/x509"
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
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM([]byte(a.CertPEM))
	a.tls = clientTLS(roots)
	if a.signer, err = signer(tenantA, a.SeedA); err != nil {
		return nil, err
	}
	if a.token, err = token(tenantA, a.signer, time.Now().Add(24*time.Hour)); err != nil {
		return nil, err
	}
	if err := chosen[0].run(ctx, a); err != nil && ctx.Err() == nil {
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

// crowd does n things, some at a time, and waits for them.
func (a *attacker) crowd(ctx context.Context, n, atATime int, do func(i int) error) {
	var wg sync.WaitGroup
	var next atomic.Int64
	for range min(n, atATime) {
		wg.Go(func() {
			for i := next.Add(1); i <= int64(n) && ctx.Err() == nil; i = next.Add(1) {
				a.try(do(int(i - 1)))
			}
		})
	}
	wg.Wait()
}

// repeat does something again and again on so many goroutines until ctx ends, with a pause after a refusal. every is
// the least time between the beginnings of two of one goroutine; 0 for none.
func (a *attacker) repeat(ctx context.Context, goroutines int, every time.Duration, do func() error) {
	for range goroutines {
		a.wg.Go(func() {
			for ctx.Err() == nil {
				began := time.Now()
				if !a.try(do()) {
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
func (a *attacker) dial(ctx context.Context, cfg quicx.Config) (*quicx.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	c, err := quicx.Dial(ctx, a.Addr, a.tls, cfg)
	if err != nil {
		return nil, err
	}
	a.mu.Lock()
	a.conns = append(a.conns, c)
	a.mu.Unlock()
	return c, nil
}

// dials is that many connections, as far as they are granted; and an error if there are none.
func (a *attacker) dials(ctx context.Context, n int, cfg quicx.Config) ([]*quicx.Conn, error) {
	var mu sync.Mutex
	var all []*quicx.Conn
	var last error
	a.crowd(ctx, n, 4, func(int) error {
		c, err := a.dial(ctx, cfg)
		mu.Lock()
		defer mu.Unlock()
		if err != nil {
			last = err
			return err
		}
		all = append(all, c)
		return nil
	})
	if len(all) == 0 {
		return nil, fmt.Errorf("no connection: %w", last)
	}
	return all, nil
}

// connect returns a client of A. It is closed when the attack is over.
func (a *attacker) connect(ctx context.Context) (*client.Client, error) {
	c, err := client.Connect(ctx, a.Addr, client.WithTLS(a.tls), client.WithToken(tenantA, a.token))
	if err != nil {
		return nil, err
	}
	a.atTheEnd(func() { _ = c.Close() })
	return c, nil
}

// auth is the first frame of a stream.
func (a *attacker) auth(ext codec.Extensions) []byte {
	return codec.AppendAuth(nil, tenantA, a.token, codec.KnownFlags, true, ext)
}

// open opens a control stream, authenticates and writes frames.
func (a *attacker) open(ctx context.Context, c *quicx.Conn, ext codec.Extensions, frames ...[]byte) (*quicx.Stream, error) {
	s, err := c.OpenStream(ctx)
	if err != nil {
		return nil, err
	}
	_, err = s.Send().Write(slices.Concat(append([][]byte{a.auth(ext)}, frames...)...))
	return s, err
}

// openUni opens a publish stream on a connection, which has to know the token already if ext is not empty.
func (a *attacker) openUni(ctx context.Context, c *quicx.Conn, frames ...[]byte) (*quicx.SendStream, error) {
	s, err := c.OpenUniStream(ctx)
	if err != nil {
		return nil, err
	}
	_, err = s.Write(slices.Concat(append([][]byte{a.auth(codec.KnownExtensions())}, frames...)...))
	return s, err
}

// errRefused is an error message of the broker.
var errRefused = errors.New("refused")

// replies reads so many replies on a stream, of which none may be a refusal.
func replies(ctx context.Context, s *quicx.Stream, n int) error {
	stop := context.AfterFunc(ctx, func() { s.Recv().Cancel(0) })
	defer stop()
	fr := quicx.NewFrameReader(s.Recv(), 0)
	defer fr.Close()
	for range n {
		f, err := fr.Next()
		if err != nil {
			return err
		}
		if f.Header.Flags != codec.LayoutJSON {
			continue
		}
		var m codec.Message
		if err := codec.ParseMessage(f.Payload(), &m); err != nil {
			return err
		}
		if m.Type == codec.MsgError || m.Type == codec.MsgPublishError {
			return fmt.Errorf("%w: %s", errRefused, m.Text)
		}
	}
	return nil
}

// finish says that a stream has nothing more to send. The broker may have stopped reading it.
func finish(s *quicx.Stream) { _ = s.Send().Close() }

// known authenticates a connection.
func (a *attacker) known(ctx context.Context, c *quicx.Conn) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	s, err := a.open(ctx, c, codec.KnownExtensions())
	if err != nil {
		return err
	}
	defer finish(s)
	return replies(ctx, s, 1)
}

// subscribe makes a subscription. Its event stream is left to the caller, who need not accept it.
func (a *attacker) subscribe(ctx context.Context, c *quicx.Conn, ext codec.Extensions, stream string, from codec.StartKind) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	s, err := a.open(ctx, c, ext, codec.AppendSubscribe(nil, tenantA, namespace, stream, codec.Start{Kind: from}, 0, false))
	if err != nil {
		return err
	}
	defer s.Recv().Cancel(0)
	_ = s.Send().Close() // it fails if the broker has answered and ended the stream already
	return replies(ctx, s, 2)
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
