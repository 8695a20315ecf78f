package broker_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/klauspost/compress/s2"

	"github.com/felix-mq/felix/broker"
	"github.com/felix-mq/felix/catalog"
	"github.com/felix-mq/felix/client"
	"github.com/felix-mq/felix/codec"
	"github.com/felix-mq/felix/internal/vfs"
	"github.com/felix-mq/felix/storage"
)

// publishing sends publishes with an origin on a stream of its own.
type publishing struct {
	*control
	d    *broker.Dev
	last uint64 // request id
}

func (p *peer) publishing() *publishing {
	p.t.Helper()
	ctl := p.open(p.auth())
	ctl.wantMessage(codec.MsgAuthOK, "")
	return &publishing{ctl, p.d, 0}
}

// give publishes an item, and compares what is answered: "" is a success.
func (p *publishing) give(stream string, producer byte, sequence uint64, repeated bool, item, want string) {
	p.t.Helper()
	p.last++
	o := codec.Origin{Producer: [16]byte{producer}, Sequence: sequence, Repeated: repeated}
	if sequence%2 == 0 { // compressed
		raw := codec.AppendItems(nil, [][]byte{[]byte(item)})[4:]
		block := s2.Encode(nil, raw)
		p.send(append(codec.AppendCompressedPublishFrom(nil, o, p.last, codec.AckPerBatch, p.d.Tenant, "default", stream, 1, len(raw), len(block)), block...))
	} else {
		p.send(codec.AppendPublishFrom(nil, o, p.last, codec.AckPerMessage, p.d.Tenant, "default", stream, [][]byte{[]byte(item)}))
	}
	if id, text := p.next(); id != p.last || text != want {
		p.t.Errorf("%q: reply %q to request %d, want %q to %d", item, text, id, want, p.last)
	}
}

// TestPublishFrom publishes batches that come again: in the same life of the broker and in the next, on other streams
// and connections, early and late. Each is in the stream once, and where that is not known the publisher hears it.
func TestPublishFrom(t *testing.T) {
	checkBuffers(t)
	fs := &vfs.Mem{}
	d := begin(t, durable(fs, "data"))
	p := dialPeer(t, d.Dev).publishing()
	p.give("demo", 1, 1, false, "one", "")
	p.give("demo", 1, 1, true, "one", "")
	p.give("demo", 1, 2, true, "two", "") // the first attempt did not arrive
	p.give("demo", 1, 5, false, "five", "")
	p.give("demo", 1, 4, true, "four", "") // late
	p.give("demo", 1, 4, true, "four", "")
	p.give("other", 1, 4, false, "elsewhere", "")
	p.give("demo", 2, 1, true, "another's", "") // nobody was forgotten, so it is new
	dialPeer(t, d.Dev).publishing().give("demo", 1, 2, true, "two", "")
	if n := metric(t, d.Dev, "felix_publish_duplicates_total"); n != 3 {
		t.Errorf("%v duplicates counted, want 3", n)
	}
	d.end(t)

	d = begin(t, durable(fs, "data"))
	p = dialPeer(t, d.Dev).publishing()
	for i, item := range map[uint64]string{1: "one", 2: "two", 4: "four", 5: "five"} {
		p.give("demo", 1, i, true, item, "")
	}
	p.give("demo", 1, 3, true, "three", "")
	p.give("demo", 1, 5+storage.SequenceWindow, false, "far", "")
	p.give("demo", 1, 5, true, "five", codec.SequenceOldAck.Text)
	p.give("demo", 1, 7, true, "seven", "")
	for i := range byte(3) { // the last one forgets one that is known
		for k := range storage.MaxProducers / 2 {
			o := codec.Origin{Producer: [16]byte{100 + i, byte(k), byte(k >> 8)}, Sequence: 1}
			p.last++
			p.send(codec.AppendPublishFrom(nil, o, p.last, codec.AckPerBatch, d.Tenant, "default", "other", [][]byte{[]byte("x")}))
		}
		for range storage.MaxProducers / 2 {
			if _, text := p.next(); text != "" {
				t.Fatal(text)
			}
		}
	}
	p.give("other", 1, 4, true, "elsewhere", codec.ProducerUnknownAck.Text)
	p.give("other", 99, 1, true, "new, perhaps", codec.ProducerUnknownAck.Text)
	p.give("other", 99, 2, false, "new", "")
	if n := metric(t, d.Dev, "felix_producers_forgotten_total"); n != storage.MaxProducers/2+2 {
		t.Errorf("%v forgotten, want %d", n, storage.MaxProducers/2+2)
	}

	ctx := testContext(t)
	c := connect(t, d.Dev)
	wantOffsets(ctx, t, subscribe(t, c, "demo", client.FromEarliest()), 0, "one", "two", "five", "four", "another's", "three", "far", "seven")
	c.Close()
	d.end(t)
}

// TestPublishFromInMemory publishes to streams that remember no producers: the acknowledgement says so, and a repeated
// publish is refused.
func TestPublishFromInMemory(t *testing.T) {
	d := begin(t, durable(&vfs.Mem{}, "data"))
	defer d.end(t)
	if err := d.PutStream(d.Tenant, "default", "memory", catalog.Stream{}); err != nil {
		t.Fatal(err)
	}
	p := dialPeer(t, d.Dev).publishing()
	for i, stream := range []string{"memory", "demo"} {
		p.send(codec.AppendPublishFrom(nil, codec.Origin{Sequence: 1}, 7, codec.AckPerBatch, d.Tenant, "default", stream, [][]byte{[]byte("x")}))
		f, err := p.fr.Next()
		if err != nil {
			t.Fatal(err)
		}
		if a, err := codec.ParsePublishAck(f.Payload()); err != nil || !a.OK || a.NotKept != (i == 0) {
			t.Errorf("%s: acknowledgement %+v, %v", stream, a, err)
		}
	}
	p.give("memory", 0, 1, true, "x", codec.ProducerUnknownAck.Text)
	p.give("nowhere", 0, 1, true, "x", "stream not found: tenant="+d.Tenant+" namespace=default stream=nowhere")

	plain := dialPeer(t, d.Dev).open(codec.AppendAuth(nil, d.Tenant, d.Token, codec.KnownFlags, true, codec.ExtGaps),
		codec.AppendPublishFrom(nil, codec.Origin{}, 1, codec.AckPerBatch, d.Tenant, "default", "demo", nil))
	plain.wantMessage(codec.MsgAuthOK, "")
	plain.wantMessage(codec.MsgError, "unsupported frame flags")

	// An origin that is cut off: there is no id to answer to.
	frame := codec.AppendPublishFrom(nil, codec.Origin{}, 1, codec.AckPerBatch, d.Tenant, "default", "demo", nil)
	short := codec.AppendHeader(nil, codec.LayoutExtension, codec.OriginLen)
	p.send(append(short, frame[codec.HeaderLen:codec.HeaderLen+codec.OriginLen]...))
	p.wantEnd()
}

// TestNoPublishFrom offers a publish with an origin to a broker that has no data directory, and no use for it.
func TestNoPublishFrom(t *testing.T) {
	p := dialPeer(t, start(t, nil))
	ctl := p.open(p.auth(), codec.AppendPublishFrom(nil, codec.Origin{}, 1, codec.AckPerBatch, p.d.Tenant, "default", "demo", nil))
	ctl.wantMessage(codec.MsgAuthOK, "")
	ctl.wantMessage(codec.MsgError, "unsupported frame flags")
}

// TestDuplicateIsOwed publishes a batch again while the disk holds the first one up. Neither is answered before it is
// on the device, and both are in the order of requests. When the disk fails, both are in doubt.
func TestDuplicateIsOwed(t *testing.T) {
	for _, fails := range []bool{false, true} {
		var held atomic.Bool
		gate, waiting := make(chan struct{}), make(chan struct{}, 100)
		d := begin(t, durable(vfs.Faulty{FS: &vfs.Mem{}, Before: func(op vfs.Op, name string) error {
			if op != vfs.OpSync || !held.Load() || !strings.HasSuffix(name, ".wal") {
				return nil
			}
			waiting <- struct{}{}
			<-gate
			if fails {
				return errors.New("broken")
			}
			return nil
		}}, "data"))
		p := dialPeer(t, d.Dev).publishing()
		p.give("demo", 1, 1, false, "before", "")
		held.Store(true)
		frame := func(id uint64, repeated bool) []byte {
			o := codec.Origin{Producer: [16]byte{1}, Sequence: 2, Repeated: repeated}
			return codec.AppendPublishFrom(nil, o, id, codec.AckPerBatch, d.Tenant, "default", "demo", [][]byte{[]byte("once")})
		}
		p.send(frame(10, false))
		<-waiting
		p.send(frame(11, true))
		other := dialPeer(t, d.Dev).publishing()
		other.send(frame(12, true))
		// A publish that is refused is answered at once, but after those that are owed.
		p.send(codec.AppendPublishBatchAcked(nil, 13, codec.AckPerBatch, d.Tenant, "default", "nowhere", [][]byte{[]byte("x")}))
		held.Store(false)
		close(gate)
		for _, id := range []uint64{10, 11, 13} {
			want := ""
			switch {
			case id == 13:
				want = "stream not found: tenant=" + d.Tenant + " namespace=default stream=nowhere"
			case fails:
				want = codec.StorageFailedAck.Text
			}
			if got, text := p.next(); got != id || text != want {
				t.Errorf("fails %v: reply %q to %d, want %q to %d", fails, text, got, want, id)
			}
		}
		if _, text := other.next(); fails != (text == codec.StorageFailedAck.Text) {
			t.Errorf("fails %v: on another connection %q", fails, text)
		}
		ctx, cancel := context.WithTimeout(context.Background(), within)
		if err := d.Shutdown(ctx); err != nil {
			t.Error(err)
		}
		cancel()
		if err := <-d.served; !errors.Is(err, broker.ErrShutdown) {
			t.Errorf("serve ended with %v", err)
		}
	}
}

// TestProducersOfTenants publishes under the id and the number of another tenant's producer: streams know nothing of
// each other.
func TestProducersOfTenants(t *testing.T) {
	d := begin(t, durable(&vfs.Mem{}, "data"))
	defer d.end(t)
	p := dialPeer(t, d.Dev).publishing()
	for i, stream := range []string{"demo", "other"} {
		p.give(stream, 1, 1, false, fmt.Sprint(i), "")
	}
	c := connect(t, d.Dev)
	defer c.Close()
	for i, stream := range []string{"demo", "other"} {
		wantOffsets(testContext(t), t, subscribe(t, c, stream, client.FromEarliest()), 0, fmt.Sprint(i))
	}
	p.last++
	p.send(codec.AppendPublishFrom(nil, codec.Origin{Producer: [16]byte{1}, Sequence: 1}, p.last, codec.AckPerBatch, "t2", "default", "demo", [][]byte{[]byte("x")}))
	if _, text := p.next(); text != codec.TenantMismatchAck.Text {
		t.Errorf("for another tenant: %q", text)
	}
}
