package storage

import (
	"errors"
	"fmt"
	"io"
	"path"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/felix-mq/felix/internal/vfs"
)

// Class says how safe records are when their append completes.
type Class int

// The classes of acknowledgement.
const (
	// ClassDevice means that the records survive a loss of power.
	ClassDevice Class = iota
	// ClassOS means that the records survive the end of the process. They reach the device within [Options.SyncEvery].
	ClassOS
)

// String returns the class as settings and metrics name it.
func (c Class) String() string {
	switch c {
	case ClassDevice:
		return "device"
	case ClassOS:
		return "os"
	}
	return fmt.Sprintf("class %d", int(c))
}

// Options configure a store. Zero values mean the defaults that are stated.
type Options struct {
	// FS is the file system; nil means that of the operating system.
	FS vfs.FS
	// SegmentBytes is the size at which a segment ends (256 MiB). Larger batches get a segment of their own.
	SegmentBytes int64
	// IndexSpacing is how many bytes of a segment have one entry in its index (4 KiB).
	IndexSpacing int64
	// JournalBytes is the size at which a journal file ends and a checkpoint begins (64 MiB). Up to four files may
	// exist.
	JournalBytes int64
	// QueueBytes is how many encoded bytes may wait for the committer (64 MiB). Appends beyond wait.
	QueueBytes int64
	// SyncEvery is after which time records of [ClassOS] are synced (250 ms).
	SyncEvery time.Duration
	// RetainEvery is how often retention is applied (one minute).
	RetainEvery time.Duration
	// Headroom is how many bytes must be free on the device for an append to be accepted (0: no check).
	Headroom int64
	// OpenFiles is how many files stay open for their next use (512). Those that are synced and were not used for
	// RetainEvery are closed.
	OpenFiles int
	// VerifyAll makes a log verify all its records when it is opened, not only those since its last index entry, and
	// its indexes, which are made again where they are wrong.
	VerifyAll bool
	// RepairTail lets a log that has a damaged last record be opened without it. That record may have been
	// acknowledged.
	RepairTail bool
	// Repaired is called with what was mended in a log, from the goroutine that opens it. What recovery takes from the
	// journal is no repair.
	Repaired func(Repair)
	// Now is the clock of records and retention; nil means [time.Now].
	Now func() time.Time
	// Failed is called once, from a goroutine of the store or of the caller of Close, when the store has stopped to
	// accept appends because of a failed write. It must not call Close.
	Failed func(error)
}

func (o Options) withDefaults() Options {
	setDefault(&o.SegmentBytes, 256<<20)
	setDefault(&o.IndexSpacing, 4<<10)
	setDefault(&o.JournalBytes, 64<<20)
	setDefault(&o.QueueBytes, 64<<20)
	setDefault(&o.SyncEvery, 250*time.Millisecond)
	setDefault(&o.RetainEvery, time.Minute)
	setDefault(&o.OpenFiles, 512)
	if o.FS == nil {
		o.FS = vfs.OS{}
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	return o
}

func setDefault[T int | int64 | time.Duration](v *T, to T) {
	if *v == 0 {
		*v = to
	}
}

// checkpointsBehind is how many journal files may wait for their checkpoint before the committer waits.
const checkpointsBehind = 2

// maxGroup is how many encoded bytes one write to the journal has at most, unless a single batch has more.
const maxGroup = 8 << 20

// Store is a data directory with the logs in it. Its methods may be called from any goroutine.
type Store struct {
	opt   Options
	root  string
	epoch uint64 // of the directory; see Log.Epoch
	lock  io.Closer
	files *pool

	opens     sync.Mutex // held while a log is opened
	retaining sync.Mutex // held while retention is applied

	mu     sync.Mutex // guards what follows; held for no I/O
	logs   map[string]*Log
	queue  []*pending
	queued int64      // bytes in queue
	space  *sync.Cond // on mu; signaled when queued falls or the store ends
	err    error      // why appends are refused: ErrFailed with its cause, or ErrClosed

	failure chan error    // capacity 1: why the store has failed, to be reported
	wake    chan struct{} // of the committer
	full    atomic.Bool   // the headroom is used up
	waits   atomic.Int64  // appends that had to wait for the committer
	commits atomic.Int64
	appends atomic.Int64
	pending atomic.Int64 // appends that have not completed

	unretained atomic.Int64 // times that retention has failed
	forgotten  atomic.Int64 // producers, for others

	// committing is held while a group is committed, by the committer or by a caller of Commit. It guards what follows.
	committing sync.Mutex
	unlooked   int64 // bytes written since the last look at the free space
	journal    journal
	touched    []*Log // that have records in the current journal file
	committer  committer
	armed      bool // the committer will sync what has not been synced

	quick       atomic.Bool // the last commit took less than quickCommit
	checkpoints chan checkpoint
	stop        chan struct{}
	tasks       sync.WaitGroup // the committer, the checkpoints, retention and the watch
}

// quickCommit is how long a commit may take for the next one to be carried out by the goroutine that appends. A device
// that takes longer gains nothing from that, and would hold that goroutine up.
const quickCommit = time.Millisecond

// pending is an append on its way to the journal.
type pending struct {
	log   *Log
	class Class
	bytes []byte // encoded records; none of one that only follows what was appended before
	done  func(error)

	tagged bool
	tag    tag
}

var pendings = sync.Pool{New: func() any { return new(pending) }}

// free gives p back. Large ones are rare, and not kept.
func (p *pending) free() {
	p.log, p.done, p.bytes = nil, nil, p.bytes[:0]
	if cap(p.bytes) <= maxGroup/8 {
		pendings.Put(p)
	}
}

// checkpoint is a journal file that is complete, and the logs that have records in it.
type checkpoint struct {
	number uint64
	logs   []*Log
}

// Open opens the data directory root, makes it if it is missing, and brings the logs that have records in the journal
// up to date. It returns [ErrInUse] if another process has it open, and a [CorruptionError] if the journal itself has
// damage that a crash does not explain; damage of a log is returned by [Store.Log]. The caller must [Store.Close] it.
func Open(root string, opt Options) (_ *Store, err error) {
	opt = opt.withDefaults()
	if err := opt.FS.MkdirAll(path.Join(root, journalDir)); err != nil {
		return nil, err
	}
	lock, err := opt.FS.Lock(path.Join(root, "lock"))
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, lock.Close())
		}
	}()
	if err := errors.Join(opt.FS.SyncDir(root), opt.FS.SyncDir(path.Dir(path.Clean(root)))); err != nil {
		return nil, err
	}
	s := &Store{
		opt: opt, root: root, lock: lock, logs: map[string]*Log{}, wake: make(chan struct{}, 1), failure: make(chan error, 1),
		checkpoints: make(chan checkpoint, checkpointsBehind), stop: make(chan struct{}),
	}
	s.space = sync.NewCond(&s.mu)
	s.committer.s = s
	s.files = newPool(opt.FS, opt.OpenFiles, s.fail)
	s.journal = journal{fs: opt.FS, dir: path.Join(root, journalDir), limit: opt.JournalBytes}
	if s.epoch, err = epochOf(opt.FS, root); err != nil {
		return nil, errors.Join(err, s.files.close())
	}
	if err := s.recover(); err != nil {
		if s.journal.file != nil {
			err = errors.Join(err, s.journal.file.Close())
		}
		return nil, errors.Join(err, s.files.close())
	}
	s.checkSpace()
	s.tasks.Go(s.commitAll)
	s.tasks.Go(s.checkpointAll)
	s.tasks.Go(s.tick)
	s.tasks.Go(s.watch)
	return s, nil
}

// Log opens the log of that key. A log without records has no files. There is one Log for a key, and it is not closed.
// It returns a [CorruptionError] if the log has damage that a crash does not explain; nothing is lost by that, and it
// may be called again when the files are mended.
func (s *Store) Log(key Key) (*Log, error) { return s.open(key.Dir(), key.String()) }

// open opens the log in a directory, which errors name in another way.
func (s *Store) open(dir, name string) (*Log, error) {
	if l, err := s.lookup(dir); l != nil || err != nil {
		return l, err
	}
	s.opens.Lock()
	defer s.opens.Unlock()
	if l, err := s.lookup(dir); l != nil || err != nil {
		return l, err
	}
	l, _, err := s.openLog(dir, nil)
	if errors.Is(err, errAside) {
		l, err = s.recoverAside(dir)
	}
	if err != nil {
		return nil, fmt.Errorf("log %s: %w", name, err)
	}
	s.mu.Lock()
	s.logs[dir] = l
	s.mu.Unlock()
	return l, nil
}

// Present reports whether a directory has something of a store: its journal, or a log. It makes nothing.
func Present(root string, opt Options) (bool, error) {
	s := &Store{opt: opt.withDefaults(), root: root}
	entries, err := s.opt.FS.List(root)
	if err != nil {
		return false, err
	}
	for _, e := range entries {
		if e.Dir && e.Name == journalDir {
			return true, nil
		}
	}
	dirs, err := s.Dirs()
	return len(dirs) > 0, err
}

// Dirs returns the names of the directories that have logs, sorted: those of [Key.Dir], or what else is there and has
// segments.
func (s *Store) Dirs() ([]string, error) {
	entries, err := s.opt.FS.List(s.root)
	if err != nil {
		return nil, err
	}
	var all []string
	for _, e := range entries {
		if !e.Dir || e.Name == journalDir {
			continue
		}
		files, err := s.opt.FS.List(path.Join(s.root, e.Name))
		if err != nil {
			return nil, err
		}
		if slices.ContainsFunc(files, func(f vfs.Entry) bool {
			_, ok := parseID(f.Name, segmentKind)
			return (ok || f.Name == asideName) && !f.Dir
		}) {
			all = append(all, e.Name)
		}
	}
	return all, nil
}

// LogIn opens the log in a directory of [Store.Dirs], for those who do not know its key. See [Store.Log]. A name that
// is not one of a directory in the data directory is [ErrNoLog].
func (s *Store) LogIn(dir string) (*Log, error) {
	if dir == "" || dir == "." || dir == ".." || dir == journalDir || strings.ContainsAny(dir, `/\`) {
		return nil, fmt.Errorf("%w: %.80q", ErrNoLog, dir)
	}
	return s.open(dir, dir)
}

// lookup returns the log of that directory, if it is open.
func (s *Store) lookup(dir string) (*Log, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if errors.Is(s.err, ErrClosed) {
		return nil, s.err
	}
	return s.logs[dir], nil
}

// Close completes what was appended, syncs all of it and closes the directory. Appends that come later get [ErrClosed].
func (s *Store) Close() error {
	s.mu.Lock()
	failed := s.err
	if errors.Is(failed, ErrClosed) {
		s.mu.Unlock()
		return nil
	}
	s.err = errors.Join(ErrClosed, failed)
	s.space.Broadcast()
	s.mu.Unlock()
	close(s.stop)
	s.tasks.Wait()
	select {
	case cause := <-s.failure:
		s.report(cause)
	default:
	}
	if failed == nil {
		failed = s.Err()
	}
	if failed == nil {
		failed = s.journal.clean()
	}
	return errors.Join(failed, s.files.close(), s.lock.Close())
}

// Err returns why the store accepts no appends any more, or nil.
func (s *Store) Err() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if errors.Is(s.err, ErrFailed) {
		return s.err
	}
	return nil
}

// Stats says what a store has done since it was opened.
type Stats struct {
	Appends int64 // batches
	Commits int64 // writes to the journal; Appends/Commits is how many batches one serves
	Waits   int64 // appends that waited because QueueBytes was reached
	Queued  int64 // bytes that wait for the committer now
	Pending int64 // appends that have not completed
	Full    bool  // the headroom is used up

	RetainFailures int64 // times that retention could not remove a file; it tries again
	Forgotten      int64 // producers that logs have forgotten for others
}

// Stats returns the store's statistics.
func (s *Store) Stats() Stats {
	s.mu.Lock()
	defer s.mu.Unlock()
	return Stats{
		Appends: s.appends.Load(), Commits: s.commits.Load(), Waits: s.waits.Load(), Queued: s.queued, Full: s.full.Load(),
		Pending: s.pending.Load(), RetainFailures: s.unretained.Load(), Forgotten: s.forgotten.Load(),
	}
}

// fail ends the store as a writer.
func (s *Store) fail(cause error) {
	s.mu.Lock()
	first := !errors.Is(s.err, ErrFailed)
	if first {
		s.err = errors.Join(fmt.Errorf("%w: %w", ErrFailed, cause), s.err)
	}
	s.space.Broadcast()
	s.mu.Unlock()
	if first {
		s.failure <- cause
	}
}

// report tells the owner of the store that it has failed.
func (s *Store) report(cause error) {
	if s.opt.Failed != nil {
		s.opt.Failed(cause)
	}
}

// admit waits until the queue has space for n bytes more, and counts them.
func (s *Store) admit(n int64) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	waited := false
	for s.err == nil && s.queued > 0 && s.queued+n > s.opt.QueueBytes {
		if !waited {
			waited = true
			s.waits.Add(1)
		}
		s.space.Wait()
	}
	if s.err != nil {
		return s.err
	}
	if s.full.Load() {
		return ErrFull
	}
	s.queued += n
	return nil
}

// enqueue puts p into the queue. The caller goes on to kick or to Commit.
func (s *Store) enqueue(p *pending) {
	s.pending.Add(1)
	s.mu.Lock()
	s.queue = append(s.queue, p)
	s.mu.Unlock()
}

// kick wakes the committer.
func (s *Store) kick() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// dismiss gives back what admit has counted.
func (s *Store) dismiss(n int64) {
	s.mu.Lock()
	s.queued -= n
	s.space.Broadcast()
	s.mu.Unlock()
	s.kick() // it may have waited for them to end
}

// follow puts p, which has no records, into the queue. The caller goes on to kick or to Commit.
func (s *Store) follow(p *pending) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err != nil {
		p.free()
		return s.err
	}
	s.pending.Add(1)
	s.queue = append(s.queue, p)
	return nil
}

// Commit commits what [Log.AppendLater] has appended. Here says that the caller has nothing else to do: if the device
// is quick and nobody else commits, its goroutine does it, and has called done when Commit returns. Otherwise the
// committer does it.
func (s *Store) Commit(here bool) {
	if !here || !s.quick.Load() || !s.committing.TryLock() {
		s.kick()
		return
	}
	// To begin a journal file takes longer than a commit: that is left to the committer.
	j := &s.journal
	left := j.file == nil || j.pos >= s.opt.JournalBytes/8*7
	if !left {
		s.committer.next()
	}
	toArm := s.unsynced() && !s.armed
	s.committing.Unlock()
	if left || toArm || s.ended() {
		s.kick() // it waits for the last append before it ends
	}
}

// take moves the next group from the queue to group.
func (s *Store) take(group []*pending) []*pending {
	s.mu.Lock()
	defer s.mu.Unlock()
	size, n := int64(0), 0
	for n < len(s.queue) && (n == 0 || size+int64(len(s.queue[n].bytes)) <= maxGroup) {
		size += int64(len(s.queue[n].bytes))
		n++
	}
	group = append(group[:0], s.queue[:n]...)
	rest := copy(s.queue, s.queue[n:])
	clear(s.queue[rest:])
	s.queue = s.queue[:rest]
	s.queued -= size
	if size > 0 {
		s.space.Broadcast()
	}
	return group
}

// commitAll is the committer. It ends when the store is closed and nothing waits.
func (s *Store) commitAll() {
	defer close(s.checkpoints)
	timer := time.NewTimer(s.opt.SyncEvery)
	defer timer.Stop()
	stop := s.stop
	for {
		select { // also if there is always something to do
		case <-timer.C:
			s.syncLater()
		default:
		}
		s.committing.Lock()
		more := s.committer.next()
		if s.unsynced() && !s.armed {
			timer.Reset(s.opt.SyncEvery)
			s.armed = true
		}
		ended := !more && s.ended()
		if ended {
			s.committer.close()
		}
		s.committing.Unlock()
		switch {
		case ended:
			return
		case more:
			continue
		}
		select {
		case <-s.wake:
		case <-timer.C:
			s.syncLater()
		case <-stop:
			stop = nil // appends that were admitted before may still come
		}
	}
}

// ended reports whether the store is closed, and no append can come any more.
func (s *Store) ended() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return errors.Is(s.err, ErrClosed) && s.queued == 0 && len(s.queue) == 0
}

// unsynced reports whether the journal has entries that are not on the device. The caller holds s.committing.
func (s *Store) unsynced() bool { return s.journal.synced != s.journal.sequence }

// syncLater syncs records of [ClassOS] whose time has come.
func (s *Store) syncLater() {
	s.committing.Lock()
	defer s.committing.Unlock()
	s.armed = false
	s.committer.sync()
}

// committer is what is kept between groups. Store.committing guards it.
type committer struct {
	s      *Store
	group  []*pending
	buf    []byte
	groups []logGroup
	failed error
	named  bool // the group begins the use of a log in this journal file
	device bool // one of the group asks for a sync
	tags   []byte
}

// logGroup is what a group of appends has of one log.
type logGroup struct {
	log     *Log
	batches []*pending
	records []byte // in committer.buf
}

// next commits the next group of those that wait, and reports whether there was one.
func (c *committer) next() bool {
	s := c.s
	c.group = s.take(c.group)
	if len(c.group) == 0 {
		return false
	}
	began := time.Now()
	err := c.commit(c.group)
	s.quick.Store(time.Since(began) < quickCommit)
	if err != nil {
		s.fail(err)
		err = fmt.Errorf("%w: %w", ErrFailed, err)
	}
	for i, p := range c.group {
		p.done(err)
		p.free()
		c.group[i] = nil
	}
	s.pending.Add(-int64(len(c.group)))
	return true
}

// commit writes the group to the journal, syncs it if one of the group asks for that, and writes it to segments.
func (c *committer) commit(group []*pending) error {
	s, j := c.s, &c.s.journal
	if c.failed == nil {
		c.failed = s.Err()
	}
	if c.failed != nil {
		return c.failed
	}
	c.split(group)
	err := func() error {
		if len(c.groups) == 0 { // they only follow others
			return c.syncIfAsked()
		}
		if j.file == nil {
			if err := j.begin(j.number, 0); err != nil {
				return err
			}
		}
		n := c.encode()
		if err := j.write(c.buf, n); err != nil {
			return err
		}
		if err := c.syncIfAsked(); err != nil {
			return err
		}
		for i := range c.groups {
			if err := c.groups[i].log.write(c.groups[i].batches, c.groups[i].records); err != nil {
				return err
			}
		}
		if j.pos >= s.opt.JournalBytes {
			return c.rotate()
		}
		return nil
	}()
	c.failed = err
	s.commits.Add(1)
	if len(c.groups) > 0 {
		s.wrote(int64(len(c.buf)))
	}
	for i := range c.groups {
		s.appends.Add(int64(len(c.groups[i].batches)))
	}
	if cap(c.buf) > maxGroup {
		c.buf = nil
	}
	return err
}

// split sorts a group by log and keeps the order within each.
func (c *committer) split(group []*pending) {
	c.groups, c.named, c.device = c.groups[:0], false, false
	for _, p := range group {
		c.device = c.device || p.class == ClassDevice
		if len(p.bytes) == 0 {
			continue
		}
		if p.log.group == 0 {
			n := len(c.groups)
			c.groups = slices.Grow(c.groups, 1)[:n+1]
			c.groups[n] = logGroup{log: p.log, batches: c.groups[n].batches[:0]}
			p.log.group = n + 1
		}
		g := &c.groups[p.log.group-1]
		g.batches = append(g.batches, p)
	}
	for i := range c.groups {
		c.groups[i].log.group = 0
	}
}

// syncIfAsked syncs the journal if one of the group needs that.
func (c *committer) syncIfAsked() error {
	// A name that is lost would leave what a crash does to the log's segments unexplained.
	if !c.named && !c.device {
		return nil
	}
	return c.s.journal.sync()
}

// encode fills buf with the entries of all groups and returns how many there are.
func (c *committer) encode() (entries int) {
	j := &c.s.journal
	size := 0
	for i := range c.groups {
		size += 128 + 2*entryHeaderSize
		for _, p := range c.groups[i].batches {
			size += len(p.bytes) + tagSize
		}
	}
	if cap(c.buf) < size {
		c.buf = make([]byte, 0, size)
	}
	b := c.buf[:0]
	for i := range c.groups {
		g := &c.groups[i]
		l := g.log
		if l.named != j.number+1 {
			c.named = true
			l.named, l.number = j.number+1, j.logs
			j.logs++
			c.s.touched = append(c.s.touched, l)
			b = appendEntry(b, j.salt, entry{kind: entryName, sequence: j.sequence + uint64(entries), synced: j.synced, log: l.number},
				l.position().append(nil))
			entries++
		}
		c.tags = c.tags[:0]
		for _, p := range g.batches {
			if p.tagged {
				c.tags = appendTag(c.tags, p.tag)
			}
		}
		if len(c.tags) > 0 {
			b = appendEntry(b, j.salt, entry{kind: entryTags, sequence: j.sequence + uint64(entries), synced: j.synced, log: l.number}, c.tags)
			entries++
		}
		e := entry{kind: entryRecords, sequence: j.sequence + uint64(entries), synced: j.synced, log: l.number}
		for _, p := range g.batches {
			e.length += uint32(len(p.bytes))
		}
		b = appendEntryHeader(b, j.salt, e, nil)
		begin := len(b)
		for _, p := range g.batches {
			b = append(b, p.bytes...)
		}
		g.records = b[begin:len(b):len(b)]
		b = pad(b)
		entries++
	}
	c.buf = b
	return entries
}

// rotate completes the journal file, hands it to the checkpoints and begins the next.
func (c *committer) rotate() error {
	s, j := c.s, &c.s.journal
	if err := j.end(); err != nil {
		return err
	}
	s.checkpoints <- checkpoint{j.number, s.touched}
	s.touched = nil
	j.number++
	j.file = nil
	return j.begin(j.number, 0)
}

// sync syncs what has not been synced.
func (c *committer) sync() {
	if c.failed != nil || c.s.journal.file == nil {
		return
	}
	if err := c.s.journal.sync(); err != nil {
		c.failed = err
		c.s.fail(err)
	}
}

// close hands the last journal file to the checkpoints, so that nothing is left in the journal.
func (c *committer) close() {
	s, j := c.s, &c.s.journal
	if j.file == nil {
		return
	}
	if c.failed == nil {
		c.failed = s.Err()
	}
	if c.failed == nil {
		if c.failed = j.end(); c.failed == nil {
			s.checkpoints <- checkpoint{j.number, s.touched}
			return
		}
		s.fail(c.failed)
	}
	_ = j.file.Close() // what it holds is read when the store is opened again
}

// checkpointAll removes journal files when the segments have their records.
func (s *Store) checkpointAll() {
	for c := range s.checkpoints {
		if s.Err() != nil {
			continue
		}
		err := s.syncLogs(c.logs)
		if err == nil {
			err = s.saveProducers(c.logs)
		}
		if err == nil {
			err = s.journal.retire(c.number)
		}
		if err != nil {
			s.fail(err)
		}
	}
}

// syncLogs makes the segments of these logs survive.
func (s *Store) syncLogs(logs []*Log) error {
	made := false
	for _, l := range logs {
		isNew, err := l.sync()
		if err != nil {
			return err
		}
		made = made || isNew
	}
	if made {
		if err := s.opt.FS.SyncDir(s.root); err != nil {
			return err
		}
	}
	// A file that was closed meanwhile, to open another one, was synced then. That may have failed.
	return s.Err()
}

// tick applies retention from time to time, and closes files that were not used meanwhile.
func (s *Store) tick() {
	retain := time.NewTicker(s.opt.RetainEvery)
	defer retain.Stop()
	for {
		select {
		case <-s.stop:
			return
		case <-retain.C:
			if err := s.Retain(); err != nil {
				s.unretained.Add(1)
			}
			s.files.trim(false)
		}
	}
}

// watch looks at the free space from time to time, and reports that the store has failed. It does not wait for
// retention, which may take long.
func (s *Store) watch() {
	space := time.NewTicker(time.Second)
	defer space.Stop()
	for {
		select {
		case <-s.stop:
			return
		case cause := <-s.failure:
			s.report(cause)
		case <-space.C:
			s.checkSpace()
		}
	}
}

// lookAfter is after how many bytes the committer looks at the free space, however soon that is. A smaller headroom has
// it look more often.
const lookAfter = 8 << 20

// wrote looks at the free space when enough was written since the last look. The caller holds s.committing.
func (s *Store) wrote(n int64) {
	s.unlooked += n
	if s.unlooked >= min(lookAfter, s.opt.Headroom/8) {
		s.unlooked = 0
		s.checkSpace()
	}
}

// checkSpace looks at the free space. What waits for the committer is taken for written.
func (s *Store) checkSpace() {
	if s.opt.Headroom <= 0 {
		return
	}
	s.mu.Lock()
	queued := s.queued
	s.mu.Unlock()
	if n, err := s.opt.FS.Free(s.root); err == nil {
		s.full.Store(n-queued < s.opt.Headroom)
	}
}

// Retain removes what the logs' retention does not keep. It is called in the background every [Options.RetainEvery],
// and what cannot be removed is tried again.
func (s *Store) Retain() error {
	s.retaining.Lock()
	defer s.retaining.Unlock()
	s.mu.Lock()
	logs := make([]*Log, 0, len(s.logs))
	for _, l := range s.logs {
		logs = append(logs, l)
	}
	s.mu.Unlock()
	errs := make([]error, 0, len(logs))
	for _, l := range logs {
		errs = append(errs, l.retain(s.opt.Now()))
	}
	return errors.Join(errs...)
}
