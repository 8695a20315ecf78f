// Package buf holds the counted byte buffers that frames live in, from the socket they were read from to the
// sockets they are written to.
//
// A [Chunk] has one or more holders. Each holder owns one reference: [Get] hands out the first, [Chunk.Retain] adds
// one before a chunk is shared, [Chunk.Release] gives one back, and the last release returns the memory to its pool.
// A release too many panics, because it would hand the same bytes to two owners. Builds with the tag "invariants"
// overwrite memory as it is freed, so that a use after the last release shows up as poisoned bytes in ordinary tests.
//
// What the bytes mean is left to others. Begin at [Get].
package buf

import (
	"math/bits"
	"sync"
	"sync/atomic"
)

// Size classes are powers of two. Above the largest, chunks are allocated exactly and left to the garbage collector,
// so that one large frame does not stay in a pool for ever.
const (
	minClassBits = 6  // 64 B
	maxClassBits = 21 // 2 MiB
)

// Capacities in bytes of the smallest chunk there is and of the largest that is pooled.
const (
	MinPooled = 1 << minClassBits
	MaxPooled = 1 << maxClassBits
)

var pools [maxClassBits - minClassBits + 1]sync.Pool

// live counts the chunks that are handed out, so that tests can see a leak.
var live atomic.Int64

// Chunk is a counted byte buffer. Its methods may be called from any goroutine; its bytes belong to the
// goroutine that wrote them first, and are read-only from the first [Chunk.Retain].
type Chunk struct {
	refs  atomic.Int32
	class int8 // index into pools, or -1
	data  []byte
	owner Owner // who was charged for it, or nil
}

// Owner is who has been charged for a chunk.
type Owner interface {
	// Release gives back n bytes that were charged.
	Release(n int64)
}

// Get returns a chunk of at least n bytes with one reference, which the caller owns. The bytes hold whatever the
// previous user left there.
func Get(n int) *Chunk {
	live.Add(1)
	class := classOf(n)
	if class < 0 {
		c := &Chunk{class: -1, data: fresh(n)}
		c.refs.Store(1)
		return c
	}
	c, _ := pools[class].Get().(*Chunk)
	if c == nil {
		c = &Chunk{class: int8(class), data: fresh(1 << (class + minClassBits))}
	}
	c.refs.Store(1)
	return c
}

// Memory from touchFrom bytes on is touched page by page before it is used.
const (
	touchFrom = 128 << 10
	pageSize  = 4 << 10 // or more
)

// fresh allocates n bytes. What the system has not mapped yet is mapped by the first access to each page, which takes
// microseconds. Copies and decompression are assembly code, which the scheduler cannot interrupt: for 16 MiB that kept
// a processor, and with it the end of a garbage collection, for 60 ms. This loop can be interrupted.
func fresh(n int) []byte {
	b := make([]byte, n)
	if n >= touchFrom {
		for i := 0; i < n; i += pageSize {
			b[i] = 0
		}
	}
	return b
}

func classOf(n int) int {
	if n <= 1<<minClassBits {
		return 0
	}
	b := bits.Len(uint(n - 1))
	if b > maxClassBits {
		return -1
	}
	return b - minClassBits
}

// CapOf returns the capacity of the chunk that [Get] returns for n bytes, so that it can be charged before it is held.
func CapOf(n int) int {
	if class := classOf(n); class >= 0 {
		return 1 << (class + minClassBits)
	}
	return n
}

// Bytes returns the whole buffer. Its length is the chunk's capacity.
func (c *Chunk) Bytes() []byte { return c.data }

// Cap returns the capacity in bytes, which is what the chunk costs while anybody holds it.
func (c *Chunk) Cap() int { return len(c.data) }

// Refs returns the number of references at this moment. A holder that reads 1 knows that it is the only one.
func (c *Chunk) Refs() int32 { return c.refs.Load() }

// Retain adds a reference. The caller must hold one already.
func (c *Chunk) Retain() {
	if c.refs.Add(1) <= 1 {
		panic("buf: retain of a freed chunk")
	}
}

// Release gives one reference back. The last one frees the memory; the caller must not touch the bytes afterwards.
func (c *Chunk) Release() {
	n := c.refs.Add(-1)
	if n > 0 {
		return
	}
	if n < 0 {
		panic("buf: release of a freed chunk")
	}
	live.Add(-1)
	poison(c.data)
	owner, size := c.owner, int64(len(c.data))
	c.owner = nil
	if c.class >= 0 {
		pools[c.class].Put(c)
	}
	if owner != nil {
		owner.Release(size)
	}
}

// Abandon gives up the only reference, and leaves the memory to the garbage collector: somebody may still look at the
// bytes.
func (c *Chunk) Abandon() {
	if c.refs.Swap(0) != 1 {
		panic("buf: a chunk that is shared or freed was abandoned")
	}
	live.Add(-1)
	if c.owner != nil {
		c.owner.Release(int64(len(c.data)))
		c.owner = nil
	}
}

// SetOwner names who has been charged for the chunk's capacity. The last [Chunk.Release] gives it back. It is called
// before the chunk is shared.
func (c *Chunk) SetOwner(o Owner) { c.owner = o }

// Live returns the number of chunks that are handed out and not yet released, over the whole process.
func Live() int64 { return live.Load() }
