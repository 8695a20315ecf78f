package broker

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/felix-mq/felix/auth"
	"github.com/felix-mq/felix/codec"
	"github.com/felix-mq/felix/fanout"
	"github.com/felix-mq/felix/internal/buf"
	"github.com/felix-mq/felix/quicx"
	"github.com/felix-mq/felix/storage"
	"github.com/felix-mq/felix/telemetry"
)

// Errors of offering a publish, in addition to those of package fanout.
var (
	errStreamNotFound = errors.New("broker: stream not found")
	// errStreamEnds means that the publish stream cannot go on: its connection has ended, or it has too many streams
	// that stand still.
	errStreamEnds = errors.New("broker: publish stream ends")
	// errNotKept means that a publish may have been carried out before, and its stream remembers no producers.
	errNotKept = errors.New("broker: the stream remembers no producers")
	// errTokenEnds means the same, because the stream's token is not good any more.
	errTokenEnds = fmt.Errorf("%w: its token is not good any more", errStreamEnds)
)

// scope is where a stream published last: resolved and authorised once, remembered by its bytes, so that a repeat
// costs a comparison.
type scope struct {
	tenant, namespace, name []byte
	allowed                 bool
	topic                   *fanout.Topic // nil if there is no such stream; not remembered: docs/start/from-the-reference.md, D21
}

// resolve finds the topic that a publish names and reports whether the identity may publish to it.
func (s *stream) resolve(tenant, namespace, name []byte) bool {
	sc := &s.scope
	known := sc.tenant != nil && bytes.Equal(sc.name, name) && bytes.Equal(sc.namespace, namespace) && bytes.Equal(sc.tenant, tenant)
	if !known {
		sc.allowed = s.identity.Allowed(auth.ActionStreamPublish, auth.KindStream, tenant, namespace, name)
		sc.topic = nil
	}
	if sc.allowed && sc.topic == nil {
		sc.topic = s.c.b.hub.Lookup(tenant, namespace, name)
	}
	if !known {
		sc.remember(tenant, namespace, name)
	}
	switch {
	case !sc.allowed:
		s.c.b.metrics.publishRefused[refusedForbidden].Add(1)
		return false
	case sc.topic == nil:
		s.c.b.metrics.publishRefused[refusedUnknownStream].Add(1)
	}
	return true
}

// remember notes the names. Those that no stream has can be of any length, and are forgotten if they are long: an idle
// stream should hold little.
func (sc *scope) remember(tenant, namespace, name []byte) {
	if sc.topic == nil && max(len(namespace), len(name)) > auth.MaxNameLen {
		sc.tenant = nil
		return
	}
	sc.tenant = append(sc.tenant[:0], tenant...)
	sc.namespace = append(sc.namespace[:0], namespace...)
	sc.name = append(sc.name[:0], name...)
}

// offer hands the frame to its topic. wait is how long it may take; see [fanout.Topic.Publish]. While it waits,
// nothing more of this stream is read.
func (s *stream) offer(f *fanout.Frame, wait time.Duration) error {
	start := telemetry.Start()
	if err := s.awaitRate(len(f.Bytes()), wait); err != nil {
		return err
	}
	appended, err := s.offerPlain(f, wait)
	for errors.Is(err, fanout.ErrClosed) && !s.untrusted() { // removed since it was looked up; there may be a new one
		sc := &s.scope
		if sc.topic = s.c.b.hub.Lookup(sc.tenant, sc.namespace, sc.name); sc.topic == nil {
			s.c.b.metrics.publishRefused[refusedUnknownStream].Add(1)
			return errStreamNotFound
		}
		appended, err = s.offerPlain(f, wait)
	}
	switch {
	case err == nil:
		telemetry.Observe(telemetry.StagePublishFanout, start)
		s.stalled = false
		if !appended {
			s.c.b.metrics.published(f)
		}
		return nil
	case s.untrusted():
		return errTokenEnds
	case s.c.ctx.Err() != nil:
		return errStreamEnds
	case errors.Is(err, fanout.ErrTimeout):
		s.c.b.metrics.publishRefused[refusedNoSpace].Add(1)
	case errors.Is(err, fanout.ErrDraining):
		s.c.b.metrics.publishRefused[refusedDraining].Add(1)
	case inDoubt(err) != nil:
		s.c.b.metrics.publishRefused[refusedInDoubt].Add(1)
	case !errors.Is(err, fanout.ErrClosed):
		if r, _ := storageRefusal(err); r != nil {
			s.c.b.metrics.publishRefused[refusedStorage].Add(1)
		}
	}
	return err
}

// published counts a publish that has been carried out.
func (m *metrics) published(f *fanout.Frame) {
	m.publishedBatches.Add(1)
	m.publishedEvents.Add(uint64(f.Count()))
	m.publishedBytes.Add(uint64(len(f.Bytes())))
	telemetry.Add(telemetry.BrokerPublishBatches, 1)
	telemetry.Add(telemetry.BrokerPublishItems, f.Count())
}

// offerPlain is offerOnce for a frame that may be compressed, which a log cannot have.
func (s *stream) offerPlain(f *fanout.Frame, wait time.Duration) (appended bool, err error) {
	if isCompressed(f) && s.scope.topic.Log() != nil {
		plain, err := s.plain(f)
		if err != nil {
			return false, err
		}
		defer plain.Release()
		s.made = int64(buf.CapOf(len(plain.Bytes())))
		defer func() { s.made = 0 }()
		f = plain
	}
	return s.offerOnce(f, wait)
}

// offerOnce reports whether the frame was appended to a log: whether it is published is not known yet then.
func (s *stream) offerOnce(f *fanout.Frame, wait time.Duration) (appended bool, err error) {
	if log := logOf(s.scope.topic); s.answer.wanted && s.owes == nil && log != nil && !log.early() && !s.oweIt() {
		return false, errStreamEnds
	}
	appended, err = s.hand(s.c.ctx, f, 0)
	if errors.Is(err, fanout.ErrTimeout) && wait != 0 {
		err = s.pause(func(ctx context.Context) error {
			appended, err = s.hand(ctx, f, wait)
			return err
		})
	}
	return appended, err
}

// hand hands the frame to its topic.
func (s *stream) hand(ctx context.Context, f *fanout.Frame, wait time.Duration) (appended bool, err error) {
	t, from := s.scope.topic, s.answer.from
	if t.Log() == nil {
		if from.Set && from.Repeated {
			return false, errNotKept
		}
		s.answer.notKept = from.Set
		_, err = t.Publish(ctx, f, wait)
		return false, err
	}
	var commit fanout.Commit = s.c.b
	here := wait == 0 && !s.fr.Ready() // nothing else to do
	if s.owes != nil {
		commit = s.owes
		if here {
			o := s.owes.o
			o.hold()
			defer o.unhold()
		}
	}
	if err = t.Append(ctx, f, from, wait, here, commit); err == nil {
		s.answer.waits = s.owes != nil
		s.owes = nil
	}
	return true, err
}

// rateError says which rate of its tenant a publish is above.
type rateError tenantLimit

// Error says so.
func (e rateError) Error() string { return "broker: limit reached: " + tenantLimit(e).String() }

// awaitRate takes a publish of size bytes of the tenant's rates. When there is none left it waits, if wait is without
// limit, or returns a [rateError].
func (s *stream) awaitRate(size int, wait time.Duration) error {
	pause, why := s.tenant.mayPublish(size)
	if pause == 0 {
		return nil
	}
	if wait >= 0 {
		s.tenant.refuse(why)
		s.c.b.metrics.publishRefused[refusedRate].Add(1)
		return rateError(why)
	}
	return s.waitRate(size, pause)
}

// rateLook is how often a publish that waits for a rate looks whether that has been changed.
const rateLook = time.Second

// waitRate waits until there is some of the tenant's rates to take.
func (s *stream) waitRate(size int, pause time.Duration) error {
	return s.pause(func(ctx context.Context) error {
		timer := time.NewTimer(min(pause, rateLook))
		defer timer.Stop()
		for ; pause > 0; timer.Reset(min(pause, rateLook)) {
			select {
			case <-timer.C:
			case <-s.c.b.acceptCtx.Done():
				return fanout.ErrDraining
			case <-ctx.Done():
				if s.untrusted() {
					return errTokenEnds
				}
				return errStreamEnds
			}
			pause, _ = s.tenant.mayPublish(size)
		}
		return nil
	})
}

// pause runs what makes a publish wait. Its context ends with the connection, and with the stream's token.
func (s *stream) pause(wait func(context.Context) error) error {
	defer s.c.paused.Add(-1)
	if s.c.paused.Add(1) > maxPausedPublishers {
		s.c.b.limited(limitPausedPublishers)
		return errStreamEnds
	}
	if err := s.c.account.Charge(s.made); err != nil {
		s.c.refuseRead(err)
		return errStreamEnds
	}
	defer s.c.account.Release(s.made)
	s.c.b.metrics.publishWaits.Add(1)
	if s.beforeWait != nil && s.beforeWait() != nil {
		return errStreamEnds
	}
	ctx, cancel := context.WithCancel(s.c.ctx)
	defer cancel()
	s.waiting.Store(&cancel)
	defer s.waiting.Store(nil)
	if s.untrusted() { // the sweep that found out may not have seen that it waits
		return errTokenEnds
	}
	return wait(ctx)
}

// batch is a binary publish as it was received, compressed or not.
type batch struct {
	tenant, namespace, stream []byte // views
	count                     int    // of events
	countAt, end              int    // where the list of items lies in the frame
	compressed                bool
}

// parseBatch reads the batch that begins at position at of the frame.
func (s *stream) parseBatch(f quicx.Frame, at int, compressed bool) (batch, error) {
	if !compressed {
		p, err := codec.ParsePublishBatch(f.Bytes[at:])
		return batch{p.Tenant, p.Namespace, p.Stream, p.Items.Len(), at + p.CountAt, at + p.End, false}, err
	}
	p, err := codec.ParseCompressedPublish(f.Bytes[at:])
	if err == nil && p.RawLen > s.c.b.cfg.MaxFrameBytes {
		err = codec.ErrFrameTooLarge
	}
	return batch{p.Tenant, p.Namespace, p.Stream, p.Count, at + p.CountAt, len(f.Bytes), true}, err
}

// offerBinary publishes a batch as it was received: the event frame is written over the part of the publish frame
// that is no longer needed (docs/protocol/wire.md#delivery-without-encoding).
func (s *stream) offerBinary(f quicx.Frame, p *batch, wait time.Duration) error {
	if p.count == 0 {
		return nil // acknowledged, and publishes nothing
	}
	// The topic exists, so its names are not empty: there is space for the offset.
	wire, number := f.Bytes, numberAt
	if p.compressed {
		wire, number = codec.RewriteCompressed(wire, p.countAt, 0), codec.CompressedOffsetAt
	} else {
		wire = codec.RewriteSharedOffsets(wire, p.countAt, p.end, 0)
	}
	frame := fanout.NewFrame(f.Chunk, wire, p.count)
	frame.NumberAt(number)
	err := s.offer(frame, wait)
	frame.Release()
	return err
}

// offerMessage publishes a JSON publish or publish_batch: the only form that is encoded, once.
func (s *stream) offerMessage(m *codec.Message, wait time.Duration) error {
	var chunk *buf.Chunk
	var wire []byte
	count := 1
	if m.Type == codec.MsgPublish {
		chunk = buf.Get(listAt + 8 + len(m.Payload))
		wire = codec.AppendEventHead(chunk.Bytes()[:0], codec.LayoutSharedOffsets, 0, 0, 8+len(m.Payload))
		wire = codec.AppendItems(wire, [][]byte{m.Payload})
	} else {
		if count = m.Items.Len(); count == 0 {
			return nil
		}
		raw := m.Items.Raw()
		chunk = buf.Get(listAt + len(raw))
		wire = append(codec.AppendEventHead(chunk.Bytes()[:0], codec.LayoutSharedOffsets, 0, 0, len(raw)), raw...)
	}
	frame := fanout.NewFrame(chunk, wire, count)
	frame.NumberAt(numberAt)
	s.made = int64(chunk.Cap() + len(wire))
	chunk.Release()
	err := s.offer(frame, wait)
	s.made = 0
	frame.Release()
	return err
}

// unackedWait is how long a publish without acknowledgement waits for space.
func (s *stream) unackedWait() time.Duration {
	if s.c.b.cfg.IngressWait {
		return -1
	}
	return 0
}

// unacked carries a binary publish without acknowledgement out (docs/protocol/session.md#checks-of-a-binary-publish),
// whose batch begins at position at of the frame. Nothing is ever answered; the caller has checked that the frame's
// flags are right.
func (s *stream) unacked(f quicx.Frame, at int, compressed bool) outcome {
	start := telemetry.Start()
	p, err := s.parseBatch(f, at, compressed)
	start = telemetry.Observe(telemetry.StagePublishParse, start)
	if err != nil {
		s.c.b.countMalformed(err)
		return errorEnd
	}
	if s.identity == nil || string(p.tenant) != s.identity.Tenant || !s.resolve(p.tenant, p.namespace, p.stream) {
		return errorEnd
	}
	if s.scope.topic == nil {
		return keep
	}
	telemetry.Observe(telemetry.StagePublishLookup, start)
	if err := s.offerBinary(f, &p, s.unackedWait()); errors.Is(err, errStreamEnds) {
		return errorEnd
	}
	return keep
}

func (ctl *control) binaryPublish(f quicx.Frame, at int, compressed bool) outcome {
	if ctl.identity == nil {
		return ctl.refuse(codec.AuthRequired)
	}
	return ctl.unacked(f, at, compressed)
}

// ackPrefixLen is the request id and the ack mode in front of an acknowledged batch
// (docs/protocol/wire.md#acknowledged-publish-batch).
const ackPrefixLen = 9

// publishFrom carries a publish of the extension producer out (docs/protocol/extensions.md#producer).
func (ctl *control) publishFrom(f quicx.Frame, compressed bool) outcome {
	if ctl.identity == nil {
		return ctl.refuse(codec.AuthRequired)
	}
	o, _, err := codec.ParseOrigin(f.Bytes[extensionAt:])
	if err != nil {
		ctl.c.b.countMalformed(err)
		return errorEnd // there is no id to answer to
	}
	from := fanout.Origin{Producer: o.Producer, Sequence: o.Sequence, Repeated: o.Repeated, Set: true}
	return ctl.ackedPublish(f, extensionAt+codec.OriginLen, compressed, from)
}

// ackedPublish carries a binary publish with acknowledgement out (docs/protocol/session.md#checks-of-a-binary-publish),
// whose prefix begins at position at of the frame. from is who it is from, if that is known.
func (ctl *control) ackedPublish(f quicx.Frame, at int, compressed bool, from fanout.Origin) outcome {
	if ctl.identity == nil {
		return ctl.refuse(codec.AuthRequired)
	}
	start := telemetry.Start()
	id, _, _, err := codec.ParsePublishAckedPrefix(f.Bytes[at:])
	if err != nil {
		ctl.c.b.countMalformed(err)
		return errorEnd // there is no id to answer to
	}
	p, err := ctl.parseBatch(f, at+ackPrefixLen, compressed)
	start = telemetry.Observe(telemetry.StagePublishParse, start)
	switch {
	case err != nil:
		return ctl.nack(id, codec.MalformedBatch)
	case string(p.tenant) != ctl.identity.Tenant:
		return ctl.nack(id, codec.TenantMismatchAck)
	case !ctl.resolve(p.tenant, p.namespace, p.stream):
		return ctl.nack(id, codec.ForbiddenAck)
	case ctl.scope.topic == nil:
		return ctl.nackWith(id, codec.StreamNotFoundAck, ctl.notFound(p.tenant, p.namespace, p.stream))
	}
	telemetry.Observe(telemetry.StagePublishLookup, start)
	a, err := ctl.offerAcked(answer{id: id, from: from}, func(wait time.Duration) error { return ctl.offerBinary(f, &p, wait) })
	if a.waits {
		return keep
	}
	if err == nil {
		telemetry.Add(telemetry.BrokerAcks, 1)
		if a.notKept {
			ctl.reply(codec.AppendPublishAckNotKept(ctl.w.Buffer(), id))
		} else {
			ctl.reply(codec.AppendPublishAckOK(ctl.w.Buffer(), id))
		}
		return keep
	}
	_, r := ctl.refusal(err)
	if r == nil {
		return errorEnd
	}
	return ctl.nackWith(id, *r, ctl.textOf(*r))
}

func (ctl *control) nack(id uint64, r codec.Refusal) outcome { return ctl.nackWith(id, r, r.Text) }

func (ctl *control) nackWith(id uint64, r codec.Refusal, text string) outcome {
	ctl.c.b.metrics.requestErrors.Add(1)
	telemetry.Add(telemetry.BrokerAcks, 1)
	ctl.reply(codec.AppendPublishAckError(ctl.w.Buffer(), id, text))
	return outcomeOf(r.Stream, true)
}

// ackedWait is how long an acknowledged publish waits for space: not at all after one that waited in vain, so that a
// pipeline of them is not answered one timeout after the other.
func (ctl *control) ackedWait() time.Duration {
	if ctl.stalled {
		return 0
	}
	return ctl.c.b.cfg.PublishWait
}

// refusal turns a failed offer into the reply to a JSON publish and to a binary one, or into nil if the stream ends.
func (ctl *control) refusal(err error) (jsonForm, binaryForm *codec.Refusal) {
	rate, rated := errors.AsType[rateError](err)
	switch {
	case rated && tenantLimit(rate) == tenantPublishes:
		return &codec.PublishRateReached, &codec.PublishRateReachedAck
	case rated:
		return &codec.PublishBytesReached, &codec.PublishBytesReachedAck
	case errors.Is(err, fanout.ErrTimeout):
		ctl.stalled = true
		return &codec.AdmissionTimedOut, &codec.AdmissionTimedOutAck
	case errors.Is(err, fanout.ErrDraining):
		return &codec.AdmissionClosed, &codec.AdmissionClosedAck
	case errors.Is(err, errTokenEnds):
		return &codec.AuthFailed, &codec.AuthFailed
	case errors.Is(err, errStreamNotFound):
		return &codec.StreamNotFound, &codec.StreamNotFoundAck
	case errors.Is(err, errCorrupt): // only binary publishes are compressed
		return &codec.MalformedBatch, &codec.MalformedBatch
	}
	if r := inDoubt(err); r != nil { // only binary publishes have an origin
		return r, r
	}
	return storageRefusal(err)
}

// inDoubt returns what is said of a publish that may have been carried out before, or nil for another error.
func inDoubt(err error) *codec.Refusal {
	switch {
	case errors.Is(err, errNotKept), errors.Is(err, storage.ErrUnknownProducer):
		return &codec.ProducerUnknownAck
	case errors.Is(err, storage.ErrOldSequence):
		return &codec.SequenceOldAck
	}
	return nil
}

// textOf returns the text of a refused publish, with the names of the stream where they belong.
func (ctl *control) textOf(r codec.Refusal) string {
	if r.Text == codec.StreamNotFound.Text {
		return ctl.notFound(ctl.scope.tenant, ctl.scope.namespace, ctl.scope.name)
	}
	return r.Text
}

func (s *stream) notFound(tenant, namespace, name []byte) string {
	return string(codec.AppendStreamNotFound(nil, tenant, namespace, name))
}

// publish carries a JSON publish out; the caller has checked authentication and tenant
// (docs/protocol/session.md#checks-of-a-json-publish).
func (ctl *control) publish(m *codec.Message) outcome {
	acked := m.Ack != codec.AckNone
	if !ctl.resolve(m.Tenant, m.Namespace, m.Stream) {
		return ctl.publishError(m, codec.ForbiddenPublish, codec.Forbidden.Text)
	}
	if acked && !m.HasRequestID {
		if m.Type == codec.MsgPublish {
			return ctl.refuse(codec.MissingRequestID)
		}
		return ctl.refuse(codec.MissingRequestIDBatch)
	}
	var a answer
	err := errStreamNotFound
	switch {
	case ctl.scope.topic == nil:
	case acked:
		a, err = ctl.offerAcked(answer{id: m.RequestID, isJSON: true}, func(wait time.Duration) error { return ctl.offerMessage(m, wait) })
	default:
		err = ctl.offerMessage(m, ctl.unackedWait())
	}
	if a.waits {
		return keep
	}
	if err == nil {
		if acked {
			telemetry.Add(telemetry.BrokerAcks, 1)
			ctl.reply(codec.AppendPublishOK(ctl.w.Buffer(), m.RequestID))
		}
		return keep
	}
	r, _ := ctl.refusal(err)
	switch {
	case r == nil:
		return errorEnd
	case !acked:
		return keep
	}
	return ctl.publishError(m, *r, ctl.textOf(*r))
}

// publishError answers with the request's id if it has one.
func (ctl *control) publishError(m *codec.Message, r codec.Refusal, text string) outcome {
	if !m.HasRequestID {
		return ctl.refuseWith(r, text)
	}
	ctl.c.b.metrics.requestErrors.Add(1)
	telemetry.Add(telemetry.BrokerAcks, 1)
	ctl.reply(codec.AppendPublishError(ctl.w.Buffer(), m.RequestID, ctl.fit(text)))
	return outcomeOf(r.Stream, true)
}
