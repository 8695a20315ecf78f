//go:build telemetry

package main

import (
	"bytes"
	"strings"
	"testing"
)

// TestTelemetry: both processes print what they recorded. Which stages these runs meet by chance does not matter.
func TestTelemetry(t *testing.T) {
	cmd := program(t, append([]string{"--processes=2"}, smallRun...)...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	if err := cmd.Run(); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"broker_publish_items", "broker_event_items", "client_publish_items", "client_event_items"} {
		if n := strings.Count(stderr.String(), " "+want+" "); n != 1 {
			t.Errorf("%d rows %s, want 1:\n%s", n, want, &stderr)
		}
	}
}
