package main

import (
	"strings"
	"testing"
	"time"

	"github.com/felix-mq/felix/broker"
)

// A broker that has restarted has no negative rates, and one that has overtaken its former count is noticed by its
// start.
func TestRatesOverRestart(t *testing.T) {
	began := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	at := func(seconds int, started *time.Time, events uint64) *snapshot {
		return &snapshot{
			Time: began.Add(time.Duration(seconds) * time.Second), Started: started, Published: float64(events),
			Streams: []broker.StreamStats{{Tenant: "t", Namespace: "n", Stream: "s", Events: events}},
		}
	}
	second := began.Add(16 * time.Second)
	for _, tt := range []struct {
		name        string
		before, now *snapshot
		rate        string
		restarts    int
	}{
		{"goes on", at(10, &began, 1000), at(20, &began, 1100), "10 /s", 0},
		{"restarts", at(10, &began, 1000), at(20, &second, 100), "25 /s", 1},
		{"has overtaken", at(10, &began, 1000), at(20, &second, 2000), "500 /s", 1},
		{"does not tell its start", at(10, nil, 1000), at(20, nil, 100), "10 /s", 1},
		{"stream is made again", at(10, &began, 1000), func() *snapshot { s := at(20, &began, 100); s.Published = 1100; return s }(), "10 /s", 0},
	} {
		tt.now.Restarts = tt.now.restarts(tt.before)
		var b strings.Builder
		if err := tt.now.print(&b, tt.before); err != nil {
			t.Fatal(err)
		}
		text := strings.Join(strings.Fields(b.String()), " ")
		if got := strings.Count(text, " "+tt.rate+" "); got != 2 || strings.Contains(text, " -") || tt.now.Restarts != tt.restarts {
			t.Errorf("%s: %d restarts, and %s instead of twice %s", tt.name, tt.now.Restarts, text, tt.rate)
		}
	}
}
