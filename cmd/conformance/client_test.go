package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/quic-go/quic-go"

	"github.com/felix-mq/felix/codec"
	"github.com/felix-mq/felix/conformance/script"
	"github.com/felix-mq/felix/internal/buf"
	"github.com/felix-mq/felix/quicx"
)

// TestClient gives package client to every case.
func TestClient(t *testing.T) {
	live := buf.Live()
	dir := t.TempDir()
	jsonFile, junitFile := filepath.Join(dir, "r.json"), filepath.Join(dir, "r.xml")
	code, stdout, stderr := runArgs("client", "--json", jsonFile, "--junit", junitFile, "--timeout", "30s")
	if code != exitOK || !strings.Contains(stdout, " 0 failed") {
		t.Errorf("status %d\n%s%s", code, stdout, stderr)
	}
	for _, file := range []string{jsonFile, junitFile} {
		if content, err := os.ReadFile(file); err != nil || !bytes.Contains(content, []byte("RAW-44")) {
			t.Errorf("%s: %v\n%s", file, err, content)
		}
	}
	if n := buf.Live() - live; n != 0 {
		t.Errorf("%d chunks were not released", n)
	}
}

// altered is package client with a fault in one of the calls, which the functions that are not nil stand for.
type altered struct {
	script.Client
	connect   func(ctx context.Context, to script.Endpoint) error
	publish   func(ctx context.Context, payload []byte, result error) error
	subscribe func(stream string, result error) error
	get       func(ctx context.Context, key string, value []byte, hit bool, result error) ([]byte, bool, error)
	next      func(ev script.Event, result error) (script.Event, error)
	keep      bool // subscriptions stay open
}

func (a *altered) Connect(ctx context.Context, to script.Endpoint) error {
	if a.connect != nil {
		return a.connect(ctx, to)
	}
	return a.Client.Connect(ctx, to)
}

func (a *altered) Publish(ctx context.Context, namespace, stream string, payload []byte) error {
	err := a.Client.Publish(ctx, namespace, stream, payload)
	if a.publish != nil {
		err = a.publish(ctx, payload, err)
	}
	return err
}

func (a *altered) Subscribe(ctx context.Context, namespace, stream string, start codec.Start) (script.Subscription, error) {
	sub, err := a.Client.Subscribe(ctx, namespace, stream, start)
	if a.subscribe != nil {
		err = a.subscribe(stream, err)
	}
	return &alteredSubscription{sub, a}, err
}

func (a *altered) CacheGet(ctx context.Context, namespace, cache, key string) ([]byte, bool, error) {
	value, hit, err := a.Client.CacheGet(ctx, namespace, cache, key)
	if a.get != nil {
		value, hit, err = a.get(ctx, key, value, hit, err)
	}
	return value, hit, err
}

type alteredSubscription struct {
	script.Subscription
	a *altered
}

func (s *alteredSubscription) Next(ctx context.Context) (script.Event, error) {
	ev, err := s.Subscription.Next(ctx)
	if s.a.next != nil {
		ev, err = s.a.next(ev, err)
	}
	return ev, err
}

func (s *alteredSubscription) Close() error {
	if s.a.keep || s.Subscription == nil {
		return nil
	}
	return s.Subscription.Close()
}

// The faults.

// poisoned fails for ever after one failure.
func poisoned() script.Client {
	var mu sync.Mutex
	var first error
	latch := func(err error) error {
		mu.Lock()
		defer mu.Unlock()
		if first == nil {
			first = err
		}
		return first
	}
	return &altered{
		Client:    &goClient{},
		publish:   func(_ context.Context, _ []byte, err error) error { return latch(err) },
		subscribe: func(_ string, err error) error { return latch(err) },
		get: func(_ context.Context, _ string, value []byte, hit bool, err error) ([]byte, bool, error) {
			return value, hit, latch(err)
		},
		next: func(ev script.Event, err error) (script.Event, error) { return ev, latch(err) },
	}
}

// silent hides failures.
func silent() script.Client {
	return &altered{
		Client:    &goClient{},
		publish:   func(context.Context, []byte, error) error { return nil },
		subscribe: func(string, error) error { return nil },
		get: func(_ context.Context, _ string, value []byte, hit bool, _ error) ([]byte, bool, error) {
			return value, hit, nil
		},
		next: func(ev script.Event, _ error) (script.Event, error) { return ev, nil },
	}
}

// hanging does not fail before it is closed.
type hanging struct {
	altered
	closed chan struct{}
	once   sync.Once
}

func newHanging() script.Client {
	h := &hanging{closed: make(chan struct{})}
	hang := func(err error) error {
		if err != nil {
			<-h.closed
		}
		return err
	}
	h.altered = altered{
		Client: &goClient{},
		connect: func(ctx context.Context, to script.Endpoint) error {
			return hang(h.Client.Connect(ctx, to))
		},
		publish:   func(_ context.Context, _ []byte, err error) error { return hang(err) },
		subscribe: func(_ string, err error) error { return hang(err) },
		get: func(_ context.Context, _ string, value []byte, hit bool, err error) ([]byte, bool, error) {
			return value, hit, hang(err)
		},
	}
	return h
}

func (h *hanging) Close() error {
	h.once.Do(func() { close(h.closed) })
	return h.Client.Close()
}

func garbling() script.Client {
	return &altered{Client: &goClient{}, next: func(ev script.Event, err error) (script.Event, error) {
		ev.Payload = append(ev.Payload, '?')
		return ev, err
	}}
}

func withoutOffsets() script.Client {
	return &altered{Client: &goClient{}, next: func(ev script.Event, err error) (script.Event, error) {
		ev.HasOffset = false
		return ev, err
	}}
}

// quietEnd reports whatever ends a subscription as its end.
func quietEnd() script.Client {
	return &altered{Client: &goClient{}, next: func(ev script.Event, err error) (script.Event, error) {
		if err != nil {
			err = script.ErrEnded
		}
		return ev, err
	}}
}

// loudEnd reports the end of a subscription as an error.
func loudEnd() script.Client {
	return &altered{Client: &goClient{}, next: func(ev script.Event, err error) (script.Event, error) {
		if err != nil {
			err = errors.New("stream closed")
		}
		return ev, err
	}}
}

// oddRequest is what the cases call the request that gets an odd answer.
const oddRequest = "victim"

// stopIsFailure fails the calls whose stream the broker stops reading, as far as the cases go.
func stopIsFailure() script.Client {
	return &altered{
		Client: &goClient{},
		publish: func(_ context.Context, payload []byte, err error) error {
			if string(payload) == oddRequest {
				err = errors.New("stream stopped by peer")
			}
			return err
		},
		subscribe: func(stream string, err error) error {
			if stream == oddRequest {
				err = errors.New("stream stopped by peer")
			}
			return err
		},
	}
}

func impatient() script.Client {
	c := &goClient{}
	return &altered{Client: c, connect: func(ctx context.Context, to script.Endpoint) error {
		ctx, cancel := context.WithTimeout(ctx, 20*time.Millisecond)
		defer cancel()
		return c.Connect(ctx, to)
	}}
}

func fewSubscriptions() script.Client {
	n := 0
	return &altered{Client: &goClient{}, subscribe: func(_ string, err error) error {
		if n++; n > 100 {
			err = errors.New("no stream credit")
		}
		return err
	}}
}

func openSubscriptions() script.Client { return &altered{Client: &goClient{}, keep: true} }

func missIsEmpty() script.Client {
	return &altered{Client: &goClient{}, get: func(_ context.Context, _ string, value []byte, _ bool, err error) ([]byte, bool, error) {
		return value, true, err
	}}
}

func emptyIsMiss() script.Client {
	return &altered{Client: &goClient{}, get: func(_ context.Context, _ string, value []byte, _ bool, err error) ([]byte, bool, error) {
		return value, len(value) > 0, err
	}}
}

// mixing gives the answer of a cache request to the next one.
func mixing() script.Client {
	var mu sync.Mutex
	var held []byte
	var heldErr error
	return &altered{Client: &goClient{}, get: func(_ context.Context, _ string, value []byte, _ bool, err error) ([]byte, bool, error) {
		mu.Lock()
		defer mu.Unlock()
		value, held = held, value
		err, heldErr = heldErr, err
		return value, value != nil, err
	}}
}

// oneByOne waits for the answer to a publish before it sends the next.
type oneByOne struct {
	goClient
	mu sync.Mutex
}

func (o *oneByOne) Publish(ctx context.Context, namespace, stream string, payload []byte) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.goClient.Publish(ctx, namespace, stream, payload)
}

// offering offers a protocol by ALPN.
type offering struct{ goClient }

func (o *offering) Connect(ctx context.Context, to script.Endpoint) error {
	conf := to.TLS()
	conf.NextProtos = []string{"felix"}
	conf.MinVersion = tls.VersionTLS13
	c, err := quic.DialAddr(ctx, to.Addr, conf, nil)
	if err != nil {
		return err
	}
	return c.CloseWithError(0, "")
}

// rash sends what nobody offered: it writes frames by hand, each on a stream and a connection of its own.
type rash struct {
	goClient
	to    script.Endpoint
	frame []byte
}

func (r *rash) Connect(ctx context.Context, to script.Endpoint) error {
	r.to = to
	return r.goClient.Connect(ctx, to)
}

func (r *rash) Publish(ctx context.Context, namespace, stream string, payload []byte) error {
	c, err := quicx.Dial(ctx, r.to.Addr, r.to.TLS(), quicx.Config{})
	if err != nil {
		return err
	}
	defer c.Close(0, "")
	s, err := c.OpenStream(ctx)
	if err != nil {
		return err
	}
	if _, err := s.Send().Write(append(codec.AppendAuth(nil, tenant, token, codec.KnownFlags, true, 0), r.frame...)); err != nil {
		return err
	}
	fr := quicx.NewFrameReader(s.Recv(), 0)
	defer fr.Close()
	for range 2 { // what there is, or the end
		if _, err := fr.Next(); err != nil {
			break
		}
	}
	return r.goClient.Publish(ctx, namespace, stream, payload)
}

func rashly(frame []byte) func() script.Client {
	return func() script.Client { return &rash{frame: frame} }
}

// TestClientFaults gives the cases clients that they have to refuse. Each case refuses one at least.
func TestClientFaults(t *testing.T) {
	acked := codec.AppendPublishBatchAcked(nil, 1, codec.AckPerBatch, tenant, "default", "demo", nil)
	extension := codec.AppendCompressedPublish(nil, 1, codec.AckPerBatch, tenant, "default", "demo", 0, 0, 0)
	positioned := codec.AppendSubscribe(nil, tenant, "default", "demo", codec.Start{Kind: codec.StartEarliest}, 0, false)
	malformed := codec.AppendHeader(nil, codec.LayoutJSON, 0)
	faults := []struct {
		name  string
		limit time.Duration // of a case; what is refused for taking too long costs that much
		make  func() script.Client
		cases string
	}{
		{"offers ALPN", 10 * time.Second, func() script.Client { return &offering{} }, "IC-01"},
		{"sends 0x0009 unasked", 10 * time.Second, rashly(acked), "IC-17 C4-01"},
		{"sends 0x8000 unasked", 10 * time.Second, rashly(extension), "C4-01"},
		{"sends start positions unasked", 10 * time.Second, rashly(positioned), "IC-17 C4-01"},
		{"sends what cannot be read", 10 * time.Second, rashly(malformed), "IC-35"},
		{"hides failures", 10 * time.Second, silent, "IC-17 C4-01 IC-32 IC-33 IC-42 C3-03 C3-04a C3-04b C3-04c C3-05a C3-05b C3-05c " +
			"C3-06a C3-06b C3-06c C3-07a C3-07b C3-07c CD26b CD26c CD26d CD26f CD26g CD04 C7-04 RAW-44"},
		{"fails for ever after one failure", 10 * time.Second, poisoned, "IC-33 IC-42 IC-56 C3-03 C3-04a C3-04b C3-04c C3-05a C3-05b " +
			"C3-05c C3-06a C3-06b C3-06c C3-07a C3-07b C3-07c CD26b CD26c CD26d CD26f CD26g CD04 CD28 C8-02 C7-02 C7-03 C7-04"},
		{"has no time limits", time.Second, newHanging, "CD26a CD26b CD26c CD26d CD26f CD26g"},
		{"waits for each acknowledgement", time.Second, func() script.Client { return &oneByOne{} }, "IC-32 C3-03"},
		{"garbles events", 10 * time.Second, garbling, "IC-17b IC-20 IC-35 IC-36 IC-36b IC-41 IC-42 IC-46 IC-48 C3-02 C4-02 C7-05 " +
			"CD25 CD26e C12-01 C12-02 C12-03 C12-04"},
		{"loses offsets", 10 * time.Second, withoutOffsets, "IC-41 IC-42 C12-04"},
		{"takes every end for a good one", 10 * time.Second, quietEnd, "RAW-44 IC-56 C7-02 C7-03 CD29 CD32 CD33a CD33b CD33c"},
		{"takes a good end for an error", 10 * time.Second, loudEnd, "C7-01"},
		{"takes STOP_SENDING for a failure", 10 * time.Second, stopIsFailure, "C3-01 C3-02"},
		{"gives auth 20 ms", 10 * time.Second, impatient, "C4-03"},
		{"has 100 subscriptions at most", 10 * time.Second, fewSubscriptions, "IC-48"},
		{"keeps subscriptions open", time.Second, openSubscriptions, "CD27"},
		{"takes a miss for an empty value", 10 * time.Second, missIsEmpty, "IC-50 C8-01"},
		{"takes an empty value for a miss", 10 * time.Second, emptyIsMiss, "IC-50 C8-01"},
		{"mixes cache replies up", 10 * time.Second, mixing, "IC-50 CD28 C8-02"},
	}
	cases := make(map[string]script.Case)
	for _, c := range script.Cases() {
		cases[c.ID] = c
	}
	refuses := make(map[string]bool)
	for _, fault := range faults {
		for id := range strings.FieldsSeq(fault.cases) {
			c, ok := cases[id]
			if !ok {
				t.Errorf("no case %q", id)
				continue
			}
			refuses[id] = true
			t.Run(id+"/"+fault.name, func(t *testing.T) {
				t.Parallel()
				ctx, cancel := context.WithTimeout(t.Context(), fault.limit)
				defer cancel()
				f := tryCase(ctx, c, func(context.Context) (script.Client, func() error, error) {
					return fault.make(), func() error { return nil }, nil
				})
				if f == nil {
					t.Fatal("the case passed")
				}
				t.Log(f)
			})
		}
	}
	for id := range cases {
		if !refuses[id] {
			t.Errorf("no client is refused by %s", id)
		}
	}
}

// TestClientRows sees that the report has each row of the checklist once, and that cases and titles differ.
func TestClientRows(t *testing.T) {
	var ids []string
	for _, c := range clientRows() {
		if slices.Contains(ids, c.ID) {
			t.Errorf("two cases %s", c.ID)
		}
		ids = append(ids, c.ID)
	}
	if _, err := clientSkips(); err != nil {
		t.Error(err)
	}
	for id := range strings.FieldsSeq("01 03 17 19 20 32 33 35 36 39 40 41 42 46 47 48 49 50 51 56 59") {
		if !slices.Contains(ids, "IC-"+id) {
			t.Errorf("no row IC-%s", id)
		}
	}
}
