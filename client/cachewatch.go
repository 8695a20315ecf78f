package client

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"

	"github.com/felix-mq/felix/codec"
)

// CacheEventKind is what has happened in a cache that is watched.
type CacheEventKind uint8

// The kinds.
const (
	// CacheReset means that anything may have changed: changes of any keys are missing in front of it.
	CacheReset   CacheEventKind = 0
	CacheSet     CacheEventKind = 1
	CacheDeleted CacheEventKind = 2
	CacheExpired CacheEventKind = 3
	CacheEvicted CacheEventKind = 4 // for lack of space
)

func (k CacheEventKind) String() string {
	switch k {
	case CacheReset:
		return "reset"
	case CacheSet:
		return "set"
	case CacheDeleted:
		return "deleted"
	case CacheExpired:
		return "expired"
	case CacheEvicted:
		return "evicted"
	}
	return "unknown"
}

// CacheEvent is one change.
type CacheEvent struct {
	Kind    CacheEventKind
	Key     []byte // a view that lives until the loop asks for the next event; nil for CacheReset
	Version uint64 // of the value that was set, or of the removal, which is greater; 0 for CacheReset
}

// WatchOption changes one setting of a watch.
type WatchOption func(*watchOptions)

type watchOptions struct{ lost func() }

// OnWatchLost calls lost as soon as a watch that was live is known to be lost, for those who must not go by what they
// have heard until the next [CacheReset]. It is called on the goroutine of the loop.
func OnWatchLost(lost func()) WatchOption { return func(o *watchOptions) { o.lost = lost } }

// Watch yields the changes of the cache, those of a key in order, until the loop is left or the context ends. Values
// are not told: get those that you want.
//
// The first event is a [CacheReset] as soon as the broker watches: Watch yields every change from then on. Another
// reset follows whenever changes were missed. That is so when the connection was lost and is back, as Watch sees to
// with pauses between attempts ([WithBackoff]), and when the loop was too slow: the broker keeps a bounded number of
// changes for it.
//
// The last thing that Watch yields, unless the loop is left, is the error that ended it: that of the context,
// [ErrClosed], or [ErrProtocol]; and, as long as the broker has not watched yet, its refusal, or [ErrUnsupported] if it
// does not have the extension cache. A watch that was live goes on trying, at the longest pause, however long that
// takes.
func (h *Cache) Watch(ctx context.Context, opts ...WatchOption) iter.Seq2[CacheEvent, error] {
	var o watchOptions
	var invalid error
	for _, opt := range opts {
		if opt == nil {
			invalid = optionError{errors.New("an option is nil")}
			continue
		}
		opt(&o)
	}
	return func(yield func(CacheEvent, error) bool) {
		if h == nil || h.c == nil {
			yield(CacheEvent{}, ErrNotMade)
			return
		}
		err := invalid
		if err == nil {
			err = checkNames(h.namespace, h.name)
		}
		pauses, live := h.c.o.backoff, false
		for err == nil {
			var f *eventFeed
			told := h.c.hooks.cache(ctx, h.namespace, h.name, "watch")
			f, err = h.openWatch(ctx)
			if told != nil {
				told(err)
			}
			if err == nil {
				pauses.attempts, live = 0, true
				var left bool
				if left, err = f.watch(ctx, yield); left {
					return
				}
				if o.lost != nil {
					o.lost()
				}
			}
			switch {
			case ctx.Err() != nil:
				err = context.Cause(ctx)
			case h.c.ctx.Err() != nil:
				err = ErrClosed
			case errors.Is(err, ErrProtocol) || !live && !Retryable(err):
			default:
				err = h.c.pause(ctx, pauses.next())
			}
		}
		yield(CacheEvent{}, fmt.Errorf("client: watching cache %.80q/%.80q: %w", h.namespace, h.name, err))
	}
}

func (h *Cache) openWatch(ctx context.Context) (*eventFeed, error) {
	q := codec.CacheRequest{RequestID: 1, Op: codec.CacheWatch}
	request := codec.AppendCacheRequest(nil, &q, h.namespace, h.name)
	if n := len(request) - codec.HeaderLen; n > h.c.o.maxFrame {
		return nil, fmt.Errorf("%w: watch of %d bytes, limit %d", ErrFrameTooLarge, n, h.c.o.maxFrame)
	}
	return h.c.obtainFeed(ctx, nil, func(ctl *control) (uint64, error) {
		if ctl.ext&codec.ExtCache == 0 {
			return 0, ErrUnsupported
		}
		return ctl.watch(request)
	})
}

// watch sends the request, finishes the stream and reads the reply.
func (ctl *control) watch(request []byte) (id uint64, err error) {
	if err := ctl.write(request); err != nil {
		return 0, err
	}
	_ = ctl.s.Send().Close()
	f, err := ctl.fr.Next()
	if err != nil {
		if errors.Is(err, io.EOF) {
			return 0, fmt.Errorf("%w: the broker ended the stream without a reply", ErrDisconnected)
		}
		return 0, ctl.k.streamError("reading a reply", err)
	}
	typ, body, err := codec.ParseExtension(f.Payload())
	if err != nil || f.Header.Flags != codec.LayoutExtension || typ != codec.ExtensionCacheReply {
		return 0, fmt.Errorf("%w: frame with flags %#04x in answer to a watch", ErrProtocol, uint16(f.Header.Flags))
	}
	r, err := codec.ParseCacheReply(body)
	switch {
	case err != nil:
		return 0, fmt.Errorf("%w: %w", ErrProtocol, err)
	case r.Status == codec.CacheDone:
		return r.Version, nil
	case r.Status == codec.CacheRefused:
		return 0, &BrokerError{string(r.Text)}
	}
	return 0, fmt.Errorf("%w: status %d in answer to a watch", ErrProtocol, r.Status)
}

// watch yields what comes on the feed of a watch until the loop is left, or fails with the reason why nothing more
// comes.
func (f *eventFeed) watch(ctx context.Context, yield func(CacheEvent, error) bool) (left bool, err error) {
	defer f.close()
	stop := context.AfterFunc(ctx, func() { _ = f.e.r.SetReadDeadline(past) })
	defer stop()
	if !yield(CacheEvent{Kind: CacheReset}, nil) {
		return true, nil
	}
	for {
		frame, err := f.e.fr.Next()
		switch {
		case ctx.Err() != nil:
			return false, context.Cause(ctx)
		case errors.Is(err, io.EOF):
			return false, ErrEnded
		case err != nil:
			return false, f.k.streamError("reading changes", err)
		}
		typ, rest, err := codec.ParseExtension(frame.Payload())
		if err != nil || frame.Header.Flags != codec.LayoutExtension || typ != codec.ExtensionCacheEvents {
			return false, fmt.Errorf("%w: frame with flags %#04x on the stream of a watch", ErrProtocol, uint16(frame.Header.Flags))
		}
		for len(rest) > 0 {
			var e codec.CacheEvent
			if e, rest, err = codec.ParseCacheEvent(rest); err != nil {
				return false, fmt.Errorf("%w: %w", ErrProtocol, err)
			}
			change := CacheEvent{Kind: CacheEventKind(e.Kind), Key: e.Key, Version: e.Version}
			switch e.Kind {
			case codec.CacheEnded:
				return false, fmt.Errorf("%w: %w", ErrEnded, &BrokerError{string(e.Key)})
			case codec.CacheSet, codec.CacheDeleted, codec.CacheExpired, codec.CacheEvicted:
			case codec.CacheLost:
				fallthrough
			default:
				change = CacheEvent{Kind: CacheReset}
			}
			if !yield(change, nil) {
				return true, nil
			}
		}
	}
}
