package felixtest_test

import (
	"bytes"
	"testing"
	"time"

	"github.com/felix-mq/felix/client"
	"github.com/felix-mq/felix/client/felixtest"
)

// TestCacheRetries loses the connection in the middle of a large put, with binary requests and with those in JSON. The
// broker cannot have read it: it is sent again, and its outcome is that of the second attempt.
func TestCacheRetries(t *testing.T) {
	for _, tc := range []struct {
		name string
		opts []client.Option
	}{
		{"binary", nil},
		{"JSON", []client.Option{client.WithoutExtensions()}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			ctx := testContext(t)
			b := felixtest.Start(t)
			c := b.Connect(t, append(impatient(), tc.opts...)...)
			h := c.Cache(felixtest.Namespace, felixtest.Cache)
			for range 4 { // on each stream
				if err := h.Put(ctx, "key", []byte("before"), client.NoExpiry); err != nil {
					t.Fatal(err)
				}
			}
			big := bytes.Repeat([]byte("v"), 2<<20)
			before := c.Stats().BytesSent
			b.Pause()
			put := make(chan error, 1)
			go func() { put <- h.Put(ctx, "key", big, client.NoExpiry) }()
			for c.Stats().BytesSent < before+8<<10 && ctx.Err() == nil { // less than QUIC sends without an acknowledgement
				time.Sleep(time.Millisecond)
			}
			b.Kill()
			b.Revive(t)
			if err := <-put; err != nil {
				t.Fatalf("the put: %v", err)
			}
			if got, err := h.Get(ctx, "key"); err != nil || !bytes.Equal(got, big) {
				t.Errorf("got %d bytes, %v", len(got), err)
			}
		})
	}
}
