package quicx

import (
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"sync/atomic"

	"github.com/felix-mq/felix/codec"
	"github.com/felix-mq/felix/internal/buf"
	"github.com/felix-mq/felix/internal/ledger"
)

const (
	// Chunks begin small and grow with the traffic, so that a frame kept from a quiet stream pins a few KiB and a busy
	// stream is read in few calls. Between 64 and 256 KiB there is no difference in throughput.
	minChunk = 4 << 10
	maxChunk = 64 << 10
	// For frames that do not fit, chunks follow the frames that have arrived, as far as the pool goes.
	maxFrameChunk = buf.MaxPooled
)

// Frame is a frame as it was received.
type Frame struct {
	Header codec.Header
	Bytes  []byte     // header and payload, contiguous; its capacity ends with the frame
	Chunk  *buf.Chunk // what Bytes is part of
}

// Payload returns the frame without its header.
func (f Frame) Payload() []byte { return f.Bytes[codec.HeaderLen:] }

// FrameReader cuts frames out of a stream. It belongs to one goroutine.
//
// Bytes are read in as large pieces as they come into counted chunks, and frames are views into those:
//
//	          handed out            whole        unfinished
//	├─────────────────────────┼──────────────┼────────────────┼ ─ ─ ─ ─ ─ ┤
//	0                       start                            end         cap
//
// Only an unfinished frame is ever moved, when the rest of it does not fit. A large frame, of more than half the usual
// chunk, is read up to its end and no further, so that a flow of them is not moved at all. Bytes before start are not
// touched again unless the reader holds the only reference: they may belong to a caller that retained the chunk, which
// may even write to them.
//
// While the reader waits for the first byte of a frame it holds no chunk, so idle streams cost no buffer. Nothing is
// allocated because of a length that a header declares: a frame that outgrows its chunk gets one of twice the size each
// time the bytes have filled the last.
type FrameReader struct {
	src frameSource
	max int // payload bytes

	chunk      *buf.Chunk // nil while nothing is buffered
	data       []byte     // chunk.Bytes()
	start, end int

	need   int          // bytes of the frame at start, or 0 if its header is not known yet
	header codec.Header // of that frame
	err    error        // what follows the buffered bytes

	size    int // of the next chunk
	largest int // frame that was cut from this chunk

	account *ledger.Account // charged with the chunk, or nil
	// For observers, in one word so that they see both together: twice the number of frames returned, plus one while
	// the reader waits for the rest of a frame. See expectRest.
	progress atomic.Uint64
	awaited  atomic.Uint32 // length of that frame's payload, 0 as long as its header is not known

	head [codec.HeaderLen]byte // for Peek
}

// frameSource is the part of [RecvStream] that a reader needs, with its rules.
type frameSource interface {
	Read([]byte) (int, error)
	Peek([]byte) (int, error)
}

// NewFrameReader returns a reader of the frames on r whose payloads have at most maxFrame bytes; 0 means
// [codec.DefaultMaxFrame]. Nothing else may read from r.
func NewFrameReader(r *RecvStream, maxFrame int) *FrameReader { return newFrameReader(r, maxFrame) }

// SetMaxFrame changes the limit of payloads for frames whose header has not been looked at.
func (r *FrameReader) SetMaxFrame(n int) { r.max = min(n, math.MaxInt-codec.HeaderLen) }

// SetAccount makes the reader charge the memory it holds to an account; if a frame does not fit, Next fails with
// [ErrMemory] and the account's own error. Chunks that others have retained are not charged any longer than the reader
// holds them. It is called before the first Next.
func (r *FrameReader) SetAccount(a *ledger.Account) { r.account = a }

// Progress tells an observer on another goroutine whether the reader waits inside a frame: for the rest of its header,
// or of a payload of the given length. Two calls that return the same count saw the same wait, or none in between.
func (r *FrameReader) Progress() (count uint64, inside bool, payload int) {
	p := r.progress.Load()
	return p >> 1, p&1 != 0, int(r.awaited.Load())
}

func newFrameReader(src frameSource, maxFrame int) *FrameReader {
	if maxFrame <= 0 {
		maxFrame = codec.DefaultMaxFrame
	}
	return &FrameReader{src: src, max: min(maxFrame, math.MaxInt-codec.HeaderLen), size: minChunk}
}

// Next returns the next frame. It is valid until the next call of Next or Close, or, if the caller has retained its
// chunk, until that is released. The caller may overwrite its bytes in place.
//
// Next blocks until a whole frame is there. It returns [io.EOF] if the stream ended after a frame, [ErrTruncated] if it
// ended inside one, an error of package codec for a header with the wrong magic or version or with a length above the
// limit, in that order (docs/protocol/wire.md#reading-a-frame), and otherwise what [RecvStream.Read] returns. Errors
// stay, except [os.ErrDeadlineExceeded], after which Next may be called again. Flags are not looked at.
//
// After an error other than [io.EOF] the caller should cancel the stream.
func (r *FrameReader) Next() (Frame, error) {
	for !r.Ready() {
		if err := r.fill(); err != nil {
			return Frame{}, err
		}
	}
	stop := r.start + r.need
	f := Frame{Header: r.header, Bytes: r.data[r.start:stop:stop], Chunk: r.chunk}
	r.largest = max(r.largest, r.need)
	r.start, r.need = stop, 0
	r.progress.Store((r.progress.Load() | 1) + 1)
	return f, nil
}

// Ready reports whether a whole frame is buffered, so that Next returns it without blocking.
func (r *FrameReader) Ready() bool {
	have := r.end - r.start
	if r.need == 0 && (have < codec.HeaderLen || !r.parse(r.data[r.start:r.end])) {
		return false
	}
	return have >= r.need
}

// Close gives the reader's memory back. Frames whose chunk was retained stay valid. The stream is left as it is.
func (r *FrameReader) Close() {
	r.fail(ErrClosed)
	r.drop()
}

// Abandon is Close for a reader whose last frame somebody may still look at: its memory, which nobody has retained, is
// left to the garbage collector.
func (r *FrameReader) Abandon() {
	r.fail(ErrClosed)
	if r.chunk == nil {
		return
	}
	if r.account != nil {
		r.account.Release(int64(r.chunk.Cap()))
	}
	r.chunk.Abandon()
	r.chunk, r.data = nil, nil
	r.start, r.end, r.largest = 0, 0, 0
}

// parse makes the header of the next frame known.
func (r *FrameReader) parse(b []byte) bool {
	h, err := codec.ParseHeader(b)
	if err == nil {
		err = h.CheckLength(r.max)
	}
	if err != nil {
		r.fail(err)
		return false
	}
	r.header, r.need = h, codec.HeaderLen+int(h.Length)
	return true
}

// fail makes err what Next returns from now on.
func (r *FrameReader) fail(err error) {
	r.err = err
	r.start, r.need = r.end, 0
}

// fill reads once. It returns nil if it is worth looking for a frame again.
//
//	nothing buffered ── await ──▶ header known, no chunk yet ──┐
//	a part of a frame ────────────────────────────────────────┴─ makeRoom ──▶ space for more of it ── Read
func (r *FrameReader) fill() error {
	if r.err != nil {
		return r.finish()
	}
	if r.start == r.end {
		r.drop()
		if err := r.await(); err != nil {
			return err
		}
	}
	if err := r.makeRoom(); err != nil {
		r.fail(fmt.Errorf("%w: %w", ErrMemory, err))
		r.drop()
		return r.err
	}
	if r.need > 0 {
		r.expectRest(r.header.Length)
	} else {
		r.expectRest(0)
	}
	limit := len(r.data)
	if r.need > maxChunk/2 {
		limit = min(limit, r.start+r.need)
	}
	n, err := r.src.Read(r.data[r.end:limit])
	r.end += n
	switch {
	case err == nil:
	case !errors.Is(err, os.ErrDeadlineExceeded):
		r.err = err // after the bytes that are there
	case n == 0:
		return err
	}
	return nil
}

// expectRest tells observers that the rest of a frame is awaited, with its payload's length or 0 if that is not known.
func (r *FrameReader) expectRest(payload uint32) {
	r.awaited.Store(payload)
	r.progress.Store(r.progress.Load() | 1)
}

// finish is called when no whole frame is left and nothing more can be read.
func (r *FrameReader) finish() error {
	if r.start < r.end && errors.Is(r.err, io.EOF) {
		r.err = ErrTruncated
	}
	r.fail(r.err)
	r.drop()
	return r.err
}

// await waits, without a chunk, until the next frame has begun to arrive and its header is found good.
func (r *FrameReader) await() error {
	n, err := r.src.Peek(r.head[:1])
	if err == nil {
		r.expectRest(0) // from here on the peer is expected to go on
		n, err = r.src.Peek(r.head[:])
	}
	if err == nil {
		if !r.parse(r.head[:]) {
			return r.err
		}
		return nil
	}
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return err
	}
	if n > 0 && errors.Is(err, io.EOF) {
		err = ErrTruncated
	}
	r.fail(err)
	// The stream ends for QUIC only when the end is read.
	for e := error(nil); e == nil; {
		_, e = r.src.Read(r.head[:])
	}
	return err
}

// makeRoom sees to it that more of the unfinished frame can be read. Its error is that of the account.
//
//	no chunk                          a chunk of the usual size
//	the frame ends in the chunk       nothing to do, and so if it is the only one in it and there is space
//	it does not, nobody else reads    its part moves to the front
//	otherwise                         its part moves to another chunk, of up to twice what has arrived
func (r *FrameReader) makeRoom() error {
	if r.chunk == nil {
		return r.hold(r.size)
	}
	have := r.end - r.start
	need := max(r.need, codec.HeaderLen)
	if r.start+need <= len(r.data) || r.end < len(r.data) && r.start == 0 {
		return nil
	}
	size := max(r.size, min(2*have, need))
	if size <= len(r.data) && r.chunk.Refs() == 1 {
		r.end = copy(r.data, r.data[r.start:r.end]) // nobody else can see these bytes
		r.start = 0
		return nil
	}
	old, from := r.chunk, r.data[r.start:r.end]
	largest := r.largest
	if err := r.hold(size); err != nil {
		return err
	}
	copy(r.data, from)
	r.chooseSize(len(old.Bytes()), r.end, largest)
	r.release(old)
	r.start, r.end, r.largest = 0, have, 0
	return nil
}

// hold makes a chunk of size bytes the reader's, if it fits into the account.
func (r *FrameReader) hold(size int) error {
	if r.account != nil {
		if err := r.account.Charge(int64(buf.CapOf(size))); err != nil {
			return err
		}
	}
	r.chunk = buf.Get(size)
	r.data = r.chunk.Bytes()
	return nil
}

func (r *FrameReader) release(c *buf.Chunk) {
	if r.account != nil {
		r.account.Release(int64(c.Cap()))
	}
	c.Release()
}

// chooseSize chooses the size of the next chunk by how one of size bytes was used.
func (r *FrameReader) chooseSize(size, used, largest int) {
	switch {
	case largest > maxChunk/2:
		r.size = min(max(largest, maxChunk), maxFrameChunk)
	case used == size:
		r.size = min(2*size, maxChunk)
	case used < size/4:
		r.size = min(max(size/2, minChunk), maxChunk)
	default:
		r.size = min(size, maxChunk)
	}
}

// drop gives the chunk back.
func (r *FrameReader) drop() {
	if r.chunk == nil {
		return
	}
	r.chooseSize(len(r.data), r.end, r.largest)
	r.release(r.chunk)
	r.chunk, r.data = nil, nil
	r.start, r.end, r.largest = 0, 0, 0
}
