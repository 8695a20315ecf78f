// Package script is a broker that does what a test tells it to, frame by frame: it judges clients.
//
// It speaks felix-wire by hand, with package codec over package quicx, and knows nothing of our broker: a client is
// proved against the protocol, and also against everything that a broker may do which ours never does. Begin at
// [Listen], which gives a [Server]; accept a [Conn], on it a [Control] stream, and drive both step by step:
//
//	ctl, _ := conn.AcceptControl()
//	err := ctl.Auth(codec.KnownFlags)
//	req, err := ctl.Expect(codec.MsgSubscribe)
//	ev, err := conn.OpenEvents(7)
//	err = ctl.Send(codec.AppendSubscribed(nil, 7))
//	err = ev.Send(codec.AppendEventBatch(nil, codec.LayoutShared, 0, 0, payloads))
//
// Each step blocks until it is done, and fails when the stream, the connection or the context given to Listen ends:
// steps need no contexts of their own, and a test cannot hang longer than its context. Nothing here sleeps. Streams
// that a test is not about are served by a [Normal] broker, and a [Relay] makes a broker fall silent.
//
// [Cases] are the checks of a client that take a scripted peer: rows of
// docs/protocol/conformance.md#the-interop-checklist and rules of the sections before it. Any client can be given to
// them, through the interface [Client]. A case is a function on a trial (trial.go); the files case_*.go hold them by
// subject.
package script

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"slices"
	"sync"

	"github.com/felix-mq/felix/codec"
	"github.com/felix-mq/felix/internal/dev"
	"github.com/felix-mq/felix/quicx"
)

// Server is a listener on loopback with a certificate of its own. Its methods may be called from many goroutines.
type Server struct {
	l    *quicx.Listener
	tls  *tls.Config
	cert []byte // PEM
	ctx  context.Context
	stop context.CancelFunc
	wg   sync.WaitGroup

	// dress, if it is not nil, changes each thing that Send writes, which is one frame, and pieces, if it is not 0,
	// makes Send write so many bytes at a time. A case sets them before it serves.
	dress  func(frame []byte) []byte
	pieces int

	mu         sync.Mutex // guards all below
	readers    []*quicx.FrameReader
	protocols  []string // that clients offered in their handshakes
	violations []error
}

// Listen starts a server on a free port of 127.0.0.1. It ends with ctx or Close. The server sends no keep-alives unless
// cfg asks for them: what keeps a connection alive is then the client.
func Listen(ctx context.Context, cfg quicx.Config) (*Server, error) {
	cert, pool, err := dev.SelfSigned()
	if err != nil {
		return nil, fmt.Errorf("script: %w", err)
	}
	if cfg.KeepAlive == 0 {
		cfg.KeepAlive = -1
	}
	s := &Server{
		tls:  &tls.Config{RootCAs: pool},
		cert: dev.CertPEM(cert.Leaf),
	}
	l, err := quicx.Listen("127.0.0.1:0", &tls.Config{
		Certificates: []tls.Certificate{cert},
		GetConfigForClient: func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
			s.mu.Lock()
			defer s.mu.Unlock()
			s.protocols = append(s.protocols, hello.SupportedProtos...)
			return nil, nil
		},
	}, cfg)
	if err != nil {
		return nil, fmt.Errorf("script: %w", err)
	}
	s.l = l
	s.ctx, s.stop = context.WithCancel(ctx)
	s.Go(func() {
		<-s.ctx.Done()
		_ = l.Close()
	})
	return s, nil
}

// Addr returns the address to connect to.
func (s *Server) Addr() string { return s.l.Addr().String() }

// CertPEM returns the server's certificate, which is valid for localhost and for the address.
func (s *Server) CertPEM() []byte { return slices.Clone(s.cert) }

// Protocols returns what clients offered by ALPN, which has to be nothing (docs/protocol/session.md#tls).
func (s *Server) Protocols() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.protocols)
}

// Violation returns what clients have sent that no broker can read, or nil.
func (s *Server) Violation() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return errors.Join(s.violations...)
}

func (s *Server) violated(err error) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.violations = append(s.violations, err)
	return err
}

// ClientTLS returns a configuration that trusts the server. It is the caller's.
func (s *Server) ClientTLS() *tls.Config { return s.tls.Clone() }

// Accept waits for the next connection.
func (s *Server) Accept() (*Conn, error) {
	qc, err := s.l.Accept(s.ctx)
	if err != nil {
		return nil, fmt.Errorf("script: accepting a connection: %w", err)
	}
	return &Conn{s: s, qc: qc}, nil
}

// Go runs f on a goroutine that Close waits for. It must not be called after Close.
func (s *Server) Go(f func()) { s.wg.Go(f) }

// Close ends the server and all its connections, with code 0, waits for its goroutines and takes back the memory of
// all readers. No step may be under way outside [Server.Go]. It may be called twice.
func (s *Server) Close() {
	s.stop()
	s.wg.Wait()
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, fr := range s.readers {
		fr.Close()
	}
	s.readers = nil
}

// Conn is a client's connection.
type Conn struct {
	s  *Server
	qc *quicx.Conn
}

// AcceptControl waits for the next stream that the client opens. Nothing has been read from it.
func (c *Conn) AcceptControl() (*Control, error) {
	s, err := c.qc.AcceptStream(c.s.ctx)
	if err != nil {
		return nil, fmt.Errorf("script: accepting a stream: %w", err)
	}
	ctl := &Control{server: c.s, s: s, fr: quicx.NewFrameReader(s.Recv(), 0)}
	c.s.mu.Lock()
	defer c.s.mu.Unlock()
	c.s.readers = append(c.s.readers, ctl.fr)
	return ctl, nil
}

// OpenEvents opens an event stream and writes its hello.
func (c *Conn) OpenEvents(id uint64) (*Events, error) {
	e, err := c.OpenBare()
	if err != nil {
		return nil, err
	}
	return e, e.Send(codec.AppendEventStreamHello(nil, id))
}

// OpenBare opens a stream to the client and writes nothing. The client does not know of it before the first Send.
func (c *Conn) OpenBare() (*Events, error) {
	s, err := c.qc.OpenUniStream(c.s.ctx)
	if err != nil {
		return nil, fmt.Errorf("script: opening an event stream: %w", err)
	}
	return &Events{c.s, s}, nil
}

// ShutDown closes the connection as a broker does that goes away (docs/protocol/session.md#shutdown).
func (c *Conn) ShutDown() { _ = c.qc.Close(0, "broker shutting down") }

// Done is closed when the connection has ended, whichever side ended it.
func (c *Conn) Done() <-chan struct{} { return c.qc.Context().Done() }

// Events is a stream to the client, an event stream once its hello was sent. One goroutine may send.
type Events struct {
	server *Server
	s      *quicx.SendStream
}

// Send writes bytes as they are: a frame, several, or a part of one. It blocks while the client does not read, and
// fails when the client has stopped the stream.
func (e *Events) Send(b []byte) error { return e.server.send(e.s, b) }

// SendPieces writes b in writes of n bytes each.
func (e *Events) SendPieces(b []byte, n int) error { return sendPieces(e.s, b, n) }

// Finish ends the stream with FIN, unless the client has stopped it.
func (e *Events) Finish() { _ = e.s.Close() }

// Reset ends the stream with RESET_STREAM.
func (e *Events) Reset() { e.s.Cancel(0) }

// Done is closed when the stream has ended: the client stopped it, it was finished or reset, or the connection is gone.
func (e *Events) Done() <-chan struct{} { return e.s.Context().Done() }

// send writes what a script wants sent, in the manner of the server.
func (s *Server) send(to *quicx.SendStream, b []byte) error {
	if s.dress != nil {
		b = s.dress(b)
	}
	if s.pieces > 0 {
		return sendPieces(to, b, s.pieces)
	}
	return send(to, b)
}

func send(s *quicx.SendStream, b []byte) error {
	if _, err := s.Write(b); err != nil {
		return fmt.Errorf("script: sending: %w", err)
	}
	return nil
}

func sendPieces(s *quicx.SendStream, b []byte, n int) error {
	for len(b) > 0 {
		k := min(n, len(b))
		if err := send(s, b[:k]); err != nil {
			return err
		}
		b = b[k:]
	}
	return nil
}
