// Package loadgen measures a Felix broker: it publishes to one stream, delivers to many subscriptions over real QUIC,
// and accounts for every event.
//
// There are four scenarios: [Run] publishes and subscribes, [RunSoak] does so for long and judges what has grown,
// [RunCache] makes cache calls and [RunConnect] connections.
//
// Publishers send batches of stamped items, each to one topic; each subscription has a goroutine, an HDR histogram, and
// a ledger for each publisher. The histograms are taken at the end of each interval, which makes the timeline. There
// are three ways to load:
//
//	closed    Window batches of a publisher are in flight until every subscription has them; 1 is one batch at a time
//	unbounded the publisher sends as fast as the transport takes it
//	open      batches are due at fixed times, whatever the broker does, and latency counts from the time at which a
//	          batch was due, so that a stall is charged to all the events that had to wait for it
//
// The run begins with a warm-up, which every subscription must have received in full before the clock starts. It ends
// when every subscription has received every event: received = published × fanout, or the run has failed. The delivery
// window reaches from the first measured publish to the last event received, so a rate says what arrived, not what
// fits into buffers; a run too small for a rate to mean something is refused ([TooSmallError]).
//
// Publisher and subscriptions live in this process and share its monotonic clock. The broker may be embedded, a
// process of its own, or somewhere else ([Target]). Files and comparisons are left to package report, plots to package
// plot, and reading flags and printing to cmd/loadgen. Begin at [Config] and [Run].
package loadgen
