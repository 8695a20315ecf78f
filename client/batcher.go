package client

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"
)

// Batching bounds the batches that [Publisher.PublishAsync] gathers. Zero values mean the defaults in brackets.
type Batching struct {
	MaxEvents int // in one batch [512]; at most 65536
	MaxBytes  int // in one batch, with 4 for each event [64 KiB]; at most half of a frame. A larger event goes alone

	// Linger is how long the first event of a batch waits for others. With 0, the default, nothing waits: a batch is
	// what has gathered while the one before it was being written, so that batches are large under load and single
	// events leave at once.
	Linger time.Duration
}

const (
	defaultBatchEvents = 512
	maxBatchEvents     = 1 << 16
	defaultBatchBytes  = 64 << 10
	// bytesPerEvent is what a frame holds for each event besides its payload.
	bytesPerEvent = 4
)

// orDefaults fills in what is not set. A batch of such bounds fits a frame of maxFrame bytes, in JSON too.
func (b Batching) orDefaults(maxFrame int) (Batching, error) {
	limit := maxFrame / 2
	if b.MaxEvents < 0 || b.MaxEvents > maxBatchEvents || b.MaxBytes < 0 || b.MaxBytes > limit || b.Linger < 0 {
		return b, fmt.Errorf("client: batches of %d events, %d bytes and %v: no more than %d events and %d bytes, and nothing negative",
			b.MaxEvents, b.MaxBytes, b.Linger, maxBatchEvents, limit)
	}
	if b.MaxEvents == 0 {
		b.MaxEvents = defaultBatchEvents
	}
	if b.MaxBytes == 0 {
		b.MaxBytes = min(defaultBatchBytes, limit)
	}
	return b, nil
}

// WithBatching sets how [Publisher.PublishAsync] gathers events into batches.
func WithBatching(b Batching) Option { return func(o *options) { o.batching = b } }

// batcher gathers the events of one publisher into batches and publishes them in the background, in the order in which
// they were added.
type batcher struct {
	busy atomic.Bool // a goroutine sends, or is about to; changes under mu

	mu      sync.Mutex    // guards all below
	filling *eventBatch   // takes what is added; the goroutine takes it when it has written the one before
	begun   uint64        // batches that were filled, or are being filled
	written uint64        // batches of those that have been written, or have failed
	urgent  bool          // do not linger
	wake    chan struct{} // capacity 1: the batch is full, or urgent
	moved   chan struct{} // closed, and replaced, when a batch was taken or written
	waiters int           // for moved
	free    []*eventBatch

	work     func()      // the method value of sendBatches, made once
	calling  sync.Mutex  // held while callbacks run
	lingered *time.Timer // of the goroutine that sends
}

// eventBatch is a batch with a copy of its payloads.
type eventBatch struct {
	p        *Publisher
	flat     []byte
	payloads [][]byte
	dones    []func(error) // one for each payload, or nil
	span     publishGroups // from the first event to the outcome
}

// PublishAsync copies one event into the batch that is being gathered, and returns. Batches are published one after the
// other, in the order of the calls; [WithBatching] says when they leave. Publish and Send wait until what was gathered
// before them has left.
//
// done is called once with the outcome, as [Publisher.Publish] would return it: one event after the other, on a
// goroutine that the next outcomes wait for. So it must not block, as the methods of the client may. The outcome of an
// event that cannot be gathered is reported before PublishAsync returns. done may be nil: then [Publisher.Flush] and
// [Client.Flush] fail with the first failure of such an event.
//
// PublishAsync waits while the batch is full and the one before it cannot leave: because as much is in flight as
// [WithInFlight] allows, because the broker pushes back, or, with [WhileDownBlock], because there is no connection. If
// ctx ends before the event is in a batch, it is not published. Afterwards ctx does nothing: the event leaves with its
// batch, within the request timeout.
func (p *Publisher) PublishAsync(ctx context.Context, payload []byte, done func(error)) {
	if err := p.gather(ctx, payload, done); err != nil {
		p.report(done, err)
	}
}

// report gives the outcome of an event to its callback, or to Flush.
func (p *Publisher) report(done func(error), err error) {
	switch {
	case done != nil:
		done(err)
	case err != nil && !errors.Is(err, ErrNotMade): // there is nothing to note it in; Flush fails with it anyway
		p.sent.losses.note(err)
		p.c.losses.note(err)
	}
}

// gather adds an event to the batch that is being filled.
func (p *Publisher) gather(ctx context.Context, payload []byte, done func(error)) error {
	switch {
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case p.usable() != nil:
		return p.usable()
	}
	b := &p.batch
	b.mu.Lock()
	defer b.mu.Unlock()
	for b.filling != nil && !p.fits(b.filling, len(payload)) {
		if err := p.awaitMove(ctx); err != nil {
			return err
		}
	}
	if b.filling == nil {
		span, err := p.begin()
		if err != nil {
			return err
		}
		if !b.busy.Load() && !p.startBatcher() {
			span.end()
			return ErrClosed
		}
		b.begun++
		b.filling = p.freeBatch()
		b.filling.span = span
	}
	f := b.filling
	f.flat = append(f.flat, payload...)
	f.payloads = append(f.payloads, f.flat[len(f.flat)-len(payload):]) // moved by cut if flat grows
	f.dones = append(f.dones, done)
	if !p.fits(f, 0) {
		b.signal()
	}
	return nil
}

// awaitGathered waits until what was gathered before has been written, so that the calls of one goroutine stay in
// order.
func (p *Publisher) awaitGathered(ctx context.Context, deadline int64) error {
	b := &p.batch
	if !b.busy.Load() {
		return nil
	}
	ctx, cancel := p.c.boundAt(ctx, deadline)
	defer cancel()
	b.mu.Lock()
	defer b.mu.Unlock()
	for all := b.begun; b.written < all; {
		if err := p.awaitMove(ctx); err != nil {
			return err
		}
	}
	return nil
}

// awaitMove waits until a batch has been taken or written. The caller holds the batcher's lock, which is free
// meanwhile.
func (p *Publisher) awaitMove(ctx context.Context) error {
	b := &p.batch
	moved := b.moved
	b.waiters++
	b.signal()
	b.mu.Unlock()
	select {
	case <-moved:
	case <-ctx.Done():
	case <-p.c.ctx.Done():
	}
	b.mu.Lock()
	b.waiters--
	switch {
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case p.c.ctx.Err() != nil:
		return ErrClosed
	}
	return nil
}

// moveLocked ends the waits for a move.
func (b *batcher) moveLocked() {
	if b.waiters > 0 {
		close(b.moved)
		b.moved = make(chan struct{})
	}
}

// fits reports whether an event of n bytes belongs into a batch as well.
func (p *Publisher) fits(f *eventBatch, n int) bool {
	o, events := &p.c.o.batching, len(f.payloads)
	return events == 0 || events < o.MaxEvents && len(f.flat)+n+bytesPerEvent*(events+1) <= o.MaxBytes
}

// startBatcher starts the goroutine that sends. The caller holds the batcher's lock.
func (p *Publisher) startBatcher() bool {
	b := &p.batch
	if b.wake == nil {
		b.wake, b.moved, b.lingered = make(chan struct{}, 1), make(chan struct{}), time.NewTimer(time.Hour)
		b.lingered.Stop()
		b.work = p.sendBatches
	}
	c := p.c
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.startLocked(b.work) {
		return false
	}
	b.busy.Store(true)
	c.batchers[p] = struct{}{}
	return true
}

// signal ends the wait of the goroutine that lingers.
func (b *batcher) signal() {
	select {
	case b.wake <- struct{}{}:
	default:
	}
}

func (p *Publisher) freeBatch() *eventBatch {
	b := &p.batch
	if n := len(b.free); n > 0 {
		f := b.free[n-1]
		b.free = b.free[:n-1]
		return f
	}
	return &eventBatch{p: p}
}

// sendBatches publishes batches until none is left. It is the goroutine of batcher.busy.
func (p *Publisher) sendBatches() {
	b := &p.batch
	b.mu.Lock()
	defer b.mu.Unlock()
	for b.filling != nil {
		if linger := p.c.o.batching.Linger; linger > 0 && !b.urgent && b.waiters == 0 && p.fits(b.filling, 0) {
			b.mu.Unlock()
			p.linger(linger)
			b.mu.Lock()
		}
		f := b.filling
		b.filling, b.urgent = nil, false
		b.moveLocked()
		b.mu.Unlock()
		f.cut()
		p.publishAsync(f.payloads, f.span, f)
		b.mu.Lock()
		b.written++
		b.moveLocked()
	}
	b.busy.Store(false)
	p.c.mu.Lock()
	delete(p.c.batchers, p)
	p.c.mu.Unlock()
}

// linger waits for more.
func (p *Publisher) linger(d time.Duration) {
	b := &p.batch
	b.lingered.Reset(d)
	defer b.lingered.Stop()
	select {
	case <-b.lingered.C:
	case <-b.wake:
	case <-p.c.ctx.Done():
	}
}

// cut makes the payloads views of flat as it is now.
func (f *eventBatch) cut() {
	at := 0
	for i, p := range f.payloads {
		end := at + len(p)
		f.payloads[i] = f.flat[at:end:end]
		at = end
	}
}

// keepBatch is the largest batch whose memory is used again, and keepBatches how many of them are kept.
const (
	keepBatch   = 1 << 20
	keepBatches = 8
)

// settle reports the outcome of the batch.
func (f *eventBatch) settle(err error) {
	p := f.p
	b := &p.batch
	b.calling.Lock()
	for _, done := range f.dones {
		p.report(done, err)
	}
	b.calling.Unlock()
	clear(f.payloads)
	clear(f.dones)
	f.flat, f.payloads, f.dones, f.span = f.flat[:0], f.payloads[:0], f.dones[:0], publishGroups{}
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.free) < keepBatches && cap(f.flat) <= keepBatch {
		b.free = append(b.free, f)
	}
}

// hurry ends the wait for more of what has been gathered.
func (p *Publisher) hurry() {
	b := &p.batch
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.filling != nil {
		b.urgent = true
		b.signal()
	}
}
