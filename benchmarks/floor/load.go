package floor

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/felix-mq/felix/codec"
	"github.com/felix-mq/felix/internal/child"
	"github.com/felix-mq/felix/internal/dev"
	"github.com/felix-mq/felix/loadgen"
	"github.com/felix-mq/felix/quicx"
)

// RunRelay loads a relay in a process of its own. A batch is one frame, so the relay sees as many bytes as Felix does
// in as many frames. env is added to the environment of that process, as in GOMAXPROCS=1. The packets lost are those of
// both sides, those of the relay with the warm-up.
//
// It returns when the run has ended or failed, or ctx has ended, and everything it started has gone. A run that does
// not account for every event fails.
func RunRelay(ctx context.Context, cfg loadgen.Config, env []string) (*loadgen.Result, error) {
	var r ready
	proc, err := child.Start(ctx, relayRole, nil, env, &r)
	if err != nil {
		return nil, err
	}
	res, err := loadgen.RunOn(ctx, cfg, r.open)
	var acc account
	if err = errors.Join(err, proc.Stop(&acc)); err != nil {
		return nil, err
	}
	res.PacketsLost += int64(acc.PacketsLost)
	res.Broker = r.brokerInfo()
	return res, nil
}

// system is the relay as [loadgen.System].
type system struct {
	cfg   *loadgen.Config
	conns []*quicx.Conn // the publisher's is the first
	made  int           // subscriptions
	subs  sync.WaitGroup
	stop  func() bool
}

// open connects to the relay, with a connection for the publisher and those of the subscriptions.
func (r *ready) open(ctx context.Context, cfg *loadgen.Config, _ func(error)) (loadgen.System, error) {
	conf, err := dev.ClientTLS(r.CertPEM)
	if err != nil {
		return nil, err
	}
	s := &system{cfg: cfg}
	for i := range 1 + cfg.Conns {
		streams := 1
		if i > 0 {
			streams = (cfg.Fanout + cfg.Conns - 1) / cfg.Conns
		}
		conn, err := quicx.Dial(ctx, r.Addr, conf, clientConfig(streams))
		if err != nil {
			return nil, errors.Join(err, s.closeConns())
		}
		s.conns = append(s.conns, conn)
	}
	// A write that waits for the relay does not see the context.
	s.stop = context.AfterFunc(ctx, func() { _ = s.closeConns() })
	return s, nil
}

func (s *system) Subscribe(ctx context.Context, _ int, r *loadgen.Receiver) error {
	conn := s.conns[1+s.made%s.cfg.Conns]
	s.made++
	in, err := subscribe(ctx, conn)
	if err != nil {
		return fmt.Errorf("floor: subscribing: %w", err)
	}
	s.subs.Go(func() { // ends with the connection
		defer in.Close()
		if err := s.receive(in, r); err != nil && ctx.Err() == nil {
			r.Fail(err)
		}
	})
	return nil
}

func subscribe(ctx context.Context, conn *quicx.Conn) (*quicx.FrameReader, error) {
	s, err := conn.OpenStream(ctx)
	if err != nil {
		return nil, err
	}
	if _, err := s.Send().Write(appendRole(nil, roleSubscribe)); err != nil {
		return nil, err
	}
	in := quicx.NewFrameReader(s.Recv(), 0)
	if _, err := in.Next(); err != nil {
		in.Close()
		return nil, err
	}
	return in, nil
}

func (s *system) receive(in *quicx.FrameReader, r *loadgen.Receiver) error {
	for {
		f, err := in.Next()
		if err != nil {
			return err
		}
		for body := f.Payload(); len(body) > 0; {
			n := min(len(body), s.cfg.Payload)
			if !r.Event(body[:n]) {
				return nil
			}
			body = body[n:]
		}
		if !r.Done() {
			return nil
		}
	}
}

// publisher writes batches as frames, several at once if they are small.
type publisher struct {
	out    *quicx.SendStream
	batch  int // events of a frame
	join   int // frames that are written at once
	frames []byte
}

func (s *system) Publisher(ctx context.Context, _, _ int) (loadgen.Publisher, error) {
	size := s.cfg.Batch * s.cfg.Payload
	stream, err := s.conns[0].OpenStream(ctx)
	if err == nil {
		_, err = stream.Send().Write(appendRole(nil, rolePublish))
	}
	if err != nil {
		return nil, fmt.Errorf("floor: publishing: %w", err)
	}
	return &publisher{out: stream.Send(), batch: s.cfg.Batch, join: max(1, quicx.DefaultMaxWrite/(codec.HeaderLen+size))}, nil
}

func (p *publisher) Join() int { return p.join }

func (p *publisher) Send(_ context.Context, items ...[]byte) error {
	p.frames = p.frames[:0]
	for len(items) > 0 {
		n := min(len(items), p.batch)
		p.frames = codec.AppendHeader(p.frames, 0, n*len(items[0]))
		for _, item := range items[:n] {
			p.frames = append(p.frames, item...)
		}
		items = items[n:]
	}
	_, err := p.out.Write(p.frames)
	return err
}

// Publish is Send: the relay acknowledges nothing.
func (p *publisher) Publish(ctx context.Context, items ...[]byte) error { return p.Send(ctx, items...) }

func (s *system) PacketsLost() (lost int64) {
	for _, conn := range s.conns {
		lost += int64(conn.Stats().PacketsLost)
	}
	return lost
}

func (s *system) Close() error {
	s.stop()
	err := s.closeConns()
	s.subs.Wait()
	return err
}

func (s *system) closeConns() (err error) {
	for _, conn := range s.conns {
		err = errors.Join(err, conn.Close(0, ""))
	}
	return err
}
