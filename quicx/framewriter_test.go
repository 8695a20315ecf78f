package quicx

import (
	"bytes"
	"errors"
	"io"
	"testing"

	"github.com/felix-mq/felix/internal/race"
)

type fakeWriter struct {
	writes [][]byte // as they came, not copied
	data   []byte
	err    error
}

func (f *fakeWriter) Write(p []byte) (int, error) {
	if f.err != nil {
		return 0, f.err
	}
	f.writes = append(f.writes, p)
	f.data = append(f.data, p...)
	return len(p), nil
}

func TestFrameWriterAppend(t *testing.T) {
	checkLeaks(t)
	dst := &fakeWriter{}
	w := newFrameWriter(dst, 0)
	if err := w.Flush(); err != nil || len(dst.writes) != 0 {
		t.Errorf("empty flush: %v, %d writes", err, len(dst.writes))
	}
	var want []byte
	for round := range 3 {
		for i := range 300 { // outgrows the first chunk
			p := appendFrame(nil, 0, pattern(i, round))
			w.SetBuffer(append(w.Buffer(), p...))
			want = append(want, p...)
		}
		if w.Pending() == 0 {
			t.Error("nothing pending")
		}
		if err := w.Flush(); err != nil {
			t.Fatal(err)
		}
		if len(dst.writes) != round+1 || w.Pending() != 0 {
			t.Errorf("%d writes after %d flushes, %d bytes pending", len(dst.writes), round+1, w.Pending())
		}
	}
	if !bytes.Equal(dst.data, want) {
		t.Error("the data differ")
	}
	w.SetBuffer(append(w.Buffer(), "dropped"...))
	w.Close()
	w.Close()
	dst.err = io.ErrClosedPipe
	w.SetBuffer(append(w.Buffer(), 1))
	if err := w.Flush(); !errors.Is(err, io.ErrClosedPipe) {
		t.Errorf("failed flush: %v", err)
	}
}

func TestFrameWriterBatch(t *testing.T) {
	checkLeaks(t)
	frame := func(n int) []byte { return pattern(n, n) }
	for _, tc := range []struct {
		name  string
		sizes []int
		want  []int // bytes of each write
	}{
		{"nothing", nil, nil},
		{"one", []int{10}, []int{10}},
		{"joined", []int{10, 20, 30}, []int{60}},
		{"up to the bound", []int{50, 50, 1}, []int{100, 1}},
		{"large alone", []int{10, 500, 20, 30}, []int{10, 500, 50}},
		{"all large", []int{101, 102}, []int{101, 102}},
	} {
		dst := &fakeWriter{}
		w := newFrameWriter(dst, 100)
		frames := make([][]byte, 0, len(tc.sizes))
		for _, n := range tc.sizes {
			frames = append(frames, frame(n))
		}
		if err := w.WriteBatch(frames); err != nil {
			t.Fatal(err)
		}
		got := make([]int, 0, len(dst.writes))
		for _, p := range dst.writes {
			got = append(got, len(p))
		}
		if len(got) != len(tc.want) {
			t.Errorf("%s: writes of %v, want %v", tc.name, got, tc.want)
			continue
		}
		for i := range got {
			if got[i] != tc.want[i] {
				t.Errorf("%s: writes of %v, want %v", tc.name, got, tc.want)
				break
			}
		}
		if !bytes.Equal(dst.data, bytes.Join(frames, nil)) {
			t.Errorf("%s: the data differ", tc.name)
		}
	}

	lone := [][]byte{frame(101), frame(102)}
	joinable := &fakeWriter{}
	if err := newFrameWriter(joinable, 100).WriteBatch(lone); err != nil {
		t.Fatal(err)
	}
	for i, p := range joinable.writes {
		if &p[0] != &lone[i][0] {
			t.Errorf("lone frame %d was copied", i)
		}
	}

	dst := &fakeWriter{}
	w := newFrameWriter(dst, 100)
	w.SetBuffer(append(w.Buffer(), "first"...))
	if err := w.WriteBatch([][]byte{[]byte("second")}); err != nil || string(dst.data) != "firstsecond" {
		t.Errorf("batch after a reply: %q, %v", dst.data, err)
	}
	dst.err = io.ErrClosedPipe
	for _, frames := range [][][]byte{{{1}}, {{1}, {2}}} {
		w.SetBuffer(append(w.Buffer(), 1))
		if err := w.WriteBatch(frames); !errors.Is(err, io.ErrClosedPipe) {
			t.Errorf("failed batch: %v", err)
		}
		if err := w.WriteBatch(frames); !errors.Is(err, io.ErrClosedPipe) {
			t.Errorf("failed batch: %v", err)
		}
	}
}

func TestFrameWriterOverQUIC(t *testing.T) {
	checkLeaks(t)
	server, client := connect(t, Config{}, Config{})
	send, acceptRecv := uniStream(t, client, server)
	const count = 2000
	go func() {
		w := NewFrameWriter(send, 0)
		var batch [][]byte
		for i := range count {
			batch = append(batch, appendFrame(nil, 0, pattern(i%700, i)))
			if len(batch) == 1+i%50 {
				if err := w.WriteBatch(batch); err != nil {
					t.Error(err)
				}
				clear(batch)
				batch = batch[:0]
			}
		}
		if err := w.WriteBatch(batch); err != nil {
			t.Error(err)
		}
		w.SetBuffer(appendFrame(w.Buffer(), 9, nil))
		if err := errors.Join(w.Flush(), send.Close()); err != nil {
			t.Error(err)
		}
	}()
	r := NewFrameReader(acceptRecv(), 0)
	for i := range count {
		f, err := r.Next()
		if err != nil || !bytes.Equal(f.Payload(), pattern(i%700, i)) {
			t.Fatalf("frame %d: %d bytes, %v", i, len(f.Bytes), err)
		}
	}
	if f, err := r.Next(); err != nil || f.Header.Flags != 9 {
		t.Errorf("last frame: %+v, %v", f.Header, err)
	}
	if _, err := r.Next(); !errors.Is(err, io.EOF) {
		t.Errorf("end: %v", err)
	}
}

// discard is a writer that keeps nothing.
type discard struct{}

func (discard) Write(p []byte) (int, error) { return len(p), nil }

func TestAllocFrameWriter(t *testing.T) {
	if race.Enabled {
		t.Skip("pools drop items under the race detector")
	}
	w := newFrameWriter(discard{}, 0)
	reply := appendFrame(nil, 0, pattern(30, 0))
	frames := [][]byte{pattern(300, 0), pattern(400, 0), pattern(70_000, 0), pattern(9, 0)}
	for name, f := range map[string]func() error{
		"flush": func() error {
			for range 100 {
				w.SetBuffer(append(w.Buffer(), reply...))
			}
			return w.Flush()
		},
		"batch": func() error { return w.WriteBatch(frames) },
	} {
		if n := testing.AllocsPerRun(1000, func() {
			if err := f(); err != nil {
				t.Fatal(err)
			}
		}); n != 0 {
			t.Errorf("%s: %v allocations", name, n)
		}
	}
}
