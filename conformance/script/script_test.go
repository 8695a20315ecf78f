package script_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/felix-mq/felix/client"
	"github.com/felix-mq/felix/conformance/script"
	"github.com/felix-mq/felix/internal/buf"
	"github.com/felix-mq/felix/internal/relay"
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

// TestNormalReplay looks at the start positions of a topic whose oldest events are gone.
func TestNormalReplay(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), guard)
	defer cancel()
	s := listen(t, ctx)
	n := script.NewNormal()
	s.Go(func() { n.Serve(s) })
	c, err := client.Connect(ctx, s.Addr(), client.WithTLS(s.ClientTLS()), client.WithToken("t1", "token"))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	const kept, gone = 1024, 76
	if err := c.Publisher("default", "demo").Publish(ctx, make([][]byte, kept+gone)...); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		name    string
		start   client.SubscribeOption
		first   uint64
		refused *client.CursorError
	}{
		{"earliest", client.FromEarliest(), gone, nil},
		{"the oldest", client.FromOffset(gone), gone, nil},
		{"the last", client.FromOffset(kept + gone - 1), kept + gone - 1, nil},
		{"too old", client.FromOffset(gone - 1), 0, &client.CursorError{TooOld: true, Requested: gone - 1, Available: gone}},
		{"in the future", client.FromOffset(kept + gone + 1), 0, &client.CursorError{Requested: kept + gone + 1, Available: kept + gone}},
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
	r, err := relay.New(s.Addr())
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	qc, err := quicx.Dial(ctx, r.Addr(), s.ClientTLS(), quicx.Config{})
	if err != nil {
		t.Fatal(err)
	}
	defer qc.Close(0, "")
	r.Silence(true)
	short, cancel := context.WithTimeout(ctx, 100*time.Millisecond)
	defer cancel()
	if qc, err := quicx.Dial(short, r.Addr(), s.ClientTLS(), quicx.Config{}); err == nil {
		qc.Close(0, "")
		t.Error("a silent relay let a handshake through")
	}
}
