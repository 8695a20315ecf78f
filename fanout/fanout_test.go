package fanout

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/felix-mq/felix/internal/ledger"
	"github.com/felix-mq/felix/ring"
)

func TestRegisterLookupRemove(t *testing.T) {
	h := testHub(t, Options{})
	a := h.Register(testKey, Policy{})
	if b := h.Register(testKey, Policy{Overflow: ring.Block}); b != a {
		t.Error("registering a name again made another topic")
	}
	if a.Key() != testKey {
		t.Errorf("key %v", a.Key())
	}
	if got := h.Lookup([]byte("tenant"), []byte("namespace"), []byte("stream")); got != a {
		t.Errorf("looked up %p, want %p", got, a)
	}
	if h.Lookup([]byte("tenant"), []byte("namespace"), nil) != nil {
		t.Error("found a topic that does not exist")
	}
	if n := h.Stats().Topics; n != 1 {
		t.Errorf("%d topics", n)
	}
	if !h.Remove(testKey) || h.Remove(testKey) {
		t.Error("a topic can be removed once")
	}
	f := frameIn(64, 64, 1, 0)
	defer f.Release()
	if _, err := a.Publish(context.Background(), f, -1); !errors.Is(err, ErrClosed) {
		t.Errorf("publish to a removed topic: %v", err)
	}
	if _, err := a.Subscribe(From{}, SubscriptionOptions{Wake: func() {}}); !errors.Is(err, ErrClosed) {
		t.Errorf("subscribe to a removed topic: %v", err)
	}
	if h.Register(testKey, Policy{}) == a {
		t.Error("a removed topic came back")
	}
}

func TestSubscribeNeedsWake(t *testing.T) {
	topic := testHub(t, Options{}).Register(testKey, Policy{})
	if _, err := topic.Subscribe(From{}, SubscriptionOptions{}); err == nil {
		t.Error("subscribed without a Wake function")
	}
}

func TestDeliveryAndWake(t *testing.T) {
	topic := testHub(t, Options{}).Register(testKey, noReplay(ring.DropNew, 0))
	s, wakes := subscribe(t, topic, From{})
	if s.Backlog() {
		t.Error("a live subscription has a backlog")
	}
	publishFrame(t, topic, frameIn(64, 33, 2, 1))
	publishFrame(t, topic, frameIn(4096, 1500, 1, 2))
	if *wakes != 1 {
		t.Errorf("%d wake-ups for a parked consumer, want 1", *wakes)
	}
	ds, _ := s.Take(nil, 1<<20)
	if len(ds) != 2 {
		t.Fatalf("took %d frames", len(ds))
	}
	checkBytes(t, ds[0].Frame, 33, 1)
	checkBytes(t, ds[1].Frame, 1500, 2)
	for _, d := range ds {
		d.Frame.Release()
	}
	publish(t, topic, 3)
	if *wakes != 1 {
		t.Error("a consumer that still takes was woken")
	}
	have, ended := drain(s)
	wantGot(t, have, got{3, 3, 0, 0})
	if ended {
		t.Error("ended")
	}
	publish(t, topic, 1)
	if *wakes != 2 {
		t.Error("a consumer that found nothing was not woken")
	}
	if s.Next() != 6 {
		t.Errorf("expects %d next, want 6", s.Next())
	}
	if n := s.Dropped(); n != 0 {
		t.Errorf("%d dropped", n)
	}
}

// A full ring leaves the active set; what it lost until it is half empty is the difference of sequence numbers.
func TestDropNewLeavesAndReturns(t *testing.T) {
	topic := testHub(t, Options{}).Register(testKey, noReplay(ring.DropNew, 4))
	s, _ := subscribe(t, topic, From{})
	healthy, _ := subscribe(t, topic, From{})
	for i := range 10 { // events 0-1, 2-3, … 18-19: the ring takes four frames
		publish(t, topic, 2)
		drain(healthy)
		if want := 2 - min(1, i/4); topic.Stats().Active != want {
			t.Fatalf("after %d frames %d subscriptions are active, want %d", i+1, topic.Stats().Active, want)
		}
	}
	if n := s.Dropped(); n != 12 {
		t.Errorf("%d events dropped, want 12", n)
	}
	have, _ := take(s, 1)
	wantGot(t, have, got{0, 2, 0, 0})
	if topic.Stats().Active != 1 {
		t.Error("active with three of four frames queued")
	}
	publish(t, topic, 5) // 20-24
	have, _ = take(s, 1)
	wantGot(t, have, got{2, 2, 0, 0})
	if topic.Stats().Active != 2 {
		t.Error("not active again when half empty")
	}
	if n := s.Dropped(); n != 17 {
		t.Errorf("%d events dropped, want 17", n)
	}
	publish(t, topic, 1) // 25
	have, _ = drain(s)
	wantGot(t, have, got{4, 2, 0, 0}, got{6, 2, 0, 0}, got{25, 1, 0, 17})
	publish(t, topic, 1)
	have, _ = drain(s)
	wantGot(t, have, got{26, 1, 0, 0})
	if n := s.Dropped(); n != 17 {
		t.Errorf("%d events dropped in the end, want 17", n)
	}
	if n := healthy.Dropped(); n != 0 {
		t.Errorf("%d events dropped next to a stalled subscription", n)
	}
}

// A ring that is half empty already stays where it is: it has no later moment at which it would return.
func TestDropNewLargeFrameDoesNotDetach(t *testing.T) {
	topic := testHub(t, Options{}).Register(testKey, Policy{QueueBytes: 4000, ReplayBytes: -1})
	s, _ := subscribe(t, topic, From{})
	publish(t, topic, 1)
	publishFrame(t, topic, frameIn(5000, 5000, 7, 0))
	if topic.Stats().Active != 1 {
		t.Fatal("left the active set")
	}
	publish(t, topic, 1)
	have, _ := drain(s)
	wantGot(t, have, got{0, 1, 0, 0}, got{8, 1, 0, 7})
	if n := s.Dropped(); n != 7 {
		t.Errorf("%d events dropped, want 7", n)
	}
}

func TestDroppedWhileOutCountsAtTheEnd(t *testing.T) {
	topic := testHub(t, Options{}).Register(testKey, noReplay(ring.DropNew, 2))
	s, _ := subscribe(t, topic, From{})
	for range 7 {
		publish(t, topic, 3)
	}
	s.End(EndClosed)
	publish(t, topic, 100) // nothing that it lost
	have, ended := drain(s)
	wantGot(t, have, got{0, 3, 0, 0}, got{3, 3, 0, 0}, got{21, 0, 0, 15}) // told, though nothing follows
	if !ended || s.Dropped() != 15 {
		t.Errorf("ended %t with %d dropped, want 15", ended, s.Dropped())
	}
}

func TestDropOldDropsTheOldest(t *testing.T) {
	topic := testHub(t, Options{}).Register(testKey, noReplay(ring.DropOld, 3))
	s, _ := subscribe(t, topic, From{})
	for range 5 { // 0-1, 2-3, 4-5, 6-7, 8-9
		publish(t, topic, 2)
	}
	if topic.Stats().Active != 1 || s.Dropped() != 4 {
		t.Errorf("%d active, %d dropped, want 1 and 4", topic.Stats().Active, s.Dropped())
	}
	have, _ := take(s, 1)
	wantGot(t, have, got{4, 2, 0, 4})
	publish(t, topic, 1) // 10
	publish(t, topic, 1) // 11 displaces 6-7
	have, _ = drain(s)
	wantGot(t, have, got{8, 2, 0, 2}, got{10, 1, 0, 0}, got{11, 1, 0, 0})
	if n := s.Dropped(); n != 6 {
		t.Errorf("%d dropped, want 6", n)
	}
}

// All subscriptions see one order, which is that of the sequence numbers that Publish returned.
func TestOrderUnderConcurrentPublishers(t *testing.T) {
	topic := testHub(t, Options{}).Register(testKey, Policy{QueueItems: 10_000, QueueBytes: 1 << 30, ReplayBytes: -1})
	var subs []*Subscription
	for range 3 {
		s, err := topic.Subscribe(From{}, SubscriptionOptions{Wake: func() {}})
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		subs = append(subs, s)
	}
	const publishers, each = 8, 200
	var mu sync.Mutex
	counts := map[uint64]int{}
	var wg sync.WaitGroup
	for p := range publishers {
		wg.Go(func() {
			last := -1
			for i := range each {
				f := frameIn(64, 64, 1+(p+i)%4, byte(p))
				first, err := topic.Publish(context.Background(), f, 0)
				f.Release()
				if err != nil || int(first) <= last {
					t.Errorf("publisher %d: %d after %d, %v", p, first, last, err)
				}
				last = int(first)
				mu.Lock()
				counts[first] = 1 + (p+i)%4
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	next := uint64(0)
	for range publishers * each {
		n := counts[next]
		if n == 0 {
			t.Fatalf("nobody published event %d as a first one", next)
		}
		next += uint64(n)
	}
	for i, s := range subs {
		have, _ := drain(s)
		if len(have) != publishers*each {
			t.Fatalf("subscription %d got %d frames, want %d", i, len(have), publishers*each)
		}
		for _, g := range have {
			if g.gap != 0 || g.skip != 0 || g.count != counts[g.first] {
				t.Fatalf("subscription %d got %+v, want %d events there", i, g, counts[g.first])
			}
		}
	}
}

func TestStartPositions(t *testing.T) {
	// Ten frames of three events, of which replay has the last four: events 18 to 29.
	topic := testHub(t, Options{}).Register(testKey, Policy{ReplayBytes: 4 * (64 + frameOverhead)})
	for range 10 {
		publish(t, topic, 3)
	}
	frames := func(from uint64) (out []got) {
		for ; from < 30; from += 3 {
			out = append(out, got{from, 3, 0, 0})
		}
		return out
	}
	at := func(n uint64) From { return From{At: true, Offset: n} }
	for _, tc := range []struct {
		name string
		from From
		want []got
		next uint64
		err  *CursorError
	}{
		{name: "latest", next: 30},
		{name: "earliest", from: From{Earliest: true}, want: frames(18), next: 18},
		{name: "oldest", from: at(18), want: frames(18), next: 18},
		{name: "first of a frame", from: at(24), want: frames(24), next: 24},
		{name: "middle of a frame", from: at(22), want: append([]got{{21, 3, 1, 0}}, frames(24)...), next: 22},
		{name: "last event", from: at(29), want: []got{{27, 3, 2, 0}}, next: 29},
		{name: "tail", from: at(30), next: 30},
		{name: "tail + 1", from: at(31), err: &CursorError{Requested: 31, Available: 30}},
		{name: "below the oldest", from: at(17), err: &CursorError{TooOld: true, Requested: 17, Available: 18}},
		{name: "zero", from: at(0), err: &CursorError{TooOld: true, Available: 18}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			wakes := 0
			s, err := topic.Subscribe(tc.from, SubscriptionOptions{Wake: func() { wakes++ }})
			if tc.err != nil {
				var ce *CursorError
				if !errors.As(err, &ce) || *ce != *tc.err {
					t.Fatalf("got %v, want %v", err, tc.err)
				}
				if n := topic.Stats().Subscriptions; n != 0 {
					t.Errorf("%d subscriptions after a refusal", n)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			defer s.Close()
			if s.Next() != tc.next || s.Backlog() != (len(tc.want) > 0) {
				t.Errorf("expects %d with backlog %t, want %d and %t", s.Next(), s.Backlog(), tc.next, len(tc.want) > 0)
			}
			have, _ := drain(s)
			wantGot(t, have, tc.want...)
			if wakes != 0 {
				t.Errorf("replay woke the consumer %d times", wakes)
			}
		})
	}
}

func TestStartPositionsOfAnEmptyTopic(t *testing.T) {
	topic := testHub(t, Options{}).Register(testKey, Policy{})
	for _, from := range []From{{}, {Earliest: true}, {At: true}} {
		s, _ := subscribe(t, topic, from)
		if s.Backlog() || s.Next() != 0 {
			t.Errorf("%+v: backlog %t, expects %d", from, s.Backlog(), s.Next())
		}
	}
	_, err := topic.Subscribe(From{At: true, Offset: 1}, SubscriptionOptions{Wake: func() {}})
	if ce := (*CursorError)(nil); !errors.As(err, &ce) || ce.TooOld || ce.Available != 0 {
		t.Errorf("offset 1: %v", err)
	}
}

func TestCursorErrorText(t *testing.T) {
	for _, tc := range []struct {
		err  CursorError
		want string
	}{
		{CursorError{true, 3, 9}, "fanout: start position 3 is too old: oldest is 9"},
		{CursorError{false, 9, 3}, "fanout: start position 9 is in the future: tail is 3"},
	} {
		if got := tc.err.Error(); got != tc.want {
			t.Errorf("got %q, want %q", got, tc.want)
		}
	}
}

// Replay and live meet without a hole and without a repeat, wherever the subscription is made.
func TestReplayThenLive(t *testing.T) {
	topic := testHub(t, Options{}).Register(testKey, Policy{})
	publish(t, topic, 2)
	publish(t, topic, 2)
	s, wakes := subscribe(t, topic, From{At: true, Offset: 1})
	publish(t, topic, 2)
	if *wakes != 0 {
		t.Error("woken although the consumer starts by itself for its backlog: there would be two")
	}
	have, _ := take(s, 1)
	wantGot(t, have, got{0, 2, 1, 0})
	publish(t, topic, 2)
	have, _ = take(s, 1<<20) // the rest of the replay fitted the queue, so it is live
	wantGot(t, have, got{2, 2, 0, 0}, got{4, 2, 0, 0}, got{6, 2, 0, 0})
	if *wakes != 0 {
		t.Error("woken before it found nothing")
	}
	have, ended := take(s, 1<<20)
	wantGot(t, have)
	publish(t, topic, 1)
	if ended || *wakes != 1 {
		t.Errorf("ended %t, %d wake-ups after it found nothing, want 1", ended, *wakes)
	}
}

// A subscription that ends before its consumer has started is seen by it: it starts by itself for the backlog.
func TestEndBeforeBacklogIsTaken(t *testing.T) {
	h := testHub(t, Options{})
	topic := h.Register(testKey, Policy{})
	publish(t, topic, 2)
	s, wakes := subscribe(t, topic, From{Earliest: true})
	h.Remove(testKey)
	if *wakes != 0 || !s.Backlog() {
		t.Errorf("%d wake-ups, backlog %t", *wakes, s.Backlog())
	}
	have, ended := drain(s)
	wantGot(t, have, got{0, 2, 0, 0})
	if !ended {
		t.Error("did not end")
	}
}

func TestEnd(t *testing.T) {
	for _, tc := range []struct {
		name string
		end  func(*Hub, *Subscription)
		want []EndReason
	}{
		{"closed", func(_ *Hub, s *Subscription) { s.End(EndClosed) }, nil},
		{"stalled", func(_ *Hub, s *Subscription) { s.End(EndStalled); s.End(EndRemoved) }, []EndReason{EndStalled}},
		{"removed", func(h *Hub, _ *Subscription) { h.Remove(testKey) }, []EndReason{EndRemoved}},
		{"hub closed", func(h *Hub, _ *Subscription) { h.Close() }, []EndReason{EndRemoved}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			h := testHub(t, Options{})
			topic := h.Register(testKey, Policy{})
			var reasons []EndReason
			wakes := 0
			o := SubscriptionOptions{Wake: func() { wakes++ }, OnEnd: func(r EndReason) { reasons = append(reasons, r) }}
			parked, err := topic.Subscribe(From{}, o)
			if err != nil {
				t.Fatal(err)
			}
			defer parked.Close()
			tc.end(h, parked)
			if have, ended := take(parked, 1); wakes != 1 || !ended || len(have) != 0 {
				t.Errorf("parked: %d wake-ups, then ended %t with %v", wakes, ended, have)
			}
			if !slices.Equal(reasons, tc.want) {
				t.Errorf("told %v, want %v", reasons, tc.want)
			}
		})
		t.Run(tc.name+" with frames queued", func(t *testing.T) {
			h := testHub(t, Options{})
			topic := h.Register(testKey, Policy{})
			s, wakes := subscribe(t, topic, From{})
			publish(t, topic, 2)
			tc.end(h, s)
			have, ended := take(s, 1)
			wantGot(t, have, got{0, 2, 0, 0})
			if *wakes != 1 || ended {
				t.Errorf("%d wake-ups, ended %t with the last frame", *wakes, ended)
			}
			if have, ended := take(s, 1); !ended || len(have) != 0 {
				t.Errorf("ended %t, %v", ended, have)
			}
			if n := topic.Stats().Subscriptions; n != 0 {
				t.Errorf("%d subscriptions", n)
			}
		})
	}
	if fmt.Sprint(EndClosed, EndRemoved, EndStalled, EndReason(9)) != "closed removed stalled unknown" {
		t.Error("wrong names")
	}
}

func TestClose(t *testing.T) {
	topic := testHub(t, Options{}).Register(testKey, Policy{})
	publish(t, topic, 2)
	ended := 0
	s, err := topic.Subscribe(From{Earliest: true}, SubscriptionOptions{Wake: func() {}, OnEnd: func(EndReason) { ended++ }})
	if err != nil {
		t.Fatal(err)
	}
	publish(t, topic, 1)
	s.Close()
	s.Close()
	s.End(EndRemoved)
	publish(t, topic, 1)
	if ended != 0 || s.QueuedBytes() != 0 || topic.Stats().Subscriptions != 0 {
		t.Errorf("told %d times, %d bytes queued, %d subscriptions", ended, s.QueuedBytes(), topic.Stats().Subscriptions)
	}
}

func TestFrameMisusePanics(t *testing.T) {
	for name, misuse := range map[string]func(*Frame){
		"release of a freed frame": (*Frame).Release,
		"retain of a freed frame":  (*Frame).Retain,
	} {
		t.Run(name, func(t *testing.T) {
			f := frameIn(64, 64, 1, 0)
			f.Release()
			defer func() {
				if got := recover(); got != "fanout: "+name {
					t.Errorf("recovered %v", got)
				}
			}()
			misuse(f)
		})
	}
}

// TestSetPolicy changes a topic under its subscriptions: replay follows at once, rings are as they were made.
func TestSetPolicy(t *testing.T) {
	h := testHub(t, Options{})
	topic := h.Register(testKey, Policy{Overflow: ring.DropNew, QueueItems: 1})
	subscribe := func() *Subscription {
		s, err := topic.Subscribe(From{}, SubscriptionOptions{Wake: func() {}})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(s.Close)
		return s
	}
	before := subscribe()
	publish(t, topic, 1)
	topic.SetPolicy(Policy{Overflow: ring.DropOld, QueueItems: 2, ReplayBytes: -1})
	if st := topic.Stats(); st.ReplayBytes != 0 {
		t.Errorf("%d bytes of replay are left", st.ReplayBytes)
	}
	after := subscribe()
	for range 3 {
		publish(t, topic, 1)
	}
	for _, c := range []struct {
		name string
		s    *Subscription
		want []uint64
	}{{"before", before, []uint64{0}}, {"after", after, []uint64{2, 3}}} {
		frames, _ := take(c.s, 1<<20)
		var got []uint64
		for _, f := range frames {
			if f.count > 0 { // otherwise it is a gap alone
				got = append(got, f.first)
			}
		}
		if !slices.Equal(got, c.want) {
			t.Errorf("made %s the change: got %v, want %v", c.name, got, c.want)
		}
	}
	topic.SetPolicy(Policy{})
	publish(t, topic, 1)
	if st := topic.Stats(); st.ReplayBytes == 0 {
		t.Error("no replay under the default policy")
	}
}

// TestSetPolicyUnderLoad changes the policy while events are published and subscriptions come and go. What is delivered
// is in order, and nothing is left over.
func TestSetPolicyUnderLoad(t *testing.T) {
	h := testHub(t, Options{})
	topic := h.Register(testKey, Policy{})
	policies := []Policy{
		{}, {Overflow: ring.DropOld, QueueItems: 3, ReplayBytes: -1}, {Overflow: ring.DropNew, QueueItems: 1, ReplayBytes: 300}, {ReplayBytes: 1 << 12},
	}
	const rounds = 500
	var wg sync.WaitGroup
	for range 2 {
		wg.Go(func() {
			for range rounds {
				publish(t, topic, 1)
			}
		})
	}
	wg.Go(func() {
		for i := range rounds {
			topic.SetPolicy(policies[i%len(policies)])
		}
	})
	for range 2 {
		wg.Go(func() {
			for range rounds / 10 {
				s, err := topic.Subscribe(From{Earliest: true}, SubscriptionOptions{Wake: func() {}})
				if err != nil {
					t.Error(err)
					return
				}
				next := s.Start()
				for range 10 {
					frames, _ := take(s, 1<<20)
					for _, f := range frames {
						if f.first < next {
							t.Errorf("got event %d, want %d or later", f.first, next)
						}
						next = f.first + uint64(f.count)
					}
				}
				s.Close()
			}
		})
	}
	wg.Wait()
}

// TestStatsTakeNoTurn reads the state of a hub while all of its topics are busy.
func TestStatsTakeNoTurn(t *testing.T) {
	h := testHub(t, Options{})
	topic := h.Register(testKey, Policy{})
	topic.mu.Lock()
	read := make(chan Stats)
	go func() { read <- h.Stats() }()
	select {
	case st := <-read:
		if st.Topics != 1 {
			t.Errorf("%d topics", st.Topics)
		}
	case <-time.After(20 * time.Second):
		t.Error("the state of a hub waits for the turn of a topic")
	}
	topic.mu.Unlock()
}

// TestCostOfSubscriptions charges what the consumer of each holds for as long as it lives, and refuses one for which
// there is no memory.
func TestCostOfSubscriptions(t *testing.T) {
	b := ledger.New(1 << 20)
	share := b.Share(0, 1000)
	h := testHub(t, Options{Budget: b, Share: func(string) *ledger.Share { return share }})
	topic := h.Register(testKey, Policy{ReplayBytes: -1})
	options := SubscriptionOptions{Wake: func() {}, Cost: 400}
	first, err := topic.Subscribe(From{}, options)
	if err != nil {
		t.Fatal(err)
	}
	second, err := topic.Subscribe(From{}, options)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := topic.Subscribe(From{}, options); !errors.Is(err, ErrMemory) {
		t.Errorf("beyond the maximum: %v", err)
	}
	if _, err := topic.Subscribe(From{At: true, Offset: 9}, SubscriptionOptions{Wake: func() {}, Cost: 100}); err == nil {
		t.Error("a start in the future")
	}
	if share.Used() != 800 {
		t.Errorf("%d charged for two", share.Used())
	}
	first.End(EndRemoved)
	if share.Used() != 800 {
		t.Errorf("%d charged while the consumer is there", share.Used())
	}
	first.Close()
	first.Close()
	second.Close()
	if share.Used() != 0 {
		t.Errorf("%d charged in the end", share.Used())
	}
	// The tenant may come again with the same share.
	h.Remove(testKey)
	if again := h.Register(testKey, Policy{}); again.tenant != topic.tenant {
		t.Error("one share belongs to two tenants")
	}
}
