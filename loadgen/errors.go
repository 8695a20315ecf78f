package loadgen

import (
	"fmt"
	"time"
)

// InvalidError refuses a configuration because of one of its fields.
type InvalidError struct {
	Field   string // of the configuration, or of its target
	problem string
}

func (e *InvalidError) Error() string { return "loadgen: " + e.problem }

// TooSmallError refuses a run that moves less than 32 times what can be under way at one moment: windows and queues
// would decide its figures. All sizes are bytes of payload from one publisher to one subscription.
type TooSmallError struct {
	Volume       int64 // what the run moves
	Needed       int64 // what it would have to move
	Held         int64 // what can be under way at one moment
	NeededEvents int64 // Needed as a number of events
}

func (e *TooSmallError) Error() string {
	return fmt.Sprintf("loadgen: run too small: %d bytes per subscription, and %d can be under way at one moment; "+
		"each publisher has to send at least %d events to a topic (longer duration, larger total, or smaller window or batch)", e.Volume, e.Held, e.NeededEvents)
}

// UnaccountedError fails a run that lost events, unless drops were allowed.
type UnaccountedError struct {
	Published, Expected, Delivered uint64
}

// Unaccounted is the number of deliveries that are missing.
func (e *UnaccountedError) Unaccounted() uint64 { return e.Expected - e.Delivered }

func (e *UnaccountedError) Error() string {
	return fmt.Sprintf("loadgen: lost events: published %d, expected %d deliveries, got %d: %d unaccounted",
		e.Published, e.Expected, e.Delivered, e.Unaccounted())
}

// IdleError fails a run in which a subscription received nothing for too long although events were outstanding.
type IdleError struct {
	Subscription   int           // index, from 0
	Publisher      int           // of its topic, from 0
	Idle           time.Duration // how long
	Received, Sent uint64        // events, those of the warm-up included
}

func (e *IdleError) Error() string {
	return fmt.Sprintf("loadgen: subscription %d received nothing from publisher %d for %v: it has %d of %d events sent",
		e.Subscription, e.Publisher, e.Idle, e.Received, e.Sent)
}

// OrderError fails a run in which an event came twice or out of order.
type OrderError struct {
	Subscription int
	Publisher    int    // of its topic, from 0
	Got, Want    uint64 // sequence numbers
}

func (e *OrderError) Error() string {
	return fmt.Sprintf("loadgen: subscription %d received event %d of publisher %d again or out of order, after event %d",
		e.Subscription, e.Got, e.Publisher, e.Want-1)
}

// PayloadError fails a run in which an event arrived with another length than it was sent with.
type PayloadError struct {
	Subscription int
	Got, Want    int // bytes
}

func (e *PayloadError) Error() string {
	return fmt.Sprintf("loadgen: subscription %d received an event of %d bytes, sent were %d: does somebody else publish to this stream?",
		e.Subscription, e.Got, e.Want)
}

// PublisherError fails a run in which an event arrived from a publisher that the run does not have.
type PublisherError struct {
	Subscription, Publisher int
}

func (e *PublisherError) Error() string {
	return fmt.Sprintf("loadgen: subscription %d received an event of a publisher %d, which is none of the run's: does somebody else publish to this stream?",
		e.Subscription, e.Publisher)
}

// NoAnswerError fails a run of calls none of which had an answer.
type NoAnswerError struct {
	Calls int64 // that were made
}

func (e *NoAnswerError) Error() string {
	return fmt.Sprintf("loadgen: none of %s had an answer by the timeout or the end of the run", plural(int(e.Calls), "call"))
}
