package codec

import (
	"errors"
	"fmt"
)

// Error is a malformation. Errors of one class match each other with errors.Is, so the values below are what callers
// compare with.
type Error struct {
	class  string
	detail string
}

// The classes of malformation, one value for each. Errors that decoders return carry more detail.
var (
	// ErrShortHeader means that there are fewer than [HeaderLen] bytes.
	ErrShortHeader = &Error{class: "short_header", detail: "frame header is incomplete"}
	// ErrMagic means that the header does not begin with "FLX1".
	ErrMagic = &Error{class: "bad_magic", detail: "wrong magic in the frame header"}
	// ErrVersion means that the version in the header is not 1.
	ErrVersion = &Error{class: "bad_version", detail: "wrong version in the frame header"}
	// ErrFrameTooLarge means that the declared length is above the receiver's limit.
	ErrFrameTooLarge = &Error{class: "frame_too_large", detail: "frame is too large"}
	// ErrUnknownFlags means that a flag bit is set that has no meaning here.
	ErrUnknownFlags = &Error{class: "unknown_flags", detail: "unknown flag bits"}
	// ErrFlagCombination means that the flags are known and do not go together.
	ErrFlagCombination = &Error{class: "flag_combination", detail: "flags that do not go together"}
	// ErrIncomplete means that a binary payload ends before what it declares.
	ErrIncomplete = &Error{class: "incomplete", detail: "payload is incomplete"}
	// ErrNotUTF8 means that a text is not UTF-8.
	ErrNotUTF8 = &Error{class: "not_utf8", detail: "text is not UTF-8"}
	// ErrAckMode means that the ack mode of an acknowledged batch is neither 1 nor 2.
	ErrAckMode = &Error{class: "ack_mode", detail: "unknown ack mode"}
	// ErrAckStatus means that the status of an acknowledgement is neither 0 nor 1.
	ErrAckStatus = &Error{class: "ack_status", detail: "unknown acknowledgement status"}
	// ErrSyntax means that a payload is not one well-formed JSON value, or too deep, or holds a number no double can.
	ErrSyntax = &Error{class: "json_syntax", detail: "malformed JSON"}
	// ErrType means that a JSON value has the wrong type or is out of its range.
	ErrType = &Error{class: "json_type", detail: "JSON value of the wrong type or out of range"}
	// ErrMissingField means that a required member, or the type, is missing or null.
	ErrMissingField = &Error{class: "json_missing_field", detail: "required member is missing"}
	// ErrDuplicateField means that a member of the message occurs twice.
	ErrDuplicateField = &Error{class: "json_duplicate_field", detail: "member occurs twice"}
	// ErrUnknownType means that the message's type is not one of docs/protocol/wire.md#messages.
	ErrUnknownType = &Error{class: "json_unknown_type", detail: "unknown message type"}
	// ErrBase64 means that a binary value is not strict standard base64.
	ErrBase64 = &Error{class: "base64", detail: "malformed base64"}
	// ErrExtensionType means that an extension frame has a type that its receiver does not know.
	ErrExtensionType = &Error{class: "extension_type", detail: "unknown type of extension frame"}
)

// Errors of callers, not of peers.
var (
	// ErrNameTooLong means that a name does not fit into a binary frame: 65 535 bytes are the most.
	ErrNameTooLong = errors.New("codec: name is longer than 65535 bytes")
	// ErrBatchTooLarge means that a batch does not fit into any frame: 4 294 967 295 bytes are the most.
	ErrBatchTooLarge = errors.New("codec: batch is larger than 4294967295 bytes")
)

func (e *Error) Error() string { return "codec: " + e.detail }

// Is reports whether target is an Error of the same class.
func (e *Error) Is(target error) bool {
	t, ok := target.(*Error)
	return ok && t.class == e.class
}

// ClassOf returns the class of a malformation, as the test vectors name it: short_header, bad_magic, bad_version,
// frame_too_large, unknown_flags, flag_combination, incomplete, not_utf8, ack_mode, ack_status, json_syntax, json_type,
// json_missing_field, json_duplicate_field, json_unknown_type, base64 or extension_type. It is "" for other errors.
// There are few of them, so they serve as the values of a metric's label.
func ClassOf(err error) string {
	if e, ok := errors.AsType[*Error](err); ok {
		return e.class
	}
	return ""
}

// with returns an error of e's class that says more.
func (e *Error) with(format string, args ...any) *Error {
	return &Error{class: e.class, detail: fmt.Sprintf(format, args...)}
}
