// Package telemetry holds stage timings and frame counters that exist only in builds with the tag "telemetry". In
// all other builds its functions inline to nothing and its stored types have no size, so that hot paths may carry
// their probes for ever.
//
// A duration is taken with [Now] and [Observe], a number with [Add]. Both record into one of several shards, so that
// cores do not wait for each other, and [Snapshot] merges the shards. Everything is process-wide: a broker and a
// client in one process have stages and counters of their own, two brokers share theirs.
//
// The default build still evaluates arguments, so a probe stands inside a test of [Enabled], which the compiler then
// removes whole:
//
//	var start telemetry.Time
//	if telemetry.Enabled {
//		start = telemetry.Now()
//	}
//	...
//	if telemetry.Enabled {
//		telemetry.Observe(telemetry.StagePublishParse, start)
//	}
//
// A [Time] may wait in a struct; in the default build it has no size, if it is not the last field. What operators
// watch at all times is left to the broker's metrics. Begin at [Observe].
package telemetry

// Stage names a part of an event's way whose duration is observed.
type Stage uint8

// The stages, with what their duration spans.
const (
	// StagePublishParse: from a whole publish frame in memory to its validated, authorised batch.
	StagePublishParse Stage = iota
	// StagePublishFanout: from the validated batch to its offer to the last ring, waiting for room included.
	StagePublishFanout
	// StagePublishReply: from the last offer to the reply in the stream's write buffer.
	StagePublishReply
	// StageDeliverQueueWait: from the offer of a frame to a ring to its removal by the ring's writer.
	StageDeliverQueueWait
	// StageDeliverWrite: one write of a subscription's writer, flow control included.
	StageDeliverWrite
	// StageCacheLookup: the look-up of a cache_get, without its parsing and its reply.
	StageCacheLookup
	// StageCacheStore: the store of a cache_put, without its parsing and its reply.
	StageCacheStore
	// StageClientEncode: from the caller's items to encoded frames.
	StageClientEncode
	// StageClientWrite: one write of publish frames, flow control included.
	StageClientWrite
	// StageClientAckWait: from the end of the write of an acknowledged publish to its reply.
	StageClientAckWait
	// StageClientDecode: from a whole event frame in memory to its validated batch.
	StageClientDecode
	// StageClientDeliver: from the validated batch to its hand-over to the application.
	StageClientDeliver

	// NumStages is the number of stages.
	NumStages = iota
)

var stageNames = [NumStages]string{
	StagePublishParse:     "publish_parse",
	StagePublishFanout:    "publish_fanout",
	StagePublishReply:     "publish_reply",
	StageDeliverQueueWait: "deliver_queue_wait",
	StageDeliverWrite:     "deliver_write",
	StageCacheLookup:      "cache_lookup",
	StageCacheStore:       "cache_store",
	StageClientEncode:     "client_encode",
	StageClientWrite:      "client_write",
	StageClientAckWait:    "client_ack_wait",
	StageClientDecode:     "client_decode",
	StageClientDeliver:    "client_deliver",
}

// String returns the stage's name in reports.
func (s Stage) String() string {
	if int(s) < len(stageNames) {
		return stageNames[s]
	}
	return "unknown"
}

// Counter names a number that only grows.
type Counter uint8

// The counters of each side. Frames in are those that were read whole and have a known layout, frames out those that
// were written; their bytes include headers. Batches and items of event frames count once per subscription.
const (
	BrokerFramesIn Counter = iota
	BrokerFramesOut
	BrokerBytesIn
	BrokerBytesOut
	BrokerPublishBatches // accepted publishes; a single publish is a batch of one
	BrokerPublishItems
	BrokerEventFrames
	BrokerEventItems
	BrokerAcks         // replies to publishes, good or bad
	BrokerDecodeErrors // frames and messages that did not parse
	ClientFramesIn
	ClientFramesOut
	ClientBytesIn
	ClientBytesOut
	ClientPublishBatches
	ClientPublishItems
	ClientEventFrames
	ClientEventItems
	ClientAcks
	ClientDecodeErrors

	// NumCounters is the number of counters.
	NumCounters = iota
)

var counterNames = [NumCounters]string{
	BrokerFramesIn:       "broker_frames_in",
	BrokerFramesOut:      "broker_frames_out",
	BrokerBytesIn:        "broker_bytes_in",
	BrokerBytesOut:       "broker_bytes_out",
	BrokerPublishBatches: "broker_publish_batches",
	BrokerPublishItems:   "broker_publish_items",
	BrokerEventFrames:    "broker_event_frames",
	BrokerEventItems:     "broker_event_items",
	BrokerAcks:           "broker_acks",
	BrokerDecodeErrors:   "broker_decode_errors",
	ClientFramesIn:       "client_frames_in",
	ClientFramesOut:      "client_frames_out",
	ClientBytesIn:        "client_bytes_in",
	ClientBytesOut:       "client_bytes_out",
	ClientPublishBatches: "client_publish_batches",
	ClientPublishItems:   "client_publish_items",
	ClientEventFrames:    "client_event_frames",
	ClientEventItems:     "client_event_items",
	ClientAcks:           "client_acks",
	ClientDecodeErrors:   "client_decode_errors",
}

// String returns the counter's name in reports.
func (c Counter) String() string {
	if int(c) < len(counterNames) {
		return counterNames[c]
	}
	return "unknown"
}

// Report is what [Snapshot] returns: totals since the start of the process or the last [Reset]. In builds without
// telemetry it is zero.
type Report struct {
	Stages   [NumStages]Timing   // by Stage
	Counters [NumCounters]uint64 // by Counter
}

// Timing sums up the durations of one stage, in nanoseconds. The percentiles are within 1 % of the true value, Max is
// exact; durations above one hour count as one hour.
type Timing struct {
	Count uint64
	P50   int64
	P99   int64
	P999  int64
	Max   int64
}
