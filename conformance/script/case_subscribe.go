package script

import (
	"context"
	"fmt"
	"time"

	"github.com/felix-mq/felix/codec"
)

// subscribeCases are about event streams.
func subscribeCases() []Case {
	return []Case{
		{"IC-36", "hello and events before subscribed: nothing lost", func(t *trial) { eventsAround(t, true) }},
		{"IC-36b", "hello and events after subscribed: nothing lost", func(t *trial) { eventsAround(t, false) }},
		{"IC-41", "0x0022 and then 0x0024 on one stream: both decoded", replayThenLive},
		{"RAW-44", "wrong subscription_id in a 0x0002 frame: an error, and the end of the subscription", wrongSubscriptionID},
		{"IC-42", "start at earliest, at an offset, and beyond the tail", startPositions},
		{"IC-46", "one of three subscriptions is closed: the others go on", closeOne},
		{"C7-01", "FIN after an event frame: the end of the subscription, with nothing lost", finBehindFrame},
		{"C7-02", "FIN inside an event frame: an error", func(t *trial) {
			loseEvents(t, func(e *Events) error {
				frame := sharedEvents("never whole")
				err := e.Send(frame[:len(frame)-1])
				e.Finish()
				return err
			})
		}},
		{"CD29", "FIN inside the header of an event frame: an error", func(t *trial) {
			loseEvents(t, func(e *Events) error {
				err := e.Send(sharedEvents("never whole")[:codec.HeaderLen-1])
				e.Finish()
				return err
			})
		}},
		{"C7-03", "RESET of an event stream: an error", func(t *trial) {
			loseEvents(t, func(e *Events) error {
				e.Reset()
				return nil
			})
		}},
		{"CD32", "event frames with flags that mean nothing there: an error", func(t *trial) {
			loseEvents(t, func(e *Events) error {
				return e.Send(codec.AppendPublishBatch(nil, "t1", caseNamespace, caseStream, [][]byte{[]byte("no event")}))
			})
		}},
		{"CD33a", "an event frame that is too large: an error", func(t *trial) {
			loseEvents(t, func(e *Events) error { return e.Send(codec.AppendHeader(nil, codec.LayoutShared, 1<<30)) })
		}},
		{"CD33b", "an event frame with the wrong magic: an error", func(t *trial) {
			loseEvents(t, func(e *Events) error {
				frame := sharedEvents("x")
				frame[0]++
				return e.Send(frame)
			})
		}},
		{"CD33c", "an event frame whose items do not fit: an error", func(t *trial) {
			loseEvents(t, func(e *Events) error {
				return e.Send(append(codec.AppendHeader(nil, codec.LayoutShared, 8), 0, 0, 0, 1, 0, 0, 1, 0))
			})
		}},
		{"C7-04", "a refused subscribe: only that fails", refusedSubscribe},
		{"C7-05", "an event stream that nobody asked for: no harm", strangeStream},
		{"CD26e", "an incomplete hello on another stream does not hold up a complete one", incompleteHello},
		{"CD26f", "an event stream whose first frame is no hello is dropped, and the subscribe ends with its time limit", noHello},
		{"CD26g", "no event stream at all: the subscribe ends with its time limit", func(t *trial) {
			t.onVictim(func(_ *Conn, ctl *Control, _ *Request) error {
				defer ctl.Finish()
				return ctl.Send(codec.AppendSubscribed(nil, subscribeID))
			})
			subscribeRunsOut(t)
		}},
		{"CD25", "a reader that is slow: nothing lost", slowReader},
		{"CD27", "closing a subscription stops its stream at once", closeStops},
		{"C12-03", "empty event frames: no event", emptyFrames},
		{"C12-04", "events in JSON, also with a null offset", jsonEvents},
	}
}

// longPayload is more than a packet, so that the write of its frame ends when the frame is on its way.
func longPayload(fill byte) string {
	b := make([]byte, 4000)
	for i := range b {
		b[i] = fill
	}
	return string(b)
}

// eventsAround sends an id close to the end of what one can be, too.
func eventsAround(t *trial, before bool) {
	const bigID = 1<<64 - 2
	events := func(c *Conn) error {
		e, err := c.OpenEvents(bigID)
		if err != nil {
			return err
		}
		for _, fill := range []byte("xyz") {
			if err := e.Send(sharedEvents(longPayload(fill))); err != nil {
				return err
			}
		}
		return nil
	}
	t.onVictim(func(c *Conn, ctl *Control, _ *Request) error {
		defer ctl.Finish()
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
	t.connect()
	t.events(t.subscribe(victim), noOffsets, longPayload('x'), longPayload('y'), longPayload('z'))
}

func replayThenLive(t *trial) {
	const base = 1 << 40
	t.onSubscribe(func(e *Events) error {
		frames := codec.AppendEventBatch(nil, codec.LayoutEventOffsets, subscribeID, base, [][]byte{[]byte("a"), {}})
		frames = codec.AppendEventBatch(frames, codec.LayoutSharedOffsets, 0, base+2, [][]byte{[]byte("c")})
		frames = codec.AppendEventBatch(frames, codec.LayoutEventOffsets, subscribeID, base+3, [][]byte{[]byte("d")})
		return e.Send(codec.AppendEventBatch(frames, codec.LayoutSharedOffsets, 0, base+4, [][]byte{[]byte("e")}))
	})
	t.connect()
	t.events(t.subscribe(victim), base, "a", "", "c", "d", "e")
}

func wrongSubscriptionID(t *trial) {
	t.onSubscribe(func(e *Events) error {
		frames := codec.AppendEventBatch(nil, codec.LayoutEvent, subscribeID, 0, [][]byte{[]byte("right")})
		frames = codec.AppendEventBatch(frames, codec.LayoutEvent, subscribeID+1, 0, [][]byte{[]byte("wrong")})
		return e.Send(codec.AppendEventBatch(frames, codec.LayoutEvent, subscribeID, 0, [][]byte{[]byte("after")}))
	})
	t.connect()
	sub := t.subscribe(victim)
	t.events(sub, noOffsets, "right")
	t.over(sub, false)
	t.works(nil)
}

func startPositions(t *trial) {
	t.connect()
	for _, payload := range []string{"zero", "one", "two"} {
		t.ok("publish", t.publish(payload))
	}
	at := func(start codec.Start) Subscription {
		sub, err := t.trySubscribe(t.ctx, caseStream, start)
		t.ok("a subscribe with a start position", err)
		return sub
	}
	t.events(at(codec.Start{Kind: codec.StartEarliest}), 0, "zero", "one", "two")
	sub := at(codec.Start{Kind: codec.StartOffset, Offset: 1})
	t.events(sub, 1, "one", "two")
	_, err := t.trySubscribe(t.ctx, caseStream, codec.Start{Kind: codec.StartOffset, Offset: 9})
	t.refused("a subscribe that starts beyond the tail", err)
	t.ok("publish", t.publish("three"))
	t.events(sub, 3, "three")
}

func closeOne(t *trial) {
	t.connect()
	subs := []Subscription{t.subscribe(caseStream), t.subscribe(caseStream), t.subscribe(caseStream)}
	t.ok("publish", t.publish("to all"))
	for _, sub := range subs {
		t.events(sub, 0, "to all")
	}
	t.close(subs[1])
	for i := range 5 {
		payload := fmt.Sprint(i)
		t.ok("publish", t.publish(payload))
		t.events(subs[0], int64(1+i), payload)
		t.events(subs[2], int64(1+i), payload)
	}
}

func finBehindFrame(t *trial) {
	t.onSubscribe(func(e *Events) error {
		defer e.Finish()
		return e.Send(sharedEvents("one", "two"))
	})
	t.connect()
	sub := t.subscribe(victim)
	t.events(sub, noOffsets, "one", "two")
	t.over(sub, true)
	t.works(nil)
}

// loseEvents sends an event, waits until it was read, and ends the subscription in an odd way.
func loseEvents(t *trial, end func(*Events) error) {
	read := make(chan struct{})
	t.onSubscribe(func(e *Events) error {
		if err := e.Send(sharedEvents("before")); err != nil {
			return err
		}
		select {
		case <-read:
			return end(e)
		case <-e.Done():
			return nil
		}
	})
	t.connect()
	other := t.subscribe(caseStream)
	sub := t.subscribe(victim)
	t.events(sub, noOffsets, "before")
	close(read)
	t.over(sub, false)
	t.works(other)
}

func refusedSubscribe(t *trial) {
	refusals := [][]byte{
		codec.AppendError(nil, "stream not found: tenant=t1 namespace=default stream=victim"),
		codec.AppendSubscribeCursorError(nil, codec.CursorTooOld, 3, 7),
		codec.AppendSubscribeCursorError(nil, codec.CursorInFuture, 9, 7),
	}
	next := make(chan []byte, 1)
	t.onVictim(func(_ *Conn, ctl *Control, _ *Request) error {
		defer ctl.End()
		return ctl.Send(<-next)
	})
	t.connect()
	sub := t.subscribe(caseStream)
	for _, refusal := range refusals {
		next <- refusal
		_, err := t.trySubscribe(t.ctx, victim, codec.Start{})
		t.refused("a refused subscribe", err)
	}
	t.works(sub)
}

func strangeStream(t *trial) {
	t.onVictim(func(c *Conn, ctl *Control, _ *Request) error {
		defer ctl.Finish()
		strange, err := c.OpenEvents(subscribeID + 1)
		if err != nil {
			return err
		}
		if err := strange.Send(sharedEvents("for nobody")); err != nil {
			return err
		}
		e, err := c.OpenEvents(subscribeID)
		if err != nil {
			return err
		}
		if err := ctl.Send(codec.AppendSubscribed(nil, subscribeID)); err != nil {
			return err
		}
		return e.Send(sharedEvents("one"))
	})
	t.connect()
	t.events(t.subscribe(victim), noOffsets, "one")
	t.works(nil)
}

func incompleteHello(t *trial) {
	t.onVictim(func(c *Conn, ctl *Control, _ *Request) error {
		defer ctl.Finish()
		half, err := c.OpenBare()
		if err != nil {
			return err
		}
		hello := codec.AppendEventStreamHello(nil, subscribeID+1)
		if err := half.Send(hello[:len(hello)/2]); err != nil {
			return err
		}
		if err := ctl.Send(codec.AppendSubscribed(nil, subscribeID)); err != nil {
			return err
		}
		e, err := c.OpenEvents(subscribeID)
		if err != nil {
			return err
		}
		return e.Send(sharedEvents("one"))
	})
	t.connect()
	t.events(t.subscribe(victim), noOffsets, "one")
	t.works(nil)
}

func noHello(t *trial) {
	dropped := make(chan struct{})
	t.onVictim(func(c *Conn, ctl *Control, _ *Request) error {
		defer ctl.Finish()
		if err := ctl.Send(codec.AppendSubscribed(nil, subscribeID)); err != nil {
			return err
		}
		e, err := c.OpenBare()
		if err != nil {
			return err
		}
		if err := e.Send(sharedEvents("no hello")); err != nil {
			return err
		}
		t.s.Go(func() {
			<-e.Done()
			close(dropped)
		})
		return nil
	})
	subscribeRunsOut(t)
	t.wait("STOP_SENDING for the stream without a hello", dropped)
}

// subscribeRunsOut wants the victim to end with its time limit, and everything else to work.
func subscribeRunsOut(t *trial) {
	t.connect()
	sub := t.subscribe(caseStream)
	t.runsOut("a subscribe", func(ctx context.Context) error {
		_, err := t.trySubscribe(ctx, victim, codec.Start{})
		return err
	})
	t.works(sub)
}

// slowReader sends more than the queues of a client that drops events would take, before anybody reads.
func slowReader(t *trial) {
	const frames = 1000
	payload := func(i int) string { return fmt.Sprintf("%01000d", i) }
	sent := make(chan struct{})
	t.onSubscribe(func(e *Events) error {
		for i := range frames {
			if err := e.Send(sharedEvents(payload(i))); err != nil {
				return err
			}
		}
		close(sent)
		return nil
	})
	t.connect()
	sub := t.subscribe(victim)
	timer := time.NewTimer(lateness)
	defer timer.Stop()
	select {
	case <-sent:
	case <-timer.C: // flow control holds the rest back, which is as it should be
	}
	for i := range frames {
		t.events(sub, noOffsets, payload(i))
	}
}

func closeStops(t *trial) {
	stopped := make(chan struct{})
	t.onSubscribe(func(e *Events) error {
		t.s.Go(func() {
			<-e.Done()
			close(stopped)
		})
		return nil
	})
	t.connect()
	sub := t.subscribe(victim)
	t.close(sub)
	t.wait("STOP_SENDING for the event stream", stopped)
	t.works(nil)
}

func emptyFrames(t *trial) {
	t.onSubscribe(func(e *Events) error {
		frames := sharedEvents()
		frames = append(frames, sharedEvents("one")...)
		frames = codec.AppendEventBatch(frames, codec.LayoutEvent, subscribeID, 0, nil)
		frames = append(frames, codec.AppendEventBatchJSON(nil, "t1", caseNamespace, victim, nil, 0, false)...)
		return e.Send(append(frames, sharedEvents("two")...))
	})
	t.connect()
	t.events(t.subscribe(victim), noOffsets, "one", "two")
}

func jsonEvents(t *trial) {
	const null = `{"type":"event","tenant_id":"t1","namespace":"default","stream":"victim","payload":"b25l","offset":null}`
	t.onSubscribe(func(e *Events) error {
		frames := append(codec.AppendHeader(nil, codec.LayoutJSON, len(null)), null...)
		frames = codec.AppendEventBatchJSON(frames, "t1", caseNamespace, victim, [][]byte{[]byte("two"), {}}, 0, false)
		frames = codec.AppendEvent(frames, "t1", caseNamespace, victim, []byte("four"), 7, true)
		return e.Send(codec.AppendEventBatchJSON(frames, "t1", caseNamespace, victim, [][]byte{[]byte("five"), []byte("six")}, 8, true))
	})
	t.connect()
	sub := t.subscribe(victim)
	t.events(sub, noOffsets, "one", "two", "")
	t.events(sub, 7, "four", "five", "six")
}
