package conformance

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/felix-mq/felix/codec"
	"github.com/felix-mq/felix/quicx"
)

// probe is one case under way. It belongs to one goroutine, as does everything it hands out.
//
// A case reads as a conversation: each step either happens as expected or ends the case, by a panic with a *failure
// that attempt turns into a value. Whatever was opened is closed at the end of the case.
type probe struct {
	ctx    context.Context
	target *Target
	fx     *Fixture
	o      Options
	nonce  string // differs between cases and runs
	names  int    // given out by unique

	closers []func()
}

// failure is what a step expected and what it saw instead.
type failure struct{ expected, seen string }

func newProbe(ctx context.Context, target *Target, o Options) *probe {
	return &probe{ctx: ctx, target: target, fx: &target.Fixture, o: o, nonce: rand.Text()[:8]}
}

// attempt runs steps and returns the failure that ended them, or nil.
func (p *probe) attempt(steps func()) (f *failure) {
	defer func() {
		switch r := recover().(type) {
		case nil:
		case *failure:
			f = r
		default:
			panic(r)
		}
	}()
	steps()
	return nil
}

// fail ends the case.
func (p *probe) fail(expected, seen string) { panic(&failure{expected, seen}) }

// must ends the case if err is not nil.
func (p *probe) must(doing string, err error) {
	if err != nil {
		p.fail(doing+" works", err.Error())
	}
}

func (p *probe) onClose(f func()) { p.closers = append(p.closers, f) }

func (p *probe) close() {
	for _, f := range slices.Backward(p.closers) {
		f()
	}
}

// unique returns a text that no other case and no other run uses.
func (p *probe) unique() string {
	p.names++
	return fmt.Sprintf("conformance-%s-%d", p.nonce, p.names)
}

// deadline is the end of a wait that begins now.
func (p *probe) deadline() time.Time {
	end := time.Now().Add(p.o.ReplyTimeout)
	if limit, ok := p.ctx.Deadline(); ok && limit.Before(end) {
		return limit
	}
	return end
}

// conn is a connection to the broker.
type conn struct {
	p      *probe
	qc     *quicx.Conn
	events map[uint64]*events // accepted, by subscription id
}

// dial opens a connection. Its windows and limits are those of cfg.
func (p *probe) dial(cfg quicx.Config) *conn {
	qc, err := quicx.Dial(p.ctx, p.target.Addr, p.target.TLS, cfg)
	if err != nil {
		p.fail("a connection", err.Error())
	}
	p.onClose(func() { _ = qc.Close(0, "") })
	return &conn{p: p, qc: qc, events: make(map[uint64]*events)}
}

// authed opens a connection with one control stream that may do everything in the tenant.
func (p *probe) authed() *control { return p.dial(plain).authed() }

// stream opens a control stream on a connection of its own.
func (p *probe) stream() *control { return p.dial(plain).open() }

// control is a bi-directional stream.
type control struct {
	c      *conn
	p      *probe
	s      *quicx.Stream
	fr     *quicx.FrameReader
	authed bool
	done   bool // FIN was sent
	lastID uint64
}

func (c *conn) open() *control {
	ctx, cancel := context.WithDeadline(c.p.ctx, c.p.deadline())
	defer cancel()
	s, err := c.qc.OpenStream(ctx)
	c.p.must("opening a stream", err)
	ctl := &control{c: c, p: c.p, s: s, fr: c.p.reader(s.Recv()), lastID: 1 << 40}
	return ctl
}

// reader returns a frame reader that takes what a broker may send, which is a little more than it takes itself
// (docs/protocol/wire.md#maximum-frame-size).
func (p *probe) reader(r *quicx.RecvStream) *quicx.FrameReader {
	fr := quicx.NewFrameReader(r, max(p.fx.MaxFrameBytes, codec.DefaultMaxFrame)+64)
	p.onClose(fr.Close)
	return fr
}

// authed opens an authenticated stream that may do everything in the tenant, or only what is given.
func (c *conn) authed(permissions ...string) *control {
	s := c.open()
	if permissions == nil {
		permissions = allActions
	}
	s.auth(c.p.fx.token(permissions...))
	return s
}

// auth authenticates the stream with the fixture's tenant, offering all flags.
func (s *control) auth(token string) {
	s.send(codec.AppendAuth(nil, s.p.fx.Tenant, token, codec.KnownFlags, true, 0))
	s.expect("auth_ok 63")
	s.authed = true
}

// send writes frames, in one write. A broker that has stopped reading is no failure: it may have ended the stream for
// what came before.
func (s *control) send(frames ...[]byte) {
	s.p.write(s.s.Send(), slices.Concat(frames...))
}

func (p *probe) write(out *quicx.SendStream, b []byte) {
	_ = out.SetWriteDeadline(p.deadline())
	_, err := out.Write(b)
	if _, stopped := errors.AsType[*quicx.StreamResetError](err); err != nil && !stopped {
		p.fail("the broker reads what is sent", "writing: "+p.waitText(err))
	}
}

// drop gives an open stream up before the end of the case, for cases that use many.
func (s *control) drop() {
	s.s.Send().Cancel(0)
	s.s.Recv().Cancel(0)
}

// finish sends FIN.
func (s *control) finish() {
	s.done = true
	_ = s.s.Send().Close() // fails if the broker has stopped reading, which the case will see
}

// recv returns the next reply in the notation of reply.go; the end of the stream is one too.
func (s *control) recv() string {
	f, end := s.p.next(s.s.Recv(), s.fr)
	if end != "" {
		return end
	}
	return describe(f)
}

// next reads a frame, or says how the stream ended.
func (p *probe) next(r *quicx.RecvStream, fr *quicx.FrameReader) (f quicx.Frame, end string) {
	_ = r.SetReadDeadline(p.deadline())
	f, err := fr.Next()
	switch reset, isReset := errors.AsType[*quicx.StreamResetError](err); {
	case err == nil:
		return f, ""
	case errors.Is(err, io.EOF) && !errors.Is(err, quicx.ErrTruncated):
		return f, "FIN"
	case isReset:
		return f, fmt.Sprintf("RESET %d", reset.Code)
	default:
		return f, p.waitText(err)
	}
}

func (p *probe) waitText(err error) string {
	if errors.Is(err, os.ErrDeadlineExceeded) || errors.Is(err, context.DeadlineExceeded) {
		return p.nothing()
	}
	return err.Error()
}

// nothing is what is seen when a wait ends without anything.
func (p *probe) nothing() string { return fmt.Sprintf("nothing for %v", p.o.ReplyTimeout) }

// expect reads as many replies as it is given and compares them. One that ends in … matches what begins like it.
func (s *control) expect(replies ...string) {
	if s.p.ctx.Err() != nil {
		s.p.fail(strings.Join(replies, ", "), "the end of the case's time")
	}
	for i, want := range replies {
		got := s.recv()
		switch {
		case matches(want, got):
		case len(replies) > 8:
			s.p.fail(fmt.Sprintf("reply %d of %d: %s", i+1, len(replies), want), got)
		default:
			s.p.fail(strings.Join(replies, ", "), strings.Join(append(slices.Clone(replies[:i]), got), ", "))
		}
	}
}

func matches(want, got string) bool {
	if prefix, open := strings.CutSuffix(want, "…"); open {
		return strings.HasPrefix(got, prefix)
	}
	return want == got
}

// expectServed proves that the stream was kept: a valid request after what came before is answered. Nothing else may
// come before the answer.
func (s *control) expectServed() {
	if !s.authed {
		s.auth(s.p.fx.token(allActions...))
	}
	s.lastID++
	key := s.p.unique()
	s.send(codec.AppendCacheGet(nil, s.p.fx.Tenant, s.p.fx.Namespace, s.p.fx.Cache, key, s.lastID, true))
	s.expect(fmt.Sprintf("cache_value %s miss id=%d", s.p.fx.entry(key), s.lastID))
}

// expectEnd expects the end of the stream in both directions: FIN from the broker, and STOP_SENDING unless everything
// was sent (docs/protocol/session.md#the-end-of-a-stream).
func (s *control) expectEnd() {
	s.expect("FIN")
	if !s.done {
		s.p.expectStopped(s.s.Send())
	}
}

// expectErrorEnd expects replies and then the end. The reference may lose the last of them (D5).
func (s *control) expectErrorEnd(replies ...string) {
	if !s.p.fx.Reference || len(replies) == 0 {
		s.expect(replies...)
		s.expectEnd()
		return
	}
	last := len(replies) - 1
	s.expect(replies[:last]...)
	if got := s.recv(); got != "FIN" {
		if !matches(replies[last], got) {
			s.p.fail(replies[last]+" or FIN", got)
		}
		s.expect("FIN")
	}
}

// expectStopped waits until the broker has stopped reading. Nothing but STOP_SENDING ends a direction that we have not
// ended.
func (p *probe) expectStopped(out *quicx.SendStream) {
	timer := time.NewTimer(time.Until(p.deadline()))
	defer timer.Stop()
	select {
	case <-out.Context().Done():
	case <-timer.C:
		p.fail("STOP_SENDING 0", p.nothing())
	}
	_, err := out.Write([]byte{0})
	if reset, ok := errors.AsType[*quicx.StreamResetError](err); !ok || !reset.Remote || reset.Code != 0 {
		p.fail("STOP_SENDING 0", fmt.Sprint(err))
	}
}

// expectOthersServed proves that another stream of the connection, and another connection, still work.
func (s *control) expectOthersServed() {
	s.c.authed().expectServed()
	s.p.authed().expectServed()
}

// uni is a uni-directional publish stream.
type uni struct {
	p *probe
	s *quicx.SendStream
}

func (c *conn) openUni() *uni {
	ctx, cancel := context.WithDeadline(c.p.ctx, c.p.deadline())
	defer cancel()
	s, err := c.qc.OpenUniStream(ctx)
	c.p.must("opening a uni-directional stream", err)
	return &uni{c.p, s}
}

// send writes frames, in one write, as [control.send] does.
func (u *uni) send(frames ...[]byte) { u.p.write(u.s, slices.Concat(frames...)) }

// events is the event stream of a subscription, after its hello.
type events struct {
	p       *probe
	id      uint64
	r       *quicx.RecvStream
	fr      *quicx.FrameReader
	queue   []event
	offsets int // frames that carried an offset
	frames  int
}

// event is an item of an event frame.
type event struct {
	payload   string
	offset    uint64
	hasOffset bool
}

// subscribe subscribes to a stream of the fixture's namespace on a control stream of its own, and waits for the hello.
func (c *conn) subscribe(stream string, start codec.Start) *events {
	s := c.authed()
	s.send(codec.AppendSubscribe(nil, c.p.fx.Tenant, c.p.fx.Namespace, stream, start, 0, false))
	return c.subscribed(s)
}

var live = codec.Start{}

// subscribed reads the answer to a subscribe, whatever its id, the end of its stream, and the hello.
func (c *conn) subscribed(s *control) *events {
	got := s.recv()
	var id uint64
	if _, err := fmt.Sscanf(got, "subscribed %d", &id); err != nil {
		c.p.fail("subscribed", got)
	}
	s.expectEnd()
	return c.accept(id)
}

// accept returns the event stream of a subscription; those of others that come before it are kept for later.
func (c *conn) accept(id uint64) *events {
	for c.events[id] == nil {
		ctx, cancel := context.WithDeadline(c.p.ctx, c.p.deadline())
		r, err := c.qc.AcceptUniStream(ctx)
		cancel()
		if err != nil {
			c.p.fail(fmt.Sprintf("an event stream for subscription %d", id), c.p.waitText(err))
		}
		e := &events{p: c.p, r: r, fr: c.p.reader(r)}
		f, end := c.p.next(r, e.fr)
		if end == "" {
			end = describe(f)
		}
		if _, err := fmt.Sscanf(end, "event_stream_hello %d", &e.id); err != nil {
			c.p.fail("event_stream_hello as the first frame of an event stream", end)
		}
		c.events[e.id] = e
	}
	e := c.events[id]
	delete(c.events, id)
	return e
}

// recv returns the next event; ok is false if the stream ended, and end says how.
func (e *events) recv() (ev event, end string) {
	for len(e.queue) == 0 {
		f, end := e.p.next(e.r, e.fr)
		if end != "" {
			return event{}, end
		}
		e.frames++
		e.add(f)
	}
	ev = e.queue[0]
	e.queue = e.queue[1:]
	return ev, ""
}

// add takes the events out of a frame, which must be one of the four layouts, without anything after the last item.
func (e *events) add(f quicx.Frame) {
	flags, payload := f.Header.Flags, f.Payload()
	batch, err := codec.ParseEventBatch(flags, payload)
	if err != nil {
		e.p.fail("an event frame", describe(f))
	}
	if flags&codec.FlagEventBatch != 0 && batch.SubscriptionID != e.id {
		e.p.fail(fmt.Sprintf("events of subscription %d", e.id), fmt.Sprintf("events of subscription %d", batch.SubscriptionID))
	}
	if extra := len(payload) - eventHead(flags) - len(batch.Items.Raw()); extra != 0 {
		e.p.fail("an event frame that ends with its last item", fmt.Sprintf("%d bytes after it", extra))
	}
	if batch.HasOffset {
		e.offsets++
	}
	for i, item := range batch.Items.All() {
		e.queue = append(e.queue, event{string(item), batch.BaseOffset + uint64(i), batch.HasOffset})
	}
}

// eventHead is how many bytes of payload an event layout has in front of its item list
// (docs/protocol/wire.md#base-offset).
func eventHead(flags codec.Flags) int {
	n := 0
	if flags&codec.FlagEventBatch != 0 {
		n += 8
	}
	if flags&codec.FlagEventOffsets != 0 {
		n += 8
	}
	return n
}

// expect reads exactly these events, in order, however they lie in frames.
func (e *events) expect(payloads ...string) {
	for i, want := range payloads {
		ev, end := e.recv()
		switch {
		case end != "":
			e.p.fail(fmt.Sprintf("event %d of %d: %s", i+1, len(payloads), short(want)), end)
		case ev.payload != want:
			e.p.fail(fmt.Sprintf("event %d of %d: %s", i+1, len(payloads), short(want)), short(ev.payload))
		}
	}
}

// stop gives the event stream up, which is how a client ends a subscription.
func (e *events) stop() { e.r.Cancel(0) }
