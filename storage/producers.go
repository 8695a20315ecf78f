package storage

import (
	"container/list"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"io/fs"
	"path"
	"slices"

	"github.com/felix-mq/felix/internal/vfs"
)

// What a log remembers of producers, so that a batch which is appended again is known and not stored twice.
//
// A producer numbers its batches, in ascending order, and may leave numbers out. Of each producer the log knows which
// of the last 1024 numbers it has: those from floor to last. What it says of them is exact. Of the numbers below, and
// of producers that it has forgotten, it says that it does not know.
//
//	Append ─▶ look ─▶ record          under Log.order, ahead of the commit
//	journal: tags, records            in front of the records that they are about, in the same write
//	checkpoint: file "producers"      as of an offset, before the journal file is removed
//
// After a crash the table is that of the file, and the tags of the records that the journal has from that offset on. If
// the log has a record that neither covers, or the file is about records that the log lost, all is forgotten.

// ProducerID names a producer: 128 random bits.
type ProducerID [16]byte

// Origin is who appends a batch, and which of its batches it is.
type Origin struct {
	Producer ProducerID
	Sequence uint64 // above those of the batches before it
	Repeated bool   // the batch may have been appended before
}

const (
	// SequenceWindow is how many numbers of a producer, the last of them included, a log knows about.
	SequenceWindow = 1024
	// MaxProducers is how many producers a log remembers. The one that has appended nothing for longest is forgotten
	// for another.
	MaxProducers = 1024
	// ProducerBytes is what one of them takes, in bytes of memory.
	ProducerBytes = 256
)

// Reasons for which it is not known whether a log has a batch. It was not appended.
var (
	// ErrUnknownProducer means that the batch is a repeated one of a producer that the log does not know, and may have
	// forgotten.
	ErrUnknownProducer = errors.New("storage: the producer is not known any more")
	// ErrOldSequence means that the batch is older than what is known of its producer.
	ErrOldSequence = errors.New("storage: the batch is older than what is known of its producer")
)

// producer is what is known of one.
type producer struct {
	id          ProducerID
	floor, last uint64 // at most SequenceWindow numbers
	have        [SequenceWindow / 64]uint64
}

func (p *producer) has(seq uint64) bool {
	i := seq % SequenceWindow
	return p.have[i/64]&(1<<(i%64)) != 0
}

func (p *producer) set(seq uint64, has bool) {
	i := seq % SequenceWindow
	if has {
		p.have[i/64] |= 1 << (i % 64)
	} else {
		p.have[i/64] &^= 1 << (i % 64)
	}
}

// advance makes seq the last number, unless a later one is.
func (p *producer) advance(seq uint64) {
	switch more := seq - p.last; {
	case seq <= p.last:
		return
	case more >= SequenceWindow:
		clear(p.have[:])
	default:
		for n := range more {
			p.set(p.last+1+n, false)
		}
	}
	p.last = seq
	if seq >= SequenceWindow {
		p.floor = max(p.floor, seq-(SequenceWindow-1))
	}
}

// tag says who appended the batch that begins at an offset.
type tag struct {
	offset uint64
	id     ProducerID
	seq    uint64
}

// producers is what a log knows of all. It is guarded by Log.order.
type producers struct {
	known    map[ProducerID]*list.Element
	byUse    list.List // of *producer, the longest unused first
	complete bool      // no producer was ever forgotten: one that is not known is new
	stored   bool      // there is a file
	// recent are the tags of what is not committed, from head on, and perhaps of some that is.
	recent []tag
	head   int
}

// look reports whether the log has the batch, or has to be given it. It fails if that is not known.
func (p *producers) look(o Origin) (has bool, err error) {
	at := p.known[o.Producer]
	if at == nil {
		if o.Repeated && !p.complete {
			return false, ErrUnknownProducer
		}
		return false, nil
	}
	switch e := at.Value.(*producer); {
	case o.Sequence < e.floor:
		return false, ErrOldSequence
	case o.Sequence > e.last:
		return false, nil
	default:
		return e.has(o.Sequence), nil
	}
}

// record notes that the log has a batch. It returns how many producers were forgotten for that.
func (p *producers) record(id ProducerID, seq uint64) (forgotten int) {
	at := p.known[id]
	if at == nil {
		for len(p.known) >= MaxProducers {
			delete(p.known, p.byUse.Remove(p.byUse.Front()).(*producer).id)
			p.complete = false
			forgotten++
		}
		e := &producer{id: id}
		if !p.complete {
			e.floor, e.last = seq, seq
		}
		at = p.add(e)
	}
	p.byUse.MoveToBack(at)
	e := at.Value.(*producer)
	e.advance(seq)
	if seq >= e.floor {
		e.set(seq, true)
	}
	return forgotten
}

func (p *producers) add(e *producer) *list.Element {
	if p.known == nil {
		p.known = map[ProducerID]*list.Element{}
	}
	at := p.byUse.PushBack(e)
	p.known[e.id] = at
	return at
}

// remember keeps a tag until its records are committed, and lets those before the offset tail go.
func (p *producers) remember(t tag, tail uint64) {
	for p.head < len(p.recent) && p.recent[p.head].offset < tail {
		p.head++
	}
	if p.head > len(p.recent)/2 {
		p.recent = p.recent[:copy(p.recent, p.recent[p.head:])]
		p.head = 0
	}
	p.recent = append(p.recent, t)
}

// forget forgets all.
func (p *producers) forget() {
	clear(p.known)
	p.byUse.Init()
	p.complete, p.recent, p.head = false, nil, 0
}

// The format of the file, whose numbers are big-endian:
//
//	file      magic 4 │ version 2 │ flags 2 │ epoch 8 │ tail 8 │ count 4 │ producers … │ crc of all before 4
//	producer  id 16 │ floor 8 │ last 8 │ one bit for each number from floor to last, the low bit of a byte first
//
// The epoch is that of the store. The flag complete says that no producer was ever forgotten. The tail is that of the
// log: the file knows of all records before it, and of none after. Producers are in the order of their use.
const (
	producersFile    = "producers"
	producersMagic   = 0x464C5350 // FLSP
	producersVersion = 1
	flagComplete     = 1

	producersHeaderSize = 28
	producerHeaderSize  = 32
	producersMost       = producersHeaderSize + MaxProducers*(producerHeaderSize+SequenceWindow/8) + 4

	tagSize = 32
)

// encode returns the file with what is known of the records before the offset tail.
func (p *producers) encode(epoch, tail uint64) []byte {
	var b []byte
	// What is not committed is not in the log yet.
	early := p.recent[p.head:]
	early = early[sortedAt(early, tail):]
	p.mark(early, false)
	defer p.mark(early, true)
	b = binary.BigEndian.AppendUint32(b, producersMagic)
	b = binary.BigEndian.AppendUint16(b, producersVersion)
	flags := uint16(0)
	if p.complete {
		flags = flagComplete
	}
	b = binary.BigEndian.AppendUint16(b, flags)
	b = binary.BigEndian.AppendUint64(b, epoch)
	b = binary.BigEndian.AppendUint64(b, tail)
	b = binary.BigEndian.AppendUint32(b, uint32(len(p.known)))
	for at := p.byUse.Front(); at != nil; at = at.Next() {
		e := at.Value.(*producer)
		b = append(b, e.id[:]...)
		b = binary.BigEndian.AppendUint64(b, e.floor)
		b = binary.BigEndian.AppendUint64(b, e.last)
		n := e.last - e.floor + 1
		bits := len(b)
		b = append(b, make([]byte, (n+7)/8)...)
		for i := range n {
			if e.has(e.floor + i) {
				b[bits+int(i/8)] |= 1 << (i % 8)
			}
		}
	}
	return binary.BigEndian.AppendUint32(b, crc32.ChecksumIEEE(b))
}

// sortedAt returns the index of the first tag that is not before an offset.
func sortedAt(tags []tag, offset uint64) int {
	i, _ := slices.BinarySearchFunc(tags, offset, func(t tag, offset uint64) int {
		if t.offset < offset {
			return -1
		}
		return 1
	})
	return i
}

// mark notes for tags whether the log has them.
func (p *producers) mark(tags []tag, has bool) {
	for _, t := range tags {
		if at := p.known[t.id]; at != nil {
			if e := at.Value.(*producer); t.seq >= e.floor && t.seq <= e.last {
				e.set(t.seq, has)
			}
		}
	}
}

// parseProducers reads the file of a store with that epoch. It reports false if that is not what b is.
func parseProducers(b []byte, epoch uint64) (p *producers, tail uint64, ok bool) {
	if len(b) < producersHeaderSize+4 || len(b) > producersMost {
		return nil, 0, false
	}
	body, sum := b[:len(b)-4], binary.BigEndian.Uint32(b[len(b)-4:])
	flags := binary.BigEndian.Uint16(b[6:])
	if crc32.ChecksumIEEE(body) != sum || binary.BigEndian.Uint32(b) != producersMagic || binary.BigEndian.Uint16(b[4:]) != producersVersion ||
		flags&^flagComplete != 0 || binary.BigEndian.Uint64(b[8:]) != epoch {
		return nil, 0, false
	}
	p = &producers{complete: flags&flagComplete != 0, stored: true}
	tail = binary.BigEndian.Uint64(b[16:])
	count := binary.BigEndian.Uint32(b[24:])
	rest := body[producersHeaderSize:]
	for range count {
		if len(rest) < producerHeaderSize || len(p.known) >= MaxProducers {
			return nil, 0, false
		}
		e := &producer{
			id: ProducerID(rest[:16]), floor: binary.BigEndian.Uint64(rest[16:]), last: binary.BigEndian.Uint64(rest[24:]),
		}
		rest = rest[producerHeaderSize:]
		n := e.last - e.floor + 1
		if e.floor > e.last || n == 0 || n > SequenceWindow || p.known[e.id] != nil || uint64(len(rest)) < (n+7)/8 {
			return nil, 0, false
		}
		for i := range n {
			e.set(e.floor+i, rest[i/8]&(1<<(i%8)) != 0)
		}
		rest = rest[(n+7)/8:]
		p.add(e)
	}
	return p, tail, len(rest) == 0
}

func appendTag(b []byte, t tag) []byte {
	b = binary.BigEndian.AppendUint64(b, t.offset)
	b = append(b, t.id[:]...)
	return binary.BigEndian.AppendUint64(b, t.seq)
}

// parseTags appends the tags of a journal entry. It reports false if b is none.
func parseTags(tags []tag, b []byte) ([]tag, bool) {
	if len(b)%tagSize != 0 {
		return tags, false
	}
	for ; len(b) > 0; b = b[tagSize:] {
		tags = append(tags, tag{
			offset: binary.BigEndian.Uint64(b), id: ProducerID(b[8:24]), seq: binary.BigEndian.Uint64(b[24:]),
		})
	}
	return tags, true
}

// loadProducers reads what is known of producers, and returns the offset before which it is known. The caller forgets
// it if that is not the log's.
func (l *Log) loadProducers() (known uint64, err error) {
	b, err := vfs.ReadFile(l.s.opt.FS, path.Join(l.s.root, l.dir, producersFile), producersMost+1)
	switch {
	case errors.Is(err, fs.ErrNotExist): // of a log without records all is known
		l.producers = &producers{complete: true}
		return 0, nil
	case err != nil:
		return 0, err
	}
	p, known, ok := parseProducers(b, l.s.epoch)
	if !ok {
		l.producers = &producers{stored: true}
		return 0, nil
	}
	l.producers = p
	return known, nil
}

// dropProducers forgets all producers, now and after a crash.
func (l *Log) dropProducers() error {
	l.producers.forget()
	if !l.producers.stored {
		return nil
	}
	if err := l.s.opt.FS.Remove(path.Join(l.s.root, l.dir, producersFile)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	l.producers.stored = false
	return l.s.opt.FS.SyncDir(path.Join(l.s.root, l.dir))
}

// saveProducers writes what is known of producers, if there are any.
func (l *Log) saveProducers() error {
	l.order.Lock()
	p := l.producers
	var b []byte
	if p.stored || len(p.known) > 0 {
		b = p.encode(l.s.epoch, l.tail.Load())
		p.stored = true
	}
	l.order.Unlock()
	if b == nil {
		return nil
	}
	dir := path.Join(l.s.root, l.dir)
	if err := vfs.WriteFile(l.s.opt.FS, path.Join(dir, producersFile), b); err != nil {
		return err
	}
	return l.s.opt.FS.SyncDir(dir)
}

// saveProducers writes what logs know of producers.
func (s *Store) saveProducers(logs []*Log) error {
	for _, l := range logs {
		if err := l.saveProducers(); err != nil {
			return err
		}
	}
	return nil
}

// Producers returns how many producers the log remembers.
func (l *Log) Producers() int {
	l.order.Lock()
	defer l.order.Unlock()
	return len(l.producers.known)
}
