package script

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"

	"github.com/felix-mq/felix/codec"
)

// Client is what a case drives: one client, not connected yet. Adapters for other languages pass the calls on. Calls
// may come from several goroutines at once, and each ends with its context.
type Client interface {
	// Connect gets ready to work against a broker. Any tenant and token will do.
	Connect(ctx context.Context, to Endpoint) error
	// Publish and PublishBatch return nil if the broker acknowledged, and an error if it refused or did not answer.
	Publish(ctx context.Context, namespace, stream string, payload []byte) error
	PublishBatch(ctx context.Context, namespace, stream string, payloads [][]byte) error
	// Subscribe returns when the subscription is established.
	Subscribe(ctx context.Context, namespace, stream string, start codec.Start) (Subscription, error)
	// CachePut stores a value that never expires. CacheGet tells a miss (hit is false) from an empty value.
	CachePut(ctx context.Context, namespace, cache, key string, value []byte) error
	CacheGet(ctx context.Context, namespace, cache, key string) (value []byte, hit bool, err error)
	// Close ends everything, calls under way included. It may come before Connect.
	Close() error
}

// Endpoint is where a broker is and how to trust it.
type Endpoint struct {
	Addr       string // host:port, UDP
	ServerName string // what its certificate is valid for
	CA         []byte // the certificate to trust, PEM
}

// TLS returns a configuration that trusts the broker and nobody else.
func (e Endpoint) TLS() *tls.Config {
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(e.CA)
	return &tls.Config{RootCAs: pool, ServerName: e.ServerName}
}

// Endpoint returns what a client needs to connect.
func (s *Server) Endpoint() Endpoint {
	return Endpoint{Addr: s.Addr(), ServerName: "localhost", CA: s.CertPEM()}
}

// Subscription is a subscription of a [Client]. One goroutine reads it.
type Subscription interface {
	// Next waits for the next event. It fails with an error that matches [ErrEnded] when the broker has finished the
	// subscription in good order, and with another one when it was lost. Failures stay.
	Next(ctx context.Context) (Event, error)
	Close() error
}

// ErrEnded says that the broker finished a subscription: FIN after a whole frame
// (docs/protocol/session.md#the-end-of-a-subscription).
var ErrEnded = errors.New("script: subscription ended")

// Event is an event as a client reported it. Nobody changes the payload afterwards.
type Event struct {
	Payload   []byte
	Offset    uint64
	HasOffset bool
}

// Case is one check of a client.
type Case struct {
	// ID begins with IC or RAW and the number in the interop checklist
	// (docs/protocol/conformance.md#the-interop-checklist), with C and a section
	// (docs/protocol/conformance.md#judging-a-client), or with CD and the number of a defect
	// (docs/start/from-the-reference.md#defects).
	ID    string
	Title string

	run func(*trial)
}

// Cases returns the checks in the order in which they run.
func Cases() []Case {
	var all []Case
	for _, group := range [][]Case{sessionCases(), requestCases(), subscribeCases()} {
		all = append(all, group...)
	}
	return all
}

// Run serves s, connects the client to it, drives both and returns what the client did wrong, or nil. It wants a server
// and a client of its own, both new. The caller bounds it with ctx, and closes first the client and then the server
// afterwards: a call that hangs is ended by that alone.
func (c Case) Run(ctx context.Context, s *Server, cl Client) *Failure {
	t := &trial{ctx: ctx, s: s, c: cl, n: NewNormal()}
	f := t.attempt(func() {
		c.run(t)
		t.closeSubscriptions()
	})
	// What the client sent tells more than what it said.
	if err := s.Violation(); err != nil {
		return &Failure{"frames that a broker can read", err.Error()}
	}
	return f
}
