package fanout

import (
	"encoding/binary"
	"errors"
	"testing"

	"github.com/felix-mq/felix/ring"
)

// takeGaps takes everything, and returns only what was said about losses.
func takeGaps(s *Subscription) (reasons []GapReason, lost, next []uint64) {
	for {
		ds, _ := s.Take(nil, 1)
		if len(ds) == 0 {
			return reasons, lost, next
		}
		for _, d := range ds {
			if d.Reason != GapNone {
				reasons, lost, next = append(reasons, d.Reason), append(lost, d.Gap), append(next, d.Next)
			}
			if d.Frame != nil {
				d.Frame.Release()
			}
		}
	}
}

func wantGap(t *testing.T, s *Subscription, reason GapReason, lost, next uint64) {
	t.Helper()
	r, l, n := takeGaps(s)
	if len(r) != 1 || r[0] != reason || l[0] != lost || n[0] != next {
		t.Errorf("gaps %v of %v events, next %v, want one of reason %v, %d events, next %d", r, l, n, reason, lost, next)
	}
}

func wantNoGap(t *testing.T, s *Subscription) {
	t.Helper()
	if r, l, n := takeGaps(s); len(r) > 0 {
		t.Errorf("gaps %v of %v events, next %v, want none", r, l, n)
	}
}

func TestNumberIsWrittenIntoTheFrame(t *testing.T) {
	h := testHub(t, Options{})
	topic := h.Register(testKey, Policy{})
	publish(t, topic, 3)
	s, _ := subscribe(t, topic, From{})
	f := frameIn(64, 40, 2, 0xee)
	f.NumberAt(16)
	publishFrame(t, topic, f)
	ds, _ := s.Take(nil, 1)
	defer ds[0].Frame.Release()
	if n := binary.BigEndian.Uint64(ds[0].Frame.Bytes()[16:]); n != 3 {
		t.Errorf("the frame carries number %d, want 3", n)
	}
	again, _ := subscribe(t, topic, From{At: true, Offset: 4})
	ds, _ = again.Take(nil, 1)
	defer ds[0].Frame.Release()
	if n := binary.BigEndian.Uint64(ds[0].Frame.Bytes()[16:]); n != 3 || ds[0].Skip != 1 || ds[0].Next != 4 {
		t.Errorf("replay carries number %d, skips %d, next %d", n, ds[0].Skip, ds[0].Next)
	}
}

func TestEpochsDiffer(t *testing.T) {
	seen := map[uint64]bool{}
	for range 3 {
		h := testHub(t, Options{})
		for range 3 {
			topic := h.Register(testKey, Policy{})
			if seen[topic.Epoch()] {
				t.Fatal("an epoch came twice")
			}
			seen[topic.Epoch()] = true
			h.Remove(testKey)
		}
	}
}

func TestResume(t *testing.T) {
	h := testHub(t, Options{})
	topic := h.Register(testKey, Policy{ReplayBytes: 3000})
	for range 10 {
		publish(t, topic, 2) // 192 bytes each: all twenty events are kept
	}
	resume := func(epoch, offset uint64) *Subscription {
		t.Helper()
		s, _ := subscribe(t, topic, From{At: true, Offset: offset, Resume: true, Epoch: epoch})
		return s
	}
	s := resume(topic.Epoch(), 7)
	if s.Next() != 7 {
		t.Errorf("begins at %d, want 7", s.Next())
	}
	wantNoGap(t, s)
	wantNoGap(t, resume(topic.Epoch(), 20))
	var ce *CursorError
	if _, err := topic.Subscribe(From{At: true, Offset: 21, Resume: true, Epoch: topic.Epoch()},
		SubscriptionOptions{Wake: func() {}}); !errors.As(err, &ce) || ce.TooOld {
		t.Errorf("resume in the future: %v", err)
	}
	wantGap(t, resume(topic.Epoch()+1, 7), GapEpoch, 0, 0)
	wantGap(t, resume(topic.Epoch()+1, 1<<60), GapEpoch, 0, 0)

	for range 20 {
		publish(t, topic, 2)
	}
	oldest := topic.replay.oldest(topic.next)
	if oldest < 20 {
		t.Fatalf("oldest is %d: nothing has expired", oldest)
	}
	wantGap(t, resume(topic.Epoch(), 7), GapExpired, oldest-7, oldest)
	wantGap(t, resume(topic.Epoch()+1, 7), GapEpoch, 0, oldest)
	// The reference behavior stays: without an epoch a position that is too old is refused.
	if _, err := topic.Subscribe(From{At: true, Offset: 7}, SubscriptionOptions{Wake: func() {}}); !errors.As(err, &ce) || !ce.TooOld {
		t.Errorf("start at an expired position: %v", err)
	}

	// With nothing kept there is no event to come along with: the gap is reported all the same, and at once.
	topic.forget()
	s = resume(topic.Epoch(), 7)
	if !s.Backlog() {
		t.Error("the consumer does not start by itself")
	}
	wantGap(t, s, GapExpired, 60-7, 60)
	publish(t, topic, 1)
	wantNoGap(t, s)
}

func TestGapReasons(t *testing.T) {
	h := testHub(t, Options{MaxBytes: 64 << 10})
	topic := h.Register(testKey, noReplay(ring.DropNew, 4))
	s, _ := subscribe(t, topic, From{})
	for range 10 {
		publish(t, topic, 1)
	}
	// Four are queued; what was lost after them is reported when they are taken, though nothing follows.
	wantGap(t, s, GapQueueFull, 6, 10)
	for range 6 {
		publish(t, topic, 1)
	}
	take(s, 1)
	take(s, 1) // half empty: it returns to the active set
	publish(t, topic, 1)
	wantGap(t, s, GapQueueFull, 2, 16) // in front of the event that followed

	old := h.Register(Key{Tenant: testKey.Tenant, Stream: "old"}, noReplay(ring.DropOld, 4))
	dropOld, _ := subscribe(t, old, From{})
	for range 10 {
		publish(t, old, 1)
	}
	wantGap(t, dropOld, GapQueueFull, 6, 6)

	publish(t, topic, 1)
	for range stuckAfter + 1 {
		h.sweep()
	}
	spend(t, h)
	wantGap(t, s, GapReclaimed, 1, 18)
}
