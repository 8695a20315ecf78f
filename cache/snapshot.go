package cache

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"path"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"github.com/felix-mq/felix/internal/vfs"
)

// SnapshotOptions say where a store has its snapshot.
type SnapshotOptions struct {
	// Dir is the directory, made if it is missing. One process uses it at a time.
	Dir string
	// CleanOnly makes [Snapshots.Load] ignore a snapshot after which something may have changed.
	CleanOnly bool
	// Headroom is how many bytes have to stay free on the device.
	Headroom int64
	// FS is the file system; nil means that of the operating system.
	FS vfs.FS
}

// Snapshots keeps the entries of a store in a file, for its next life. Its methods may be called from any goroutine;
// one of them works at a time.
//
//	Load ──▶ requests ──▶ Write, Write, … ──▶ no more requests ──▶ Finish
//
// After Finish nothing was lost, and entries come back with their versions. After any other end, what came after the
// last Write is lost. Then entries come back with new versions, above all that were given out: who has seen a later
// value of a key sees no version that is lower.
//
// A snapshot is written to another file first, which takes its name when it is on the device. So the one before is
// there until the next one is whole.
type Snapshots struct {
	store *Store
	opt   SnapshotOptions
	lock  io.Closer

	mu        sync.Mutex // held while one of the methods works; guards what follows
	loaded    bool       // what is there may be replaced
	canceled  bool       // Load was broken off
	directory directoryID
	bound     uint64 // versions up to it are reserved on the device
	reserved  bool   // by this life
	current   uint64 // the whole snapshot that is there now, or 0
	last      uint64 // version of the store, of which nothing is missing in it
}

// Names of files.
const (
	snapshotFile = "cache.snapshot"
	versionsName = "cache.versions"
	lockFile     = "cache.lock"
)

const (
	// versionStep is how many versions are reserved at a time. If there were one each nanosecond, which is more than
	// there can be, they would last for a minute.
	versionStep = 1 << 36
	// entriesPerHold is how many entries are looked at under the lock of a shard.
	entriesPerHold = 64
	// syncEvery is how many bytes are written between two syncs: others who sync on the device wait for so much.
	syncEvery = 8 << 20
)

// Errors of snapshots.
var (
	// ErrSnapshotSpace means that a snapshot would leave too little free space on the device.
	ErrSnapshotSpace = errors.New("cache: too little free space for a snapshot")
	// ErrSnapshotIgnored means that there is a snapshot, and that nothing was loaded from it.
	ErrSnapshotIgnored = errors.New("cache: snapshot ignored")
	// ErrSnapshotNotLoaded means that [Snapshots.Load] did not end, so that the snapshot that is there is not replaced.
	ErrSnapshotNotLoaded = errors.New("cache: the snapshot that is there has not been loaded")

	errForeign  = errors.New("it was written in another directory, or the file " + versionsName + " is missing or damaged")
	errNotClean = errors.New("the store has not ended in order after it")
)

// OpenSnapshots takes the directory, for [Snapshots.Close] to give back. It returns [vfs.ErrLocked] if another process
// has it.
func (s *Store) OpenSnapshots(o SnapshotOptions) (*Snapshots, error) {
	if o.FS == nil {
		o.FS = vfs.OS{}
	}
	if err := o.FS.MkdirAll(o.Dir); err != nil {
		return nil, err
	}
	if err := o.FS.SyncDir(path.Dir(path.Clean(o.Dir))); err != nil { // or the files could be lost with their directory
		return nil, err
	}
	lock, err := o.FS.Lock(path.Join(o.Dir, lockFile))
	if err != nil {
		return nil, err
	}
	return &Snapshots{store: s, opt: o, lock: lock}, nil
}

// Close gives the directory back, when a method that works has ended. It writes nothing.
func (n *Snapshots) Close() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.loaded = false
	if n.lock == nil {
		return nil
	}
	err := n.lock.Close()
	n.lock = nil
	return err
}

// Loaded says what [Snapshots.Load] has found.
type Loaded struct {
	Taken   time.Time // zero if there was no snapshot
	Clean   bool      // nothing had changed after it
	Bytes   int64     // of the file
	Entries int64     // that are in the store now

	Expired int64 // entries whose lifetime ended meanwhile
	Unknown int64 // entries of caches that there are no more
	NoSpace int64 // entries that did not fit into what store, tenant or cache may hold
	Damaged int64 // entries in blocks that are damaged, or could not be read

	// Unreserved is why versions could not be reserved, or nil. They are tried to be reserved again with Reserve.
	Unreserved error
}

// Load takes entries from the snapshot into the store, which nobody uses yet. All caches that are to have some exist,
// and tenants have their limits. It evicts nothing: what does not fit stays out.
//
// Lifetimes went on while the store was down. If the wall clock shows a time before the snapshot, entries have what
// they had left when it was taken. A snapshot of which not even the frame is whole, which is of another directory, or
// is not clean though it has to be, is ignored: [ErrSnapshotIgnored]. In others blocks that are damaged are left out.
//
// When the context ends, Load ends with its error, and the snapshot stays as it is for the rest of the life of n. If
// the store is used all the same, [Snapshots.Reserve] is called before: then the snapshot is not clean any more.
func (n *Snapshots) Load(ctx context.Context) (Loaded, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	s := n.store
	var versions versionsFile
	content, err := vfs.ReadFile(n.opt.FS, path.Join(n.opt.Dir, versionsName), versionsSize)
	if err == nil {
		versions, err = parseVersions(content)
	}
	if err != nil { // also if there is none: then a snapshot is foreign
		for i := range versions.directory {
			versions.directory[i] = byte(rand.Uint32())
		}
	}
	n.directory = versions.directory
	s.raise(versions.bound)
	l := loader{n: n, versions: versions}
	ignored := l.load(ctx)
	if ctx.Err() != nil {
		n.canceled = true
		return l.Loaded, ctx.Err()
	}
	n.loaded = true
	// What was left out must not come back later: then the snapshot is written again, though nothing has changed.
	if !l.Taken.IsZero() && ignored == nil && l.Clean && l.Entries == l.all {
		n.current, n.last = l.header.id, s.version.Load()
	}
	l.Unreserved = n.reserve(0) // before anybody can change an entry
	if errors.Is(ignored, fs.ErrNotExist) {
		return l.Loaded, nil
	}
	if ignored != nil {
		ignored = fmt.Errorf("%w: %w", ErrSnapshotIgnored, ignored)
	}
	return l.Loaded, ignored
}

// Reserve keeps enough versions reserved. It is called from time to time after Load, and does nothing in most cases.
// After a Load that was broken off it is called before the store is used.
func (n *Snapshots) Reserve() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if !n.loaded && !n.canceled || n.reserved && n.store.version.Load() < n.bound-versionStep/2 {
		return nil
	}
	return n.reserve(0)
}

// reserve writes the file of versions: those that may be given out before it is called again, and the snapshot that is
// clean. After that none is given out, so none is reserved: versions must not run ahead of the clock with each restart,
// because the clock is all that a store without the file has.
func (n *Snapshots) reserve(clean uint64) error {
	bound := n.store.version.Load()
	if clean == 0 {
		bound += versionStep
	}
	v := versionsFile{directory: n.directory, bound: bound, clean: clean}
	if err := vfs.WriteFile(n.opt.FS, path.Join(n.opt.Dir, versionsName), v.append(nil)); err != nil {
		return err
	}
	if err := n.opt.FS.SyncDir(n.opt.Dir); err != nil {
		return err
	}
	n.bound, n.reserved = bound, true
	return nil
}

// Written says what [Snapshots.Write] has written.
type Written struct {
	Entries, Bytes int64
	Taken          time.Time // zero if nothing has changed since the snapshot that is there
}

// Write replaces the snapshot by one of the present entries. An entry that changes meanwhile is in it as it was before
// or as it is then. It holds the lock of a shard, shared with those who read, for 64 entries at a time, and copies
// their values without it. It writes bytesPerSecond, or as much as it can if that is 0.
//
// It takes memory for a block of 256 KiB, or for the largest entry, and twice that for values that are evicted while
// they are written. With an error, which may be the context's, the snapshot before is still there.
func (n *Snapshots) Write(ctx context.Context, bytesPerSecond int64) (Written, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.write(ctx, bytesPerSecond)
}

// Finish is Write at the end, when nobody uses the store any more: the next life goes on with the versions of this one.
func (n *Snapshots) Finish(ctx context.Context) (Written, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	w, err := n.write(ctx, 0)
	if err != nil {
		return w, err
	}
	return w, n.reserve(n.current)
}

func (n *Snapshots) write(ctx context.Context, bytesPerSecond int64) (w Written, err error) {
	s := n.store
	if !n.loaded {
		return w, ErrSnapshotNotLoaded
	}
	version := s.version.Load() // what has it or one below is there when its shard is locked next
	if n.current != 0 && n.last == version {
		return w, nil
	}
	name := path.Join(n.opt.Dir, snapshotFile)
	draft := name + vfs.DraftSuffix
	f, err := vfs.CreateOver(n.opt.FS, draft)
	if err != nil {
		return w, err
	}
	now := s.clock.Now()
	sw := &snapshotWriter{
		n: n, f: f, ctx: ctx, times: wallTimes{wall: now.UnixNano(), store: int64(now.Sub(s.start))}, bytesPerSecond: bytesPerSecond,
		header: snapshotHeader{directory: n.directory, id: rand.Uint64() | 1, taken: now.UnixNano()},
		scopes: make(map[*Cache]uint64), began: time.Now(), block: make([]byte, 0, blockBytes+blockBytes/4),
	}
	err = sw.run()
	if err = errors.Join(err, f.Close()); err == nil {
		n.current = 0 // until it is known which one is there
		if err = n.opt.FS.Rename(draft, name); err == nil {
			err = n.opt.FS.SyncDir(n.opt.Dir)
		}
	}
	if err != nil {
		_ = n.opt.FS.Remove(draft) // it may be large; the next one tries again
		return w, err
	}
	n.current, n.last = sw.header.id, version
	return Written{Entries: int64(sw.footer.entries), Bytes: sw.size, Taken: now}, nil
}

// space reports an error if more bytes would leave too few.
func (n *Snapshots) space(more int64) error {
	free, err := n.opt.FS.Free(n.opt.Dir)
	if err != nil {
		return err
	}
	if free-more < n.opt.Headroom {
		return fmt.Errorf("%w: %d bytes are free, it may take %d, and %d have to stay", ErrSnapshotSpace, free, more, n.opt.Headroom)
	}
	return nil
}

// snapshotWriter writes one snapshot.
type snapshotWriter struct {
	n              *Snapshots
	f              vfs.File
	ctx            context.Context
	times          wallTimes
	bytesPerSecond int64
	began          time.Time

	header snapshotHeader
	footer snapshotFooter
	size   int64 // written
	synced int64

	held      [entriesPerHold]heldEntry
	holds     int
	looked    int // entries, since the lock was taken
	heldBytes int

	block   []byte
	entries uint32 // in block
	blocks  []blockInfo

	scopes map[*Cache]uint64
	names  []Scope
}

// heldEntry is an entry of which the value is retained.
type heldEntry struct {
	cache   *Cache
	key     []byte // never changes
	value   Value
	expires int64
}

func (w *snapshotWriter) run() error {
	s := w.n.store
	if err := w.n.space(s.Bytes()); err != nil {
		return err
	}
	if err := w.write(w.header.append(nil)); err != nil {
		return err
	}
	for i := range s.shards {
		if err := w.shard(&s.shards[i]); err != nil {
			return err
		}
	}
	if err := w.endBlock(); err != nil {
		return err
	}
	index := encodeIndex(w.names, w.blocks)
	w.footer.id, w.footer.index, w.footer.indexSum = w.header.id, uint64(len(index)), checksum(index)
	w.footer.version = s.version.Load()
	if err := w.write(w.footer.append(index)); err != nil {
		return err
	}
	return w.f.Sync()
}

// shard writes the entries of a shard. The lock is released between parts of the loop: others may change the map then,
// as the body of a loop over a map may. An entry that is there all the time is met once; one that is replaced may be
// met twice, and the later version counts.
func (w *snapshotWriter) shard(sh *shard) error {
	var err error
	sh.mu.RLock()
	for _, e := range sh.entries {
		if !w.take(e) {
			continue
		}
		sh.mu.RUnlock()
		err = w.giveBack()
		sh.mu.RLock()
		if err != nil {
			break
		}
	}
	sh.mu.RUnlock()
	return errors.Join(err, w.giveBack())
}

// take retains an entry, under the lock of its shard. It reports whether it is time to give back what is held.
func (w *snapshotWriter) take(e *entry) (full bool) {
	w.looked++
	if e.over(w.times.store) || e.cache.removed.Load() {
		return w.looked == entriesPerHold
	}
	e.value.chunk.Retain()
	w.held[w.holds] = heldEntry{e.cache, e.key, e.value, e.expires}
	w.holds++
	w.heldBytes += len(e.key) + e.value.n
	return w.looked == entriesPerHold || w.heldBytes >= blockBytes
}

// giveBack writes what is held and releases it.
func (w *snapshotWriter) giveBack() (err error) {
	for i := range w.holds {
		h := &w.held[i]
		if err == nil {
			err = w.add(h)
		}
		h.value.Release()
		*h = heldEntry{}
	}
	w.holds, w.looked, w.heldBytes = 0, 0, 0
	return err
}

func (w *snapshotWriter) add(h *heldEntry) error {
	scope, ok := w.scopes[h.cache]
	if !ok {
		scope = uint64(len(w.names))
		w.scopes[h.cache] = scope
		w.names = append(w.names, h.cache.scope)
	}
	e := storedEntry{scope: scope, version: h.value.version, expires: w.times.toWall(h.expires), key: h.key, value: h.value.Bytes()}
	w.block = e.append(w.block)
	w.entries++
	if len(w.block) < blockBytes {
		return nil
	}
	return w.endBlock()
}

// endBlock writes the block, and waits until it is time for the next one.
func (w *snapshotWriter) endBlock() error {
	if w.entries == 0 {
		return nil
	}
	w.blocks = append(w.blocks, blockInfo{length: uint32(len(w.block)), entries: w.entries, sum: checksum(w.block)})
	w.footer.entries += uint64(w.entries)
	if err := w.write(w.block); err != nil {
		return err
	}
	w.entries = 0
	if w.block = w.block[:0]; cap(w.block) > 4*blockBytes {
		w.block = make([]byte, 0, blockBytes+blockBytes/4)
	}
	return w.pause()
}

func (w *snapshotWriter) write(b []byte) error {
	if err := w.ctx.Err(); err != nil {
		return err
	}
	k, err := w.f.WriteAt(b, w.size)
	w.size += int64(k)
	if err != nil || w.size-w.synced < syncEvery {
		return err
	}
	w.synced = w.size
	if err := w.n.space(0); err != nil {
		return err
	}
	return w.f.Sync()
}

func (w *snapshotWriter) pause() error {
	if w.bytesPerSecond <= 0 {
		return nil
	}
	due := w.began.Add(time.Duration(float64(w.size) / float64(w.bytesPerSecond) * float64(time.Second)))
	wait := time.NewTimer(time.Until(due))
	defer wait.Stop()
	select {
	case <-wait.C:
		return nil
	case <-w.ctx.Done():
		return w.ctx.Err()
	}
}

// loader loads one snapshot.
type loader struct {
	Loaded
	n        *Snapshots
	versions versionsFile
	header   snapshotHeader
	times    wallTimes
	caches   []*Cache // by number; nil for one that there is no more
	all      int64    // entries in the snapshot
	highest  uint64   // version in it

	entries, expired, unknown, noSpace, damaged atomic.Int64
}

// load returns why the snapshot was ignored, or nil.
func (l *loader) load(ctx context.Context) (err error) {
	n, s := l.n, l.n.store
	f, err := n.opt.FS.Open(path.Join(n.opt.Dir, snapshotFile))
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }() // it was only read
	footer, scopes, blocks, err := l.frame(f)
	if err != nil {
		return err
	}
	s.raise(footer.version)
	l.Taken = time.Unix(0, l.header.taken)
	l.Clean = l.header.id == l.versions.clean
	if l.header.directory != l.versions.directory {
		return errForeign
	}
	if n.opt.CleanOnly && !l.Clean {
		return errNotClean
	}
	now := s.clock.Now()
	l.times = wallTimes{wall: max(now.UnixNano(), l.header.taken), store: int64(now.Sub(s.start))}
	for _, scope := range scopes {
		l.caches = append(l.caches, s.Lookup([]byte(scope.Tenant), []byte(scope.Namespace), []byte(scope.Cache)))
	}
	l.all, l.highest = int64(footer.entries), footer.version
	s.presize(footer.entries)
	l.blocks(ctx, f, blocks)
	if !l.Clean {
		s.renew()
	}
	l.Entries, l.Expired, l.Unknown = l.entries.Load(), l.expired.Load(), l.unknown.Load()
	l.NoSpace, l.Damaged = l.noSpace.Load(), l.damaged.Load()
	return nil
}

// frame reads everything but the blocks.
func (l *loader) frame(f vfs.File) (footer snapshotFooter, scopes []Scope, blocks []blockInfo, err error) {
	size, err := f.Size()
	if err != nil {
		return footer, nil, nil, err
	}
	if size < headerSize+footerSize {
		return footer, nil, nil, errTorn
	}
	l.Bytes = size
	b := make([]byte, headerSize)
	if _, err = f.ReadAt(b, 0); err != nil {
		return footer, nil, nil, err
	}
	if l.header, err = parseHeader(b); err != nil {
		return footer, nil, nil, err
	}
	b = make([]byte, footerSize)
	if _, err = f.ReadAt(b, size-footerSize); err != nil {
		return footer, nil, nil, err
	}
	if footer, err = parseFooter(b); err != nil {
		return footer, nil, nil, err
	}
	left := size - headerSize - footerSize
	if footer.id != l.header.id || footer.index > uint64(left) {
		return footer, nil, nil, errTorn
	}
	left -= int64(footer.index)
	b = make([]byte, footer.index)
	if _, err = f.ReadAt(b, headerSize+left); err != nil {
		return footer, nil, nil, err
	}
	if checksum(b) != footer.indexSum {
		return footer, nil, nil, errTorn
	}
	if scopes, blocks, err = parseIndex(b); err != nil {
		return footer, nil, nil, err
	}
	for _, i := range blocks {
		left -= int64(i.length)
	}
	if left != 0 {
		return footer, nil, nil, errTorn
	}
	return footer, scopes, blocks, nil
}

// blocks loads the blocks, as many at a time as there are processors.
func (l *loader) blocks(ctx context.Context, f vfs.File, blocks []blockInfo) {
	offsets := make([]int64, len(blocks))
	at := int64(headerSize)
	for i, info := range blocks {
		offsets[i] = at
		at += int64(info.length)
	}
	var next atomic.Int64
	var wg sync.WaitGroup
	for range runtime.GOMAXPROCS(0) {
		wg.Go(func() {
			var b []byte
			for i := next.Add(1) - 1; i < int64(len(blocks)) && ctx.Err() == nil; i = next.Add(1) - 1 {
				info := blocks[i]
				if cap(b) < int(info.length) {
					b = make([]byte, info.length)
				}
				b = b[:info.length]
				if _, err := f.ReadAt(b, offsets[i]); err != nil || !l.block(b, info) {
					l.damaged.Add(int64(info.entries))
				}
			}
		})
	}
	wg.Wait()
}

// block takes the entries of a block. It reports false if the block is damaged: then it has taken none.
func (l *loader) block(b []byte, info blockInfo) bool {
	if checksum(b) != info.sum {
		return false
	}
	above := false
	err := eachEntry(b, info.entries, len(l.caches), func(e *storedEntry) { above = above || e.version > l.highest })
	if err != nil || above {
		return false
	}
	_ = eachEntry(b, info.entries, len(l.caches), func(e *storedEntry) {
		c := l.caches[e.scope]
		if c == nil {
			l.unknown.Add(1)
			return
		}
		expires, ok := l.times.toStore(e.expires)
		if !ok {
			l.expired.Add(1)
			return
		}
		switch c.restore(e.key, e.value, expires, e.version) {
		case restored:
			l.entries.Add(1)
		case refusedSpace:
			l.noSpace.Add(1)
		case restoredAgain:
		}
	})
	return true
}

// restoring is what has become of an entry of a snapshot.
type restoring int

const (
	restored      restoring = iota
	restoredAgain           // the key was there in another version
	refusedSpace
)

// restore stores an entry of a snapshot, unless the key has a later version already. It evicts nothing but what several
// goroutines have stored too much at the same moment. The policy may evict.
func (c *Cache) restore(key, value []byte, expires int64, version uint64) restoring {
	s, t := c.store, c.tenant
	u := update{c: c, hash: s.hash(key) ^ c.salt, key: key, cost: entryCost(len(key), len(value)), restored: version}
	if c.bytes.Load()+u.cost > s.maxScope {
		return refusedSpace
	}
	if p := t.policy.Load(); p != nil && t.share.Used()+u.cost > p.most.Load() {
		most, _ := t.bounds()
		p.setMost(max(most, t.share.Used()-pressStep))
	}
	result := u.restore(value, expires)
	c.shrink(u.hash)
	t.review()
	return result
}

func (u *update) restore(value []byte, expires int64) restoring {
	s, t := u.c.store, u.c.tenant
	p := t.begin()
	defer t.end()
	sh := s.shard(u.hash)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	// The policy does not hear that the key was used: nobody has asked for it, and that costs a fifth of the start.
	old := u.presentLocked(sh, s.now())
	if old != nil && old.value.version >= u.restored {
		return restoredAgain
	}
	overwrite := old != nil && old.cost == u.cost
	if !overwrite && u.settle(old) != nil {
		return refusedSpace
	}
	u.value = newValue(value)
	if overwrite {
		u.overwriteLocked(old, expires)
	} else {
		u.replaceLocked(sh, p, old, expires)
	}
	if old != nil {
		return restoredAgain
	}
	return restored
}

// raise makes all later versions higher than v.
func (s *Store) raise(v uint64) {
	for {
		now := s.version.Load()
		if now >= v || s.version.CompareAndSwap(now, v) {
			return
		}
	}
}

// renew gives all entries new versions, in any order. Nobody has seen one.
func (s *Store) renew() {
	for i := range s.shards {
		sh := &s.shards[i]
		sh.mu.Lock()
		for _, e := range sh.entries {
			e.value.version = s.version.Add(1)
		}
		sh.mu.Unlock()
	}
}

// presize makes the index of an empty store as large as n entries need, if there can be so many.
func (s *Store) presize(n uint64) {
	n = min(n, uint64(s.budget.Max()/entryOverhead)) / uint64(len(s.shards))
	for i := range s.shards {
		sh := &s.shards[i]
		sh.mu.Lock()
		if len(sh.entries) == 0 {
			sh.entries = make(map[uint64]*entry, n)
		}
		sh.mu.Unlock()
	}
}
