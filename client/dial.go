package client

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"syscall"
	"time"

	"github.com/felix-mq/felix/quicx"
)

// connect makes the first connection.
func (c *Client) connect(ctx context.Context) error {
	pauses := c.o.backoff // of its own, because a connection may be there and its stream be refused
	for tries := 1; ; tries++ {
		_, err := c.publishers[0].open(ctx, c.deadline(ctx), false)
		switch {
		case err == nil:
			return nil
		case ctx.Err() != nil || !Retryable(err):
			return err
		case !c.o.connectRetry && tries >= len(c.seeds):
			return err
		}
		if ended := c.pause(ctx, pauses.next()); ended != nil {
			return fmt.Errorf("%w: %w", ended, err)
		}
		c.publishers[0].shared.forgive()
	}
}

// splitSeeds returns the addresses of a list with commas.
func splitSeeds(addr string) []string {
	seeds := strings.Split(addr, ",")
	for i := range seeds {
		seeds[i] = strings.TrimSpace(seeds[i])
	}
	return seeds
}

// dialTimeout bounds one attempt to connect. A broker that comes up meanwhile hears of the attempt when QUIC repeats
// its first packet, which it does ever more rarely.
const dialTimeout = 5 * time.Second

// dial makes one attempt to open a connection, for a number of streams that carry bulk to us and with windows of its
// own where they are not zero, after the pause that earlier ones call for.
func (c *Client) dial(ctx context.Context, streams int, w windows) (*conn, error) {
	if err := c.pace.wait(ctx); err != nil {
		return nil, err
	}
	qcfg := c.o.quic
	qcfg.StreamsHint = streams
	if w.stream > 0 {
		qcfg.StreamWindow = w.stream
	}
	qcfg.ConnWindow = w.conn
	limit := dialTimeout
	if n := len(c.seeds); n > 1 { // one that does not answer leaves time for the others
		limit = max(dialTimeout/time.Duration(n), time.Second)
	}
	attempt, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	seed := c.seed.Load()
	addr := c.seeds[seed%uint32(len(c.seeds))]
	qc, err := quicx.Dial(attempt, addr, c.o.tls, qcfg)
	if ctx.Err() == nil {
		c.pace.report(err == nil)
	}
	if err != nil {
		if ctx.Err() == nil {
			c.seed.CompareAndSwap(seed, seed+1) // others that dial at the same time move on by one together
		}
		if attempt.Err() != nil && ctx.Err() == nil {
			err = fmt.Errorf("%w: no answer from %s within %v", ErrDisconnected, addr, limit)
		} else {
			err = dialError(ctx, err)
		}
		c.hooks.connectFailed(addr, err)
		return nil, err
	}
	k := newConn(c, qc, addr)
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ctx.Err() != nil {
		_ = qc.Close(0, "")
		return nil, ErrClosed
	}
	c.conns[k] = struct{}{}
	c.wg.Go(func() { c.serveConn(k) })
	return k, nil
}

// dialError says what the failure of an attempt to connect means.
func dialError(ctx context.Context, err error) error {
	closed, isClosed := errors.AsType[*quicx.ConnClosedError](err)
	switch {
	case ctx.Err() != nil:
		return fmt.Errorf("%w: %w", context.Cause(ctx), err)
	case isClosed && closed.Transport && closed.Code >= 0x100: // TLS: another attempt would end like this one
		return err
	case errors.Is(err, quicx.ErrHandshake):
		return fmt.Errorf("%w: %w", ErrDisconnected, err)
	}
	_, isName := errors.AsType[*net.DNSError](err)
	_, isSystem := errors.AsType[syscall.Errno](err) // no descriptor or port is free, say
	if isName || isSystem {
		return fmt.Errorf("%w: %w", ErrDisconnected, err)
	}
	return err
}
