package broker

import (
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/felix-mq/felix/catalog"
	"github.com/felix-mq/felix/codec"
	"github.com/felix-mq/felix/fanout"
	"github.com/felix-mq/felix/internal/buf"
	"github.com/felix-mq/felix/internal/vfs"
	"github.com/felix-mq/felix/storage"
)

// Durable streams. Package storage keeps their events, package fanout decides who gets them when, and neither knows the
// other: durableLog is between them. What a publisher hears, and when, is in owed.go.

// StorageConfig says where and how durable streams are kept (docs/operate/durability.md).
type StorageConfig struct {
	Dir             string        `yaml:"storage_dir" doc:"directory that keeps the events of durable streams, made if it is missing; without it there are none. One broker uses it at a time"`
	Ack             catalog.Ack   `yaml:"fsync_mode" words:"device,os,memory,on_commit,periodic,none" doc:"class of acknowledgement of the durable streams that name none: device (on_commit) survives a loss of power, os (periodic, none) the end of the process"`
	SyncEvery       time.Duration `yaml:"fsync_interval_ms" unit:"ms" min:"1ms" max:"1h" doc:"time after which an event that does not wait for the device is on it"`
	SegmentBytes    int64         `yaml:"segment_bytes" unit:"bytes" min:"60" max:"1125899906842624" doc:"size at which a file of a stream ends and the next begins; retention removes whole files"`
	IndexSpacing    int64         `yaml:"index_spacing_bytes" unit:"bytes" min:"1" max:"1073741824" doc:"bytes of a stream's file that have one entry in its index"`
	VerifyAll       bool          `yaml:"verify_all_on_open" doc:"all events are verified at the start, not only the newest"`
	RepairTail      bool          `yaml:"repair_checksum_tail" doc:"a stream whose last event is damaged is opened without it, though it may have been acknowledged"`
	RetentionBytes  int64         `yaml:"retention_bytes" unit:"bytes" min:"0" max:"1152921504606846976" doc:"bytes that each stream keeps, unless the catalog says otherwise; 0 is any number"`
	RetentionAge    int64         `yaml:"retention_seconds" unit:"s" min:"0" max:"3153600000" doc:"seconds that each stream keeps an event, unless the catalog says otherwise; 0 is for ever"`
	RetentionEvents int64         `yaml:"retention_events" min:"0" max:"9223372036854775807" doc:"events that each stream keeps, unless the catalog says otherwise; 0 is any number"`
	RetainEvery     int64         `yaml:"retention_interval_seconds" unit:"s" min:"1" max:"86400" doc:"seconds between two looks at what retention removes"`
	Headroom        int64         `yaml:"headroom_bytes" unit:"bytes" min:"0" max:"1125899906842624" doc:"bytes that have to be free on the disk for a publish to be accepted; 0 accepts until it is full, which ends all publishing until the broker is started again"`

	OpenFiles int `yaml:"open_files" min:"16" max:"1048576" doc:"files of streams that stay open for their next use; if more streams than that are published to all the time, each publish costs a sync of its own"`

	// FS is the file system of the directory; nil is that of the operating system. Tests have others.
	FS vfs.FS
}

// defaultStorage returns the settings of a broker that was told a directory and nothing else.
func defaultStorage() StorageConfig {
	return StorageConfig{SyncEvery: 250 * time.Millisecond, SegmentBytes: 256 << 20, IndexSpacing: 4 << 10, RetainEvery: 60, Headroom: 128 << 20, OpenFiles: 4096}
}

// CheckCatalog reports the streams of a catalog that a broker with this configuration cannot have.
func (c *Config) CheckCatalog(from *catalog.Catalog) error {
	if names := from.DurableStreams(); c.Storage.Dir == "" && len(names) > 0 {
		return fmt.Errorf("broker: durable streams need a data directory: set durable_storage_dir (FELIX_DURABLE_STORAGE_DIR), or take durable from %s", strings.Join(names, ", "))
	}
	return nil
}

var errNoStorage = errors.New("there is no data directory for durable streams (durable_storage_dir)")

// openStorage opens the data directory, if there is one.
func (b *Broker) openStorage() (err error) {
	c := &b.cfg.Storage
	if c.Dir == "" {
		return nil
	}
	b.store, err = storage.Open(c.Dir, storage.Options{
		FS: c.FS, SegmentBytes: c.SegmentBytes, IndexSpacing: c.IndexSpacing, SyncEvery: c.SyncEvery,
		RetainEvery: time.Duration(c.RetainEvery) * time.Second, Headroom: c.Headroom,
		OpenFiles: c.OpenFiles, VerifyAll: c.VerifyAll, RepairTail: c.RepairTail,
		QueueBytes: math.MaxInt64 / 2, // what waits has been charged to its tenant
		Failed: func(err error) {
			b.log.Error("storage failed", "error", err, "hint", "no publish to a durable stream is accepted until the broker is started again")
		},
	})
	if err != nil {
		return fmt.Errorf("broker: data directory %s: %w", c.Dir, err)
	}
	return nil
}

// closeStorage is called when nobody publishes any more.
func (b *Broker) closeStorage() {
	if b.store == nil {
		return
	}
	if err := b.store.Close(); err != nil {
		b.log.Error("storage left unclean", "error", err)
	}
	b.hub.AwaitDeliveries()
}

// diskGrace is how long the disk may take after the end of the drain, so that what has been written is closed in order.
var diskGrace = 5 * time.Second

// awaitDisk waits until the broker has closed all that it has. If the context has ended and a disk keeps it from that,
// it says what is left and waits no longer. What waits for the disk then goes on when the disk does, or ends with the
// process.
func (b *Broker) awaitDisk(ctx context.Context, closed <-chan struct{}) {
	select {
	case <-closed:
		return
	case <-ctx.Done():
	}
	if b.store == nil && b.snapshots == nil {
		<-closed
		return
	}
	grace := time.NewTimer(diskGrace)
	defer grace.Stop()
	select {
	case <-closed:
	case <-grace.C:
		var left storage.Stats
		if b.store != nil {
			left = b.store.Stats()
		}
		b.log.Error("storage not closed", "appends", left.Pending, "queued_bytes", left.Queued,
			"hint", "the disk does not answer; publishes that were not acknowledged may be stored or not")
		b.leave()
	}
}

// StorageError returns why no durable stream takes a publish until the broker is started again, or nil: a condition of
// readiness. A disk that is full is none: that may change.
func (b *Broker) StorageError() error {
	if b.store == nil {
		return nil
	}
	return b.store.Err()
}

// putStream makes a stream, or changes it to what is said of it. If it fails, a stream that exists stays as it was.
func (b *Broker) putStream(key fanout.Key, s catalog.Stream) error {
	b.changing.Lock()
	defer b.changing.Unlock()
	policy := b.policy(s)
	topic := b.lookup(key)
	fail := func(err error) error {
		if topic != nil {
			return fmt.Errorf("broker: stream %s/%s/%s stays as it was: %w", key.Tenant, key.Namespace, key.Stream, err)
		}
		return fmt.Errorf("broker: stream %s/%s/%s: %w", key.Tenant, key.Namespace, key.Stream, err)
	}
	var log *durableLog
	switch {
	case !s.Durable:
	case b.store == nil:
		return fail(errNoStorage)
	case topic != nil && topic.Log() != nil:
		log = logOf(topic)
	default:
		inner, err := b.store.Log(storage.Key{Tenant: key.Tenant, Namespace: key.Namespace, Stream: key.Stream})
		if err != nil {
			return fail(err)
		}
		log = &durableLog{store: b.store, log: inner}
	}
	if topic != nil && (topic.Log() != nil) != s.Durable {
		b.log.Warn("stream made again", "tenant", key.Tenant, "namespace", key.Namespace, "stream", key.Stream, "durable", s.Durable)
		b.removeLocked(key, topic)
	}
	if !s.Durable {
		b.hub.Register(key, policy).SetPolicy(policy)
		return nil
	}
	log.ack.Store(uint32(b.cfg.Storage.Ack))
	if s.Ack != nil {
		log.ack.Store(uint32(*s.Ack))
	}
	c := &b.cfg.Storage
	log.log.SetRetention(storage.Retention{
		Bytes: max(cmp.Or(s.RetentionBytes, c.RetentionBytes), 0),
		Age:   max(cmp.Or(s.RetentionAge, time.Duration(c.RetentionAge)*time.Second), 0),
		Count: uint64(max(cmp.Or(s.RetentionEvents, c.RetentionEvents), 0)),
	})
	b.hub.RegisterDurable(key, policy, log).SetPolicy(policy)
	return nil
}

func (b *Broker) lookup(key fanout.Key) *fanout.Topic {
	return b.hub.Lookup([]byte(key.Tenant), []byte(key.Namespace), []byte(key.Stream))
}

// removeStream removes a stream, and reports whether it existed. The files of a durable one stay.
func (b *Broker) removeStream(key fanout.Key) bool {
	b.changing.Lock()
	defer b.changing.Unlock()
	topic := b.lookup(key)
	return topic != nil && b.removeLocked(key, topic)
}

// removeLocked removes a stream. Retention leaves its files alone until the stream is made again: nobody says any more
// what it is to keep.
func (b *Broker) removeLocked(key fanout.Key, topic *fanout.Topic) bool {
	if l := logOf(topic); l != nil {
		l.log.SetRetention(storage.Retention{})
	}
	return b.hub.Remove(key)
}

// durableLog is a log of package storage as package fanout wants it.
type durableLog struct {
	store *storage.Store
	log   *storage.Log
	ack   atomic.Uint32 // a catalog.Ack
}

// logOf returns the log of a durable topic, or nil.
func logOf(t *fanout.Topic) *durableLog {
	l, _ := t.Log().(*durableLog)
	return l
}

// early reports whether publishes are acknowledged before their commit.
func (d *durableLog) early() bool { return catalog.Ack(d.ack.Load()) == catalog.AckMemory }

func (d *durableLog) class() storage.Class {
	if catalog.Ack(d.ack.Load()) == catalog.AckDevice {
		return storage.ClassDevice
	}
	return storage.ClassOS
}

// payloads are lists of what a frame has, to be appended to a log or to be made a frame of.
var payloads = sync.Pool{New: func() any { return new([][]byte) }}

// Append implements [fanout.Log].
func (d *durableLog) Append(f *fanout.Frame, from fanout.Origin, done func(error)) (first uint64, duplicate bool, err error) {
	items, _, err := codec.ParseItems(f.Bytes()[listAt:])
	if err != nil {
		panic("broker: event frame does not parse: " + err.Error())
	}
	list := payloads.Get().(*[][]byte)
	all := (*list)[:0]
	for _, item := range items.All() {
		all = append(all, item)
	}
	var origin *storage.Origin
	if from.Set {
		origin = &storage.Origin{Producer: from.Producer, Sequence: from.Sequence, Repeated: from.Repeated}
	}
	first, duplicate, err = d.log.AppendLater(origin, all, d.class(), done)
	clear(all)
	*list = all
	payloads.Put(list)
	return first, duplicate, err
}

// Commit implements [fanout.Log].
func (d *durableLog) Commit(here bool) { d.store.Commit(here) }

// Held implements [fanout.Log].
func (d *durableLog) Held() int64 { return int64(d.log.Producers()) * storage.ProducerBytes }

// Cost implements [fanout.Log].
func (d *durableLog) Cost(f *fanout.Frame) int64 {
	return storage.Size(f.Count(), len(f.Bytes())-listAt-4-4*f.Count())
}

// Base implements [fanout.Log].
func (d *durableLog) Base() uint64 { return d.log.Base() }

// Tail implements [fanout.Log].
func (d *durableLog) Tail() uint64 { return d.log.Tail() }

// Epoch implements [fanout.Log].
func (d *durableLog) Epoch() uint64 { return d.log.Epoch() }

// Read implements [fanout.Log].
func (d *durableLog) Read(from uint64) (fanout.LogReader, error) {
	r, err := d.log.Read(from)
	if err != nil {
		return nil, readError(err)
	}
	return &logReader{r}, nil
}

func readError(err error) error {
	if e, ok := errors.AsType[*storage.RangeError](err); ok && e.TooOld() {
		return fmt.Errorf("%w: %w", fanout.ErrTrimmed, err)
	}
	return err
}

// logReader is a reader of package storage as package fanout wants it.
type logReader struct{ r *storage.Reader }

// Offset implements [fanout.LogReader].
func (l *logReader) Offset() uint64 { return l.r.Offset() }

// Next implements [fanout.LogReader].
func (l *logReader) Next(limit int, end uint64, memory fanout.Memory) (*fanout.Frame, error) {
	buffer := 0
	defer func() {
		l.r.Free()
		memory.Release(buffer)
	}()
	records, err := l.r.NextBefore(limit, end, func(n int) error {
		err := memory.Charge(n)
		if err == nil {
			buffer += n
		}
		return err
	})
	if err != nil {
		return nil, readError(err)
	}
	if len(records) == 0 {
		return nil, nil
	}
	size := 4
	for _, r := range records {
		size += 4 + len(r.Payload)
	}
	if err := memory.Charge(buf.CapOf(listAt + size)); err != nil {
		l.r.Rewind(records[0])
		return nil, err
	}
	chunk := buf.Get(listAt + size)
	defer chunk.Release()
	wire := codec.AppendEventHead(chunk.Bytes()[:0], codec.LayoutSharedOffsets, 0, records[0].Offset, size)
	wire = binary.BigEndian.AppendUint32(wire, uint32(len(records)))
	for _, r := range records {
		wire = binary.BigEndian.AppendUint32(wire, uint32(len(r.Payload)))
		wire = append(wire, r.Payload...)
	}
	return fanout.NewLogFrame(chunk, wire, len(records), records[0].Offset), nil
}

// errCorrupt means that a compressed batch cannot be decompressed.
var errCorrupt = errors.New("broker: compressed batch is corrupt")

// plain decompresses a batch that is published to a durable stream, whose log has single events.
func (s *stream) plain(f *fanout.Frame) (*fanout.Frame, error) {
	c, size, err := parseCompressed(f)
	if err == nil {
		if err := s.c.account.Charge(int64(size)); err != nil {
			s.c.refuseRead(err)
			return nil, fanout.ErrTimeout
		}
		defer s.c.account.Release(int64(size)) // what is kept of it is charged to the tenant, and while it waits see stream.made
		if err = s.c.b.heavy.enter(s.c.ctx, s.tenant.name); err != nil {
			return nil, err
		}
		defer s.c.b.heavy.leave()
		var made *fanout.Frame
		if made, err = decompress(f.Count(), &c); err == nil {
			made.NumberAt(numberAt)
			s.c.b.metrics.decompressed.Add(1)
			return made, nil
		}
	}
	s.c.b.metrics.corruptBatches.Add(1)
	return nil, errCorrupt
}

// Committed implements [fanout.Commit] for publishes that nobody waits for.
//
//go:noinline
func (b *Broker) Committed(f *fanout.Frame, err error) {
	switch {
	case err != nil:
		b.metrics.publishRefused[refusedStorage].Add(1)
	case f == nil:
		b.metrics.publishDuplicates.Add(1)
	default:
		b.metrics.published(f)
	}
}

// storageRefusal returns how a publisher hears of an error of the data directory, or nil for another error.
func storageRefusal(err error) (jsonForm, binaryForm *codec.Refusal) {
	switch {
	case errors.Is(err, storage.ErrFull):
		return &codec.StorageFull, &codec.StorageFullAck
	case errors.Is(err, storage.ErrFailed), errors.Is(err, storage.ErrClosed):
		return &codec.StorageFailed, &codec.StorageFailedAck
	case errors.Is(err, storage.ErrTooLarge):
		return &codec.EventTooLarge, &codec.EventTooLargeAck
	}
	return nil, nil
}

// LogStats is what the log of a durable stream has at one moment.
type LogStats struct {
	Ack      string `json:"ack"`
	Base     uint64 `json:"base"` // the oldest offset that can be read
	Tail     uint64 `json:"tail"` // the offset that the next event gets
	Bytes    int64  `json:"bytes"`
	Segments int    `json:"segments"` // files
	// OldestMillis is how old the newest event of the oldest file is: no event of another file is older.
	OldestMillis int64 `json:"oldest_ms"`
}

func (d *durableLog) stats(now time.Time) *LogStats {
	bounds := d.log.LastBounds()
	st := &LogStats{
		Ack: catalog.Ack(d.ack.Load()).String(), Base: bounds.Base, Tail: bounds.Tail, Bytes: bounds.Bytes, Segments: bounds.Segments,
	}
	if bounds.Segments > 0 {
		st.OldestMillis = max(0, now.UnixMilli()-bounds.Oldest/1000)
	}
	return st
}
