package cache

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"math"

	"github.com/felix-mq/felix/internal/buf"
)

// The format of a snapshot. All numbers are little-endian, checksums are CRC32C, and each byte is under one of them.
//
//	header │ block │ block │ … │ index │ footer
//
//	header  magic, format, directory, snapshot, time of the wall clock in nanoseconds, checksum
//	block   entries: scope, lengths of key and value, version, end of the lifetime by the wall clock, key, value
//	index   scopes by number; length, entries and checksum of each block
//	footer  snapshot, length of the index, entries, last version, checksum of the index, magic, checksum
//
// Without a footer that fits, a file is torn and counts as none. A block is good or bad by itself.

const (
	snapshotMagic  = "FELIXCSN"
	footerMagic    = "FELIXEND"
	versionsMagic  = "FELIXCVR"
	snapshotFormat = 1

	headerSize   = 8 + 4 + 16 + 8 + 8 + 4
	footerSize   = 8 + 8 + 8 + 8 + 4 + 8 + 4
	versionsSize = 8 + 4 + 16 + 8 + 8 + 4

	// maxVersion is far above all versions, and far from where they would begin again at 0.
	maxVersion = 1 << 63

	// blockBytes is the size at which a block ends. One that has a larger entry has nothing after it.
	blockBytes = 256 << 10
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func checksum(b []byte) uint32 { return crc32.Checksum(b, castagnoli) }

// sealed appends the checksum of b to it.
func sealed(b []byte) []byte { return binary.LittleEndian.AppendUint32(b, checksum(b)) }

// unsealed returns what sealed has got, or false.
func unsealed(b []byte) ([]byte, bool) {
	n := len(b) - 4
	if n < 0 || checksum(b[:n]) != binary.LittleEndian.Uint32(b[n:]) {
		return nil, false
	}
	return b[:n], true
}

type directoryID [16]byte

// snapshotHeader says what a snapshot is of.
type snapshotHeader struct {
	directory directoryID
	id        uint64 // of the snapshot; not 0
	taken     int64  // wall clock
}

func (h snapshotHeader) append(b []byte) []byte {
	begin := len(b)
	b = append(b, snapshotMagic...)
	b = binary.LittleEndian.AppendUint32(b, snapshotFormat)
	b = append(b, h.directory[:]...)
	b = binary.LittleEndian.AppendUint64(b, h.id)
	b = binary.LittleEndian.AppendUint64(b, uint64(h.taken))
	return append(b[:begin], sealed(b[begin:])...)
}

var (
	errTorn   = errors.New("the file is torn, or is no snapshot")
	errFormat = errors.New("the format of the file is unknown")
)

func parseHeader(b []byte) (h snapshotHeader, err error) {
	b, ok := unsealed(b)
	if !ok || len(b) != headerSize-4 || string(b[:8]) != snapshotMagic {
		return h, errTorn
	}
	if n := binary.LittleEndian.Uint32(b[8:]); n != snapshotFormat {
		return h, fmt.Errorf("%w: %d", errFormat, n)
	}
	copy(h.directory[:], b[12:])
	h.id, h.taken = binary.LittleEndian.Uint64(b[28:]), int64(binary.LittleEndian.Uint64(b[36:]))
	return h, nil
}

// snapshotFooter makes a snapshot a whole.
type snapshotFooter struct {
	id       uint64
	index    uint64 // length
	entries  uint64
	version  uint64 // that no entry is above
	indexSum uint32
}

func (f snapshotFooter) append(b []byte) []byte {
	begin := len(b)
	for _, n := range []uint64{f.id, f.index, f.entries, f.version} {
		b = binary.LittleEndian.AppendUint64(b, n)
	}
	b = binary.LittleEndian.AppendUint32(b, f.indexSum)
	b = append(b, footerMagic...)
	return append(b[:begin], sealed(b[begin:])...)
}

func parseFooter(b []byte) (f snapshotFooter, err error) {
	b, ok := unsealed(b)
	if !ok || len(b) != footerSize-4 || string(b[36:]) != footerMagic {
		return f, errTorn
	}
	f.id, f.index = binary.LittleEndian.Uint64(b), binary.LittleEndian.Uint64(b[8:])
	f.entries, f.version = binary.LittleEndian.Uint64(b[16:]), binary.LittleEndian.Uint64(b[24:])
	f.indexSum = binary.LittleEndian.Uint32(b[32:])
	if f.version > maxVersion {
		return snapshotFooter{}, errTorn
	}
	return f, nil
}

// blockInfo is what the index has of a block.
type blockInfo struct {
	length, entries, sum uint32
}

func encodeIndex(scopes []Scope, blocks []blockInfo) []byte {
	b := binary.AppendUvarint(nil, uint64(len(scopes)))
	for _, s := range scopes {
		for _, name := range []string{s.Tenant, s.Namespace, s.Cache} {
			b = binary.AppendUvarint(b, uint64(len(name)))
			b = append(b, name...)
		}
	}
	b = binary.AppendUvarint(b, uint64(len(blocks)))
	for _, i := range blocks {
		b = binary.LittleEndian.AppendUint32(b, i.length)
		b = binary.LittleEndian.AppendUint32(b, i.entries)
		b = binary.LittleEndian.AppendUint32(b, i.sum)
	}
	return b
}

func parseIndex(b []byte) (scopes []Scope, blocks []blockInfo, err error) {
	p := parser{b: b}
	for n := p.uvarint(); n > 0 && !p.failed; n-- {
		scopes = append(scopes, Scope{string(p.bytes(p.uvarint())), string(p.bytes(p.uvarint())), string(p.bytes(p.uvarint()))})
	}
	for n := p.uvarint(); n > 0 && !p.failed; n-- {
		info := p.bytes(12)
		if p.failed {
			break
		}
		blocks = append(blocks, blockInfo{
			binary.LittleEndian.Uint32(info), binary.LittleEndian.Uint32(info[4:]), binary.LittleEndian.Uint32(info[8:]),
		})
	}
	if p.failed || len(p.b) > 0 {
		return nil, nil, errTorn
	}
	return scopes, blocks, nil
}

// storedEntry is an entry of a block. Its bytes are those of the block.
type storedEntry struct {
	scope      uint64 // number in the index
	version    uint64
	expires    int64 // wall clock; 0 for never
	key, value []byte
}

func (e *storedEntry) append(b []byte) []byte {
	b = binary.AppendUvarint(b, e.scope)
	b = binary.AppendUvarint(b, uint64(len(e.key)))
	b = binary.AppendUvarint(b, uint64(len(e.value)))
	b = binary.LittleEndian.AppendUint64(b, e.version)
	b = binary.LittleEndian.AppendUint64(b, uint64(e.expires))
	b = append(b, e.key...)
	return append(b, e.value...)
}

// eachEntry calls f with each entry of a block. With an error, f has been called with those before the damage.
func eachEntry(block []byte, entries uint32, scopes int, f func(*storedEntry)) error {
	p := parser{b: block}
	for range entries {
		e := storedEntry{scope: p.uvarint()}
		key, value := p.uvarint(), p.uvarint()
		if numbers := p.bytes(16); !p.failed {
			e.version, e.expires = binary.LittleEndian.Uint64(numbers), int64(binary.LittleEndian.Uint64(numbers[8:]))
		}
		e.key, e.value = p.bytes(key), p.bytes(value)
		if p.failed || e.scope >= uint64(scopes) || e.version == 0 || e.expires < 0 {
			return errTorn
		}
		f(&e)
	}
	if len(p.b) > 0 {
		return errTorn
	}
	return nil
}

// parser cuts pieces off b. After the first that is not there it gives nothing any more.
type parser struct {
	b      []byte
	failed bool
}

func (p *parser) uvarint() uint64 {
	v, n := binary.Uvarint(p.b)
	if p.failed || n <= 0 {
		p.failed = true
		return 0
	}
	p.b = p.b[n:]
	return v
}

func (p *parser) bytes(n uint64) []byte {
	if p.failed || n > uint64(len(p.b)) {
		p.failed = true
		return nil
	}
	part := p.b[:n:n]
	p.b = p.b[n:]
	return part
}

// versionsFile is a small file of the directory, which says what a later life of the store has to know even if there is
// no snapshot.
type versionsFile struct {
	directory directoryID
	bound     uint64 // no version above it was given out
	clean     uint64 // the snapshot after which nothing has changed any more, or 0
}

func (v versionsFile) append(b []byte) []byte {
	begin := len(b)
	b = append(b, versionsMagic...)
	b = binary.LittleEndian.AppendUint32(b, snapshotFormat)
	b = append(b, v.directory[:]...)
	b = binary.LittleEndian.AppendUint64(b, v.bound)
	b = binary.LittleEndian.AppendUint64(b, v.clean)
	return append(b[:begin], sealed(b[begin:])...)
}

func parseVersions(b []byte) (v versionsFile, err error) {
	b, ok := unsealed(b)
	if !ok || len(b) != versionsSize-4 || string(b[:8]) != versionsMagic {
		return v, errTorn
	}
	if n := binary.LittleEndian.Uint32(b[8:]); n != snapshotFormat {
		return v, fmt.Errorf("%w: %d", errFormat, n)
	}
	copy(v.directory[:], b[12:])
	v.bound, v.clean = binary.LittleEndian.Uint64(b[28:]), binary.LittleEndian.Uint64(b[36:])
	if v.bound > maxVersion {
		return versionsFile{}, errTorn
	}
	return v, nil
}

// wallTimes turns times of a store into those of the wall clock, and back. Both are in nanoseconds.
type wallTimes struct{ wall, store int64 } // of the same moment

// toWall returns when an entry is over by the wall clock, or 0 for never.
func (w wallTimes) toWall(expires int64) int64 {
	if expires == 0 {
		return 0
	}
	return max(saturated(w.wall, expires-w.store), 1)
}

// toStore returns when an entry is over by the store, or 0 for never. It reports false if it is over already.
func (w wallTimes) toStore(expires int64) (int64, bool) {
	if expires == 0 {
		return 0, true
	}
	if expires <= w.wall {
		return 0, false
	}
	return max(saturated(w.store, expires-w.wall), 1), true
}

// saturated returns a + b, or the largest number where that is too large; a is not negative.
func saturated(a, b int64) int64 {
	if b > math.MaxInt64-a {
		return math.MaxInt64
	}
	return a + b
}

// entryCost is what an entry is charged, before it is held.
func entryCost(key, value int) int64 { return int64(key+buf.CapOf(value)) + entryOverhead }
