package storage

import (
	"errors"
	"fmt"

	"github.com/felix-mq/felix/internal/vfs"
)

// Reasons for which the store or a log refuses something.
var (
	// ErrInUse means that another process has the data directory open.
	ErrInUse = vfs.ErrLocked
	// ErrClosed means that the store has been closed.
	ErrClosed = errors.New("storage: closed")
	// ErrFailed means that a write or a sync has failed before. Nothing is accepted until the store is opened again.
	ErrFailed = errors.New("storage: a write has failed; the store accepts nothing until it is opened again")
	// ErrFull means that less than the configured headroom is left on the device. Retention or an operator may change
	// that.
	ErrFull = errors.New("storage: the device is nearly full")
	// ErrTooLarge means that a payload is above [MaxPayload]. Nothing of its batch was appended.
	ErrTooLarge = errors.New("storage: a payload is larger than 64 MiB")
	// ErrNoLog means that a name is none that a log has.
	ErrNoLog = errors.New("storage: no name of a log")
	// ErrEmpty means that a batch has no records.
	ErrEmpty = errors.New("storage: a batch without records")
)

// RangeError means that a log does not have the records that were asked for.
type RangeError struct {
	Requested uint64 // the offset asked for
	Base      uint64 // the oldest offset there is
	Tail      uint64 // the offset that the next record gets
}

// TooOld reports whether the records were there once and have been removed.
func (e *RangeError) TooOld() bool { return e.Requested < e.Base }

func (e *RangeError) Error() string {
	if e.TooOld() {
		return fmt.Sprintf("storage: offset %d is too old; the oldest is %d", e.Requested, e.Base)
	}
	return fmt.Sprintf("storage: offset %d is in the future; the next is %d", e.Requested, e.Tail)
}

// Damage is a kind of corruption.
type Damage string

// What can be wrong with a file.
const (
	DamageMagic          Damage = "wrong magic number"
	DamageVersion        Damage = "unknown format version"
	DamageFlags          Damage = "unknown flags"
	DamageFileHeader     Damage = "checksum of the file's header does not match"
	DamageTruncated      Damage = "truncated"
	DamageRecord         Damage = "checksum of a record does not match"
	DamageRecordHeader   Damage = "checksum of a record's header does not match"
	DamageRecordTooLarge Damage = "record above the limit"
	DamageOffset         Damage = "offset out of order"
	DamageMissing        Damage = "file missing"
)

// CorruptionError says what is wrong with a file, and where. Nothing was changed.
type CorruptionError struct {
	Damage          Damage
	File            string // relative to the data directory
	Position        int64  // in bytes
	Expected, Found uint64 // where the damage has such
}

func (e *CorruptionError) Error() string {
	return fmt.Sprintf("storage: %s (file=%s, position=%d, expected=%#x, found=%#x)", e.Damage, e.File, e.Position, e.Expected, e.Found)
}
