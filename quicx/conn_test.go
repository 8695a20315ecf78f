package quicx

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/quic-go/quic-go"
)

func TestEcho(t *testing.T) {
	checkLeaks(t)
	for _, cfg := range []Config{{}, {DisableGRO: true}, {DisableGSO: true}} {
		server, client := connect(t, cfg, cfg)
		var wg sync.WaitGroup
		wg.Go(func() {
			s, err := server.AcceptStream(t.Context())
			if err != nil {
				t.Error(err)
				return
			}
			data, err := io.ReadAll(s.Recv())
			if err != nil {
				t.Error(err)
			}
			if _, err := s.Send().Write(data); err != nil {
				t.Error(err)
			}
			if err := s.Send().Close(); err != nil {
				t.Error(err)
			}
		})
		s, err := client.OpenStream(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		data := pattern(1<<20, 1)
		if n, err := s.Send().Write(data); n != len(data) || err != nil {
			t.Fatalf("Write = %d, %v", n, err)
		}
		if err := s.Send().Close(); err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(s.Recv())
		if err != nil || !bytes.Equal(got, data) {
			t.Errorf("%+v: got %d bytes back, %v", cfg, len(got), err)
		}
		wg.Wait()
		st := client.Stats()
		if st.BytesSent < uint64(len(data)) || st.BytesReceived < uint64(len(data)) || st.PacketsSent == 0 || st.RTT <= 0 || st.MinRTT <= 0 {
			t.Errorf("stats: %+v", st)
		}
		if client.RemoteAddr().String() != server.LocalAddr().String() {
			t.Errorf("client is connected to %v, server is at %v", client.RemoteAddr(), server.LocalAddr())
		}
		client.Close(0, "")
	}
}

func TestAddressFamilies(t *testing.T) {
	checkLeaks(t)
	for _, tc := range []struct{ listen, dial string }{
		{"127.0.0.1:0", "127.0.0.1"},
		{"127.0.0.1:0", "localhost"},
		{":0", "127.0.0.1"},
		{":0", "::1"},
		{"[::1]:0", "::1"},
		{"0.0.0.0:0", "127.0.0.1"},
	} {
		server, client := devTLS(t)
		l, err := Listen(tc.listen, server, Config{})
		if err != nil {
			t.Logf("skipping %s: %v", tc.listen, err)
			continue
		}
		_, port, _ := net.SplitHostPort(l.Addr().String())
		c, err := Dial(t.Context(), net.JoinHostPort(tc.dial, port), client, Config{})
		if err != nil {
			t.Errorf("%s to %s: %v", tc.dial, tc.listen, err)
		} else {
			c.Close(0, "")
		}
		l.Close()
	}
}

func TestDialErrors(t *testing.T) {
	checkLeaks(t)
	l, conf := listen(t, Config{})

	_, err := Dial(t.Context(), l.Addr().String(), nil, Config{})
	var unknown x509.UnknownAuthorityError
	var closed *ConnClosedError
	if !errors.Is(err, ErrHandshake) || !errors.As(err, &unknown) || !errors.As(err, &closed) || !closed.Transport || closed.Remote {
		t.Errorf("certificate of an unknown authority: %v", err)
	}

	wrong := conf.Clone()
	wrong.ServerName = "elsewhere.example"
	var hostname x509.HostnameError
	if _, err := Dial(t.Context(), l.Addr().String(), wrong, Config{}); !errors.As(err, &hostname) {
		t.Errorf("wrong name: %v", err)
	}

	if _, err := Dial(closedContext(), l.Addr().String(), conf, Config{}); !errors.Is(err, context.Canceled) {
		t.Errorf("canceled: %v", err)
	}
	if _, err := Dial(t.Context(), "no port", conf, Config{}); err == nil || errors.Is(err, ErrHandshake) {
		t.Errorf("bad address: %v", err)
	}
	if _, err := Dial(t.Context(), l.Addr().String(), conf, Config{IdleTimeout: -1, RecvBuffer: -1}); err == nil ||
		!strings.Contains(err.Error(), "IdleTimeout") || !strings.Contains(err.Error(), "RecvBuffer") {
		t.Errorf("bad configuration: %v", err)
	}

	// Nobody answers.
	silent, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	_, err = Dial(t.Context(), silent.LocalAddr().String(), conf, Config{HandshakeTimeout: 20 * time.Millisecond})
	var ne net.Error
	if !errors.Is(err, ErrHandshake) || !errors.As(err, &ne) || !ne.Timeout() {
		t.Errorf("silent peer: %v", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	_, err = Dial(ctx, silent.LocalAddr().String(), conf, Config{})
	if !errors.Is(err, ErrHandshake) || !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("silent peer and a deadline: %v", err)
	}
}

// Neither an application protocol that a client offers nor one in our own configuration may matter to anybody else.
func TestNoALPN(t *testing.T) {
	checkLeaks(t)
	server, conf := devTLS(t)
	server.NextProtos = []string{"felix"}
	perClient := server.Clone()
	server.GetConfigForClient = func(*tls.ClientHelloInfo) (*tls.Config, error) { return perClient, nil }
	l, err := Listen("127.0.0.1:0", server, Config{})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()

	offer := conf.Clone()
	offer.NextProtos = []string{"felix"}
	offer.ServerName = "localhost"
	if _, err := quic.DialAddr(t.Context(), l.Addr().String(), offer, nil); err == nil {
		t.Error("a client that insists on a protocol got a connection")
	}

	conf.NextProtos = []string{"felix"} // ignored
	c := dial(t, l, conf, Config{})
	defer c.Close(0, "")
	s := accept(t, l)
	for _, state := range []quic.ConnectionState{c.qc.ConnectionState(), s.qc.ConnectionState()} {
		if state.TLS.NegotiatedProtocol != "" || state.TLS.Version != tls.VersionTLS13 || state.Version != quic.Version1 {
			t.Errorf("negotiated %q, TLS %#x, QUIC %v", state.TLS.NegotiatedProtocol, state.TLS.Version, state.Version)
		}
	}
	if server.NextProtos[0] != "felix" || conf.NextProtos[0] != "felix" {
		t.Error("the caller's configuration was changed")
	}
}

// A handshake that hangs on the server's side holds up no other.
func TestHandshakesAreIndependent(t *testing.T) {
	checkLeaks(t)
	server, conf := devTLS(t, "slow.example", "localhost", "127.0.0.1")
	hanging, release := make(chan struct{}), make(chan struct{})
	plain := server.Clone()
	server.GetConfigForClient = func(info *tls.ClientHelloInfo) (*tls.Config, error) {
		if info.ServerName == "slow.example" {
			close(hanging)
			<-release
		}
		return plain, nil
	}
	l, err := Listen("127.0.0.1:0", server, Config{})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()

	slow := conf.Clone()
	slow.ServerName = "slow.example"
	slowConn := make(chan *Conn, 1)
	go func() {
		c, err := Dial(t.Context(), l.Addr().String(), slow, Config{})
		if err != nil {
			t.Error(err)
		}
		slowConn <- c
	}()
	<-hanging
	quick := dial(t, l, conf, Config{})
	if s := accept(t, l); s.RemoteAddr().(*net.UDPAddr).Port != quick.LocalAddr().(*net.UDPAddr).Port {
		t.Error("another connection came first")
	}
	close(release)
	accept(t, l)
	if c := <-slowConn; c != nil {
		c.Close(0, "")
	}
}

func TestCloseReachesThePeer(t *testing.T) {
	checkLeaks(t)
	server, client := connect(t, Config{}, Config{})
	send, acceptRecv := uniStream(t, client, server)
	if _, err := send.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	recv := acceptRecv()
	if _, err := recv.Read(make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	read := make(chan error)
	go func() {
		_, err := recv.Read(make([]byte, 1))
		read <- err
	}()
	if err := client.Close(7, "enough"); err != nil {
		t.Fatal(err)
	}
	if err := client.Close(8, "again"); err != nil {
		t.Fatal(err)
	}

	var closed *ConnClosedError
	if err := <-read; !errors.As(err, &closed) || closed.Code != 7 || closed.Reason != "enough" || !closed.Remote || closed.Transport || !errors.Is(err, net.ErrClosed) {
		t.Errorf("the peer's read: %v", err)
	}
	<-server.Context().Done()
	if err := context.Cause(server.Context()); !errors.As(err, &closed) || closed.Code != 7 || !closed.Remote {
		t.Errorf("the peer's context: %v", err)
	}
	if _, err := send.Write([]byte("x")); !errors.As(err, &closed) || closed.Remote || !errors.Is(err, net.ErrClosed) {
		t.Errorf("own write: %v", err)
	}
	if _, err := client.OpenStream(t.Context()); !errors.Is(err, net.ErrClosed) {
		t.Errorf("own open: %v", err)
	}
	if _, err := client.AcceptStream(t.Context()); !errors.Is(err, net.ErrClosed) {
		t.Errorf("own accept: %v", err)
	}
	if err := context.Cause(client.Context()); !errors.As(err, &closed) || closed.Remote {
		t.Errorf("own context: %v", err)
	}
}

func TestListenerClose(t *testing.T) {
	checkLeaks(t)
	l, conf := listen(t, Config{})
	accepted := dial(t, l, conf, Config{})
	accept(t, l)
	waiting := dial(t, l, conf, Config{}) // not accepted

	acceptErr := make(chan error)
	second, _ := listen(t, Config{})
	go func() {
		_, err := second.Accept(context.Background())
		acceptErr <- err
	}()
	if err := errors.Join(l.Close(), l.Close(), second.Close()); err != nil {
		t.Error(err)
	}
	if err := <-acceptErr; !errors.Is(err, ErrClosed) || !errors.Is(err, net.ErrClosed) {
		t.Errorf("Accept: %v", err)
	}
	if _, err := l.Accept(t.Context()); !errors.Is(err, ErrClosed) {
		t.Errorf("Accept after Close: %v", err)
	}
	for name, c := range map[string]*Conn{"accepted": accepted, "waiting": waiting} {
		<-c.Context().Done()
		var closed *ConnClosedError
		err := context.Cause(c.Context())
		ok := errors.As(err, &closed) && closed.Remote && closed.Code == 0 && !closed.Transport
		if c == waiting && closed != nil && closed.Transport { // its last packet had not arrived
			ok = closed.Remote && closed.Code == uint64(quic.ConnectionRefused)
		}
		if !ok {
			t.Errorf("%s connection: %v", name, err)
		}
	}
}

func TestAcceptEndsWithItsContext(t *testing.T) {
	checkLeaks(t)
	l, _ := listen(t, Config{})
	if _, err := l.Accept(closedContext()); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

func TestRefuse(t *testing.T) {
	checkLeaks(t)
	l, conf := listen(t, Config{})
	client := dial(t, l, conf, Config{})
	server := accept(t, l)
	l.Refuse()
	var closed *ConnClosedError
	if _, err := Dial(t.Context(), l.Addr().String(), conf, Config{}); !errors.Is(err, ErrHandshake) || !errors.As(err, &closed) ||
		!closed.Remote || !closed.Transport || closed.Code != uint64(quic.ConnectionRefused) {
		t.Errorf("refused: %v", err)
	}
	send, acceptRecv := uniStream(t, server, client)
	if _, err := send.Write([]byte("still here")); err != nil {
		t.Fatal(err)
	}
	send.Close()
	if got, err := io.ReadAll(acceptRecv()); string(got) != "still here" || err != nil {
		t.Errorf("read %q, %v", got, err)
	}
}

// A listener that comes back with the same key tells the peers of its former life.
func TestStatelessReset(t *testing.T) {
	for _, sockets := range []int{1, min(3, maxSockets)} {
		t.Run(fmt.Sprint("sockets=", sockets), func(t *testing.T) { testStatelessReset(t, sockets) })
	}
}

func testStatelessReset(t *testing.T, sockets int) {
	checkLeaks(t)
	key := [32]byte{1, 2, 3}
	l, conf := listen(t, Config{StatelessResetKey: &key, Sockets: sockets})
	client := dial(t, l, conf, Config{})
	send, acceptRecv := uniStream(t, client, accept(t, l))
	if _, err := send.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	acceptRecv()
	server, _ := devTLS(t)  // before the port is free, which somebody else could be given
	l.closeOnce.Do(func() { // without a word
		close(l.stop)
		for _, e := range l.ends {
			e.tr.Close()
			e.sock.Close()
		}
		l.wg.Wait()
	})
	again, err := Listen(l.Addr().String(), server, Config{StatelessResetKey: &key, Sockets: sockets})
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	if _, err := send.Write(make([]byte, 1000)); err != nil && !errors.Is(err, net.ErrClosed) {
		t.Error(err)
	}
	<-client.Context().Done()
	var closed *ConnClosedError
	if err := context.Cause(client.Context()); !errors.As(err, &closed) || !closed.Remote || !closed.Transport {
		t.Error(err)
	}
}

func TestIdleTimeout(t *testing.T) {
	checkLeaks(t)
	// Long enough that neither side is found idle between the end of its handshake and that of Dial and Accept.
	cfg := Config{IdleTimeout: 500 * time.Millisecond, KeepAlive: -1}
	server, client := connect(t, cfg, cfg)
	for _, c := range []*Conn{server, client} {
		<-c.Context().Done()
		err := context.Cause(c.Context())
		var ne net.Error
		if !errors.Is(err, ErrIdleTimeout) || !errors.Is(err, net.ErrClosed) || !errors.As(err, &ne) || !ne.Timeout() {
			t.Errorf("after silence: %v", err)
		}
	}
}

func TestStreamResets(t *testing.T) {
	checkLeaks(t)
	server, client := connect(t, Config{}, Config{})
	var reset *StreamResetError

	send, acceptRecv := uniStream(t, client, server)
	if _, err := send.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	recv := acceptRecv()
	if _, err := recv.Read(make([]byte, 10)); err != nil {
		t.Fatal(err)
	}
	send.Cancel(5)
	if _, err := recv.Read(make([]byte, 10)); !errors.As(err, &reset) || reset.Code != 5 || !reset.Remote || errors.Is(err, net.ErrClosed) {
		t.Errorf("read after the sender gave up: %v", err)
	}
	if _, err := send.Write([]byte("x")); !errors.As(err, &reset) || reset.Remote || !errors.Is(err, net.ErrClosed) {
		t.Errorf("write after Cancel: %v", err)
	}
	if err := send.Close(); !errors.As(err, &reset) {
		t.Errorf("Close after Cancel: %v", err)
	}

	send, acceptRecv = uniStream(t, client, server)
	if _, err := send.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	recv = acceptRecv()
	recv.Cancel(6)
	<-send.Context().Done()
	if _, err := send.Write([]byte("x")); !errors.As(err, &reset) || reset.Code != 6 || !reset.Remote {
		t.Errorf("write after the reader gave up: %v", err)
	}
	if _, err := recv.Read(make([]byte, 10)); !errors.As(err, &reset) || reset.Remote || !errors.Is(err, net.ErrClosed) {
		t.Errorf("read after Cancel: %v", err)
	}

	send, _ = uniStream(t, client, server)
	if err := send.Close(); err != nil {
		t.Error(err)
	}
	if _, err := send.Write([]byte("x")); !errors.Is(err, ErrClosed) {
		t.Errorf("write after Close: %v", err)
	}
}

func TestDeadlines(t *testing.T) {
	checkLeaks(t)
	server, client := connect(t, Config{}, Config{})
	send, acceptRecv := uniStream(t, client, server)
	if _, err := send.Write([]byte("xy")); err != nil {
		t.Fatal(err)
	}
	recv := acceptRecv()
	p := make([]byte, 2)
	past := time.Unix(1, 0)
	var ne net.Error
	if err := recv.SetReadDeadline(past); err != nil {
		t.Fatal(err)
	}
	if _, err := recv.Read(p); !errors.Is(err, os.ErrDeadlineExceeded) || !errors.As(err, &ne) || !ne.Timeout() {
		t.Errorf("read: %v", err)
	}
	if _, err := recv.Peek(p); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("peek: %v", err)
	}
	if err := recv.SetReadDeadline(time.Time{}); err != nil {
		t.Fatal(err)
	}
	if n, err := recv.Peek(p); n != 2 || err != nil {
		t.Errorf("peek again: %d, %v", n, err)
	}
	if n, err := io.ReadFull(recv, p); n != 2 || err != nil {
		t.Errorf("read again: %d, %v", n, err)
	}
	if err := send.SetWriteDeadline(past); err != nil {
		t.Fatal(err)
	}
	if _, err := send.Write(p); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("write: %v", err)
	}
}

func TestTryWrite(t *testing.T) {
	checkLeaks(t)
	const window = 8 << 10
	server, client := connect(t, Config{StreamWindow: window}, Config{})
	send, acceptRecv := uniStream(t, client, server)
	var written []byte
	for i := 0; ; i++ {
		p := pattern(1000, i)
		if err := send.TryWrite(p); err != nil {
			if !errors.Is(err, ErrWouldBlock) {
				t.Fatal(err)
			}
			break
		}
		written = append(written, p...)
	}
	if len(written) != window/1000*1000 {
		t.Errorf("%d bytes went into a window of %d", len(written), window)
	}
	if err := send.Close(); err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(acceptRecv()); err != nil || !bytes.Equal(got, written) {
		t.Errorf("read %d bytes of %d, %v", len(got), len(written), err)
	}
}

func TestStreamLimit(t *testing.T) {
	checkLeaks(t)
	const limit = 3
	server, client := connect(t, Config{MaxStreams: limit}, Config{})
	sends := make([]*SendStream, 0, limit)
	for range limit {
		send, _ := uniStream(t, client, server)
		sends = append(sends, send)
	}
	// Long enough that it does not end before the call begins to wait.
	ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
	defer cancel()
	if _, err := client.OpenUniStream(ctx); !errors.Is(err, ErrStreamLimit) || !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("one too many: %v", err)
	}
	if _, err := client.OpenUniStream(closedContext()); errors.Is(err, ErrStreamLimit) || !errors.Is(err, context.Canceled) {
		t.Errorf("canceled: %v", err)
	}
	opened := make(chan error)
	go func() {
		_, err := client.OpenUniStream(context.Background())
		opened <- err
	}()
	if err := sends[0].Close(); err != nil {
		t.Fatal(err)
	}
	recv, err := server.AcceptUniStream(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadAll(recv); err != nil {
		t.Fatal(err)
	}
	if err := <-opened; err != nil {
		t.Errorf("after one has ended: %v", err)
	}
}

func TestDefaultStreamLimit(t *testing.T) {
	checkLeaks(t)
	_, client := connect(t, Config{}, Config{})
	for range DefaultMaxStreams {
		if _, err := client.qc.OpenUniStream(); err != nil {
			t.Fatal(err)
		}
		if _, err := client.qc.OpenStream(); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := client.qc.OpenUniStream(); err == nil {
		t.Error("more than the default number of streams")
	}
}

// As many streams as the hint says may be full and unread without stopping one more that is read.
func TestUnreadStreamsDoNotStopOthers(t *testing.T) {
	checkLeaks(t)
	const window, unread = 16 << 10, 5
	server, client := connect(t, Config{StreamWindow: window, StreamsHint: unread}, Config{})
	for range unread {
		send, _ := uniStream(t, client, server)
		go send.Write(make([]byte, 2*window)) //nolint:errcheck // blocks until the connection ends
		if _, err := server.AcceptUniStream(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	send, acceptRecv := uniStream(t, client, server)
	go func() {
		for range 64 {
			if _, err := send.Write(make([]byte, window)); err != nil {
				t.Error(err)
			}
		}
		send.Close()
	}()
	n, err := io.Copy(io.Discard, acceptRecv())
	if n != 64*window || err != nil {
		t.Errorf("read %d, %v", n, err)
	}
	client.Close(0, "")
}

func TestConfigDefaults(t *testing.T) {
	c := Config{}.withDefaults()
	if want := uint64(4 * 10 * (256 << 10) / 3); c.ConnWindow != want {
		t.Errorf("connection window %d, want %d", c.ConnWindow, want)
	}
	if c := (Config{ConnWindow: 1 << 30}).withDefaults(); c.ConnWindow != 1<<30 {
		t.Errorf("configured connection window %d", c.ConnWindow)
	}
	q := c.quic()
	if q.InitialStreamReceiveWindow != q.MaxStreamReceiveWindow || q.InitialConnectionReceiveWindow != q.MaxConnectionReceiveWindow {
		t.Error("windows grow")
	}
	if q.Allow0RTT || q.EnableDatagrams || q.MaxIncomingStreams != 1024 || q.MaxIncomingUniStreams != 1024 ||
		q.KeepAlivePeriod != 10*time.Second || q.MaxIdleTimeout != 30*time.Second || q.HandshakeIdleTimeout != 5*time.Second {
		t.Errorf("%+v", q)
	}
	if q := (Config{KeepAlive: -1, MaxStreams: -1}).withDefaults().quic(); q.KeepAlivePeriod != 0 || q.MaxIncomingStreams >= 0 {
		t.Errorf("%+v", q)
	}
}

func TestMapError(t *testing.T) {
	if err := mapError(nil); err != nil {
		t.Error(err)
	}
	for _, err := range []error{io.EOF, context.Canceled, context.DeadlineExceeded} {
		if got := mapError(err); got != err { //nolint:errorlint // untouched
			t.Errorf("%v became %v", err, got)
		}
	}
	for _, tc := range []struct{ err, want error }{
		{quic.ErrWouldBlock, ErrWouldBlock},
		{quic.ErrServerClosed, ErrClosed},
		{quic.ErrTransportClosed, ErrClosed},
		{quic.ErrStreamClosed, ErrClosed},
		{&quic.IdleTimeoutError{}, ErrIdleTimeout},
		{&quic.HandshakeTimeoutError{}, net.ErrClosed},
		{&quic.StatelessResetError{}, net.ErrClosed},
		{&quic.VersionNegotiationError{}, net.ErrClosed},
		{&quic.TransportError{ErrorCode: quic.ProtocolViolation}, net.ErrClosed},
		{&quic.ApplicationError{}, net.ErrClosed},
		{&quic.StreamError{}, net.ErrClosed},
		{errors.ErrUnsupported, errors.ErrUnsupported},
	} {
		got := mapError(tc.err)
		if !errors.Is(got, tc.want) || !strings.HasPrefix(got.Error(), "quicx: ") {
			t.Errorf("%T became %v", tc.err, got)
		}
	}
	if errors.Is(mapError(&quic.StreamError{Remote: true}), net.ErrClosed) {
		t.Error("a reset by the peer counts as closed by us")
	}
	if !errors.Is(ErrTruncated, io.ErrUnexpectedEOF) {
		t.Error("ErrTruncated is no unexpected EOF")
	}
}

type reader struct{ s *RecvStream }

func (r reader) Read(b []byte) (int, error) { return r.s.Read(b) }
