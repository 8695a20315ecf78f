package quicx

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"

	"github.com/quic-go/quic-go"
)

// Errors that callers branch on. Besides these and the two types below, methods return [io.EOF] where a peer finished
// its side of a stream, [os.ErrDeadlineExceeded] where a deadline passed, and the error of a context that ended.
var (
	// ErrClosed reports the use of something that its owner closed: a listener, a stream after its FIN, a reader. It
	// matches [net.ErrClosed].
	ErrClosed = fmt.Errorf("quicx: %w", net.ErrClosed)

	// ErrIdleTimeout reports that nothing was heard from the peer for the idle timeout. The connection is gone. It is a
	// [net.Error] with Timeout true and matches [net.ErrClosed].
	ErrIdleTimeout error = &timeoutError{"quicx: connection timed out: nothing heard from the peer"}

	// ErrHandshake is matched by each error of [Dial] that comes from the attempt to connect, timeouts of the handshake
	// (a [net.Error] with Timeout true) and ended contexts included. The cause is wrapped together with it.
	ErrHandshake = errors.New("quicx: handshake failed")

	// ErrStreamLimit reports that the peer did not allow another stream before the context ended. It comes together
	// with the context's error. The connection is fine.
	ErrStreamLimit = errors.New("quicx: peer allows no more streams")

	// ErrWouldBlock reports that TryWrite wrote nothing because not all of it could be queued at once.
	ErrWouldBlock = errors.New("quicx: write would block")

	// ErrMemory reports that a frame needs more memory than is left in the reader's account.
	ErrMemory = errors.New("quicx: no memory for a frame")

	// ErrTruncated reports that a stream ended inside a frame, its header included. It matches [io.ErrUnexpectedEOF].
	ErrTruncated = fmt.Errorf("quicx: stream ended inside a frame: %w", io.ErrUnexpectedEOF)
)

var errHandshakeTimeout error = &timeoutError{"quicx: no answer from the peer in time"}

type timeoutError struct{ text string }

func (e *timeoutError) Error() string        { return e.text }
func (e *timeoutError) Timeout() bool        { return true }
func (e *timeoutError) Temporary() bool      { return false }
func (e *timeoutError) Is(target error) bool { return target == net.ErrClosed }

// StreamResetError reports that one direction of a stream was given up before its end: by RESET_STREAM of the sender or
// STOP_SENDING of the receiver. The connection is fine. No meaning is attached to codes
// (docs/protocol/session.md#codes).
type StreamResetError struct {
	Code   uint64
	Remote bool // the peer did it; otherwise this side called Cancel, and the error matches [net.ErrClosed]
}

func (e *StreamResetError) Error() string {
	return fmt.Sprintf("quicx: stream reset by %s, code %d", side(e.Remote), e.Code)
}

// Is reports whether target describes the same: [net.ErrClosed] for a stream that this side gave up.
func (e *StreamResetError) Is(target error) bool {
	return target == net.ErrClosed && !e.Remote
}

// ConnClosedError reports that the connection was closed, with a code of the application or, if Transport is set, of
// QUIC itself (RFC 9000, section 20.1; 256 plus a TLS alert for failures of the handshake). It matches [net.ErrClosed]
// and unwraps to the cause where there is one, such as an error of certificate verification.
type ConnClosedError struct {
	Code      uint64
	Reason    string
	Remote    bool // closed by the peer
	Transport bool
	Forgotten bool // the peer does not know the connection any more: it has lost its memory, as by a restart
	cause     error
}

func (e *ConnClosedError) Error() string {
	kind := "code"
	if e.Transport {
		kind = "QUIC error"
	}
	text := fmt.Sprintf("quicx: connection closed by %s, %s %#x", side(e.Remote), kind, e.Code)
	if e.Reason != "" {
		text += ": " + e.Reason
	}
	return text
}

// Is reports whether target is [net.ErrClosed].
func (e *ConnClosedError) Is(target error) bool {
	return target == net.ErrClosed
}

// Unwrap returns the cause, or nil.
func (e *ConnClosedError) Unwrap() error { return e.cause }

func side(remote bool) string {
	if remote {
		return "peer"
	}
	return "this side"
}

// mapError is the one place where errors of quic-go become errors of this package. It passes nil, io.EOF and errors of
// contexts untouched.
func mapError(err error) error {
	if err == nil {
		return nil
	}
	switch {
	case errors.Is(err, io.EOF), errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return err
	case errors.Is(err, quic.ErrWouldBlock):
		return ErrWouldBlock
	case errors.Is(err, os.ErrDeadlineExceeded):
		return os.ErrDeadlineExceeded
	}
	if e, ok := errors.AsType[*quic.StreamError](err); ok {
		return &StreamResetError{Code: uint64(e.ErrorCode), Remote: e.Remote}
	}
	if e, ok := errors.AsType[*quic.ApplicationError](err); ok {
		return &ConnClosedError{Code: uint64(e.ErrorCode), Reason: e.ErrorMessage, Remote: e.Remote}
	}
	if e, ok := errors.AsType[*quic.TransportError](err); ok {
		code := uint64(e.ErrorCode)
		return &ConnClosedError{Code: code, Reason: e.Error(), Remote: e.Remote, Transport: true, cause: e}
	}
	if _, ok := errors.AsType[*quic.IdleTimeoutError](err); ok {
		return ErrIdleTimeout
	}
	if _, ok := errors.AsType[*quic.HandshakeTimeoutError](err); ok {
		return errHandshakeTimeout
	}
	_, isReset := errors.AsType[*quic.StatelessResetError](err)
	_, isVersion := errors.AsType[*quic.VersionNegotiationError](err)
	switch {
	case isReset, isVersion:
		return &ConnClosedError{Reason: err.Error(), Remote: true, Transport: true, Forgotten: isReset, cause: err}
	case errors.Is(err, quic.ErrStreamClosed), errors.Is(err, net.ErrClosed):
		return ErrClosed
	}
	return fmt.Errorf("quicx: %w", err)
}
