package buf

import "sync/atomic"

// Spare is the size in bytes of a charge that only an account's own limit can refuse, not its parent's: what everybody
// needs to get on stays available when others have used up what is shared.
const Spare = 64 << 10

// Account counts the bytes that one party holds, and refuses more than its limit. An account may have a parent, which
// counts those of all its children. It may be used from many goroutines.
type Account struct {
	parent *Account
	limit  atomic.Int64
	used   atomic.Int64
}

// NewAccount returns an account with a limit in bytes. parent may be nil.
func NewAccount(limit int64, parent *Account) *Account {
	a := &Account{parent: parent}
	a.limit.Store(limit)
	return a
}

// SetLimit changes the limit. What is charged already stays.
func (a *Account) SetLimit(limit int64) { a.limit.Store(limit) }

// Charge adds n bytes to the account and its parents, or reports that there is no room and adds nothing.
func (a *Account) Charge(n int) bool {
	if a.used.Add(int64(n)) > a.limit.Load() {
		a.used.Add(-int64(n))
		return false
	}
	if a.parent == nil {
		return true
	}
	if n <= Spare {
		a.parent.force(n)
		return true
	}
	if !a.parent.Charge(n) {
		a.used.Add(-int64(n))
		return false
	}
	return true
}

func (a *Account) force(n int) {
	for ; a != nil; a = a.parent {
		a.used.Add(int64(n))
	}
}

// Release gives back what Charge added.
func (a *Account) Release(n int) { a.force(-n) }

// Used returns the bytes that are charged.
func (a *Account) Used() int64 { return a.used.Load() }
