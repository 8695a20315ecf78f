package script

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/felix-mq/felix/codec"
)

// Failure is what a client did wrong.
type Failure struct{ Expected, Seen string }

// String returns both in one line.
func (f *Failure) String() string { return "expected " + f.Expected + ", saw " + f.Seen }

// trial is a case under way: the broker n that is scripted, on the server s, and the client c that is judged. The
// client may use a connection for everything or one for each call. Methods that find it wrong end the case: they panic
// with a *Failure, which attempt catches. They belong to the goroutine of the case; hooks of the broker report by what
// they send.
type trial struct {
	ctx  context.Context
	s    *Server
	n    *Normal
	c    Client
	subs []Subscription
}

const (
	caseNamespace = "default"
	caseStream    = "demo"
	caseCache     = "primary"

	// victim is the payload, the key or the stream of the request that gets an odd answer, where others are served as
	// ever.
	victim = "victim"

	// patience is the time limit of calls that nothing but a time limit ends.
	patience = 300 * time.Millisecond
	// lateness is how long a script holds something back where only time will do.
	lateness = 100 * time.Millisecond
)

// attempt runs f and returns how it failed, or nil.
func (t *trial) attempt(f func()) (failure *Failure) {
	defer func() {
		switch r := recover().(type) {
		case nil:
		case *Failure:
			failure = r
		default:
			panic(r)
		}
	}()
	f()
	return nil
}

func (t *trial) fail(expected, seen string) { panic(&Failure{expected, seen}) }

// connect serves the broker and connects the client to it.
func (t *trial) connect() {
	t.s.Go(func() { t.n.Serve(t.s) })
	t.ok("connect", t.c.Connect(t.ctx, t.s.Endpoint()))
}

// ok wants a call to have succeeded.
func (t *trial) ok(what string, err error) {
	if err == nil {
		return
	}
	seen := err.Error()
	if t.ctx.Err() != nil {
		seen = "no end of it in time: " + seen
	}
	t.fail(what+" succeeds", seen)
}

// refused wants a call to have failed, and not because the time of the case is up.
func (t *trial) refused(what string, err error) {
	switch {
	case err == nil:
		t.fail(what+" fails", "success")
	case t.ctx.Err() != nil:
		t.fail(what+" fails", "no end of it in time")
	}
}

// begin makes a call that goes on while the case does.
func (t *trial) begin(call func(context.Context) error) <-chan error {
	done := make(chan error, 1)
	t.s.Go(func() { done <- call(t.ctx) })
	return done
}

// end waits for such a call.
func (t *trial) end(what string, done <-chan error) error {
	select {
	case err := <-done:
		return err
	case <-t.ctx.Done():
		t.fail("an end of "+what, "no end of it in time")
		return nil
	}
}

// runsOut makes a call that nobody answers, and wants its time limit to end it.
func (t *trial) runsOut(what string, call func(context.Context) error) {
	t.refused(what+", which gets no answer and has a time limit,", t.end(what, t.begin(func(ctx context.Context) error {
		ctx, cancel := context.WithTimeout(ctx, patience)
		defer cancel()
		return call(ctx)
	})))
}

// wait waits for something that the script does when the client has done its part.
func (t *trial) wait(expected string, done <-chan struct{}) {
	select {
	case <-done:
	case <-t.ctx.Done():
		t.fail(expected, "nothing of the kind in time")
	}
}

func (t *trial) publish(payload string) error {
	return t.c.Publish(t.ctx, caseNamespace, caseStream, []byte(payload))
}

// get returns the value as text, or "miss".
func (t *trial) get(ctx context.Context, key string) (string, error) {
	value, hit, err := t.c.CacheGet(ctx, caseNamespace, caseCache, key)
	switch {
	case err != nil:
		return "", err
	case !hit:
		return "miss", nil
	}
	return fmt.Sprintf("value %q", value), nil
}

// cached wants a key to have a value, or "miss".
func (t *trial) cached(key, want string) {
	got, err := t.get(t.ctx, key)
	t.ok("cache get", err)
	if got != want {
		t.fail("cache get: "+want, got)
	}
}

func (t *trial) put(key, value string) {
	t.ok("cache put", t.c.CachePut(t.ctx, caseNamespace, caseCache, key, []byte(value)))
}

// subscribe makes a subscription that ends with the case.
func (t *trial) subscribe(stream string) Subscription {
	sub, err := t.trySubscribe(t.ctx, stream, codec.Start{})
	t.ok("subscribe", err)
	return sub
}

func (t *trial) trySubscribe(ctx context.Context, stream string, start codec.Start) (Subscription, error) {
	sub, err := t.c.Subscribe(ctx, caseNamespace, stream, start)
	if err != nil {
		return nil, err
	}
	t.subs = append(t.subs, sub)
	return sub, nil
}

func (t *trial) close(sub Subscription) {
	t.subs = slices.DeleteFunc(t.subs, func(s Subscription) bool { return s == sub })
	t.ok("closing a subscription", sub.Close())
}

func (t *trial) closeSubscriptions() {
	for len(t.subs) > 0 {
		t.close(t.subs[0])
	}
}

func eventText(payload []byte) string {
	const most = 40
	if len(payload) <= most {
		return fmt.Sprintf("the event %q", payload)
	}
	return fmt.Sprintf("the event %q and more, %d bytes", payload[:most], len(payload))
}

// noOffsets stands for the offset of the first of some events that have none.
const noOffsets = -1

// events wants the next events to be those, the first with the offset base and the others counting up from there.
func (t *trial) events(sub Subscription, base int64, payloads ...string) {
	for i, want := range payloads {
		ev, err := sub.Next(t.ctx)
		if err != nil {
			t.fail(eventText([]byte(want)), err.Error())
		}
		seen := eventText(ev.Payload)
		if string(ev.Payload) != want {
			t.fail(eventText([]byte(want)), seen)
		}
		if base < 0 {
			if ev.HasOffset {
				t.fail(seen+" without an offset", fmt.Sprintf("offset %d", ev.Offset))
			}
			continue
		}
		offset := uint64(base) + uint64(i)
		if !ev.HasOffset || ev.Offset != offset {
			t.fail(fmt.Sprintf("%s with offset %d", seen, offset), fmt.Sprintf("offset %d (present: %v)", ev.Offset, ev.HasOffset))
		}
	}
}

// over wants a subscription to be over: finished in good order, or lost. Failures have to stay.
func (t *trial) over(sub Subscription, finished bool) {
	expected := "an error that is not the end of the subscription"
	if finished {
		expected = "the end of the subscription"
	}
	for range 2 {
		ev, err := sub.Next(t.ctx)
		switch {
		case err == nil:
			t.fail(expected, eventText(ev.Payload))
		case t.ctx.Err() != nil:
			t.fail(expected, "nothing in time")
		case errors.Is(err, ErrEnded) != finished:
			t.fail(expected, err.Error())
		}
	}
}

// works wants every kind of call to succeed. sub is a subscription of the case's stream that was there before, or nil.
func (t *trial) works(sub Subscription) {
	t.delivers(sub)
	t.put("key", "value")
	t.cached("key", `value "value"`)
}

// delivers wants publishes and subscriptions to work, as works does.
func (t *trial) delivers(sub Subscription) {
	t.ok("a publish afterwards", t.publish("still here"))
	if sub != nil {
		ev, err := sub.Next(t.ctx)
		t.ok("the subscription that was there before: the next event", err)
		if string(ev.Payload) != "still here" {
			t.fail(`the event "still here" on the subscription that was there before`, eventText(ev.Payload))
		}
	}
	again := t.subscribe(caseStream)
	t.ok("a publish to a new subscription", t.publish("for the new one"))
	ev, err := again.Next(t.ctx)
	t.ok("the new subscription: the next event", err)
	if string(ev.Payload) != "for the new one" {
		t.fail(`the event "for the new one"`, eventText(ev.Payload))
	}
	if sub != nil {
		_, err := sub.Next(t.ctx)
		t.ok("the older subscription: the next event", err)
	}
}

// isVictim reports whether a request is the one that gets an odd answer.
func isVictim(r *Request) bool {
	switch r.Type {
	case codec.MsgPublish, codec.MsgPublishBatch:
		return r.Payload() == victim
	case codec.MsgCacheGet, codec.MsgCachePut:
		return r.Key == victim
	case codec.MsgSubscribe:
		return r.Stream == victim
	default:
		return false
	}
}

// onVictim makes the script answer the victim itself. The rest of a subscribe's stream is left to it.
func (t *trial) onVictim(answer func(c *Conn, ctl *Control, r *Request) error) {
	t.n.Hook = func(c *Conn, ctl *Control, r *Request) (bool, error) {
		if !isVictim(r) {
			return false, nil
		}
		return true, answer(c, ctl, r)
	}
}

// subscribeID is the id of subscriptions that a script answers itself.
const subscribeID = 1 << 40

// onSubscribe lets the script send the events of the victim, after a good answer.
func (t *trial) onSubscribe(script func(*Events) error) {
	t.onVictim(func(c *Conn, ctl *Control, _ *Request) error {
		if err := ctl.Send(codec.AppendSubscribed(nil, subscribeID)); err != nil {
			return err
		}
		ctl.Finish()
		e, err := c.OpenEvents(subscribeID)
		if err != nil {
			return err
		}
		return script(e)
	})
}

// sharedEvents is an event frame without offsets.
func sharedEvents(payloads ...string) []byte {
	items := make([][]byte, len(payloads))
	for i, p := range payloads {
		items[i] = []byte(p)
	}
	return codec.AppendEventBatch(nil, codec.LayoutShared, 0, 0, items)
}
