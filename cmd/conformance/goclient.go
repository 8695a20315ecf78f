package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"sync/atomic"

	"github.com/felix-mq/felix/client"
	"github.com/felix-mq/felix/codec"
	"github.com/felix-mq/felix/conformance/script"
)

// Any will do for a scripted broker.
const (
	tenant = "t1"
	token  = "token"
)

// goClient lets the cases drive package client, with all that a broker might not understand switched on.
type goClient struct {
	c atomic.Pointer[client.Client] // nil before Connect
}

func (a *goClient) Connect(ctx context.Context, to script.Endpoint) error {
	c, err := client.Connect(ctx, to.Addr, client.WithTLS(to.TLS()), client.WithToken(tenant, token), client.WithCompression())
	if err == nil {
		a.c.Store(c)
	}
	return err
}

func (a *goClient) Publish(ctx context.Context, namespace, stream string, payload []byte) error {
	return a.c.Load().Publisher(namespace, stream).Publish(ctx, payload)
}

func (a *goClient) PublishBatch(ctx context.Context, namespace, stream string, payloads [][]byte) error {
	return a.c.Load().Publisher(namespace, stream).Publish(ctx, payloads...)
}

func (a *goClient) Subscribe(ctx context.Context, namespace, stream string, start codec.Start) (script.Subscription, error) {
	opt := client.FromLatest()
	switch start.Kind {
	case codec.StartEarliest:
		opt = client.FromEarliest()
	case codec.StartOffset:
		opt = client.FromOffset(start.Offset)
	case codec.StartUnset, codec.StartLatest:
	}
	sub, err := a.c.Load().Subscribe(ctx, namespace, stream, opt, client.WithoutResume())
	if err != nil {
		return nil, err
	}
	return &goSubscription{sub}, nil
}

func (a *goClient) CachePut(ctx context.Context, namespace, cache, key string, value []byte) error {
	return a.c.Load().Cache(namespace, cache).Put(ctx, key, value, client.NoExpiry)
}

func (a *goClient) CacheGet(ctx context.Context, namespace, cache, key string) ([]byte, bool, error) {
	value, err := a.c.Load().Cache(namespace, cache).Get(ctx, key)
	if errors.Is(err, client.ErrMiss) {
		return nil, false, nil
	}
	return value, err == nil, err
}

func (a *goClient) Close() error {
	if c := a.c.Load(); c != nil {
		return c.Close()
	}
	return nil
}

type goSubscription struct{ s *client.Subscription }

func (a *goSubscription) Next(ctx context.Context) (script.Event, error) {
	ev, err := a.s.Next(ctx)
	for err == nil && ev.IsGap() {
		ev, err = a.s.Next(ctx)
	}
	if errors.Is(err, client.ErrEnded) {
		err = fmt.Errorf("%w: %w", script.ErrEnded, err)
	}
	return script.Event{Payload: bytes.Clone(ev.Payload), Offset: ev.Offset, HasOffset: ev.HasOffset}, err
}

func (a *goSubscription) Close() error { return a.s.Close() }
