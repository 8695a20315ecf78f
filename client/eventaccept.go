package client

import (
	"context"
	"sync"
	"time"

	"github.com/felix-mq/felix/codec"
	"github.com/felix-mq/felix/quicx"
)

// eventStream is an event stream after its hello.
type eventStream struct {
	r       *quicx.RecvStream
	fr      *quicx.FrameReader
	claimed chan struct{} // closed when it has an owner
}

// acceptEvents takes the broker's event streams until the connection ends. Each hello is read on a goroutine of its
// own, so that an incomplete one does not hold up the others.
func (k *conn) acceptEvents() {
	var hellos sync.WaitGroup
	defer hellos.Wait()
	for {
		r, err := k.qc.AcceptUniStream(k.qc.Context())
		if err != nil {
			break
		}
		hellos.Go(func() { k.hello(r) })
	}
	<-k.qc.Context().Done() // accepting ends first; a connection that takes no more has to look dead
	k.mu.Lock()
	k.closing = true
	left := k.unmatched
	k.unmatched = nil
	k.mu.Unlock()
	k.users.Wait()
	for _, e := range left {
		e.fr.Close()
	}
}

// hello reads the first frame of an event stream and hands the stream over. One that nobody asks for in time is
// refused: its subscribe was given up, or never was.
func (k *conn) hello(r *quicx.RecvStream) {
	fr := quicx.NewFrameReader(r, k.c.o.maxFrame+frameSlack)
	_ = r.SetReadDeadline(time.Now().Add(k.c.o.requestTimeout))
	f, err := fr.Next()
	var m codec.Message
	if err == nil && f.Header.Flags == codec.LayoutJSON {
		err = codec.ParseMessage(f.Bytes[codec.HeaderLen:], &m)
	}
	if err != nil || m.Type != codec.MsgEventStreamHello {
		r.Cancel(0)
		fr.Close()
		return
	}
	_ = r.SetReadDeadline(time.Time{})
	e := &eventStream{r: r, fr: fr, claimed: make(chan struct{})}
	if !k.offer(m.SubscriptionID, e) {
		e.refuse()
		return
	}
	expired := time.NewTimer(k.c.o.requestTimeout)
	defer expired.Stop()
	select {
	case <-e.claimed:
	case <-k.qc.Context().Done():
	case <-expired.C:
		k.mu.Lock()
		defer k.mu.Unlock()
		if k.unmatched[m.SubscriptionID] == e {
			delete(k.unmatched, m.SubscriptionID)
			e.refuse()
		}
	}
}

// offer gives an event stream to the Subscribe call that waits for it, or keeps it for the one to come. It reports
// false if there is no place for it.
func (k *conn) offer(id uint64, e *eventStream) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.unmatched == nil || len(k.unmatched) >= k.c.o.maxUnmatched || k.unmatched[id] != nil {
		return false
	}
	if w := k.waiting[id]; w != nil {
		delete(k.waiting, id)
		close(e.claimed)
		w <- e
		return true
	}
	k.unmatched[id] = e
	return true
}

func (e *eventStream) refuse() {
	e.r.Cancel(0)
	e.fr.Close()
}

// awaitEvents waits for the event stream of a subscription.
func (k *conn) awaitEvents(ctx context.Context, id uint64) (*eventStream, error) {
	k.mu.Lock()
	if e := k.unmatched[id]; e != nil {
		delete(k.unmatched, id)
		close(e.claimed)
		k.mu.Unlock()
		return e, nil
	}
	w := make(chan *eventStream, 1)
	k.waiting[id] = w
	k.mu.Unlock()
	var err error
	select {
	case e := <-w:
		return e, nil
	case <-ctx.Done():
		err = context.Cause(ctx)
	case <-k.qc.Context().Done():
		err = k.lost()
	}
	k.mu.Lock()
	delete(k.waiting, id)
	k.mu.Unlock()
	select {
	case e := <-w: // it came at the last moment
		e.refuse()
	default:
	}
	return nil, err
}
