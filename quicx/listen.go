package quicx

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/quic-go/quic-go"
)

// Listener accepts connections on UDP sockets that it owns. Its methods may be called from any goroutine.
type Listener struct {
	ends     []*end
	refusing atomic.Bool

	sizes *sizeTester
	tests chan struct{} // holds a token for each test of a path

	rules *tls.Config // of all ends, and with it the keys of session tickets, which package tls renews daily

	accepted chan incoming  // of all ends, if there are several
	stop     chan struct{}  // closed when nobody accepts any more
	failed   chan error     // why one of several ends accepts no more
	wg       sync.WaitGroup // its own goroutines, but
	readers  sync.WaitGroup // those that end with their transports

	closeOnce sync.Once
	closeErr  error

	mu     sync.Mutex
	conns  []*Conn // accepted and still open; Conn.index
	closed bool
}

// end is one of a listener's sockets with all that quic-go has above it.
type end struct {
	sock  *socket
	admit *admission
	tr    *quic.Transport
	ln    *quic.Listener
}

// incoming is a connection whose handshake is complete, and where it came from.
type incoming struct {
	qc   *quic.Conn
	from *end
}

var errSocketFailed = errors.New("quicx: a socket of the listener failed")

var errRefused = errors.New("quicx: listener refuses new connections")

// Listen listens on a UDP address such as "127.0.0.1:5000" or ":5000", with the certificates of tlsConf. The
// configuration is copied; application protocols in it are ignored, those that it returns for single clients too.
//
// Handshakes run concurrently, and one that fails affects no other and nothing else.
func Listen(addr string, tlsConf *tls.Config, cfg Config) (*Listener, error) {
	if err := cfg.validate(); err != nil {
		return nil, err
	}
	if tlsConf == nil {
		return nil, errors.New("quicx: listen: no TLS configuration")
	}
	cfg = cfg.withDefaults()
	conns, shared, err := listenSockets(addr, cfg.Sockets)
	if err != nil {
		return nil, fmt.Errorf("quicx: listen: %w", err)
	}
	l, err := listenOn(conns, tlsConf, cfg)
	if err != nil {
		for _, conn := range conns {
			_ = conn.Close()
		}
		return nil, fmt.Errorf("quicx: listen on %s: %w", addr, err)
	}
	l.ends[0].sock.info.Shared = shared
	return l, nil
}

// listenOn takes cfg with defaults. It leaves conns to the caller if it fails.
func listenOn(conns []*net.UDPConn, tlsConf *tls.Config, cfg Config) (*Listener, error) {
	l := &Listener{accepted: make(chan incoming), stop: make(chan struct{}), failed: make(chan error, 1)}
	l.sizes, l.tests = newSizeTester(cfg, l.stop), make(chan struct{}, maxTests)
	sockets := make([]*socket, len(conns))
	for i, conn := range conns {
		var err error
		if sockets[i], err = newSocket(conn, cfg); err != nil {
			return nil, err
		}
	}
	l.rules = tlsRules(tlsConf)
	rules, small := cfg.quic(), cfg.quicSmall()
	rules.GetConfigForClient = func(info *quic.ClientInfo) (*quic.Config, error) {
		if smallPaths.has(info.RemoteAddr) {
			return small, nil
		}
		return rules, nil
	}
	var token quic.TokenGeneratorKey
	_, _ = rand.Read(token[:]) // never fails; a client may come back to another socket
	for i, sock := range sockets {
		e := &end{sock: sock, admit: newAdmission(cfg, len(sockets)), tr: cfg.transport(sock)}
		e.tr.VerifySourceAddress = e.admit.needsToken
		e.tr.ConnContext = func(ctx context.Context, info *quic.ClientInfo) (context.Context, error) {
			if l.refusing.Load() {
				return nil, errRefused
			}
			return ctx, e.admit.admit(info.RemoteAddr)
		}
		if len(sockets) > 1 {
			e.tr.ConnectionIDGenerator = steeringIDs(i, len(sockets))
			e.tr.TokenGeneratorKey = &token
		}
		var err error
		if e.ln, err = e.tr.Listen(l.rules, rules); err == nil {
			err = sock.setBuffers() // again, because quic-go has views of its own about their size
		}
		l.ends = append(l.ends, e)
		if err != nil {
			for _, e := range l.ends {
				_ = e.tr.Close()
			}
			return nil, err
		}
	}
	for _, e := range l.ends {
		if len(l.ends) > 1 {
			l.wg.Go(func() { l.acceptFrom(e) })
		}
		l.readers.Go(func() { l.sizes.serve(e.tr) })
	}
	l.wg.Go(l.watch)
	return l, nil
}

// watchParts is in how many parts the listener looks at its connections: a look at many thousands at once would keep a
// processor from others.
const watchParts = 10

// watch looks at the packets of each connection every sizes.every.
func (l *Listener) watch() {
	tick := time.NewTicker(l.sizes.every / watchParts)
	defer tick.Stop()
	var conns []*Conn
	for part := 0; ; part = (part + 1) % watchParts {
		select {
		case <-l.stop:
			return
		case <-tick.C:
		}
		l.mu.Lock()
		n := len(l.conns)
		conns = append(conns, l.conns[part*n/watchParts:(part+1)*n/watchParts]...)
		l.mu.Unlock()
		for _, c := range conns {
			l.sizes.check(c, l.startTest)
		}
		clear(conns) // those that end are not kept
		conns = conns[:0]
	}
}

// startTest runs a test of a path, if not too many run already.
func (l *Listener) startTest(test func()) bool {
	select {
	case l.tests <- struct{}{}:
	default:
		return false
	}
	l.wg.Go(func() {
		defer func() { <-l.tests }()
		test()
	})
	return true
}

// acceptFrom passes on what one end accepts, until it is closed or fails. One that has failed is the end of all: the
// kernel goes on giving its socket a part of the clients.
func (l *Listener) acceptFrom(e *end) {
	for {
		qc, err := e.ln.Accept(context.Background())
		if err != nil {
			select {
			case l.failed <- err:
			default: // one is enough
			}
			return
		}
		select {
		case l.accepted <- incoming{qc, e}:
		case <-l.stop:
			_ = qc.CloseWithError(0, "")
		}
	}
}

func (l *Listener) next(ctx context.Context) (incoming, error) {
	if len(l.ends) == 1 {
		qc, err := l.ends[0].ln.Accept(ctx)
		return incoming{qc, l.ends[0]}, err
	}
	select {
	case in := <-l.accepted:
		return in, nil
	case <-l.stop:
		return incoming{}, quic.ErrServerClosed
	case err := <-l.failed:
		select {
		case l.failed <- err: // for the next call
		default:
		}
		return incoming{}, err
	case <-ctx.Done():
		return incoming{}, context.Cause(ctx)
	}
}

// Accept returns the next connection whose handshake is complete, in whatever order they complete. It blocks until
// there is one, ctx ends, the listener is closed ([ErrClosed]) or one of its sockets fails, which is final. A listener
// keeps few connections in store and refuses more, so a program should always be about to call Accept.
func (l *Listener) Accept(ctx context.Context) (*Conn, error) {
	in, err := l.next(ctx)
	if err != nil {
		if err = mapError(err); errors.Is(err, net.ErrClosed) && !l.stopped() {
			err = errSocketFailed // quic-go says no more about it
		}
		return nil, err
	}
	c := newConn(in.qc, in.from.sock, in.from.tr, l.sizes, l.forget)
	l.mu.Lock()
	closed := l.closed
	if !closed && in.qc.Context().Err() == nil {
		c.index = len(l.conns)
		l.conns = append(l.conns, c)
	}
	l.mu.Unlock()
	if closed {
		_ = c.Close(0, "")
		return nil, ErrClosed
	}
	return c, nil
}

// stopped reports whether Close was called.
func (l *Listener) stopped() bool {
	select {
	case <-l.stop:
		return true
	default:
		return false
	}
}

func (l *Listener) forget(c *Conn) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if c.index < 0 {
		return
	}
	last := len(l.conns) - 1
	moved := l.conns[last]
	l.conns[c.index], moved.index = moved, c.index
	l.conns[last] = nil
	l.conns = l.conns[:last]
	c.index = -1
}

// Addr returns the local address.
func (l *Listener) Addr() net.Addr { return l.ends[0].sock.LocalAddr() }

// Socket returns what the operating system granted to the listener's socket, or to each if there are several.
func (l *Listener) Socket() SocketInfo { return l.ends[0].sock.info }

// ListenerStats are counters of a listener since its start.
type ListenerStats struct {
	Sockets  int
	Started  uint64 // attempts that went on to a handshake
	Retries  uint64 // attempts that were asked to prove their address
	Refused  uint64 // attempts that were refused because their network made too many
	Retrying bool   // attempts are asked at the moment

	// BlackHoles is how many connections were closed because the path to the peer dropped large packets
	// ([ErrBlackHole]).
	BlackHoles uint64

	// SendFaults is how many datagrams the operating system refused to send for the moment. They count as lost on the
	// way.
	SendFaults uint64

	// KernelDrops is how many datagrams the operating system has dropped because the receive buffer was full. It is 0
	// where the system does not tell.
	KernelDrops uint64
}

// Stats returns the counters at this moment.
func (l *Listener) Stats() ListenerStats {
	st := ListenerStats{Sockets: len(l.ends), BlackHoles: l.sizes.found.Load()}
	for _, e := range l.ends {
		st.Retries += e.admit.retries.Load()
		st.Started += e.admit.started.Load()
		st.Refused += e.admit.refused.Load()
		st.KernelDrops += e.sock.drops()
		st.SendFaults += e.sock.faults.n.Load()
		st.Retrying = st.Retrying || e.admit.retrying.Load()
	}
	return st
}

// Refuse turns away connections that are attempted from now on. Those that exist are unaffected, and those whose
// handshake is complete or under way can still be accepted. It is the first step of a graceful end, [Listener.Close]
// the last.
func (l *Listener) Refuse() { l.refusing.Store(true) }

// Close ends the listener, its socket and all connections that came from it. Those that are still open are closed with
// code 0. It returns when the socket is closed. Further calls do nothing and return the same.
func (l *Listener) Close() error {
	l.closeOnce.Do(func() { l.closeErr = l.close() })
	return l.closeErr
}

func (l *Listener) close() error {
	l.mu.Lock()
	l.closed = true
	conns := slices.Clone(l.conns)
	l.mu.Unlock()

	close(l.stop)
	for _, e := range l.ends {
		_ = e.ln.Close() // never fails; refuses handshakes under way
	}
	l.wg.Wait()
	for _, e := range l.ends {
		for { // what was ready and is not accepted any more
			qc, err := e.ln.Accept(context.Background())
			if err != nil {
				break
			}
			_ = qc.CloseWithError(0, "")
		}
	}
	for _, c := range conns {
		_ = c.Close(0, "")
	}
	errs := make([]error, 0, 2*len(l.ends))
	for _, e := range l.ends {
		errs = append(errs, e.tr.Close()) // waits for the goroutine that reads the socket
	}
	l.readers.Wait()
	for _, e := range l.ends {
		errs = append(errs, e.sock.Close())
	}
	return errors.Join(errs...)
}
