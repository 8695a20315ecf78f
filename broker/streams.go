package broker

import (
	"cmp"
	"encoding/json"
	"net/http"
	"slices"
	"time"

	"github.com/felix-mq/felix/fanout"
)

// StreamStats is what a stream is doing at one moment.
type StreamStats struct {
	Tenant        string `json:"tenant"`
	Namespace     string `json:"namespace"`
	Stream        string `json:"stream"`
	Events        uint64 `json:"events"` // published since the stream was made; of a durable stream, ever
	Subscriptions int    `json:"subscriptions"`
	QueuedBytes   int    `json:"queued_bytes"`   // in the queues of all subscriptions
	LagBytes      int    `json:"lag_bytes"`      // in the longest of these queues: the lag of the slowest subscription
	DroppedEvents uint64 `json:"dropped_events"` // by the present subscriptions

	Log *LogStats `json:"log,omitempty"` // of a durable stream
}

// StreamStats returns what each stream is doing, in the order of their names. Its time is linear in streams and
// subscriptions: it is for people who look at a broker, and unlike a metric may tell of any number of streams.
func (b *Broker) StreamStats() []StreamStats {
	topics := byName(b.hub.Topics())
	all := make([]StreamStats, len(topics))
	for i, t := range topics {
		key, st := t.Key(), t.Stats()
		all[i] = StreamStats{
			Tenant: key.Tenant, Namespace: key.Namespace, Stream: key.Stream,
			Events: st.Next, Subscriptions: st.Subscriptions, QueuedBytes: st.QueuedBytes, LagBytes: st.Lag, DroppedEvents: st.Dropped,
		}
		if log := logOf(t); log != nil {
			all[i].Log = log.stats(time.Now())
		}
	}
	return all
}

// byName sorts topics by their names.
func byName(topics []*fanout.Topic) []*fanout.Topic {
	slices.SortFunc(topics, func(a, b *fanout.Topic) int {
		x, y := a.Key(), b.Key()
		return cmp.Or(cmp.Compare(x.Tenant, y.Tenant), cmp.Compare(x.Namespace, y.Namespace), cmp.Compare(x.Stream, y.Stream))
	})
	return topics
}

// StreamsPath is where programs serve [Broker.ServeStreams], next to their metrics.
const StreamsPath = "/streams"

// ServeStreams answers an HTTP request with [Broker.StreamStats] as a JSON array.
func (b *Broker) ServeStreams(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(b.StreamStats()) // a client that has gone needs no answer
}
