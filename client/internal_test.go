package client

import (
	"math"
	"testing"
	"time"
)

// TestBackoffBounds takes pauses with the largest bounds there are.
func TestBackoffBounds(t *testing.T) {
	for _, b := range []backoff{
		{base: 1, limit: math.MaxInt64},
		{base: math.MaxInt64, limit: math.MaxInt64},
		{base: time.Hour, limit: 3 * time.Hour},
	} {
		for range 100 {
			if d := b.next(); d < 0 || d > b.limit {
				t.Fatalf("pause of %v from %+v", d, b)
			}
		}
	}
}

// TestRoundsOfStreams counts requests up to where a signed number of 32 bits ends.
func TestRoundsOfStreams(t *testing.T) {
	p := &Publisher{c: &Client{o: options{roundRobin: true}, publishers: make([]*streamSlot, 3)}}
	for _, n := range []uint32{0, math.MaxInt32 - 1, math.MaxInt32, math.MaxInt32 + 1, math.MaxUint32} {
		p.c.nextPublisher.Store(n)
		_ = p.slot()
	}
}

// TestCompressorGoesOn has batches compress for ever, and then not.
func TestCompressorGoesOn(t *testing.T) {
	var c compressor
	for range 1000 {
		if !c.due() {
			t.Fatal("not tried although all before did compress")
		}
	}
	c.skip.Store(2)
	for i, want := range []bool{false, false, true, true} {
		if c.due() != want {
			t.Errorf("batch %d: tried %v", i, !want)
		}
	}
}

func TestTokenEnd(t *testing.T) {
	for token, want := range map[string]int64{
		"":                        0,
		"token":                   0,
		"a.b.c":                   0,
		"a.e30.c":                 0,  // {}
		"a.eyJleHAiOjQyfQ.c":      42, // {"exp":42}
		"a.eyJFWFAiOjQyfQ.c":      0,  // {"EXP":42}
		"a.eyJleHAiOi0xfQ.c":      0,  // {"exp":-1}
		"a.eyJleHAiOiJzb29uIn0.c": 0,  // {"exp":"soon"}
		"a.eyJleHAiOjkyMjMzNzIwMzY4NTQ3NzU4MDd9.c": 1 << 40,
	} {
		got := tokenEnd(token)
		if got.IsZero() != (want == 0) || want > 0 && got.Unix() != want {
			t.Errorf("%q ends at %v, want %d", token, got, want)
		}
	}
}
