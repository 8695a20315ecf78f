package broker_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"testing"
	"time"

	"github.com/felix-mq/felix/broker"
	"github.com/felix-mq/felix/client"
	"github.com/felix-mq/felix/codec"
	"github.com/felix-mq/felix/quicx"
)

// peer is a connection whose frames are written by hand.
type peer struct {
	t *testing.T
	c *quicx.Conn
	d *broker.Dev
}

func dialPeer(t *testing.T, d *broker.Dev) *peer {
	t.Helper()
	c, err := quicx.Dial(testContext(t), d.Addr().String(), d.ClientTLS(), quicx.Config{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close(0, "") })
	return &peer{t, c, d}
}

// control is a control stream of a peer.
type control struct {
	t  *testing.T
	s  *quicx.Stream
	fr *quicx.FrameReader
}

func (p *peer) open(first ...[]byte) *control {
	p.t.Helper()
	s, err := p.c.OpenStream(testContext(p.t))
	if err != nil {
		p.t.Fatal(err)
	}
	c := &control{p.t, s, quicx.NewFrameReader(s.Recv(), 0)}
	p.t.Cleanup(c.fr.Close)
	c.send(bytes.Join(first, nil))
	return c
}

func (p *peer) auth() []byte {
	return codec.AppendAuth(nil, p.d.Tenant, p.d.Token, codec.KnownFlags, true, codec.KnownExtensions())
}

func (c *control) send(b []byte) {
	c.t.Helper()
	if len(b) == 0 {
		return
	}
	if _, err := c.s.Send().Write(b); err != nil {
		c.t.Fatal(err)
	}
}

// wantMessage reads a JSON message and compares its text.
func (c *control) wantMessage(want codec.MessageType, text string) {
	c.t.Helper()
	_ = c.s.Recv().SetReadDeadline(time.Now().Add(within))
	f, err := c.fr.Next()
	if err != nil {
		c.t.Fatalf("reading %v: %v", want, err)
	}
	var m codec.Message
	if err := codec.ParseMessage(f.Payload(), &m); err != nil {
		c.t.Fatal(err)
	}
	if m.Type != want || string(m.Text) != text {
		c.t.Fatalf("got %v %q, want %v %q", m.Type, m.Text, want, text)
	}
}

// wantEnd expects that the broker finishes its half of the stream and stops reading our half.
func (c *control) wantEnd() {
	c.t.Helper()
	_ = c.s.Recv().SetReadDeadline(time.Now().Add(within))
	if f, err := c.fr.Next(); !errors.Is(err, io.EOF) {
		c.t.Fatalf("got %q, %v, want the end of the stream", f.Bytes, err)
	}
	select {
	case <-c.s.Send().Context().Done():
	case <-testContext(c.t).Done():
		c.t.Fatal("the broker goes on reading")
	}
}

// wantClosed expects that the broker closes the connection for that reason.
func (p *peer) wantClosed(reason string) {
	p.t.Helper()
	select {
	case <-p.c.Context().Done():
	case <-testContext(p.t).Done():
		p.t.Fatal("the connection stays open")
	}
	wantCloseReason(p.t, context.Cause(p.c.Context()), reason)
}

func wantCloseReason(t *testing.T, err error, reason string) {
	t.Helper()
	e, ok := errors.AsType[*quicx.ConnClosedError](err)
	if !ok || e.Code != 0 || !e.Remote || e.Reason != reason {
		t.Fatalf("closed with %v, want reason %q", err, reason)
	}
}

// wantLimit waits for the metric of a limit.
func wantLimit(t *testing.T, d *broker.Dev, name string, atLeast float64) {
	t.Helper()
	ctx := testContext(t)
	for limitCount(t, d, name) < atLeast {
		select {
		case <-ctx.Done():
			t.Fatalf("felix_limits_total{limit=%q} = %v, want %v", name, limitCount(t, d, name), atLeast)
		case <-time.After(time.Millisecond):
		}
	}
}

func limitCount(t *testing.T, d *broker.Dev, name string) float64 {
	t.Helper()
	families, err := d.Registry().Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			if f.GetName() == "felix_limits_total" && m.GetLabel()[0].GetValue() == name {
				return m.GetCounter().GetValue()
			}
		}
	}
	return 0 // it has not been met
}

// awaitMetric waits until a counter or gauge has that value.
func awaitMetric(t *testing.T, d *broker.Dev, name string, want float64) {
	t.Helper()
	awaitMetricIs(t, d, name, func(v float64) bool { return v == want }, fmt.Sprint(want))
}

// awaitMetricFrom waits until a counter has reached least.
func awaitMetricFrom(t *testing.T, d *broker.Dev, name string, least float64) {
	t.Helper()
	awaitMetricIs(t, d, name, func(v float64) bool { return v >= least }, fmt.Sprint(least, " or more"))
}

func awaitMetricIs(t *testing.T, d *broker.Dev, name string, is func(float64) bool, want string) {
	t.Helper()
	for ctx := testContext(t); !is(metric(t, d, name)); {
		select {
		case <-ctx.Done():
			t.Fatalf("%s = %v, want %s", name, metric(t, d, name), want)
		case <-time.After(time.Millisecond):
		}
	}
}

// healthy checks that somebody else's requests are served.
func healthy(t *testing.T, c *client.Client) {
	t.Helper()
	if err := c.Publisher("default", "demo").Publish(testContext(t), []byte("x")); err != nil {
		t.Fatalf("a neighbor suffers: %v", err)
	}
}

const soon = 50 * time.Millisecond

func TestAuthTimeout(t *testing.T) {
	d := start(t, func(cfg *broker.Config) { cfg.AuthTimeout = 4 * soon })
	other := connect(t, d)
	p := dialPeer(t, d)
	good := p.open(p.auth())
	good.wantMessage(codec.MsgAuthOK, "")
	silent := p.open(p.auth()[:5])
	silent.wantEnd()
	wantLimit(t, d, "auth_timeout", 1)
	good.send(codec.AppendPublish(nil, "t1", "default", "demo", nil, codec.AckPerMessage, 1, true))
	good.wantMessage(codec.MsgPublishOK, "")

	// A connection that authenticates nothing is closed, one that opens nothing is left alone.
	idle := dialPeer(t, d)
	nobody := dialPeer(t, d)
	nobody.open([]byte{'F'})
	nobody.wantClosed("not authenticated in time")
	late := idle.open(idle.auth())
	late.wantMessage(codec.MsgAuthOK, "")
	healthy(t, other)
}

func TestAuthBytes(t *testing.T) {
	d := start(t, func(cfg *broker.Config) { cfg.AuthMaxBytes = 4 << 10 })
	p := dialPeer(t, d)
	p.open(codec.AppendHeader(nil, 0, 4<<10+1)).wantEnd() // refused by its header
	unknown := codec.AppendHeader(nil, 0x0040, 1000)
	unknown = append(unknown, make([]byte, 1000)...)
	c := p.open()
	for range 4 {
		c.send(unknown)
		c.wantMessage(codec.MsgError, "unsupported frame flags")
	}
	c.send(unknown)
	c.wantEnd()
	if n := limitCount(t, d, "auth_bytes"); n != 2 {
		t.Errorf("counted %v times, want 2", n)
	}
	large := p.open(p.auth(), codec.AppendPublish(nil, "t1", "default", "demo", make([]byte, 100<<10), codec.AckPerMessage, 1, true))
	large.wantMessage(codec.MsgAuthOK, "")
	large.wantMessage(codec.MsgPublishOK, "")
}

func TestFrameTimeout(t *testing.T) {
	d := start(t, func(cfg *broker.Config) { cfg.FrameTimeout = 2 * soon })
	p := dialPeer(t, d)
	idle := p.open(p.auth())
	idle.wantMessage(codec.MsgAuthOK, "")
	for name, unfinished := range map[string][]byte{
		"header":  []byte("FLX1"),
		"payload": append(codec.AppendHeader(nil, 0, 100), '{'),
	} {
		t.Run(name, func(t *testing.T) {
			c := p.open(p.auth(), unfinished)
			c.wantMessage(codec.MsgAuthOK, "")
			c.wantEnd()
		})
	}
	uni, err := p.c.OpenUniStream(testContext(t))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := uni.Write(append(p.auth(), 'F')); err != nil {
		t.Fatal(err)
	}
	<-uni.Context().Done() // STOP_SENDING
	if n := limitCount(t, d, "frame_timeout"); n != 3 {
		t.Errorf("counted %v times, want 3", n)
	}
	idle.send(codec.AppendPublish(nil, "t1", "default", "demo", nil, codec.AckPerMessage, 1, true))
	idle.wantMessage(codec.MsgPublishOK, "") // a stream between frames may be silent for as long as it likes
}

func TestTokenExpiry(t *testing.T) {
	now := time.Now()
	var offset time.Duration
	clock := make(chan time.Duration, 1)
	clock <- 0
	d := start(t, func(cfg *broker.Config) {
		cfg.AuthTimeout = 8 * soon
		cfg.Now = func() time.Time {
			o := <-clock
			clock <- o
			return now.Add(o)
		}
	})
	p := dialPeer(t, d)
	c := p.open(p.auth())
	c.wantMessage(codec.MsgAuthOK, "")
	sub := subscribe(t, connect(t, d), "demo")
	offset = 24*time.Hour + 59*time.Second // the lifetime, and less than the leeway
	<-clock
	clock <- offset
	c.send(codec.AppendPublish(nil, "t1", "default", "demo", []byte("last"), codec.AckPerMessage, 1, true))
	c.wantMessage(codec.MsgPublishOK, "")
	wantEvents(testContext(t), t, sub, "last")
	<-clock
	clock <- offset + 5*time.Second
	c.wantMessage(codec.MsgError, "auth failed")
	c.wantEnd()
	if _, err := sub.Next(testContext(t)); !errors.Is(err, client.ErrEnded) {
		t.Errorf("subscription of an expired token: %v", err)
	}
	wantLimit(t, d, "token_expired", 2)
}

func TestConnMemory(t *testing.T) {
	d := start(t, func(cfg *broker.Config) { cfg.ConnReadBytes = 1 << 20 })
	other := connect(t, d)
	p := dialPeer(t, d)
	var streams []*control
	for range 3 {
		c := p.open(p.auth(), codec.AppendHeader(nil, 0, 8<<20), make([]byte, 200<<10))
		c.wantMessage(codec.MsgAuthOK, "")
		streams = append(streams, c)
	}
	for _, c := range streams {
		go func() { _, _ = c.s.Send().Write(make([]byte, 2<<20)) }() // until it is stopped
	}
	wantLimit(t, d, "conn_memory", 1)
	healthy(t, other)
	p.c.Close(0, "")
}

func TestFailedStreams(t *testing.T) {
	d := start(t, func(cfg *broker.Config) { cfg.FailedStreams = 1 })
	other := connect(t, d)
	p := dialPeer(t, d)
	for p.c.Context().Err() == nil {
		s, err := p.c.OpenStream(testContext(t))
		if err != nil {
			break
		}
		_, _ = s.Send().Write([]byte("FLX1"))
		s.Send().Cancel(0)
		s.Recv().Cancel(0)
	}
	p.wantClosed("too many failed streams")
	if n := limitCount(t, d, "stream_churn"); n != 1 {
		t.Errorf("counted %v times, want 1", n)
	}
	healthy(t, other)
}

func TestConnectionBounds(t *testing.T) {
	d := start(t, func(cfg *broker.Config) {
		cfg.MaxUnauthenticatedConns = 2
		cfg.MaxConns = 5
	})
	known := connect(t, d) // holds one connection that has authenticated
	var unknown []*peer
	for i := range 3 {
		unknown = append(unknown, dialPeer(t, d))
		awaitMetric(t, d, "felix_connections_total", float64(2+i)) // accepted, so that it is the newest
	}
	unknown[0].wantClosed("too many unauthenticated connections") // the oldest
	for _, p := range unknown[1:] {
		p.open(p.auth()).wantMessage(codec.MsgAuthOK, "")
	}
	awaitMetric(t, d, "felix_connections", 3)
	for i := range 2 {
		unknown[i] = dialPeer(t, d)
		awaitMetric(t, d, "felix_connections_total", float64(5+i))
	}
	dialPeer(t, d) // one too many: the oldest of those that nobody knows makes way
	unknown[0].wantClosed("too many unauthenticated connections")
	healthy(t, known)
	for name, want := range map[string]float64{"unauthenticated_conns": 2, "connections": 0} {
		if n := limitCount(t, d, name); n != want {
			t.Errorf("%s counted %v times, want %v", name, n, want)
		}
	}
}

func TestGapsAndResume(t *testing.T) {
	d := start(t, func(cfg *broker.Config) {
		cfg.QueueCapacity = 8
		cfg.ReplayBytes = 8 << 10
	})
	c := connect(t, d)
	ctx := testContext(t)
	p := c.Publisher("default", "demo")
	s := subscribe(t, c, "demo")
	publish := func(from, to int) {
		t.Helper()
		for i := from; i < to; i++ {
			if err := p.Publish(ctx, fmt.Append(nil, i)); err != nil {
				t.Fatal(err)
			}
		}
	}
	publish(0, 10)
	for i := range 10 {
		ev, err := s.Next(ctx)
		if err != nil || string(ev.Payload) != fmt.Sprint(i) || !ev.HasOffset || ev.Offset != uint64(i) || ev.Gap != nil {
			t.Fatalf("event %d: %+v, %v", i, ev, err)
		}
	}
	pos, ok := s.Position()
	if !ok || pos.Offset != 10 || pos.Epoch == 0 {
		t.Fatalf("position %+v, %t", pos, ok)
	}
	s.Close()

	publish(10, 20)
	s = subscribe(t, c, "demo", client.FromPosition(pos))
	for i := 10; i < 20; i++ {
		ev, err := s.Next(ctx)
		if err != nil || string(ev.Payload) != fmt.Sprint(i) || ev.Offset != uint64(i) || ev.Gap != nil {
			t.Fatalf("event %d: %+v, %v", i, ev, err)
		}
	}
	s.Close()

	// Past what is kept: the exact number, and the oldest that there is.
	publish(20, 500)
	s = subscribe(t, c, "demo", client.FromPosition(pos))
	gap, err := s.Next(ctx)
	if err != nil || !gap.IsGap() || gap.Gap.Reason != client.GapExpired {
		t.Fatalf("%+v, %v", gap, err)
	}
	ev, err := s.Next(ctx)
	if err != nil || ev.Offset != 10+gap.Gap.Lost || string(ev.Payload) != fmt.Sprint(ev.Offset) {
		t.Fatalf("%+v, %v", ev, err)
	}
	s.Close()

	// Another epoch: the stream was made again.
	d.RemoveStream("t1", "default", "demo")
	if err := d.AddStream("t1", "default", "demo"); err != nil {
		t.Fatal(err)
	}
	s = subscribe(t, c, "demo", client.FromPosition(pos))
	b, err := s.NextBatch(ctx)
	if err != nil || b.Len() != 0 || b.Gap == nil || b.Gap.Reason != client.GapEpoch || b.Gap.Lost != 0 {
		t.Fatalf("%d events, gap %+v, %v", b.Len(), b.Gap, err)
	}
	publish(0, 1)
	wantEvents(ctx, t, s, "0")
	if again, _ := s.Position(); again.Epoch == pos.Epoch || again.Offset != 1 {
		t.Errorf("position %+v after %+v", again, pos)
	}
	var refused *client.CursorError
	again, _ := s.Position()
	again.Offset = 7
	if _, err := c.Subscribe(ctx, "default", "demo", client.FromPosition(again)); !errors.As(err, &refused) || refused.TooOld {
		t.Errorf("a position in the future: %v", err)
	}
}

// TestSlowReaderIsTold lets a subscriber that stopped reading go on, with nothing published meanwhile.
func TestSlowReaderIsTold(t *testing.T) {
	d := start(t, func(cfg *broker.Config) { cfg.QueueBytes = 64 << 10 })
	c := connect(t, d, client.WithTransport(client.Transport{StreamWindow: 64 << 10}))
	ctx := testContext(t)
	s := subscribe(t, c, "demo")
	p := connect(t, d).Publisher("default", "demo")
	payload := make([]byte, 4<<10)
	n := uint64(0)
	for ; metric(t, d, "felix_dropped_events_total") < 10; n++ {
		if err := p.Publish(ctx, payload); err != nil {
			t.Fatal(err)
		}
	}
	got, lost := uint64(0), uint64(0)
	for got+lost < n {
		b, err := s.NextBatch(ctx)
		if err != nil {
			t.Fatalf("after %d events and %d lost of %d: %v", got, lost, n, err)
		}
		if b.Gap != nil {
			if b.Gap.Reason != client.GapQueueFull && b.Gap.Reason != client.GapReclaimed {
				t.Errorf("reason %v", b.Gap.Reason)
			}
			lost += b.Gap.Lost
		}
		if b.Len() > 0 && b.BaseOffset != got+lost {
			t.Fatalf("offset %d after %d events and %d lost", b.BaseOffset, got, lost)
		}
		got += uint64(b.Len())
	}
	if dropped := metric(t, d, "felix_dropped_events_total"); uint64(dropped) != lost || lost == 0 {
		t.Errorf("told of %d lost, counted %v", lost, dropped)
	}
}

// TestLegacyPeer subscribes without extensions: no offsets, no gap frames, and frames of at most 256 events.
func TestLegacyPeer(t *testing.T) {
	d := start(t, nil)
	p := dialPeer(t, d)
	c := p.open(codec.AppendAuth(nil, d.Tenant, d.Token, codec.KnownFlags, true, 0),
		codec.AppendSubscribe(nil, "t1", "default", "demo", codec.Start{}, 0, false))
	c.wantMessage(codec.MsgAuthOK, "")
	c.wantMessage(codec.MsgSubscribed, "")
	c.wantEnd()
	r, err := p.c.AcceptUniStream(testContext(t))
	if err != nil {
		t.Fatal(err)
	}
	events := quicx.NewFrameReader(r, 0)
	defer events.Close()
	if f, err := events.Next(); err != nil || f.Header.Flags != codec.LayoutJSON {
		t.Fatalf("hello: %v, %v", f.Header, err)
	}
	pub := connect(t, d).Publisher("default", "demo")
	items := make([][]byte, 600)
	for i := range items {
		items[i] = fmt.Append(nil, i)
	}
	if err := pub.Publish(testContext(t), items...); err != nil {
		t.Fatal(err)
	}
	if err := pub.Publish(testContext(t), items[:100]...); err != nil {
		t.Fatal(err)
	}
	want := slices.Concat(items, items[:100])
	for _, n := range []int{256, 256, 88, 100} {
		f, err := events.Next()
		if err != nil || f.Header.Flags != codec.LayoutShared {
			t.Fatalf("flags %#04x, %v", uint16(f.Header.Flags), err)
		}
		b, err := codec.ParseEventBatch(f.Header.Flags, f.Payload())
		if err != nil || b.Items.Len() != n {
			t.Fatalf("%d items, %v, want %d", b.Items.Len(), err, n)
		}
		for i, item := range b.Items.All() {
			if !bytes.Equal(item, want[i]) {
				t.Fatalf("item %q, want %q", item, want[i])
			}
		}
		want = want[n:]
	}
}

// TestUnreadReplies asks for large values and reads none of them: the connection's account bounds what is held.
func TestUnreadReplies(t *testing.T) {
	d := start(t, func(cfg *broker.Config) { cfg.ConnReadBytes = 8 << 20 })
	other := connect(t, d)
	if err := other.Cache("default", "primary").Put(testContext(t), "k", make([]byte, 1<<20), client.NoExpiry); err != nil {
		t.Fatal(err)
	}
	c, err := quicx.Dial(testContext(t), d.Addr().String(), d.ClientTLS(), quicx.Config{StreamWindow: 1024, StreamsHint: 1})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close(0, "") })
	p := &peer{t, c, d}
	for i := range 32 {
		p.open(p.auth(), codec.AppendCacheGet(nil, "t1", "default", "primary", "k", uint64(i), true))
	}
	wantLimit(t, d, "conn_memory", 32-8) // a reply takes at least 1 398 104 bytes
	if n := metric(t, d, "felix_read_bytes"); n > 9<<20 {
		t.Errorf("%v bytes held", n)
	}
	healthy(t, other)
	c.Close(0, "")
	awaitMetric(t, d, "felix_read_bytes", 0)
}

// TestShutdownBesideAStuckPeer shuts down although somebody does not read what is owed to them.
func TestShutdownBesideAStuckPeer(t *testing.T) {
	d := start(t, func(cfg *broker.Config) { cfg.ShutdownDrain = time.Second })
	c, err := quicx.Dial(testContext(t), d.Addr().String(), d.ClientTLS(), quicx.Config{StreamWindow: 1024, StreamsHint: 1})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close(0, "") })
	p := &peer{t, c, d}
	stuck := p.open()
	unknown := codec.AppendHeader(nil, 0x0040, 0)
	for range 1000 {
		stuck.send(unknown)
	}
	healthy(t, connect(t, d))
	if err := d.Shutdown(testContext(t)); err != nil {
		t.Errorf("shutdown: %v", err)
	}
	p.wantClosed("broker shutting down")
}
