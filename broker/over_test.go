package broker

import (
	"bytes"
	"testing"
	"time"

	"github.com/felix-mq/felix/codec"
	"github.com/felix-mq/felix/fanout"
	"github.com/felix-mq/felix/quicx"
)

// holdFirstPublish keeps the first publish in the broker, from when entered receives until block is closed.
func holdFirstPublish(t *testing.T, d *Dev) (entered <-chan struct{}, block chan struct{}) {
	t.Helper()
	topic := d.hub.Lookup([]byte(d.Tenant), []byte("default"), []byte("demo"))
	if topic == nil {
		t.Fatal("no stream")
	}
	begun := make(chan struct{}, 1)
	block = make(chan struct{})
	first := true
	sub, err := topic.Subscribe(fanout.From{}, fanout.SubscriptionOptions{Wake: func() {
		if first {
			first = false
			begun <- struct{}{}
			<-block
		}
	}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(sub.Close)
	return begun, block
}

// TestNothingAfterTheEnd: what a connection has sent and the broker has read, but not carried out before the connection
// ended, is not carried out later.
func TestNothingAfterTheEnd(t *testing.T) {
	d := startDev(t, nil)
	entered, block := holdFirstPublish(t, d)
	frames := authFrame(d)
	for range 50 {
		frames = codec.AppendPublishBatch(frames, d.Tenant, "default", "demo", [][]byte{bytes.Repeat([]byte("x"), 10)})
	}
	dialDev(t, d, quicx.Config{})(frames)
	select {
	case <-entered:
	case <-time.After(patience):
		t.Fatal("no publish came")
	}
	c := d.open()[0]
	_ = c.qc.Close(0, "")
	<-c.ctx.Done()
	close(block)
	c.streams.Wait()
	if n := d.metrics.publishedEvents.Load(); n != 1 {
		t.Errorf("%d events were published, 1 before the connection ended", n)
	}
}
