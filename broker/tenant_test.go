package broker_test

import (
	"testing"

	"github.com/felix-mq/felix/broker"
	"github.com/felix-mq/felix/codec"
)

// TestUnfinishedFrames begins frames and does not finish them, on many connections of one tenant: together they hold no
// more than that tenant may have, and another one's frames arrive.
func TestUnfinishedFrames(t *testing.T) {
	const bound = 4 << 20
	s := startServed(t, func(cfg *broker.Config) { cfg.ReadBytes = bound })
	acme, other := s.as("acme"), s.as("other")
	n := dialPeer(t, other)
	neighbor := n.open(n.auth())
	neighbor.wantMessage(codec.MsgAuthOK, "")
	const size = 60 << 10
	for range 4 {
		p := dialPeer(t, acme)
		for range 32 {
			c := p.open(p.auth())
			c.wantMessage(codec.MsgAuthOK, "")
			go func() { _, _ = c.s.Send().Write(codec.AppendHeader(nil, 0, size)) }()
			go func() { _, _ = c.s.Send().Write(make([]byte, size-1)) }()
		}
	}
	wantLimit(t, acme, "conn_memory", 1)
	for id := range uint64(20) {
		if held := metric(t, acme, "felix_read_bytes"); held > bound {
			t.Fatalf("%v bytes are held, want %d at most", held, bound)
		}
		neighbor.send(codec.AppendPublish(nil, "other", "default", "events", make([]byte, 40<<10), codec.AckPerMessage, id, true))
		neighbor.wantMessage(codec.MsgPublishOK, "")
	}
}

// TestOpenStreams opens streams and leaves them idle: they cost the tenant's memory, and beyond that they end.
func TestOpenStreams(t *testing.T) {
	s := startServed(t, func(cfg *broker.Config) { cfg.ReadBytes = 4 << 20 })
	acme := s.as("acme")
	for range 2 {
		p := dialPeer(t, acme)
		p.open(p.auth()).wantMessage(codec.MsgAuthOK, "")
		for range 300 {
			p.open([]byte{'F'})
		}
	}
	wantLimit(t, acme, "conn_memory", 1)
	if n := metric(t, acme, "felix_control_streams"); n > (3<<20)/(8<<10) {
		t.Errorf("%v streams are open", n)
	}
	other := s.as("other")
	c := dialPeer(t, other)
	c.open(c.auth()).wantMessage(codec.MsgAuthOK, "")
}
