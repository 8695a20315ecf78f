package broker

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	"github.com/felix-mq/felix/codec"
	"github.com/felix-mq/felix/fanout"
	"github.com/felix-mq/felix/quicx"
	"github.com/felix-mq/felix/telemetry"
)

// owed is the replies of a control stream that wait for the commit of a durable publish, in the order of requests, and
// those of other requests after them. The stream's goroutine reads on meanwhile. A goroutine writes the replies as
// they become due, as long as there are any; while none are owed the stream's own goroutine writes, as it does for all
// other requests.
type owed struct {
	ctl *control
	w   *quicx.FrameWriter // of the one who writes

	busy atomic.Bool // something is owed, or being written

	mu      sync.Mutex
	changed sync.Cond // on mu: replies were written
	list    []*owedReply
	writing bool
	held    bool  // the stream's goroutine looks for itself what is due
	err     error // the peer does not take our replies
}

// owedReply is one reply.
type owedReply struct {
	o      *owed
	id     uint64
	isJSON bool
	due    bool   // guarded by owed.mu, as what follows
	err    error  // how the publish ended
	raw    []byte // the reply itself, if it is none to a durable publish
}

// owedBytes is what one reply is charged for beyond its bytes.
const owedBytes = 128

var owedReplies = sync.Pool{New: func() any { return new(owedReply) }}

// owe notes that a reply to a durable publish is to come. It waits while as many are owed as may be, and returns nil if
// the stream has to end.
func (ctl *control) owe(id uint64, isJSON bool) *owedReply {
	if ctl.owed == nil {
		ctl.owed = &owed{ctl: ctl, w: quicx.NewFrameWriter(ctl.s.Send(), 0)}
		ctl.owed.changed.L = &ctl.owed.mu
	}
	r := owedReplies.Get().(*owedReply)
	r.id, r.isJSON = id, isJSON
	if !ctl.owed.push(r) {
		return nil
	}
	return r
}

// push puts a reply at the end. It waits while there are too many, or until the connection ends.
func (o *owed) push(r *owedReply) bool {
	ctl := o.ctl
	if !o.busy.Load() && ctl.w.Pending() > 0 && ctl.flush() != nil {
		return false
	}
	if err := ctl.c.account.Charge(owedBytes + int64(len(r.raw))); err != nil {
		ctl.overdraw(err)
		return false
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	if len(o.list) >= ctl.c.b.cfg.InFlightRequests {
		ctl.c.b.metrics.inFlightWaits.Add(1)
		stop := context.AfterFunc(ctl.c.ctx, func() { // who gave the connection up must not wait for the disk
			o.mu.Lock()
			defer o.mu.Unlock()
			o.changed.Broadcast()
		})
		for o.err == nil && ctl.c.ctx.Err() == nil && len(o.list) >= ctl.c.b.cfg.InFlightRequests {
			o.changed.Wait()
		}
		stop()
	}
	if o.err != nil || len(o.list) >= ctl.c.b.cfg.InFlightRequests {
		ctl.c.account.Release(owedBytes + int64(len(r.raw)))
		return false
	}
	r.o = o
	o.list = append(o.list, r)
	o.busy.Store(true)
	return true
}

// take takes the last reply back: its publish was not begun.
func (o *owed) take(r *owedReply) {
	o.mu.Lock()
	o.list[len(o.list)-1] = nil
	o.list = o.list[:len(o.list)-1]
	o.ctl.c.account.Release(r.free())
	if len(o.list) == 0 && !o.writing {
		o.busy.Store(false)
	}
	o.mu.Unlock()
}

// free forgets a reply and returns its charge, which the caller releases when nothing holds the reply's bytes any more.
func (r *owedReply) free() (charged int64) {
	charged = owedBytes + int64(len(r.raw))
	*r = owedReply{}
	owedReplies.Put(r)
	return charged
}

// after puts the reply to another request after those that are owed.
func (o *owed) after(reply []byte) {
	r := owedReplies.Get().(*owedReply)
	r.raw, r.due = append([]byte(nil), reply...), true
	if !o.push(r) {
		return
	}
	o.mu.Lock()
	o.startLocked()
	o.mu.Unlock()
}

// Committed implements [fanout.Commit].
func (r *owedReply) Committed(f *fanout.Frame, err error) {
	o := r.o
	o.ctl.c.b.Committed(f, err)
	o.mu.Lock()
	r.due, r.err = true, err
	o.startLocked()
	o.mu.Unlock()
}

// startLocked starts the writer if there is something to write.
func (o *owed) startLocked() {
	if !o.held && o.claimLocked() {
		go o.write()
	}
}

// claimLocked reports whether the caller has to write: there is something, and nobody else does.
func (o *owed) claimLocked() bool {
	if o.writing || len(o.list) == 0 || !o.list[0].due {
		return false
	}
	o.writing = true
	return true
}

// hold keeps replies from being written by another goroutine, until unhold. The stream's goroutine calls it, and does
// not wait in between for what others do.
func (o *owed) hold() {
	o.mu.Lock()
	o.held = true
	o.mu.Unlock()
}

// unhold writes what has become due since hold.
func (o *owed) unhold() {
	o.mu.Lock()
	o.held = false
	claimed := o.claimLocked()
	o.mu.Unlock()
	if claimed {
		o.write()
	}
}

// write writes what is due, until the first reply is not. When the peer does not take replies any more, what comes is
// forgotten, and the stream's goroutine ends.
func (o *owed) write() {
	ctl := o.ctl
	o.mu.Lock()
	defer o.mu.Unlock()
	for {
		n, charged := 0, int64(0)
		for n < len(o.list) && o.list[n].due && o.w.Pending() < ctl.c.b.cfg.InFlightBytes {
			o.append(o.list[n])
			charged += o.list[n].free()
			n++
		}
		if n == 0 {
			o.writing = false
			o.busy.Store(len(o.list) > 0)
			o.changed.Broadcast()
			return
		}
		rest := copy(o.list, o.list[n:])
		clear(o.list[rest:])
		o.list = o.list[:rest]
		failed := o.err != nil
		o.mu.Unlock()
		var err error
		if failed {
			o.w.Close()
		} else {
			ctl.writing.Store(true)
			err = o.w.Flush()
			ctl.writing.Store(false)
			ctl.c.moved.Add(1)
		}
		ctl.c.account.Release(charged)
		o.mu.Lock()
		if err != nil {
			o.err = err
			_ = ctl.r.SetReadDeadline(longPast) // nothing after them is carried out
		}
		o.changed.Broadcast()
	}
}

// append appends a reply to what is to be written.
func (o *owed) append(r *owedReply) {
	out := o.w.Buffer()
	switch {
	case r.raw != nil:
		out = append(out, r.raw...)
	case r.err == nil && r.isJSON:
		out = codec.AppendPublishOK(out, r.id)
	case r.err == nil:
		out = codec.AppendPublishAckOK(out, r.id)
	default:
		o.ctl.c.b.metrics.requestErrors.Add(1)
		jsonForm, binaryForm := storageRefusal(r.err)
		if jsonForm == nil {
			jsonForm, binaryForm = &codec.StorageFailed, &codec.StorageFailedAck
		}
		if r.isJSON {
			out = codec.AppendPublishError(out, r.id, jsonForm.Text)
		} else {
			out = codec.AppendPublishAckError(out, r.id, binaryForm.Text)
		}
	}
	telemetry.Add(telemetry.BrokerAcks, 1)
	o.w.SetBuffer(out)
}

// settle waits until nothing is owed: all publishes have ended, and what they owed is written. It fails if that could
// not be written: nothing may come after a part of a reply.
func (ctl *control) settle() error {
	o := ctl.owed
	if o == nil {
		return nil
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	for o.writing || len(o.list) > 0 {
		o.changed.Wait()
	}
	return o.err
}

// owing reports whether replies are owed, after which others have to go.
func (ctl *control) owing() bool { return ctl.owed != nil && ctl.owed.busy.Load() }

// offerAcked is an offer that is answered: at once, by the caller, if it does not wait and err is nil, and otherwise
// when it is committed.
func (ctl *control) offerAcked(a answer, offer func(wait time.Duration) error) (answer, error) {
	a.wanted = true
	ctl.answer = a
	err := offer(ctl.ackedWait())
	a = ctl.answer
	ctl.answer = answer{}
	if ctl.owes != nil { // nothing was appended
		ctl.owed.take(ctl.owes)
		ctl.owes = nil
	}
	return a, err
}

// answer is how the publish that is being offered is answered.
type answer struct {
	wanted, isJSON bool
	waits          bool // it was appended, and is answered when it is committed
	notKept        bool // its stream would not know it if it came again
	id             uint64
	from           fanout.Origin
}

// oweAnswer sees to it that a reply is owed for the publish that is being offered. It reports false if the stream has
// to end.
func (ctl *control) oweAnswer() bool {
	ctl.owes = ctl.owe(ctl.answer.id, ctl.answer.isJSON)
	return ctl.owes != nil
}
