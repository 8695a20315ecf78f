package main

import (
	"log/slog"
	"slices"
	"strings"

	"github.com/felix-mq/felix/internal/envconfig"
)

// withoutEffect are variables of the reference implementation that are accepted and mean nothing here, with the reason
// (docs/from-the-reference.md).
var withoutEffect = map[string]string{
	"FELIX_ACK_ON_COMMIT":                      "an acknowledgement always means that the publish was carried out",
	"FELIX_ACK_WAIT_TIMEOUT_MS":                "no acknowledgement waits for a commit",
	"FELIX_BROKER_PUB_WORKERS_PER_CONN":        "there is no queue between a publisher and its topic",
	"FELIX_BROKER_PUB_QUEUE_DEPTH":             "there is no queue between a publisher and its topic",
	"FELIX_BROKER_PUBLISH_INFLIGHT_BYTES":      "there is no queue between a publisher and its topic; see FELIX_RETAINED_BYTES",
	"FELIX_BROKER_PUBLISH_CONN_INFLIGHT_BYTES": "there is no queue between a publisher and its topic; see FELIX_CONN_READ_BYTES",
	"FELIX_CORE_SHARDS":                        "publishes run on the goroutine of their stream; see GOMAXPROCS",
	"FELIX_CONTROL_STREAM_DRAIN_TIMEOUT_MS":    "everything is answered before a stream ends",
	"FELIX_CACHE_SEND_WINDOW":                  "the receiver's window and congestion control bound what is sent",
	"FELIX_DISABLE_TIMINGS":                    "timings are compiled in by the build tag telemetry",
	"FELIX_FANOUT_BATCH":                       "see FELIX_EVENT_BATCH_MAX_EVENTS",
	"FELIX_EVENT_BATCH_MAX_DELAY_US":           "nothing waits for a timer: batches come from load",
	"FELIX_SUB_EGRESS_LANES":                   "each subscription has a writer of its own",
	"FELIX_SUB_WRITER_LANES":                   "each subscription has a writer of its own",
	"FELIX_SUB_QUEUE_BOUND":                    "each subscription has one queue; see FELIX_SUBSCRIBER_QUEUE_CAPACITY",
	"FELIX_SUB_LANE_QUEUE_DEPTH":               "each subscription has one queue; see FELIX_SUBSCRIBER_QUEUE_CAPACITY",
	"FELIX_SUB_QUEUE_MODE":                     "each subscription has one queue; see FELIX_SUB_QUEUE_POLICY",
	"FELIX_SUB_LANE_QUEUE_POLICY":              "each subscription has one queue; see FELIX_SUB_QUEUE_POLICY",
	"FELIX_MAX_SUB_WRITER_LANES":               "each subscription has a writer of its own",
	"FELIX_SUB_LANE_SHARD":                     "each subscription has a writer of its own",
	"FELIX_SUB_SINGLE_WRITER_PER_CONN":         "each subscription has a writer of its own",
	"FELIX_SUB_FLUSH_MAX_ITEMS":                "see FELIX_SUB_MAX_BYTES_PER_WRITE",
	"FELIX_SUB_FLUSH_MAX_DELAY_US":             "nothing waits for a timer",
	"FELIX_SUB_STREAMS_PER_CONN":               "each subscription has a stream of its own",
	"FELIX_SUB_STREAM_MODE":                    "each subscription has a stream of its own",
	"FELIX_BROKER_CONFIG":                      "there is no configuration file yet",
	"FELIX_CONTROLPLANE_URL":                   "there is no control plane yet",
	"FELIX_CONTROLPLANE_SYNC_INTERVAL_MS":      "there is no control plane yet",
	"FELIX_CONN_STATS_MS":                      "see the metrics",
}

// warnVariables says which FELIX_* variables of environ ("NAME=value") mean nothing to this program, so that a misspelt
// one is not taken for a setting. structs are those that the environment was read into.
func warnVariables(log *slog.Logger, environ []string, structs ...any) {
	known := envconfig.Describe(structs...)
	for _, assignment := range environ {
		name, _, _ := strings.Cut(assignment, "=")
		if !strings.HasPrefix(name, "FELIX_") || slices.ContainsFunc(known, func(v envconfig.Var) bool { return v.Name == name }) {
			continue
		}
		if why, ok := withoutEffect[name]; ok {
			log.Warn("variable has no effect", "name", name, "why", why)
			continue
		}
		log.Warn("unknown variable", "name", name)
	}
}
