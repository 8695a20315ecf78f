package broker_test

import (
	"errors"
	"io"
	"sync/atomic"
	"testing"
	"time"

	"github.com/felix-mq/felix/broker"
	"github.com/felix-mq/felix/catalog"
	"github.com/felix-mq/felix/client"
	"github.com/felix-mq/felix/codec"
	"github.com/felix-mq/felix/ring"
)

// TestRotatedKey replaces the key of a tenant: what its predecessor has authenticated ends, with streams, subscriptions
// and watches, and what another tenant has does not.
func TestRotatedKey(t *testing.T) {
	s := startServed(t, nil)
	ctx := testContext(t)
	acme, other := s.as("acme"), s.as("other")
	p := dialPeer(t, acme)
	control := p.open(p.auth())
	control.wantMessage(codec.MsgAuthOK, "")
	watch := rawWatchOf(t, dialPeer(t, acme), "kept")
	c := connect(t, acme)
	sub := subscribe(t, c, "kept")
	neighbor := subscribe(t, connect(t, other), "events")

	s.signer("acme") // from here on tokens are signed by another key
	s.set(s.first())
	control.wantMessage(codec.MsgError, "auth failed")
	control.wantEnd()
	if _, err := sub.Next(ctx); !errors.Is(err, client.ErrEnded) {
		t.Errorf("subscription of a key that is gone: %v", err)
	}
	wantWatchEnd(t, watch, "auth failed")
	wantLimit(t, acme, "token_revoked", 3)
	old := p.open(codec.AppendAuth(nil, "acme", acme.Token, codec.KnownFlags, true, 0))
	old.wantMessage(codec.MsgError, "auth failed")

	if err := connect(t, other).Publisher("default", "events").Publish(ctx, []byte("x")); err != nil {
		t.Fatal(err)
	}
	wantEvents(ctx, t, neighbor, "x")
	again := dialPeer(t, s.as("acme"))
	again.open(again.auth()).wantMessage(codec.MsgAuthOK, "")
}

// flood publishes until the broker wants no more.
func (c *control) flood(tenant, stream string) {
	go func() {
		for id := uint64(1); ; id++ {
			if _, err := c.s.Send().Write(codec.AppendPublish(nil, tenant, "default", stream, make([]byte, 60<<10), codec.AckPerMessage, id, true)); err != nil {
				return
			}
		}
	}()
}

// replies calls f with each message until the stream ends.
func (c *control) replies(f func(*codec.Message)) {
	c.t.Helper()
	_ = c.s.Recv().SetReadDeadline(time.Now().Add(within))
	for {
		frame, err := c.fr.Next()
		if errors.Is(err, io.EOF) {
			return
		}
		var m codec.Message
		if err == nil {
			err = codec.ParseMessage(frame.Payload(), &m)
		}
		if err != nil {
			c.t.Fatal(err)
		}
		f(&m)
	}
}

// TestTenantMadeAgain removes a tenant while one of its publishes waits for space, and makes it again with another key:
// the publish goes nowhere, and the connection counts for the new tenant only with a new token.
func TestTenantMadeAgain(t *testing.T) {
	s := startServed(t, func(cfg *broker.Config) { cfg.PublishWait = within; cfg.AuthTimeout = within })
	block := func(c *catalog.Catalog) *catalog.Catalog {
		c.Tenants["acme"].Namespaces["default"].Streams["kept"] = catalog.Stream{Overflow: new(ring.Block), QueueBatches: 1}
		return c
	}
	s.set(block(s.first()))
	acme := s.as("acme")
	p := dialPeer(t, acme)
	blocked := p.open(p.auth(), codec.AppendSubscribe(nil, "acme", "default", "kept", codec.Start{}, 0, false))
	blocked.wantMessage(codec.MsgAuthOK, "")
	blocked.wantMessage(codec.MsgSubscribed, "") // and its events are never read
	publisher := p.open(p.auth())
	publisher.wantMessage(codec.MsgAuthOK, "")
	publisher.flood("acme", "kept")
	awaitMetricFrom(t, acme, "felix_publish_waits_total", 1)
	without := s.first()
	delete(without.Tenants, "acme")
	s.set(without)
	s.signer("acme")
	s.set(block(s.first()))
	refused := false
	publisher.replies(func(m *codec.Message) {
		if refused && m.Type == codec.MsgPublishOK {
			t.Error("a publish was carried out after one was refused")
		}
		refused = refused || m.Type == codec.MsgPublishError
	})
	fresh := connect(t, s.as("acme"))
	sub := subscribe(t, fresh, "kept", client.FromEarliest())
	if err := fresh.Publisher("default", "kept").Publish(testContext(t), []byte("first")); err != nil {
		t.Fatal(err)
	}
	wantEvents(testContext(t), t, sub, "first")
}

// TestExpiredConnection: a connection whose only token has expired has the time to show another one, and no more.
func TestExpiredConnection(t *testing.T) {
	var ahead atomic.Int64
	d := start(t, func(cfg *broker.Config) {
		cfg.AuthTimeout = 2 * time.Second
		cfg.Now = func() time.Time { return time.Now().Add(time.Duration(ahead.Load())) }
	})
	p := dialPeer(t, d)
	c := p.open(p.auth())
	c.wantMessage(codec.MsgAuthOK, "")
	ahead.Store(int64(48 * time.Hour))
	c.wantMessage(codec.MsgError, "auth failed")
	c.wantEnd()
	p.wantClosed("not authenticated in time")
}

// TestExpiryEndsWait: a publish that waits for space ends with the token of its stream.
func TestExpiryEndsWait(t *testing.T) {
	var ahead atomic.Int64
	d := start(t, func(cfg *broker.Config) {
		cfg.PublishWait = within
		cfg.QueuePolicy, cfg.QueueCapacity = ring.Block, 1
		cfg.Now = func() time.Time { return time.Now().Add(time.Duration(ahead.Load())) }
	})
	p := dialPeer(t, d)
	blocked := p.open(p.auth(), codec.AppendSubscribe(nil, "t1", "default", "demo", codec.Start{}, 0, false))
	blocked.wantMessage(codec.MsgAuthOK, "")
	blocked.wantMessage(codec.MsgSubscribed, "")
	publisher := p.open(p.auth())
	publisher.wantMessage(codec.MsgAuthOK, "")
	publisher.flood("t1", "demo")
	awaitMetricFrom(t, d, "felix_publish_waits_total", 1) // short waits may have come before
	ahead.Store(int64(48 * time.Hour))
	refused := false
	publisher.replies(func(m *codec.Message) {
		refused = refused || m.Type == codec.MsgPublishError && string(m.Text) == "auth failed"
	})
	if !refused {
		t.Error("the publish that waited was not answered")
	}
}
