package quicx

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"sync"
	"sync/atomic"

	"github.com/quic-go/quic-go"
)

// Listener accepts connections on a UDP socket that it owns. Its methods may be called from any goroutine.
type Listener struct {
	sock     *socket
	admit    *admission
	tr       *quic.Transport
	ln       *quic.Listener
	refusing atomic.Bool

	closeOnce sync.Once
	closeErr  error

	mu     sync.Mutex
	conns  map[*Conn]struct{} // accepted and still open
	closed bool
}

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
	local, err := net.ResolveUDPAddr("udp", addr)
	if err != nil {
		return nil, fmt.Errorf("quicx: listen: %w", err)
	}
	conn, err := net.ListenUDP("udp", local)
	if err != nil {
		return nil, fmt.Errorf("quicx: listen: %w", err)
	}
	l, err := listenOn(conn, tlsConf, cfg)
	if err != nil {
		_ = conn.Close()
		return nil, fmt.Errorf("quicx: listen on %s: %w", addr, err)
	}
	return l, nil
}

// listenOn takes cfg with defaults. It leaves conn to the caller if it fails.
func listenOn(conn *net.UDPConn, tlsConf *tls.Config, cfg Config) (*Listener, error) {
	sock, err := newSocket(conn, cfg)
	if err != nil {
		return nil, err
	}
	l := &Listener{sock: sock, admit: newAdmission(cfg), tr: cfg.transport(sock), conns: make(map[*Conn]struct{})}
	l.tr.VerifySourceAddress = l.admit.needsToken
	l.tr.ConnContext = func(ctx context.Context, info *quic.ClientInfo) (context.Context, error) {
		if l.refusing.Load() {
			return nil, errRefused
		}
		return ctx, l.admit.admit(info.RemoteAddr)
	}
	if l.ln, err = l.tr.Listen(tlsRules(tlsConf), cfg.quic()); err != nil {
		return nil, err
	}
	if err := sock.setBuffers(); err != nil { // again, because quic-go has views of its own about their size
		_ = l.tr.Close()
		return nil, err
	}
	return l, nil
}

// Accept returns the next connection whose handshake is complete, in whatever order they complete. It blocks until there
// is one, ctx ends or the listener is closed ([ErrClosed]). A listener keeps few connections in store and refuses more,
// so a program should always be about to call Accept.
func (l *Listener) Accept(ctx context.Context) (*Conn, error) {
	qc, err := l.ln.Accept(ctx)
	if err != nil {
		return nil, mapError(err)
	}
	c := newConn(qc, l.forget)
	l.mu.Lock()
	closed := l.closed
	if !closed && qc.Context().Err() == nil {
		l.conns[c] = struct{}{}
	}
	l.mu.Unlock()
	if closed {
		_ = c.Close(0, "")
		return nil, ErrClosed
	}
	return c, nil
}

func (l *Listener) forget(c *Conn) {
	l.mu.Lock()
	delete(l.conns, c)
	l.mu.Unlock()
}

// Addr returns the local address.
func (l *Listener) Addr() net.Addr { return l.sock.LocalAddr() }

// Socket returns what the operating system granted to the listener's socket.
func (l *Listener) Socket() SocketInfo { return l.sock.info }

// ListenerStats are counters of a listener since its start.
type ListenerStats struct {
	Retries  uint64 // attempts that were asked to prove their address
	Refused  uint64 // attempts that were refused because their network made too many
	Retrying bool   // every attempt is asked at the moment
}

// Stats returns the counters at this moment.
func (l *Listener) Stats() ListenerStats {
	return ListenerStats{Retries: l.admit.retries.Load(), Refused: l.admit.refused.Load(), Retrying: l.admit.retrying.Load()}
}

// Refuse turns away connections that are attempted from now on. Those that exist are unaffected, and those whose
// handshake is complete or under way can still be accepted. It is the first step of a graceful end, [Listener.Close] the
// last.
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
	conns := make([]*Conn, 0, len(l.conns))
	for c := range l.conns {
		conns = append(conns, c)
	}
	l.mu.Unlock()

	_ = l.ln.Close() // never fails; refuses handshakes under way
	for {            // what was ready and is not accepted any more
		qc, err := l.ln.Accept(context.Background())
		if err != nil {
			break
		}
		_ = qc.CloseWithError(0, "")
	}
	for _, c := range conns {
		_ = c.Close(0, "")
	}
	err := l.tr.Close() // waits for the goroutine that reads the socket
	return errors.Join(err, l.sock.Close())
}
