package quicx

import (
	"io"

	"github.com/felix-mq/felix/internal/buf"
)

// DefaultMaxWrite is how many bytes of small frames a [FrameWriter] puts into one write.
const DefaultMaxWrite = 64 << 10

// FrameWriter writes frames to a stream in few calls, which is what makes small frames cheap: each write of a stream
// costs a hand-over to the goroutine of its connection. It belongs to one goroutine.
//
// There are two ways to use it. Replies are appended to [FrameWriter.Buffer] as they come up and go out together with
// [FrameWriter.Flush]; frames that exist already go out with [FrameWriter.WriteBatch]. Between flushes the writer holds
// no memory.
type FrameWriter struct {
	dst      io.Writer // a stream
	maxWrite int

	chunk *buf.Chunk // where pending began, or nil
	buf   []byte     // appended and not flushed
	size  int        // of the next chunk
}

// NewFrameWriter returns a writer to s. maxWrite bounds what WriteBatch puts into one write, in bytes; 0 means
// [DefaultMaxWrite].
func NewFrameWriter(s *SendStream, maxWrite int) *FrameWriter { return newFrameWriter(s, maxWrite) }

func newFrameWriter(dst io.Writer, maxWrite int) *FrameWriter {
	if maxWrite <= 0 {
		maxWrite = DefaultMaxWrite
	}
	return &FrameWriter{dst: dst, maxWrite: maxWrite, size: 1 << 10}
}

// Buffer returns the bytes that wait for Flush, to append to. The result of appending has to be handed to SetBuffer:
//
//	w.SetBuffer(codec.AppendOK(w.Buffer()))
func (w *FrameWriter) Buffer() []byte {
	if w.buf == nil {
		w.chunk = buf.Get(w.size)
		w.buf = w.chunk.Bytes()[:0]
	}
	return w.buf
}

// SetBuffer replaces the bytes that wait for Flush. The writer owns b until then. Nothing bounds how many there are but
// the caller, who flushes when [FrameWriter.Pending] is large enough or when there is nothing more to answer.
func (w *FrameWriter) SetBuffer(b []byte) { w.buf = b }

// Pending returns the number of bytes that wait for Flush.
func (w *FrameWriter) Pending() int { return len(w.buf) }

// Flush writes what was appended, in one write. It blocks and fails as [SendStream.Write] does; after an error the
// bytes are gone and so is the stream.
func (w *FrameWriter) Flush() error {
	if len(w.buf) == 0 {
		w.Close()
		return nil
	}
	_, err := w.dst.Write(w.buf)
	w.size = min(max(len(w.buf), w.size/8*7), DefaultMaxWrite) // shrinks slowly, so that mixed sizes do not allocate
	w.Close()
	return err
}

// WriteBatch writes frames in order, after what waits for Flush. Small ones are joined, up to the writer's bound for
// each write, and one that stays alone is written from where it is. The frames are read only until WriteBatch returns.
// It blocks and fails as [SendStream.Write] does.
func (w *FrameWriter) WriteBatch(frames [][]byte) error {
	if len(w.buf) > 0 {
		if err := w.Flush(); err != nil {
			return err
		}
	}
	for len(frames) > 0 {
		n, total := 1, len(frames[0])
		for n < len(frames) && total+len(frames[n]) <= w.maxWrite {
			total += len(frames[n])
			n++
		}
		var err error
		if n == 1 {
			_, err = w.dst.Write(frames[0])
		} else {
			err = w.writeJoined(frames[:n], total)
		}
		if err != nil {
			return err
		}
		frames = frames[n:]
	}
	return nil
}

func (w *FrameWriter) writeJoined(frames [][]byte, total int) error {
	c := buf.Get(total)
	defer c.Release()
	b := c.Bytes()[:0]
	for _, f := range frames {
		b = append(b, f...)
	}
	_, err := w.dst.Write(b)
	return err
}

// Close drops what waits for Flush and gives the writer's memory back. The stream is left as it is, and the writer
// stays usable.
func (w *FrameWriter) Close() {
	if w.chunk != nil {
		w.chunk.Release()
	}
	w.chunk, w.buf = nil, nil
}
