package auth

import (
	"bytes"
	"hash/maphash"
	"math/bits"
	"unsafe"
)

// grants are the permissions of an identity, indexed for [Identity.Allowed]. Literal patterns and those whose only star
// is the last byte are looked up; the others are tried one after the other. The index does not change once a token has
// been verified.
type grants struct {
	text    []byte  // of all patterns
	entries []grant // those that are looked up
	slots   []int32 // hash table of positions in entries, from 1, with linear probing; its length is a power of two
	actions [len(actions)]*actionGrants
	stars   int // in the patterns that are tried
}

// grant is a pattern that is looked up.
type grant struct {
	hash     uint32
	at, size uint32 // in text
	key      uint8  // see keyOf
}

// actionGrants is what depends on the action.
type actionGrants struct {
	prefixes [maxStackResource/64 + 1]uint64 // a bit for each length of a prefix
	globs    []globGrant
}

// globGrant is a pattern that is tried.
type globGrant struct {
	at, size   uint32 // in text
	literal    uint32 // bytes that are no stars: the least that a resource must have
	head, tail uint32 // bytes before the first star and after the last
}

// matches is [glob] with the cheap checks first, which are all there is to check if there is one star.
func (p *globGrant) matches(text, resource []byte) bool {
	if int(p.literal) > len(resource) {
		return false
	}
	pattern := text[p.at : p.at+p.size]
	if !bytes.HasPrefix(resource, pattern[:p.head]) || !bytes.HasSuffix(resource, pattern[p.size-p.tail:]) {
		return false
	}
	return p.literal == p.size-1 || glob(pattern, resource)
}

// hashSeed makes it impossible to write permissions that share a slot.
var hashSeed = maphash.MakeSeed()

// keyOf tells apart the entries with equal text.
func keyOf(action int, prefix bool) uint8 {
	if prefix {
		return uint8(action)<<1 | 1
	}
	return uint8(action) << 1
}

func hashOf(text []byte, key uint8) uint32 {
	return uint32(maphash.Bytes(hashSeed, text)>>8) ^ uint32(key)*0x9e3779b1
}

// size is how many bytes of memory the grants hold.
func (g *grants) size() int {
	if g == nil {
		return 0
	}
	n := cap(g.text) + cap(g.entries)*int(unsafe.Sizeof(grant{})) + cap(g.slots)*4
	for _, of := range g.actions {
		if of != nil {
			n += int(unsafe.Sizeof(*of)) + cap(of.globs)*int(unsafe.Sizeof(globGrant{}))
		}
	}
	return n
}

// reserve makes space for n patterns of size bytes together.
func (g *grants) reserve(n, size int) {
	g.text = make([]byte, 0, size)
	g.entries = make([]grant, 0, n)
	g.resize(n)
}

// resize makes a table for n entries, at most half full.
func (g *grants) resize(n int) {
	size := 8
	for size < 2*n {
		size *= 2
	}
	g.slots = make([]int32, size)
	for i := range g.entries {
		g.place(i)
	}
}

func (g *grants) place(i int) {
	mask := uint32(len(g.slots) - 1)
	slot := g.entries[i].hash & mask
	for g.slots[slot] != 0 {
		slot = (slot + 1) & mask
	}
	g.slots[slot] = int32(i + 1)
}

func (g *grants) has(text []byte, key uint8) bool {
	if len(g.slots) == 0 {
		return false
	}
	hash := hashOf(text, key)
	mask := uint32(len(g.slots) - 1)
	for slot := hash & mask; g.slots[slot] != 0; slot = (slot + 1) & mask {
		e := &g.entries[g.slots[slot]-1]
		if e.hash == hash && e.key == key && bytes.Equal(g.text[e.at:e.at+e.size], text) {
			return true
		}
	}
	return false
}

// add allows action on what pattern matches. It keeps no part of pattern.
func (g *grants) add(action int, pattern []byte) {
	of := g.actions[action]
	if of == nil {
		of = new(actionGrants)
		g.actions[action] = of
	}
	at := len(g.text)
	stars := 0
	for i := 0; i < len(pattern); { // a run of stars is one
		n := bytes.IndexByte(pattern[i:], '*')
		if n < 0 {
			g.text = append(g.text, pattern[i:]...)
			break
		}
		g.text = append(g.text, pattern[i:i+n+1]...)
		stars++
		for i += n; i < len(pattern) && pattern[i] == '*'; i++ {
		}
	}
	text := g.text[at:]
	prefix := stars == 1 && text[len(text)-1] == '*' && len(text) <= maxStackResource
	if stars > 0 && !prefix {
		g.stars += stars
		of.globs = append(of.globs, globGrant{
			at: uint32(at), size: uint32(len(text)), literal: uint32(len(text) - stars),
			head: uint32(bytes.IndexByte(text, '*')), tail: uint32(len(text) - 1 - bytes.LastIndexByte(text, '*')),
		})
		return
	}
	if prefix {
		text = text[:len(text)-1]
		of.prefixes[len(text)>>6] |= 1 << (len(text) & 63)
	}
	key := keyOf(action, prefix)
	if g.has(text, key) {
		g.text = g.text[:at]
		return
	}
	if 2*(len(g.entries)+1) > len(g.slots) {
		g.resize(2 * (len(g.entries) + 1))
	}
	g.entries = append(g.entries, grant{hashOf(text, key), uint32(at), uint32(len(text)), key})
	g.place(len(g.entries) - 1)
}

// allows reports whether a pattern of the action matches the resource.
func (g *grants) allows(action int, resource []byte) bool {
	of := g.actions[action]
	if of == nil {
		return false
	}
	if g.has(resource, keyOf(action, false)) {
		return true
	}
	key := keyOf(action, true)
	for i, word := range of.prefixes {
		for ; word != 0; word &= word - 1 {
			n := i<<6 + bits.TrailingZeros64(word)
			if n > len(resource) {
				break
			}
			if g.has(resource[:n], key) {
				return true
			}
		}
	}
	for i := range of.globs {
		if of.globs[i].matches(g.text, resource) {
			return true
		}
	}
	return false
}
