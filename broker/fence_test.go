package broker

import (
	"errors"
	"os"
	"testing"
	"time"

	"github.com/felix-mq/felix/codec"
	"github.com/felix-mq/felix/quicx"
)

func fencedAuth(d *Dev, id string, n uint64) []byte {
	return codec.AppendAuthFenced(nil, d.Tenant, d.Token, codec.KnownFlags, true, 0, codec.Fence{ID: id, Number: n})
}

// wantAuthOK reads the answer to an auth.
func wantAuthOK(t *testing.T, fr *quicx.FrameReader) {
	t.Helper()
	f, err := fr.Next()
	if err != nil {
		t.Fatal(err)
	}
	var m codec.Message
	if err := codec.ParseMessage(f.Payload(), &m); err != nil || m.Type != codec.MsgAuthOK {
		t.Fatalf("got %v %q, %v", m.Type, m.Text, err)
	}
}

// TestFence makes a second connection while the broker carries out a publish of the first one, and has more of them.
func TestFence(t *testing.T) {
	d := startDev(t, nil)
	entered, block := holdFirstPublish(t, d)
	publish := func(text string) []byte {
		return codec.AppendPublishBatch(nil, d.Tenant, "default", "demo", [][]byte{[]byte(text)})
	}
	frames := fencedAuth(d, "k", 1)
	for range 50 {
		frames = append(frames, publish("old")...)
	}
	dialDev(t, d, quicx.Config{})(frames)
	<-entered
	given := d.open()[0]

	fr := dialDev(t, d, quicx.Config{})(fencedAuth(d, "k", 2), publish("new"))
	answered := make(chan struct{})
	go func() {
		defer close(answered)
		wantAuthOK(t, fr)
	}()
	<-given.ctx.Done() // it is closed, but not done
	select {
	case <-answered:
		t.Error("the new connection may go on while the old one publishes")
	case <-time.After(20 * time.Millisecond):
	}
	close(block)
	<-answered
	for d.metrics.publishedEvents.Load() < 2 {
		time.Sleep(time.Millisecond)
	}
	given.streams.Wait()
	if n := d.metrics.publishedEvents.Load(); n != 2 {
		t.Errorf("%d events were published, want one of each connection", n)
	}

	// Others are not fenced, and what is older is.
	for _, other := range [][]byte{fencedAuth(d, "l", 1), fencedAuth(d, "", 0), authFrame(d)} {
		wantAuthOK(t, dialDev(t, d, quicx.Config{})(other))
	}
	if f, err := dialDev(t, d, quicx.Config{})(fencedAuth(d, "k", 1)).Next(); err == nil {
		var m codec.Message
		if err := codec.ParseMessage(f.Payload(), &m); err != nil || m.Type != codec.MsgError {
			t.Errorf("an older connection gets %v", m.Type)
		}
	} // or it is closed at once
	wantAuthOK(t, dialDev(t, d, quicx.Config{})(fencedAuth(d, "k", 3)))
	if _, err := fr.Next(); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("the second connection goes on: %v", err)
	}
}

// TestFencesAreForgotten ends connections with fences.
func TestFencesAreForgotten(t *testing.T) {
	d := startDev(t, nil)
	open := dialDev(t, d, quicx.Config{})
	wantAuthOK(t, open(fencedAuth(d, "k", 1)))
	wantAuthOK(t, open(fencedAuth(d, "l", 1))) // of one connection only the first counts
	count := func() int {
		d.fences.mu.Lock()
		defer d.fences.mu.Unlock()
		return len(d.fences.newest)
	}
	if n := count(); n != 1 {
		t.Errorf("%d fences", n)
	}
	_ = d.open()[0].qc.Close(0, "")
	for began := time.Now(); count() > 0; time.Sleep(time.Millisecond) {
		if time.Since(began) > patience {
			t.Fatal("the fence stays")
		}
	}
}
