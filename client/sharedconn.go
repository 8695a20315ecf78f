package client

import (
	"context"
	"crypto/rand"
	"fmt"
	"sync"

	"github.com/felix-mq/felix/codec"
)

// sharedConn is a connection that one or more slots use: dialed when it is first needed, and again when it is lost.
// Attempts run on a goroutine of the client, so that they get on however short the contexts of those who wait are.
type sharedConn struct {
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

func newSharedConn(c *Client, policy WhileDown, w windows) *sharedConn {
	return &sharedConn{c: c, policy: policy, windows: w, fence: rand.Text()}
}

// requestStreams is how many streams the receive window of a connection for requests is dialed for.
const requestStreams = 8

// get returns the connection. Where there is none it makes one attempt, or, if it is patient, as many as it takes. One
// that is not patient fails at once when the connection has been lost, while it is tried again in the background.
func (h *sharedConn) get(ctx context.Context, patient bool) (*conn, error) {
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
func (h *sharedConn) forgive() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.down = nil
}

// connect makes one attempt. It ends with the client.
func (h *sharedConn) connect(a *attempt) {
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
