package storage

import (
	"errors"
	"io/fs"
	"path"

	"github.com/felix-mq/felix/internal/vfs"
)

// Repair is something that was wrong with a file of a log and has been mended while the log was opened.
type Repair struct {
	Log      string // the directory
	File     string // relative to the data directory
	Position int64
	Damage   Damage
	// Cut is how many bytes were cut off at the position, of one record. If the damage is [DamageTruncated] the record
	// was never finished, so nobody was told that it is safe. Otherwise it may have been acknowledged.
	Cut int64
}

// repaired tells the owner of the store.
func (l *Log) repaired(id uint64, kind string, at int64, what Damage, cut int64) {
	if l.s.opt.Repaired != nil {
		l.s.opt.Repaired(Repair{Log: l.dir, File: path.Join(l.dir, segmentName(id, kind)), Position: at, Damage: what, Cut: cut})
	}
}

// indexCheck compares the index of a segment with its records, while those are scanned from the begin.
type indexCheck struct {
	entries []indexEntry // that were not compared yet
	damage  Damage       // empty if there is none
	at      int64        // in the index
}

// checkIndex begins to compare a segment's index.
func (l *Log) checkIndex(seg segment, size int64) (*indexCheck, error) {
	b, err := readAll(l.s.opt.FS, l.path(seg.id, indexKind))
	c := &indexCheck{at: indexHeaderSize}
	switch {
	case errors.Is(err, fs.ErrNotExist):
		c.damage, c.at = DamageMissing, 0
		return c, nil
	case err != nil:
		return nil, err
	}
	entries, ok := parseIndex(b, seg.base, size)
	switch {
	case !ok:
		c.damage, c.at = DamageFileHeader, 0
	case len(entries)*indexEntrySize+indexHeaderSize != len(b): // some are out of order, or a part
		c.damage = DamageOffset
	}
	c.entries = entries
	return c, nil
}

// note compares a record.
func (c *indexCheck) note(offset uint64, position int64) {
	if c.damage != "" || len(c.entries) == 0 {
		return
	}
	if e := c.entries[0]; e == (indexEntry{offset, position}) {
		c.entries = c.entries[1:]
		c.at += indexEntrySize
	} else if e.offset <= offset {
		c.damage = DamageOffset
	}
}

// end writes the index again from l.index, if it does not fit the records of the segment, all of which were noted.
func (c *indexCheck) end(l *Log, seg segment) error {
	if c.damage == "" && len(c.entries) > 0 {
		c.damage = DamageOffset // of records that there are not
	}
	if c.damage == "" {
		return nil
	}
	name := l.path(seg.id, indexKind)
	content := appendIndexHeader(seg.base)
	for _, e := range l.index {
		content = appendIndexEntry(content, e)
	}
	l.s.files.drop(name)
	if err := vfs.WriteFile(l.s.opt.FS, name, content); err != nil {
		return err
	}
	if err := l.s.opt.FS.SyncDir(path.Dir(name)); err != nil {
		return err
	}
	l.repaired(seg.id, indexKind, c.at, c.damage, 0)
	return nil
}
