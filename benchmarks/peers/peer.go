package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"strings"

	"github.com/felix-mq/felix/benchmarks/floor/drive"
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
	connect func(ctx context.Context, s *server, set settings, fail context.CancelCauseFunc) (session, error)
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
func runPeer(ctx context.Context, s drive.Shape, p *peer, secure bool, set settings) (_ *loadgen.Result, err error) {
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

func loadPeer(ctx context.Context, s drive.Shape, p *peer, srv *server, set settings) (*loadgen.Result, error) {
	if err := s.Validate(); err != nil {
		return nil, err
	}
	work, fail := context.WithCancelCause(ctx)
	defer fail(nil)
	var open []session
	defer func() {
		for _, c := range open {
			c.close()
		}
	}()
	connect := func() (session, error) {
		c, err := p.connect(work, srv, set, fail)
		if err != nil {
			return nil, fmt.Errorf("%s: connecting: %w", p.title, err)
		}
		open = append(open, c)
		return c, nil
	}
	pub, err := connect()
	if err != nil {
		return nil, err
	}
	l := drive.New(s)
	for i := range s.Fanout {
		if i < s.Conns {
			if _, err := connect(); err != nil {
				return nil, err
			}
		}
		to := l.Receiver(i)
		err := open[1+i%s.Conns].subscribe(work, func(event []byte) {
			if len(event) != s.Payload {
				fail(fmt.Errorf("%s: event of %d bytes, sent were %d", p.title, len(event), s.Payload))
				return
			}
			first, at := drive.Stamp(event)
			if err := to.Receive(l.Now(), first, 1, at); err != nil {
				fail(err)
			}
		})
		if err != nil {
			return nil, fmt.Errorf("%s: subscribing: %w", p.title, err)
		}
	}
	join := max(min(s.Window, mostAtOnce/(s.Batch*s.Payload)), 1)
	events := loadgen.NewItems(s.Kind, join*s.Batch, s.Payload, 0)
	err = l.Publish(work, join, func(first uint64, n int, at int64) error {
		n *= s.Batch
		for i, event := range events[:n] {
			drive.PutStamp(event, first+uint64(i), at)
		}
		return pub.publish(work, events[:n])
	})
	if err != nil {
		return nil, err
	}
	return l.Result(), nil
}
