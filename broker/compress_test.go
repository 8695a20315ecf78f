package broker_test

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/klauspost/compress/s2"

	"github.com/felix-mq/felix/client"
	"github.com/felix-mq/felix/codec"
	"github.com/felix-mq/felix/quicx"
)

// legacyEvents subscribes without extensions and returns the event stream after its hello.
func (p *peer) legacyEvents() *quicx.FrameReader {
	p.t.Helper()
	c := p.open(codec.AppendAuth(nil, p.d.Tenant, p.d.Token, codec.KnownFlags, true, 0),
		codec.AppendSubscribe(nil, "t1", "default", "demo", codec.Start{}, 0, false))
	c.wantMessage(codec.MsgAuthOK, "")
	c.wantMessage(codec.MsgSubscribed, "")
	r, err := p.c.AcceptUniStream(testContext(p.t))
	if err != nil {
		p.t.Fatal(err)
	}
	events := quicx.NewFrameReader(r, 0)
	p.t.Cleanup(events.Close)
	if f, err := events.Next(); err != nil || f.Header.Flags != codec.LayoutJSON {
		p.t.Fatalf("hello: %v, %v", f.Header, err)
	}
	return events
}

// TestCompressedBatches publishes batches that compress and batches that do not, acknowledged or not, to subscribers
// that take compressed batches and to some that do not, live and replayed from the middle of a batch.
func TestCompressedBatches(t *testing.T) {
	d := start(t, nil)
	c := connect(t, d, client.WithCompression())
	ctx := testContext(t)
	live := subscribe(t, c, "demo")
	legacy := dialPeer(t, d).legacyEvents()
	p := c.Publisher("default", "demo")
	rng := rand.New(rand.NewPCG(1, 2))
	var want [][]byte
	for i := range 12 {
		items := make([][]byte, 1+i*5)
		for k := range items {
			items[k] = fmt.Appendf(nil, `{"index":%d,"text":"%s"}`, k, bytes.Repeat([]byte("felix "), 200))
			if i >= 9 { // random; the first of them makes the publisher stop trying for a while
				for j := range items[k] {
					items[k][j] = byte(rng.Uint32())
				}
			}
		}
		want = append(want, items...)
		publish := p.Publish
		if i%3 == 0 {
			publish = p.Send
		}
		if err := publish(ctx, items...); err != nil {
			t.Fatal(err)
		}
	}
	read := func(s *client.Subscription, from int) {
		t.Helper()
		for i := from; i < len(want); i++ {
			ev, err := s.Next(ctx)
			if err != nil || !bytes.Equal(ev.Payload, want[i]) || ev.Offset != uint64(i) || ev.Gap != nil {
				t.Fatalf("event %d: %.40q, offset %d, gap %v, %v, want %.40q", i, ev.Payload, ev.Offset, ev.Gap, err, want[i])
			}
		}
	}
	read(live, 0)
	read(subscribe(t, c, "demo", client.FromEarliest()), 0)
	read(subscribe(t, c, "demo", client.FromOffset(100)), 100)
	for i := 0; i < len(want); {
		f, err := legacy.Next()
		if err != nil || f.Header.Flags != codec.LayoutShared {
			t.Fatalf("flags %#04x, %v", uint16(f.Header.Flags), err)
		}
		b, err := codec.ParseEventBatch(f.Header.Flags, f.Payload())
		if err != nil {
			t.Fatal(err)
		}
		for _, item := range b.Items.All() {
			if !bytes.Equal(item, want[i]) {
				t.Fatalf("legacy event %d: %.40q, want %.40q", i, item, want[i])
			}
			i++
		}
	}
	if n := metric(t, d, "felix_decompressed_batches_total"); n < 6 || n > 12 {
		t.Errorf("%v batches decompressed", n)
	}
	sent := c.Stats().BytesSent
	if sent > 270_000 { // 190 000 bytes of random payloads, and a small part of 230 000
		t.Errorf("%d bytes sent: nothing was compressed", sent)
	}
}

// TestCorruptBatch publishes blocks that do not decompress to what their frame says: subscribers go on after them.
func TestCorruptBatch(t *testing.T) {
	d := start(t, nil)
	c := connect(t, d)
	ctx := testContext(t)
	sub := subscribe(t, c, "demo")
	legacy := dialPeer(t, d).legacyEvents()
	pub := dialPeer(t, d)
	ctl := pub.open(pub.auth())
	ctl.wantMessage(codec.MsgAuthOK, "")

	raw := codec.AppendItems(nil, [][]byte{[]byte("one"), []byte("two")})[4:]
	good := s2.Encode(nil, raw)
	frame := func(id uint64, count, rawLen int, block []byte) []byte {
		out := codec.AppendCompressedPublish(nil, id, codec.AckPerBatch, "t1", "default", "demo", count, rawLen, len(block))
		return append(out, block...)
	}
	for i, f := range [][]byte{
		frame(1, 2, len(raw), []byte("nonsense")),
		frame(2, 2, len(raw), good[:len(good)-1]),
		frame(3, 2, len(raw)+1, good),
		frame(4, 3, len(raw), good), // count is not what is inside
		frame(5, 1, len(raw), good),
		frame(6, 2, len(raw), good),
	} {
		ctl.send(f)
		got, err := ctl.fr.Next()
		if err != nil {
			t.Fatal(err)
		}
		if a, err := codec.ParsePublishAck(got.Payload()); err != nil || !a.OK || a.RequestID != uint64(i+1) {
			t.Fatalf("acknowledgement %+v, %v", a, err)
		}
	}
	lost := uint64(0)
	for {
		b, err := sub.NextBatch(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if b.Gap != nil {
			if b.Gap.Reason != client.GapCorrupt {
				t.Errorf("gap %+v", b.Gap)
			}
			lost += b.Gap.Lost
		}
		if b.Len() > 0 {
			if b.Len() != 2 || b.BaseOffset != 10 {
				t.Errorf("%d events from %d", b.Len(), b.BaseOffset)
			}
			break
		}
	}
	if lost != 10 {
		t.Errorf("told of %d lost, want 10", lost)
	}
	f, err := legacy.Next()
	if err != nil {
		t.Fatal(err)
	}
	if b, err := codec.ParseEventBatch(f.Header.Flags, f.Payload()); err != nil || b.Items.Len() != 2 {
		t.Errorf("legacy subscriber: %v, %v", b, err)
	}
	if n := metric(t, d, "felix_corrupt_batches_total"); n != 5 {
		t.Errorf("%v corrupt batches counted, want 5", n)
	}

	// Declared to be larger than any frame: refused before any memory is allocated for it.
	ctl.send(frame(7, 2, 1<<30, good))
	got, err := ctl.fr.Next()
	if err != nil {
		t.Fatal(err)
	}
	if a, err := codec.ParsePublishAck(got.Payload()); err != nil || a.OK || string(a.Message) != "malformed publish batch" {
		t.Errorf("acknowledgement %+v, %v", a, err)
	}
	// A stream that has not negotiated it.
	plain := pub.open(codec.AppendAuth(nil, d.Tenant, d.Token, codec.KnownFlags, true, 0), frame(8, 2, len(raw), good))
	plain.wantMessage(codec.MsgAuthOK, "")
	plain.wantMessage(codec.MsgError, "unsupported frame flags")
}
