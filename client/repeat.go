package client

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/valyala/bytebufferpool"

	"github.com/felix-mq/felix/codec"
)

// A publish that was sent and not answered when its stream was lost is sent again, if the broker knows it when it comes
// twice (docs/protocol/extensions.md#producer). Its caller hears one answer, later:
//
//	requestStream.acks ── fail ──▶ repeats.lost ── resend, on the next stream ──▶ requestStream.acks
//	                                   └── the caller, the sweep and the end of the client take it out: in doubt
//
// The slot is the producer, and numbers frames in the order in which they are sent. What is lost is sent again in that
// order, on the next stream of the slot, before anybody else may use that. So events of one publisher stay in order.

// repeats is what a slot keeps of publishes that may be sent again.
type repeats struct {
	producer [16]byte
	last     atomic.Uint64 // the number of the last frame

	mu      sync.Mutex // guards all below, and call.on; taken before requestStream.mu
	lost    []*call    // the oldest first
	running bool       // a goroutine sees to them
	sweeper *time.Timer
}

func (a *repeats) init() { _, _ = rand.Read(a.producer[:]) } // never fails

// publication is a publish that can be sent again, as part of its call.
type publication struct {
	slot     *streamSlot // nil if it cannot
	p        *Publisher
	payloads [][]byte
	mode     codec.AckMode
	frameLen int
	sequence uint64         // of its frame; 0 before it is sent
	on       *requestStream // that it was sent on last
	doubtful bool           // a broker may have read it, on a stream that was lost
	resent   bool
	repeated bool // it was sent again when it was doubtful
}

// origin is what stands in front of its frame.
func (u *publication) origin() codec.Origin {
	return codec.Origin{Producer: u.slot.repeats.producer, Sequence: u.sequence, Repeated: u.repeated}
}

// prepare says how a publish is sent on a stream, and whether it can be sent again.
func (p *Publisher) prepare(r *requestStream, c *call, payloads [][]byte, mode codec.AckMode, frameLen int) {
	c.publication = publication{}
	const more = 1 + codec.OriginLen
	if r.slot != nil && r.slot.shared.policy != WhileDownFail && r.keeps() &&
		len(payloads) > 0 && frameLen-codec.HeaderLen+more <= p.c.o.maxFrame && p.notKept.Load() != r.serial {
		c.publication = publication{slot: r.slot, p: p, payloads: payloads, mode: mode, frameLen: frameLen + more, on: r}
	}
}

// keeps reports whether the stream's broker knows publishes that come again.
func (r *requestStream) keeps() bool {
	return r.ctl.ext&codec.ExtProducer != 0 && r.ctl.flags&codec.FlagPublishAcked != 0
}

// number gives a publish its number. The caller has its turn to write.
func (r *requestStream) number(c *call) (uint64, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.err != nil {
		return 0, r.err
	}
	c.sequence = r.slot.repeats.last.Add(1)
	return c.sequence, nil
}

// keepLocked keeps publishes that a stream was lost with. It reports false if nobody would send them again. The caller
// holds repeats.mu.
func (s *streamSlot) keepLocked(lost []*call) bool {
	a := &s.repeats
	if len(lost) == 0 {
		return true
	}
	if !a.running {
		if !s.shared.c.start(s.repeat) {
			return false
		}
		a.running = true
	}
	a.lost = append(a.lost, lost...)
	slices.SortFunc(a.lost, func(x, y *call) int { return cmp.Compare(x.sequence, y.sequence) })
	if a.sweeper == nil {
		a.sweeper = time.AfterFunc(time.Hour, func() { s.shared.c.start(s.sweepLost) })
	}
	a.sweeper.Reset(s.shared.c.sweepEvery())
	return true
}

// repeat sees to it that there is a stream as long as something is lost: the one that opens it sends that.
func (s *streamSlot) repeat() {
	a, c := &s.repeats, s.shared.c
	pauses := c.o.backoff
	for {
		a.mu.Lock()
		if len(a.lost) == 0 {
			a.running = false
			a.mu.Unlock()
			return
		}
		a.mu.Unlock()
		r, err := s.get(c.ctx, c.deadline(c.ctx))
		switch {
		case err == nil:
			s.overtaken(r)
		case c.ctx.Err() != nil || !Retryable(err):
			s.giveUp(err)
		default:
			_ = c.pause(c.ctx, pauses.next())
		}
	}
}

// errOvertaken is why a publish is not sent again after others that came after it.
var errOvertaken = fmt.Errorf("%w: others were sent first", ErrDisconnected)

// overtaken gives up what is lost and was not sent on r, unless r is lost too: what it has sent is lost again then.
func (s *streamSlot) overtaken(r *requestStream) {
	a := &s.repeats
	a.mu.Lock()
	var lost []*call
	if !r.broken() {
		lost, a.lost = a.lost, nil
	}
	a.mu.Unlock()
	finishAll(lost, errOvertaken)
}

// giveUp ends the wait of all that is lost.
func (s *streamSlot) giveUp(err error) {
	a := &s.repeats
	a.mu.Lock()
	lost := a.lost
	a.lost = nil
	a.mu.Unlock()
	finishAll(lost, err)
}

// finishAll ends calls that nothing else refers to.
func finishAll(lost []*call, err error) {
	for _, c := range lost {
		c.err = err
		c.finish()
	}
}

// sweepLost ends asynchronous publishes among what is lost whose time is over.
func (s *streamSlot) sweepLost() {
	a := &s.repeats
	now := s.shared.c.now()
	var overdue []*call
	a.mu.Lock()
	a.lost = slices.DeleteFunc(a.lost, func(c *call) bool {
		over := c.owner != nil && c.deadline <= now
		if over {
			overdue = append(overdue, c)
		}
		return over
	})
	if len(a.lost) > 0 {
		a.sweeper.Reset(s.shared.c.sweepEvery())
	}
	a.mu.Unlock()
	finishAll(overdue, ErrTimeout)
}

// install makes r the slot's stream, after it has sent what was lost. If that fails, so does r, and what is lost waits
// for the next one.
func (s *streamSlot) install(r *requestStream) error {
	if err := s.resend(r); err != nil {
		r.fail(err)
		return err
	}
	s.put(r)
	return nil
}

// installUntil is install for a caller that waits no longer than its context. If it keeps the slot's lock, which the
// caller holds, it goes on with that when it returns.
func (s *streamSlot) installUntil(ctx context.Context, r *requestStream) (kept bool, _ error) {
	a := &s.repeats
	a.mu.Lock()
	none := len(a.lost) == 0
	a.mu.Unlock()
	if none {
		return false, s.install(r)
	}
	var err error
	done := make(chan struct{})
	install := func() {
		err = s.install(r)
		close(done)
	}
	if !s.shared.c.start(install) {
		r.fail(ErrClosed)
		return false, ErrClosed
	}
	select {
	case <-done:
		return false, err
	case <-ctx.Done():
	}
	rest := func() {
		<-done
		s.lock.release()
	}
	if s.shared.c.start(rest) {
		return true, context.Cause(ctx)
	}
	<-done // the end of the client ends it
	return false, err
}

// resend sends what is lost on a stream that nobody else knows yet.
func (s *streamSlot) resend(r *requestStream) error {
	b := bytebufferpool.Get()
	defer bytebufferpool.Put(b)
	for {
		more, err := s.nextLost(r, b)
		if !more || err != nil {
			return err
		}
		n, err := r.ctl.s.Send().Write(b.B)
		if err := r.writeError(n, b.B, err); err != nil {
			return err
		}
	}
}

// nextLost expects the acknowledgement of the oldest publish that is lost on a stream, and makes its frame. It reports
// false if there is none.
func (s *streamSlot) nextLost(r *requestStream, b *bytebufferpool.ByteBuffer) (bool, error) {
	a := &s.repeats
	if !r.keeps() { // of another broker than before
		s.giveUp(fmt.Errorf("%w: the broker does not know what was sent before", ErrUnsupported))
		return false, nil
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if len(a.lost) == 0 {
		return false, nil
	}
	c := a.lost[0]
	c.id, c.on, c.resent, c.repeated = r.reserveID(), r, true, c.doubtful
	b.B = c.p.appendFrame(b.B[:0], r, c, c.mode, c.payloads, c.frameLen)
	if err := r.expectAgain(c); err != nil { // from here on the stream may end it, and its payloads are used again
		return true, err
	}
	a.lost[0] = nil
	a.lost = a.lost[1:]
	return true, nil
}

// removeLocked takes a publish out of what is lost. The caller holds repeats.mu.
func (a *repeats) removeLocked(c *call) bool {
	i := slices.Index(a.lost, c)
	if i >= 0 {
		a.lost = slices.Delete(a.lost, i, i+1)
	}
	return i >= 0
}

// take gives up on an acknowledgement, and reports whether it had not come yet: nobody else will end the call then.
func (r *requestStream) take(c *call) bool {
	if c.slot == nil {
		return r.takeOff(c)
	}
	a := &c.slot.repeats
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.removeLocked(c) || c.on.takeOff(c)
}

// reclaim takes a publish back that was not sent in full. It is the caller's again if mine is true. Otherwise it has
// been sent again on another stream, or what ended this one ends the call.
func (r *requestStream) reclaim(c *call) (mine, sent bool) {
	if c.slot == nil {
		return r.takeOff(c), false
	}
	a := &c.slot.repeats
	a.mu.Lock()
	defer a.mu.Unlock()
	if c.resent { // also if it is lost again
		return false, true
	}
	return a.removeLocked(c) || r.takeOff(c), false
}

// mayRepeat reports whether what was sent on a stream that was lost for that reason may be sent again on another one.
func mayRepeat(err error) bool {
	return Retryable(err) && !errors.Is(err, ErrClosed)
}

// awaitAnswers waits until a stream that takes no more requests owes no replies to publishes that could be sent again:
// none may be, once others have been sent after them.
func (s *streamSlot) awaitAnswers(ctx context.Context) error {
	if r := s.stream.Load(); r != nil && r.slot != nil && r.keeps() {
		return r.awaitIdle(ctx)
	}
	return nil
}
