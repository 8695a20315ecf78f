package client

import (
	"context"
	"sync"
	"time"
)

// BatcherOptions bound the batches of a [Batcher]. Zero values mean the defaults in brackets.
type BatcherOptions struct {
	MaxEvents int // in one batch [512]
	MaxBytes  int // of payloads in one batch; a larger event goes alone [64 KiB]

	// Linger is how long the first event of a batch waits for others. With 0, the default, nothing waits: a batch is what
	// has gathered while the one before it was being written, so that batches are large under load and single events leave
	// at once.
	Linger time.Duration

	// Done, if it is not nil, is called once for each batch with its outcome, for one batch at a time. The payloads are
	// views that live until it returns. It must not block, and must not call the batcher.
	Done func(payloads [][]byte, err error)
}

// Batcher gathers events into batches and publishes them in the background, in the order in which they were added. Its
// methods may be called from many goroutines.
type Batcher struct {
	p *Publisher
	o BatcherOptions

	mu      sync.Mutex    // guards all below
	filling *eventBatch   // takes what is added
	sending bool          // a goroutine sends; it takes filling when it has written what it took before
	urgent  bool          // do not linger
	wake    chan struct{} // capacity 1: the batch is full, or urgent
	room    chan struct{} // closed, and replaced, when filling is taken
	waiters int           // for room
	closed  bool
	free    []*eventBatch

	publishes ledger
	telling   sync.Mutex // held while Done runs

	work     func()      // the method value of send, made once
	lingered *time.Timer // of the goroutine that sends
}

// eventBatch is a batch with a copy of its payloads.
type eventBatch struct {
	b        *Batcher
	flat     []byte
	payloads [][]byte
	span     spans // from the first event to the outcome
}

// Batcher returns a batcher for the publisher's stream. Close it, or the client, when it is no longer needed.
func (p *Publisher) Batcher(o BatcherOptions) *Batcher {
	if o.MaxEvents <= 0 {
		o.MaxEvents = 512
	}
	if o.MaxBytes <= 0 {
		o.MaxBytes = 64 << 10
	}
	b := &Batcher{p: p, o: o, wake: make(chan struct{}, 1), room: make(chan struct{}), lingered: time.NewTimer(time.Hour)}
	b.lingered.Stop()
	b.work = b.send
	p.c.mu.Lock()
	p.c.batchers[b] = struct{}{}
	p.c.mu.Unlock()
	return b
}

// Add copies an event into the batch that is being filled. It waits while that is full and the one before it is still being
// written. It fails when ctx ends, or with [ErrClosed]; what becomes of the event is told by Done.
func (b *Batcher) Add(ctx context.Context, payload []byte) error {
	if err := ctx.Err(); err != nil {
		return context.Cause(ctx)
	}
	b.mu.Lock()
	for {
		if b.closed {
			b.mu.Unlock()
			return ErrClosed
		}
		if b.filling == nil || b.fits(len(payload)) {
			break
		}
		room := b.room
		b.waiters++
		b.signal()
		b.mu.Unlock()
		select {
		case <-room:
		case <-ctx.Done():
		case <-b.p.c.ctx.Done():
		}
		b.mu.Lock()
		b.waiters--
		switch {
		case ctx.Err() != nil:
			b.mu.Unlock()
			return context.Cause(ctx)
		case b.p.c.ctx.Err() != nil:
			b.mu.Unlock()
			return ErrClosed
		}
	}
	defer b.mu.Unlock()
	if b.filling == nil {
		span, err := b.p.begin(b)
		if err != nil {
			return err
		}
		if !b.sending && !b.p.c.start(b.work) {
			span.end()
			return ErrClosed
		}
		b.sending = true
		b.filling = b.takeFree()
		b.filling.span = span
	}
	f := b.filling
	f.flat = append(f.flat, payload...)
	f.payloads = append(f.payloads, f.flat[len(f.flat)-len(payload):]) // moved by cut if flat grows
	if len(f.payloads) == b.o.MaxEvents || len(f.flat) >= b.o.MaxBytes {
		b.signal()
	}
	return nil
}

// fits reports whether n more bytes belong into the batch that is being filled.
func (b *Batcher) fits(n int) bool {
	f := b.filling
	return len(f.payloads) < b.o.MaxEvents && (len(f.payloads) == 0 || len(f.flat)+n <= b.o.MaxBytes)
}

// signal ends the wait of the goroutine that lingers.
func (b *Batcher) signal() {
	select {
	case b.wake <- struct{}{}:
	default:
	}
}

func (b *Batcher) takeFree() *eventBatch {
	if n := len(b.free); n > 0 {
		f := b.free[n-1]
		b.free = b.free[:n-1]
		return f
	}
	return &eventBatch{b: b}
}

// send publishes batches until none is left. It is the goroutine of b.sending.
func (b *Batcher) send() {
	for {
		b.mu.Lock()
		f := b.filling
		if f == nil {
			b.sending = false
			b.mu.Unlock()
			return
		}
		if b.o.Linger > 0 && !b.urgent && b.fits(1) && b.waiters == 0 {
			b.mu.Unlock()
			b.linger()
			b.mu.Lock()
		}
		b.filling, b.urgent = nil, false
		if b.waiters > 0 {
			close(b.room)
			b.room = make(chan struct{})
		}
		b.mu.Unlock()
		f.cut()
		// Close ends its waits; a context that could end would cost a registration for each write.
		b.p.publishAsync(context.Background(), f.payloads, f.span, f)
	}
}

// linger waits for more.
func (b *Batcher) linger() {
	b.lingered.Reset(b.o.Linger)
	defer b.lingered.Stop()
	select {
	case <-b.lingered.C:
	case <-b.wake:
	case <-b.p.c.ctx.Done():
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

// settle tells the outcome of the batch.
func (f *eventBatch) settle(err error) {
	b := f.b
	if b.o.Done != nil {
		b.telling.Lock()
		b.o.Done(f.payloads, err)
		b.telling.Unlock()
	}
	clear(f.payloads)
	f.flat, f.payloads, f.span = f.flat[:0], f.payloads[:0], spans{}
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.free) < keepBatches && cap(f.flat) <= keepBatch {
		b.free = append(b.free, f)
	}
}

// Flush sends what was added before, and waits until all of it has its outcome and Done was told. It ends with ctx.
func (b *Batcher) Flush(ctx context.Context) error {
	b.hurry()
	return b.publishes.wait(ctx)
}

// hurry ends the wait for more of what has been gathered.
func (b *Batcher) hurry() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.filling != nil {
		b.urgent = true
		b.signal()
	}
}

// Close flushes and ends the batcher: no more events can be added. If ctx ends first, what is left is sent in the
// background.
func (b *Batcher) Close(ctx context.Context) error {
	b.mu.Lock()
	b.closed = true
	b.mu.Unlock()
	b.p.c.mu.Lock()
	delete(b.p.c.batchers, b)
	b.p.c.mu.Unlock()
	return b.Flush(ctx)
}
