package broker

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"os"
	"sync/atomic"
	"time"

	"github.com/felix-mq/felix/auth"
	"github.com/felix-mq/felix/codec"
	"github.com/felix-mq/felix/fanout"
	"github.com/felix-mq/felix/quicx"
	"github.com/felix-mq/felix/telemetry"
)

// outcome is what a handled frame means for its stream (docs/protocol/session.md#the-end-of-a-stream).
type outcome uint8

const (
	keep     outcome = iota // read on
	cleanEnd                // finish: a subscribe, or a cache request without an id
	errorEnd                // finish: the peer broke a rule
)

// stream is what control and publish streams share: who they are, and where they published last.
type stream struct {
	c        *conn
	r        *quicx.RecvStream
	send     *quicx.SendStream // where replies go, or nil
	writing  atomic.Bool       // a write of replies is under way
	fr       *quicx.FrameReader
	msg      codec.Message
	identity *auth.Identity // nil before auth
	// The connection is charged for identityBytes of it, and while a publish waits for what was made of its message:
	// the decoded events, and the frame of them.
	identityBytes, made int64
	tenant              *tenant          // that it is for
	token               token            // that it has shown
	surplus             bool             // it would have been for a tenant that may have no more connections
	flags               codec.Flags      // what the peer advertised
	ext                 codec.Extensions // what was agreed on
	scope               scope
	// stalled says that an acknowledged publish of this stream waited in vain: those after it are refused at once
	// until there is space again.
	stalled      bool
	unknownBytes int // received before authentication
	payloadLen   int // of the frame that is being handled

	expires atomic.Int64                       // when the token does, in seconds since 1970; 0 before auth
	cut     atomic.Int32                       // the limit for which the stream was ended
	waiting atomic.Pointer[context.CancelFunc] // ends a publish that waits for space

	answer answer      // to the publish that is being offered
	owes   *owedReply  // of that publish, if its topic is durable; nil when it has been appended
	oweIt  func() bool // control.oweAnswer; nil if nothing is answered

	// beforeWait, if set, writes the replies that are owed: a publish that waits must not delay them.
	beforeWait func() error
}

// control is one bi-directional stream. One goroutine owns it.
type control struct {
	stream
	s *quicx.Stream
	w *quicx.FrameWriter // replies not yet written

	owed *owed // nil before the first durable publish

	inFlight  int   // requests that they answer
	charged   int64 // bytes of them in the connection's account
	overdrawn bool  // there was no space for one

	cache cacheScope
	found []foundValue // by a get, until it is answered
}

// serveControl reads requests and answers them, in order, until the stream ends.
func serveControl(c *conn, s *quicx.Stream) {
	ctl := &control{s: s, w: quicx.NewFrameWriter(s.Send(), 0)}
	ctl.init(c, s.Recv())
	ctl.send = s.Send()
	ctl.beforeWait = ctl.flushDue
	ctl.oweIt = ctl.oweAnswer
	c.b.metrics.controlStreams.Add(1)
	defer c.b.metrics.controlStreamsClosed.Add(1)
	defer ctl.fr.Close()
	if c.reading(&ctl.stream) {
		defer c.doneReading(&ctl.stream)
		ctl.serve()
	}
	ctl.finish()
	if ctl.surplus {
		c.closeDelivered(reasonTenantConns)
	}
}

// init prepares a stream that nobody has authenticated yet.
func (s *stream) init(c *conn, r *quicx.RecvStream) {
	s.c, s.r, s.flags = c, r, codec.OriginalV1Flags
	s.fr = quicx.NewFrameReader(r, min(c.b.cfg.AuthMaxBytes, c.b.cfg.MaxFrameBytes))
	s.fr.SetAccount(c.account)
}

// serve gathers replies while further requests are already there to be read, up to the bounds on what is in flight.
func (ctl *control) serve() {
	cfg := &ctl.c.b.cfg
	for {
		if n := ctl.w.Pending(); n > 0 {
			full := n >= cfg.InFlightBytes || ctl.inFlight >= cfg.InFlightRequests
			more := ctl.fr.Ready()
			if full && more {
				ctl.c.b.metrics.inFlightWaits.Add(1)
			}
			if (full || !more) && ctl.flush() != nil {
				return // the peer does not want our replies: nothing after them is carried out
			}
		}
		if !ctl.fr.Ready() {
			ctl.msg.Reset() // what is held while nothing comes should be little
		}
		start := telemetry.Start()
		f, err := ctl.fr.Next()
		telemetry.Observe(telemetry.StageRequestRead, start)
		if err == nil {
			err = ctl.begin()
		}
		if err != nil {
			ctl.readError(err)
			if ctl.untrusted() {
				// It may have been cut off while it wrote, and not have been stuck.
				_ = ctl.send.SetWriteDeadline(time.Now().Add(cfg.ReplyTimeout))
				ctl.refuse(codec.AuthFailed)
			}
			return
		}
		owed := ctl.w.Pending()
		next := ctl.handle(f)
		ctl.done()
		if next != keep {
			return
		}
		if ctl.w.Pending() > owed {
			ctl.inFlight++
		}
		if ctl.overdrawn {
			return
		}
	}
}

// flushDue writes the replies that are due. Those after one that is owed for a durable publish follow it.
func (ctl *control) flushDue() error {
	if ctl.owing() {
		return nil
	}
	return ctl.flush()
}

// flush writes the replies. It blocks as long as the peer does not read them, and until durable publishes have ended.
func (ctl *control) flush() error {
	if err := ctl.settle(); err != nil {
		ctl.w.Close()
		ctl.releaseReplies()
		return err
	}
	ctl.writing.Store(true)
	if telemetry.Enabled { // or a check of ctl.w for nil would stay
		telemetry.Add(telemetry.BrokerReplyBytes, ctl.w.Pending())
	}
	start := telemetry.Start()
	err := ctl.w.Flush()
	telemetry.Observe(telemetry.StageReplyWrite, start)
	ctl.writing.Store(false)
	ctl.releaseReplies()
	ctl.c.moved.Add(1)
	return err
}

// releaseReplies gives back what was charged for replies: they are written, or somebody else is charged for them.
func (ctl *control) releaseReplies() {
	ctl.c.account.Release(ctl.charged)
	ctl.charged, ctl.inFlight = 0, 0
}

// finish writes the replies and both ends of the stream: FIN for ours, STOP_SENDING for the peer's if it has not
// finished. An error end differs from a clean one only in what was written before
// (docs/start/from-the-reference.md#defects, D5).
func (ctl *control) finish() {
	if ctl.overdrawn {
		ctl.w.Close() // what there was no memory for is not held until the peer reads it
	}
	_ = ctl.flush()
	_ = ctl.s.Send().Close()
	ctl.s.Recv().Cancel(0)
}

// freeReply is how many bytes of replies streamBytes stands for.
const freeReply = 1 << 10

// reply replaces the replies that wait to be written by those and one more. They are held as long as the peer does not
// read, so the connection's account is charged for them; a stream that overdraws it ends.
func (ctl *control) reply(out []byte) {
	if ctl.owing() {
		ctl.releaseReplies()
		ctl.owed.after(out)
		ctl.w.Close()
		return
	}
	_ = ctl.reserve(cap(out) - ctl.w.Pending())
	ctl.w.SetBuffer(out)
}

// reserve charges for a reply of at least n bytes before it is made. It reports false if that overdraws the account.
func (ctl *control) reserve(n int) bool {
	more := int64(ctl.w.Pending()+n) - freeReply - ctl.charged
	if more <= 0 {
		return true
	}
	if err := ctl.c.account.Charge(more); err != nil {
		ctl.overdraw(err)
		return false
	}
	ctl.charged += more
	return true
}

// overdraw says that the stream ends for lack of memory.
func (ctl *control) overdraw(err error) {
	if !ctl.overdrawn {
		ctl.overdrawn = true
		ctl.c.refuseRead(err)
	}
}

// refuse queues an error and says what happens to the stream: the table of refusals decides.
func (ctl *control) refuse(r codec.Refusal) outcome { return ctl.refuseWith(r, r.Text) }

// refuseWith is refuse for a text with values in it.
func (ctl *control) refuseWith(r codec.Refusal, text string) outcome {
	if r.Form != codec.FormNone {
		ctl.c.b.metrics.requestErrors.Add(1)
		ctl.reply(codec.AppendError(ctl.w.Buffer(), ctl.fit(text)))
	}
	return outcomeOf(r.Stream, ctl.msg.HasRequestID)
}

// fit cuts a text that echoes the names of a request, so that its frame stays within the limit
// (docs/protocol/wire.md#maximum-frame-size), escapes included.
func (ctl *control) fit(text string) string {
	return codec.CutText(text, ctl.c.b.cfg.MaxFrameBytes/8)
}

func outcomeOf(c codec.Consequence, hasID bool) outcome {
	switch c {
	case codec.StreamKept:
		return keep
	case codec.StreamCleanEnd:
		return cleanEnd
	case codec.StreamByID:
		if hasID {
			return keep
		}
		return cleanEnd
	case codec.StreamErrorEnd:
	}
	return errorEnd
}

// handle carries one frame out. Flags come first, before authentication and before any decoding
// (docs/protocol/wire.md#unknown-flags).
func (ctl *control) handle(f quicx.Frame) outcome {
	if ctl.tooMuchUnknown(f) {
		return errorEnd
	}
	telemetry.Add(telemetry.BrokerFramesIn, 1)
	telemetry.Add(telemetry.BrokerBytesIn, len(f.Bytes))
	ctl.payloadLen = len(f.Payload())
	switch f.Header.Flags {
	case codec.LayoutJSON:
		return ctl.message(f)
	case codec.LayoutPublish:
		return ctl.binaryPublish(f, codec.HeaderLen, false)
	case codec.LayoutPublishAcked:
		return ctl.ackedPublish(f, codec.HeaderLen, false, fanout.Origin{})
	case codec.LayoutExtension:
		return ctl.extension(f)
	default:
		return ctl.refuse(codec.UnsupportedFlags)
	}
}

// extension carries an extension frame out. One that was not negotiated is an unknown flag
// (docs/protocol/extensions.md).
func (ctl *control) extension(f quicx.Frame) outcome {
	typ, _, err := codec.ParseExtension(f.Payload())
	switch {
	case err != nil:
	case typ == codec.ExtensionPublishS2 && ctl.ext&codec.ExtS2 != 0:
		return ctl.binaryPublish(f, extensionAt, true)
	case typ == codec.ExtensionPublishAckedS2 && ctl.ext&codec.ExtS2 != 0:
		return ctl.ackedPublish(f, extensionAt, true, fanout.Origin{})
	case typ == codec.ExtensionPublishFrom && ctl.ext&codec.ExtProducer != 0:
		return ctl.publishFrom(f, false)
	case typ == codec.ExtensionPublishFromS2 && ctl.ext&codec.ExtProducer != 0 && ctl.ext&codec.ExtS2 != 0:
		return ctl.publishFrom(f, true)
	case typ == codec.ExtensionCacheRequest && ctl.ext&codec.ExtCache != 0:
		return ctl.cacheFrame(f)
	}
	return ctl.refuse(codec.UnsupportedFlags)
}

// extensionAt is where the body of an extension frame begins.
const extensionAt = codec.HeaderLen + 1

// message carries a JSON message out.
func (ctl *control) message(f quicx.Frame) outcome {
	m := &ctl.msg
	if err := codec.ParseMessage(f.Bytes[codec.HeaderLen:], m); err != nil {
		ctl.c.b.countMalformed(err)
		return ctl.refuse(codec.Undecodable)
	}
	switch m.Type {
	case codec.MsgAuth:
		return ctl.auth(m)
	case codec.MsgPublish, codec.MsgPublishBatch, codec.MsgSubscribe, codec.MsgCachePut, codec.MsgCacheGet:
	case codec.MsgError:
		return ctl.refuse(codec.ErrorFromClient)
	case codec.MsgSubscribeCursorError:
		return ctl.refuse(codec.CursorErrorDirection)
	default:
		return ctl.refuse(codec.UnexpectedMessage)
	}
	if ctl.identity == nil {
		return ctl.refuse(codec.AuthRequired)
	}
	if string(m.Tenant) != ctl.identity.Tenant {
		return ctl.refuse(codec.TenantMismatch)
	}
	switch m.Type {
	case codec.MsgSubscribe:
		return ctl.subscribe(m)
	case codec.MsgCachePut:
		return ctl.cachePut(m)
	case codec.MsgCacheGet:
		return ctl.cacheGet(m)
	default:
		return ctl.publish(m)
	}
}

// auth binds the stream to a tenant and its permissions for its whole life
// (docs/protocol/session.md#on-a-control-stream).
func (ctl *control) auth(m *codec.Message) outcome {
	if ctl.identity != nil {
		return ctl.refuse(codec.AuthEstablished)
	}
	if refusal := ctl.authenticate(m); refusal != nil {
		return ctl.refuse(*refusal)
	}
	if !m.HasClientFlags {
		ctl.reply(codec.AppendOK(ctl.w.Buffer()))
		return keep
	}
	ctl.flags, ctl.ext = m.ClientFlags, m.Ext
	if ctl.c.b.store == nil { // no stream would remember a producer
		ctl.ext &^= codec.ExtProducer
	}
	ctl.c.agreed.Or(uint32(ctl.ext))
	ctl.reply(codec.AppendAuthOK(ctl.w.Buffer(), serverFlags, ctl.ext, m.HasExt))
	return keep
}

// authenticate returns the refusal if the token is not good, or the connection is one too many for its tenant.
func (s *stream) authenticate(m *codec.Message) *codec.Refusal {
	s.c.authenticating.Lock()
	defer s.c.authenticating.Unlock()
	claimed := string(m.Tenant)
	// A connection that is known counts before its signature is looked at, another one when it is found to be good: or
	// others could use up what the tenant may.
	of := s.c.tenant.Load()
	counted := s.c.known.Load() && of.name == claimed
	if counted && !of.may(&of.auths, tenantAuths) {
		return &codec.AuthRateReached
	}
	end := s.c.trace("auth", slog.String("felix.tenant", claimed))
	id, err := s.c.verify(claimed, m.Token)
	end(err)
	if err != nil {
		s.c.b.metrics.authFailures.WithLabelValues(string(auth.ReasonOf(err))).Inc()
		s.c.b.log.Info("auth failed", "remote", s.c.qc.RemoteAddr().String(), "error", err)
		return &codec.AuthFailed
	}
	t := s.c.b.tenantOf(id)
	if t == nil {
		return &codec.AuthFailed
	}
	if !counted && !t.may(&t.auths, tenantAuths) {
		return &codec.AuthRateReached
	}
	if !s.c.authenticated(t) {
		s.surplus = true
		return &codec.ConnectionsReached
	}
	if !s.c.fence(t.name, m.Fence) {
		return &codec.AuthFailed
	}
	if !s.chargeIdentity(id) {
		return &endsForMemory
	}
	s.identity, s.tenant = id, t
	s.token = token{t, id.Key}
	s.expires.Store(expiryOf(id))
	s.c.trust(s, s.token, s.expires.Load())
	if !s.c.b.cfg.IgnoreExpiry {
		s.c.b.expiries.by(s.c, s.expires.Load())
	}
	if !t.trusts(id.Key) { // since it was verified
		s.c.revoke(t, *t.keys.Load())
	}
	s.fr.SetMaxFrame(s.c.b.cfg.MaxFrameBytes)
	return nil
}

// endsForMemory ends a stream without a text, as one does that finds no memory for a request.
var endsForMemory = codec.Refusal{Form: codec.FormNone, Stream: codec.StreamErrorEnd}

// tooMuchUnknown reports whether a stream has sent more than it may before it has authenticated.
func (s *stream) tooMuchUnknown(f quicx.Frame) bool {
	if s.identity != nil {
		return false
	}
	s.unknownBytes += len(f.Bytes)
	if s.unknownBytes <= s.c.b.cfg.AuthMaxBytes {
		return false
	}
	s.c.b.limited(limitAuthBytes)
	return true
}

// readError counts why reading a stream ended, unless the peer finished it.
func (s *stream) readError(err error) {
	b := s.c.b
	switch {
	case errors.Is(err, io.EOF):
	case errors.Is(err, quicx.ErrMemory):
		s.c.refuseRead(err)
	case s.identity == nil && errors.Is(err, codec.ErrFrameTooLarge):
		b.limited(limitAuthBytes)
		b.countMalformed(err)
	case errors.Is(err, os.ErrDeadlineExceeded): // a drain, or a limit that has been counted
	default:
		if e, ok := errors.AsType[*quicx.StreamResetError](err); ok && e.Remote {
			b.metrics.streamResets.Add(1)
		}
		b.countMalformed(err)
	}
}

// countMalformed counts a frame that ended its stream. Nothing is said on the wire
// (docs/protocol/wire.md#malformed-input).
func (b *Broker) countMalformed(err error) {
	if class := codec.ClassOf(err); class != "" {
		telemetry.Add(telemetry.BrokerDecodeErrors, 1)
		b.metrics.malformed.WithLabelValues(class).Inc()
		b.log.Info("malformed frame", "class", class)
	}
}
