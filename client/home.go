package client

import (
	"context"
	"crypto/rand"
	"fmt"
	"sync"
	"sync/atomic"

	"golang.org/x/sync/semaphore"

	"github.com/felix-mq/felix/codec"
)

// lock is a mutex whose waiters can give up.
type lock chan struct{}

func newLock() lock { return make(lock, 1) }

func (l lock) acquire(ctx context.Context) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if l.try() {
		return nil
	}
	select {
	case l <- struct{}{}:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (l lock) try() bool {
	select {
	case l <- struct{}{}:
		return true
	default:
		return false
	}
}

func (l lock) release() { <-l }

// home is a connection that one or more slots use: dialed when it is first needed, and again when it is lost. Attempts
// run on a goroutine of the client, so that they get on however short the contexts of those who wait are.
type home struct {
	c       *Client
	policy  WhileDown
	windows windows

	fence string // ID of the fence of its connections

	mu      sync.Mutex // guards all below
	conn    *conn
	made    uint64   // connections
	attempt *attempt // under way, or nil
	down    error    // why there is no connection although there was one, or an attempt failed; nil before that
}

type attempt struct {
	done chan struct{} // closed when err is there
	err  error
}

func newHome(c *Client, policy WhileDown, w windows) *home {
	return &home{c: c, policy: policy, windows: w, fence: rand.Text()}
}

// requestStreams is how many streams the receive window of a connection for requests is dialed for.
const requestStreams = 8

// get returns the connection. Where there is none it makes one attempt, or, if it is patient, as many as it takes. One
// that is not patient fails at once when the connection has been lost, while it is tried again in the background.
func (h *home) get(ctx context.Context, patient bool) (*conn, error) {
	for {
		h.mu.Lock()
		if h.conn != nil {
			if h.conn.alive() {
				defer h.mu.Unlock()
				return h.conn, nil
			}
			h.down = h.conn.lost()
			h.conn = nil
		}
		a, down := h.attempt, h.down
		if a == nil {
			a = &attempt{done: make(chan struct{})}
			if !h.c.start(func() { h.connect(a) }) {
				h.mu.Unlock()
				return nil, ErrClosed
			}
			h.attempt = a
		}
		h.mu.Unlock()
		if down != nil && !patient {
			return nil, down
		}
		select {
		case <-a.done:
			if a.err != nil && (!patient || !Retryable(a.err)) {
				return nil, a.err
			}
		case <-ctx.Done():
			if down != nil {
				return nil, fmt.Errorf("%w: %w", context.Cause(ctx), down)
			}
			return nil, context.Cause(ctx)
		}
	}
}

// forgive forgets that the last attempt has failed, so that get waits for the next one.
func (h *home) forgive() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.down = nil
}

// connect makes one attempt. It ends with the client.
func (h *home) connect(a *attempt) {
	k, err := h.c.dial(h.c.ctx, requestStreams, h.windows)
	h.mu.Lock()
	defer h.mu.Unlock()
	if err == nil {
		h.made++
		k.fence = codec.Fence{ID: h.fence, Number: h.made}
	}
	h.conn, h.down, a.err, h.attempt = k, err, err, nil
	close(a.done)
}

// slot is the place of one request stream: opened when it is first needed, and replaced when it broke.
type slot struct {
	home    *home
	ordered bool // requests are carried out in the order in which they are sent
	lock    lock
	stream  atomic.Pointer[requests]
	window  *semaphore.Weighted // asynchronous publishes in flight

	backlogLock sync.Mutex // guards all below: see mustQueue
	backlog     []*queued  // the oldest first
	flushing    bool       // a goroutine sends the backlog
}

func newSlot(h *home, ordered bool) *slot {
	return &slot{home: h, ordered: ordered, lock: newLock(), window: semaphore.NewWeighted(int64(h.c.o.inFlight))}
}

// live returns the stream if there is one.
func (s *slot) live() *requests {
	if r := s.stream.Load(); r != nil && !r.broken() {
		return r
	}
	return nil
}

// get returns the stream, or opens one, until the deadline by the client's clock; 0 if ctx has one. Errors mean that
// nothing was sent.
func (s *slot) get(ctx context.Context, deadline int64) (*requests, error) {
	return s.open(ctx, deadline, s.home.policy != WhileDownFail)
}

// open is get, with a patience of the caller's choice: see home.get.
func (s *slot) open(ctx context.Context, deadline int64, patient bool) (*requests, error) {
	if r := s.live(); r != nil {
		return r, nil
	}
	if s.home.c.ctx.Err() != nil {
		return nil, ErrClosed
	}
	ctx, cancel := s.home.c.boundAt(ctx, deadline)
	defer cancel()
	if err := s.lock.acquire(ctx); err != nil {
		return nil, err
	}
	defer s.lock.release()
	for {
		if r := s.live(); r != nil {
			return r, nil
		}
		k, err := s.home.get(ctx, patient)
		if err != nil {
			return nil, err
		}
		r, err := k.openRequests(ctx)
		if err == nil {
			s.put(r)
			return r, nil
		}
		// A connection that was lost meanwhile is the business of home.
		if !patient || k.alive() || ctx.Err() != nil || !Retryable(err) {
			return nil, err
		}
	}
}
