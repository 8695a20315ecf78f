package traces

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"

	collector "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	"google.golang.org/protobuf/proto"
)

func TestOffByDefault(t *testing.T) {
	for _, env := range []map[string]string{
		nil,
		{"OTEL_TRACES_EXPORTER": "none", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1"},
		{"OTEL_SDK_DISABLED": "true", "OTEL_TRACES_EXPORTER": "otlp"},
	} {
		for name, value := range env {
			t.Setenv(name, value)
		}
		tracer, err := Start(t.Context(), "test", slog.New(slog.DiscardHandler))
		if tracer != nil || err != nil {
			t.Errorf("%v: %v, %v", env, tracer, err)
		}
		if err := tracer.Close(t.Context()); err != nil {
			t.Error(err)
		}
	}
	t.Setenv("OTEL_SDK_DISABLED", "")
	t.Setenv("OTEL_TRACES_EXPORTER", "zipkin")
	if _, err := Start(t.Context(), "test", slog.New(slog.DiscardHandler)); err == nil || !strings.Contains(err.Error(), "zipkin") {
		t.Errorf("unknown exporter: %v", err)
	}
}

func TestSpans(t *testing.T) {
	var mu sync.Mutex
	got := make(map[string]string)
	server := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		var req collector.ExportTraceServiceRequest
		if err = errors.Join(err, proto.Unmarshal(body, &req)); err != nil || r.URL.Path != "/v1/traces" {
			t.Errorf("%s: %v", r.URL.Path, err)
		}
		mu.Lock()
		defer mu.Unlock()
		for _, rs := range req.GetResourceSpans() {
			for _, a := range rs.GetResource().GetAttributes() {
				got[a.GetKey()] = a.GetValue().GetStringValue()
			}
			for _, ss := range rs.GetScopeSpans() {
				for _, span := range ss.GetSpans() {
					var text strings.Builder
					text.WriteString(span.GetStatus().GetMessage())
					for _, a := range span.GetAttributes() {
						text.WriteString(" " + a.GetKey() + "=" + a.GetValue().String())
					}
					got[span.GetName()] = text.String()
				}
			}
		}
	}))
	defer server.Close()
	t.Setenv("OTEL_EXPORTER_OTLP_ENDPOINT", server.URL)
	tracer, err := Start(t.Context(), "test", slog.New(slog.DiscardHandler))
	if err != nil || tracer == nil {
		t.Fatalf("%v, %v", tracer, err)
	}
	tracer.Trace("auth", slog.String("felix.tenant", "t1"))(nil)
	tracer.Trace("drain", slog.Int("felix.connections", 3))(errors.New("too slow"))
	if err := tracer.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	mu.Lock()
	defer mu.Unlock()
	if got["service.name"] != "test" || !strings.Contains(got["auth"], "t1") || !strings.HasPrefix(got["drain"], "too slow ") || !strings.Contains(got["drain"], "3") {
		t.Errorf("%q", got)
	}
}

// A collector that is not there costs a line of log, and the spans.
func TestNoCollector(t *testing.T) {
	server := httptest.NewServer(http.NotFoundHandler())
	server.Close()
	t.Setenv("OTEL_TRACES_EXPORTER", "otlp")
	t.Setenv("OTEL_EXPORTER_OTLP_ENDPOINT", server.URL)
	t.Setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "100")
	var log bytes.Buffer
	tracer, err := Start(t.Context(), "test", slog.New(slog.NewTextHandler(&log, nil)))
	if err != nil {
		t.Fatal(err)
	}
	tracer.Trace("auth")(nil)
	if err := tracer.Close(context.Background()); err == nil && !strings.Contains(log.String(), "traces not sent") {
		t.Errorf("nothing is said: %s", log.String())
	}
}
