package broker

import (
	"sync"

	"github.com/felix-mq/felix/internal/ledger"
)

// tenants are those that the broker knows, and the budgets that they share.
type tenants struct {
	reads     *ledger.Budget // memory of unfinished requests, unread replies and open streams of tenants
	strangers *ledger.Budget // the same of connections on which nobody has authenticated; each of them has a share

	mu     sync.RWMutex // guards byName; nothing else is locked under it but the ledger
	byName map[string]*tenant
}

// strangersPart is the part of Config.ReadBytes that connections have together on which nobody has authenticated.
const strangersPart = 4

func newTenants(cfg *Config) *tenants {
	strangers := cfg.ReadBytes / strangersPart
	return &tenants{
		reads:     ledger.New(cfg.ReadBytes - strangers),
		strangers: ledger.New(strangers),
		byName:    make(map[string]*tenant),
	}
}

// tenant is what the broker holds for one tenant, and how much that may be. Its methods may be called from any
// goroutine.
type tenant struct {
	name  string
	reads *ledger.Share
}

// get returns a tenant, which it makes if there is none.
func (t *tenants) get(name string) *tenant {
	t.mu.RLock()
	n := t.byName[name]
	t.mu.RUnlock()
	if n != nil {
		return n
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if n = t.byName[name]; n == nil {
		n = &tenant{name: name, reads: t.reads.Share(ledger.Automatic, 0)}
		t.byName[name] = n
	}
	return n
}

// readBytes is what unfinished requests, unread replies and open streams hold.
func (t *tenants) readBytes() int64 { return t.reads.Used() + t.strangers.Used() }
