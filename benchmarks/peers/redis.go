package main

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"strconv"
	"sync"
	"unsafe"

	"github.com/redis/rueidis"
)

const (
	redisName    = "redis"
	redisProgram = "redis-server"
)

var redisPeer = peer{
	title: "Redis",
	setup: "redis-server of the system, persistence off, no limit on a subscriber's output buffer (the window is one), one thread for all " +
		"connections as by default, PUBLISH and SUBSCRIBE. Client rueidis; a PUBLISH for each event, all that the window allows, 1 MiB at most, in one " +
		"pipeline, whose replies are awaited. With no_reply 1 the publisher turns replies off (CLIENT REPLY OFF) and writes the commands itself, " +
		"since no client library does that.",
	knobs: []knob{
		inFlightKnob, loadProcsKnob,
		{name: noReply, about: "1 has the server send no replies to the publisher", values: []int{0, 1}, throughput: true},
		{name: ioThreads, about: "threads of the server that write to sockets", values: []int{1, 2}},
		{name: writeBuffer, about: "of each connection of the client", values: []int{512 << 10, 64 << 10}, bytes: true},
		socketBufferKnob,
	},
	version: func() (string, error) { return versionOf("v", redisProgram, "--version") },
	start:   startRedis,
	connect: connectRedis,
}

// startRedis starts Redis without persistence, over TLS 1.3 alone or in the clear.
func startRedis(ctx context.Context, secure bool, set settings) (*server, error) {
	s, err := startServer(ctx, redisProgram, func(f files) ([]string, error) {
		args := []string{
			"--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--dir", f.dir, "--logfile", filepath.Join(f.dir, "log"),
			"--client-output-buffer-limit", "pubsub 0 0 0",
		}
		if n := set[ioThreads]; n > 1 {
			args = append(args, "--io-threads", strconv.Itoa(n))
		}
		if !secure {
			return append(args, "--port", f.port), nil
		}
		return append(args, "--port", "0", "--tls-port", f.port, "--tls-protocols", "TLSv1.3", "--tls-auth-clients", "no",
			"--tls-cert-file", f.cert, "--tls-key-file", f.key, "--tls-ca-cert-file", f.cert), nil
	})
	if err == nil && !secure {
		s.tls = nil
	}
	return s, err
}

type redisSession struct {
	c         rueidis.Client
	fail      func(error)
	cancel    context.CancelFunc // ends the subscription, if there is one
	receivers sync.WaitGroup
	cmds      rueidis.Commands
	direct    *redisPublisher // in place of c, if not nil
}

func connectRedis(ctx context.Context, s *server, set settings, fail func(error)) (session, error) {
	c, err := rueidis.NewClient(rueidis.ClientOption{
		InitAddress: []string{s.addr}, TLSConfig: s.tls, DisableCache: true, DisableRetry: true,
		PipelineMultiplex:   -1, // one connection
		WriteBufferEachConn: set[writeBuffer],
		DialCtxFn: func(ctx context.Context, addr string, _ *net.Dialer, conf *tls.Config) (net.Conn, error) {
			return dialTLS(ctx, addr, conf, set)
		},
	})
	if err != nil {
		return nil, err
	}
	r := &redisSession{c: c, fail: fail}
	if set[noReply] != 0 {
		if r.direct, err = newRedisPublisher(ctx, s, set); err != nil {
			c.Close()
			return nil, err
		}
	}
	return r, nil
}

// dialTLS opens a connection, with TLS unless conf is nil.
func dialTLS(ctx context.Context, addr string, conf *tls.Config, set settings) (net.Conn, error) {
	c, err := set.dial(ctx, addr)
	if err != nil || conf == nil {
		return c, err
	}
	secure := tls.Client(c, conf)
	if err := secure.HandshakeContext(ctx); err != nil {
		return nil, errors.Join(err, c.Close())
	}
	return secure, nil
}

// redisPublisher is a connection without replies.
type redisPublisher struct {
	conn net.Conn
	out  *bufio.Writer
	head []byte // of a command, up to the length of the event
}

func newRedisPublisher(ctx context.Context, s *server, set settings) (*redisPublisher, error) {
	c, err := dialTLS(ctx, s.addr, s.tls, set)
	if err != nil {
		return nil, err
	}
	p := &redisPublisher{conn: c, out: bufio.NewWriterSize(c, set[writeBuffer])}
	p.head = fmt.Appendf(nil, "*3\r\n$7\r\nPUBLISH\r\n$%d\r\n%s\r\n$", len(subject), subject)
	if _, err := p.out.WriteString("*3\r\n$6\r\nCLIENT\r\n$5\r\nREPLY\r\n$3\r\nOFF\r\n"); err != nil {
		return nil, errors.Join(err, c.Close())
	}
	return p, nil
}

func (p *redisPublisher) publish(events [][]byte) error {
	for _, event := range events {
		_, _ = p.out.Write(p.head) // Flush tells the first error
		_, _ = p.out.Write(strconv.AppendInt(p.out.AvailableBuffer(), int64(len(event)), 10))
		_, _ = p.out.WriteString("\r\n")
		_, _ = p.out.Write(event)
		_, _ = p.out.WriteString("\r\n")
	}
	return p.out.Flush()
}

func (r *redisSession) subscribe(ctx context.Context, receive func([]byte)) error {
	if r.cancel != nil {
		return errOneSubscription
	}
	ctx, r.cancel = context.WithCancel(ctx)
	subscribed := make(chan struct{})
	hooked := rueidis.WithOnSubscriptionHook(ctx, func(s rueidis.PubSubSubscription) {
		if s.Kind == "subscribe" {
			close(subscribed) // there are no retries, so it is the only one
		}
	})
	r.receivers.Go(func() { // ends with close
		err := r.c.Receive(hooked, r.c.B().Subscribe().Channel(subject).Build(), func(m rueidis.PubSubMessage) {
			receive(unsafe.Slice(unsafe.StringData(m.Message), len(m.Message))) // which only reads
		})
		if ctx.Err() == nil {
			r.fail(fmt.Errorf("redis: subscription: %w", err))
		}
	})
	select {
	case <-subscribed:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (r *redisSession) publish(ctx context.Context, events [][]byte) error {
	if r.direct != nil {
		return r.direct.publish(events)
	}
	r.cmds = r.cmds[:0]
	for _, event := range events {
		r.cmds = append(r.cmds, r.c.B().Publish().Channel(subject).Message(rueidis.BinaryString(event)).Build())
	}
	for _, reply := range r.c.DoMulti(ctx, r.cmds...) {
		if err := reply.Error(); err != nil {
			return err
		}
	}
	return nil
}

func (r *redisSession) close() {
	if r.cancel != nil {
		r.cancel()
	}
	if r.direct != nil {
		_ = r.direct.conn.Close()
	}
	r.c.Close()
	r.receivers.Wait()
}
