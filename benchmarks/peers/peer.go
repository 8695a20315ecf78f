package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"strings"

	"github.com/felix-mq/felix/loadgen"
)

// subject is where all events go: subject, channel or topic.
const subject = "bench"

// plainSuffix in a system's name asks for its peer without TLS.
const plainSuffix = "-plain"

// peer is a foreign system, and how it is set up. Its server has a process of its own, fresh for each run.
type peer struct {
	title string
	setup string // of server and client, for those who read the table
	// version returns the server's, or an error if it is not installed.
	version func() (string, error)
	knobs   []knob
	// start returns when the server listens. ctx ends it in any case.
	start func(ctx context.Context, secure bool, set settings) (*server, error)
	// connect opens a connection, and calls fail with an error that the connection has later.
	connect func(ctx context.Context, s *server, set settings, fail func(error)) (session, error)
}

// session is a connection of a peer's client. One goroutine uses it.
type session interface {
	// subscribe returns when the subscription is in effect. receive is called for each event, in order, and may not
	// keep it.
	subscribe(ctx context.Context, receive func(event []byte)) error
	// publish returns when the events are the caller's again.
	publish(ctx context.Context, events [][]byte) error
	// close returns when receive will not be called any more.
	close()
}

// errOneSubscription is why a peer cannot have fewer connections than subscriptions: one of its connections is sent an
// event once, whatever it has subscribed to.
var errOneSubscription = errors.New("a connection of this system receives an event once: want as many connections as subscriptions")

// server is a server that listens.
type server struct {
	addr string
	tls  *tls.Config // what a client needs; nil in the clear
	stop func() error
}

// peers are all foreign systems by their names.
var peers = map[string]*peer{natsName: &natsPeer, redisName: &redisPeer, mosquittoName: &mosquittoPeer}

// peerOf returns the peer of that name, if it is one, and whether it is meant with TLS.
func peerOf(system string) (p *peer, secure bool) {
	name, plain := strings.CutSuffix(baseName(system), plainSuffix)
	return peers[name], !plain
}

// runPeer loads a server in a process of its own. Each event is a message of its own, as users of the system have them;
// server and client join messages into writes as they see fit.
func runPeer(ctx context.Context, s shape, p *peer, secure bool, set settings) (_ *loadgen.Result, err error) {
	srv, err := p.start(ctx, secure, set)
	if err != nil {
		return nil, err
	}
	res, err := loadPeer(ctx, s, p, srv, set)
	if err = errors.Join(err, srv.stop()); err != nil {
		return nil, err
	}
	res.Broker = loadgen.BrokerInfo{Kind: "process", Addr: srv.addr}
	return res, nil
}

// mostAtOnce is how many bytes of payload are published at once if the window allows more. Caches of a processor hold
// it.
const mostAtOnce = 1 << 20

func loadPeer(ctx context.Context, s shape, p *peer, srv *server, set settings) (*loadgen.Result, error) {
	return loadgen.RunOn(ctx, s.config(), func(_ context.Context, cfg *loadgen.Config, fail func(error)) (loadgen.System, error) {
		return &peerSystem{p: p, srv: srv, set: set, cfg: cfg, fail: fail}, nil
	})
}

// peerSystem is a peer as [loadgen.System].
type peerSystem struct {
	p    *peer
	srv  *server
	set  settings
	cfg  *loadgen.Config
	fail func(error)
	open []session // the publisher's is the first
	subs int
}

func (s *peerSystem) connect(ctx context.Context) (session, error) {
	c, err := s.p.connect(ctx, s.srv, s.set, s.fail)
	if err != nil {
		return nil, fmt.Errorf("%s: connecting: %w", s.p.title, err)
	}
	s.open = append(s.open, c)
	return c, nil
}

func (s *peerSystem) Publisher(ctx context.Context, _, _ int) (loadgen.Publisher, error) {
	c, err := s.connect(ctx)
	return peerPublisher{c, max(min(s.cfg.Window, mostAtOnce/(s.cfg.Batch*s.cfg.Payload)), 1)}, err
}

func (s *peerSystem) Subscribe(ctx context.Context, _ int, r *loadgen.Receiver) error {
	if s.subs < s.cfg.Conns {
		if _, err := s.connect(ctx); err != nil {
			return err
		}
	}
	on := s.open[1+s.subs%s.cfg.Conns]
	s.subs++
	err := on.subscribe(ctx, func(event []byte) {
		r.Event(event)
		r.Done()
	})
	if err != nil {
		return fmt.Errorf("%s: subscribing: %w", s.p.title, err)
	}
	return nil
}

func (s *peerSystem) Close() error {
	for _, c := range s.open {
		c.close()
	}
	return nil
}

// peerPublisher publishes by a session. What acknowledges, does so within publish.
type peerPublisher struct {
	session
	join int
}

func (p peerPublisher) Join() int { return p.join }

func (p peerPublisher) Send(ctx context.Context, items ...[]byte) error { return p.publish(ctx, items) }

func (p peerPublisher) Publish(ctx context.Context, items ...[]byte) error {
	return p.publish(ctx, items)
}
