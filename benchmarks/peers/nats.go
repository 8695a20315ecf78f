package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"time"

	natsserver "github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"

	"github.com/felix-mq/felix/internal/child"
	"github.com/felix-mq/felix/internal/dev"
)

const natsName = "nats"

var natsPeer = peer{
	title: "NATS",
	setup: "nats-server and nats.go as Go modules. Server with its defaults: no JetStream, no log. " +
		"Client with a write buffer of 64 KiB, a callback for each subscription, and no limit on what is pending there (the window is one).",
	knobs: []knob{
		inFlightKnob, serverProcsKnob, loadProcsKnob,
		{name: writeBuffer, about: "of the client", values: []int{64 << 10, 32 << 10, 256 << 10, 1 << 20}, bytes: true},
		{name: unchecked, about: "1 has the client not check the subject of each message", values: []int{0, 1}},
		socketBufferKnob,
	},
	version: func() (string, error) { return natsserver.VERSION, nil },
	start:   startNATS,
	connect: connectNATS,
}

type natsReady struct {
	Addr    string `json:"addr"`
	CertPEM []byte `json:"cert_pem"` // none in the clear
}

// serveNATS is the process of a NATS server.
func serveNATS(ctx context.Context, secure bool, parent *child.Parent) (any, error) {
	cert, _, err := dev.SelfSigned()
	if err != nil {
		return nil, err
	}
	opts := &natsserver.Options{Host: "127.0.0.1", Port: natsserver.RANDOM_PORT, NoLog: true, NoSigs: true}
	var certPEM []byte
	if secure {
		opts.TLSConfig = &tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS13}
		opts.TLSTimeout = 10
		certPEM = dev.CertPEM(cert.Leaf)
	}
	s, err := natsserver.NewServer(opts)
	if err != nil {
		return nil, fmt.Errorf("nats: %w", err)
	}
	s.Start()
	if !s.ReadyForConnections(10 * time.Second) {
		err = errors.New("nats: the server did not become ready")
	} else {
		err = parent.Send(natsReady{Addr: s.Addr().String(), CertPEM: certPEM})
	}
	if err == nil {
		<-ctx.Done()
	}
	s.Shutdown()
	s.WaitForShutdown()
	return nil, err
}

func startNATS(ctx context.Context, secure bool, _ settings) (*server, error) {
	var r natsReady
	p, err := child.Start(ctx, natsName, secure, nil, &r)
	if err != nil {
		return nil, err
	}
	s := &server{addr: r.Addr, stop: func() error { return p.Stop(nil) }}
	if secure {
		if s.tls, err = dev.ClientTLS(r.CertPEM); err != nil {
			return nil, errors.Join(err, s.stop())
		}
	}
	return s, nil
}

type natsSession struct{ c *nats.Conn }

func connectNATS(ctx context.Context, s *server, set settings, fail func(error)) (session, error) {
	opts := []nats.Option{
		nats.NoReconnect(), nats.Timeout(10 * time.Second), nats.WriteBufferSize(set[writeBuffer]),
		nats.SetCustomDialer(natsDialer{ctx, set}),
		nats.ClosedHandler(func(c *nats.Conn) {
			if err := c.LastError(); err != nil {
				fail(fmt.Errorf("nats: connection: %w", err))
			}
		}),
		nats.ErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) { fail(fmt.Errorf("nats: %w", err)) }),
	}
	if set[unchecked] != 0 {
		opts = append(opts, nats.SkipSubjectValidation())
	}
	if s.tls != nil {
		opts = append(opts, nats.Secure(s.tls))
	}
	c, err := nats.Connect("nats://"+s.addr, opts...)
	if err != nil {
		return nil, err
	}
	return natsSession{c}, nil
}

// natsDialer opens the connections of a client.
type natsDialer struct {
	ctx context.Context
	set settings
}

func (d natsDialer) Dial(_, addr string) (net.Conn, error) { return d.set.dial(d.ctx, addr) }

func (n natsSession) subscribe(ctx context.Context, receive func([]byte)) error {
	sub, err := n.c.Subscribe(subject, func(m *nats.Msg) { receive(m.Data) })
	if err != nil {
		return err
	}
	if err := sub.SetPendingLimits(-1, -1); err != nil {
		return err
	}
	return n.c.FlushWithContext(ctx) // the server has seen what was sent before
}

func (n natsSession) publish(_ context.Context, events [][]byte) error {
	for _, event := range events {
		if err := n.c.Publish(subject, event); err != nil {
			return err
		}
	}
	return nil
}

func (n natsSession) close() { n.c.Close() }
