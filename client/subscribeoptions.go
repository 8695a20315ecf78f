package client

import (
	"time"

	"github.com/felix-mq/felix/codec"
)

// SubscribeOption changes one setting of a subscription.
type SubscribeOption func(*subscribeOptions)

type subscribeOptions struct {
	start     startPoint
	once      bool
	resumeFor time.Duration
	views     bool
}

// startPoint is where a subscription begins. Without resume, epoch means nothing.
type startPoint struct {
	codec.Start
	resume bool
	epoch  uint64
	since  uint64 // with StartEarliest: milliseconds since 1970, or 0
}

// request appends the subscribe.
func (o startPoint) request(dst []byte, tenant, namespace, stream string) []byte {
	if o.resume {
		return codec.AppendResume(dst, tenant, namespace, stream, o.epoch, o.Offset)
	}
	if o.since > 0 {
		return codec.AppendSubscribeSince(dst, tenant, namespace, stream, o.since)
	}
	return codec.AppendSubscribe(dst, tenant, namespace, stream, o.Start, 0, false)
}

// FromPosition goes on where another subscription of the stream was, in this process or an earlier one: see
// [Subscription.Position]. Events that the broker no longer has are reported as a [Gap], so nothing is missed without
// notice. Subscribe fails with [ErrUnsupported] if the broker does not negotiate that.
func FromPosition(p Position) SubscribeOption {
	return func(o *subscribeOptions) {
		o.start = startPoint{Start: codec.Start{Kind: codec.StartOffset, Offset: p.Offset}, resume: true, epoch: p.Epoch}
	}
}

// FromEarliest starts with the oldest event that the broker still has.
func FromEarliest() SubscribeOption {
	return func(o *subscribeOptions) { o.start = startPoint{Start: codec.Start{Kind: codec.StartEarliest}} }
}

// FromTime starts with the first event that was published at that time or later, to the millisecond, by the clock of
// the broker. It is for durable streams: a stream in memory keeps no times, and starts with its oldest event. Subscribe
// fails with [ErrUnsupported] if the broker does not negotiate that.
func FromTime(t time.Time) SubscribeOption {
	return func(o *subscribeOptions) {
		o.start = startPoint{Start: codec.Start{Kind: codec.StartEarliest}, since: uint64(max(t.UnixMilli(), 1))}
	}
}

// FromOffset starts with the event of that offset. Subscribe fails with a [CursorError] if the broker does not have
// it any more, or will not have it next.
func FromOffset(offset uint64) SubscribeOption {
	return func(o *subscribeOptions) {
		o.start = startPoint{Start: codec.Start{Kind: codec.StartOffset, Offset: offset}}
	}
}

// FromLatest starts with the next event. It is the default.
func FromLatest() SubscribeOption {
	return func(o *subscribeOptions) { o.start = startPoint{Start: codec.Start{Kind: codec.StartLatest}} }
}

// ResumeFor bounds the time for which a subscription that has lost its event stream tries to subscribe again, each time
// that it has lost it. With 0, the default, it tries until it is closed. When the time is over the subscription is
// over: reads fail with an error that matches [ErrTimeout] and the one of the last attempt.
func ResumeFor(d time.Duration) SubscribeOption { return func(o *subscribeOptions) { o.resumeFor = d } }

// WithViews has [Subscription.Next], Events and Each hand out payloads that are views into the subscription's receive
// buffer instead of copies. A view lives until the next call on the subscription, or the next round of the loop;
// [Event.Clone] makes a copy that can be kept. It saves an allocation for each event.
func WithViews() SubscribeOption { return func(o *subscribeOptions) { o.views = true } }

// WithoutResume makes a subscription end with its event stream, instead of subscribing again.
func WithoutResume() SubscribeOption { return func(o *subscribeOptions) { o.once = true } }
