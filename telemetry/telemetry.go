// Package telemetry holds stage timings and frame counters that exist only in builds with the tag "telemetry". In
// all other builds its functions inline to nothing and its stored types have no size, so that hot paths may carry
// their probes for ever: TestProbesLeaveNothing compares the machine code with that of a build without them.
//
// A duration is taken with [Start] and [Observe], a number with [Add]. Only one duration in 16 is: two looks at the
// clock and an entry in a histogram take a tenth of a microsecond, which is as much as some stages. Numbers are exact.
// Both go into one of several shards, so that cores do not wait for each other, and [Text] merges the shards.
// Everything is process-wide: a broker and a client in one process have stages and counters of their own, two brokers
// share theirs.
//
// Each probe stands on a line of its own:
//
//	start := telemetry.Start()
//	...
//	start = telemetry.Observe(telemetry.StagePublishParse, start)
//	...
//	telemetry.Observe(telemetry.StagePublishLookup, start)
//
// The default build still evaluates arguments, so one that costs something, be it a check for nil, stands inside a test
// of [Enabled]. A [Time] may wait in a struct, in which it has no size unless it is the last field. What operators
// watch at all times is left to the broker's metrics. Begin at [Observe].
package telemetry

// Stage names a part of an event's way whose duration is observed.
type Stage uint8

// The stages, with what their duration spans. Those of one publish or delivery are sampled package by package: their
// percentiles can be compared, not added.
const (
	// StageRequestRead: from asking for the next request frame to having it, the peer's silence included.
	StageRequestRead Stage = iota
	// StagePublishParse: from a whole binary publish frame in memory to its validated batch.
	StagePublishParse
	// StagePublishLookup: from the batch to its topic, authorised.
	StagePublishLookup
	// StagePublishFanout: all that package fanout does with a publish: the four stages below.
	StagePublishFanout
	// StagePublishTurn: from its admission to the topic's turn, waiting for memory and for space in rings included.
	StagePublishTurn
	// StagePublishAppend: numbering, and the replay memory.
	StagePublishAppend
	// StagePublishOffer: the offers to all rings.
	StagePublishOffer
	// StagePublishWake: after the turn: starting the writers of idle subscriptions, or writing in their place.
	StagePublishWake
	// StageReplyWrite: one write of replies, flow control included.
	StageReplyWrite
	// StageDeliverQueueWait: from the offer of a frame to its removal by a ring's writer, for each ring.
	StageDeliverQueueWait
	// StageDeliverBuild: from the frames that were taken to the list that is written; heads, cuts and decompression.
	StageDeliverBuild
	// StageDeliverWrite: one write of a subscription's writer, flow control included.
	StageDeliverWrite
	// StageDeliverInline: one write to an idle subscription, by its publisher.
	StageDeliverInline
	// StageCacheParse: from a whole binary cache request in memory to its cache, authorised.
	StageCacheParse
	// StageCacheLookup: the look-ups of a get, of all keys of the request.
	StageCacheLookup
	// StageCacheStore: the store of a put.
	StageCacheStore
	// StageCacheEncode: from the values to the reply in the stream's write buffer.
	StageCacheEncode

	// StageClientEncode: from the caller's payloads to the encoded frame, compression included.
	StageClientEncode
	// StageClientTurn: from the frame to the publisher's turn on its stream.
	StageClientTurn
	// StageClientWrite: one write of a publish, flow control included.
	StageClientWrite
	// StageClientAckWait: from the registration of an acknowledged publish to its reply; encoding and writing included.
	StageClientAckWait
	// StageClientReply: from a whole reply in memory to the call it ends.
	StageClientReply
	// StageClientRead: from asking for the next event frame to having it, the broker's silence included.
	StageClientRead
	// StageClientDecode: from a whole event frame in memory to its validated batch, decompression included.
	StageClientDecode
	// StageClientConsume: from handing a batch out to being asked for the next one: the application's time.
	StageClientConsume
	// StageClientCacheWait: from the registration of a cache request to its reply; encoding and writing included.
	StageClientCacheWait

	// NumStages is the number of stages.
	NumStages = iota
)

// Counter names a number that only grows.
type Counter uint8

// The counters of each side, of request streams and event streams; what sets a connection up is not counted. Bytes
// include headers. Event frames and items count once for each subscription.
const (
	BrokerFramesIn Counter = iota
	BrokerBytesIn
	BrokerDecodeErrors   // frames and messages that did not parse
	BrokerPublishBatches // accepted publishes; a single publish is a batch of one
	BrokerPublishItems
	BrokerAcks // replies to publishes, good or bad
	BrokerReplyBytes
	BrokerEventFrames // and gaps by themselves
	BrokerEventItems
	BrokerEventBytes
	ClientFramesIn
	ClientBytesIn
	ClientDecodeErrors   // frames that ended their stream
	ClientPublishBatches // written
	ClientPublishItems
	ClientPublishBytes
	ClientPublishErrors // writes that failed
	ClientAcks
	ClientEventFrames
	ClientEventItems

	// NumCounters is the number of counters.
	NumCounters = iota
)
