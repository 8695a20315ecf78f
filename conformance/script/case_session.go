package script

import (
	"bytes"
	"context"
	"fmt"
	"strings"

	"github.com/felix-mq/felix/codec"
)

// sessionCases are about connections: how they begin, what is negotiated, and how they end.
func sessionCases() []Case {
	return []Case{
		{"IC-01", "no protocol is offered by ALPN", noALPN},
		{"IC-17", "auth answered with a plain ok: JSON acknowledgements, start positions refused locally", legacyFallback},
		{"IC-17b", "a whole session with a broker that negotiates nothing", legacySession},
		{"C4-01", "auth_ok with 7 and no extensions: neither 0x0009 nor 0x8000 nor a start position", nothingOffered},
		{"C4-02", "auth_ok with unknown capability bits: ignored", unknownCapabilities},
		{"C4-03", "each auth is answered late", func(t *trial) {
			t.n.AuthDelay = lateness
			t.connect()
			t.works(nil)
		}},
		{"CD26a", "no answer to auth: what needs it ends with its time limit", silentAuth},
		{"IC-35", "subscribe, publish, receive in order", subscribeAndPublish},
		{"IC-48", "150 subscriptions", manySubscriptions},
		{"IC-50", "put, get, overwrite, miss, empty and binary values", cacheValues},
		{"IC-56", "application close with code 0: calls end with an error, the next ones connect again", brokerLeaves},
		{"C12-01", "extra members and blanks in every JSON message, trailing bytes in every binary one", func(t *trial) {
			t.s.dress = talkative
			wholeSession(t)
		}},
		{"C12-02", "writes of 7 bytes", func(t *trial) {
			t.s.pieces = 7
			wholeSession(t)
		}},
	}
}

func noALPN(t *trial) {
	t.s.Go(func() { t.n.Serve(t.s) })
	err := t.c.Connect(t.ctx, t.s.Endpoint())
	if err == nil {
		err = t.publish("x")
	}
	if offered := t.s.Protocols(); len(offered) > 0 {
		t.fail("no protocol in the handshake", fmt.Sprintf("%q", offered))
	}
	t.ok("connect and publish", err)
}

// watchAdvance makes the broker report a violation when a client uses what nobody offered.
func watchAdvance(t *trial) {
	t.n.Hook = func(_ *Conn, _ *Control, r *Request) (bool, error) {
		switch {
		case r.Flags == codec.LayoutPublishAcked:
			return false, t.s.violated(fmt.Errorf("0x0009 sent to a broker that did not advertise 0x0008"))
		case r.Type == codec.MsgSubscribe && (r.Start.Kind == codec.StartEarliest || r.Start.Kind == codec.StartOffset):
			return false, t.s.violated(fmt.Errorf("a start position sent to a broker that did not advertise 0x0020"))
		}
		return false, nil
	}
}

// withoutAdvance is a session of everything that a client might want to do in a newer way.
func withoutAdvance(t *trial) {
	watchAdvance(t)
	t.connect()
	t.ok("publish", t.publish("one"))
	large := bytes.Repeat([]byte("compressible "), 400)
	t.ok("publish batch", t.c.PublishBatch(t.ctx, caseNamespace, caseStream, [][]byte{large, {}, large}))
	for _, start := range []codec.Start{{Kind: codec.StartEarliest}, {Kind: codec.StartOffset, Offset: 1}} {
		_, err := t.trySubscribe(t.ctx, caseStream, start)
		t.refused("a subscribe with a start position, which the broker does not know,", err)
	}
	t.ok("publish afterwards", t.publish("two"))
}

func legacyFallback(t *trial) {
	t.n.Legacy = true
	withoutAdvance(t)
}

func nothingOffered(t *trial) {
	t.n.Flags = codec.OriginalV1Flags
	withoutAdvance(t)
}

func unknownCapabilities(t *trial) {
	t.n.Flags = 0xffff
	wholeSession(t)
}

func legacySession(t *trial) {
	t.n.Legacy = true
	t.connect()
	sub := t.subscribe(caseStream)
	session(t, sub, noOffsets)
}

func subscribeAndPublish(t *trial) { wholeSession(t) }

func wholeSession(t *trial) {
	t.connect()
	session(t, t.subscribe(caseStream), 0)
}

// session is an ordinary session in which everything succeeds.
func session(t *trial, sub Subscription, base int64) {
	t.ok("publish", t.publish("one"))
	t.ok("publish batch", t.c.PublishBatch(t.ctx, caseNamespace, caseStream, [][]byte{[]byte("two"), {}, []byte("four")}))
	t.events(sub, base, "one", "two", "", "four")
	cacheRound(t)
}

func cacheRound(t *trial) {
	t.cached("key", "miss")
	for _, value := range []string{"value", "", strings.Repeat("\x00\xff", 1000)} {
		t.put("key", value)
		t.cached("key", fmt.Sprintf("value %q", value))
	}
}

func cacheValues(t *trial) {
	t.connect()
	cacheRound(t)
}

func silentAuth(t *trial) {
	t.n.AuthDelay = -1
	t.s.Go(func() { t.n.Serve(t.s) })
	t.runsOut("connect, or a publish after it", func(ctx context.Context) error {
		if err := t.c.Connect(ctx, t.s.Endpoint()); err != nil {
			return err
		}
		return t.c.Publish(ctx, caseNamespace, caseStream, []byte("x"))
	})
}

func manySubscriptions(t *trial) {
	t.connect()
	subs := make([]Subscription, 150)
	for i := range subs {
		subs[i] = t.subscribe(caseStream)
	}
	t.ok("publish", t.publish("to all"))
	for _, sub := range subs {
		t.events(sub, 0, "to all")
	}
}

// brokerLeaves closes everything while a publish and a cache request wait, so that a client has noticed by their ends.
func brokerLeaves(t *trial) {
	seen := make(chan struct{}, 16) // a client may send more than once
	t.onVictim(func(*Conn, *Control, *Request) error {
		seen <- struct{}{}
		return nil
	})
	t.connect()
	sub := t.subscribe(caseStream)
	published := t.begin(func(context.Context) error { return t.publish(victim) })
	t.wait("a publish", seen)
	got := t.begin(func(ctx context.Context) error {
		_, err := t.get(ctx, victim)
		return err
	})
	t.wait("a cache get", seen)
	t.n.ShutDown()
	t.refused("a publish without an answer", t.end("a publish whose connection was closed", published))
	t.refused("a cache get without an answer", t.end("a cache get whose connection was closed", got))
	t.over(sub, false)
	t.works(nil)
}

// talkative adds to a frame what its reader has to overlook (docs/protocol/wire.md#decoding).
func talkative(frame []byte) []byte {
	h, err := codec.ParseHeader(frame)
	payload := frame[codec.HeaderLen:]
	switch {
	case err != nil:
		return frame
	case h.Flags == codec.LayoutJSON:
		payload = append([]byte(` { "x-extra" : {"a":[1,null,"}"]} , "x-extra": "twice", `), payload[1:]...)
		payload = append(payload, " \r\n"...)
	default:
		payload = append(bytes.Clone(payload), "trailing bytes"...)
	}
	return append(codec.AppendHeader(nil, h.Flags, len(payload)), payload...)
}
