package client

import (
	"errors"
	"fmt"
	"math"
	"unicode/utf8"
)

// Errors that callers can test for with errors.Is.
var (
	// ErrClosed means that the client or the subscription was closed by its own side.
	ErrClosed = errors.New("client: closed")
	// ErrInDoubt marks a publish or a change of a cache whose answer did not come: it may have been carried out or not. A
	// frame that was being written when its context ended is written to its end, and its call is in doubt.
	ErrInDoubt = errors.New("client: in doubt")
	// ErrAuth means that the broker refused the token. It comes with the [BrokerError] that says why.
	ErrAuth = errors.New("client: authentication failed")
	// ErrMiss means that a cache has no such entry.
	ErrMiss = errors.New("client: cache miss")
	// ErrVersion means that a cache entry has another version than the one a put was to replace.
	ErrVersion = errors.New("client: cache entry has another version")
	// ErrEnded means that the broker ended the subscription: its stream was removed, or the broker is going down.
	ErrEnded = errors.New("client: subscription ended")
	// ErrProtocol means that the broker sent something that felix-wire does not allow at that place.
	ErrProtocol = errors.New("client: protocol violation")
	// ErrUnsupported means that the broker did not advertise what the call needs.
	ErrUnsupported = errors.New("client: not supported by the broker")
	// ErrDisconnected means that the connection to the broker, or the stream that the call used, was lost or could not
	// be made. The next call makes another.
	ErrDisconnected = errors.New("client: disconnected")
	// ErrBufferFull means that a publish found no room in the buffer of [WhileDownBuffer]. Nothing was sent.
	ErrBufferFull = errors.New("client: buffer full")
	// ErrTimeout means that a call without a deadline of its own had no answer within [WithRequestTimeout].
	ErrTimeout = errors.New("client: no answer in time")
	// ErrFrameTooLarge means that a call would need a frame larger than [WithMaxFrame]. Nothing was sent.
	ErrFrameTooLarge = errors.New("client: frame too large")
	// ErrInvalidName means that a name or a key cannot be sent: it is not UTF-8, or longer than 65 535 bytes. Nothing
	// was sent.
	ErrInvalidName = errors.New("client: invalid name")
)

// Retryable reports whether the call that failed with err may succeed if it is made again, after a pause. The broker was
// not reachable, did not answer in time, or said that it has no room. It is false for errors of the caller's own, an ended
// context among them, and for nil.
//
// A publish that is in doubt may have been carried out: see whether err matches [ErrInDoubt] first, and make it again only
// if its subscribers can do with a duplicate.
func Retryable(err error) bool {
	if e, ok := errors.AsType[*BrokerError](err); ok {
		return e.Retryable()
	}
	if errors.Is(err, ErrClosed) || errors.Is(err, ErrProtocol) {
		return false
	}
	for _, transient := range []error{ErrDisconnected, ErrTimeout, ErrEnded, ErrBufferFull} {
		if errors.Is(err, transient) {
			return true
		}
	}
	return false
}

// BrokerError is a refusal, in the broker's words. The text is for people; do not depend on it. Beside [ErrInDoubt] it
// is about the stream that a publish was sent on, and the publish itself was not answered.
type BrokerError struct{ Message string }

func (e *BrokerError) Error() string { return "client: broker says: " + e.Message }

// Retryable reports whether the refusal is known to be about the moment, not about the request. It is a hint: brokers may
// use other texts.
func (e *BrokerError) Retryable() bool {
	switch e.Message {
	case "publish admission timed out", "publish admission closed", // of this broker
		"server overloaded", "publish queue full", "publish enqueue timed out", // of the reference
		"publish ingress per-connection byte budget exhausted", "publish ingress byte budget exhausted",
		"open uni stream":
		return true
	}
	return false
}

// CursorError says that a subscription's start position cannot be served.
type CursorError struct {
	TooOld    bool   // older than Available; otherwise in the future
	Requested uint64 // the offset asked for
	Available uint64 // the oldest offset that can be had, or the next one to come
}

func (e *CursorError) Error() string {
	if e.TooOld {
		return fmt.Sprintf("client: start offset %d is too old, the oldest is %d", e.Requested, e.Available)
	}
	return fmt.Sprintf("client: start offset %d is in the future, the next is %d", e.Requested, e.Available)
}

// checkNames fails with [ErrInvalidName] if one of the names cannot be sent.
func checkNames(names ...string) error {
	for _, name := range names {
		switch {
		case len(name) > math.MaxUint16:
			return fmt.Errorf("%w: %d bytes, limit %d", ErrInvalidName, len(name), math.MaxUint16)
		case !utf8.ValidString(name):
			return fmt.Errorf("%w: %q is not UTF-8", ErrInvalidName, name)
		}
	}
	return nil
}
