package loadgen

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"
)

func TestWriteText(t *testing.T) {
	r := &Result{
		Config:    ConfigResult{Fanout: 64, Payload: 4096, PayloadKind: "random", Batch: 64, Window: 8, Conns: 8},
		Published: 1000, Expected: 64000, Delivered: 64000, Seconds: 2, DeliveredPerSecond: 32000, DeliveredBytesPerSecond: 131e6,
		Latency:     Latency{P50: 12, P90: 999.6, P99: 12345, P999: 2e6, Max: 3e6, Mean: 5, Samples: 64000},
		Measurement: Measurement{Broker: BrokerInfo{Kind: "embedded", Policy: "block", GRO: true}},
	}
	text := func() string {
		var b strings.Builder
		if err := r.WriteText(&b); err != nil {
			t.Fatal(err)
		}
		return b.String()
	}
	check := func(want ...string) {
		t.Helper()
		got := text()
		for _, w := range want {
			if !strings.Contains(got, w) {
				t.Errorf("%q is missing in\n%s", w, got)
			}
		}
	}
	check("fanout 64 over 8 connections, payload 4096 B random, batch 64, window 8\n", "unaccounted 0\n",
		"p50 12 µs  p90 1000 µs  p99 12.3 ms  p999 2.00 s  max 3.00 s  mean 5 µs", "32,000 msg/s, 131.0 MB/s over 2.00 s",
		"queue policy block", "GRO on, GSO off", "Latencies under full load")

	r.Config.Window, r.Config.AllowDrops, r.Config.SlowSubs, r.Config.SlowMode, r.Dropped, r.Broker.DroppedEvents = 0, true, 1, "trickle", 1234, 5678
	r.Config.Topics, r.Config.Publishers, r.Config.Streams = 2, 3, 1
	check("window unbounded, 2 topics with 3 publishers each over 1 stream, 1 slow subscription (trickle)", "drops      1,234, unaccounted 0\n",
		"the broker dropped 5,678 events")

	r.Config.Rate, r.SendLag, r.LateBatches = 1e4, &Latency{P50: 50}, 3
	check("open loop at 10,000 msg/s", "3 batches more than 1ms late; sent after their time by p50 50 µs")
	if strings.Contains(text(), "full load") {
		t.Error("an open loop is said to be at full load")
	}
}

type fullDisk struct{}

var errDiskFull = errors.New("disk full")

func (fullDisk) Write([]byte) (int, error) { return 0, errDiskFull }

func TestWriteTextFails(t *testing.T) {
	if err := new(Result).WriteText(fullDisk{}); !errors.Is(err, errDiskFull) {
		t.Errorf("got %v", err)
	}
}

// The names are a promise to scripts.
func TestResultNames(t *testing.T) {
	b, err := json.Marshal(Result{SendLag: &Latency{}})
	if err != nil {
		t.Fatal(err)
	}
	var m map[string]any
	if err := json.Unmarshal(b, &m); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{
		"published", "expected", "delivered", "dropped", "unaccounted", "seconds", "published_per_second", "delivered_per_second",
		"delivered_bytes_per_second", "late_batches", "packets_lost", "udp_receive_errors", "latency.p50_us", "latency.p90_us",
		"latency.p99_us", "latency.p999_us", "latency.max_us", "latency.mean_us", "latency.samples", "latency.clamped",
		"send_lag.p50_us", "config.fanout", "config.payload", "config.payload_kind", "config.batch", "config.window",
		"broker.kind", "broker.dropped_events", "environment.gomaxprocs", "environment.commit",
	} {
		outer, inner, nested := strings.Cut(path, ".")
		v, ok := m[outer]
		if nested {
			sub, _ := v.(map[string]any)
			_, ok = sub[inner]
		}
		if !ok {
			t.Errorf("%s is missing in %s", path, b)
		}
	}
}

func TestKernelCounters(t *testing.T) {
	const text = "Tcp: InErrs\nTcp: 9\nUdp: InDatagrams NoPorts InErrors OutDatagrams\nUdp: 100 2 42 7\nUdpLite: InErrors\nUdpLite: 5\n"
	if n := snmp(text, "Udp:", "InErrors"); n != 42 {
		t.Errorf("got %d, want 42", n)
	}
	if n := snmp(text, "Tcp:", "RetransSegs"); n != 0 {
		t.Errorf("got %d of a counter that is not there", n)
	}
}

func TestEnvironment(t *testing.T) {
	e := CurrentEnvironment()
	if e.CPUs < 1 || e.GOMAXPROCS < 1 || !strings.HasPrefix(e.Go, "go") {
		t.Errorf("got %+v", e)
	}
	if s := e.String(); !strings.Contains(s, e.Go) {
		t.Errorf("%q does not name the toolchain", s)
	}
}
