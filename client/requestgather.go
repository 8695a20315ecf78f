package client

import (
	"context"
	"runtime"
	"sync"
)

// gather joins the requests of many callers into few writes: while one caller writes, the others leave their requests
// in gather, and it writes these too. Before it writes, it lets callers go first that are about to run. Replies come
// several to a packet and wake their callers together; without that, each caller would send a packet of its own, since
// the transport runs as soon as the first one waits. A packet costs more than all else that a small request does
// (docs/measure/notes/2026-11-28-cache.md).
type gather struct {
	mu      sync.Mutex
	frames  []byte // not written yet
	spare   []byte
	writing bool // somebody writes, and looks here again before it stops
}

// gatherMax is the size in bytes of a request that is still gathered, and of all that may wait. What is larger takes
// its turn alone, and waits for space.
const gatherMax = 64 << 10

// post sends a binary cache request without blocking, unless it is large or much waits already. One that asks for a
// packet or more does not wait for others to join it.
func (r *requestStream) post(ctx context.Context, size int, deadline int64, bulk bool, appendTo func([]byte) []byte) error {
	g := &r.gather
	g.mu.Lock()
	if len(g.frames)+size > gatherMax {
		g.mu.Unlock()
		frame := appendTo(make([]byte, 0, size))
		if err := r.turn(ctx, deadline); err != nil {
			return err
		}
		return r.write(ctx, frame, deadline, nil)
	}
	g.frames = appendTo(g.frames)
	if g.writing {
		g.mu.Unlock()
		return nil
	}
	g.writing = true
	g.mu.Unlock()
	if !bulk {
		runtime.Gosched()
	}
	if !r.flush() {
		if err := r.k.start(r.flushBlocking); err != nil {
			r.fail(err)
		}
	}
	return nil
}

// flush writes what is gathered as long as that does not block. It reports whether nothing is left for flushBlocking.
func (r *requestStream) flush() bool {
	if !r.writing.try() {
		return false
	}
	defer r.writing.release()
	return r.writeGathered(r.ctl.s.Send().TryWrite)
}

// flushBlocking writes what is gathered, whatever it takes.
func (r *requestStream) flushBlocking() {
	if r.writing.acquire(r.k.c.ctx) != nil {
		return // the client is being closed
	}
	defer r.writing.release()
	out := r.ctl.s.Send()
	r.writeGathered(func(b []byte) error {
		n, err := out.Write(b)
		return r.writeError(n, b, err)
	})
}

// writeGathered writes until nothing is gathered any more, or a write fails. The caller holds r.writing. What is not
// written then ends with the stream.
func (r *requestStream) writeGathered(write func([]byte) error) bool {
	g := &r.gather
	g.mu.Lock()
	defer g.mu.Unlock()
	for len(g.frames) > 0 {
		frames := g.frames
		g.frames, g.spare = g.spare[:0], nil
		g.mu.Unlock()
		err := write(frames)
		g.mu.Lock()
		if err != nil { // back, in front
			frames = append(frames, g.frames...)
			g.frames, g.spare = frames, g.frames
			return false
		}
		g.spare = frames
	}
	g.writing = len(g.frames) > 0
	return true
}
