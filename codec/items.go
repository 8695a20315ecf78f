package codec

import (
	"encoding/binary"
	"iter"
	"math"
)

// Items is the list of items at the end of every batch: a view into a payload whose counts and lengths have been
// checked. The zero value is an empty list. It may be read from many goroutines.
type Items struct {
	raw []byte // count and items
	n   int
}

// Len returns the number of items.
func (it Items) Len() int { return it.n }

// Raw returns the list as it lies in the frame, count included, and nothing after the last item. It is nil for the
// zero value.
func (it Items) Raw() []byte { return it.raw }

// All yields each item's position and the item, a view whose capacity ends with it.
func (it Items) All() iter.Seq2[int, []byte] {
	return func(yield func(int, []byte) bool) {
		c := it.Cursor()
		for i := range it.n {
			item, _ := c.Next()
			if !yield(i, item) {
				return
			}
		}
	}
}

// Cursor returns a cursor in front of the first item: [Items.All] for those who take one item at a time.
func (it Items) Cursor() ItemCursor {
	if it.n == 0 {
		return ItemCursor{}
	}
	return ItemCursor{rest: it.raw[4:], n: it.n}
}

// ItemCursor walks over a list. The zero value is at the end of one.
type ItemCursor struct {
	rest []byte
	n    int // items left
}

// Next returns the next item, or false after the last one.
func (c *ItemCursor) Next() ([]byte, bool) {
	if c.n == 0 {
		return nil, false
	}
	end := 4 + int(binary.BigEndian.Uint32(c.rest))
	item := c.rest[4:end:end]
	c.rest = c.rest[end:]
	c.n--
	return item, true
}

// ParseItems reads a list at the beginning of b and returns it with the position after its last item; what follows is
// no concern of the list (docs/protocol/wire.md#item-list). It fails with [ErrIncomplete].
func ParseItems(b []byte) (Items, int, error) {
	if len(b) < 4 {
		return Items{}, 0, ErrIncomplete.with("%d bytes are too few for the count of items", len(b))
	}
	count, rest := binary.BigEndian.Uint32(b), b[4:]
	// Each item takes at least the 4 bytes of its length, so this bounds what count can make anybody do.
	if uint64(count) > uint64(len(rest)/4) {
		return Items{}, 0, ErrIncomplete.with("%d items declared, %d bytes left", count, len(rest))
	}
	for i := range int(count) {
		if len(rest) < 4 {
			return Items{}, 0, ErrIncomplete.with("no length of item %d of %d", i, count)
		}
		n := binary.BigEndian.Uint32(rest)
		rest = rest[4:]
		if uint64(n) > uint64(len(rest)) {
			return Items{}, 0, ErrIncomplete.with("item %d of %d has %d bytes, %d are left", i, count, n, len(rest))
		}
		rest = rest[n:]
	}
	end := len(b) - len(rest)
	return Items{raw: b[:end:end], n: int(count)}, end, nil
}

// AppendItems appends a list.
func AppendItems(dst []byte, items [][]byte) []byte {
	dst = binary.BigEndian.AppendUint32(dst, uint32(len(items)))
	for _, item := range items {
		dst = binary.BigEndian.AppendUint32(dst, uint32(len(item)))
		dst = append(dst, item...)
	}
	return dst
}

// itemsLen returns how many bytes AppendItems appends; ok is false if the format cannot express the list.
func itemsLen(items [][]byte) (n uint64, ok bool) {
	n = 4 + 4*uint64(len(items))
	for _, item := range items {
		n += uint64(len(item))
	}
	return n, n <= math.MaxUint32
}
