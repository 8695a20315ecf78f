// Package drive loads a publish/subscribe system of any kind in the way in which package loadgen loads Felix, so that
// their figures can stand side by side.
//
// It owns the load: one publisher whose batches are in flight until every subscription has received them, a stamp of
// sequence number and time, one ledger and one histogram for each subscription. Every event is accounted for: the first
// that is missing, doubled or out of order fails the run. It also owns child processes that are other instances of this
// program ([Child], [Start]). How bytes get from the publisher to the subscriptions is left to its callers.
//
// Begin at [Load].
package drive

import (
	"cmp"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/felix-mq/felix/loadgen"
)

// Shape says what a system is loaded with. All fields but Kind, Warmup and MaxDuration are required.
type Shape struct {
	Fanout  int `json:"fanout"`  // subscriptions, each of which receives every event
	Conns   int `json:"conns"`   // connections that they are spread over; the publisher has one of its own
	Payload int `json:"payload"` // bytes of an event, its stamp included
	Batch   int `json:"batch"`   // events that are published at a time
	Window  int `json:"window"`  // batches in flight; 1 is a closed loop

	Kind loadgen.PayloadKind `json:"kind"` // of payloads; zero means random

	// Volume is how many times over a run must move what can be in flight; zero means 32, as loadgen asks for.
	Volume int `json:"volume,omitempty"`

	Warmup      time.Duration `json:"warmup_ns"`       // at least one batch
	Duration    time.Duration `json:"duration_ns"`     // of publishing, without the warm-up
	MaxDuration time.Duration `json:"max_duration_ns"` // until which it goes on if the volume is too small; at least Duration
}

// Validate reports every problem of s at once.
func (s Shape) Validate() error {
	var problems []error
	for name, value := range map[string]int{"fanout": s.Fanout, "conns": s.Conns, "batch": s.Batch, "window": s.Window} {
		if value < 1 || value > 1<<20 {
			problems = append(problems, fmt.Errorf("drive: %s %d is not between 1 and %d", name, value, 1<<20))
		}
	}
	if s.Payload < stampLen || s.Payload > 1<<24 {
		problems = append(problems, fmt.Errorf("drive: payload of %d bytes is not between %d and %d", s.Payload, stampLen, 1<<24))
	}
	if s.Volume < 0 {
		problems = append(problems, fmt.Errorf("drive: volume %d is negative", s.Volume))
	}
	if s.Duration <= 0 || s.Warmup < 0 {
		problems = append(problems, fmt.Errorf("drive: duration %v and warm-up %v: want a positive and one that is not negative", s.Duration, s.Warmup))
	}
	return errors.Join(problems...)
}

// volumeFactor is the least volume of a run if its shape names none.
const volumeFactor = 32

// factor is how many times over a run must move what can be in flight.
func (s Shape) factor() int { return cmp.Or(s.Volume, volumeFactor) }

// enough reports whether so many events for each subscription are enough for a rate to mean something.
func (s Shape) enough(events uint64) bool {
	return events >= uint64(s.factor())*uint64(s.Window)*uint64(s.Batch)
}

// Payload returns n bytes that cannot be compressed, the same ones for the same n.
func Payload(n int) []byte {
	rng := rand.New(rand.NewPCG(0xF100, uint64(n)))
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(rng.Uint32())
	}
	return b
}
