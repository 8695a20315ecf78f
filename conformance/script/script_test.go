package script_test

import (
	"context"
	"crypto/tls"
	"errors"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/felix-mq/felix/client"
	"github.com/felix-mq/felix/codec"
	"github.com/felix-mq/felix/conformance/script"
	"github.com/felix-mq/felix/internal/buf"
	"github.com/felix-mq/felix/quicx"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// guard bounds a test that hangs.
const guard = 20 * time.Second

func listen(t *testing.T, ctx context.Context) *script.Server {
	t.Helper()
	live := buf.Live()
	s, err := script.Listen(ctx, quicx.Config{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		s.Close()
		if n := buf.Live() - live; n != 0 {
			t.Errorf("%d chunks were not released", n)
		}
	})
	return s
}

// goClient lets the cases drive package client.
type goClient struct{ c *client.Client }

func (a *goClient) Connect(ctx context.Context, addr string, conf *tls.Config) (err error) {
	a.c, err = client.Connect(ctx, addr, client.WithTLS(conf), client.WithToken("t1", "token"))
	return err
}

func (a *goClient) Publish(ctx context.Context, namespace, stream string, payload []byte) error {
	return a.c.Publisher(namespace, stream).Publish(ctx, payload)
}

func (a *goClient) PublishBatch(ctx context.Context, namespace, stream string, payloads [][]byte) error {
	return a.c.Publisher(namespace, stream).PublishBatch(ctx, payloads)
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
	sub, err := a.c.Subscribe(ctx, namespace, stream, opt)
	if err != nil {
		return nil, err
	}
	return goSubscription{sub}, nil
}

func (a *goClient) CachePut(ctx context.Context, namespace, cache, key string, value []byte) error {
	return a.c.Cache(namespace, cache).Put(ctx, key, value, client.NoExpiry)
}

func (a *goClient) CacheGet(ctx context.Context, namespace, cache, key string) ([]byte, bool, error) {
	value, err := a.c.Cache(namespace, cache).Get(ctx, key)
	if errors.Is(err, client.ErrMiss) {
		return nil, false, nil
	}
	return value, err == nil, err
}

func (a *goClient) Close() error {
	if a.c == nil {
		return nil
	}
	return a.c.Close()
}

type goSubscription struct{ s *client.Subscription }

func (a goSubscription) Next(ctx context.Context) (script.Event, error) {
	ev, err := a.s.Next(ctx)
	return script.Event{Payload: append([]byte(nil), ev.Payload...), Offset: ev.Offset, HasOffset: ev.HasOffset}, err
}

func (a goSubscription) Close() error { return a.s.Close() }

func TestCases(t *testing.T) {
	for _, tc := range script.Cases() {
		t.Run(tc.ID, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), guard)
			defer cancel()
			s := listen(t, ctx)
			c := &goClient{}
			defer c.Close()
			if err := tc.Run(ctx, s, c); err != nil {
				t.Errorf("%s: %v", tc.Title, err)
			}
		})
	}
}

// lazyClient is a client that gets things wrong, to see that the cases notice.
type lazyClient struct {
	goClient
	wrong string
}

func (l *lazyClient) Publish(ctx context.Context, namespace, stream string, payload []byte) error {
	err := l.goClient.Publish(ctx, namespace, stream, payload)
	switch l.wrong {
	case "ignores refusals":
		return nil
	case "fails for ever after one refusal":
		if err == nil && stream == "another" {
			return errors.New("stream is poisoned")
		}
	}
	return err
}

func (l *lazyClient) Subscribe(ctx context.Context, namespace, stream string, start codec.Start) (script.Subscription, error) {
	if l.wrong == "ignores start positions" {
		start = codec.Start{}
	}
	sub, err := l.goClient.Subscribe(ctx, namespace, stream, start)
	if err != nil {
		return nil, err
	}
	return lazySubscription{sub, l.wrong}, nil
}

type lazySubscription struct {
	script.Subscription
	wrong string
}

func (l lazySubscription) Next(ctx context.Context) (script.Event, error) {
	ev, err := l.Subscription.Next(ctx)
	switch {
	case l.wrong == "drops an event" && string(ev.Payload) != "":
		ev, err = l.Subscription.Next(ctx)
	case l.wrong == "loses offsets":
		ev.HasOffset = false
	case l.wrong == "hides errors":
		err = nil
	}
	return ev, err
}

// TestCasesJudge gives the cases clients that they have to refuse.
func TestCasesJudge(t *testing.T) {
	cases := make(map[string]script.Case)
	for _, tc := range script.Cases() {
		cases[tc.ID] = tc
	}
	for _, tc := range []struct{ id, wrong string }{
		{"IC-17", "ignores start positions"},
		{"IC-32", "ignores refusals"},
		{"IC-33", "ignores refusals"},
		{"IC-33", "fails for ever after one refusal"},
		{"IC-36", "drops an event"},
		{"IC-36b", "drops an event"},
		{"IC-41", "loses offsets"},
		{"IC-44", "hides errors"},
		{"IC-legacy", "drops an event"},
	} {
		t.Run(tc.id+"/"+tc.wrong, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), guard)
			defer cancel()
			s := listen(t, ctx)
			c := &lazyClient{wrong: tc.wrong}
			defer c.Close()
			if err := cases[tc.id].Run(ctx, s, c); err == nil {
				t.Error("the case passed")
			} else {
				t.Log(err)
			}
		})
	}
}

// TestNormalReplay looks at the start positions of a topic whose oldest events are gone.
func TestNormalReplay(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), guard)
	defer cancel()
	s := listen(t, ctx)
	n := script.NewNormal()
	s.Go(func() { n.Serve(s) })
	c := &goClient{}
	defer c.Close()
	if err := c.Connect(ctx, s.Addr(), s.ClientTLS()); err != nil {
		t.Fatal(err)
	}
	const kept, gone = 1024, 76
	if err := c.PublishBatch(ctx, "default", "demo", make([][]byte, kept+gone)); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		name    string
		start   codec.Start
		first   uint64
		refused *client.CursorError
	}{
		{"earliest", codec.Start{Kind: codec.StartEarliest}, gone, nil},
		{"the oldest", codec.Start{Kind: codec.StartOffset, Offset: gone}, gone, nil},
		{"the last", codec.Start{Kind: codec.StartOffset, Offset: kept + gone - 1}, kept + gone - 1, nil},
		{"too old", codec.Start{Kind: codec.StartOffset, Offset: gone - 1}, 0, &client.CursorError{TooOld: true, Requested: gone - 1, Available: gone}},
		{"in the future", codec.Start{Kind: codec.StartOffset, Offset: kept + gone + 1}, 0, &client.CursorError{Requested: kept + gone + 1, Available: kept + gone}},
	} {
		sub, err := c.Subscribe(ctx, "default", "demo", tc.start)
		if refused, ok := errors.AsType[*client.CursorError](err); ok || tc.refused != nil {
			if !ok || tc.refused == nil || *refused != *tc.refused {
				t.Errorf("%s: got %v, want %v", tc.name, err, tc.refused)
			}
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		if ev, err := sub.Next(ctx); err != nil || !ev.HasOffset || ev.Offset != tc.first {
			t.Errorf("%s: got %+v, %v, want the offset %d", tc.name, ev, err, tc.first)
		}
		sub.Close()
	}
}

// TestRelay sees that datagrams pass until they do not.
func TestRelay(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), guard)
	defer cancel()
	s := listen(t, ctx)
	n := script.NewNormal()
	s.Go(func() { n.Serve(s) })
	r, err := script.NewRelay(s)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	qc, err := quicx.Dial(ctx, r.Addr(), s.ClientTLS(), quicx.Config{})
	if err != nil {
		t.Fatal(err)
	}
	defer qc.Close(0, "")
	r.Silence()
	short, cancel := context.WithTimeout(ctx, 100*time.Millisecond)
	defer cancel()
	if qc, err := quicx.Dial(short, r.Addr(), s.ClientTLS(), quicx.Config{}); err == nil {
		qc.Close(0, "")
		t.Error("a silent relay let a handshake through")
	}
}
