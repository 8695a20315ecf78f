package quicx

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/felix-mq/felix/codec"
	"github.com/felix-mq/felix/internal/buf"
	"github.com/felix-mq/felix/internal/race"
)

// fakeStream is a stream whose bytes arrive as split says. It holds the reader to the rules of a real one.
type fakeStream struct {
	tb    testing.TB
	data  []byte
	end   error              // after data
	split func(have int) int // bytes that have arrived when a read waits for some; nil: all
	check func(peeking bool) // called when the reader may wait
	ended bool               // a Read has returned end
	reads int
	loop  bool // begin again instead of ending
	all   []byte
}

func newFakeStream(tb testing.TB, data []byte) *fakeStream {
	return &fakeStream{tb: tb, data: data, all: data, end: io.EOF}
}

func (f *fakeStream) Read(p []byte) (int, error) {
	f.reads++
	if len(p) == 0 {
		f.tb.Fatal("a read of nothing")
	}
	if f.check != nil {
		f.check(false)
	}
	if len(f.data) == 0 {
		f.ended = true
		return 0, f.end
	}
	have := len(f.data)
	if f.split != nil {
		have = f.split(have)
	}
	n := copy(p, f.data[:have])
	f.data = f.data[n:]
	if len(f.data) == 0 && !f.loop && n%2 == 0 { // both forms occur: with the last bytes and after them
		f.ended = true
		return n, f.end
	}
	if len(f.data) == 0 && f.loop {
		f.data = f.all
	}
	return n, nil
}

func (f *fakeStream) Peek(p []byte) (int, error) {
	if f.check != nil {
		f.check(true)
	}
	if len(f.data) < len(p) {
		if errors.Is(f.end, io.EOF) {
			return copy(p, f.data), f.end
		}
		return 0, f.end
	}
	return copy(p, f.data), nil
}

func appendFrame(b []byte, flags codec.Flags, payload []byte) []byte {
	return append(codec.AppendHeader(b, flags, len(payload)), payload...)
}

// readAll reads frames until an error and returns copies.
func readAll(r *FrameReader) (frames [][]byte, err error) {
	for {
		f, err := r.Next()
		if err != nil {
			return frames, err
		}
		frames = append(frames, bytes.Clone(f.Bytes))
	}
}

// buffered returns the number of bytes that were read from the stream and not returned by Next.
func buffered(r *FrameReader) int { return r.end - r.start }

func TestFrameReaderSizes(t *testing.T) {
	checkLeaks(t)
	for _, size := range []int{0, 1, 100, minChunk - codec.HeaderLen, minChunk - codec.HeaderLen + 1, 5000, 40_000, maxChunk, 262_656, 3 << 20} {
		var data []byte
		count := 20
		if size > 1<<20 {
			count = 3
		}
		payload := pattern(size, 0)
		for i := range count {
			data = appendFrame(data, codec.Flags(i), payload)
		}
		r := newFrameReader(newFakeStream(t, data), 0)
		for i := range count {
			f, err := r.Next()
			if err != nil {
				t.Fatalf("size %d: frame %d: %v", size, i, err)
			}
			if f.Header.Flags != codec.Flags(i) || int(f.Header.Length) != size || !bytes.Equal(f.Payload(), payload) {
				t.Fatalf("size %d: frame %d differs: %+v", size, i, f.Header)
			}
			if cap(f.Bytes) != len(f.Bytes) {
				t.Fatalf("size %d: an append to frame %d would reach the next one", size, i)
			}
		}
		if _, err := r.Next(); !errors.Is(err, io.EOF) {
			t.Errorf("size %d: at the end: %v", size, err)
		}
		if _, err := r.Next(); !errors.Is(err, io.EOF) {
			t.Errorf("size %d: at the end, again: %v", size, err)
		}
		r.Close()
	}
}

func TestFrameReaderReady(t *testing.T) {
	checkLeaks(t)
	var data []byte
	for i := range 10 {
		data = appendFrame(data, 0, pattern(10, i))
	}
	src := newFakeStream(t, data)
	r := newFrameReader(src, 0)
	if r.Ready() || buffered(r) != 0 {
		t.Error("ready before anything was read")
	}
	for i := range 10 {
		if i > 0 && (!r.Ready() || buffered(r) != (10-i)*22) {
			t.Errorf("frame %d: Ready %t, Buffered %d", i, r.Ready(), buffered(r))
		}
		if _, err := r.Next(); err != nil {
			t.Fatal(err)
		}
	}
	if r.Ready() || buffered(r) != 0 || src.reads != 1 {
		t.Errorf("after the last: Ready %t, Buffered %d, %d reads", r.Ready(), buffered(r), src.reads)
	}
	r.Close()
}

// While the reader waits for a frame to begin it holds no chunk; while whole frames are buffered it does not touch the
// stream.
func TestFrameReaderIdle(t *testing.T) {
	checkLeaks(t)
	rng := rand.New(rand.NewPCG(1, 2))
	var data []byte
	for range 300 {
		data = appendFrame(data, 0, make([]byte, rng.IntN(3000)))
	}
	src := newFakeStream(t, data)
	src.split = func(have int) int { return min(have, 1+rng.IntN(5000)) }
	live := buf.Live()
	r := newFrameReader(src, 0)
	src.check = func(peeking bool) {
		if peeking && (buf.Live() != live || buffered(r) != 0) {
			t.Errorf("waiting with %d chunks and %d bytes", buf.Live()-live, buffered(r))
		}
		if r.Ready() {
			t.Error("the stream was touched while a frame was ready")
		}
	}
	frames, err := readAll(r)
	if len(frames) != 300 || !errors.Is(err, io.EOF) {
		t.Errorf("%d frames, %v", len(frames), err)
	}
}

func TestFrameReaderBadHeaders(t *testing.T) {
	checkLeaks(t)
	const limit = 1 << 20
	good := appendFrame(nil, 7, []byte("hello"))
	with := func(change func(h []byte)) []byte {
		h := codec.AppendHeader(nil, 0xffff, limit)
		change(h)
		return h
	}
	for _, tc := range []struct {
		name string
		head []byte
		want error
	}{
		{"magic", with(func(h []byte) { h[0] = 'f'; h[5] = 9; h[8] = 255 }), codec.ErrMagic},
		{"version", with(func(h []byte) { h[5] = 2; h[8] = 255 }), codec.ErrVersion},
		{"length", with(func(h []byte) { binary.BigEndian.PutUint32(h[8:], limit+1) }), codec.ErrFrameTooLarge},
		{"largest length", with(func(h []byte) { binary.BigEndian.PutUint32(h[8:], 1<<32-1) }), codec.ErrFrameTooLarge},
		{"flags are not looked at", with(func([]byte) {}), ErrTruncated},
	} {
		for _, before := range []int{0, 1, 3} {
			t.Run(fmt.Sprintf("%s/after=%d", tc.name, before), func(t *testing.T) {
				live := buf.Live()
				src := newFakeStream(t, append(append(bytes.Repeat(good, before), tc.head...), 1, 2, 3))
				r := newFrameReader(src, limit)
				frames, err := readAll(r)
				if len(frames) != before || !errors.Is(err, tc.want) {
					t.Errorf("%d frames, then %v; want %d, then %v", len(frames), err, before, tc.want)
				}
				if before == 0 && !errors.Is(tc.want, ErrTruncated) && src.reads != 0 {
					t.Error("something was read after a bad header")
				}
				if _, again := r.Next(); !errors.Is(again, tc.want) {
					t.Errorf("then %v", again)
				}
				if buf.Live() != live {
					t.Error("a chunk is held after the error")
				}
			})
		}
	}
}

// Memory follows what has arrived, not what a header says.
func TestFrameReaderAllocatesWhatArrives(t *testing.T) {
	checkLeaks(t)
	const declared = 16 << 20
	src := newFakeStream(t, append(codec.AppendHeader(nil, 0, declared), make([]byte, 1<<20)...))
	src.split = func(have int) int { return min(have, 1000) }
	r := newFrameReader(src, declared)
	src.check = func(bool) {
		if len(r.data) > max(minChunk, 4*r.end) {
			t.Fatalf("%d bytes are held for %d", len(r.data), r.end)
		}
	}
	if _, err := r.Next(); !errors.Is(err, ErrTruncated) {
		t.Error(err)
	}
}

// A steady flow of large frames is read without copying them a second time.
func TestFrameReaderLargeFramesStay(t *testing.T) {
	checkLeaks(t)
	frame := appendFrame(nil, 0, make([]byte, 64*4104))
	src := newFakeStream(t, bytes.Repeat(frame, 10))
	src.split = func(have int) int { return min(have, 10_000) }
	r := newFrameReader(src, 0)
	for i := range 10 {
		var held *buf.Chunk
		src.check = func(peeking bool) {
			switch {
			case peeking || i == 0:
			case held == nil:
				held = r.chunk
			case held != r.chunk:
				t.Errorf("frame %d was moved at %d bytes", i, r.end)
			}
		}
		if _, err := r.Next(); err != nil {
			t.Fatal(err)
		}
	}
	r.Close()
}

func TestFrameReaderTruncated(t *testing.T) {
	checkLeaks(t)
	var data []byte
	boundaries := map[int]int{0: 0}
	for i := range 4 {
		data = appendFrame(data, 0, pattern(5+i, i))
		boundaries[len(data)] = i + 1
	}
	for cut := range len(data) + 1 {
		for _, split := range []int{0, 1, 7} {
			src := newFakeStream(t, data[:cut])
			if split > 0 {
				src.split = func(have int) int { return min(have, split) }
			}
			frames, err := readAll(newFrameReader(src, 0))
			n, whole := boundaries[cut]
			if whole && (len(frames) != n || !errors.Is(err, io.EOF)) {
				t.Errorf("cut at %d, by %d: %d frames, %v", cut, split, len(frames), err)
			}
			if !whole && (!errors.Is(err, ErrTruncated) || errors.Is(err, io.EOF)) {
				t.Errorf("cut at %d, by %d: %v", cut, split, err)
			}
			if !src.ended {
				t.Errorf("cut at %d, by %d: the end was not read, so QUIC keeps the stream", cut, split)
			}
		}
	}
}

func TestFrameReaderReset(t *testing.T) {
	checkLeaks(t)
	frame := appendFrame(nil, 0, pattern(50, 0))
	for _, cut := range []int{0, 5, 30, len(frame), len(frame) + 3, len(frame) + 20} {
		src := newFakeStream(t, append(bytes.Clone(frame), frame...)[:cut])
		src.end = &StreamResetError{Remote: true}
		frames, err := readAll(newFrameReader(src, 0))
		var reset *StreamResetError
		if want := cut / len(frame); len(frames) != want || !errors.As(err, &reset) || !src.ended {
			t.Errorf("reset after %d bytes: %d frames, %v", cut, len(frames), err)
		}
	}
}

func TestFrameReaderDeadline(t *testing.T) {
	checkLeaks(t)
	frame := appendFrame(nil, 0, pattern(50, 0))
	for _, cut := range []int{0, 5, 11, 12, 30} {
		src := newFakeStream(t, frame[:cut])
		src.end = os.ErrDeadlineExceeded
		r := newFrameReader(src, 0)
		for range 3 {
			if _, err := r.Next(); !errors.Is(err, os.ErrDeadlineExceeded) {
				t.Fatalf("after %d bytes: %v", cut, err)
			}
		}
		src.data, src.end = append(src.data, frame[cut:]...), io.EOF
		if f, err := r.Next(); err != nil || !bytes.Equal(f.Bytes, frame) {
			t.Errorf("after %d bytes and a pause: %v", cut, err)
		}
		r.Close()
	}
}

func TestFrameReaderClose(t *testing.T) {
	checkLeaks(t)
	frame := appendFrame(nil, 0, pattern(50, 0))
	r := newFrameReader(newFakeStream(t, bytes.Repeat(frame, 3)), 0)
	f, err := r.Next()
	if err != nil {
		t.Fatal(err)
	}
	f.Chunk.Retain()
	r.Close()
	r.Close()
	if _, err := r.Next(); !errors.Is(err, ErrClosed) || !errors.Is(err, net.ErrClosed) {
		t.Errorf("after Close: %v", err)
	}
	if !bytes.Equal(f.Bytes, frame) {
		t.Error("a retained frame was lost with Close")
	}
	f.Chunk.Release()
}

// Frames of random sizes arrive in random pieces; some are retained, some are written to by their owner, and all are
// released in random order. A plain parse of the same bytes is the judge.
func TestFrameReaderModel(t *testing.T) {
	checkLeaks(t)
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	for range 30 {
		runModel(t, rng)
	}
}

func runModel(t *testing.T, rng *rand.Rand) {
	live := buf.Live()
	largest := []int{20, 300, 5000, 70_000, 300_000, 3 << 20}[rng.IntN(6)]
	piece := []int{3, 40, 1400, 70_000, 1 << 20}[rng.IntN(5)]
	var data []byte
	var want [][]byte
	for len(want) < 200 && len(data) < 1<<20 {
		size := rng.IntN(largest)
		if rng.IntN(3) == 0 {
			size = rng.IntN(40)
		}
		start := len(data)
		data = appendFrame(data, codec.Flags(rng.Uint32()), pattern(size, rng.IntN(256)))
		want = append(want, data[start:])
	}
	src := newFakeStream(t, data)
	src.split = func(have int) int { return min(have, 1+rng.IntN(piece)) }
	r := newFrameReader(src, 0)

	type kept struct {
		Frame
		want []byte
	}
	var held []kept
	release := func() {
		i := rng.IntN(len(held))
		k := held[i]
		if !bytes.Equal(k.Bytes, k.want) {
			t.Fatal("a retained frame has changed")
		}
		k.Chunk.Release()
		held[i] = held[len(held)-1]
		held = held[:len(held)-1]
	}
	for i, w := range want {
		f, err := r.Next()
		if err != nil {
			t.Fatalf("frame %d of %d: %v", i, len(want), err)
		}
		if !bytes.Equal(f.Bytes, w) {
			t.Fatalf("frame %d of %d differs", i, len(want))
		}
		if rng.IntN(3) > 0 {
			f.Chunk.Retain()
			if rng.IntN(2) == 0 {
				w = pattern(len(w), i)
				copy(f.Bytes, w)
			}
			held = append(held, kept{f, w})
		} else if rng.IntN(2) == 0 {
			clear(f.Bytes)
		}
		for len(held) > 0 && rng.IntN(3) == 0 {
			release()
		}
	}
	if _, err := r.Next(); !errors.Is(err, io.EOF) {
		t.Fatal(err)
	}
	r.Close()
	for len(held) > 0 {
		release()
	}
	if n := buf.Live() - live; n != 0 {
		t.Fatalf("%d chunks were not released", n)
	}
}

// Frames go to another goroutine that writes to them and releases them, while the reader goes on in the same chunks.
func TestFrameReaderShared(t *testing.T) {
	checkLeaks(t)
	var data []byte
	const count = 5000
	for i := range count {
		data = appendFrame(data, 0, pattern(i%900, i))
	}
	src := newFakeStream(t, data)
	src.split = func(have int) int { return min(have, 700) }
	r := newFrameReader(src, 0)
	frames := make(chan Frame, 30)
	var wg sync.WaitGroup
	wg.Go(func() {
		i := 0
		for f := range frames {
			if !bytes.Equal(f.Payload(), pattern(i%900, i)) {
				t.Errorf("frame %d has changed", i)
			}
			clear(f.Bytes)
			f.Chunk.Release()
			i++
		}
	})
	for range count {
		f, err := r.Next()
		if err != nil {
			t.Fatal(err)
		}
		f.Chunk.Retain()
		frames <- f
	}
	close(frames)
	r.Close()
	wg.Wait()
}

func FuzzFrameReader(f *testing.F) {
	f.Add(appendFrame(appendFrame(nil, 1, []byte("hello")), 0, nil), []byte{3, 200}, uint16(100))
	f.Add(appendFrame(nil, 9, make([]byte, 5000)), []byte{255}, uint16(5000))
	f.Add(appendFrame(nil, 0, make([]byte, 30))[:20], []byte{1}, uint16(30))
	f.Add(appendFrame(nil, 0, make([]byte, 30)), []byte{}, uint16(29))
	f.Add([]byte("FLX1 and something else"), []byte{2}, uint16(9))
	f.Fuzz(func(t *testing.T, data, splits []byte, limit uint16) {
		live := buf.Live()
		src := newFakeStream(t, bytes.Clone(data))
		if len(splits) > 0 {
			i := 0
			src.split = func(have int) int {
				i++
				return min(have, 1+int(splits[i%len(splits)])*16)
			}
		}
		maxFrame := int(limit) + 1
		frames, err := readAll(newFrameReader(src, maxFrame))

		want := io.EOF
		rest := data
		var parsed [][]byte
		for len(rest) > 0 {
			if len(rest) < codec.HeaderLen {
				want = ErrTruncated
				break
			}
			h, err := codec.ParseHeader(rest)
			if err == nil {
				err = h.CheckLength(maxFrame)
			}
			if err != nil {
				want = err
				break
			}
			n := codec.HeaderLen + int(h.Length)
			if len(rest) < n {
				want = ErrTruncated
				break
			}
			parsed = append(parsed, rest[:n])
			rest = rest[n:]
		}
		if len(frames) != len(parsed) {
			t.Fatalf("%d frames, want %d", len(frames), len(parsed))
		}
		for i := range frames {
			if !bytes.Equal(frames[i], parsed[i]) {
				t.Fatalf("frame %d differs", i)
			}
		}
		if !errors.Is(err, want) && err.Error() != want.Error() {
			t.Fatalf("then %v, want %v", err, want)
		}
		if buf.Live() != live {
			t.Fatal("a chunk was not released")
		}
	})
}

func TestAllocFrameReader(t *testing.T) {
	if race.Enabled {
		t.Skip("pools drop items under the race detector")
	}
	for _, size := range []int{0, 200, 4096, 40_000, 262_656} {
		for _, retain := range []bool{false, true} {
			frame := appendFrame(nil, 0, make([]byte, size))
			src := newFakeStream(t, bytes.Repeat(frame, 10+100_000/len(frame)))
			src.loop = true
			r := newFrameReader(src, 0)
			n := testing.AllocsPerRun(2000, func() {
				f, err := r.Next()
				if err != nil {
					t.Fatal(err)
				}
				if retain {
					f.Chunk.Retain()
					f.Chunk.Release()
				}
			})
			if n != 0 {
				t.Errorf("size %d, retain %t: %v allocations per frame", size, retain, n)
			}
			r.Close()
		}
	}
}

// The same over QUIC.

func TestFramesOverQUIC(t *testing.T) {
	checkLeaks(t)
	server, client := connect(t, Config{}, Config{})
	var data []byte
	var want [][]byte
	for i, size := range []int{0, 1, 500, 100, 3, 0, 0, 20, 90_000, 7} {
		start := len(data)
		data = appendFrame(data, 0, pattern(size, i))
		want = append(want, data[start:])
	}
	for _, tc := range []struct {
		name  string
		piece int
	}{
		{"ten frames in one write", len(data)},
		{"small pieces", 33},
		{"byte at a time", 1},
	} {
		data, want := data, want
		if tc.piece == 1 {
			data, want = data[:len(want[0])+len(want[1])+len(want[2])], want[:3]
		}
		send, acceptRecv := uniStream(t, client, server)
		go func() {
			for p := data; len(p) > 0; p = p[min(tc.piece, len(p)):] {
				if _, err := send.Write(p[:min(tc.piece, len(p))]); err != nil {
					t.Error(err)
				}
			}
			send.Close()
		}()
		r := NewFrameReader(acceptRecv(), 0)
		frames, err := readAll(r)
		if !errors.Is(err, io.EOF) || len(frames) != len(want) {
			t.Fatalf("%s: %d frames, %v", tc.name, len(frames), err)
		}
		for i := range want {
			if !bytes.Equal(frames[i], want[i]) {
				t.Errorf("%s: frame %d differs", tc.name, i)
			}
		}
	}
	client.Close(0, "")
}

// However a stream of frames ends, its credit goes back to the peer.
func TestStreamCreditReturns(t *testing.T) {
	checkLeaks(t)
	server, client := connect(t, Config{MaxStreams: 2}, Config{})
	frame := appendFrame(nil, 0, pattern(40, 0))
	for cut := range 2*len(frame) + 1 {
		send, acceptRecv := uniStream(t, client, server)
		if _, err := send.Write(append(bytes.Clone(frame), frame...)[:cut]); err != nil {
			t.Fatal(err)
		}
		if err := send.Close(); err != nil {
			t.Fatal(err)
		}
		frames, err := readAll(NewFrameReader(acceptRecv(), 0))
		want := ErrTruncated
		if cut%len(frame) == 0 {
			want = io.EOF
		}
		if len(frames) != cut/len(frame) || !errors.Is(err, want) {
			t.Errorf("FIN after %d bytes: %d frames, %v", cut, len(frames), err)
		}
	}
	for cut := range len(frame) {
		send, acceptRecv := uniStream(t, client, server)
		if _, err := send.Write(frame[:max(cut, 1)]); err != nil {
			t.Fatal(err)
		}
		recv := acceptRecv()
		if _, err := recv.Peek(make([]byte, 1)); err != nil {
			t.Fatal(err)
		}
		send.Cancel(3)
		var reset *StreamResetError
		if _, err := readAll(NewFrameReader(recv, 0)); !errors.As(err, &reset) || reset.Code != 3 {
			t.Errorf("reset after %d bytes: %v", cut, err)
		}
	}
	for range 5 { // bad frames: the reader's user cancels
		send, acceptRecv := uniStream(t, client, server)
		if _, err := send.Write([]byte("nothing like a frame")); err != nil {
			t.Fatal(err)
		}
		recv := acceptRecv()
		if _, err := readAll(NewFrameReader(recv, 0)); !errors.Is(err, codec.ErrMagic) {
			t.Error(err)
		}
		recv.Cancel(0)
		<-send.Context().Done()
	}
}

// A past deadline set from elsewhere, or Cancel, ends the wait of a reader.
func TestFrameReaderInterrupted(t *testing.T) {
	checkLeaks(t)
	server, client := connect(t, Config{}, Config{})
	frame := appendFrame(nil, 0, pattern(40, 0))
	send, acceptRecv := uniStream(t, client, server)
	if _, err := send.Write(frame[:20]); err != nil {
		t.Fatal(err)
	}
	recv := acceptRecv()
	r := NewFrameReader(recv, 0)
	defer r.Close()
	next := make(chan error)
	read := func() {
		f, err := r.Next()
		if err == nil && !bytes.Equal(f.Bytes, frame) {
			err = errors.New("frame differs")
		}
		next <- err
	}

	go read()
	if err := recv.SetReadDeadline(time.Unix(1, 0)); err != nil {
		t.Fatal(err)
	}
	if err := <-next; !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("deadline: %v", err)
	}
	if err := recv.SetReadDeadline(time.Time{}); err != nil {
		t.Fatal(err)
	}
	go read()
	if _, err := send.Write(frame[20:]); err != nil {
		t.Fatal(err)
	}
	if err := <-next; err != nil {
		t.Errorf("after the deadline was lifted: %v", err)
	}
	go read()
	recv.Cancel(0)
	var reset *StreamResetError
	if err := <-next; !errors.As(err, &reset) || reset.Remote {
		t.Errorf("canceled: %v", err)
	}
}
