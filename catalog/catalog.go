// Package catalog is the list of what a broker serves: tenants with the keys that verify their tokens, and in their
// namespaces streams and caches.
//
// A broker takes it from a [Source]: a snapshot first, then changes. [File] is a source that reads a YAML file and
// follows it while it changes; a control plane will be another. [Load] reads such a file, [Write] writes one. The
// layout of the file is in docs/operate/catalog.md.
//
// The broker decides what to do when something is added, changed or removed.
package catalog

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/felix-mq/felix/auth"
	"github.com/felix-mq/felix/ring"
)

// Source is where a broker has its catalog from. Its methods are called by one goroutine.
type Source interface {
	// Snapshot returns the catalog as it is now. The caller does not change it.
	Snapshot(ctx context.Context) (*Catalog, error)
	// Follow calls update with the changes since the snapshot, and then with each set of further ones in their order,
	// until ctx ends. It calls update with an error, once for each cause, when there is something new that cannot be
	// read: what was there before stays valid.
	Follow(ctx context.Context, update func([]Change, error))
}

// Catalog is everything that a broker serves. Names follow auth.ValidTenant and auth.ValidName.
type Catalog struct {
	Tenants map[string]Tenant
}

// Tenant is one tenant.
type Tenant struct {
	Keys       auth.KeySet // of which one must have signed its tokens; not empty
	Limits     Limits
	Namespaces map[string]Namespace
}

// Limits are what a tenant may have: a guarantee, which other tenants never take away, and a maximum of each thing that
// a broker counts, and rates. Nil means what the broker's settings say. A guarantee of -1 is an equal part of half of
// what the broker has and is not guaranteed to others by a number; a maximum or a rate of 0 is no bound.
type Limits struct {
	MemoryGuarantee        *int64 `yaml:"memory_guarantee" unit:"bytes" min:"-1" max:"1125899906842624" doc:"bytes of queues, replay and subscriptions that are there for a tenant whatever others use, of retained_bytes; -1 is an equal part of half"`
	MemoryMax              *int64 `yaml:"memory_max" unit:"bytes" min:"0" max:"1125899906842624" doc:"bytes of these that a tenant may have; 0 is any number"`
	ReadGuarantee          *int64 `yaml:"read_guarantee" unit:"bytes" min:"-1" max:"1125899906842624" doc:"the same for unfinished requests, unread replies and open streams, of read_bytes"`
	ReadMax                *int64 `yaml:"read_max" unit:"bytes" min:"0" max:"1125899906842624" doc:"bytes of these that a tenant may have; 0 is any number"`
	CacheGuarantee         *int64 `yaml:"cache_guarantee" unit:"bytes" min:"-1" max:"1125899906842624" doc:"the same for cache entries, of cache_max_bytes"`
	CacheMax               *int64 `yaml:"cache_max" unit:"bytes" min:"0" max:"1125899906842624" doc:"bytes of cache entries that a tenant may have; 0 is any number"`
	ConnectionsGuarantee   *int64 `yaml:"connections_guarantee" min:"-1" max:"16777216" doc:"connections that are there for a tenant whatever others use, of max_connections; -1 is an equal part of half"`
	ConnectionsMax         *int64 `yaml:"connections_max" min:"0" max:"16777216" doc:"connections that a tenant may have; 0 is any number"`
	SubscriptionsGuarantee *int64 `yaml:"subscriptions_guarantee" min:"-1" max:"16777216" doc:"the same for subscriptions, of max_subscriptions"`
	SubscriptionsMax       *int64 `yaml:"subscriptions_max" min:"0" max:"16777216" doc:"subscriptions that a tenant may have; 0 is any number"`
	WatchesGuarantee       *int64 `yaml:"watches_guarantee" min:"-1" max:"16777216" doc:"the same for watches of caches, of max_watches"`
	WatchesMax             *int64 `yaml:"watches_max" min:"0" max:"16777216" doc:"watches of caches that a tenant may have; 0 is any number"`

	PublishesPerSecond       *int64 `yaml:"publishes_per_second" min:"0" max:"1000000000" doc:"publishes per second of a tenant, a batch being one, with as many at once after a pause; 0 is any number"`
	PublishBytesPerSecond    *int64 `yaml:"publish_bytes_per_second" unit:"bytes" min:"0" max:"1099511627776" doc:"bytes of these per second, with as many at once after a pause; 0 is any number"`
	SubscribesPerSecond      *int64 `yaml:"subscribes_per_second" min:"0" max:"1000000000" doc:"subscriptions and watches that a tenant may make per second, with as many at once after a pause; 0 is any number"`
	AuthenticationsPerSecond *int64 `yaml:"authentications_per_second" min:"0" max:"1000000000" doc:"streams of a tenant that may authenticate per second, with as many at once after a pause; 0 is any number"`
}

// NoLimits returns the limits of a tenant about which nobody has said anything: automatic guarantees, no maximum and no
// rate.
func NoLimits() Limits {
	automatic, none := int64(-1), int64(0)
	return Limits{
		MemoryGuarantee: &automatic, MemoryMax: &none,
		ReadGuarantee: &automatic, ReadMax: &none,
		CacheGuarantee: &automatic, CacheMax: &none,
		ConnectionsGuarantee: &automatic, ConnectionsMax: &none,
		SubscriptionsGuarantee: &automatic, SubscriptionsMax: &none,
		WatchesGuarantee: &automatic, WatchesMax: &none,
		PublishesPerSecond: &none, PublishBytesPerSecond: &none, SubscribesPerSecond: &none, AuthenticationsPerSecond: &none,
	}
}

// Over returns the limits with what they leave open taken from others.
func (l Limits) Over(others Limits) Limits {
	own, from := reflect.ValueOf(&l).Elem(), reflect.ValueOf(others)
	for i := range own.NumField() {
		if own.Field(i).IsNil() {
			own.Field(i).Set(from.Field(i))
		}
	}
	return l
}

// Validate reports guarantees that are above their maximum.
func (l Limits) Validate() error {
	var errs []error
	for _, p := range []struct {
		key            string
		guarantee, max *int64
	}{
		{"memory", l.MemoryGuarantee, l.MemoryMax},
		{"read", l.ReadGuarantee, l.ReadMax},
		{"cache", l.CacheGuarantee, l.CacheMax},
		{"connections", l.ConnectionsGuarantee, l.ConnectionsMax},
		{"subscriptions", l.SubscriptionsGuarantee, l.SubscriptionsMax},
		{"watches", l.WatchesGuarantee, l.WatchesMax},
	} {
		if p.guarantee != nil && p.max != nil && *p.max > 0 && *p.guarantee > *p.max {
			errs = append(errs, fmt.Errorf("%s_guarantee is %d, above %s_max, which is %d", p.key, *p.guarantee, p.key, *p.max))
		}
	}
	return errors.Join(errs...)
}

// Namespace holds a tenant's streams and caches.
type Namespace struct {
	Streams map[string]Stream
	Caches  map[string]Cache
}

// Overflow is what happens when a subscription's queue is full. It is written as "block", "drop_new" or "drop_old".
type Overflow = ring.Overflow

// The policies of queues.
const (
	OverflowBlock   = ring.Block   // the publisher waits
	OverflowDropNew = ring.DropNew // the new batch is dropped for this subscription, which hears of it
	OverflowDropOld = ring.DropOld // the oldest batches of the queue are dropped, and the subscription hears of it
)

// Stream says how a stream treats its subscriptions and its past. Nil and 0 mean what the broker's settings say.
type Stream struct {
	Overflow     *Overflow `yaml:"overflow" words:"block,drop_new,drop_old" doc:"what happens when a subscription's queue is full"`
	QueueBatches int       `yaml:"queue_batches" unit:"batches" min:"1" max:"1048576" doc:"batches that a subscription's queue holds"`
	QueueBytes   int       `yaml:"queue_bytes" unit:"bytes" min:"1024" max:"2147483647" doc:"bytes that a subscription's queue holds"`
	ReplayBytes  int       `yaml:"replay_bytes" unit:"bytes" min:"-1" max:"2147483647" doc:"bytes of past events kept for new subscriptions; -1 for none"`

	// Durable says that the stream's events are kept in the broker's data directory. What follows is about such
	// streams alone.
	Durable         bool          `yaml:"durable" doc:"the stream's events are kept in the data directory"`
	Ack             *Ack          `yaml:"ack" words:"memory,os,device,quorum" doc:"how safe an event is when its publish is acknowledged"`
	RetentionBytes  int64         `yaml:"retention_bytes" unit:"bytes" min:"-1" max:"1152921504606846976" doc:"bytes that the stream's log keeps; -1 for any number"`
	RetentionAge    time.Duration `yaml:"retention_age" min:"-1ms" max:"876000h" doc:"age up to which events are kept, such as 72h; -1 for any age"`
	RetentionEvents int64         `yaml:"retention_events" min:"-1" max:"9223372036854775807" doc:"events that the stream's log keeps; -1 for any number"`
}

// Ack says how safe an event of a durable stream is when its publish is acknowledged and it is delivered.
type Ack uint8

// The classes of acknowledgement.
const (
	// AckDevice means that it survives a loss of power.
	AckDevice Ack = iota
	// AckOS means that it survives the end of the broker's process, however that comes. It is on the device a moment
	// later.
	AckOS
	// AckMemory means that the broker has it. It is delivered when it would be acknowledged with AckOS.
	AckMemory
	// AckQuorum means that most of a cluster's brokers have it.
	AckQuorum
)

// String returns the class as catalogs and settings name it.
func (a Ack) String() string {
	return [...]string{AckDevice: "device", AckOS: "os", AckMemory: "memory", AckQuorum: "quorum"}[min(a, AckQuorum)]
}

// MarshalText writes the name that [Ack.UnmarshalText] reads.
func (a Ack) MarshalText() ([]byte, error) { return []byte(a.String()), nil }

// UnmarshalText reads the name of a class, or of a mode of the reference that has the same meaning. It fails on any
// other word and leaves a as it was.
func (a *Ack) UnmarshalText(text []byte) error {
	switch strings.ToLower(string(text)) {
	case "device", "on_commit", "on-commit", "commit":
		*a = AckDevice
	case "os", "periodic", "none", "off":
		*a = AckOS
	case "memory":
		*a = AckMemory
	case "quorum":
		*a = AckQuorum
	default:
		return fmt.Errorf("catalog: unknown class of acknowledgement %q: want memory, os, device or quorum", text)
	}
	return nil
}

// errQuorum is why a class is refused.
var errQuorum = errors.New("quorum needs a cluster of brokers, which there is not yet: use device, os or memory")

// Validate reports settings that do not go together.
func (s Stream) Validate() error {
	if s.Ack != nil && *s.Ack == AckQuorum {
		return fmt.Errorf("ack: %w", errQuorum)
	}
	if !s.Durable && (s.Ack != nil || s.RetentionBytes != 0 || s.RetentionAge != 0 || s.RetentionEvents != 0) {
		return errors.New("ack and retention are of durable streams: add durable: true")
	}
	return nil
}

// DurableStreams returns the names of all durable streams, as tenant/namespace/stream, sorted.
func (c *Catalog) DurableStreams() []string {
	var all []string
	for tenant, t := range c.Tenants {
		for namespace, n := range t.Namespaces {
			for stream, s := range n.Streams {
				if s.Durable {
					all = append(all, tenant+"/"+namespace+"/"+stream)
				}
			}
		}
	}
	slices.Sort(all)
	return all
}

// Cache is a cache. It has no settings of its own yet.
type Cache struct{}

// Kind says what a change is about.
type Kind uint8

// The kinds of changes.
const (
	KindTenant Kind = iota
	KindStream
	KindCache
)

// Change is one step from a catalog to another: something is there from now on, or is as described, or is gone.
type Change struct {
	Kind                    Kind
	Removed                 bool
	Tenant, Namespace, Name string // as far as the kind has them

	Keys   auth.KeySet // of a tenant, and
	Limits Limits
	Stream Stream // of a stream
}

// Diff returns the changes that make one catalog of another, either of which may be nil for an empty one: first what is
// removed, the tenants after what was in them, then what is new or different, the tenants before what is in them. What
// is equal in both is in no change.
func Diff(from, to *Catalog) []Change {
	var removed, put []Change
	for _, name := range names(tenants(from), tenants(to)) {
		was, before := tenants(from)[name]
		is, after := tenants(to)[name]
		if after && (!before || !reflect.DeepEqual(was.Keys, is.Keys) || !reflect.DeepEqual(was.Limits, is.Limits)) {
			put = append(put, Change{Kind: KindTenant, Tenant: name, Keys: is.Keys, Limits: is.Limits})
		}
		for _, ns := range names(was.Namespaces, is.Namespaces) {
			was, is := was.Namespaces[ns], is.Namespaces[ns]
			for _, stream := range names(was.Streams, is.Streams) {
				was, before := was.Streams[stream]
				is, after := is.Streams[stream]
				c := Change{Kind: KindStream, Tenant: name, Namespace: ns, Name: stream, Stream: is}
				switch {
				case !after:
					c.Removed = true
					removed = append(removed, c)
				case !before || !reflect.DeepEqual(was, is):
					put = append(put, c)
				}
			}
			for _, cache := range names(was.Caches, is.Caches) {
				_, before := was.Caches[cache]
				_, after := is.Caches[cache]
				c := Change{Kind: KindCache, Tenant: name, Namespace: ns, Name: cache}
				switch {
				case !after:
					c.Removed = true
					removed = append(removed, c)
				case !before:
					put = append(put, c)
				}
			}
		}
		if !after {
			removed = append(removed, Change{Kind: KindTenant, Removed: true, Tenant: name})
		}
	}
	return append(removed, put...)
}

func tenants(c *Catalog) map[string]Tenant {
	if c == nil {
		return nil
	}
	return c.Tenants
}

// names returns the keys of both maps, sorted.
func names[V any](a, b map[string]V) []string {
	all := slices.AppendSeq(slices.Collect(maps.Keys(a)), maps.Keys(b))
	slices.Sort(all)
	return slices.Compact(all)
}
