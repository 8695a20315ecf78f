package storage

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"strconv"
	"strings"
)

// The format of segments and indexes, version 2. All numbers are big-endian, checksums are CRC-32 (IEEE).
//
//	segment   magic 4 │ version 2 │ flags 2 │ base offset 8 │ created 8 │ crc of the 24 before 4 │ 0 4 │ records …
//	record    length 4 │ offset 8 │ time 8 │ crc of the 20 before 4 │ crc of the 24 before and the payload 4 │ payload
//	index     magic 4 │ version 2 │ flags 2 │ base offset 8 │ 0 8 │ entries: offset 8, position in the segment 8 …
//
// Times are microseconds since 1970. A record's header has a checksum of its own, so that a payload that is cut off by
// the end of the file is known to be unfinished.
const (
	segmentMagic      = 0x464C5347
	indexMagic        = 0x464C5349
	formatVersion     = 2
	segmentHeaderSize = 32
	recordHeaderSize  = 28
	indexHeaderSize   = 24
	indexEntrySize    = 16

	segmentKind = ".log"
	indexKind   = ".index"

	// MaxPayload is the largest payload of a record, in bytes.
	MaxPayload = 64 << 20
)

// Record is one record of a log.
type Record struct {
	Offset  uint64
	Time    int64 // when it was appended, in microseconds since 1970
	Payload []byte
}

func appendSegmentHeader(base uint64, created int64) []byte {
	b := make([]byte, 0, segmentHeaderSize)
	b = binary.BigEndian.AppendUint32(b, segmentMagic)
	b = binary.BigEndian.AppendUint16(b, formatVersion)
	b = binary.BigEndian.AppendUint16(b, 0)
	b = binary.BigEndian.AppendUint64(b, base)
	b = binary.BigEndian.AppendUint64(b, uint64(created))
	b = binary.BigEndian.AppendUint32(b, crc32.ChecksumIEEE(b))
	return binary.BigEndian.AppendUint32(b, 0)
}

// parseSegmentHeader returns the base offset. Its error lacks the file's name.
func parseSegmentHeader(b []byte) (base uint64, err *CorruptionError) {
	if len(b) < segmentHeaderSize {
		return 0, &CorruptionError{Damage: DamageTruncated, Expected: segmentHeaderSize, Found: uint64(len(b))}
	}
	if m := binary.BigEndian.Uint32(b); m != segmentMagic {
		return 0, &CorruptionError{Damage: DamageMagic, Expected: segmentMagic, Found: uint64(m)}
	}
	if v := binary.BigEndian.Uint16(b[4:]); v != formatVersion {
		return 0, &CorruptionError{Damage: DamageVersion, Expected: formatVersion, Found: uint64(v)}
	}
	if f := binary.BigEndian.Uint16(b[6:]); f != 0 {
		return 0, &CorruptionError{Damage: DamageFlags, Found: uint64(f)}
	}
	if want, got := crc32.ChecksumIEEE(b[:24]), binary.BigEndian.Uint32(b[24:]); want != got {
		return 0, &CorruptionError{Damage: DamageFileHeader, Expected: uint64(want), Found: uint64(got)}
	}
	return binary.BigEndian.Uint64(b[8:]), nil
}

// appendRecord appends the encoded record.
func appendRecord(b []byte, r Record) []byte {
	n := len(b)
	b = binary.BigEndian.AppendUint32(b, uint32(len(r.Payload)))
	b = binary.BigEndian.AppendUint64(b, r.Offset)
	b = binary.BigEndian.AppendUint64(b, uint64(r.Time))
	b = binary.BigEndian.AppendUint32(b, crc32.ChecksumIEEE(b[n:]))
	sum := crc32.Update(crc32.ChecksumIEEE(b[n:]), crc32.IEEETable, r.Payload)
	b = binary.BigEndian.AppendUint32(b, sum)
	return append(b, r.Payload...)
}

func recordSize(payload int) int64 { return recordHeaderSize + int64(payload) }

// parseRecord returns the record at the begin of b as a view, and its size. rest is how many bytes the file has from
// there on, which may be more than b has. If b has too few of them, n is the size that it needs and r is empty.
// want is the offset that the record must have. The error lacks file and position.
func parseRecord(b []byte, rest int64, want uint64) (r Record, n int64, err *CorruptionError) {
	if rest < recordHeaderSize {
		return r, 0, &CorruptionError{Damage: DamageTruncated, Expected: recordHeaderSize, Found: uint64(rest)}
	}
	if len(b) < recordHeaderSize {
		return r, recordHeaderSize, nil
	}
	if want, got := crc32.ChecksumIEEE(b[:20]), binary.BigEndian.Uint32(b[20:]); want != got {
		return r, 0, &CorruptionError{Damage: DamageRecordHeader, Expected: uint64(want), Found: uint64(got)}
	}
	length := int64(binary.BigEndian.Uint32(b))
	if length > MaxPayload {
		return r, 0, &CorruptionError{Damage: DamageRecordTooLarge, Expected: MaxPayload, Found: uint64(length)}
	}
	n = recordHeaderSize + length
	if rest < n {
		return r, 0, &CorruptionError{Damage: DamageTruncated, Expected: uint64(n), Found: uint64(rest)}
	}
	if int64(len(b)) < n {
		return r, n, nil
	}
	payload := b[recordHeaderSize:n:n]
	sum := crc32.Update(crc32.ChecksumIEEE(b[:24]), crc32.IEEETable, payload)
	if got := binary.BigEndian.Uint32(b[24:]); sum != got {
		return r, n, &CorruptionError{Damage: DamageRecord, Expected: uint64(sum), Found: uint64(got)}
	}
	r = Record{binary.BigEndian.Uint64(b[4:]), int64(binary.BigEndian.Uint64(b[12:])), payload}
	if r.Offset != want {
		return Record{}, n, &CorruptionError{Damage: DamageOffset, Expected: want, Found: r.Offset}
	}
	return r, n, nil
}

func appendIndexHeader(base uint64) []byte {
	b := make([]byte, 0, indexHeaderSize)
	b = binary.BigEndian.AppendUint32(b, indexMagic)
	b = binary.BigEndian.AppendUint16(b, formatVersion)
	b = binary.BigEndian.AppendUint16(b, 0)
	b = binary.BigEndian.AppendUint64(b, base)
	return binary.BigEndian.AppendUint64(b, 0)
}

// indexEntry says where a record begins in its segment.
type indexEntry struct {
	offset   uint64
	position int64
}

func appendIndexEntry(b []byte, e indexEntry) []byte {
	return binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint64(b, e.offset), uint64(e.position))
}

// parseIndex returns the entries that ascend and lie in a segment of size bytes, or false if the index is not of that
// base.
func parseIndex(b []byte, base uint64, size int64) ([]indexEntry, bool) {
	if len(b) < indexHeaderSize || string(b[:indexHeaderSize]) != string(appendIndexHeader(base)) {
		return nil, false
	}
	b = b[indexHeaderSize:]
	entries := make([]indexEntry, 0, len(b)/indexEntrySize)
	for ; len(b) >= indexEntrySize; b = b[indexEntrySize:] {
		e := indexEntry{binary.BigEndian.Uint64(b), int64(binary.BigEndian.Uint64(b[8:]))}
		last := indexEntry{position: segmentHeaderSize - 1}
		if len(entries) > 0 {
			last = entries[len(entries)-1]
		} else if e.offset < base {
			continue
		}
		if (len(entries) > 0 && e.offset <= last.offset) || e.position <= last.position || e.position >= size {
			continue
		}
		entries = append(entries, e)
	}
	return entries, true
}

// segmentName returns the name of the segment's file of that kind, ".log" or ".index".
func segmentName(id uint64, kind string) string { return fmt.Sprintf("%020d%s", id, kind) }

// parseID returns the number that a file of that kind has for a name.
func parseID(name, kind string) (uint64, bool) {
	stem, ok := strings.CutSuffix(name, kind)
	if !ok {
		return 0, false
	}
	id, err := strconv.ParseUint(stem, 10, 64)
	return id, err == nil && stem != "" && stem[0] != '+'
}
