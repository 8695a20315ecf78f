package loadgen

import (
	"bytes"
	"compress/flate"
	"encoding/json"
	"math"
	"testing"
)

func TestStamp(t *testing.T) {
	item := make([]byte, StampLen)
	for _, want := range []struct {
		seq uint64
		at  int64
	}{{0, 0}, {1, 2}, {math.MaxUint64, math.MaxInt64}, {markBit | 7, -1}} {
		putStamp(item, want.seq, want.at)
		if seq, at := stamp(item); seq != want.seq || at != want.at {
			t.Errorf("got %d, %d, want %d, %d", seq, at, want.seq, want.at)
		}
	}
}

func TestPayloadKindNames(t *testing.T) {
	for _, k := range []PayloadKind{Random, JSON, Zero} {
		if got, err := ParsePayloadKind(k.String()); got != k || err != nil {
			t.Errorf("%v reads as %v, %v", k, got, err)
		}
	}
	for _, name := range []string{"", "xml"} {
		if _, err := ParsePayloadKind(name); err == nil {
			t.Errorf("%q is accepted", name)
		}
	}
}

func TestItems(t *testing.T) {
	for kind, ratio := range map[PayloadKind][2]float64{Random: {0.99, 1.1}, JSON: {0.1, 0.5}, Zero: {0, 0.02}} {
		t.Run(kind.String(), func(t *testing.T) {
			items := NewItems(kind, 64, 1024, 1)
			var plain bytes.Buffer
			for _, item := range items {
				if len(item) != 1024 || cap(item) != 1024 {
					t.Fatalf("an item has length %d and capacity %d", len(item), cap(item))
				}
				plain.Write(item[StampLen:])
			}
			var packed bytes.Buffer
			w, err := flate.NewWriter(&packed, flate.BestSpeed)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := w.Write(plain.Bytes()); err != nil {
				t.Fatal(err)
			}
			if err := w.Close(); err != nil {
				t.Fatal(err)
			}
			if got := float64(packed.Len()) / float64(plain.Len()); got < ratio[0] || got > ratio[1] {
				t.Errorf("compresses to %.3f of its size, want %v", got, ratio)
			}
			again := NewItems(kind, 64, 1024, 1)
			if !bytes.Equal(items[63], again[63]) {
				t.Error("the same seed makes other items")
			}
			if other := NewItems(kind, 64, 1024, 2); kind != Zero && bytes.Equal(items[63], other[63]) {
				t.Error("another seed makes the same items")
			}
		})
	}
}

func TestJSONItemsAreDocuments(t *testing.T) {
	const shortest = 96 // fits the members that every document has
	for size := range 2048 {
		doc := NewItems(JSON, 1, StampLen+size, uint64(size))[0][StampLen:]
		if size >= shortest && !json.Valid(doc) {
			t.Fatalf("%d bytes are not JSON: %s", size, doc)
		}
		if bytes.IndexByte(doc, 0) >= 0 {
			t.Fatalf("%d bytes are not filled: %q", size, doc)
		}
	}
}
