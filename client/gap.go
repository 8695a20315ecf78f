package client

import (
	"github.com/felix-mq/felix/codec"
)

// Gap says that events were lost.
type Gap struct {
	Reason GapReason
	Lost   uint64 // number of events; 0 if nobody knows
}

// GapReason says why events were lost.
type GapReason uint8

// The reasons. There may be others that this version does not know; treat them as GapUnknown.
const (
	GapUnknown   GapReason = 0
	GapQueueFull GapReason = 1 // the subscription's queue in the broker was full: its reader was too slow
	GapReclaimed GapReason = 2 // the broker needed the memory of the queue, and its reader did not read
	GapExpired   GapReason = 3 // the position to resume at is no longer kept
	GapEpoch     GapReason = 4 // the position to resume at is of another epoch; Lost is 0
	GapCorrupt   GapReason = 5 // a compressed batch could not be decompressed
)

func (r GapReason) String() string { return codec.GapReason(r).String() }
