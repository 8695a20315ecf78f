package client

import (
	"fmt"
	"log/slog"
	"os"
	"strings"
	"time"

	"github.com/felix-mq/felix/internal/settings"
)

// environment is what [FromEnv] reads. Zero means that a variable is not set, or set to 0
// (docs/start/from-the-reference.md#client).
type environment struct {
	Tenant string `yaml:"auth_tenant_id" env:"FELIX_AUTH_TENANT" doc:"tenant to authenticate for"`
	Token  string `yaml:"auth_token" env:"FELIX_AUTH_TOKEN" secret:"yes" doc:"Felix token to authenticate with"`

	PublishConns   int    `yaml:"publish_conn_pool" env:"FELIX_PUB_CONN_POOL" min:"0" doc:"connections that publish"`
	PublishStreams int    `yaml:"publish_streams_per_conn" env:"FELIX_PUB_STREAMS_PER_CONN" min:"0" doc:"streams on each of them"`
	Sharding       string `yaml:"publish_sharding" env:"FELIX_PUB_SHARDING" words:"hash_stream,rr" doc:"which stream a publish uses: hash_stream keeps each topic in order, rr does not"`
	QueueDepth     int    `yaml:"publish_queue_depth" env:"FELIX_PUBLISH_QUEUE_DEPTH" min:"0" doc:"asynchronous publishes in flight on each stream"`
	InFlightBytes  int    `yaml:"publish_inflight_bytes" env:"FELIX_PUBLISH_INFLIGHT_BYTES" unit:"bytes" min:"0" doc:"bytes of asynchronous publishes in flight"`

	EventConns        int    `yaml:"event_conn_pool" env:"FELIX_EVENT_CONN_POOL,FELIX_SUB_CONNS" min:"0" doc:"connections that carry subscriptions"`
	EventConnWindow   uint64 `yaml:"event_conn_recv_window" env:"FELIX_EVENT_CONN_RECV_WINDOW" unit:"bytes" doc:"receive window of each of them"`
	EventStreamWindow uint64 `yaml:"event_stream_recv_window" env:"FELIX_EVENT_STREAM_RECV_WINDOW" unit:"bytes" doc:"receive window of each subscription"`
	MaxPending        int    `yaml:"event_router_max_pending" env:"FELIX_EVENT_ROUTER_MAX_PENDING" min:"0" doc:"event streams of a connection that no subscription has asked for yet"`

	CacheConns        int    `yaml:"cache_conn_pool" env:"FELIX_CACHE_CONN_POOL" min:"0" doc:"connections for cache requests"`
	CacheStreams      int    `yaml:"cache_streams_per_conn" env:"FELIX_CACHE_STREAMS_PER_CONN" min:"0" doc:"streams on each of them"`
	CacheConnWindow   uint64 `yaml:"cache_conn_recv_window" env:"FELIX_CACHE_CONN_RECV_WINDOW" unit:"bytes" doc:"receive window of each of them"`
	CacheStreamWindow uint64 `yaml:"cache_stream_recv_window" env:"FELIX_CACHE_STREAM_RECV_WINDOW" unit:"bytes" doc:"receive window of each of their streams"`

	MaxFrame int `yaml:"max_frame_bytes" env:"FELIX_MAX_FRAME_BYTES" unit:"bytes" min:"0" doc:"largest frame payload that is accepted or sent"`

	InitialMTU        int           `env:"FELIX_INITIAL_MTU" unit:"bytes" min:"0" max:"65527" doc:"size of the packets that a connection begins with"`
	MTUUpperBound     int           `env:"FELIX_MTU_UPPER_BOUND" unit:"bytes" min:"0" max:"65527" doc:"largest packet that path MTU discovery tries"`
	BlackHoleCooldown time.Duration `env:"FELIX_MTU_BLACK_HOLE_COOLDOWN_MS" unit:"ms" min:"0s" max:"24h" doc:"time for which small packets are sent after large ones were dropped"`

	StatsEvery time.Duration `env:"FELIX_CONN_STATS_MS" unit:"ms" min:"0s" doc:"period at which QUIC's counters are logged"`
}

// withoutEffect are settings of the reference's client that this one has no use for.
var withoutEffect = []settings.WithoutEffect{
	{Key: "publish_chunk_bytes", Variable: "FELIX_PUBLISH_CHUNK_BYTES", Why: "frames are written as they are"},
	{Key: "event_send_window", Variable: "FELIX_EVENT_SEND_WINDOW", Why: "the receiver's window bounds what is sent"},
	{Key: "cache_send_window", Variable: "FELIX_CACHE_SEND_WINDOW", Why: "the receiver's window bounds what is sent"},
	{Key: "client_sub_queue_capacity", Variable: "FELIX_CLIENT_SUB_QUEUE_CAPACITY", Why: "subscriptions have no queue on this side"},
	{Key: "client_sub_queue_policy", Variable: "FELIX_CLIENT_SUB_QUEUE_POLICY", Why: "subscriptions have no queue on this side"},
	{Key: "bench_embed_ts", Variable: "FELIX_BENCH_EMBED_TS", Why: "payloads are the caller's"},
}

// FromEnv takes settings from the environment: the FELIX_* variables of the reference's client
// (docs/start/from-the-reference.md#client), where they mean something here. A variable that is not set, or is 0,
// leaves a setting as it is; one that is invalid makes Connect fail, with all others that are. FELIX_CLIENT_CONFIG
// names a YAML file with the keys of that section, which variables win over; an unknown key makes Connect fail. Options
// after FromEnv win over it. The logger of a [WithLogger] before it gets the names of variables that have no effect.
func FromEnv() Option {
	return func(o *options) {
		var e environment
		loaded, err := settings.Load(settings.Sources{
			File: os.Getenv("FELIX_CLIENT_CONFIG"), Environ: os.Environ(), WithoutEffect: withoutEffect,
		}, &e)
		if err != nil {
			o.problems = append(o.problems, fmt.Errorf("client: settings: %w", err))
			return
		}
		e.apply(o)
		for _, n := range loaded.Ignored {
			for _, log := range o.loggers() {
				log.Warn("felix: the setting has no effect", "name", n.Name, "where", n.Where, "why", n.Why)
			}
		}
	}
}

func (o *options) loggers() (all []*slog.Logger) {
	for _, h := range o.hooks {
		if l, ok := h.(logHook); ok {
			all = append(all, l.log)
		}
	}
	return all
}

// logStats logs what QUIC counts over the live connections, until the client is closed.
func (c *Client) logStats() {
	loggers := c.o.loggers()
	if len(loggers) == 0 {
		return
	}
	ticker := time.NewTicker(c.o.statsEvery)
	defer ticker.Stop()
	for {
		select {
		case <-c.ctx.Done():
			return
		case <-ticker.C:
		}
		stats := c.Stats()
		for _, log := range loggers {
			log.Info("felix: connections", "stats", stats)
		}
	}
}

func (e *environment) apply(o *options) {
	if tenant := strings.TrimSpace(e.Tenant); tenant != "" {
		o.tenant = tenant
	}
	if token := strings.TrimSpace(e.Token); token != "" {
		WithToken(o.tenant, token)(o)
	}
	o.statsEvery = e.StatsEvery
	o.quic.InitialPacketSize, o.quic.MaxPacketSize, o.quic.BlackHoleCooldown = e.InitialMTU, e.MTUUpperBound, e.BlackHoleCooldown
	set(o, "publish connections", &o.publishConns, e.PublishConns)
	set(o, "publish streams", &o.publishStreams, e.PublishStreams)
	set(o, "publishes in flight", &o.inFlight, e.QueueDepth)
	set(o, "bytes in flight", &o.inFlightBytes, e.InFlightBytes)
	set(o, "event connections", &o.eventConns, e.EventConns)
	set(o, "event streams that wait", &o.maxUnmatched, e.MaxPending)
	set(o, "cache connections", &o.cacheConns, e.CacheConns)
	set(o, "cache streams", &o.cacheStreams, e.CacheStreams)
	set(o, "maximum frame size", &o.maxFrame, e.MaxFrame)
	set(o, "window of connections with events", &o.eventWindows.conn, e.EventConnWindow)
	set(o, "window of streams with events", &o.eventWindows.stream, e.EventStreamWindow)
	set(o, "window of connections for cache requests", &o.cacheWindows.conn, e.CacheConnWindow)
	set(o, "window of streams for cache requests", &o.cacheWindows.stream, e.CacheStreamWindow)
	if e.Sharding == "rr" {
		o.roundRobin = true
	}
}
