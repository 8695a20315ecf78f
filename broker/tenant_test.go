package broker_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/felix-mq/felix/broker"
	"github.com/felix-mq/felix/catalog"
	"github.com/felix-mq/felix/client"
	"github.com/felix-mq/felix/codec"
)

// sendUnfinished begins 128 requests of almost 64 KiB on four connections, and finishes none.
func sendUnfinished(t *testing.T, d *broker.Dev) {
	t.Helper()
	const size = 60 << 10
	for range 4 {
		p := dialPeer(t, d)
		for range 32 {
			c := p.open()
			unfinished := append(codec.AppendHeader(p.auth(), 0, size), make([]byte, size-1)...)
			go func() { _, _ = c.s.Send().Write(unfinished) }()
		}
	}
}

// wantReached expects a refusal for a limit of the tenant.
func wantReached(t *testing.T, err error, limit string) {
	t.Helper()
	var refused *client.BrokerError
	if !errors.As(err, &refused) || refused.Message != codec.LimitReached(limit) || codec.CodeOf(refused.Message) != codec.CodeLimit {
		t.Fatalf("got %v, want a refusal for %s", err, limit)
	}
}

// tenantRefused is the metric of a tenant's limit.
func tenantRefused(t *testing.T, s *served, tenant, limit string) float64 {
	t.Helper()
	all, err := s.Registry().Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range all {
		for _, m := range f.GetMetric() {
			if l := m.GetLabel(); f.GetName() == "felix_tenant_refused_total" && l[0].GetValue() == limit && l[1].GetValue() == tenant {
				return m.GetCounter().GetValue()
			}
		}
	}
	return 0
}

// TestConnectionsOfOneTenant: a tenant that takes all the connections that it can get does not keep another one from
// connecting; beyond what both are guaranteed, the one that has more gives.
func TestConnectionsOfOneTenant(t *testing.T) {
	s := startServed(t, func(cfg *broker.Config) { cfg.MaxConns = 24 })
	acme, other := s.as("acme"), s.as("other")
	var own []*peer
	for {
		p := dialPeer(t, acme)
		c := p.open(p.auth())
		if len(own) == 16 { // 21 places, of which five are the other one's
			c.wantMessage(codec.MsgError, "limit reached: connections")
			p.wantClosed("limit reached: connections")
			break
		}
		c.wantMessage(codec.MsgAuthOK, "")
		own = append(own, p)
	}
	for range 5 {
		p := dialPeer(t, other)
		p.open(p.auth()).wantMessage(codec.MsgAuthOK, "")
	}
	for i := range 5 { // from what both have in common
		p := dialPeer(t, other)
		p.open(p.auth()).wantMessage(codec.MsgAuthOK, "")
		own[15-i].wantClosed("limit reached: connections")
	}
	p := dialPeer(t, other)
	p.open(p.auth()).wantMessage(codec.MsgError, "limit reached: connections") // both have as much
	if n := tenantRefused(t, s, "acme", "connections"); n != 6 {
		t.Errorf("%v connections refused or closed, want 6", n)
	}
	if n := tenantRefused(t, s, "other", "connections"); n != 1 {
		t.Errorf("%v connections refused, want 1", n)
	}
	for _, p := range own[:11] {
		if p.c.Context().Err() != nil {
			t.Fatalf("closed: %v", context.Cause(p.c.Context()))
		}
	}
}

// TestLimitsOfTheCatalog refuses what is beyond the maximum of a tenant, by name, and follows a change of it.
func TestLimitsOfTheCatalog(t *testing.T) {
	s := startServed(t, nil)
	ctx := testContext(t)
	limit := func(l catalog.Limits) {
		t.Helper()
		c := s.first()
		acme := c.Tenants["acme"]
		acme.Limits = l
		c.Tenants["acme"] = acme
		s.set(c)
	}
	limit(catalog.Limits{SubscriptionsMax: new(int64(2)), WatchesMax: new(int64(1))})
	c := s.connect("acme")
	var subs []*client.Subscription
	for range 2 {
		subs = append(subs, subscribe(t, c, "kept"))
	}
	_, err := c.Subscribe(ctx, "default", "kept")
	wantReached(t, err, "subscriptions")
	limit(catalog.Limits{SubscriptionsMax: new(int64(3)), MemoryGuarantee: new(int64(0)), MemoryMax: new(int64(40 << 10))})
	_, err = c.Subscribe(ctx, "default", "kept")
	wantReached(t, err, "memory")
	for ctx := testContext(t); ; { // the place of one that is closed is free soon
		subs[0].Close()
		sub, err := c.Subscribe(ctx, "default", "kept")
		if err == nil {
			sub.Close()
			break
		}
		wantReached(t, err, "memory")
	}
	limit(catalog.Limits{SubscriptionsMax: new(int64(3))})
	subscribe(t, s.connect("other"), "events")
	if n := tenantRefused(t, s, "acme", "subscriptions"); n != 1 {
		t.Errorf("%v subscriptions refused, want 1", n)
	}
	if n := tenantRefused(t, s, "acme", "memory"); n < 1 {
		t.Errorf("%v refused for memory", n)
	}
}

// TestUnfinishedFrames begins frames and does not finish them, on many connections of one tenant: together they hold no
// more than that tenant may have, and another one's frames arrive.
func TestUnfinishedFrames(t *testing.T) {
	const bound = 4 << 20
	s := startServed(t, func(cfg *broker.Config) { cfg.ReadBytes = bound })
	acme, other := s.as("acme"), s.as("other")
	n := dialPeer(t, other)
	neighbor := n.open(n.auth())
	neighbor.wantMessage(codec.MsgAuthOK, "")
	sendUnfinished(t, acme)
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
		for range 200 {
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

// TestRatesOfATenant refuses what comes faster than the catalog says, and lets what is not acknowledged wait.
func TestRatesOfATenant(t *testing.T) {
	s := startServed(t, nil)
	ctx := testContext(t)
	c := s.first()
	acme := c.Tenants["acme"]
	acme.Limits = catalog.Limits{PublishesPerSecond: new(int64(5)), SubscribesPerSecond: new(int64(1)), AuthenticationsPerSecond: new(int64(40))}
	c.Tenants["acme"] = acme
	s.set(c)
	cl := s.connect("acme")
	sub := subscribe(t, cl, "kept")
	_, err := cl.Subscribe(ctx, "default", "kept")
	wantReached(t, err, "subscribes per second")

	p := cl.Publisher("default", "kept")
	for err = p.Publish(ctx, []byte("x")); err == nil; err = p.Publish(ctx, []byte("x")) {
		wantEvents(ctx, t, sub, "x")
	}
	wantReached(t, err, "publishes per second")
	for range 3 { // in their time
		if err := p.Send(ctx, []byte("y")); err != nil {
			t.Fatal(err)
		}
	}
	wantEvents(ctx, t, sub, "y", "y", "y")
	for _, limit := range []string{"publishes_per_second", "subscribes_per_second"} {
		if tenantRefused(t, s, "acme", limit) == 0 {
			t.Errorf("nothing refused for %s", limit)
		}
	}

	peer := dialPeer(t, s.as("acme"))
	for { // until the rate is met
		stream := peer.open(peer.auth())
		_ = stream.s.Recv().SetReadDeadline(time.Now().Add(within))
		f, err := stream.fr.Next()
		if err != nil {
			t.Fatal(err)
		}
		var m codec.Message
		if err := codec.ParseMessage(f.Payload(), &m); err != nil {
			t.Fatal(err)
		}
		if m.Type == codec.MsgError {
			if string(m.Text) != "limit reached: authentications per second" {
				t.Errorf("refused with %q", m.Text)
			}
			break
		}
	}
	other := dialPeer(t, s.as("other"))
	other.open(other.auth()).wantMessage(codec.MsgAuthOK, "")
}

// TestReadsOfANewcomer: a tenant that comes when another one has taken all the memory for requests has its part, and
// what is used is soon within the bound again.
func TestReadsOfANewcomer(t *testing.T) {
	const bound = 8 << 20
	s := startServed(t, func(cfg *broker.Config) { cfg.ReadBytes, cfg.FrameTimeout = bound, within })
	alone := s.first()
	delete(alone.Tenants, "other")
	s.set(alone)
	acme := s.as("acme")
	sendUnfinished(t, acme)
	wantLimit(t, acme, "conn_memory", 1)
	s.set(s.first())
	other := s.as("other")
	n := dialPeer(t, other)
	c := n.open(n.auth())
	c.wantMessage(codec.MsgAuthOK, "")
	c.send(codec.AppendPublish(nil, "other", "default", "events", make([]byte, 200<<10), codec.AckPerMessage, 1, true))
	c.wantMessage(codec.MsgPublishOK, "")
	s.await(func() bool {
		return tenantRefused(t, s, "acme", "read_bytes") > 0 && metric(t, acme, "felix_read_bytes") < bound*3/4
	})
}

// TestReadsAboveTheGuarantee: a tenant that needs more memory for a request than it is guaranteed has it soon, if
// another one uses most of what they have in common for requests that it does not finish.
func TestReadsAboveTheGuarantee(t *testing.T) {
	s := startServed(t, func(cfg *broker.Config) { cfg.ReadBytes, cfg.FrameTimeout = 8<<20, within })
	acme, other := s.as("acme"), s.as("other")
	sendUnfinished(t, acme)
	wantLimit(t, acme, "conn_memory", 1)
	large := codec.AppendPublish(nil, "other", "default", "events", make([]byte, 1<<20), codec.AckPerMessage, 1, true)
	p := dialPeer(t, other)
	for ctx := testContext(t); ; {
		c := p.open(p.auth())
		c.wantMessage(codec.MsgAuthOK, "")
		go func() { _, _ = c.s.Send().Write(large) }()
		_ = c.s.Recv().SetReadDeadline(time.Now().Add(within))
		if _, err := c.fr.Next(); err == nil {
			break
		}
		if ctx.Err() != nil {
			t.Fatal("there is never memory for it")
		}
	}
	if tenantRefused(t, s, "acme", "read_bytes") == 0 || tenantRefused(t, s, "other", "read_bytes") == 0 {
		t.Error("the wrong ones were refused")
	}
}
