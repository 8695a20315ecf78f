package floor

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"unsafe"

	"github.com/felix-mq/felix/codec"
	"github.com/felix-mq/felix/internal/buf"
	"github.com/felix-mq/felix/quicx"
)

const relayRole = "floor-relay"

// A stream begins with a frame that says what it is for. The relay answers it when it has done what that asks for.
const (
	roleFrame     = codec.HeaderLen + 1
	rolePublish   = 'p'
	roleSubscribe = 's'
)

func appendRole(b []byte, role byte) []byte {
	return append(codec.AppendHeader(b, 0, 1), role)
}

// inlineLimit is the size in bytes up to which a frame is written to an idle stream at once; it fits into a packet.
const inlineLimit = 1200

// relay knows the subscriptions. They are all there before the first frame is published.
type relay struct {
	mu   sync.Mutex
	subs []*subscription
}

func (r *relay) conn(conn *quicx.Conn) {
	var streams sync.WaitGroup
	for {
		s, err := conn.AcceptStream(conn.Context())
		if err != nil {
			break
		}
		streams.Go(func() { // ends with the connection at the latest
			if err := r.stream(s); err != nil {
				_ = conn.Close(0, err.Error()) // does nothing if the peer has closed it
			}
		})
	}
	streams.Wait()
}

func (r *relay) stream(s *quicx.Stream) error {
	in := quicx.NewFrameReader(s.Recv(), 0)
	defer in.Close()
	f, err := in.Next()
	if err != nil {
		return err
	}
	if len(f.Bytes) != roleFrame {
		return errors.New("floor: stream begins with something else than its role")
	}
	switch role := f.Payload()[0]; role {
	case rolePublish:
		return r.publish(in)
	case roleSubscribe:
		sub := newSubscription(s.Send())
		r.mu.Lock()
		r.subs = append(r.subs, sub)
		r.mu.Unlock()
		if _, err := s.Send().Write(appendRole(nil, role)); err != nil {
			return err
		}
		return sub.write()
	default:
		return fmt.Errorf("floor: unknown role %q", role)
	}
}

// publish hands everything that comes to the subscriptions.
func (r *relay) publish(in *quicx.FrameReader) error {
	var subs []*subscription
	for {
		reg, err := next(in)
		if err != nil {
			return err
		}
		if subs == nil {
			r.mu.Lock()
			subs = r.subs
			r.mu.Unlock()
		}
		for _, s := range subs {
			s.offer(reg)
		}
		reg.chunk.Release()
	}
}

// region is one or more whole frames that follow each other in a chunk.
type region struct {
	bytes []byte
	chunk *buf.Chunk
}

// next returns the frames that are there, at least one, with a reference to their chunk that is the caller's. They can
// be written together without being copied.
func next(in *quicx.FrameReader) (region, error) {
	f, err := in.Next()
	if err != nil {
		return region{}, err
	}
	f.Chunk.Retain() // so that the frame stays valid after the next call
	n := len(f.Bytes)
	for in.Ready() {
		more, err := in.Next()
		if err != nil {
			f.Chunk.Release()
			return region{}, err
		}
		n += len(more.Bytes)
	}
	// A frame that is ready was read with the one before it and follows it in the same chunk. The capacity of a frame
	// hides that.
	return region{bytes: unsafe.Slice(unsafe.SliceData(f.Bytes), n), chunk: f.Chunk}, nil
}

// subscription is the queue towards one subscriber and the goroutine that empties it. The publisher's window bounds it.
type subscription struct {
	out  *quicx.SendStream
	w    *quicx.FrameWriter
	wake chan struct{} // capacity 1: the token that a parked writer waits for

	mu     sync.Mutex
	queue  []region
	parked bool // set by the writer, which has nothing left to write, and taken back by the publisher alone
}

func newSubscription(out *quicx.SendStream) *subscription {
	return &subscription{out: out, w: quicx.NewFrameWriter(out, 0), wake: make(chan struct{}, 1)}
}

// offer is called by one goroutine, the publisher's, and does not block.
func (s *subscription) offer(reg region) {
	s.mu.Lock()
	if s.parked && len(reg.bytes) <= inlineLimit {
		s.mu.Unlock() // the stream is ours as long as the writer is parked
		if s.out.TryWrite(reg.bytes) == nil {
			return
		}
		s.mu.Lock()
	}
	reg.chunk.Retain()
	s.queue = append(s.queue, reg)
	wake := s.parked
	s.parked = false
	s.mu.Unlock()
	if wake {
		s.wake <- struct{}{}
	}
}

// write writes what is offered until the stream ends.
func (s *subscription) write() error {
	var batch []region
	var frames [][]byte
	for {
		s.mu.Lock()
		batch, s.queue = s.queue, batch[:0]
		s.parked = len(batch) == 0
		s.mu.Unlock()
		if len(batch) == 0 {
			select {
			case <-s.wake:
				continue
			case <-s.out.Context().Done():
				return context.Cause(s.out.Context())
			}
		}
		frames = frames[:0]
		for _, reg := range batch {
			frames = append(frames, reg.bytes)
		}
		err := s.w.WriteBatch(frames)
		for _, reg := range batch {
			reg.chunk.Release()
		}
		if err != nil {
			return err
		}
	}
}
