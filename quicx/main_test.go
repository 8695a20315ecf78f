package quicx

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"testing"

	"go.uber.org/goleak"

	"github.com/felix-mq/felix/internal/buf"
	"github.com/felix-mq/felix/internal/dev"
)

// checkLeaks fails the test if goroutines or chunks are left when everything registered after it has been cleaned up.
func checkLeaks(tb testing.TB) {
	tb.Helper()
	live := buf.Live()
	tb.Cleanup(func() {
		goleak.VerifyNone(tb)
		if n := buf.Live() - live; n != 0 {
			tb.Errorf("%d chunks were not released", n)
		}
	})
}

func devTLS(tb testing.TB, hosts ...string) (server, client *tls.Config) {
	tb.Helper()
	cert, pool, err := dev.SelfSigned(hosts...)
	if err != nil {
		tb.Fatal(err)
	}
	return serverTLS(cert), clientTLS(pool)
}

func serverTLS(cert tls.Certificate) *tls.Config {
	return &tls.Config{Certificates: []tls.Certificate{cert}}
}

func clientTLS(pool *x509.CertPool) *tls.Config { return &tls.Config{RootCAs: pool} }

// listen starts a listener on loopback that is closed with the test.
func listen(tb testing.TB, cfg Config) (l *Listener, client *tls.Config) {
	tb.Helper()
	server, client := devTLS(tb)
	l, err := Listen("127.0.0.1:0", server, cfg)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if err := l.Close(); err != nil {
			tb.Errorf("closing the listener: %v", err)
		}
	})
	return l, client
}

func dial(tb testing.TB, l *Listener, conf *tls.Config, cfg Config) *Conn {
	tb.Helper()
	c, err := Dial(tb.Context(), l.Addr().String(), conf, cfg)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { c.Close(0, "") })
	return c
}

func accept(tb testing.TB, l *Listener) *Conn {
	tb.Helper()
	c, err := l.Accept(tb.Context())
	if err != nil {
		tb.Fatal(err)
	}
	return c
}

// connect returns both ends of a connection.
func connect(tb testing.TB, serverCfg, clientCfg Config) (server, client *Conn) {
	tb.Helper()
	l, conf := listen(tb, serverCfg)
	client = dial(tb, l, conf, clientCfg)
	return accept(tb, l), client
}

// uniStream returns both ends of a new stream from one connection to the other. The peer learns of it with the first
// write, which is left to the caller: accept blocks until then.
func uniStream(tb testing.TB, from, to *Conn) (send *SendStream, accept func() *RecvStream) {
	tb.Helper()
	send, err := from.OpenUniStream(tb.Context())
	if err != nil {
		tb.Fatal(err)
	}
	return send, func() *RecvStream {
		tb.Helper()
		r, err := to.AcceptUniStream(tb.Context())
		if err != nil {
			tb.Fatal(err)
		}
		return r
	}
}

// closedContext returns a context that has ended.
func closedContext() context.Context {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	return ctx
}

// pattern returns n bytes that show when they are moved.
func pattern(n, seed int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(i*7 + i>>8 + seed)
	}
	return b
}
