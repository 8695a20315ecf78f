package client

import (
	"context"
	"math/rand/v2"
	"sync"
	"time"
)

// backoff gives the pauses between attempts: each is anywhere between nothing and a bound that doubles from base up to
// limit ("full jitter"), so that the clients of a broker that comes back do not come all at once.
type backoff struct {
	base, limit time.Duration
	attempts    int // since the last success
}

func (b *backoff) next() time.Duration {
	bound := b.limit
	if b.attempts < 62 && b.base <= b.limit>>b.attempts {
		bound = b.base << b.attempts
	}
	b.attempts++
	return time.Duration(rand.Uint64N(uint64(bound) + 1))
}

// sleep waits for d, or fails with the reason for which ctx ended.
func sleep(ctx context.Context, d time.Duration) error {
	if d > 0 {
		t := time.NewTimer(d)
		defer t.Stop()
		select {
		case <-t.C:
		case <-ctx.Done():
		}
	}
	return context.Cause(ctx)
}

// pace spaces the attempts to reach the broker: what one connection learns counts for all. It may be used from many
// goroutines.
type pace struct {
	mu        sync.Mutex // guards all below
	backoff   backoff
	notBefore time.Time
}

// wait waits until the next attempt may be made.
func (p *pace) wait(ctx context.Context) error {
	p.mu.Lock()
	d := time.Until(p.notBefore)
	p.mu.Unlock()
	return sleep(ctx, d)
}

// report notes how an attempt went.
func (p *pace) report(ok bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch now := time.Now(); {
	case ok:
		p.backoff.attempts, p.notBefore = 0, time.Time{}
	case now.After(p.notBefore): // attempts that failed together count once
		p.notBefore = now.Add(p.backoff.next())
	}
}
