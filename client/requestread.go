package client

import (
	"errors"
	"fmt"

	"github.com/felix-mq/felix/codec"
	"github.com/felix-mq/felix/telemetry"
)

// read matches replies with requests until the stream ends. It is the only goroutine that reads the stream, and the
// one that returns its chunk.
func (r *requestStream) read() {
	defer r.ctl.fr.Close()
	for {
		f, err := r.ctl.fr.Next()
		if err != nil {
			r.fail(r.k.streamError("request stream ended", err))
			return
		}
		telemetry.Add(telemetry.ClientFramesIn, 1)
		telemetry.Add(telemetry.ClientBytesIn, len(f.Bytes))
		start := telemetry.Start()
		r.k.heard.Store(r.k.c.now())
		switch f.Header.Flags {
		case codec.LayoutPublishAck:
			err = r.ack(f.Bytes[codec.HeaderLen:])
		case codec.LayoutJSON:
			err = r.reply(f.Bytes[codec.HeaderLen:])
		case codec.LayoutExtension:
			err = r.cacheReply(f.Bytes[codec.HeaderLen:])
		default:
			err = fmt.Errorf("%w: reply with flags %#04x", ErrProtocol, uint16(f.Header.Flags))
		}
		telemetry.Observe(telemetry.StageClientReply, start)
		if err != nil {
			telemetry.Add(telemetry.ClientDecodeErrors, 1)
			r.fail(err)
			return
		}
	}
}

func (r *requestStream) ack(payload []byte) error {
	a, err := codec.ParsePublishAck(payload)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrProtocol, err)
	}
	if a.OK {
		r.settle(a.RequestID, nil, a.NotKept)
	} else {
		r.refused(a.RequestID, string(a.Message))
	}
	return nil
}

// refused ends the publish with that id, which the broker has refused.
func (r *requestStream) refused(id uint64, text string) {
	err := error(&BrokerError{text})
	if errors.Is(err, ErrUnauthenticated) { // the publish waited for space until the token ended
		err = errTokenOver
		r.retire(err)
	}
	r.settle(id, err, false)
}

// settle ends the publish with that id. An id that nobody waits for any more is ignored. If the broker keeps no record
// of it, those after it are sent without an origin.
func (r *requestStream) settle(id uint64, err error, notKept bool) {
	r.mu.Lock()
	c := r.acks[id]
	delete(r.acks, id)
	r.quietLocked()
	r.mu.Unlock()
	if c != nil {
		telemetry.Observe(telemetry.StageClientAckWait, c.expected)
		telemetry.Add(telemetry.ClientAcks, 1)
		if notKept && c.p != nil {
			c.p.notKept.Store(r.serial)
		}
		c.unread = errors.Is(err, errTokenOver)
		c.err, c.answered = err, !c.unread
		c.finish()
	}
}

func (r *requestStream) reply(payload []byte) error {
	m := &r.ctl.msg
	if err := codec.ParseMessage(payload, m); err != nil {
		return fmt.Errorf("%w: %w", ErrProtocol, err)
	}
	switch m.Type {
	case codec.MsgPublishOK:
		r.settle(m.RequestID, nil, false)
		return nil
	case codec.MsgPublishError:
		r.refused(m.RequestID, string(m.Text))
		return nil
	case codec.MsgCacheOK, codec.MsgCacheValue:
		c := r.oldestCache()
		if c == nil || m.Type != c.want || (m.HasRequestID && m.RequestID != c.id) {
			err := fmt.Errorf("%w: cache reply that nobody asked for", ErrProtocol)
			r.fail(err) // before a caller hears of it: the next call has to find another stream
			if c != nil {
				c.err = err
				c.finish()
			}
			return err
		}
		telemetry.Observe(telemetry.StageClientCacheWait, c.expected)
		if m.Type == codec.MsgCacheValue && m.HasValue {
			c.value, c.hit = append([]byte{}, m.Value...), true
		}
		c.finish()
		return nil
	case codec.MsgError:
		err := &BrokerError{string(m.Text)}
		if errors.Is(err, ErrUnauthenticated) {
			return errTokenOver
		}
		if c := r.oldestCache(); c != nil {
			c.err = err
			c.finish()
			return nil
		}
		return err // it concerns the stream
	default:
		return fmt.Errorf("%w: %v in answer to a request", ErrProtocol, m.Type)
	}
}

func (r *requestStream) oldestCache() *call {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.cache) == 0 {
		return nil
	}
	c := r.cache[0]
	r.cache[0] = nil
	r.cache = r.cache[1:]
	r.quietLocked()
	return c
}
