package client

import (
	"errors"
	"fmt"
	"math"
	"unicode/utf8"

	"github.com/felix-mq/felix/codec"
)

// Errors that callers can test for with errors.Is.
var (
	// ErrClosed means that the client or the subscription was closed by its own side.
	ErrClosed = errors.New("client: closed")
	// ErrConcurrentRead means that another goroutine was reading the subscription. Nothing was read, and the other read
	// goes on. See [Subscription].
	ErrConcurrentRead = errors.New("client: another goroutine reads the subscription")
	// ErrNotMade means that a method was called on nil, or on a zero Client, Publisher, Cache or Subscription. They are
	// made by [Connect], [Client.Publisher], [Client.Cache] and [Client.Subscribe].
	ErrNotMade = errors.New("client: nil or zero value: use Connect and the methods of the Client that it returns")
	// ErrInvalidOption means that an option of [Connect], [Client.Subscribe] or [Cache.Watch] is nil, missing or out of
	// its bounds. Nothing was sent.
	ErrInvalidOption = errors.New("client: invalid option")
	// ErrInDoubt marks a publish or a change of a cache whose answer did not come: it may have been carried out or not.
	// A frame that was being written when its context ended is written to its end, and its call is in doubt.
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
	// ErrBufferFull means that a publish did not fit in the buffer of [WhileDownBuffer]. Nothing was sent.
	ErrBufferFull = errors.New("client: buffer full")
	// ErrTimeout means that a call without a deadline of its own had no answer within [WithRequestTimeout].
	ErrTimeout = errors.New("client: no answer in time")
	// ErrFrameTooLarge means that a call would need a frame larger than [Transport].MaxFrame. Nothing was sent.
	ErrFrameTooLarge = errors.New("client: frame too large")
	// ErrInvalidTTL means that the lifetime of a cache entry is negative. Nothing was sent.
	ErrInvalidTTL = errors.New("client: invalid lifetime")
	// ErrInvalidName means that a name or a key cannot be sent: it is not UTF-8, or longer than 65 535 bytes. Nothing
	// was sent.
	ErrInvalidName = errors.New("client: invalid name")
)

// What a [BrokerError] can match, one for each [Code].
var (
	ErrUnauthenticated = errors.New("client: not authenticated")    // no token, or one that is not accepted
	ErrForbidden       = errors.New("client: forbidden")            // the token does not allow it
	ErrNotFound        = errors.New("client: not found")            // there is no such stream or cache
	ErrInvalid         = errors.New("client: invalid request")      // the request breaks a rule of the protocol
	ErrTooLarge        = errors.New("client: request too large")    // for the broker
	ErrPosition        = errors.New("client: position not kept")    // of a subscription; see [CursorError]
	ErrLimit           = errors.New("client: limit reached")        // of the tenant, the connection or the broker
	ErrOverloaded      = errors.New("client: broker overloaded")    // no space for it at present
	ErrClosing         = errors.New("client: broker shutting down") // another will take its place
	ErrStorage         = errors.New("client: broker's disk failed") // it is in doubt what was stored, so it matches [ErrInDoubt] too
)

// Code says what kind of refusal a [BrokerError] is: the short name in the table of errors, docs/protocol/errors.md. It
// is "" for a refusal that is not in the table.
type Code string

// sentinels are what the codes match.
var sentinels = map[codec.Code]error{
	codec.CodeUnauthenticated: ErrUnauthenticated,
	codec.CodeForbidden:       ErrForbidden,
	codec.CodeNotFound:        ErrNotFound,
	codec.CodeInvalid:         ErrInvalid,
	codec.CodeTooLarge:        ErrTooLarge,
	codec.CodePosition:        ErrPosition,
	codec.CodeLimit:           ErrLimit,
	codec.CodeOverloaded:      ErrOverloaded,
	codec.CodeClosing:         ErrClosing,
	codec.CodeStorage:         ErrStorage,
	codec.CodeInDoubt:         ErrInDoubt,
}

// Retryable reports whether the call that failed with err may succeed if it is made again, after a pause. The broker
// was not reachable, did not answer in time, or said that it has no space. It is false for errors of the caller's own,
// an ended context among them, and for nil.
//
// A publish that is in doubt may have been carried out: see whether err matches [ErrInDoubt] first, and make it again
// only if its subscribers can do with a duplicate.
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

// BrokerError is a refusal, in the broker's words. The text is for people; programs test for [ErrNotFound] and the
// others of its kind with errors.Is, or look at the code. An error that matches [ErrInDoubt] too is about the stream
// that a publish was sent on, and the publish itself was not answered.
type BrokerError struct{ Message string }

// Code returns the kind of the refusal.
func (e *BrokerError) Code() Code { return Code(codec.CodeOf(e.Message)) }

// Is reports whether target is the error of the refusal's code.
func (e *BrokerError) Is(target error) bool {
	code := codec.CodeOf(e.Message)
	if target == ErrInDoubt {
		return code == codec.CodeStorage || code == codec.CodeInDoubt
	}
	want := sentinels[code]
	return want != nil && want == target
}

func (e *BrokerError) Error() string { return "client: broker says: " + e.Message }

// Retryable reports whether the refusal is known to be about the moment, not about the request.
func (e *BrokerError) Retryable() bool { return codec.CodeOf(e.Message).Retryable() }

// CursorError says that a subscription's start position cannot be served.
type CursorError struct {
	TooOld    bool   // older than Available; otherwise in the future
	Requested uint64 // the offset asked for
	Available uint64 // the oldest offset that can be had, or the next one to come
}

// Is reports whether target is [ErrPosition].
func (e *CursorError) Is(target error) bool { return target == ErrPosition }

func (e *CursorError) Error() string {
	if e.TooOld {
		return fmt.Sprintf("client: start offset %d is too old, the oldest is %d", e.Requested, e.Available)
	}
	return fmt.Sprintf("client: start offset %d is in the future, the next is %d", e.Requested, e.Available)
}

// optionError is what is wrong with options, in words that need no prefix. It matches [ErrInvalidOption].
type optionError struct{ error }

func (e optionError) Is(target error) bool { return target == ErrInvalidOption }

func (e optionError) Unwrap() error { return e.error }

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
