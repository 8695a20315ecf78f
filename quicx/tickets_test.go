package quicx

import (
	"crypto/tls"
	"io"
	"testing"
	"time"
)

// TestTicketsOfAllSockets resumes sessions at whatever socket a client comes back to.
func TestTicketsOfAllSockets(t *testing.T) {
	checkLeaks(t)
	l, conf := listen(t, Config{Sockets: maxSocketsHere(3)})
	conf.ClientSessionCache = tls.NewLRUClientSessionCache(1)
	for i := range 12 { // from another port, and so to another socket, each time
		c := dial(t, l, conf, Config{})
		server := accept(t, l)
		if resumed := c.qc.ConnectionState().TLS.DidResume; resumed != (i > 0) {
			t.Errorf("connection %d: resumed %t", i, resumed)
		}
		// The ticket comes with or before the first data.
		send, accepted := uniStream(t, server, c)
		if _, err := send.Write([]byte{1}); err != nil {
			t.Fatal(err)
		}
		if err := send.Close(); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadAll(reader{accepted()}); err != nil {
			t.Fatal(err)
		}
		c.Close(0, "")
	}
}

func maxSocketsHere(n int) int { return min(n, maxSockets) }

// TestTicketKeysAreRenewed: the keys that all sockets of a listener share live for a week.
func TestTicketKeysAreRenewed(t *testing.T) {
	checkLeaks(t)
	now := time.Now()
	server, conf := devTLS(t)
	server.Time = func() time.Time { return now }
	l, err := Listen("127.0.0.1:0", server, Config{Sockets: maxSocketsHere(3)})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	session := clientSession(t, l, conf)
	seal := func() []byte {
		t.Helper()
		ticket, err := l.rules.EncryptTicket(tls.ConnectionState{}, session)
		if err != nil {
			t.Fatal(err)
		}
		return ticket
	}
	opens := func(ticket []byte) bool {
		s, err := l.rules.DecryptTicket(ticket, tls.ConnectionState{})
		return err == nil && s != nil
	}
	first := seal()
	for day := range 10 {
		if got, want := opens(first), day < 7; got != want {
			t.Errorf("on day %d: opens %t, want %t", day, got, want)
		}
		if today := seal(); !opens(today) {
			t.Errorf("on day %d: a new ticket does not open", day)
		}
		now = now.Add(25 * time.Hour)
	}
}

// clientSession connects and returns the session that comes of it.
func clientSession(t *testing.T, l *Listener, conf *tls.Config) *tls.SessionState {
	t.Helper()
	cache := make(sessionCache, 1)
	conf = conf.Clone()
	conf.ClientSessionCache = cache
	c := dial(t, l, conf, Config{})
	accept(t, l)
	_, session, err := (<-cache).ResumptionState()
	if err != nil {
		t.Fatal(err)
	}
	c.Close(0, "")
	return session
}

// sessionCache gives away the sessions that a client is given.
type sessionCache chan *tls.ClientSessionState

func (c sessionCache) Get(string) (*tls.ClientSessionState, bool) { return nil, false }

func (c sessionCache) Put(_ string, s *tls.ClientSessionState) {
	if s == nil {
		return
	}
	select {
	case c <- s:
	default:
	}
}
