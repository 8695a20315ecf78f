package quicx

import (
	"context"
	"errors"
	"time"

	"github.com/quic-go/quic-go"
)

// Stream is a bidirectional stream. Its two directions are used and ended independently: a peer that stops reading
// one has not stopped writing the other (docs/protocol/session.md#the-end-of-a-stream).
type Stream struct {
	send SendStream
	recv RecvStream
}

func newStream(s *quic.Stream) *Stream {
	return &Stream{send: SendStream{s: s}, recv: RecvStream{s: s}}
}

// Send returns the direction towards the peer.
func (s *Stream) Send() *SendStream { return &s.send }

// Recv returns the direction from the peer.
func (s *Stream) Recv() *RecvStream { return &s.recv }

// SendStream is a direction of a stream towards the peer. One goroutine may write and close; Cancel, TryWrite,
// SetWriteDeadline and Context may be used from others.
type SendStream struct {
	s interface { // *quic.SendStream or *quic.Stream
		Write([]byte) (int, error)
		WriteWithLimit([]byte, func(int) int) (int, error)
		TryWriteAll([]byte) error
		Close() error
		CancelWrite(quic.StreamErrorCode)
		Context() context.Context
		SetWriteDeadline(time.Time) error
	}
}

// Write writes all of p. It blocks until the last of it is put into packets, which flow control and the congestion of
// the path may delay, and reads p only until it returns. It ends early, with the number of bytes that were sent, when
// the write deadline passes, the peer stops reading or Cancel is called ([*StreamResetError]), or the connection ends.
func (s *SendStream) Write(p []byte) (int, error) {
	n, err := s.s.Write(p)
	return n, mapError(err)
}

// TryWrite writes all of p if it can be queued at once, within the peer's flow control and while nobody is in Write;
// otherwise it writes nothing and returns [ErrWouldBlock]. It never blocks. The bytes are copied.
func (s *SendStream) TryWrite(p []byte) error { return mapError(s.s.TryWriteAll(p)) }

// Settle waits until all that TryWrite has queued is in packets, so that the stream holds nothing for it beyond what is
// in flight. It blocks as Write does and counts as one; it writes nothing.
func (s *SendStream) Settle() error {
	// What has no limiter goes first. The limiter is asked when nothing of that is left, and lets nothing of this go.
	_, err := s.s.WriteWithLimit(settling[:], func(int) int { return 0 })
	if errors.Is(err, quic.ErrWriteLimitReached) {
		return nil
	}
	return mapError(err)
}

// settling is never sent.
var settling [1]byte

// Close finishes the stream: the peer reads what was written and then [io.EOF]. It does not wait for the peer, and it
// must not be called during a Write. If the stream was reset before, Close returns that error.
func (s *SendStream) Close() error {
	if err := s.s.Close(); err != nil {
		if cause := mapError(context.Cause(s.s.Context())); cause != nil {
			return cause
		}
		return mapError(err)
	}
	return nil
}

// Cancel gives the stream up: the peer may lose what it has not read. A blocked Write returns. Use code 0.
func (s *SendStream) Cancel(code uint64) { s.s.CancelWrite(quic.StreamErrorCode(code)) }

// Context is canceled when the stream was closed or reset by either side, or the connection ended. A peer that stops
// reading is noticed here without writing.
func (s *SendStream) Context() context.Context { return s.s.Context() }

// SetWriteDeadline sets the time after which Write fails with [os.ErrDeadlineExceeded], the blocked one included. The
// zero time means never.
func (s *SendStream) SetWriteDeadline(t time.Time) error { return mapError(s.s.SetWriteDeadline(t)) }

// RecvStream is a direction of a stream from the peer. One goroutine may read; Cancel and SetReadDeadline may be called
// from others.
//
// The peer gets its stream credit back only after a Read has returned an error, such as [io.EOF], or after Cancel: an
// error from Peek alone does not count.
type RecvStream struct {
	s interface { // *quic.ReceiveStream or *quic.Stream
		Read([]byte) (int, error)
		Peek([]byte) (int, error)
		CancelRead(quic.StreamErrorCode)
		SetReadDeadline(time.Time) error
	}
}

// Read reads up to len(p) bytes. It blocks until there is at least one, and takes what is there. At the end of the
// stream it returns [io.EOF], perhaps with the last bytes. Other errors: [*StreamResetError], [os.ErrDeadlineExceeded]
// (the stream is usable after it), or the end of the connection.
func (s *RecvStream) Read(p []byte) (int, error) {
	n, err := s.s.Read(p)
	return n, mapError(err)
}

// Peek fills p with the next bytes and leaves them in the stream. It blocks until all of them are there. At the end of
// the stream it returns the bytes that are left, with [io.EOF].
func (s *RecvStream) Peek(p []byte) (int, error) {
	n, err := s.s.Peek(p)
	return n, mapError(err)
}

// Cancel stops reading and asks the peer to stop writing. A blocked Read or Peek returns. After the end of the stream
// was read it does nothing. Use code 0.
func (s *RecvStream) Cancel(code uint64) { s.s.CancelRead(quic.StreamErrorCode(code)) }

// SetReadDeadline sets the time after which Read and Peek fail with [os.ErrDeadlineExceeded], the blocked ones
// included. The zero time means never. A deadline in the future costs an allocation each time a read blocks; a program
// with many streams does better to set past deadlines from one place.
func (s *RecvStream) SetReadDeadline(t time.Time) error { return mapError(s.s.SetReadDeadline(t)) }
