package main

import (
	"context"
	"fmt"
	"path/filepath"
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
		"connections as by default, PUBLISH and SUBSCRIBE. Client rueidis; a PUBLISH for each event, all that the window has room for in one " +
		"pipeline, whose replies are awaited.",
	version: func() (string, error) { return versionOf("v", redisProgram, "--version") },
	start:   startRedis,
	connect: connectRedis,
}

// startRedis starts Redis without persistence, over TLS 1.3 alone or in the clear.
func startRedis(ctx context.Context, secure bool) (*server, error) {
	s, err := startServer(ctx, redisProgram, func(f files) ([]string, error) {
		args := []string{
			"--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--dir", f.dir, "--logfile", filepath.Join(f.dir, "log"),
			"--client-output-buffer-limit", "pubsub 0 0 0",
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
	fail      context.CancelCauseFunc
	cancel    context.CancelFunc // ends the subscription, if there is one
	receivers sync.WaitGroup
	cmds      rueidis.Commands
}

func connectRedis(_ context.Context, s *server, fail context.CancelCauseFunc) (session, error) {
	c, err := rueidis.NewClient(rueidis.ClientOption{
		InitAddress: []string{s.addr}, TLSConfig: s.tls, DisableCache: true, DisableRetry: true, PipelineMultiplex: -1, // one connection
	})
	if err != nil {
		return nil, err
	}
	return &redisSession{c: c, fail: fail}, nil
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
	r.c.Close()
	r.receivers.Wait()
}
