package client

import (
	"context"
	"errors"
	"math"
	"sync/atomic"
	"testing"
	"time"

	"github.com/valyala/bytebufferpool"

	"github.com/felix-mq/felix/codec"
)

// lostSlot returns a slot of a client without a connection, a stream that is opened for it, and a publisher.
func lostSlot(tb testing.TB) (*streamSlot, *requestStream, *Publisher) {
	tb.Helper()
	ctx, cancel := context.WithCancelCause(context.Background())
	c := &Client{ctx: ctx, o: options{maxFrame: 1 << 20, requestTimeout: time.Second, tenant: "t1"}}
	tb.Cleanup(func() { cancel(ErrClosed) })
	s := newStreamSlot(newSharedConn(c, WhileDownBlock, windows{}), true)
	r := &requestStream{
		k: &conn{c: c}, ctl: &control{ext: codec.ExtProducer, flags: codec.KnownFlags}, slot: s, writing: newLock(),
		done: make(chan struct{}), acks: map[uint64]*call{}, serial: 1,
	}
	r.sweeper = time.AfterFunc(time.Hour, r.sweep)
	tb.Cleanup(func() { r.sweeper.Stop() })
	return s, r, &Publisher{c: c, namespace: "default", stream: "demo", stableSlot: s}
}

// TestOverdueIsSentAgain has asynchronous publishes whose time is over sent again, while they are looked for on the
// stream. What takes one out does so before its frame is made or after that.
func TestOverdueIsSentAgain(t *testing.T) {
	s, r, p := lostSlot(t)
	var swept atomic.Bool
	done := make(chan struct{})
	go func() {
		defer close(done)
		for !swept.Load() {
			r.sweep()
		}
	}()
	var b bytebufferpool.ByteBuffer
	payloads := [][]byte{make([]byte, 256<<10)}
	const rounds = 300
	outcomes := make(chan error, rounds)
	for n := range uint64(rounds) {
		q := getPending()
		q.p, q.slot, q.done = p, s, outcomeFunc(func(err error) { outcomes <- err })
		q.parts.Store(1)
		q.call.deadline = math.MinInt64
		q.call.publication = publication{slot: s, p: p, payloads: payloads, mode: codec.AckPerBatch, frameLen: 300 << 10, sequence: n + 1}
		s.repeats.mu.Lock()
		s.repeats.lost = append(s.repeats.lost, &q.call)
		s.repeats.mu.Unlock()
		if more, err := s.nextLost(r, &b); !more || err != nil {
			t.Fatal(more, err)
		}
		if err := <-outcomes; !errors.Is(err, ErrInDoubt) || !errors.Is(err, ErrTimeout) {
			t.Fatal(err)
		}
	}
	swept.Store(true)
	<-done
}

// TestReclaimOfRepeated has a publish lost for the second time before its caller hears that the first attempt was not
// written in full. It is not the caller's to send as another one: the second attempt may have been carried out.
func TestReclaimOfRepeated(t *testing.T) {
	s, r, p := lostSlot(t)
	c := &call{done: make(chan struct{}, 1)}
	p.prepare(r, c, [][]byte{[]byte("x")}, codec.AckPerBatch, 100)
	if c.slot != s {
		t.Fatal("it cannot be sent again")
	}
	c.sequence = 1
	s.repeats.lost = []*call{c}
	if mine, _ := r.reclaim(c); !mine {
		t.Error("one that was sent once was not given back")
	}
	c.resent, s.repeats.lost = true, []*call{c}
	if mine, sent := r.reclaim(c); mine || !sent || len(s.repeats.lost) != 1 {
		t.Errorf("mine %v, sent %v, %d are lost", mine, sent, len(s.repeats.lost))
	}
}

// TestOvertaken gives up what is lost only if the stream that was to send it still lives.
func TestOvertaken(t *testing.T) {
	s, r, p := lostSlot(t)
	c := &call{done: make(chan struct{}, 1)}
	p.prepare(r, c, [][]byte{[]byte("x")}, codec.AckPerBatch, 100)
	s.repeats.lost = []*call{c}
	close(r.done)
	if s.overtaken(r); len(s.repeats.lost) != 1 {
		t.Error("it was given up, though the stream is lost, too")
	}
	r.done = make(chan struct{})
	if s.overtaken(r); len(s.repeats.lost) != 0 || !errors.Is(c.err, errOvertaken) {
		t.Errorf("%d are lost, %v", len(s.repeats.lost), c.err)
	}
}
