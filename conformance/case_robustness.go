package conformance

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	"golang.org/x/net/quic"

	"github.com/felix-mq/felix/codec"
	"github.com/felix-mq/felix/quicx"
)

// robustnessCases are row 58 and the defects that concern connections.
func robustnessCases() []Case {
	return []Case{
		{ID: "RAW-58", Name: "as many control streams as are allowed, left unauthenticated", run: idleStreams},
		{ID: "D35a", Name: "a client that offers ALPN does not end the listener", run: offeredALPN},
		{ID: "D35b", Name: "a client that refuses the certificate does not end the listener", run: refusedCertificate},
		{ID: "D35c", Name: "an abandoned handshake blocks nobody", run: abandonedHandshake},
		{ID: "D01", Name: "an idle connection is kept alive by the broker", timeout: time.Minute, run: keptAlive},
	}
}

// idleStreams opens all streams it may, and one more.
func idleStreams(p *probe) {
	c := p.dial(plain)
	streams := make([]*control, p.fx.MaxStreams)
	for i := range streams {
		streams[i] = c.open()
		streams[i].send([]byte("F")) // a stream exists with its first byte
	}
	// Credit that is there is taken at once, so the wait is long only if there is none, as there should be.
	ctx, cancel := context.WithTimeout(p.ctx, 200*time.Millisecond)
	defer cancel()
	if _, err := c.qc.OpenStream(ctx); !errors.Is(err, quicx.ErrStreamLimit) {
		p.fail(fmt.Sprintf("no more than %d streams", p.fx.MaxStreams), fmt.Sprintf("one more: %v", err))
	}
	p.authed().expectServed()
	auth := codec.AppendAuth(nil, p.fx.Tenant, p.fx.token(allActions...), codec.KnownFlags, true, 0)
	streams[len(streams)-1].send(auth[1:])
	streams[len(streams)-1].expect("auth_ok 63")
	for _, s := range streams[:len(streams)/2] { // their end gives credit back
		s.finish()
		s.expect("FIN")
	}
	c.authed().expectServed()
}

// foreignEndpoint is a client on another QUIC stack than ours, which lets us break the rules that quicx keeps.
func (p *probe) foreignEndpoint(wrap func(net.PacketConn) net.PacketConn) *quic.Endpoint {
	pc, err := (&net.ListenConfig{}).ListenPacket(p.ctx, "udp", ":0")
	p.must("a socket", err)
	e, err := quic.NewEndpoint(wrap(pc), nil)
	if err != nil {
		_ = pc.Close()
		p.fail("a QUIC endpoint", err.Error())
	}
	p.onClose(func() {
		ctx, cancel := context.WithCancel(context.Background())
		cancel() // without the courtesies of an orderly end
		_ = e.Close(ctx)
	})
	return e
}

func (p *probe) clientTLS() *tls.Config {
	conf := p.target.TLS.Clone()
	if conf.ServerName == "" {
		conf.ServerName, _, _ = net.SplitHostPort(p.target.Addr)
	}
	conf.MinVersion = tls.VersionTLS13
	return conf
}

// offeredALPN fails on the client's side: the broker selects no protocol, as it must.
func offeredALPN(p *probe) {
	e := p.foreignEndpoint(func(pc net.PacketConn) net.PacketConn { return pc })
	conf := p.clientTLS()
	conf.NextProtos = []string{"felix"}
	ctx, cancel := context.WithDeadline(p.ctx, p.deadline())
	defer cancel()
	if _, err := e.Dial(ctx, "udp", p.target.Addr, &quic.Config{TLSConfig: conf}); err == nil {
		p.fail("a handshake that fails: the broker selects no protocol", "a connection")
	}
	p.authed().expectServed()
}

func refusedCertificate(p *probe) {
	conf := p.clientTLS()
	conf.VerifyConnection = func(tls.ConnectionState) error { return errors.New("refused on purpose") }
	if _, err := quicx.Dial(p.ctx, p.target.Addr, conf, plain); err == nil {
		p.fail("a handshake that fails", "a connection")
	}
	p.authed().expectServed()
}

// abandonedHandshake begins a handshake, falls silent when the broker has answered, and looks whether others get in
// while that one is pending.
func abandonedHandshake(p *probe) {
	var line *cutLine
	e := p.foreignEndpoint(func(pc net.PacketConn) net.PacketConn {
		line = &cutLine{PacketConn: pc, cut: make(chan struct{})}
		return line
	})
	ctx, cancel := context.WithCancel(p.ctx)
	var dialing sync.WaitGroup
	defer dialing.Wait()
	defer cancel()
	dialing.Go(func() { _, _ = e.Dial(ctx, "udp", p.target.Addr, &quic.Config{TLSConfig: p.clientTLS()}) })
	timer := time.NewTimer(time.Until(p.deadline()))
	defer timer.Stop()
	select {
	case <-line.cut:
	case <-timer.C:
		p.fail("an answer to a handshake", p.nothing())
	}
	for range 3 {
		p.authed().expectServed()
	}
}

// cutLine is a socket that goes dead in both directions with the first datagram that comes in.
type cutLine struct {
	net.PacketConn
	once sync.Once
	cut  chan struct{}
}

func (l *cutLine) ReadFrom(b []byte) (int, net.Addr, error) {
	for {
		_, _, err := l.PacketConn.ReadFrom(b)
		if err != nil {
			return 0, nil, err
		}
		l.once.Do(func() { close(l.cut) })
	}
}

func (l *cutLine) WriteTo(b []byte, addr net.Addr) (int, error) {
	select {
	case <-l.cut:
		return len(b), nil
	default:
		return l.PacketConn.WriteTo(b, addr)
	}
}

// keptAlive stays idle for longer than its own idle timeout, without keep-alives of its own: only packets from the
// broker can keep the connection up. A subscription on it still delivers.
func keptAlive(p *probe) {
	const idle = 12 * time.Second
	c := p.dial(quicx.Config{IdleTimeout: idle, KeepAlive: -1})
	e := c.subscribe(p.fx.Stream, live)
	timer := time.NewTimer(2 * idle)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-c.qc.Context().Done():
		p.fail(fmt.Sprintf("something from the broker within %v", idle), context.Cause(c.qc.Context()).Error())
	}
	marker := p.unique()
	p.authed().publishAll(p.fx.topic(), marker)
	e.expect(marker)
}
