package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"

	"github.com/felix-mq/felix/benchmarks/floor/drive"
	"github.com/felix-mq/felix/loadgen"
	"github.com/felix-mq/felix/quicx"
)

// subject is where all events go.
const subject = "bench"

type natsReady struct {
	Addr    string `json:"addr"`
	CertPEM []byte `json:"cert_pem"`
}

// serveNATS is the process of a NATS server: the defaults of nats-server, and TLS 1.3 with the same kind of certificate as
// the others have.
func serveNATS(_ context.Context, _ string, ready func(any) error) (any, error) {
	cert, _, err := quicx.DevCertificate()
	if err != nil {
		return nil, err
	}
	s, err := server.NewServer(&server.Options{
		Host: "127.0.0.1", Port: server.RANDOM_PORT, NoLog: true, NoSigs: true,
		TLSConfig: &tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS13}, TLSTimeout: 10,
	})
	if err != nil {
		return nil, fmt.Errorf("nats: %w", err)
	}
	s.Start()
	if !s.ReadyForConnections(10 * time.Second) {
		err = errors.New("nats: the server did not become ready")
	} else {
		err = ready(natsReady{
			Addr:    s.Addr().String(),
			CertPEM: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Certificate[0]}),
		})
	}
	s.Shutdown()
	s.WaitForShutdown()
	return nil, err
}

// runNATS loads a NATS server in a process of its own. Each subscription has a callback, and each message a payload of its
// own, as users of NATS have them; the server and its clients join messages into writes as they see fit.
func runNATS(ctx context.Context, s drive.Shape) (*loadgen.Result, error) {
	var r natsReady
	p, err := drive.Start(ctx, natsName, "", nil, &r)
	if err != nil {
		return nil, err
	}
	res, err := loadNATS(ctx, s, &r)
	if err = errors.Join(err, p.Stop(new(any))); err != nil {
		return nil, err
	}
	res.Broker = loadgen.BrokerInfo{Kind: "process", Addr: r.Addr}
	return res, nil
}

func loadNATS(ctx context.Context, s drive.Shape, r *natsReady) (*loadgen.Result, error) {
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(r.CertPEM) {
		return nil, errors.New("nats: the server sent no certificate")
	}
	work, fail := context.WithCancelCause(ctx)
	defer fail(nil)
	connect := func() (*nats.Conn, error) {
		closed := func(c *nats.Conn) {
			if err := c.LastError(); err != nil {
				fail(fmt.Errorf("nats: connection: %w", err))
			}
		}
		return nats.Connect("tls://"+r.Addr,
			nats.Secure(&tls.Config{RootCAs: roots, ServerName: "localhost", MinVersion: tls.VersionTLS13}),
			nats.NoReconnect(), nats.Timeout(10*time.Second), nats.WriteBufferSize(64<<10), nats.ClosedHandler(closed),
			nats.ErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) { fail(fmt.Errorf("nats: %w", err)) }))
	}
	pub, err := connect()
	if err != nil {
		return nil, fmt.Errorf("nats: %w", err)
	}
	defer pub.Close()
	if state, err := pub.TLSConnectionState(); err != nil || state.Version != tls.VersionTLS13 {
		return nil, errors.Join(errors.New("nats: the connection is not one of TLS 1.3"), err)
	}
	l := drive.New(s)
	var conns []*nats.Conn
	for i := range s.Fanout {
		if i < s.Conns {
			c, err := connect()
			if err != nil {
				return nil, fmt.Errorf("nats: %w", err)
			}
			defer c.Close()
			conns = append(conns, c)
		}
		if err := subscribeNATS(conns[i%len(conns)], l, l.Receiver(i), fail); err != nil {
			return nil, fmt.Errorf("nats: subscribing: %w", err)
		}
	}
	for _, c := range conns {
		if err := c.FlushWithContext(work); err != nil { // the server has seen what was sent before
			return nil, fmt.Errorf("nats: subscribing: %w", err)
		}
	}
	body := drive.Payload(s.Batch * s.Payload)
	err = l.Publish(work, 1, func(first uint64, _ int, at int64) error {
		for i := range s.Batch {
			payload := body[i*s.Payload : (i+1)*s.Payload]
			drive.PutStamp(payload, first+uint64(i), at)
			if err := pub.Publish(subject, payload); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return l.Result(), nil
}

func subscribeNATS(c *nats.Conn, l *drive.Load, to *drive.Receiver, fail context.CancelCauseFunc) error {
	sub, err := c.Subscribe(subject, func(m *nats.Msg) {
		first, at := drive.Stamp(m.Data)
		if err := to.Receive(l.Now(), first, 1, at); err != nil {
			fail(err)
		}
	})
	if err != nil {
		return err
	}
	return sub.SetPendingLimits(-1, -1) // the window bounds what is pending
}
