package storage

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"math"
	"slices"
)

// The form of an export: all records of a log, to be kept elsewhere or read by other programs. All numbers are
// big-endian.
//
//	export   magic 4 │ version 2 │ flags 2 │ base offset 8 │ tail offset 8 │ crc of the 24 before 4 │ records …
//
// Records are those of a segment, with the offsets from base up to tail, so an export that is cut off is known to be.
const (
	exportMagic      = 0x464C4558 // FLEX
	exportVersion    = 1
	exportHeaderSize = 28

	// exportName stands for a file's name in errors.
	exportName = "export"
)

// ErrNotEmpty means that a log has records, or had some, and so cannot begin at another offset.
var ErrNotEmpty = errors.New("storage: the log is not empty")

// Export writes the records that the log has when it is called to w. The caller sees to it that retention removes none
// meanwhile; otherwise the error is a [RangeError]. It reads from the disk.
func (l *Log) Export(w io.Writer) error {
	b := l.Bounds()
	head := binary.BigEndian.AppendUint32(nil, exportMagic)
	head = binary.BigEndian.AppendUint16(head, exportVersion)
	head = binary.BigEndian.AppendUint16(head, 0)
	head = binary.BigEndian.AppendUint64(head, b.Base)
	head = binary.BigEndian.AppendUint64(head, b.Tail)
	head = binary.BigEndian.AppendUint32(head, crc32.ChecksumIEEE(head))
	if _, err := w.Write(head); err != nil {
		return err
	}
	r, err := l.Read(b.Base)
	if err != nil {
		return err
	}
	defer r.Free()
	var page []byte
	for {
		records, err := r.NextBefore(readWindow, b.Tail, nil)
		if err != nil || len(records) == 0 {
			return err
		}
		page = page[:0]
		for _, rec := range records {
			page = appendRecord(page, rec)
		}
		if _, err := w.Write(page); err != nil {
			return err
		}
	}
}

// ReadExport reads what [Log.Export] has written. It calls begin with the offsets of the first record and after the
// last one, and each with every record in order, whose payload is a view until each returns. It ends with their first
// error. An export that is damaged or not complete is a [CorruptionError]; what each was called with before is right.
// Memory is that of the largest record.
func ReadExport(from io.Reader, begin func(base, tail uint64) error, each func(Record) error) error {
	r := bufio.NewReaderSize(from, readWindow)
	position := int64(0)
	fail := func(bad *CorruptionError) error {
		bad.File, bad.Position = exportName, position
		return bad
	}
	// read reads n bytes, of which b has some.
	read := func(b []byte, n int64) ([]byte, error) {
		have := len(b)
		b = slices.Grow(b, int(n)-have)[:n]
		got, err := io.ReadFull(r, b[have:])
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			err = fail(&CorruptionError{Damage: DamageTruncated, Expected: uint64(n), Found: uint64(have + got)})
		}
		return b, err
	}
	head, err := read(nil, exportHeaderSize)
	if err != nil {
		return err
	}
	base, tail, bad := parseExportHeader(head)
	if bad != nil {
		return fail(bad)
	}
	if err := begin(base, tail); err != nil {
		return err
	}
	position = exportHeaderSize
	var b []byte
	for next := base; next < tail; next++ {
		if b, err = read(b[:0], recordHeaderSize); err != nil {
			return err
		}
		_, n, bad := parseRecord(b, math.MaxInt64, next)
		if bad == nil && n > int64(len(b)) {
			if b, err = read(b, n); err != nil {
				return err
			}
		}
		rec, n, bad := parseRecord(b, math.MaxInt64, next)
		if bad != nil {
			return fail(bad)
		}
		if err := each(rec); err != nil {
			return err
		}
		position += n
	}
	if _, err := r.ReadByte(); !errors.Is(err, io.EOF) {
		if err != nil {
			return err
		}
		return fail(&CorruptionError{Damage: DamageOffset, Expected: tail, Found: tail})
	}
	return nil
}

func parseExportHeader(b []byte) (base, tail uint64, err *CorruptionError) {
	if m := binary.BigEndian.Uint32(b); m != exportMagic {
		return 0, 0, &CorruptionError{Damage: DamageMagic, Expected: exportMagic, Found: uint64(m)}
	}
	if v := binary.BigEndian.Uint16(b[4:]); v != exportVersion {
		return 0, 0, &CorruptionError{Damage: DamageVersion, Expected: exportVersion, Found: uint64(v)}
	}
	if f := binary.BigEndian.Uint16(b[6:]); f != 0 {
		return 0, 0, &CorruptionError{Damage: DamageFlags, Found: uint64(f)}
	}
	if want, got := crc32.ChecksumIEEE(b[:24]), binary.BigEndian.Uint32(b[24:]); want != got {
		return 0, 0, &CorruptionError{Damage: DamageFileHeader, Expected: uint64(want), Found: uint64(got)}
	}
	base, tail = binary.BigEndian.Uint64(b[8:]), binary.BigEndian.Uint64(b[16:])
	if base > tail {
		return 0, 0, &CorruptionError{Damage: DamageOffset, Expected: base, Found: tail}
	}
	return base, tail, nil
}

// Restore puts records into a log that has none, with the offsets and times that they had elsewhere. It belongs to one
// goroutine, and nobody else appends to the log meanwhile. Begin at [Log.Restore].
type Restore struct {
	l    *Log
	next uint64
	b    []byte // encoded, and not appended yet
	n    uint64
}

// Restore makes the log begin at an offset. It fails with [ErrNotEmpty] if the log has records, or has had some beyond
// that offset.
func (l *Log) Restore(base uint64) (*Restore, error) {
	l.order.Lock()
	defer l.order.Unlock()
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.segments) > 0 || l.next != l.tail.Load() || base < l.next {
		return nil, fmt.Errorf("%w: it has %d to %d", ErrNotEmpty, l.base.Load(), l.next)
	}
	l.base.Store(base)
	l.tail.Store(base)
	l.next = base
	return &Restore{l: l, next: base}, nil
}

// restoreBytes is how much is appended at once.
const restoreBytes = 1 << 20

// Add adds the next record, whose payload it copies. It may wait until those before are on the device. What was added
// before an error may be in the log.
func (r *Restore) Add(rec Record) error {
	if rec.Offset != r.next {
		return fmt.Errorf("storage: offset %d follows, want %d", rec.Offset, r.next)
	}
	if len(rec.Payload) > MaxPayload {
		return ErrTooLarge
	}
	r.b = appendRecord(r.b, rec)
	r.next++
	r.n++
	if len(r.b) >= restoreBytes {
		return r.Flush()
	}
	return nil
}

// Flush returns when all that was added is on the device.
func (r *Restore) Flush() error {
	if r.n == 0 {
		return nil
	}
	l := r.l
	if err := l.s.admit(int64(len(r.b))); err != nil {
		return err
	}
	done := make(chan error, 1)
	p := pendings.Get().(*pending)
	p.log, p.class, p.done, p.tagged = l, ClassDevice, func(err error) { done <- err }, false
	p.bytes = append(p.bytes[:0], r.b...)
	l.order.Lock()
	l.next += r.n
	l.s.enqueue(p)
	l.order.Unlock()
	l.s.kick()
	r.b, r.n = r.b[:0], 0
	return <-done
}
