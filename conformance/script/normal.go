package script

import (
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/felix-mq/felix/codec"
)

// Normal is a small broker that behaves: it takes any token, every stream and cache exists, each event has an offset,
// replies come in order. It serves what a test is not about. It is written to be obviously right, not to be fast; and a
// subscriber that is not read stops its topic.
type Normal struct {
	// Flags is what it advertises in auth_ok. Legacy answers auth with a plain ok instead, and gives no offsets.
	Flags  codec.Flags
	Legacy bool

	// AuthDelay is how long each auth waits for its answer; negative means for ever.
	AuthDelay time.Duration

	// Hook, if it is not nil, sees each request but auth before it is carried out, and reports whether it has dealt
	// with it. It runs on the goroutine of the stream; an error ends the stream. A subscribe is the last request of its
	// stream: a hook that deals with it may answer later, and the rest of the stream is left to it.
	Hook func(c *Conn, ctl *Control, r *Request) (handled bool, err error)

	mu     sync.Mutex // guards all below
	topics map[string]*topic
	cache  map[string]entry
	nextID uint64
	live   []mortal // what Kill chooses from
}

type topic struct {
	mu       sync.Mutex // held while a publish is carried out: it gives the order
	base     uint64     // offset of log[0]
	log      [][]byte
	watchers map[*watcher]struct{}
}

// keepEvents is how many events of a topic can be replayed.
const keepEvents = 1024

// watcher is a subscription.
type watcher struct {
	events *Events
	layout codec.Flags
	frames chan []byte
}

type entry struct {
	value   []byte
	expires time.Time // zero: never
}

// NewNormal returns a broker without any state that advertises all of felix-wire v1.
func NewNormal() *Normal {
	return &Normal{Flags: codec.KnownFlags, topics: make(map[string]*topic), cache: make(map[string]entry)}
}

// Serve accepts and serves connections until the server ends. Run it with [Server.Go].
func (n *Normal) Serve(s *Server) {
	for {
		c, err := s.Accept()
		if err != nil {
			return
		}
		s.Go(func() { n.ServeConn(c) })
	}
}

// ServeConn serves a connection until it ends.
func (n *Normal) ServeConn(c *Conn) {
	defer n.register(mortal{conn: c})()
	var streams sync.WaitGroup
	defer streams.Wait()
	for {
		ctl, err := c.AcceptControl()
		if err != nil {
			return
		}
		streams.Go(func() { _ = n.ServeControl(c, ctl, false) })
	}
}

// ServeControl serves one stream until it ends, and returns nil if that was the client's FIN or a subscribe.
// authenticated says that the auth has been answered already.
func (n *Normal) ServeControl(c *Conn, ctl *Control, authenticated bool) error {
	defer n.register(mortal{ctl: ctl})()
	left := false // to the hook
	defer func() {
		if !left {
			ctl.End()
		}
	}()
	legacy := n.Legacy
	for {
		r, err := ctl.Next()
		if err != nil {
			if errors.Is(err, io.EOF) {
				return nil
			}
			return err
		}
		switch {
		case !authenticated && r.Type != codec.MsgAuth:
			return ctl.Send(codec.AppendError(nil, "auth required"))
		case !authenticated:
			authenticated = true
			if !n.delayAuth(c) {
				return nil
			}
			if legacy = legacy || !r.HasClientFlags; legacy {
				err = ctl.Send(codec.AppendOK(nil))
			} else {
				err = ctl.Send(codec.AppendAuthOK(nil, n.Flags, 0, false))
			}
		default:
			var handled, over bool
			if n.Hook != nil {
				if handled, err = n.Hook(c, ctl, r); err != nil {
					break
				}
				if handled {
					if left = r.Type == codec.MsgSubscribe; left {
						return nil
					}
					break
				}
			}
			if over, err = n.request(c, ctl, r, legacy); over {
				return err
			}
		}
		if err != nil {
			return err
		}
	}
}

// delayAuth waits before the answer to auth, and reports false if there will be none.
func (n *Normal) delayAuth(c *Conn) bool {
	if n.AuthDelay == 0 {
		return true
	}
	var due <-chan time.Time
	if n.AuthDelay > 0 {
		timer := time.NewTimer(n.AuthDelay)
		defer timer.Stop()
		due = timer.C
	}
	select {
	case <-due:
		return true
	case <-c.Done():
		return false
	}
}

// request carries one request out. over says that the stream ends with it.
func (n *Normal) request(c *Conn, ctl *Control, r *Request, legacy bool) (over bool, err error) {
	switch r.Type {
	case codec.MsgPublish, codec.MsgPublishBatch:
		n.topic(r).publish(r.Payloads)
		return false, ctl.Ack(r, "")
	case codec.MsgSubscribe:
		return true, n.subscribe(c, ctl, r, legacy)
	case codec.MsgCachePut:
		e := entry{value: append([]byte{}, r.Value...)}
		if r.HasTTL {
			e.expires = time.Now().Add(time.Duration(r.TTL) * time.Millisecond)
		}
		n.mu.Lock()
		n.cache[key(r)] = e
		n.mu.Unlock()
		if !r.HasID {
			return true, ctl.Send(codec.AppendOK(nil))
		}
		return false, ctl.Send(codec.AppendCacheOK(nil, r.ID))
	case codec.MsgCacheGet:
		n.mu.Lock()
		e := n.cache[key(r)]
		n.mu.Unlock()
		if !e.expires.IsZero() && !time.Now().Before(e.expires) {
			e.value = nil
		}
		return !r.HasID, ctl.CacheValue(r, e.value)
	default:
		return true, ctl.Send(codec.AppendError(nil, "unexpected message type"))
	}
}

func key(r *Request) string { return fmt.Sprintf("%q %q %q", r.Namespace, r.Cache, r.Key) }

func (n *Normal) topic(r *Request) *topic {
	n.mu.Lock()
	defer n.mu.Unlock()
	name := fmt.Sprintf("%q %q", r.Namespace, r.Stream)
	t := n.topics[name]
	if t == nil {
		t = &topic{watchers: make(map[*watcher]struct{})}
		n.topics[name] = t
	}
	return t
}

// subscribe answers, and then carries the event stream until it ends.
func (n *Normal) subscribe(c *Conn, ctl *Control, r *Request, legacy bool) error {
	n.mu.Lock()
	n.nextID++
	id := n.nextID
	n.mu.Unlock()
	t := n.topic(r)
	w := &watcher{layout: codec.LayoutSharedOffsets, frames: make(chan []byte, 64)}
	if legacy {
		w.layout = codec.LayoutShared
	}

	t.mu.Lock()
	replay, refusal := t.from(r.Start)
	if refusal != nil {
		t.mu.Unlock()
		return ctl.Send(refusal)
	}
	first := t.base + uint64(len(t.log)-len(replay))
	events, err := c.OpenEvents(id)
	if err != nil {
		t.mu.Unlock()
		return err
	}
	w.events = events
	t.watchers[w] = struct{}{}
	t.mu.Unlock()
	defer t.forget(w)
	defer n.register(mortal{events: events})()
	if err := ctl.Send(codec.AppendSubscribed(nil, id)); err != nil {
		events.Reset()
		return err
	}
	ctl.End()
	if len(replay) > 0 {
		err = events.Send(codec.AppendEventBatch(nil, codec.LayoutEvent|w.layout&codec.FlagEventOffsets, id, first, replay))
	}
	for err == nil {
		select {
		case f := <-w.frames:
			err = events.Send(f)
		case <-events.Done():
			return nil
		}
	}
	events.Reset()
	return nil
}

// from returns the events of a start position, or the frame that refuses it. t.mu is held.
func (t *topic) from(start codec.Start) (replay [][]byte, refusal []byte) {
	tail := t.base + uint64(len(t.log))
	switch {
	case start.Kind == codec.StartEarliest:
		return t.log, nil
	case start.Kind != codec.StartOffset:
		return nil, nil
	case start.Offset > tail:
		return nil, codec.AppendSubscribeCursorError(nil, codec.CursorInFuture, start.Offset, tail)
	case start.Offset < t.base:
		return nil, codec.AppendSubscribeCursorError(nil, codec.CursorTooOld, start.Offset, t.base)
	}
	return t.log[start.Offset-t.base:], nil
}

func (t *topic) publish(payloads [][]byte) {
	if len(payloads) == 0 {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	offset := t.base + uint64(len(t.log))
	t.log = append(t.log, payloads...)
	if drop := len(t.log) - keepEvents; drop > 0 {
		t.log, t.base = t.log[drop:], t.base+uint64(drop)
	}
	for w := range t.watchers {
		select {
		case w.frames <- codec.AppendEventBatch(nil, w.layout, 0, offset, payloads):
		case <-w.events.Done():
		}
	}
}

func (t *topic) forget(w *watcher) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.watchers, w)
}

// mortal is something that lives and can be ended.
type mortal struct {
	conn   *Conn
	ctl    *Control
	events *Events
}

func (n *Normal) register(v mortal) (unregister func()) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.live = append(n.live, v)
	return func() {
		n.mu.Lock()
		defer n.mu.Unlock()
		for i := range n.live {
			if n.live[i] == v {
				n.live[i] = n.live[len(n.live)-1]
				n.live = n.live[:len(n.live)-1]
				return
			}
		}
	}
}

// ShutDown closes all connections, as a broker does that goes away. It goes on accepting others.
func (n *Normal) ShutDown() {
	n.mu.Lock()
	live := slices.Clone(n.live)
	n.mu.Unlock()
	for _, v := range live {
		if v.conn != nil {
			v.conn.ShutDown()
		}
	}
}

// Kill ends one connection or stream, chosen by rng among those it serves, in one of the ways in which a broker may:
// a close with code 0, RESET_STREAM of the replies or of the events. It reports what it did, or "" if nothing lives.
func (n *Normal) Kill(rng *rand.Rand) string {
	n.mu.Lock()
	if len(n.live) == 0 {
		n.mu.Unlock()
		return ""
	}
	v := n.live[rng.IntN(len(n.live))]
	n.mu.Unlock()
	switch {
	case v.conn != nil:
		v.conn.ShutDown()
		return "connection closed"
	case v.ctl != nil:
		v.ctl.Reset()
		return "replies reset"
	default:
		v.events.Reset()
		return "events reset"
	}
}
