package storage

import (
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"math"
	"path"
	"slices"
	"sync"

	"github.com/felix-mq/felix/internal/vfs"
)

// The format of journal files. All numbers are big-endian. Entries begin at multiples of 8 bytes.
//
//	file    magic 4 │ version 2 │ flags 2 │ number 8 │ sequence of the first entry 8 │ salt 8 │ crc of these 4 │ 0 4
//	entry   kind 4 │ length of the body 4 │ sequence 8 │ synced 8 │ log 4 │ crc 4 │ body
//
// An entry's crc begins with the file's salt, which is random. So neither what an older use of the same file has left
// nor a payload that looks like an entry is taken for one. It covers the header before it and, except for records,
// which have checksums of their own, the body.
//
// "synced" is the sequence below which all entries were on the device when this one was written. If an entry is damaged
// and a later one says that it was synced, a device has lost what it had promised to keep. If no later one does, it is
// the unfinished end of the last write, which nobody was told to be safe.
//
// Bodies:
//
//	name     begins the use of a log in a file: tail 8 │ segment 8 │ position 8 │ name of the log's directory
//	records  encoded records of one log with consecutive offsets
//	tags     who appended the batches of the next entry, where that is known: offset 8 │ producer 16 │ sequence 8, …
//	end      the file is complete, and the next one follows
//
// The flag fresh of a file says that the files before it are obsolete, even if they are still there.
//
// The position of a name is how much of which segment has been written; all of it was synced when the journal file
// before this one was removed.
const (
	journalMagic      = 0x464C4A52 // FLJR
	journalVersion    = 2          // 1 has no tags
	journalHeaderSize = 40
	entryHeaderSize   = 32
	entryAlign        = 8

	flagFresh = 1

	entryName    = 1
	entryRecords = 2
	entryEnd     = 3
	entryTags    = 4

	journalDir  = "journal"
	journalKind = ".wal"
	spareName   = "spare"
)

func appendJournalHeader(b []byte, flags uint16, number, first, salt uint64) []byte {
	n := len(b)
	b = binary.BigEndian.AppendUint32(b, journalMagic)
	b = binary.BigEndian.AppendUint16(b, journalVersion)
	b = binary.BigEndian.AppendUint16(b, flags)
	b = binary.BigEndian.AppendUint64(b, number)
	b = binary.BigEndian.AppendUint64(b, first)
	b = binary.BigEndian.AppendUint64(b, salt)
	b = binary.BigEndian.AppendUint32(b, crc32.ChecksumIEEE(b[n:]))
	return binary.BigEndian.AppendUint32(b, 0)
}

func parseJournalHeader(b []byte, number uint64) (flags uint16, first, salt uint64, err *CorruptionError) {
	if len(b) < journalHeaderSize {
		return 0, 0, 0, &CorruptionError{Damage: DamageTruncated, Expected: journalHeaderSize, Found: uint64(len(b))}
	}
	if m := binary.BigEndian.Uint32(b); m != journalMagic {
		return 0, 0, 0, &CorruptionError{Damage: DamageMagic, Expected: journalMagic, Found: uint64(m)}
	}
	if v := binary.BigEndian.Uint16(b[4:]); v != journalVersion && v != 1 {
		return 0, 0, 0, &CorruptionError{Damage: DamageVersion, Expected: journalVersion, Found: uint64(v)}
	}
	if flags = binary.BigEndian.Uint16(b[6:]); flags&^flagFresh != 0 {
		return 0, 0, 0, &CorruptionError{Damage: DamageFlags, Found: uint64(flags)}
	}
	if want, got := crc32.ChecksumIEEE(b[:32]), binary.BigEndian.Uint32(b[32:]); want != got {
		return 0, 0, 0, &CorruptionError{Damage: DamageFileHeader, Expected: uint64(want), Found: uint64(got)}
	}
	if n := binary.BigEndian.Uint64(b[8:]); n != number {
		return 0, 0, 0, &CorruptionError{Damage: DamageOffset, Expected: number, Found: n}
	}
	return flags, binary.BigEndian.Uint64(b[16:]), binary.BigEndian.Uint64(b[24:]), nil
}

// entry is the header of an entry.
type entry struct {
	kind     uint32
	length   uint32
	sequence uint64
	synced   uint64
	log      uint32
}

// sum returns the entry's checksum, given the file's salt, the header without the checksum and the body.
func (e entry) sum(salt uint64, header, body []byte) uint32 {
	var seed [8]byte
	binary.BigEndian.PutUint64(seed[:], salt)
	sum := crc32.Update(crc32.ChecksumIEEE(seed[:]), crc32.IEEETable, header)
	if e.kind != entryRecords {
		sum = crc32.Update(sum, crc32.IEEETable, body)
	}
	return sum
}

// appendEntryHeader appends a header. The body of an entry that is not of records must be given.
func appendEntryHeader(b []byte, salt uint64, e entry, body []byte) []byte {
	n := len(b)
	b = binary.BigEndian.AppendUint32(b, e.kind)
	b = binary.BigEndian.AppendUint32(b, e.length)
	b = binary.BigEndian.AppendUint64(b, e.sequence)
	b = binary.BigEndian.AppendUint64(b, e.synced)
	b = binary.BigEndian.AppendUint32(b, e.log)
	return binary.BigEndian.AppendUint32(b, e.sum(salt, b[n:], body))
}

func appendEntry(b []byte, salt uint64, e entry, body []byte) []byte {
	e.length = uint32(len(body))
	b = append(appendEntryHeader(b, salt, e, body), body...)
	return pad(b)
}

func pad(b []byte) []byte {
	for len(b)%entryAlign != 0 {
		b = append(b, 0)
	}
	return b
}

// parseEntry reads an entry at the begin of b. It reports false if there is none that is whole.
func parseEntry(b []byte, salt uint64) (e entry, body []byte, ok bool) {
	if len(b) < entryHeaderSize {
		return e, nil, false
	}
	e = entry{
		kind: binary.BigEndian.Uint32(b), length: binary.BigEndian.Uint32(b[4:]), sequence: binary.BigEndian.Uint64(b[8:]),
		synced: binary.BigEndian.Uint64(b[16:]), log: binary.BigEndian.Uint32(b[24:]),
	}
	if e.kind < entryName || e.kind > entryTags {
		return e, nil, false
	}
	end := entryHeaderSize + int64(e.length)
	if e.kind != entryRecords && end > int64(len(b)) {
		return e, nil, false
	}
	if e.kind != entryRecords {
		body = b[entryHeaderSize:end]
	}
	if e.sum(salt, b[:28], body) != binary.BigEndian.Uint32(b[28:]) || end > int64(len(b)) {
		return e, nil, false
	}
	return e, b[entryHeaderSize:end:end], true
}

// nameBody is the body of a name entry.
type nameBody struct {
	tail     uint64
	segment  uint64
	position int64
	dir      string
}

func (n nameBody) append(b []byte) []byte {
	b = binary.BigEndian.AppendUint64(b, n.tail)
	b = binary.BigEndian.AppendUint64(b, n.segment)
	b = binary.BigEndian.AppendUint64(b, uint64(n.position))
	return append(b, n.dir...)
}

func parseNameBody(b []byte) (nameBody, bool) {
	if len(b) <= 24 {
		return nameBody{}, false
	}
	n := nameBody{
		tail: binary.BigEndian.Uint64(b), segment: binary.BigEndian.Uint64(b[8:]),
		position: int64(binary.BigEndian.Uint64(b[16:])), dir: string(b[24:]),
	}
	return n, n.position >= 0 && path.Base(n.dir) == n.dir
}

// journal writes journal files. It belongs to the committer, except where said.
type journal struct {
	fs    vfs.FS
	dir   string
	limit int64 // of a file, beyond which the next one is begun

	spare sync.Mutex // held while the spare file is taken or made

	file     vfs.File
	number   uint64
	salt     uint64
	pos      int64
	sequence uint64 // of the next entry
	synced   uint64 // all entries below are on the device
	logs     uint32 // named in this file
}

func (j *journal) name(number uint64) string {
	return path.Join(j.dir, segmentName(number, journalKind))
}

// begin makes the file of that number, with these flags, and goes on there. It appears under its name when its header
// is on the device, so a header that is damaged has been damaged since.
func (j *journal) begin(number uint64, flags uint16) error {
	j.spare.Lock()
	defer j.spare.Unlock()
	spare := path.Join(j.dir, spareName)
	var random [8]byte
	_, _ = rand.Read(random[:]) // never fails
	salt := binary.BigEndian.Uint64(random[:])
	if err := j.makeSpare(spare, appendJournalHeader(nil, flags, number, j.sequence, salt)); err != nil {
		return err
	}
	// Closed meanwhile: some systems do not rename open files.
	if err := j.fs.Rename(spare, j.name(number)); err != nil {
		return err
	}
	if err := j.fs.SyncDir(j.dir); err != nil {
		return err
	}
	f, err := j.fs.Open(j.name(number))
	if err != nil {
		return err
	}
	j.file, j.number, j.salt, j.pos, j.logs = f, number, salt, journalHeaderSize, 0
	return nil
}

// makeSpare puts a header into the spare file, which it makes if there is none, and syncs it.
func (j *journal) makeSpare(name string, header []byte) error {
	f, err := j.fs.Open(name)
	if errors.Is(err, fs.ErrNotExist) {
		if f, err = j.fs.Create(name); err == nil {
			if err := f.Reserve(j.limit); err != nil {
				return errors.Join(err, f.Close())
			}
		}
	}
	if err != nil {
		return err
	}
	if _, err := f.WriteAt(header, 0); err != nil {
		return errors.Join(err, f.Close())
	}
	return errors.Join(f.Sync(), f.Close())
}

// end completes the file, so that the next can begin.
func (j *journal) end() error {
	b := appendEntry(nil, j.salt, entry{kind: entryEnd, sequence: j.sequence, synced: j.synced}, nil)
	if err := j.write(b, 1); err != nil {
		return err
	}
	return errors.Join(j.sync(), j.file.Close())
}

// write writes entries, of which there are n.
func (j *journal) write(b []byte, n int) error {
	if _, err := j.file.WriteAt(b, j.pos); err != nil {
		return err
	}
	j.pos += int64(len(b))
	j.sequence += uint64(n)
	return nil
}

// sync makes all entries survive.
func (j *journal) sync() error {
	if j.synced == j.sequence {
		return nil
	}
	if err := j.file.Sync(); err != nil {
		return err
	}
	j.synced = j.sequence
	return nil
}

// retire removes the file of that number, or keeps it as the next one's space. It may be called from any goroutine that
// is the only one to do so.
func (j *journal) retire(number uint64) error {
	j.spare.Lock()
	defer j.spare.Unlock()
	if err := j.fs.Rename(j.name(number), path.Join(j.dir, spareName)); err != nil {
		return err
	}
	return j.fs.SyncDir(j.dir)
}

// clean removes the space of retired files. In a later life of the store it would hold entries that look like those of
// the files to come.
func (j *journal) clean() error {
	err := j.fs.Remove(path.Join(j.dir, spareName))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// journalFiles returns the numbers of the journal files in dir, oldest first.
func journalFiles(fs vfs.FS, dir string) ([]uint64, error) {
	entries, err := fs.List(dir)
	if err != nil {
		return nil, err
	}
	var numbers []uint64
	for _, e := range entries {
		if n, ok := parseID(e.Name, journalKind); ok && !e.Dir {
			numbers = append(numbers, n)
		}
	}
	slices.Sort(numbers)
	return numbers, nil
}

// relevant returns the files that are not obsolete.
func relevant(fs vfs.FS, dir string, numbers []uint64) ([]uint64, error) {
	for i, n := range slices.Backward(numbers) {
		if i < len(numbers)-1 && n+1 != numbers[i+1] {
			return nil, &CorruptionError{Damage: DamageMissing, File: path.Join(journalDir, segmentName(n+1, journalKind))}
		}
		b, err := vfs.ReadFile(fs, path.Join(dir, segmentName(n, journalKind)), journalHeaderSize)
		if err != nil {
			return nil, err
		}
		flags, _, _, bad := parseJournalHeader(b, n)
		if bad != nil {
			bad.File = path.Join(journalDir, segmentName(n, journalKind))
			return nil, bad
		}
		if flags&flagFresh != 0 {
			return numbers[i:], nil
		}
	}
	return numbers, nil
}

// readJournal calls each with the entries of some files of the data directory root, which have consecutive numbers, in
// order. It returns the sequence after the last one.
func readJournal(
	fs vfs.FS, root string, files []string, number uint64, each func(file string, e entry, body []byte) error,
) (sequence uint64, err error) {
	for i, file := range files {
		b, err := readAll(fs, path.Join(root, file))
		if err != nil {
			return 0, err
		}
		damage := func(d Damage, at int, want, got uint64) error {
			return &CorruptionError{Damage: d, File: file, Position: int64(at), Expected: want, Found: got}
		}
		_, first, salt, bad := parseJournalHeader(b, number+uint64(i))
		if bad != nil {
			bad.File = file
			return 0, bad
		}
		if i > 0 && first != sequence {
			return 0, damage(DamageOffset, 16, sequence, first)
		}
		sequence = first
		at, ended := journalHeaderSize, false
		for !ended {
			e, body, ok := parseEntry(b[min(at, len(b)):], salt)
			if !ok || e.sequence != sequence || e.kind == entryRecords && !wholeRecords(body) {
				break
			}
			if err := each(file, e, body); err != nil {
				return 0, err
			}
			sequence++
			at += (entryHeaderSize + len(body) + entryAlign - 1) / entryAlign * entryAlign
			ended = e.kind == entryEnd
		}
		if ended {
			continue
		}
		if i < len(files)-1 {
			return 0, damage(DamageTruncated, at, 0, 0)
		}
		// The end of the last write is here, unless a later entry knows that this one had been synced.
		for later := at; later < len(b); later += entryAlign {
			if e, _, ok := parseEntry(b[later:], salt); ok && e.synced > sequence && e.sequence > sequence {
				return 0, damage(DamageRecord, at, sequence, e.sequence)
			}
		}
	}
	return sequence, nil
}

// wholeRecords reports whether b is encoded records with consecutive offsets.
func wholeRecords(b []byte) bool {
	return eachRecord(b, func(Record, []byte) error { return nil }) == nil
}

var errRecords = errors.New("storage: damaged records")

// eachRecord calls f with each of the encoded records in b, as views, and with its bytes.
func eachRecord(b []byte, f func(Record, []byte) error) error {
	if len(b) < recordHeaderSize {
		return errRecords
	}
	for want := binary.BigEndian.Uint64(b[4:]); len(b) > 0; want++ {
		r, n, bad := parseRecord(b, int64(len(b)), want)
		if bad != nil {
			return fmt.Errorf("%w: %w", errRecords, bad)
		}
		if err := f(r, b[:n:n]); err != nil {
			return err
		}
		b = b[n:]
	}
	return nil
}

func readAll(fs vfs.FS, name string) ([]byte, error) { return vfs.ReadFile(fs, name, math.MaxInt64) }
