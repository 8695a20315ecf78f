package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"sync"

	"github.com/felix-mq/felix/benchmarks/internal/brokerproc"
	"github.com/felix-mq/felix/codec"
	"github.com/felix-mq/felix/internal/selfproc"
	"github.com/felix-mq/felix/quicx"
)

// neighborsArg is the only argument of a process that holds stalled subscriptions.
const neighborsArg = "__stalled-neighbors"

// neighbors are subscriptions that are never read, held by a process of their own: their memory and its collection must
// not be charged to the healthy ones. It reads this from its input, prints a line for every hundredth connection and
// one more when all subscriptions stand, and goes when its input ends.
type neighbors struct {
	Addr, Tenant, Namespace, Token string
	CertPEM                        []byte
	Conns                          int
	Streams                        []string // one subscription each, spread over the connections
}

// stalledWindow is the receive window of a stalled subscription: enough for the hello, and a little to stall on.
const stalledWindow = 16 << 10

// dialsAtATime bounds what a broker has to do at once.
const dialsAtATime = 8

// serveNeighbors holds the subscriptions and exits if this is their process. In any other it returns at once.
func serveNeighbors() {
	if len(os.Args) != 2 || os.Args[1] != neighborsArg {
		return
	}
	signal.Ignore(os.Interrupt)
	if err := hold(selfproc.Input(), os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

func hold(in io.Reader, out io.Writer) error {
	var n neighbors
	dec := json.NewDecoder(in)
	if err := dec.Decode(&n); err != nil {
		return fmt.Errorf("stall: what the neighbors are: %w", err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(n.CertPEM)
	conf := &tls.Config{RootCAs: roots, ServerName: "localhost", MinVersion: tls.VersionTLS13}
	// A dialed connection has a socket of its own: without GRO its buffers are 16 KiB instead of 256 KiB. The broker's
	// keep-alives are enough for both sides.
	cfg := quicx.Config{
		DisableGRO: true, RecvBuffer: 64 << 10, SendBuffer: 64 << 10, KeepAlive: -1,
		StreamWindow: stalledWindow, StreamsHint: len(n.Streams)/n.Conns + 1,
	}
	ctx, fail := context.WithCancelCause(context.Background())
	defer fail(nil)
	var mu sync.Mutex
	var conns []*quicx.Conn
	var wg sync.WaitGroup
	for worker := range dialsAtATime {
		wg.Go(func() {
			for i := worker; i < n.Conns && ctx.Err() == nil; i += dialsAtATime {
				c, err := n.connect(ctx, conf, cfg, i)
				if err != nil {
					fail(err)
					return
				}
				mu.Lock()
				if conns = append(conns, c); len(conns)%100 == 0 {
					fmt.Fprintln(out, len(conns), "connections")
				}
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	err := context.Cause(ctx)
	if err == nil {
		fmt.Fprintln(out, allStand)
		_, _ = io.Copy(io.Discard, in) // until it is closed, however
	}
	for _, c := range conns {
		_ = c.Close(0, "")
	}
	return err
}

// allStand is the last line of the process.
const allStand = "all stand"

// connect dials connection i and makes its subscriptions.
func (n *neighbors) connect(ctx context.Context, conf *tls.Config, cfg quicx.Config, i int) (*quicx.Conn, error) {
	c, err := quicx.Dial(ctx, n.Addr, conf, cfg)
	if err != nil {
		return nil, err
	}
	for ; i < len(n.Streams); i += n.Conns {
		if err := n.subscribe(ctx, c, n.Streams[i]); err != nil {
			_ = c.Close(0, "")
			return nil, err
		}
	}
	return c, nil
}

// subscribe makes a subscription. Its event stream is not even accepted.
func (n *neighbors) subscribe(ctx context.Context, c *quicx.Conn, stream string) error {
	s, err := c.OpenStream(ctx)
	if err != nil {
		return err
	}
	request := codec.AppendAuth(nil, n.Tenant, n.Token, codec.KnownFlags, true, 0)
	request = codec.AppendSubscribe(request, n.Tenant, n.Namespace, stream, codec.Start{}, 0, false)
	if _, err := s.Send().Write(request); err != nil {
		return err
	}
	_ = s.Send().Close() // the broker may have stopped reading already
	fr := quicx.NewFrameReader(s.Recv(), 0)
	defer fr.Close()
	for {
		f, err := fr.Next()
		if err != nil {
			return fmt.Errorf("stall: subscribing to %s: %w", stream, err)
		}
		if bytes.Contains(f.Payload(), []byte(`"subscribed"`)) {
			return nil
		}
		if bytes.Contains(f.Payload(), []byte(`"error"`)) {
			return fmt.Errorf("stall: subscribing to %s: %s", stream, f.Payload())
		}
	}
}

// startNeighbors returns when all stalled subscriptions stand. stop ends them and their process.
func startNeighbors(b *brokerproc.Process, conns int, streams []string, progress func(string)) (stop func() error, err error) {
	p, err := selfproc.Start(nil, neighborsArg)
	if err != nil {
		return nil, err
	}
	stop = func() error {
		_ = p.In.Close()
		if err := p.Wait(); err != nil {
			return fmt.Errorf("stall: the neighbors' end: %w", err)
		}
		return nil
	}
	err = json.NewEncoder(p.In).Encode(neighbors{
		Addr: b.Addr, Tenant: b.Tenant, Namespace: b.Namespace, Token: b.Token, CertPEM: b.CertPEM, Conns: conns, Streams: streams,
	})
	lines := bufio.NewScanner(p.Out)
	for err == nil {
		if !lines.Scan() {
			err = errors.New("stall: the neighbors did not come to stand")
		} else if lines.Text() == allStand {
			return stop, nil
		} else {
			progress(lines.Text())
		}
	}
	return nil, errors.Join(err, stop())
}
