package client

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"time"
)

// tryWriteMax is the size up to which a frame is first offered to QUIC without blocking.
const tryWriteMax = 1024

// turn waits until it is the caller's turn to write, at most until the deadline unless that is 0.
func (r *requestStream) turn(ctx context.Context, deadline int64) error {
	if ctx.Err() == nil && r.writing.try() {
		return nil
	}
	if deadline > 0 {
		bounded, cancel := context.WithTimeoutCause(ctx, time.Duration(deadline-r.k.c.now()), ErrTimeout)
		defer cancel()
		ctx = bounded
	}
	return r.writing.acquire(ctx)
}

// write sends one frame. The caller has its turn, which write ends. It fails without an effect when the context or the
// deadline, unless that is 0, ends before anything was written, or when the stream takes no more requests: the broker
// cannot have read the frame then. A frame of which a part was written is finished, whatever ends: others, who have
// done nothing wrong, write after it. Such a write fails with [ErrInDoubt] and the reason. sender is who publishes the
// frame without an acknowledgement, and nil if it is anything else.
func (r *requestStream) write(ctx context.Context, frame []byte, deadline int64, sender *Publisher) error {
	kept, err := r.writeInTurn(ctx, frame, deadline, sender)
	if !kept {
		r.writing.release()
	}
	return err
}

// writeInTurn is write, but the turn is the caller's to end unless it is kept to finish the frame.
func (r *requestStream) writeInTurn(ctx context.Context, frame []byte, deadline int64, sender *Publisher) (kept bool, err error) {
	if r.broken() {
		return false, r.reason()
	}
	rest, err := r.writeUntil(ctx, frame, deadline)
	if sender != nil && (err == nil || len(rest) > 0) {
		r.noteSend(sender) // before the turn ends: what settles the stream takes the next one
	}
	if len(rest) == 0 {
		return false, err
	}
	err = fmt.Errorf("%w: %w", ErrInDoubt, err)
	rest = slices.Clone(rest)
	if r.k.start(func() { r.finish(rest) }) != nil {
		r.fail(r.k.lost())
		return false, err
	}
	return true, err
}

// finish writes the rest of a frame, and ends the turn of the caller that began it.
func (r *requestStream) finish(rest []byte) {
	defer r.writing.release()
	n, err := r.ctl.s.Send().Write(rest)
	_ = r.writeError(n, rest, err) // the stream knows it
}

// writeUntil writes a frame until the context or the deadline ends. It fails with the reason for that, and returns what
// is left of a frame that has begun. Any other failure is the stream's, and leaves nothing.
func (r *requestStream) writeUntil(ctx context.Context, frame []byte, deadline int64) (rest []byte, err error) {
	out := r.ctl.s.Send()
	if ctx.Done() == nil && deadline == 0 {
		n, err := out.Write(frame)
		return nil, r.writeError(n, frame, err)
	}
	if len(frame) <= tryWriteMax && out.TryWrite(frame) == nil {
		return nil, nil
	}
	stop := func() bool { return true }
	fired := r.fired
	if ctx.Done() != nil {
		stop = context.AfterFunc(ctx, func() {
			_ = out.SetWriteDeadline(past)
			fired <- struct{}{}
		})
	}
	if deadline > 0 {
		r.watchdog.Reset(time.Duration(deadline - r.k.c.now()))
	}
	n, err := out.Write(frame)
	var cause error
	if deadline > 0 && !r.watchdog.Stop() {
		<-fired
		cause = ErrTimeout
	}
	if !stop() {
		<-fired
		cause = context.Cause(ctx)
	}
	if cause != nil {
		_ = out.SetWriteDeadline(never)
		switch {
		case n == len(frame):
			return nil, nil
		case errors.Is(err, os.ErrDeadlineExceeded) && n == 0:
			return nil, cause
		case errors.Is(err, os.ErrDeadlineExceeded):
			return frame[n:], cause
		}
	}
	return nil, r.writeError(n, frame, err)
}

// writeError ends the stream after a write that failed, and says why. A frame that QUIC has taken in full may have been
// sent, whatever became of the stream afterwards: the write has not failed then.
func (r *requestStream) writeError(n int, frame []byte, err error) error {
	if err == nil {
		return nil
	}
	err = r.k.streamError("sending a request", err)
	if stoppedReading(err) {
		r.retire(err)
	} else {
		r.fail(err)
	}
	if n == len(frame) {
		return nil
	}
	return r.reason() // the reader may know better why
}
