package client

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/felix-mq/felix/internal/envconfig"
)

// environment is what [FromEnv] reads. Zero means that a variable is not set, or set to 0 (configuration.md, section 4).
type environment struct {
	Tenant string `yaml:"auth_tenant_id" env:"FELIX_AUTH_TENANT" doc:"tenant to authenticate for"`
	Token  string `yaml:"auth_token" env:"FELIX_AUTH_TOKEN" doc:"Felix token to authenticate with"`

	PublishConns   int    `yaml:"publish_conn_pool" env:"FELIX_PUB_CONN_POOL" min:"0" doc:"connections that publish"`
	PublishStreams int    `yaml:"publish_streams_per_conn" env:"FELIX_PUB_STREAMS_PER_CONN" min:"0" doc:"streams on each of them"`
	Sharding       string `yaml:"publish_sharding" env:"FELIX_PUB_SHARDING" doc:"which stream a publish uses: hash_stream keeps each topic in order, rr does not"`
	QueueDepth     int    `yaml:"publish_queue_depth" env:"FELIX_PUBLISH_QUEUE_DEPTH" min:"0" doc:"asynchronous publishes in flight on each stream"`
	InFlightBytes  int    `yaml:"publish_inflight_bytes" env:"FELIX_PUBLISH_INFLIGHT_BYTES" unit:"bytes" min:"0" doc:"bytes of asynchronous publishes in flight"`

	EventConns        int    `yaml:"event_conn_pool" env:"FELIX_EVENT_CONN_POOL" min:"0" doc:"connections that carry subscriptions"`
	SubConns          int    `yaml:"-" env:"FELIX_SUB_CONNS" min:"0" doc:"the same, if FELIX_EVENT_CONN_POOL is not set"`
	EventConnWindow   uint64 `yaml:"event_conn_recv_window" env:"FELIX_EVENT_CONN_RECV_WINDOW" unit:"bytes" doc:"receive window of each of them"`
	EventStreamWindow uint64 `yaml:"event_stream_recv_window" env:"FELIX_EVENT_STREAM_RECV_WINDOW" unit:"bytes" doc:"receive window of each subscription"`
	MaxPending        int    `yaml:"event_router_max_pending" env:"FELIX_EVENT_ROUTER_MAX_PENDING" min:"0" doc:"event streams of a connection that no subscription has asked for yet"`

	CacheConns        int    `yaml:"cache_conn_pool" env:"FELIX_CACHE_CONN_POOL" min:"0" doc:"connections for cache requests"`
	CacheStreams      int    `yaml:"cache_streams_per_conn" env:"FELIX_CACHE_STREAMS_PER_CONN" min:"0" doc:"streams on each of them"`
	CacheConnWindow   uint64 `yaml:"cache_conn_recv_window" env:"FELIX_CACHE_CONN_RECV_WINDOW" unit:"bytes" doc:"receive window of each of them"`
	CacheStreamWindow uint64 `yaml:"cache_stream_recv_window" env:"FELIX_CACHE_STREAM_RECV_WINDOW" unit:"bytes" doc:"receive window of each of their streams"`

	MaxFrame int `yaml:"max_frame_bytes" env:"FELIX_MAX_FRAME_BYTES" unit:"bytes" min:"0" doc:"largest frame payload that is accepted or sent"`

	StatsEvery time.Duration `yaml:"-" env:"FELIX_CONN_STATS_MS" unit:"ms" min:"0s" doc:"period at which QUIC's counters are logged"`

	Others map[string]any `yaml:",inline"` // keys of the file that are none of these
}

// withoutEffect are variables of the reference's client that this one has no use for. Frames are written as they are, QUIC
// bounds what is sent by the receiver's windows, and subscriptions have no queue on this side. In the file their names are
// in lower case and without the prefix.
var withoutEffect = []string{
	"FELIX_PUBLISH_CHUNK_BYTES", "FELIX_EVENT_SEND_WINDOW", "FELIX_CACHE_SEND_WINDOW", "FELIX_CLIENT_SUB_QUEUE_CAPACITY",
	"FELIX_CLIENT_SUB_QUEUE_POLICY", "FELIX_BENCH_EMBED_TS",
}

// readFile reads the YAML file that FELIX_CLIENT_CONFIG names, if it names one.
func (e *environment) readFile() error {
	name := os.Getenv("FELIX_CLIENT_CONFIG")
	if name == "" {
		return nil
	}
	text, err := os.ReadFile(name)
	if err == nil {
		err = yaml.Unmarshal(text, e)
	}
	if err != nil {
		return fmt.Errorf("client: FELIX_CLIENT_CONFIG: %w", err)
	}
	for key := range e.Others {
		if !slices.Contains(withoutEffect, "FELIX_"+strings.ToUpper(key)) {
			return fmt.Errorf("client: FELIX_CLIENT_CONFIG: %s: unknown key %q", name, key)
		}
	}
	return nil
}

// FromEnv takes settings from the environment: the FELIX_* variables of the reference's client (configuration.md, section
// 4), where they mean something here. A variable that is not set, or is 0, leaves a setting as it is; one that is invalid
// makes Connect fail, with all others that are. FELIX_CLIENT_CONFIG names a YAML file with the keys of that section, which
// variables win over; an unknown key makes Connect fail. Options behind FromEnv win over it. Those variables that have no effect are
// named to the logger of a [WithLogger] in front of it.
func FromEnv() Option {
	return func(o *options) {
		var e environment
		if err := e.readFile(); err != nil {
			o.problems = append(o.problems, err)
			return
		}
		if err := envconfig.Load(&e); err != nil {
			o.problems = append(o.problems, fmt.Errorf("client: environment: %w", err))
			return
		}
		e.apply(o)
		for _, name := range withoutEffect {
			_, inFile := e.Others[strings.ToLower(strings.TrimPrefix(name, "FELIX_"))]
			if inFile || os.Getenv(name) != "" {
				for _, log := range o.loggers() {
					log.Warn("felix: the variable has no effect", "name", name)
				}
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
