package hostile

import (
	"bytes"
	"math/rand/v2"
	"reflect"
	"testing"

	"github.com/felix-mq/felix/codec"
)

var testTarget = Target{Tenant: "t1", Token: "token", Namespace: "default", Stream: "demo", Cache: "primary"}

func TestStreamIsRepeatable(t *testing.T) {
	a, b := NewCorpus(testTarget), NewCorpus(testTarget)
	for number := range uint64(500) {
		x, y := a.Stream(1, number), b.Stream(1, number)
		if !reflect.DeepEqual(x, y) {
			t.Fatalf("stream %d of seed 1 is not the same twice: %v, %v", number, x.How, y.How)
		}
	}
	if reflect.DeepEqual(a.Stream(1, 0), a.Stream(2, 0)) {
		t.Error("streams of two seeds are the same")
	}
}

// TestStreamsLeaveTheCorpus: damage is done to copies.
func TestStreamsLeaveTheCorpus(t *testing.T) {
	c, want := NewCorpus(testTarget), NewCorpus(testTarget)
	for number := range uint64(5000) {
		c.Stream(3, number)
	}
	if !reflect.DeepEqual(c, want) {
		t.Error("making streams has changed the corpus")
	}
}

func TestMutations(t *testing.T) {
	c := NewCorpus(testTarget)
	for _, m := range mutations {
		t.Run(m.how, func(t *testing.T) {
			changed := 0
			for n := range uint64(300) {
				frame, other := c.pick(rand.New(rand.NewPCG(n, 1))), c.pick(rand.New(rand.NewPCG(n, 2)))
				before := bytes.Clone(other)
				mutate := func() []byte { return m.do(rand.New(rand.NewPCG(n, 3)), bytes.Clone(frame), other) }
				got := mutate()
				if !bytes.Equal(got, mutate()) {
					t.Fatalf("seed %d does not make the same bytes twice", n)
				}
				if !bytes.Equal(other, before) {
					t.Fatalf("seed %d has changed the frame that it takes from", n)
				}
				if !bytes.Equal(got, frame) {
					changed++
				}
			}
			if changed < 200 {
				t.Errorf("only %d of 300 frames were changed", changed)
			}
		})
	}
}

// TestMutationsNeedOnlyAHeader: the shortest frame there is survives every mutation.
func TestMutationsNeedOnlyAHeader(t *testing.T) {
	for _, m := range mutations {
		for n := range uint64(50) {
			empty := codec.AppendHeader(nil, codec.LayoutJSON, 0)
			m.do(rand.New(rand.NewPCG(n, 4)), empty, codec.AppendHeader(nil, codec.LayoutPublish, 0))
		}
	}
}
