package client

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/felix-mq/felix/internal/envconfig"
)

// environment is what [FromEnv] reads. Zero means that a variable is not set, or set to 0 (configuration.md, section 4).
type environment struct {
	Tenant string `env:"FELIX_AUTH_TENANT" doc:"tenant to authenticate for"`
	Token  string `env:"FELIX_AUTH_TOKEN" doc:"Felix token to authenticate with"`

	PublishConns   int    `env:"FELIX_PUB_CONN_POOL" min:"0" doc:"connections that publish"`
	PublishStreams int    `env:"FELIX_PUB_STREAMS_PER_CONN" min:"0" doc:"streams on each of them"`
	Sharding       string `env:"FELIX_PUB_SHARDING" doc:"which stream a publish uses: hash_stream keeps each topic in order, rr does not"`
	QueueDepth     int    `env:"FELIX_PUBLISH_QUEUE_DEPTH" min:"0" doc:"asynchronous publishes in flight on each stream"`
	InFlightBytes  int    `env:"FELIX_PUBLISH_INFLIGHT_BYTES" unit:"bytes" min:"0" doc:"bytes of asynchronous publishes in flight"`

	EventConns        int    `env:"FELIX_EVENT_CONN_POOL" min:"0" doc:"connections that carry subscriptions"`
	SubConns          int    `env:"FELIX_SUB_CONNS" min:"0" doc:"the same, if FELIX_EVENT_CONN_POOL is not set"`
	EventConnWindow   uint64 `env:"FELIX_EVENT_CONN_RECV_WINDOW" unit:"bytes" doc:"receive window of each of them"`
	EventStreamWindow uint64 `env:"FELIX_EVENT_STREAM_RECV_WINDOW" unit:"bytes" doc:"receive window of each subscription"`
	MaxPending        int    `env:"FELIX_EVENT_ROUTER_MAX_PENDING" min:"0" doc:"event streams of a connection that no subscription has asked for yet"`

	CacheConns        int    `env:"FELIX_CACHE_CONN_POOL" min:"0" doc:"connections for cache requests"`
	CacheStreams      int    `env:"FELIX_CACHE_STREAMS_PER_CONN" min:"0" doc:"streams on each of them"`
	CacheConnWindow   uint64 `env:"FELIX_CACHE_CONN_RECV_WINDOW" unit:"bytes" doc:"receive window of each of them"`
	CacheStreamWindow uint64 `env:"FELIX_CACHE_STREAM_RECV_WINDOW" unit:"bytes" doc:"receive window of each of their streams"`

	MaxFrame int `env:"FELIX_MAX_FRAME_BYTES" unit:"bytes" min:"0" doc:"largest frame payload that is accepted or sent"`
}

// withoutEffect are variables of the reference's client that this one has no use for. Frames are written as they are, QUIC
// bounds what is sent by the receiver's windows, subscriptions have no queue on this side, and there is no file.
var withoutEffect = []string{
	"FELIX_PUBLISH_CHUNK_BYTES", "FELIX_EVENT_SEND_WINDOW", "FELIX_CACHE_SEND_WINDOW", "FELIX_CLIENT_SUB_QUEUE_CAPACITY",
	"FELIX_CLIENT_SUB_QUEUE_POLICY", "FELIX_CONN_STATS_MS", "FELIX_BENCH_EMBED_TS", "FELIX_CLIENT_CONFIG",
}

// FromEnv takes settings from the environment: the FELIX_* variables of the reference's client (configuration.md, section
// 4), where they mean something here. A variable that is not set, or is 0, leaves a setting as it is; one that is invalid
// makes Connect fail, with all others that are. Options behind FromEnv win over it. Those variables that have no effect are
// named to the logger of a [WithLogger] in front of it.
func FromEnv() Option {
	return func(o *options) {
		var e environment
		if err := envconfig.Load(&e); err != nil {
			o.problems = append(o.problems, fmt.Errorf("client: environment: %w", err))
			return
		}
		e.apply(o)
		for _, name := range withoutEffect {
			if os.Getenv(name) != "" {
				for _, h := range o.hooks {
					if l, ok := h.(logHook); ok {
						l.log.Warn("felix: the variable has no effect", "name", name)
					}
				}
			}
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
	if e.EventConns == 0 {
		e.EventConns = e.SubConns
	}
	for _, s := range []struct {
		setting *int
		value   int
	}{
		{&o.publishConns, e.PublishConns},
		{&o.publishStreams, e.PublishStreams},
		{&o.inFlight, e.QueueDepth},
		{&o.inFlightBytes, e.InFlightBytes},
		{&o.eventConns, e.EventConns},
		{&o.maxUnmatched, e.MaxPending},
		{&o.cacheConns, e.CacheConns},
		{&o.cacheStreams, e.CacheStreams},
		{&o.maxFrame, e.MaxFrame},
	} {
		if s.value > 0 {
			*s.setting = s.value
		}
	}
	for _, s := range []struct {
		setting *uint64
		value   uint64
	}{
		{&o.eventWindows.conn, e.EventConnWindow},
		{&o.eventWindows.stream, e.EventStreamWindow},
		{&o.cacheWindows.conn, e.CacheConnWindow},
		{&o.cacheWindows.stream, e.CacheStreamWindow},
	} {
		if s.value > 0 {
			*s.setting = s.value
		}
	}
	switch e.Sharding {
	case "", "hash_stream":
	case "rr":
		o.roundRobin = true
	default:
		o.problems = append(o.problems, errors.New("client: environment: FELIX_PUB_SHARDING: "+e.Sharding+" is neither hash_stream nor rr"))
	}
}
