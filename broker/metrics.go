package broker

import (
	"errors"
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/felix-mq/felix/cache"
	"github.com/felix-mq/felix/fanout"
	"github.com/felix-mq/felix/quicx"
)

// metrics are the broker's counters. Hot paths add to plain atomics; the registry reads them when it is asked.
type metrics struct {
	connections                          atomic.Uint64
	controlStreams, controlStreamsClosed atomic.Uint64
	publishStreams, publishStreamsClosed atomic.Uint64
	streamResets                         atomic.Uint64
	requestErrors                        atomic.Uint64

	publishedBatches, publishedEvents, publishedBytes atomic.Uint64
	publishWaits, publishDuplicates                   atomic.Uint64
	publishRefused                                    [publishRefusals]atomic.Uint64
	decompressed, corruptBatches                      atomic.Uint64

	subscriptions, subscriptionsEnded, stalledEnded atomic.Uint64
	deliveredEvents, deliveredBytes                 atomic.Uint64

	cachePuts              atomic.Uint64
	watches, watchesEnded  atomic.Uint64
	watchEvents, watchLost atomic.Uint64 // changes
	watchLogBytes          atomic.Int64  // of changes
	inFlightWaits          atomic.Uint64

	catalogChanges, catalogErrors atomic.Uint64
	streamsFailed                 atomic.Uint64
	catalogStale                  atomic.Bool

	malformed, authFailures, limits, connectionsClosed *prometheus.CounterVec // without series until something happens
}

// publishRefusal says why a publish was not carried out.
type publishRefusal int

const (
	refusedNoSpace publishRefusal = iota
	refusedDraining
	refusedUnknownStream
	refusedForbidden
	refusedRate
	refusedStorage
	refusedInDoubt
	publishRefusals // how many there are
)

// closeReasonOf says who or what ended a connection, by the cause with which its context ended.
func closeReasonOf(cause error) string {
	if errors.Is(cause, quicx.ErrIdleTimeout) {
		return "idle"
	}
	if e, ok := errors.AsType[*quicx.ConnClosedError](cause); ok && !e.Transport {
		if e.Remote {
			return "peer"
		}
		return "broker"
	}
	return "error"
}

func newMetrics(b *Broker) (*metrics, *prometheus.Registry) {
	m := &metrics{
		malformed: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "felix_malformed_frames_total", Help: "Frames that ended their stream because they could not be read, by class.",
		}, []string{"class"}),
		authFailures: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "felix_auth_failures_total", Help: "Tokens refused, by reason.",
		}, []string{"reason"}),
		connectionsClosed: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "felix_connections_closed_total", Help: "Connections ended, by who or what ended them.",
		}, []string{"reason"}),
		limits: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "felix_limits_total", Help: "Streams and connections ended, or refused, for a limit against abuse.",
		}, []string{"limit"}),
	}
	r := prometheus.NewRegistry()
	r.MustRegister(m.malformed, m.authFailures, m.limits, m.connectionsClosed)
	labeled := func(name, help, label string, values []string, load func(i int) uint64) {
		for i, value := range values {
			r.MustRegister(prometheus.NewCounterFunc(prometheus.CounterOpts{
				Name: name, Help: help, ConstLabels: prometheus.Labels{label: value},
			}, func() float64 { return float64(load(i)) }))
		}
	}
	counter := func(name, help string, load func() uint64) {
		r.MustRegister(prometheus.NewCounterFunc(prometheus.CounterOpts{Name: name, Help: help},
			func() float64 { return float64(load()) }))
	}
	gauge := func(name, help string, load func() float64) {
		r.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help}, load))
	}
	open := func(opened, closed *atomic.Uint64) func() float64 {
		return func() float64 {
			gone := closed.Load() // first, so that the difference is never negative
			return float64(opened.Load() - gone)
		}
	}

	counter("felix_connections_total", "Connections accepted.", m.connections.Load)
	gauge("felix_connections", "Connections open.", func() float64 {
		b.mu.Lock()
		defer b.mu.Unlock()
		return float64(len(b.conns))
	})
	counter("felix_handshakes_started_total", "Connection attempts that went on to a handshake; those that are not in felix_connections_total failed or are under way.", func() uint64 { return b.listener.Stats().Started })
	counter("felix_control_streams_total", "Control streams opened by clients.", m.controlStreams.Load)
	gauge("felix_control_streams", "Control streams open.", open(&m.controlStreams, &m.controlStreamsClosed))
	counter("felix_publish_streams_total", "Uni-directional publish streams opened by clients.", m.publishStreams.Load)
	gauge("felix_publish_streams", "Uni-directional publish streams open.", open(&m.publishStreams, &m.publishStreamsClosed))
	counter("felix_stream_resets_total", "Streams that clients gave up before their end.", m.streamResets.Load)
	counter("felix_request_errors_total", "Requests answered with an error.", m.requestErrors.Load)
	counter("felix_in_flight_waits_total", "Times a control stream was not read on before its replies were written, because it had as many unanswered requests as it may have.", m.inFlightWaits.Load)

	counter("felix_published_batches_total", "Publishes carried out; a single event counts as a batch of one.", m.publishedBatches.Load)
	counter("felix_published_events_total", "Events published.", m.publishedEvents.Load)
	counter("felix_published_bytes_total", "Bytes of published event frames.", m.publishedBytes.Load)
	counter("felix_decompressed_batches_total", "Compressed batches decompressed for subscriptions that do not take them.", m.decompressed.Load)
	counter("felix_corrupt_batches_total", "Compressed batches that could not be decompressed.", m.corruptBatches.Load)
	counter("felix_publish_waits_total", "Publishes that waited for a queue or for memory.", m.publishWaits.Load)
	labeled("felix_publish_refused_total", "Publishes that were not carried out, by reason.", "reason", []string{"no_room", "draining", "unknown_stream", "forbidden", "rate", "storage", "in_doubt"},
		func(i int) uint64 { return m.publishRefused[i].Load() })

	r.MustRegister(packetCollector{b})
	counter("felix_retries_total", "Connection attempts that were asked to prove their address.", func() uint64 { return b.listener.Stats().Retries })
	counter("felix_handshakes_refused_total", "Connection attempts refused because their network made too many.", func() uint64 { return b.listener.Stats().Refused })
	counter("felix_udp_send_refused_total", "Datagrams that the operating system refused to send for the moment; QUIC sends their content again.", func() uint64 { return b.listener.Stats().SendFaults })
	counter("felix_udp_receive_drops_total", "Datagrams that the kernel dropped because the UDP receive buffer was full.", func() uint64 { return b.listener.Stats().KernelDrops })
	counter("felix_mtu_black_holes_total", "Connections closed because the path to the client had begun to drop large packets; the next one from there keeps to small ones.", func() uint64 { return b.listener.Stats().BlackHoles })
	gauge("felix_unauthenticated_connections", "Connections on which no stream has authenticated.", func() float64 {
		b.mu.Lock()
		defer b.mu.Unlock()
		return float64(b.unauthenticated.Len())
	})
	gauge("felix_read_bytes", "Memory held by unfinished requests.", func() float64 {
		streams := b.openStreams.Load() * streamBytes
		watches := int64(m.watches.Load()-m.watchesEnded.Load())*watchBytes + m.watchLogBytes.Load()
		return float64(max(b.tenants.readBytes()-streams-watches, 0))
	})

	counter("felix_subscriptions_total", "Subscriptions made.", m.subscriptions.Load)
	gauge("felix_subscriptions", "Subscriptions active.", open(&m.subscriptions, &m.subscriptionsEnded))
	counter("felix_subscriptions_stalled_total", "Blocking subscriptions ended because they took nothing while a publisher waited.", m.stalledEnded.Load)
	counter("felix_delivered_events_total", "Events written to subscriptions.", m.deliveredEvents.Load)
	counter("felix_delivered_bytes_total", "Bytes of event frames written to subscriptions.", m.deliveredBytes.Load)
	labeled("felix_dropped_events_total", "Events that subscriptions lost: their queue was full, or emptied to free memory.", "reason", []string{"queue_full", "reclaimed"},
		func(i int) uint64 {
			if st := b.hub.Stats(); i == 0 {
				return st.Dropped
			} else {
				return st.Reclaimed
			}
		})
	if b.store != nil {
		counter("felix_log_fallbacks_total", "Times that a subscription of a durable stream read on from the log, because its queue was full or memory was short.", func() uint64 { return b.hub.Stats().FallBacks })
		counter("felix_log_expired_events_total", "Events of durable streams that retention removed before a subscription came to them.", func() uint64 { return b.hub.Stats().Expired })
		counter("felix_log_unreadable_total", "Subscriptions ended because their stream's log could not be read.", func() uint64 { return b.hub.Stats().Unreadable })
		counter("felix_publish_duplicates_total", "Publishes to durable streams that were answered and not carried out again: the stream had them.", m.publishDuplicates.Load)
		counter("felix_producers_forgotten_total", "Producers that durable streams have forgotten for others, because they remember no more of them.", func() uint64 { return uint64(b.store.Stats().Forgotten) })
		counter("felix_storage_appends_total", "Batches appended to logs.", func() uint64 { return uint64(b.store.Stats().Appends) })
		counter("felix_storage_commits_total", "Writes to the journal; the appends for one of them are how well it is shared.", func() uint64 { return uint64(b.store.Stats().Commits) })
		gauge("felix_storage_queued_bytes", "Bytes that wait for the disk.", func() float64 { return float64(b.store.Stats().Queued) })
		gauge("felix_storage_full", "Whether less is free than has to be for a publish to be accepted.", func() float64 { return oneIf(b.store.Stats().Full) })
		gauge("felix_storage_failed", "Whether a write or a sync has failed, so that nothing more is accepted.", func() float64 { return oneIf(b.store.Err() != nil) })
		counter("felix_storage_retention_failures_total", "Times that retention could not remove a file; it tries again.", func() uint64 { return uint64(b.store.Stats().RetainFailures) })
		r.MustRegister(logCollector{b})
	}
	gauge("felix_queued_bytes", "Bytes that wait in the queues of subscriptions, as of 50 ms ago.", func() float64 { return float64(b.hub.Stats().QueuedBytes) })
	gauge("felix_queue_oldest_age_seconds", "How long the oldest of what waits in a queue has waited, to 50 ms.", func() float64 { return b.hub.Stats().Oldest.Seconds() })

	counter("felix_cache_puts_total", "Cache entries written.", m.cachePuts.Load)
	counter("felix_cache_watches_total", "Watches of caches made.", m.watches.Load)
	gauge("felix_cache_watches", "Watches of caches active.", open(&m.watches, &m.watchesEnded))
	counter("felix_cache_watch_events_total", "Changes of caches written to watchers.", m.watchEvents.Load)
	counter("felix_cache_watch_lost_events_total", "Changes of caches that watchers did not read in time; they got an event that says so.", m.watchLost.Load)
	gauge("felix_cache_watch_bytes", "Memory held by changes of caches that watchers have not read yet.", func() float64 { return float64(m.watchLogBytes.Load()) })
	r.MustRegister(cacheCollector{b.caches}, tenantCollector{b.tenants})
	if b.snapshots != nil {
		r.MustRegister(snapshotCollector{b.snapshots})
	}

	if b.cfg.Catalog != nil {
		counter("felix_catalog_changes_total", "Tenants, streams and caches added, changed or removed by the catalog.", m.catalogChanges.Load)
		counter("felix_catalog_streams_failed_total", "Durable streams of the catalog that could not be opened, and are not served.", m.streamsFailed.Load)
		counter("felix_catalog_errors_total", "Catalogs that could not be read; the one before stayed.", m.catalogErrors.Load)
		gauge("felix_catalog_last_reload_successful", "Whether the catalog could be read when it last changed.", func() float64 {
			return oneIf(!m.catalogStale.Load())
		})
	}
	gauge("felix_streams", "Streams that exist.", func() float64 { return float64(b.hub.Stats().Topics) })
	gauge("felix_retained_bytes", "Bytes held in queues, replay and writes under way.", func() float64 { return float64(b.hub.Stats().RetainedBytes) })
	counter("felix_reclaims_total", "Times the bound on retained bytes was reached.", func() uint64 { return b.hub.Stats().Reclaims })
	gauge("felix_udp_receive_buffer_bytes", "UDP receive buffer granted by the kernel.", func() float64 { return float64(b.listener.Socket().RecvBufferGranted) })
	gauge("felix_udp_send_buffer_bytes", "UDP send buffer granted by the kernel.", func() float64 { return float64(b.listener.Socket().SendBufferGranted) })
	return m, r
}

func oneIf(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

// logCollector exposes the logs of durable streams: each of the first [maxLogLabels] by name, and the sum of others.
type logCollector struct{ b *Broker }

// maxLogLabels bounds the series of a broker that has thousands of durable streams.
const maxLogLabels = 100

var streamLabels = []string{"tenant", "namespace", "stream"}

var (
	logEvents   = prometheus.NewDesc("felix_log_events", "Events that the log of a durable stream has.", streamLabels, nil)
	logBytes    = prometheus.NewDesc("felix_log_bytes", "Bytes of the files of a durable stream's log.", streamLabels, nil)
	logSegments = prometheus.NewDesc("felix_log_segments", "Files of a durable stream's log.", streamLabels, nil)
)

// Describe implements [prometheus.Collector].
func (logCollector) Describe(ch chan<- *prometheus.Desc) {
	ch <- logEvents
	ch <- logBytes
	ch <- logSegments
}

// Collect implements [prometheus.Collector].
func (c logCollector) Collect(ch chan<- prometheus.Metric) {
	send := func(k fanout.Key, events, bytes, segments float64) {
		ch <- prometheus.MustNewConstMetric(logEvents, prometheus.GaugeValue, events, k.Tenant, k.Namespace, k.Stream)
		ch <- prometheus.MustNewConstMetric(logBytes, prometheus.GaugeValue, bytes, k.Tenant, k.Namespace, k.Stream)
		ch <- prometheus.MustNewConstMetric(logSegments, prometheus.GaugeValue, segments, k.Tenant, k.Namespace, k.Stream)
	}
	var events, bytes, segments float64
	topics := byName(c.b.hub.DurableTopics())
	for i, t := range topics {
		bounds := logOf(t).log.LastBounds()
		e, b, n := float64(bounds.Tail-bounds.Base), float64(bounds.Bytes), float64(bounds.Segments)
		if i < maxLogLabels {
			send(t.Key(), e, b, n)
			continue
		}
		events, bytes, segments = events+e, bytes+b, segments+n
	}
	if len(topics) > maxLogLabels {
		send(fanout.Key{Tenant: otherLabel, Namespace: otherLabel, Stream: otherLabel}, events, bytes, segments)
	}
}

// cacheCollector exposes the counters of the first maxCacheLabels caches that the broker has had, for good. Those of
// all others are added up under [otherLabel] where they happen, so no series falls or jumps when a cache comes or
// goes.
type cacheCollector struct{ store *cache.Store }

// maxCacheLabels bounds the series of a broker that has thousands of caches.
const maxCacheLabels = 100

// otherLabel stands for names of tenants, namespaces and caches, none of which can be that.
const otherLabel = "_other"

var cacheLabels = []string{"tenant", "namespace", "cache"}

var (
	cacheHits    = prometheus.NewDesc("felix_cache_hits_total", "Cache reads that found a value.", cacheLabels, nil)
	cacheMisses  = prometheus.NewDesc("felix_cache_misses_total", "Cache reads that found none.", cacheLabels, nil)
	cacheEvicted = prometheus.NewDesc("felix_cache_evictions_total", "Cache entries evicted for lack of space, or refused by the admission policy.", cacheLabels, nil)
	cacheExpired = prometheus.NewDesc("felix_cache_expired_total", "Cache entries whose lifetime has ended.", cacheLabels, nil)
	cacheRefused = prometheus.NewDesc("felix_cache_refused_total", "Puts refused because the entry did not fit into what its cache or tenant may hold.", cacheLabels, nil)
	cacheEntries = prometheus.NewDesc("felix_cache_entries", "Cache entries.", cacheLabels, nil)
	cacheBytes   = prometheus.NewDesc("felix_cache_bytes", "Bytes charged for keys, buffers and overhead of cache entries.", cacheLabels, nil)
)

// Describe implements [prometheus.Collector].
func (cacheCollector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{cacheHits, cacheMisses, cacheEvicted, cacheExpired, cacheRefused, cacheEntries, cacheBytes} {
		ch <- d
	}
}

// Collect implements [prometheus.Collector].
func (c cacheCollector) Collect(ch chan<- prometheus.Metric) {
	type series struct {
		scope cache.Scope
		stats cache.Stats
	}
	all := make([]series, 0, maxCacheLabels+1)
	others := c.store.Series(func(scope cache.Scope, st cache.Stats) { all = append(all, series{scope, st}) })
	if len(all) == maxCacheLabels {
		all = append(all, series{cache.Scope{Tenant: otherLabel, Namespace: otherLabel, Cache: otherLabel}, others})
	}
	for _, s := range all {
		for _, m := range []struct {
			desc  *prometheus.Desc
			kind  prometheus.ValueType
			value float64
		}{
			{cacheHits, prometheus.CounterValue, float64(s.stats.Hits)},
			{cacheMisses, prometheus.CounterValue, float64(s.stats.Misses)},
			{cacheEvicted, prometheus.CounterValue, float64(s.stats.Evicted)},
			{cacheExpired, prometheus.CounterValue, float64(s.stats.Expired)},
			{cacheRefused, prometheus.CounterValue, float64(s.stats.Refused)},
			{cacheEntries, prometheus.GaugeValue, float64(s.stats.Entries)},
			{cacheBytes, prometheus.GaugeValue, float64(s.stats.Bytes)},
		} {
			ch <- prometheus.MustNewConstMetric(m.desc, m.kind, m.value, s.scope.Tenant, s.scope.Namespace, s.scope.Cache)
		}
	}
}

// packetCollector exposes the packets of all connections, of which each is asked once.
type packetCollector struct{ b *Broker }

var (
	packetsSent = prometheus.NewDesc("felix_quic_packets_sent_total", "QUIC packets sent.", nil, nil)
	packetsLost = prometheus.NewDesc("felix_quic_packets_lost_total", "QUIC packets sent that the peer has not acknowledged in time.", nil, nil)
)

// Describe implements [prometheus.Collector].
func (packetCollector) Describe(ch chan<- *prometheus.Desc) { ch <- packetsSent; ch <- packetsLost }

// Collect implements [prometheus.Collector].
func (c packetCollector) Collect(ch chan<- prometheus.Metric) {
	sent, lost := c.b.packets()
	ch <- prometheus.MustNewConstMetric(packetsSent, prometheus.CounterValue, float64(sent))
	ch <- prometheus.MustNewConstMetric(packetsLost, prometheus.CounterValue, float64(lost))
}

// tenantCollector exposes what was refused to tenants; see [refusals].
type tenantCollector struct{ tenants *tenants }

var tenantRefused = prometheus.NewDesc("felix_tenant_refused_total", "Requests refused, and connections closed, for a limit of their tenant.", []string{"tenant", "limit"}, nil)

// Describe implements [prometheus.Collector].
func (tenantCollector) Describe(ch chan<- *prometheus.Desc) { ch <- tenantRefused }

// Collect implements [prometheus.Collector].
func (c tenantCollector) Collect(ch chan<- prometheus.Metric) {
	c.tenants.refusals.each(func(name string, counts *refusalCounts) {
		for l := range tenantLimits {
			if n := counts[l].Load(); n > 0 {
				ch <- prometheus.MustNewConstMetric(tenantRefused, prometheus.CounterValue, float64(n), name, l.String())
			}
		}
	})
}
