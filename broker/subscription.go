package broker

import (
	"context"
	"errors"
	"log/slog"
	"math"
	"sync/atomic"
	"time"

	"github.com/felix-mq/felix/auth"
	"github.com/felix-mq/felix/codec"
	"github.com/felix-mq/felix/fanout"
	"github.com/felix-mq/felix/quicx"
	"github.com/felix-mq/felix/telemetry"
)

// subscription writes one topic's events to one event stream. While there is nothing to write it has no goroutine:
// the topic starts one with the first event, and it ends when the queue is empty.
//
// gate keeps that goroutine from starting before the hello is on the stream:
//
//	gateShut ──first event──▶ gateKnocked
//	   └──hello written──▶ gateOpen ◀──hello written──┘ (starts the writer)
type subscription struct {
	c      *conn
	tenant *tenant // that is charged for it
	id     uint64
	events *fanout.Subscription
	out    *quicx.SendStream
	gate   atomic.Int32
	run    func() // s.write, made once: a go statement with a method value would allocate

	running  atomic.Int32 // writers; a new one may start while the last one is on its way out
	unwatch  func() bool
	finished atomic.Bool
	cut      atomic.Bool  // it ended for being stuck
	inline   inlineWrites // what publishers wrote to it themselves

	// Guarded by conn.mu: the token that it was made with, when it expires, in seconds since 1970, or 0 if that has
	// passed, and whether the subscription has to end because it is not good any more.
	token   token
	expires int64
	over    bool

	// What the peer negotiated and may be sent; set when the subscription is made.
	gaps     bool // gap frames
	s2       bool // compressed batches
	offsets  bool // offsets on events
	maxItems int  // events in one frame, and
	maxBytes int  // bytes of events; 0: any number

	// The writer's own.
	w     *quicx.FrameWriter
	taken *burst // what a publisher took and has left to the writer that it started
}

const (
	gateShut int32 = iota
	gateKnocked
	gateOpen
)

// subscribe carries a subscribe request out. It is always the last request of its control stream
// (docs/protocol/session.md#subscribing).
func (ctl *control) subscribe(m *codec.Message) outcome {
	b := ctl.c.b
	end := ctl.c.trace("subscribe", slog.String("felix.tenant", string(m.Tenant)), slog.String("felix.namespace", string(m.Namespace)), slog.String("felix.stream", string(m.Stream)))
	made := errNotSubscribed
	defer func() { end(made) }()
	if !ctl.identity.Allowed(auth.ActionStreamSubscribe, auth.KindStream, m.Tenant, m.Namespace, m.Stream) {
		return ctl.refuse(codec.Forbidden)
	}
	if ctl.flush() != nil { // the replies that are owed do not wait for the event stream
		return errorEnd
	}
	topic := b.hub.Lookup(m.Tenant, m.Namespace, m.Stream)
	if !ctl.tenant.may(&ctl.tenant.subscribes, tenantSubscribes) {
		return ctl.refuse(codec.SubscribeRateReached)
	}
	if !ctl.tenant.take(kindSubs, tenantSubs) {
		return ctl.refuse(codec.SubscriptionsReached)
	}
	s, refusal := ctl.newSubscription(m, topic != nil && topic.Log() != nil)
	switch {
	case refusal != nil:
		ctl.tenant.give(kindSubs)
		return ctl.refuse(*refusal)
	case topic == nil:
		ctl.c.forget(s)
		return ctl.refuseWith(codec.StreamNotFoundSubscribe, ctl.notFound(m.Tenant, m.Namespace, m.Stream))
	}
	start, err := ctl.startOf(m, topic)
	if err != nil {
		ctl.c.forget(s)
		b.log.Error("start not found", "error", err)
		return ctl.refuse(codec.StorageUnread)
	}
	events, err := topic.Subscribe(start, fanout.SubscriptionOptions{Wake: s.wake, OnEnd: s.ended, Cost: subscriptionBytes})
	if err != nil {
		ctl.c.forget(s)
		if ce, ok := errors.AsType[*fanout.CursorError](err); ok {
			reason := codec.CursorInFuture
			if ce.TooOld {
				reason = codec.CursorTooOld
			}
			b.metrics.requestErrors.Add(1)
			ctl.reply(codec.AppendSubscribeCursorError(ctl.w.Buffer(), reason, ce.Requested, ce.Available))
			return outcomeOf(codec.CursorRefused.Stream, false)
		}
		if errors.Is(err, fanout.ErrMemory) {
			ctl.tenant.refuse(tenantMemory)
			return ctl.refuse(codec.MemoryReached)
		}
		return ctl.refuseWith(codec.StreamNotFoundSubscribe, ctl.notFound(m.Tenant, m.Namespace, m.Stream))
	}
	ctl.c.mu.Lock()
	s.events = events // others find the subscription on the connection
	over := s.over
	ctl.c.mu.Unlock()
	if over {
		events.Close()
		ctl.c.forget(s)
		return ctl.refuse(codec.AuthFailed)
	}
	if err := s.open(topic.Epoch()); err != nil {
		events.Close()
		ctl.c.forget(s)
		return ctl.refuse(codec.OpenUniStream)
	}
	b.metrics.subscriptions.Add(1)
	ctl.reply(codec.AppendSubscribed(ctl.w.Buffer(), s.id))
	_ = ctl.flush() // if it cannot be delivered the subscription stands all the same: the hello is on its own stream
	s.start()
	made = nil
	return cleanEnd
}

// subscriptionBytes is what a subscription costs whose writer is blocked, beyond what it has queued: its state, a
// stream of QUIC, a goroutine and what it has joined to be written.
const subscriptionBytes = 16 << 10

// errNotSubscribed is what a trace tells of a subscribe that was refused.
var errNotSubscribed = errors.New("broker: refused")

// startOf returns where a subscription begins. To find an event by its time it may read from the disk.
func (ctl *control) startOf(m *codec.Message, topic *fanout.Topic) (fanout.From, error) {
	switch m.Start.Kind {
	case codec.StartEarliest:
		log := logOf(topic)
		if !m.HasSince || ctl.ext&codec.ExtTime == 0 || log == nil {
			return fanout.From{Earliest: true}, nil
		}
		offset, err := log.log.OffsetAt(int64(min(m.Since, math.MaxInt64/1000)) * 1000)
		// What retention removes meanwhile is no error, and what is not offered yet is the tail.
		return fanout.From{At: true, Nearest: true, Offset: offset}, err
	case codec.StartOffset:
		resume := m.HasEpoch && ctl.ext&codec.ExtGaps != 0
		return fanout.From{At: true, Offset: m.Start.Offset, Resume: resume, Epoch: m.Epoch}, nil
	case codec.StartUnset, codec.StartLatest:
	}
	return fanout.From{}, nil
}

// newSubscription takes a place and an id on the connection, or returns the refusal.
func (ctl *control) newSubscription(m *codec.Message, durable bool) (*subscription, *codec.Refusal) {
	c := ctl.c
	s := &subscription{c: c, tenant: ctl.tenant, id: m.SubscriptionID, maxItems: c.b.cfg.EventMaxItems, maxBytes: c.b.cfg.EventMaxBytes}
	s.run = s.write
	s.token, s.expires = ctl.token, ctl.expires.Load()
	s.gaps = ctl.ext&codec.ExtGaps != 0
	s.s2 = ctl.ext&codec.ExtS2 != 0
	// Streams in memory have offsets only with the extension (docs/start/from-the-reference.md#defects, D18).
	s.offsets = (s.gaps || durable) && ctl.flags&codec.FlagEventOffsets != 0
	if ctl.ext == 0 && s.maxItems == 0 {
		s.maxItems = legacyMaxItems
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.trustsLocked(s.token) {
		return nil, &codec.AuthFailed
	}
	if c.fullLocked() {
		return nil, &codec.MaxSubscriptions
	}
	if !m.HasSubscriptionID {
		s.id = c.newIDLocked()
	} else if c.takenLocked(s.id) {
		return nil, &codec.DuplicateSubscription
	}
	c.subs[s.id] = s
	return s, nil
}

func (c *conn) fullLocked() bool {
	return len(c.subs)+len(c.watches) >= c.b.cfg.MaxSubscriptionsPerConn
}

func (c *conn) takenLocked(id uint64) bool { return c.subs[id] != nil || c.watches[id] != nil }

// newIDLocked returns an id that no event stream of the connection has.
func (c *conn) newIDLocked() uint64 {
	for {
		if id := c.b.subscriptionIDs.Add(1); !c.takenLocked(id) {
			return id
		}
	}
}

func (c *conn) forget(s *subscription) {
	c.mu.Lock()
	delete(c.subs, s.id)
	c.mu.Unlock()
	s.tenant.give(kindSubs)
}

// open opens the event stream with what it always begins with.
func (s *subscription) open(epoch uint64) (err error) {
	hello := codec.AppendEventStreamHello(make([]byte, 0, 128), s.id)
	if s.gaps {
		hello = codec.AppendPosition(hello, codec.Position{Epoch: epoch, Offset: s.events.Start()})
	}
	if s.out, err = s.c.openEvents(hello); err != nil {
		return err
	}
	s.w = quicx.NewFrameWriter(s.out, s.c.b.cfg.MaxWriteBytes)
	return nil
}

// openEvents opens an event stream and writes the hello, which is always its first frame. The stream limit is the
// peer's to grant, so it is waited for only so long (docs/start/from-the-reference.md#defects, D12).
func (c *conn) openEvents(hello []byte) (*quicx.SendStream, error) {
	ctx, cancel := context.WithTimeout(c.ctx, c.b.cfg.ReplyTimeout)
	defer cancel()
	out, err := c.qc.OpenUniStream(ctx)
	if err != nil {
		return nil, err
	}
	_ = out.SetWriteDeadline(time.Now().Add(c.b.cfg.ReplyTimeout))
	if _, err = out.Write(hello); err != nil {
		out.Cancel(0)
		return nil, err
	}
	return out, out.SetWriteDeadline(time.Time{})
}

// start lets the writer run, and watches for a peer that stops reading: that is how a subscription ends
// (docs/protocol/session.md#the-end-of-a-subscription).
func (s *subscription) start() {
	s.c.writers.Add(1)
	stop := context.AfterFunc(s.out.Context(), func() {
		s.events.End(fanout.EndClosed)
		s.c.writers.Done()
	})
	s.unwatch = func() bool {
		if stop() {
			s.c.writers.Done()
			return true
		}
		return false
	}
	knocked := s.gate.Swap(gateOpen) == gateKnocked
	if s.cut.Load() {
		s.out.Cancel(0)
	}
	if knocked || s.events.Backlog() {
		s.launch()
	}
}

// wake is called when there is something to write and no writer, on the goroutine of a publisher. What is small is
// written at once, which spares the wake-up of a writer; for all else a writer is started.
func (s *subscription) wake() {
	if s.gate.CompareAndSwap(gateShut, gateKnocked) {
		return
	}
	if s.gate.Load() != gateOpen {
		return
	}
	if s.c.b.cfg.InlineBytes == 0 || s.c.b.cfg.EventMaxDelayMicros > 0 {
		s.launch()
		return
	}
	s.running.Add(1)
	if s.writeInline() {
		s.running.Add(-1)
		return
	}
	s.c.writers.Add(1)
	go s.run()
}

func (s *subscription) launch() {
	s.running.Add(1)
	s.c.writers.Add(1)
	go s.run()
}

// writeInline writes what is queued as long as it is small and the stream takes it without blocking. It reports false
// if something is left that needs a writer: what was taken already is in s.taken.
func (s *subscription) writeInline() bool {
	limit := s.c.b.cfg.InlineBytes
	b := bursts.Get().(*burst)
	for range maxInlineWrites {
		if s.events.ReadsLog() { // it reads from the disk
			bursts.Put(b)
			return false
		}
		batch, ended := s.events.Take(b.batch, limit)
		if len(batch) == 0 { // from here on s may belong to another writer
			bursts.Put(b)
			return !ended // which a writer has to tell the peer
		}
		b.batch = batch
		events, bytes, ok := s.tryBatch(b, limit)
		if !ok {
			s.taken = b
			return false
		}
		b.release()
		telemetry.Add(telemetry.BrokerEventFrames, 1)
		telemetry.Add(telemetry.BrokerEventItems, int(events))
		telemetry.Add(telemetry.BrokerEventBytes, int(bytes))
		s.c.b.metrics.deliveredEvents.Add(events)
		s.c.b.metrics.deliveredBytes.Add(bytes)
	}
	bursts.Put(b)
	return false
}

// maxInlineWrites bounds what a publisher does for one subscription: one that never runs empty needs a writer.
const maxInlineWrites = 4

// ended frees a writer that is stuck in a write when the topic ends the subscription for its slowness.
func (s *subscription) ended(reason fanout.EndReason) {
	if reason == fanout.EndUnreadable {
		s.c.b.log.Error("subscription unreadable", "remote", s.c.qc.RemoteAddr().String(), "subscription", s.id)
	}
	if reason != fanout.EndStalled {
		return // the writer finishes what is queued
	}
	s.c.b.metrics.stalledEnded.Add(1)
	s.c.b.log.Warn("subscription stalled", "remote", s.c.qc.RemoteAddr().String(), "subscription", s.id)
	s.cut.Store(true)
	if s.gate.Load() == gateOpen { // otherwise start sees it
		s.out.Cancel(0)
	}
}

// busy reports whether events wait to be written that will be lost otherwise. What is in a log can be read later.
func (s *subscription) busy() bool { return s.running.Load() > 0 && !s.events.ReadsLog() }

// write is the writer: it takes all that is queued, up to a bound, and issues one write for it, until nothing is left.
func (s *subscription) write() {
	defer s.c.writers.Done()
	defer s.running.Add(-1)
	m := s.c.b.metrics
	b := s.taken
	s.taken = nil
	if b == nil {
		b = bursts.Get().(*burst)
	}
	defer bursts.Put(b)
	if d := s.c.b.cfg.EventMaxDelayMicros; d > 0 {
		wait := time.NewTimer(time.Duration(d) * time.Microsecond)
		select {
		case <-wait.C:
		case <-s.out.Context().Done(): // the peer does not want it any more
			wait.Stop()
		}
	}
	// What it takes at first needs little memory, which each subscription may have. For more its tenant is charged.
	limit := min(smallWrite, s.c.b.cfg.MaxWriteBytes)
	scratch := int64(0)
	defer func() {
		if scratch > 0 {
			s.events.Scratch().Release(scratch)
		}
	}()
	for {
		if len(b.batch) == 0 {
			batch, ended := s.events.Take(b.batch, limit)
			if len(batch) == 0 { // from here on s may belong to another writer, unless it has ended
				if ended {
					_ = s.out.Close()
					s.finish()
				}
				return
			}
			b.batch = batch
		}
		telemetry.Add(telemetry.BrokerEventFrames, len(b.batch))
		events, bytes, err := s.writeBatch(b)
		telemetry.Add(telemetry.BrokerEventItems, int(events))
		telemetry.Add(telemetry.BrokerEventBytes, int(bytes))
		b.release()
		if err != nil {
			s.finish()
			return
		}
		s.c.moved.Add(1)
		m.deliveredEvents.Add(events)
		m.deliveredBytes.Add(bytes)
		if n := s.c.b.cfg.MaxWriteBytes; limit < n {
			// The bytes that are joined, and as much for the lists of small events.
			if charge := 2 * int64(n); s.events.Scratch().Charge(charge) == nil {
				limit, scratch = n, charge
			}
		}
	}
}

// smallWrite is how many bytes a writer gathers that its tenant is not charged for.
const smallWrite = 4 << 10

// finish releases what is queued and gives the connection its place back.
func (s *subscription) finish() {
	if !s.finished.CompareAndSwap(false, true) {
		return
	}
	s.unwatch()
	s.events.Close()
	s.closeInline()
	s.c.forget(s)
	s.c.b.metrics.subscriptionsEnded.Add(1)
}
