package cache

import "slices"

// EventKind is what has happened to an entry.
type EventKind uint8

// The kinds.
const (
	Set     EventKind = 1
	Deleted EventKind = 2
	Expired EventKind = 3
	Evicted EventKind = 4
	// Removed means that the scope was removed, after all of its entries. What is reported after it means nothing.
	Removed EventKind = 5
)

// Event says that an entry has changed. Events of one key come in the order of their versions.
type Event struct {
	Kind    EventKind
	Key     []byte // valid during the call; nil for Removed
	Version uint64 // of the value that was set, or of the removal; 0 for Removed
}

type watcher struct{ f func(Event) }

// Watch calls f with each change of the scope's entries, on the goroutine that makes it and before its caller hears of
// it. f must not block and not call the store. It may be called a last time while stop returns. A scope that has been
// removed is not watched: ok is false.
func (c *Cache) Watch(f func(Event)) (stop func(), ok bool) {
	w := &watcher{f}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.removed.Load() {
		return nil, false
	}
	c.setWatchersLocked(func(list []*watcher) []*watcher { return append(list, w) })
	return func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.setWatchersLocked(func(list []*watcher) []*watcher {
			return slices.DeleteFunc(list, func(x *watcher) bool { return x == w })
		})
	}, true
}

func (c *Cache) setWatchersLocked(change func([]*watcher) []*watcher) {
	var list []*watcher
	if p := c.watchers.Load(); p != nil {
		list = slices.Clone(*p)
	}
	list = change(list)
	c.watchers.Store(&list)
}

// notify is called under the lock of the entry's shard, which keeps the events of a key in order, unless it is about
// the scope.
func (c *Cache) notify(e Event) {
	p := c.watchers.Load()
	if p == nil {
		return
	}
	for _, w := range *p {
		w.f(e)
	}
}
