package broker_test

import (
	"fmt"
	"runtime"
	"strings"
	"testing"

	"github.com/klauspost/compress/s2"

	"github.com/felix-mq/felix/broker"
	"github.com/felix-mq/felix/catalog"
	"github.com/felix-mq/felix/client"
	"github.com/felix-mq/felix/codec"
	"github.com/felix-mq/felix/quicx"
	"github.com/felix-mq/felix/ring"
)

// TestUnreadValues asks for many values and reads none of them. What a request holds until the peer reads is charged:
// small values after a large one, which are held although the cache may not have them any more, and the list of values
// itself.
func TestUnreadValues(t *testing.T) {
	const requests, small, limit = 16, 15 << 10, 16 << 20
	large := make([]byte, 64<<10)
	for _, c := range []struct {
		name string
		keys int
		held int // bytes by each request
	}{
		{"small values", 200, 200 * small},
		{"list", 65_534, 65_534 * 32},
	} {
		t.Run(c.name, func(t *testing.T) {
			d := start(t, func(cfg *broker.Config) { cfg.ConnReadBytes = limit })
			other := connect(t, d)
			values := other.Cache("default", "primary")
			if err := values.Put(testContext(t), "large", large, client.NoExpiry); err != nil {
				t.Fatal(err)
			}
			keys := []string{"large"}
			for i := range c.keys {
				key := ""
				if c.keys < 1000 {
					key = fmt.Sprint(i)
					if err := values.Put(testContext(t), key, large[:small], client.NoExpiry); err != nil {
						t.Fatal(err)
					}
				}
				keys = append(keys, key)
			}
			q, err := quicx.Dial(testContext(t), d.Addr().String(), d.ClientTLS(), quicx.Config{StreamWindow: 1024, StreamsHint: 1})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { q.Close(0, "") })
			p := &peer{t, q, d}
			for range requests {
				p.open(p.auth(), codec.AppendCacheRequest(nil, &codec.CacheRequest{RequestID: 1, Op: codec.CacheGet}, "default", "primary", keys...))
			}
			wantLimit(t, d, "conn_memory", float64(requests-limit/c.held))
			healthy(t, other)
			q.Close(0, "")
			awaitMetric(t, d, "felix_read_bytes", 0)
		})
	}
}

// TestIdleStreamsHoldLittle: a stream that has sent something large, and waits, holds little beyond what its connection
// is charged for.
func TestIdleStreamsHoldLittle(t *testing.T) {
	const streams, most = 64, 32 << 10 // bytes of each stream, at both ends
	long := strings.Repeat("n", 60_000)
	publish := func(stream string) []byte {
		return codec.AppendPublishBatch(nil, "t1", "default", stream, [][]byte{{1}})
	}
	uni := func(t *testing.T, p *peer, frames ...[]byte) {
		s, err := p.c.OpenUniStream(testContext(t))
		if err != nil {
			t.Fatal(err)
		}
		for _, frame := range append([][]byte{p.auth()}, frames...) {
			if _, err := s.Write(frame); err != nil {
				t.Fatal(err)
			}
		}
	}
	for name, send := range map[string]func(t *testing.T, p *peer){
		"names of streams": func(t *testing.T, p *peer) {
			p.open(p.auth(), codec.AppendPublishBatch(nil, "t1", long, long, [][]byte{{1}}), publish("demo"))
		},
		"names of streams, without replies": func(t *testing.T, p *peer) {
			uni(t, p, codec.AppendPublishBatch(nil, "t1", long, long, [][]byte{{1}}), publish("demo"))
		},
		"names of caches": func(t *testing.T, p *peer) {
			p.open(p.auth(), codec.AppendCacheRequest(nil, &codec.CacheRequest{Op: codec.CacheGet}, long, long, "k"), publish("demo"))
		},
		"messages without replies": func(t *testing.T, p *peer) {
			uni(t, p, codec.AppendPublish(nil, "t1", "default", "demo", make([]byte, 512<<10), codec.AckNone, 0, false))
		},
		"identities": func(t *testing.T, p *peer) {
			var perms []string
			for i := range 1400 {
				perms = append(perms, fmt.Sprintf("stream.publish:stream:t1/%d", i))
			}
			token, err := p.d.Mint(append(perms, "stream.publish:stream:t1/*")...)
			if err != nil {
				t.Fatal(err)
			}
			p.open(codec.AppendAuth(nil, "t1", token, codec.KnownFlags, true, codec.KnownExtensions()), publish("demo"))
		},
	} {
		t.Run(name, func(t *testing.T) {
			d := start(t, func(cfg *broker.Config) { cfg.ReplayBytes = -1 })
			p := dialPeer(t, d)
			before := heap()
			for range streams {
				send(t, p)
			}
			awaitMetric(t, d, "felix_published_events_total", streams)
			held := heap() - before - metric(t, d, "felix_read_bytes")
			if held > streams*most {
				t.Errorf("%.0f bytes held for each stream and not charged", held/streams)
			}
		})
	}
}

// heap returns the bytes that are reachable.
func heap() float64 {
	var m runtime.MemStats
	runtime.GC()
	runtime.GC() // what pools held
	runtime.ReadMemStats(&m)
	return float64(m.HeapAlloc)
}

// TestWaitingPublishesAreCharged: while a publish waits for memory, its connection is charged for what was made of its
// message, which nobody else is charged for yet.
func TestWaitingPublishesAreCharged(t *testing.T) {
	const publishers, payload = 6, 256 << 10 // one stream more waits
	items := codec.AppendItems(nil, [][]byte{make([]byte, payload)})[4:]
	block := s2.Encode(nil, items)
	for name, c := range map[string]struct {
		frame []byte
		each  int // bytes for each stream that waits
	}{
		"decoded JSON": {
			codec.AppendPublish(nil, "t1", "default", "memory", make([]byte, payload), codec.AckNone, 0, false),
			payload*4/3 + 2*payload,
		},
		"decompressed for a log": {
			append(codec.AppendCompressedPublish(nil, 0, codec.AckNone, "t1", "default", "demo", 1, len(items), len(block)), block...),
			payload,
		},
	} {
		t.Run(name, func(t *testing.T) {
			d := start(t, func(cfg *broker.Config) {
				cfg.QueuePolicy, cfg.RetainedBytes, cfg.ReplayBytes = ring.Block, 1<<20, -1
				cfg.PublishWait, cfg.StallTimeout = within, within
				cfg.Storage.Dir = t.TempDir()
			})
			if err := d.PutStream(d.Tenant, "default", "memory", catalog.Stream{}); err != nil {
				t.Fatal(err)
			}
			p := dialPeer(t, d)
			blocked := p.open(p.auth(), codec.AppendSubscribe(nil, "t1", "default", "memory", codec.Start{}, 0, false))
			blocked.wantMessage(codec.MsgAuthOK, "")
			blocked.wantMessage(codec.MsgSubscribed, "")
			p.open(p.auth()).flood("t1", "memory") // it fills the memory, which nobody empties
			for range publishers {
				s := p.open(p.auth()).s.Send()
				go func() {
					for { // until it waits
						if _, err := s.Write(c.frame); err != nil {
							return
						}
					}
				}()
			}
			awaitMetricFrom(t, d, "felix_read_bytes", float64(publishers*c.each))
			p.c.Close(0, "")
			awaitMetric(t, d, "felix_read_bytes", 0)
		})
	}
}
