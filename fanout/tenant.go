package fanout

import (
	"cmp"
	"errors"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/felix-mq/felix/internal/ledger"
)

// tenant is what the topics of one tenant have in common: who is charged, and what can be given up when that one uses
// too much.
type tenant struct {
	share   *ledger.Share
	own     bool            // the hub made the share
	scratch *ledger.Account // of the share, what consumers may use to write
	topics  int             // guarded by Hub.mu

	pressed atomic.Bool // a publish found no memory since the last sweep

	mu        sync.Mutex // guards all below; innermost but for queues and the ledger
	replaying []*Topic   // topics whose replay can be given up, in no order; Topic.replayIndex
	stuck     []seen     // not blocking, with something held and no movement: found by the last sweep
	slow      []seen     // not blocking, moving, with a queue that is old
}

// seen is a subscription as the sweep saw it: if it has moved since, it is spared.
type seen struct {
	sub   *Subscription
	moves uint64
}

// slowAfter is how old what is queued for a subscription has to be for it to count as slow.
const slowAfter = time.Second

// memoryError reports whether an error of [packer.keep] means that there is no memory.
func memoryError(err error) bool {
	return errors.Is(err, ledger.ErrShort) || errors.Is(err, ledger.ErrLimit)
}

// chargeSlots charges the tenant for the slots of queues, or gives them back.
func (n *tenant) chargeSlots(bytes int) bool {
	if bytes < 0 {
		n.share.Release(int64(-bytes))
		return true
	}
	return n.share.Charge(int64(bytes)) == nil
}

// addReplay notes that the topic's replay holds something, under the topic's turn.
func (n *tenant) addReplay(t *Topic) {
	n.mu.Lock()
	defer n.mu.Unlock()
	t.replayIndex = len(n.replaying)
	n.replaying = append(n.replaying, t)
}

func (n *tenant) removeReplay(t *Topic) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.replaying = swapRemove(n.replaying, t.replayIndex, func(o *Topic) { o.replayIndex = t.replayIndex })
	t.replayIndex = -1
}

// mayGive reports whether there is anything that give could give up.
func (n *tenant) mayGive() bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return len(n.replaying)+len(n.stuck)+len(n.slow) > 0
}

// someReplay returns up to a batch of topics that have replay.
func (n *tenant) someReplay(out []*Topic) []*Topic {
	n.mu.Lock()
	defer n.mu.Unlock()
	from := max(0, len(n.replaying)-cap(out))
	return append(out[:0], n.replaying[from:]...)
}

// pop takes the last of a list of the tenant's.
func (n *tenant) pop(list *[]seen) (s seen, ok bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	last := len(*list) - 1
	if last < 0 {
		return s, false
	}
	s, (*list)[last] = (*list)[last], s
	*list = (*list)[:last]
	return s, true
}

// give gives memory of the tenant up until enough reports true: its replay first, then the queues of subscriptions
// whose consumer does not move, then those of slow ones, and last it ends subscriptions that are stuck in a write and
// hold something by that. It reports whether anything was given up.
func (n *tenant) give(enough func() bool) (gave bool) {
	var batch [32]*Topic
	for !enough() {
		topics := n.someReplay(batch[:0])
		given := false
		for _, t := range topics {
			if enough() {
				return true
			}
			given = t.forget() || given
		}
		if !given {
			break
		}
		gave = true
	}
	var cut []seen
	for _, list := range []*[]seen{&n.stuck, &n.slow} {
		for !enough() {
			s, ok := n.pop(list)
			if !ok {
				break
			}
			if s.sub.topic.empty(s) {
				gave = true
			}
			if list == &n.stuck {
				cut = append(cut, s)
			}
		}
	}
	// Those stuck for longest first: they were found in the order of their topics, which says nothing about age.
	slices.SortFunc(cut, func(a, b seen) int { return cmp.Compare(b.sub.stuckTicks.Load(), a.sub.stuckTicks.Load()) })
	for _, s := range cut {
		if enough() || s.sub.stuckTicks.Load() < cutAfter {
			break
		}
		if s.sub.cutIf(s.moves) {
			gave = true
		}
	}
	return gave
}

// cutAfter is for how many sweeps a subscription has been stuck in a write that is ended to free what it holds: 2 s.
const cutAfter = int32(2 * time.Second / sweepEvery)
