// Package catalog is the list of what a broker serves: tenants with the keys that verify their tokens, and in their
// namespaces streams and caches.
//
// A broker takes it from a [Source]: a snapshot first, then changes. [File] is a source that reads a YAML file and follows
// it while it changes; a control plane will be another. [Load] reads such a file, [Write] writes one. The layout of the
// file is in docs/catalog.md.
//
// What becomes of what is added, changed and removed is the broker's business.
package catalog

import (
	"context"
	"maps"
	"reflect"
	"slices"

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
	Namespaces map[string]Namespace
}

// Namespace holds a tenant's streams and caches.
type Namespace struct {
	Streams map[string]Stream
	Caches  map[string]Cache
}

// Stream says how a stream treats its subscriptions and its past. Nil and 0 mean what the broker's settings say.
type Stream struct {
	Overflow     *ring.Overflow `yaml:"overflow" words:"block,drop_new,drop_old" doc:"what happens when a subscription's queue is full"`
	QueueBatches int            `yaml:"queue_batches" unit:"batches" min:"1" max:"1048576" doc:"batches that a subscription's queue holds"`
	QueueBytes   int            `yaml:"queue_bytes" unit:"bytes" min:"1024" max:"2147483647" doc:"bytes that a subscription's queue holds"`
	ReplayBytes  int            `yaml:"replay_bytes" unit:"bytes" min:"-1" max:"2147483647" doc:"bytes of past events kept for new subscriptions; -1 for none"`
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

	Keys   auth.KeySet // of a tenant
	Stream Stream      // of a stream
}

// Diff returns the changes that make one catalog of another, either of which may be nil for an empty one: first what is removed,
// the tenants after what was in them, then what is new or different, the tenants before what is in them. What is equal in
// both is in no change.
func Diff(from, to *Catalog) []Change {
	var removed, put []Change
	for _, name := range names(tenants(from), tenants(to)) {
		was, before := tenants(from)[name]
		is, after := tenants(to)[name]
		if after && (!before || !reflect.DeepEqual(was.Keys, is.Keys)) {
			put = append(put, Change{Kind: KindTenant, Tenant: name, Keys: is.Keys})
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
