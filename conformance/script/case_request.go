package script

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/felix-mq/felix/codec"
)

// requestCases are about control streams: replies, and what happens to a request whose stream ends in an odd way.
func requestCases() []Case {
	cases := []Case{
		{"IC-20", "200 acknowledged publishes at once", pipelined},
		{"IC-32", "acknowledgements out of order: each publish gets its own result", acksOutOfOrder},
		{"IC-33", "an error acknowledgement, then further publishes: only the one fails", oneRefusal},
		{"C3-01", "STOP_SENDING in front of an acknowledgement: the publish succeeds", stoppedPublish},
		{"C3-02", "STOP_SENDING in front of subscribed: the subscription works", stoppedSubscribe},
		{"C3-03", "an acknowledgement, then FIN instead of the next: the first counts", answeredThenFIN},
	}
	for i, e := range oddEnds {
		for j, r := range victims {
			cases = append(cases, Case{
				fmt.Sprintf("C3-%02d%c", 4+i, 'a'+j), fmt.Sprintf("%s instead of the reply to %s: only that fails", e.name, r.name),
				func(t *trial) { loseReply(t, r, e) },
			})
		}
	}
	for j, r := range victims {
		cases = append(cases, Case{
			fmt.Sprintf("CD26%c", 'b'+j), fmt.Sprintf("no reply to %s: ends with its time limit", r.name),
			func(t *trial) { noReply(t, r) },
		})
	}
	return append(
		cases,
		Case{"CD04", "an error in answer to a cache request: only that fails", cacheRefusal},
		Case{"CD28", "a cache error among pipelined requests belongs to the oldest", cacheErrorInOrder},
		Case{"C8-01", "cache_value: null is a miss, an empty string is a value, the id may be missing", cacheNull},
		Case{"C8-02", "a cache reply that comes when its caller has given up is nobody else's", lateCacheReply},
	)
}

// request is a request that gets no good reply.
type request struct {
	name  string
	ask   func(context.Context, *trial) error
	reply func(*Request) []byte // a good one
}

var victims = []request{
	{
		"a publish",
		func(ctx context.Context, t *trial) error {
			return t.c.Publish(ctx, caseNamespace, caseStream, []byte(victim))
		},
		func(r *Request) []byte { return codec.AppendPublishAckOK(nil, r.ID) },
	},
	{
		"a cache get",
		func(ctx context.Context, t *trial) error {
			_, err := t.get(ctx, victim)
			return err
		},
		func(r *Request) []byte {
			return codec.AppendCacheValue(nil, nil, nil, nil, nil, []byte("value"), true, r.ID, r.HasID)
		},
	},
	{
		"a subscribe",
		func(ctx context.Context, t *trial) error {
			_, err := t.trySubscribe(ctx, victim, codec.Start{})
			return err
		},
		func(*Request) []byte { return codec.AppendSubscribed(nil, subscribeID) },
	},
}

// oddEnd is a way in which a reply fails to come.
type oddEnd struct {
	name string
	do   func(ctl *Control, reply []byte) error
}

var oddEnds = []oddEnd{
	{"FIN", func(ctl *Control, _ []byte) error {
		ctl.Finish()
		return nil
	}},
	{"FIN inside a frame", func(ctl *Control, reply []byte) error {
		err := ctl.Send(reply[:len(reply)-1])
		ctl.Finish()
		return err
	}},
	{"RESET inside a frame", func(ctl *Control, reply []byte) error {
		err := ctl.Send(reply[:len(reply)-1])
		ctl.Reset()
		return err
	}},
	{"error, FIN and STOP_SENDING", func(ctl *Control, _ []byte) error {
		err := ctl.Send(codec.AppendError(nil, "forbidden"))
		ctl.End()
		return err
	}},
}

func loseReply(t *trial, r request, end oddEnd) {
	t.onVictim(func(_ *Conn, ctl *Control, req *Request) error { return end.do(ctl, r.reply(req)) })
	t.connect()
	sub := t.subscribe(caseStream)
	t.refused(r.name, r.ask(t.ctx, t))
	t.works(sub)
}

// noReply does not look at cache requests afterwards: without a reply to the first, in its place, those after it cannot
// be told apart.
func noReply(t *trial, r request) {
	t.onVictim(func(*Conn, *Control, *Request) error { return nil })
	t.connect()
	sub := t.subscribe(caseStream)
	t.runsOut(r.name, func(ctx context.Context) error { return r.ask(ctx, t) })
	t.delivers(sub)
}

func pipelined(t *trial) {
	t.connect()
	sub := t.subscribe(caseStream)
	calls := make([]<-chan error, 200)
	for i := range calls {
		calls[i] = t.begin(func(context.Context) error { return t.publish(fmt.Sprint(i)) })
	}
	missing := make(map[string]bool)
	for i, call := range calls {
		missing[fmt.Sprint(i)] = true
		t.ok("a publish", t.end("a publish", call))
	}
	for range calls {
		ev, err := sub.Next(t.ctx)
		t.ok("the next event", err)
		if !missing[string(ev.Payload)] {
			t.fail("each event once", eventText(ev.Payload)+" again")
		}
		delete(missing, string(ev.Payload))
	}
}

// acksOutOfOrder holds a number of publishes back until all are there, and answers the last one first.
func acksOutOfOrder(t *trial) {
	const publishes = 8
	var mu sync.Mutex
	waiting := make(map[*Control][]*Request)
	count := 0
	all := make(chan struct{})
	t.n.Hook = func(_ *Conn, ctl *Control, r *Request) (bool, error) {
		mu.Lock()
		defer mu.Unlock()
		waiting[ctl] = append(waiting[ctl], r)
		if count++; count < publishes {
			return true, nil
		}
		close(all)
		for ctl, requests := range waiting {
			for _, r := range slices.Backward(requests) {
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
	t.connect()
	calls := make([]<-chan error, publishes)
	for i := range calls {
		calls[i] = t.begin(func(context.Context) error { return t.publish(string(rune('a' + i))) })
	}
	t.wait(fmt.Sprintf("%d publishes at once, none waiting for the reply to another", publishes), all)
	for i, call := range calls {
		err := t.end("a publish", call)
		if i%2 == 0 {
			t.ok(fmt.Sprintf("publish %d, which was acknowledged,", i), err)
		} else {
			t.refused(fmt.Sprintf("publish %d, which was refused,", i), err)
		}
	}
}

func oneRefusal(t *trial) {
	t.onVictim(func(_ *Conn, ctl *Control, r *Request) error { return ctl.Ack(r, "publish queue full") })
	t.connect()
	for range 3 {
		t.refused("a refused publish", t.publish(victim))
		for _, stream := range []string{caseStream, "another", "a third"} {
			err := t.c.Publish(t.ctx, caseNamespace, stream, []byte("accept"))
			t.ok(fmt.Sprintf("a publish to %q after a refused one", stream), err)
		}
	}
}

func stoppedPublish(t *trial) {
	t.onVictim(func(_ *Conn, ctl *Control, r *Request) error {
		ctl.StopReading()
		return ctl.Ack(r, "")
	})
	t.connect()
	sub := t.subscribe(caseStream)
	t.ok("a publish whose stream is not read further, and which is acknowledged,", t.publish(victim))
	// A call may still meet the stopped stream. It was not sent, so it may say that.
	for range 100 {
		if t.publish("not yet") == nil {
			t.events(sub, 0, "not yet")
			t.works(nil)
			return
		}
	}
	t.fail("a publish on a new stream succeeds", "each of 100 failed")
}

func stoppedSubscribe(t *trial) {
	t.onVictim(func(c *Conn, ctl *Control, _ *Request) error {
		ctl.StopReading()
		if err := ctl.Send(codec.AppendSubscribed(nil, subscribeID)); err != nil {
			return err
		}
		ctl.Finish()
		e, err := c.OpenEvents(subscribeID)
		if err != nil {
			return err
		}
		return e.Send(sharedEvents("one", "two"))
	})
	t.connect()
	t.events(t.subscribe(victim), noOffsets, "one", "two")
	t.works(nil)
}

// answeredThenFIN holds two publishes back, acknowledges one and finishes the stream of the other.
func answeredThenFIN(t *trial) {
	const answered, lost = "answered", "lost"
	var mu sync.Mutex
	type held struct {
		ctl *Control
		r   *Request
	}
	waiting := make(map[string]held)
	t.n.Hook = func(_ *Conn, ctl *Control, r *Request) (bool, error) {
		if r.Payload() != answered && r.Payload() != lost {
			return false, nil
		}
		mu.Lock()
		defer mu.Unlock()
		waiting[r.Payload()] = held{ctl, r}
		if len(waiting) < 2 {
			return true, nil
		}
		err := waiting[answered].ctl.Ack(waiting[answered].r, "")
		waiting[lost].ctl.Finish()
		return true, err
	}
	t.connect()
	good := t.begin(func(context.Context) error { return t.publish(answered) })
	bad := t.begin(func(context.Context) error { return t.publish(lost) })
	t.ok("the publish that was acknowledged", t.end("a publish", good))
	t.refused("the publish after it", t.end("a publish", bad))
	t.works(nil)
}

func cacheRefusal(t *trial) {
	t.onVictim(func(_ *Conn, ctl *Control, _ *Request) error {
		return ctl.Send(codec.AppendError(nil, "cache scope not found: t1/default/primary"))
	})
	t.connect()
	t.put("key", "value")
	for range 8 { // more than a client has streams
		_, err := t.get(t.ctx, victim)
		t.refused("a refused cache get", err)
		t.cached("key", `value "value"`)
	}
}

// cacheErrorInOrder refuses the first of many requests, and gives the others the time to queue up after it.
func cacheErrorInOrder(t *trial) {
	seen := make(chan struct{}, 16)
	t.n.Hook = func(c *Conn, ctl *Control, r *Request) (bool, error) {
		if r.Type != codec.MsgCacheGet {
			return false, nil
		}
		if !isVictim(r) {
			return true, ctl.CacheValue(r, []byte("of "+r.Key))
		}
		seen <- struct{}{}
		pause(c)
		return true, ctl.Send(codec.AppendError(nil, "refused"))
	}
	t.connect()
	refused := t.begin(func(ctx context.Context) error {
		_, err := t.get(ctx, victim)
		return err
	})
	t.wait("a cache get", seen)
	values := make([]string, 12)
	calls := make([]<-chan error, len(values))
	for i := range calls {
		calls[i] = t.begin(func(ctx context.Context) (err error) {
			values[i], err = t.get(ctx, fmt.Sprint("key ", i))
			return err
		})
	}
	t.refused("the oldest request", t.end("a cache get", refused))
	for i, call := range calls {
		t.ok("a request after the refused one", t.end("a cache get", call))
		if want := fmt.Sprintf("value %q", fmt.Sprint("of key ", i)); values[i] != want {
			t.fail(want, values[i])
		}
	}
	after := t.begin(func(ctx context.Context) error {
		_, err := t.get(ctx, "after")
		return err
	})
	t.ok("a request after the refused one", t.end("a cache get", after))
}

// pause waits where a client shows in no other way that it has gone on.
func pause(c *Conn) {
	timer := time.NewTimer(lateness)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-c.Done():
	}
}

func cacheNull(t *trial) {
	frames := map[string]string{
		"null":          `{"type":"cache_value","tenant_id":"t1","namespace":"default","cache":"primary","key":"k","value":null,"request_id":%d}`,
		"null, no id":   `{"type":"cache_value","tenant_id":"t1","namespace":"default","cache":"primary","key":"k","value":null}`,
		"empty":         `{"type":"cache_value","tenant_id":"t1","namespace":"default","cache":"primary","key":"k","value":"","request_id":%d}`,
		"empty, no id":  `{"type":"cache_value","tenant_id":"t1","namespace":"default","cache":"primary","key":"k","value":""}`,
		"a byte, no id": `{"request_id":null,"value":"AA==","key":"k","cache":"primary","namespace":"default","tenant_id":"t1","type":"cache_value"}`,
	}
	want := map[string]string{"null": "miss", "empty": `value ""`, "a byte": `value "\x00"`}
	t.n.Hook = func(_ *Conn, ctl *Control, r *Request) (bool, error) {
		text, ok := frames[r.Key]
		if !ok {
			return false, nil
		}
		payload := strings.ReplaceAll(text, "%d", fmt.Sprint(r.ID))
		return true, ctl.Send(append(codec.AppendHeader(nil, codec.LayoutJSON, len(payload)), payload...))
	}
	t.connect()
	for _, key := range slices.Sorted(maps.Keys(frames)) {
		t.cached(key, want[strings.TrimSuffix(key, ", no id")])
	}
}

// lateCacheReply answers a request whose caller has given up in front of the next one of the stream.
func lateCacheReply(t *trial) {
	var mu sync.Mutex
	late := make(map[*Control]*Request)
	t.n.Hook = func(_ *Conn, ctl *Control, r *Request) (bool, error) {
		if r.Type != codec.MsgCacheGet {
			return false, nil
		}
		mu.Lock()
		defer mu.Unlock()
		if isVictim(r) {
			late[ctl] = r
			return true, nil
		}
		var err error
		if first := late[ctl]; first != nil {
			delete(late, ctl)
			err = ctl.CacheValue(first, []byte("of "+victim))
		}
		return true, errors.Join(err, ctl.CacheValue(r, []byte("of "+r.Key)))
	}
	t.connect()
	t.runsOut("a cache get", func(ctx context.Context) error {
		_, err := t.get(ctx, victim)
		return err
	})
	for i := range 8 {
		key := fmt.Sprint("key ", i)
		t.cached(key, fmt.Sprintf("value %q", "of "+key))
	}
}
