// Package ledger counts what is held, by owner, against bounds: bytes of memory, and also connections, subscriptions
// or anything else that can be counted. It owns the rule that what is held has been charged before.
//
// A [Budget] is what the process has of one kind of thing. A [Share] is one tenant's part of it, with a guarantee and a
// maximum. An [Account] is a smaller owner inside a share: a connection, a stream, a subscription.
//
//	Budget ── Share (tenant) ── Account (connection) ── Account (stream)
//	  max       guarantee, max       limit                  limit
//
// The guarantees of all shares are set aside. What a share uses beyond its guarantee comes from the common part, which
// is the budget without all guarantees:
//
//	├──── guarantees of all shares ────┤──────────── common part ────────────┤
//	0                                                                       max
//
// So a tenant within its guarantee is never refused because of another one, and a refusal never disturbs anybody: a
// charge is decided in one step under the share's lock and is never added first and taken back later.
//
// What to give up when the common part is spent is left to the callers; [Budget.Furthest] names the share that has to
// give first. Begin at [New], [Budget.Share], [Share.Charge] and [NewAccount].
package ledger

import (
	"errors"
	"fmt"
	"math/bits"
	"sync"
	"sync/atomic"
)

// Reasons for which a charge is refused. Nothing was charged.
var (
	// ErrLimit means that the owner, or one of the owners it belongs to, has reached its own limit.
	ErrLimit = errors.New("ledger: the owner's limit is reached")
	// ErrShort means that the owner is within its own limits, but above its guarantee, and that the common part of the
	// budget is spent. It may succeed when others have released something.
	ErrShort = errors.New("ledger: the common part of the budget is spent")
	// ErrAccountLimit is the [ErrLimit] of an [Account]: the share, which it belongs to, was not asked.
	ErrAccountLimit = fmt.Errorf("%w, an account's", ErrLimit)
)

// Owner is what can be charged: a [Share] or an [Account].
type Owner interface {
	// Charge adds n, which is not negative, to the owner and to all owners it belongs to. If one of them refuses, it
	// returns [ErrLimit] or [ErrShort] and nothing is charged. It does not allocate or block.
	Charge(n int64) error
	// Force is Charge without bounds, for what is held already. It keeps the counts true.
	Force(n int64)
	// Release gives back what was charged.
	Release(n int64)
	// Used returns what is charged now.
	Used() int64
}

// Budget is what a process has of one kind of thing. Its methods may be called from any goroutine.
type Budget struct {
	max    atomic.Int64
	used   atomic.Int64 // by all shares
	common atomic.Int64 // of that, beyond guarantees
	set    atomic.Int64 // aside: the sum of all guarantees

	mu     sync.Mutex // guards what follows and the guarantees of all shares
	shares []*Share
	fixed  int64 // the sum of the guarantees that are not automatic
	cut    int   // shares that have less of that than they are to have
	autos  int   // shares whose guarantee is automatic

	waiting atomic.Int32 // shares in which somebody waits
	next    int          // where the search for one to wake goes on, guarded by mu
}

// New returns a budget of limit units, which nobody uses yet.
func New(limit int64) *Budget {
	b := &Budget{}
	b.max.Store(limit)
	return b
}

// Max returns the budget's bound.
func (b *Budget) Max() int64 { return b.max.Load() }

// Used returns what all shares use together.
func (b *Budget) Used() int64 { return b.used.Load() }

// Common returns how much of the common part is used, and how large it is.
func (b *Budget) Common() (used, size int64) { return b.common.Load(), b.max.Load() - b.set.Load() }

// Cut returns how many shares have less than the guarantee that they were made for, because the budget is too small for
// all of them.
func (b *Budget) Cut() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.cut
}

// takeCommon charges n units to the common part. The size may shrink under what is used; then every charge is refused.
func (b *Budget) takeCommon(n int64) bool {
	for {
		used := b.common.Load()
		if used+n > b.max.Load()-b.set.Load() {
			return false
		}
		if b.common.CompareAndSwap(used, used+n) {
			return true
		}
	}
}

// Automatic is a guarantee that stands for an equal part of half of what is not guaranteed to others by a number.
const Automatic = -1

// Share returns a new share, which [Share.Close] ends. guarantee is what the share can always have, or [Automatic]. It
// is cut to what is not set aside for others yet, until they have less, and to limit. limit bounds the share; 0 means
// that only the budget does.
func (b *Budget) Share(guarantee, limit int64) *Share {
	s := &Share{b: b}
	b.mu.Lock()
	defer b.mu.Unlock()
	s.index = len(b.shares)
	b.shares = append(b.shares, s)
	s.setLocked(guarantee, limit)
	return s
}

// automaticLocked returns the guarantee of each automatic share. The number of shares is rounded up to a power of two,
// so that the guarantees change with few of the shares that come.
func (b *Budget) automaticLocked() int64 {
	if b.autos == 0 {
		return 0
	}
	return (b.max.Load() - b.fixed) / 2 >> bits.Len(uint(b.autos-1))
}

// divideLocked gives all automatic shares the same guarantee.
func (b *Budget) divideLocked() {
	part := b.automaticLocked()
	for _, s := range b.shares {
		if s.automatic {
			s.guaranteeLocked(part)
		}
	}
}

// Furthest returns the share that is furthest above its guarantee, but none of those that are excepted; nil if none is
// above. It looks at every share, so it is for the moment when the common part is spent, not for each charge.
func (b *Budget) Furthest(except map[*Share]bool) *Share {
	b.mu.Lock()
	defer b.mu.Unlock()
	var furthest *Share
	most := int64(0)
	for _, s := range b.shares {
		if above := s.Above(); above > most && !except[s] {
			furthest, most = s, above
		}
	}
	return furthest
}

// Share is one tenant's part of a [Budget]. Its methods may be called from any goroutine.
type Share struct {
	b     *Budget
	index int // in Budget.shares, guarded by Budget.mu

	automatic bool  // guarded by Budget.mu
	wanted    int64 // the guarantee before it was cut, 0 if it is automatic; guarded by Budget.mu

	mu        sync.Mutex // guards what follows; the atomics are read without it
	guarantee int64      // is changed with Budget.mu held as well
	max       int64      // 0: none
	used      atomic.Int64
	above     atomic.Int64 // what it has of the common part

	waiting atomic.Int32 // length of line
	line    []*Waiter    // guarded by mu

	// Tag leads the maker of the share to what the share is about. It is set before the share is used.
	Tag any
}

// Set changes guarantee and maximum, as [Budget.Share] describes them. What is charged already stays.
func (s *Share) Set(guarantee, limit int64) {
	s.b.mu.Lock()
	defer s.b.mu.Unlock()
	if s.index >= 0 {
		s.setLocked(guarantee, limit)
	}
}

func (s *Share) setLocked(guarantee, limit int64) {
	b := s.b
	s.mu.Lock()
	s.max = limit
	s.mu.Unlock()
	before := b.automaticLocked()
	if s.automatic {
		s.automatic = false
		b.autos--
	} else {
		b.takeBackLocked(s)
	}
	if guarantee == Automatic {
		s.automatic, s.wanted = true, 0
		b.autos++
	} else {
		s.wanted = guarantee
		if limit > 0 {
			s.wanted = min(guarantee, limit)
		}
		b.grantLocked(s)
	}
	b.raiseLocked()
	if after := b.automaticLocked(); after != before {
		b.divideLocked()
	} else if s.automatic {
		s.guaranteeLocked(after)
	}
}

// grantLocked gives a share its guarantee by number, as far as it is not set aside for others.
func (b *Budget) grantLocked(s *Share) {
	n := min(s.wanted, b.max.Load()-b.fixed)
	b.fixed += n
	if n < s.wanted {
		b.cut++
	}
	s.guaranteeLocked(n)
}

// takeBackLocked undoes grantLocked, but for what the share itself knows.
func (b *Budget) takeBackLocked(s *Share) {
	b.fixed -= s.guarantee
	if s.guarantee < s.wanted {
		b.cut--
	}
}

// raiseLocked gives shares whose guarantee was cut what is not set aside any more.
func (b *Budget) raiseLocked() {
	for _, s := range b.shares {
		if b.cut == 0 || b.fixed == b.max.Load() {
			return
		}
		if s.guarantee < s.wanted {
			b.takeBackLocked(s)
			b.grantLocked(s)
		}
	}
}

// guaranteeLocked changes the guarantee, with Budget.mu held. What is above the share's maximum it could never use.
func (s *Share) guaranteeLocked(n int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.max > 0 {
		n = min(n, s.max)
	}
	s.b.set.Add(n - s.guarantee)
	s.guarantee = n
	above := max(s.used.Load()-n, 0)
	s.b.common.Add(above - s.above.Load())
	s.above.Store(above)
}

// Close gives the guarantee back and forgets the share. What is charged may still be released.
func (s *Share) Close() {
	b := s.b
	b.mu.Lock()
	defer b.mu.Unlock()
	if s.index < 0 {
		return
	}
	s.setLocked(0, s.Max())
	last := len(b.shares) - 1
	b.shares[s.index] = b.shares[last]
	b.shares[s.index].index = s.index
	b.shares[last] = nil
	b.shares = b.shares[:last]
	s.index = -1
}

// Guarantee returns what the share can always have.
func (s *Share) Guarantee() int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.guarantee
}

// Max returns the share's own bound; 0 if there is none.
func (s *Share) Max() int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.max
}

// Refusal returns the reason why a charge of n was refused: [ErrLimit] or else [ErrShort].
func (s *Share) Refusal(n int64) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.max > 0 && s.used.Load()+n > s.max {
		return ErrLimit
	}
	return ErrShort
}

// Reach returns the most that the share can have while no other share is above its guarantee.
func (s *Share) Reach() int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	reach := s.guarantee + s.b.max.Load() - s.b.set.Load()
	if s.max > 0 {
		reach = min(reach, s.max)
	}
	return reach
}

// Used implements [Owner].
func (s *Share) Used() int64 { return s.used.Load() }

// Above returns how much of what the share uses is beyond its guarantee.
func (s *Share) Above() int64 { return s.above.Load() }

// Charge implements [Owner].
func (s *Share) Charge(n int64) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	used := s.used.Load() + n
	if s.max > 0 && used > s.max {
		return ErrLimit
	}
	if above := used - s.guarantee; above > s.above.Load() {
		if !s.b.takeCommon(above - s.above.Load()) {
			return ErrShort
		}
		s.above.Store(above)
	}
	s.used.Store(used)
	s.b.used.Add(n)
	return nil
}

// Force implements [Owner].
func (s *Share) Force(n int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	used := s.used.Load() + n
	if above := used - s.guarantee; above > s.above.Load() {
		s.b.common.Add(above - s.above.Load())
		s.above.Store(above)
	}
	s.used.Store(used)
	s.b.used.Add(n)
}

// Release implements [Owner]. It wakes the first that waits in this share, and one in another share if some of the
// common part is free again.
func (s *Share) Release(n int64) {
	s.mu.Lock()
	used := s.used.Load() - n
	if used < 0 {
		s.mu.Unlock()
		panic("ledger: more released than charged")
	}
	s.used.Store(used)
	s.b.used.Add(-n)
	common := false
	if above := max(used-s.guarantee, 0); above < s.above.Load() {
		s.b.common.Add(above - s.above.Load())
		s.above.Store(above)
		common = true
	}
	s.wakeFirstLocked()
	s.mu.Unlock()
	if common && s.b.waiting.Load() > 0 {
		s.b.wakeOther(s)
	}
}

// wakeOther wakes the first that waits in some other share, a different one each time.
func (b *Budget) wakeOther(but *Share) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for range b.shares {
		b.next++
		if b.next >= len(b.shares) {
			b.next = 0
		}
		s := b.shares[b.next]
		if s == but || s.waiting.Load() == 0 {
			continue
		}
		s.mu.Lock()
		s.wakeFirstLocked()
		s.mu.Unlock()
		return
	}
}

// Waiter is a place in a share's line. A token in C says: try again. Those that wait are served in their order, so that
// small charges cannot keep a large one waiting for ever.
type Waiter struct {
	C chan struct{}
}

// Join puts the caller at the end of the line. It must try after that: a release before it went unseen.
func (s *Share) Join() *Waiter {
	w := &Waiter{C: make(chan struct{}, 1)}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.line = append(s.line, w)
	if s.waiting.Add(1) == 1 {
		s.b.waiting.Add(1)
	}
	return w
}

// Leave takes w out of the line. If it was first, the next one tries.
func (s *Share) Leave(w *Waiter) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i, x := range s.line {
		if x != w {
			continue
		}
		s.line = append(s.line[:i], s.line[i+1:]...)
		if s.waiting.Add(-1) == 0 {
			s.b.waiting.Add(-1)
		}
		if i == 0 {
			s.wakeFirstLocked()
		}
		return
	}
}

// First reports whether w is the first of the line.
func (s *Share) First(w *Waiter) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.line) > 0 && s.line[0] == w
}

// Waiting returns how many wait in the share.
func (s *Share) Waiting() int { return int(s.waiting.Load()) }

func (s *Share) wakeFirstLocked() {
	if len(s.line) == 0 {
		return
	}
	select {
	case s.line[0].C <- struct{}{}:
	default:
	}
}

// Account is an owner inside another one, with a limit of its own. Its methods may be called from any goroutine.
type Account struct {
	mu     sync.Mutex // guards all below; used is read without it
	parent Owner
	limit  int64
	used   atomic.Int64
}

// NewAccount returns an account with a limit, inside parent. A limit of 0 or less means that only parent bounds it.
// parent may be nil.
func NewAccount(limit int64, parent Owner) *Account {
	return &Account{parent: parent, limit: limit}
}

// SetLimit changes the limit. What is charged already stays.
func (a *Account) SetLimit(limit int64) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.limit = limit
}

// Move makes the account one of another owner, with another limit. What is charged already goes along, without bounds:
// it is held. For a moment both owners are charged.
func (a *Account) Move(to Owner, limit int64) {
	a.mu.Lock()
	defer a.mu.Unlock()
	used := a.used.Load()
	to.Force(used)
	if a.parent != nil {
		a.parent.Release(used)
	}
	a.parent, a.limit = to, limit
}

// Charge implements [Owner].
func (a *Account) Charge(n int64) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	used := a.used.Load() + n
	if a.limit > 0 && used > a.limit {
		return ErrAccountLimit
	}
	if a.parent != nil {
		if err := a.parent.Charge(n); err != nil {
			return err
		}
	}
	a.used.Store(used)
	return nil
}

// Force implements [Owner].
func (a *Account) Force(n int64) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.used.Add(n)
	if a.parent != nil {
		a.parent.Force(n)
	}
}

// Release implements [Owner].
func (a *Account) Release(n int64) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.used.Add(-n) < 0 {
		panic("ledger: more released than charged")
	}
	if a.parent != nil {
		a.parent.Release(n)
	}
}

// Used implements [Owner].
func (a *Account) Used() int64 { return a.used.Load() }
