package stall

import (
	"bytes"
	"context"
	"crypto/tls"
	"fmt"

	"golang.org/x/sync/errgroup"

	"github.com/felix-mq/felix/codec"
	"github.com/felix-mq/felix/internal/child"
	"github.com/felix-mq/felix/internal/dev"
	"github.com/felix-mq/felix/loadgen/brokerproc"
	"github.com/felix-mq/felix/quicx"
)

// neighborsRole is the role of a process that holds stalled subscriptions.
const neighborsRole = "stalled-neighbors"

// neighbors are subscriptions that are never read, held by a process of their own: their memory and its collection must
// not be charged to the healthy ones. The process is ready when all subscriptions stand.
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
	child.Serve(neighborsRole, func(ctx context.Context, n neighbors, parent *child.Parent) (any, error) {
		return nil, n.hold(ctx, parent)
	})
}

func (n *neighbors) hold(ctx context.Context, parent *child.Parent) error {
	conf, err := dev.ClientTLS(n.CertPEM)
	if err != nil {
		return err
	}
	// A dialed connection has a socket of its own: without GRO its buffers are 16 KiB instead of 256 KiB. The broker's
	// keep-alives are enough for both sides.
	cfg := quicx.Config{
		DisableGRO: true, RecvBuffer: 64 << 10, SendBuffer: 64 << 10, KeepAlive: -1,
		StreamWindow: stalledWindow, StreamsHint: len(n.Streams)/n.Conns + 1,
	}
	conns := make([]*quicx.Conn, n.Conns)
	dials, dialing := errgroup.WithContext(ctx)
	dials.SetLimit(dialsAtATime)
	for i := range conns {
		dials.Go(func() (err error) {
			conns[i], err = n.connect(dialing, conf, cfg, i)
			return err
		})
	}
	if err = dials.Wait(); err == nil {
		err = parent.Send("all stand")
	}
	if err == nil {
		<-ctx.Done()
	}
	for _, c := range conns {
		if c != nil {
			_ = c.Close(0, "")
		}
	}
	return err
}

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

// startNeighbors returns when all stalled subscriptions stand. The caller stops their process.
func startNeighbors(ctx context.Context, b *brokerproc.Process, conns int, streams []string) (*child.Process, error) {
	return child.Start(ctx, neighborsRole, neighbors{
		Addr: b.Addr, Tenant: b.Tenant, Namespace: b.Namespace, Token: b.Token, CertPEM: b.CertPEM, Conns: conns, Streams: streams,
	}, nil, new(string))
}
