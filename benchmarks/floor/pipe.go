package floor

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/felix-mq/felix/internal/child"
	"github.com/felix-mq/felix/internal/dev"
	"github.com/felix-mq/felix/loadgen"
	"github.com/felix-mq/felix/quicx"
)

const sinkRole = "floor-sink"

// pipeWrite is the size of a write, in bytes: far more than a stream costs by the call.
const pipeWrite = 256 << 10

// PipeResult is what a pipe measured.
type PipeResult struct {
	Bytes          uint64  `json:"bytes"` // that the other process has counted
	Seconds        float64 `json:"seconds"`
	BytesPerSecond float64 `json:"bytes_per_second"`
	PacketsLost    uint64  `json:"packets_lost"` // by both sides, the warm-up included
}

// RunPipe sends on one stream to another process for the given time, after a warm-up on a stream of its own. The clock
// stops when that process has told how many bytes it has read, which has to be all of them. env is added to the
// environment of that process, as in GOMAXPROCS=1.
func RunPipe(ctx context.Context, warmup, duration time.Duration, env []string) (_ *PipeResult, err error) {
	var r ready
	proc, err := child.Start(ctx, sinkRole, nil, env, &r)
	if err != nil {
		return nil, err
	}
	var res PipeResult
	defer func() {
		var acc account
		err = errors.Join(err, proc.Stop(&acc))
		res.PacketsLost += acc.PacketsLost
	}()
	conf, err := dev.ClientTLS(r.CertPEM)
	if err != nil {
		return nil, err
	}
	conn, err := quicx.Dial(ctx, r.Addr, conf, clientConfig(1))
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, conn.Close(0, "")) }()
	unbind := context.AfterFunc(ctx, func() { _ = conn.Close(0, "") })
	defer unbind()
	for _, d := range []time.Duration{warmup, duration} {
		begin := time.Now()
		if res.Bytes, err = send(ctx, conn, d); err != nil {
			if ctx.Err() != nil {
				err = context.Cause(ctx)
			}
			return nil, fmt.Errorf("floor: pipe: %w", err)
		}
		res.Seconds = time.Since(begin).Seconds()
	}
	res.BytesPerSecond = float64(res.Bytes) / res.Seconds
	res.PacketsLost = conn.Stats().PacketsLost
	return &res, nil
}

// send fills a stream for the given time, with at least one write, and returns how many bytes have arrived.
func send(ctx context.Context, conn *quicx.Conn, d time.Duration) (uint64, error) {
	s, err := conn.OpenStream(ctx)
	if err != nil {
		return 0, err
	}
	data, sent := loadgen.NewItems(loadgen.Random, 1, pipeWrite, 0)[0], uint64(0)
	for begin := time.Now(); sent == 0 || time.Since(begin) < d; sent += pipeWrite {
		if _, err := s.Send().Write(data); err != nil {
			return 0, err
		}
	}
	if err := s.Send().Close(); err != nil {
		return 0, err
	}
	reply, err := io.ReadAll(s.Recv())
	if err != nil {
		return 0, err
	}
	if len(reply) != 8 {
		return 0, fmt.Errorf("reply of %d bytes", len(reply))
	}
	if got := binary.BigEndian.Uint64(reply); got != sent {
		return 0, fmt.Errorf("%d of %d bytes have arrived", got, sent)
	}
	return sent, nil
}

// sink reads each stream to its end and replies with the number of bytes, one stream of a connection at a time.
func sink(conn *quicx.Conn) {
	buf := make([]byte, pipeWrite)
	for {
		s, err := conn.AcceptStream(conn.Context())
		if err == nil {
			err = drain(s, buf)
		}
		if err != nil {
			_ = conn.Close(0, "")
			return
		}
	}
}

func drain(s *quicx.Stream, buf []byte) error {
	var total uint64
	for {
		n, err := s.Recv().Read(buf)
		total += uint64(n)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return err
		}
	}
	if _, err := s.Send().Write(binary.BigEndian.AppendUint64(nil, total)); err != nil {
		return err
	}
	return s.Send().Close()
}
