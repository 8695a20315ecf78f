package broker

import (
	"sync"

	"github.com/felix-mq/felix/codec"
)

// reasonFenced is the reason of the close of a connection that its client has given up.
const reasonFenced = "replaced by another connection of the client"

// fences are the newest connections by fence. A client that has given up a connection, because it heard nothing for a
// while, makes another one and goes on there. What it has sent before may still lie in the broker's socket, after a
// pause of the broker for instance, and must not be carried out after what comes on the new connection
// (docs/protocol/extensions.md#fence). Its methods may be called from any goroutine.
type fences struct {
	mu     sync.Mutex // guards newest
	newest map[fenceKey]*conn
}

type fenceKey struct{ tenant, id string }

// fence takes note of the fence that a good token came with. When it returns true, nothing is carried out any more of
// the connections before this one. It returns false if this connection has been given up. Only the first fence of a
// connection counts. c.authenticating is held.
func (c *conn) fence(tenant string, text []byte) bool {
	f, ok := codec.ParseFence(text)
	if !ok || c.fenceKey.id != "" {
		return !c.fenced.Load()
	}
	all := &c.b.fences
	key := fenceKey{tenant, f.ID}
	all.mu.Lock()
	before := all.newest[key]
	if before != nil && before.fenceNumber > f.Number {
		all.mu.Unlock()
		c.fenced.Store(true)
		c.closeLater(reasonFenced)
		return false
	}
	c.fenceKey, c.fenceNumber = key, f.Number
	all.newest[key] = c
	all.mu.Unlock()
	if before != nil {
		before.fenced.Store(true)
		_ = before.qc.Close(0, reasonFenced) // ends what waits
		before.carrying.Lock()               // waits for what does not end by that, and nothing begins afterwards
		defer before.carrying.Unlock()
	}
	return true
}

// unfence forgets the fence of a connection that has ended.
func (c *conn) unfence() {
	all := &c.b.fences
	all.mu.Lock()
	defer all.mu.Unlock()
	if all.newest[c.fenceKey] == c {
		delete(all.newest, c.fenceKey)
	}
}
