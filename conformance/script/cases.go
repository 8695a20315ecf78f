package script

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"sync"

	"github.com/felix-mq/felix/codec"
)

// Client is what a case drives: one client, not connected yet. Adapters for other languages pass the calls on.
type Client interface {
	// Connect gets ready to work against the broker at addr. Any tenant and token will do.
	Connect(ctx context.Context, addr string, conf *tls.Config) error
	// Publish and PublishBatch return nil if the broker acknowledged, and an error if it refused or did not answer.
	Publish(ctx context.Context, namespace, stream string, payload []byte) error
	PublishBatch(ctx context.Context, namespace, stream string, payloads [][]byte) error
	// Subscribe returns when the subscription is established.
	Subscribe(ctx context.Context, namespace, stream string, start codec.Start) (Subscription, error)
	CachePut(ctx context.Context, namespace, cache, key string, value []byte) error
	CacheGet(ctx context.Context, namespace, cache, key string) (value []byte, hit bool, err error)
	Close() error
}

// Subscription is a subscription of a [Client]. One goroutine reads it.
type Subscription interface {
	// Next waits for the next event. It fails when the subscription is over.
	Next(ctx context.Context) (Event, error)
	Close() error
}

// Event is an event as a client reported it. Nobody changes the payload afterwards.
type Event struct {
	Payload   []byte
	Offset    uint64
	HasOffset bool
}

// Case is one check of a client.
type Case struct {
	ID    string // the case of session.md, section 15
	Title string

	// Run serves s, connects the client to it, drives both and says what the client did wrong. It wants a server and a
	// client of its own. The caller bounds it with ctx, and closes the client and the server afterwards: a client that
	// hangs is ended by ctx alone.
	Run func(ctx context.Context, s *Server, c Client) error
}

// Cases returns the checks of session.md, section 15, that take a scripted broker.
func Cases() []Case {
	return []Case{
		{"IC-17", "auth answered with a plain ok: JSON acknowledgements, start positions refused locally", legacyFallback},
		{"IC-32", "acknowledgements out of order: each publish gets its own result", acksOutOfOrder},
		{"IC-33", "an error acknowledgement, then further publishes: only the one fails", oneRefusal},
		{"IC-36", "hello and events before subscribed: nothing lost", eventsBeforeSubscribed},
		{"IC-36b", "hello and events behind subscribed: nothing lost", eventsAfterSubscribed},
		{"IC-41", "0x0022 and then 0x0024 on one stream: both decoded", replayThenLive},
		{"IC-44", "wrong subscription_id in a 0x0002 frame: an error, and the end of the subscription", wrongSubscriptionID},
		{"IC-legacy", "a whole session with a broker that negotiates nothing", legacySession},
	}
}

const (
	caseNamespace = "default"
	caseStream    = "demo"
	caseCache     = "primary"
)

// start serves a normal broker with the hook and connects the client to it.
func start(ctx context.Context, s *Server, c Client, n *Normal) error {
	s.Go(func() { n.Serve(s) })
	if err := c.Connect(ctx, s.Addr(), s.ClientTLS()); err != nil {
		return fmt.Errorf("connect: %w", err)
	}
	return nil
}

// expectEvents reads events and compares them with the payloads. base is the first one's offset; negative: they have none.
func expectEvents(ctx context.Context, sub Subscription, base int64, payloads ...string) error {
	for i, want := range payloads {
		ev, err := sub.Next(ctx)
		switch {
		case err != nil:
			return fmt.Errorf("event %d: %w", i, err)
		case string(ev.Payload) != want:
			return fmt.Errorf("event %d is %.40q, want %.40q", i, ev.Payload, want)
		case base < 0 && ev.HasOffset:
			return fmt.Errorf("event %d has the offset %d, want none", i, ev.Offset)
		case base >= 0 && (!ev.HasOffset || ev.Offset != uint64(base)+uint64(i)):
			return fmt.Errorf("event %d has the offset %d (present: %v), want %d", i, ev.Offset, ev.HasOffset, uint64(base)+uint64(i))
		}
	}
	return nil
}

// recorder keeps the requests that a hook saw.
type recorder struct {
	mu   sync.Mutex
	seen []*Request
}

func (rec *recorder) add(r *Request) {
	rec.mu.Lock()
	defer rec.mu.Unlock()
	rec.seen = append(rec.seen, r)
}

func (rec *recorder) all() []*Request {
	rec.mu.Lock()
	defer rec.mu.Unlock()
	return append([]*Request(nil), rec.seen...)
}

func legacyFallback(ctx context.Context, s *Server, c Client) error {
	var rec recorder
	n := NewNormal()
	n.Legacy = true
	n.Hook = func(_ *Conn, _ *Control, r *Request) (bool, error) {
		rec.add(r)
		return false, nil
	}
	if err := start(ctx, s, c, n); err != nil {
		return err
	}
	if err := c.Publish(ctx, caseNamespace, caseStream, []byte("one")); err != nil {
		return fmt.Errorf("publish: %w", err)
	}
	if err := c.PublishBatch(ctx, caseNamespace, caseStream, [][]byte{[]byte("two"), {}}); err != nil {
		return fmt.Errorf("publish batch: %w", err)
	}
	for _, start := range []codec.Start{{Kind: codec.StartEarliest}, {Kind: codec.StartOffset, Offset: 1}} {
		if sub, err := c.Subscribe(ctx, caseNamespace, caseStream, start); err == nil {
			_ = sub.Close()
			return errors.New("a subscribe with a start position succeeded although the broker knows none")
		} else if ctx.Err() != nil {
			return fmt.Errorf("a subscribe with a start position was not refused at once: %w", err)
		}
	}
	for _, r := range rec.all() {
		if r.Flags == codec.LayoutPublishAcked {
			return errors.New("0x0009 sent to a broker that did not advertise 0x0008")
		}
		if r.Type == codec.MsgSubscribe {
			return errors.New("a start position was sent to a broker that did not advertise 0x0020")
		}
	}
	return nil
}

// acksOutOfOrder holds a number of publishes back until all are there, and answers the last one first.
func acksOutOfOrder(ctx context.Context, s *Server, c Client) error {
	const publishes = 8
	var mu sync.Mutex
	waiting := make(map[*Control][]*Request)
	n := NewNormal()
	count := 0
	n.Hook = func(_ *Conn, ctl *Control, r *Request) (bool, error) {
		if r.Type != codec.MsgPublish && r.Type != codec.MsgPublishBatch {
			return false, nil
		}
		mu.Lock()
		defer mu.Unlock()
		waiting[ctl] = append(waiting[ctl], r)
		if count++; count < publishes {
			return true, nil
		}
		for ctl, requests := range waiting {
			for i := range requests {
				r := requests[len(requests)-1-i]
				text := ""
				if (r.Payload()[0]-'a')%2 == 1 {
					text = "refused " + r.Payload()
				}
				if err := ctl.Ack(r, text); err != nil {
					return true, err
				}
			}
		}
		return true, nil
	}
	if err := start(ctx, s, c, n); err != nil {
		return err
	}
	results := make([]error, publishes)
	var wg sync.WaitGroup
	for i := range publishes {
		wg.Go(func() {
			results[i] = c.Publish(ctx, caseNamespace, caseStream, []byte{'a' + byte(i)})
		})
	}
	wg.Wait()
	mu.Lock()
	defer mu.Unlock()
	if count < publishes {
		return fmt.Errorf("%d of %d publishes were sent: the client waits for each reply", count, publishes)
	}
	for i, err := range results {
		if i%2 == 0 && err != nil {
			return fmt.Errorf("publish %d was acknowledged, and failed: %w", i, err)
		}
		if i%2 == 1 && err == nil {
			return fmt.Errorf("publish %d was refused, and succeeded", i)
		}
	}
	return nil
}

func oneRefusal(ctx context.Context, s *Server, c Client) error {
	n := NewNormal()
	n.Hook = func(_ *Conn, ctl *Control, r *Request) (bool, error) {
		if r.Payload() != "refuse" {
			return false, nil
		}
		return true, ctl.Ack(r, "publish queue full")
	}
	if err := start(ctx, s, c, n); err != nil {
		return err
	}
	for round := range 3 {
		if err := c.Publish(ctx, caseNamespace, caseStream, []byte("refuse")); err == nil {
			return errors.New("a refused publish succeeded")
		}
		for _, stream := range []string{caseStream, "another", "a third"} {
			if err := c.Publish(ctx, caseNamespace, stream, []byte("accept")); err != nil {
				return fmt.Errorf("round %d: a publish to %q behind a refused one: %w", round, stream, err)
			}
		}
	}
	return nil
}

// longPayload is more than a packet, so that the write of its frame ends when the frame is on its way.
func longPayload(fill byte) []byte {
	b := make([]byte, 4000)
	for i := range b {
		b[i] = fill
	}
	return b
}

// subscribeScript answers each subscribe with answer, which opens the event stream and sends subscribed itself.
func subscribeScript(answer func(c *Conn, ctl *Control) error) *Normal {
	n := NewNormal()
	n.Hook = func(c *Conn, ctl *Control, r *Request) (bool, error) {
		if r.Type != codec.MsgSubscribe {
			return false, nil
		}
		if err := answer(c, ctl); err != nil {
			return true, err
		}
		ctl.Finish()
		return true, nil
	}
	return n
}

// bigID is close to the end of what an id can be.
const bigID = 1<<64 - 2

func eventsBeforeSubscribed(ctx context.Context, s *Server, c Client) error {
	return eventsAround(ctx, s, c, true)
}

func eventsAfterSubscribed(ctx context.Context, s *Server, c Client) error {
	return eventsAround(ctx, s, c, false)
}

func eventsAround(ctx context.Context, s *Server, c Client, before bool) error {
	events := func(c *Conn) error {
		e, err := c.OpenEvents(bigID)
		if err != nil {
			return err
		}
		for _, fill := range []byte("xyz") {
			if err := e.Send(codec.AppendEventBatch(nil, codec.LayoutShared, 0, 0, [][]byte{longPayload(fill)})); err != nil {
				return err
			}
		}
		return nil
	}
	n := subscribeScript(func(c *Conn, ctl *Control) error {
		if before {
			if err := events(c); err != nil {
				return err
			}
		}
		if err := ctl.Send(codec.AppendSubscribed(nil, bigID)); err != nil || before {
			return err
		}
		return events(c)
	})
	return withSubscription(ctx, s, c, n, func(sub Subscription) error {
		return expectEvents(ctx, sub, -1, string(longPayload('x')), string(longPayload('y')), string(longPayload('z')))
	})
}

// withSubscription starts, subscribes, and calls f.
func withSubscription(ctx context.Context, s *Server, c Client, n *Normal, f func(Subscription) error) error {
	if err := start(ctx, s, c, n); err != nil {
		return err
	}
	sub, err := c.Subscribe(ctx, caseNamespace, caseStream, codec.Start{})
	if err != nil {
		return fmt.Errorf("subscribe: %w", err)
	}
	return errors.Join(f(sub), sub.Close())
}

func replayThenLive(ctx context.Context, s *Server, c Client) error {
	const id, base = 5, 1 << 40
	n := subscribeScript(func(c *Conn, ctl *Control) error {
		if err := ctl.Send(codec.AppendSubscribed(nil, id)); err != nil {
			return err
		}
		e, err := c.OpenEvents(id)
		if err != nil {
			return err
		}
		frames := codec.AppendEventBatch(nil, codec.LayoutEventOffsets, id, base, [][]byte{[]byte("a"), {}})
		frames = codec.AppendEventBatch(frames, codec.LayoutSharedOffsets, 0, base+2, [][]byte{[]byte("c")})
		frames = codec.AppendEventBatch(frames, codec.LayoutEventOffsets, id, base+3, [][]byte{[]byte("d")})
		return e.Send(codec.AppendEventBatch(frames, codec.LayoutSharedOffsets, 0, base+4, [][]byte{[]byte("e")}))
	})
	return withSubscription(ctx, s, c, n, func(sub Subscription) error {
		return expectEvents(ctx, sub, base, "a", "", "c", "d", "e")
	})
}

func wrongSubscriptionID(ctx context.Context, s *Server, c Client) error {
	const id = 5
	n := subscribeScript(func(c *Conn, ctl *Control) error {
		if err := ctl.Send(codec.AppendSubscribed(nil, id)); err != nil {
			return err
		}
		e, err := c.OpenEvents(id)
		if err != nil {
			return err
		}
		frames := codec.AppendEventBatch(nil, codec.LayoutEvent, id, 0, [][]byte{[]byte("right")})
		frames = codec.AppendEventBatch(frames, codec.LayoutEvent, id+1, 0, [][]byte{[]byte("wrong")})
		return e.Send(codec.AppendEventBatch(frames, codec.LayoutEvent, id, 0, [][]byte{[]byte("behind")}))
	})
	return withSubscription(ctx, s, c, n, func(sub Subscription) error {
		if err := expectEvents(ctx, sub, -1, "right"); err != nil {
			return err
		}
		for range 2 {
			if ev, err := sub.Next(ctx); err == nil {
				return fmt.Errorf("the event %.40q was delivered, want an error that stays", ev.Payload)
			} else if ctx.Err() != nil {
				return errors.New("a frame for another subscription did not end this one")
			}
		}
		return nil
	})
}

func legacySession(ctx context.Context, s *Server, c Client) error {
	n := NewNormal()
	n.Legacy = true
	return withSubscription(ctx, s, c, n, func(sub Subscription) error {
		if err := c.Publish(ctx, caseNamespace, caseStream, []byte("one")); err != nil {
			return fmt.Errorf("publish: %w", err)
		}
		if err := c.PublishBatch(ctx, caseNamespace, caseStream, [][]byte{[]byte("two"), {}, []byte("four")}); err != nil {
			return fmt.Errorf("publish batch: %w", err)
		}
		if err := expectEvents(ctx, sub, -1, "one", "two", "", "four"); err != nil {
			return err
		}
		return legacyCache(ctx, c)
	})
}

func legacyCache(ctx context.Context, c Client) error {
	_, hit, err := c.CacheGet(ctx, caseNamespace, caseCache, "key")
	if err != nil {
		return fmt.Errorf("cache get before the put: %w", err)
	}
	if hit {
		return errors.New("cache get before the put: a hit")
	}
	for _, want := range []string{"value", ""} {
		if err := c.CachePut(ctx, caseNamespace, caseCache, "key", []byte(want)); err != nil {
			return fmt.Errorf("cache put: %w", err)
		}
		value, hit, err := c.CacheGet(ctx, caseNamespace, caseCache, "key")
		if err != nil {
			return fmt.Errorf("cache get: %w", err)
		}
		if !hit || string(value) != want {
			return fmt.Errorf("cache get: %q (hit: %v), want %q", value, hit, want)
		}
	}
	return nil
}
