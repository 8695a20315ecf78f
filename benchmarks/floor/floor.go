// Package floor measures what the transport alone costs, with the sockets, windows, processes and connections of Felix
// and nothing of its work: how fast a broker could be.
//
// It has two yardsticks. The pipe ([RunPipe]) is one stream over one hop. The relay ([RunRelay]) is what a broker has
// to do at least: a process of its own reads frames from a publisher and writes the same bytes to every subscription.
// There are no topics, no permissions, no limits, no items inside a frame; a subscription that is slow makes it hold
// whatever the publisher's window lets in. It uses the means that make Felix fast, so that what is left between the two
// is the price of being a broker: datagrams in bulk, frames joined up to 64 KiB for each write, small frames written at
// once to subscriptions that are idle, and a socket reader that polls before it parks.
//
// Its sockets take the settings of Felix's broker, those of FELIX_* variables included, so that the two stay comparable
// when they change. A program that uses the package calls [Serve] first in main. Package loadgen does the loading and
// the accounting. Begin at [RunRelay].
package floor

import (
	"context"
	"crypto/tls"
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"github.com/felix-mq/felix/broker"
	"github.com/felix-mq/felix/internal/child"
	"github.com/felix-mq/felix/internal/dev"
	"github.com/felix-mq/felix/internal/settings"
	"github.com/felix-mq/felix/loadgen"
	"github.com/felix-mq/felix/quicx"
)

// Serve makes [RunPipe] and [RunRelay] possible: their other process is another instance of this program. It is called
// before anything else in main, and returns at once in every process but theirs.
func Serve() {
	child.Serve(sinkRole, func(ctx context.Context, _ any, p *child.Parent) (any, error) { return serve(ctx, p, sink) })
	child.Serve(relayRole, func(ctx context.Context, _ any, p *child.Parent) (any, error) { return serve(ctx, p, new(relay).conn) })
}

// ready is what our processes say when they listen.
type ready struct {
	Addr    string           `json:"addr"`
	CertPEM []byte           `json:"cert_pem"`
	Socket  quicx.SocketInfo `json:"socket"`
}

// account is what they say in the end.
type account struct {
	PacketsLost uint64 `json:"packets_lost"` // of those that it sent
}

// serve accepts connections, and serves each with handle, which returns when the connection has ended, until the parent
// wants the end.
func serve(ctx context.Context, parent *child.Parent, handle func(*quicx.Conn)) (any, error) {
	cfg := broker.DefaultConfig()
	if err := settings.Environment(&cfg); err != nil {
		return nil, err
	}
	cert, _, err := dev.SelfSigned()
	if err != nil {
		return nil, err
	}
	ln, err := quicx.Listen("127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{cert}}, quicx.Config{
		StreamWindow: cfg.StreamWindow,
		ConnWindow:   cfg.ConnWindow,
		SendBuffer:   cfg.SendBuffer,
		RecvBuffer:   cfg.RecvBuffer,
		Spin:         cfg.Spin,
	})
	if err != nil {
		return nil, err
	}
	var conns sync.WaitGroup
	var lost atomic.Uint64
	conns.Go(func() { // ends with the listener
		for {
			conn, err := ln.Accept(context.Background())
			if err != nil {
				return
			}
			conns.Go(func() { // ends with the connection
				handle(conn)
				lost.Add(conn.Stats().PacketsLost)
			})
		}
	})
	err = parent.Send(ready{
		Addr:    ln.Addr().String(),
		CertPEM: dev.CertPEM(cert.Leaf),
		Socket:  ln.Socket(),
	})
	if err == nil {
		<-ctx.Done()
	}
	err = errors.Join(err, ln.Close())
	conns.Wait()
	return account{PacketsLost: lost.Load()}, err
}

func (r *ready) brokerInfo() loadgen.BrokerInfo {
	s := &r.Socket
	return loadgen.BrokerInfo{
		Kind: "process", Addr: r.Addr,
		ReceiveBuffer: s.RecvBufferGranted, SendBuffer: s.SendBufferGranted, GRO: s.GRO, GSO: s.GSO,
	}
}

// clientConfig is that of Felix's client for a connection with so many streams towards it.
func clientConfig(streams int) quicx.Config {
	return quicx.Config{StreamsHint: streams, IdleTimeout: 7 * time.Second, KeepAlive: 3 * time.Second}
}
