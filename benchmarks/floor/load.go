package floor

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"

	"github.com/felix-mq/felix/benchmarks/floor/drive"
	"github.com/felix-mq/felix/codec"
	"github.com/felix-mq/felix/loadgen"
	"github.com/felix-mq/felix/quicx"
)

// errDone is why subscribers end when everything has arrived.
var errDone = errors.New("floor: done")

// RunRelay loads a relay in a process of its own. A batch is one frame, so the relay sees as many bytes as Felix does
// in as many frames. env is added to the environment of that process, as in GOMAXPROCS=1. The packets lost are those of
// both sides, the warm-up included.
//
// It returns when the run has ended or failed, or ctx has ended, and everything it started has gone. A run that does
// not account for every event fails.
func RunRelay(ctx context.Context, s drive.Shape, env []string) (_ *loadgen.Result, err error) {
	if err := s.Validate(); err != nil {
		return nil, err
	}
	if n := s.Batch * s.Payload; n > codec.DefaultMaxFrame {
		return nil, fmt.Errorf("floor: a batch of %d bytes does not fit into a frame of %d", n, codec.DefaultMaxFrame)
	}
	var r ready
	proc, err := drive.Start(ctx, relayName, "", env, &r)
	if err != nil {
		return nil, err
	}
	res, err := load(ctx, s, &r)
	var acc account
	if err = errors.Join(err, proc.Stop(&acc)); err != nil {
		return nil, err
	}
	res.PacketsLost += int64(acc.PacketsLost)
	res.Broker = r.brokerInfo()
	return res, nil
}

// load runs against a relay that is there.
func load(ctx context.Context, s drive.Shape, r *ready) (_ *loadgen.Result, err error) {
	work, cancel := context.WithCancelCause(ctx)
	c := client{l: drive.New(s), s: s, fail: cancel}
	defer func() {
		cancel(errDone)
		err = errors.Join(err, c.close())
	}()
	if err := c.connect(work, r); err != nil {
		return nil, err
	}
	// A write that waits for the relay does not see the context.
	unbind := context.AfterFunc(work, func() {
		for _, conn := range c.conns {
			_ = conn.Close(0, "")
		}
	})
	defer unbind()
	out, err := c.publisher(work)
	if err != nil {
		return nil, err
	}
	if err := c.l.Publish(work, out.join, out.send); err != nil {
		return nil, err
	}
	res := c.l.Result()
	for _, conn := range c.conns {
		res.PacketsLost += int64(conn.Stats().PacketsLost)
	}
	return res, nil
}

// client is the side of publisher and subscribers.
type client struct {
	l     *drive.Load
	s     drive.Shape
	fail  context.CancelCauseFunc
	conns []*quicx.Conn // the publisher's is the first
	subs  sync.WaitGroup
}

// connect opens all connections and subscribes.
func (c *client) connect(ctx context.Context, r *ready) error {
	conf, err := r.tls()
	if err != nil {
		return err
	}
	conns := min(c.s.Conns, c.s.Fanout)
	for i := range 1 + conns {
		streams := 1
		if i > 0 {
			streams = (c.s.Fanout + conns - 1) / conns
		}
		conn, err := quicx.Dial(ctx, r.Addr, conf, clientConfig(streams))
		if err != nil {
			return err
		}
		c.conns = append(c.conns, conn)
	}
	for i := range c.s.Fanout {
		if err := c.subscribe(ctx, c.conns[1+i%conns], c.l.Receiver(i)); err != nil {
			return fmt.Errorf("floor: subscribing: %w", err)
		}
	}
	return nil
}

func (c *client) subscribe(ctx context.Context, conn *quicx.Conn, to *drive.Receiver) error {
	s, err := conn.OpenStream(ctx)
	if err != nil {
		return err
	}
	if _, err := s.Send().Write(appendRole(nil, roleSubscribe)); err != nil {
		return err
	}
	in := quicx.NewFrameReader(s.Recv(), 0)
	if _, err := in.Next(); err != nil {
		return err
	}
	c.subs.Go(func() { // ends with the connection
		defer in.Close()
		if err := c.receive(in, to); ctx.Err() == nil {
			c.fail(err)
		}
	})
	return nil
}

func (c *client) receive(in *quicx.FrameReader, to *drive.Receiver) error {
	for {
		f, err := in.Next()
		if err != nil {
			return err
		}
		now, body := c.l.Now(), f.Payload()
		if len(body) != c.s.Batch*c.s.Payload {
			return fmt.Errorf("floor: frame of %d bytes, sent were %d", len(body), c.s.Batch*c.s.Payload)
		}
		first, at := drive.Stamp(body)
		if err := to.Receive(now, first, c.s.Batch, at); err != nil {
			return err
		}
	}
}

// publisher writes batches, several at once if they are small.
type publisher struct {
	out    *quicx.SendStream
	batch  int    // events of a frame
	frames []byte // as many as are written at once
	frame  int    // length of one
	join   int    // how many there are
}

func (c *client) publisher(ctx context.Context) (*publisher, error) {
	s, err := c.conns[0].OpenStream(ctx)
	if err != nil {
		return nil, fmt.Errorf("floor: publishing: %w", err)
	}
	if _, err := s.Send().Write(appendRole(nil, rolePublish)); err != nil {
		return nil, fmt.Errorf("floor: publishing: %w", err)
	}
	body := slices.Concat(loadgen.NewItems(c.s.Kind, c.s.Batch, c.s.Payload, 0)...)
	p := &publisher{out: s.Send(), batch: c.s.Batch, frame: codec.HeaderLen + len(body)}
	p.join = max(1, quicx.DefaultMaxWrite/p.frame)
	for range p.join {
		p.frames = append(codec.AppendHeader(p.frames, 0, len(body)), body...)
	}
	return p, nil
}

func (p *publisher) send(first uint64, n int, at int64) error {
	for i := range n {
		drive.PutStamp(p.frames[i*p.frame+codec.HeaderLen:], first+uint64(i*p.batch), at)
	}
	_, err := p.out.Write(p.frames[:n*p.frame])
	return err
}

func (c *client) close() error {
	var err error
	for _, conn := range c.conns {
		err = errors.Join(err, conn.Close(0, ""))
	}
	c.subs.Wait()
	return err
}
