// Package traces sends spans of control operations to an OpenTelemetry collector. It is off unless the environment
// names one, by the variables that OpenTelemetry has for it. Begin at [Start].
//
// It stays out of what users embed: package broker calls a function with its operations, and this package provides it.
package traces

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"

	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracehttp"
	"go.opentelemetry.io/otel/sdk/resource"
	"go.opentelemetry.io/otel/sdk/trace"
	oteltrace "go.opentelemetry.io/otel/trace"
)

// Tracer begins spans and sends them.
type Tracer struct {
	provider *trace.TracerProvider
	tracer   oteltrace.Tracer
}

// Start returns a tracer that exports over OTLP/HTTP, if OTEL_TRACES_EXPORTER is "otlp" or is not set and an endpoint
// is (OTEL_EXPORTER_OTLP_ENDPOINT or OTEL_EXPORTER_OTLP_TRACES_ENDPOINT); otherwise nil. The other OTEL_* variables of
// the exporter, the sampler, the batches and the resource count too. service names the program unless OTEL_SERVICE_NAME
// does. Nothing is sent before there are spans, so an endpoint that does not answer is no error; it is logged.
func Start(ctx context.Context, service string, log *slog.Logger) (*Tracer, error) {
	wanted, err := wanted()
	if err != nil || !wanted {
		return nil, err
	}
	exporter, err := otlptracehttp.New(ctx)
	if err != nil {
		return nil, fmt.Errorf("traces: %w", err)
	}
	res, err := resource.New(ctx, resource.WithAttributes(attribute.String("service.name", service)),
		resource.WithTelemetrySDK(), resource.WithHost(), resource.WithFromEnv())
	if err != nil {
		return nil, errors.Join(fmt.Errorf("traces: %w", err), exporter.Shutdown(ctx))
	}
	otel.SetErrorHandler(otel.ErrorHandlerFunc(func(err error) { log.Warn("traces not sent", "error", err) }))
	provider := trace.NewTracerProvider(trace.WithBatcher(exporter), trace.WithResource(res))
	return &Tracer{provider, provider.Tracer("github.com/felix-mq/felix")}, nil
}

func wanted() (bool, error) {
	if strings.EqualFold(os.Getenv("OTEL_SDK_DISABLED"), "true") {
		return false, nil
	}
	switch exporter := os.Getenv("OTEL_TRACES_EXPORTER"); exporter {
	case "otlp":
		return true, nil
	case "none":
		return false, nil
	case "":
		return os.Getenv("OTEL_EXPORTER_OTLP_ENDPOINT") != "" || os.Getenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT") != "", nil
	default:
		return false, fmt.Errorf("traces: OTEL_TRACES_EXPORTER is %q: only otlp (over HTTP) and none are known", exporter)
	}
}

// Trace begins a span and returns what ends it, with the error that the operation failed of. It may be called from any
// goroutine and does not block.
func (t *Tracer) Trace(operation string, attrs ...slog.Attr) (end func(error)) {
	converted := make([]attribute.KeyValue, len(attrs))
	for i, a := range attrs {
		if a.Value.Kind() == slog.KindInt64 {
			converted[i] = attribute.Int64(a.Key, a.Value.Int64())
		} else {
			converted[i] = attribute.String(a.Key, a.Value.String())
		}
	}
	_, span := t.tracer.Start(context.Background(), operation,
		oteltrace.WithSpanKind(oteltrace.SpanKindServer), oteltrace.WithAttributes(converted...))
	return func(err error) {
		if err != nil {
			span.SetStatus(codes.Error, err.Error())
		}
		span.End()
	}
}

// Close sends what is left, until the context ends. Closing nil does nothing.
func (t *Tracer) Close(ctx context.Context) error {
	if t == nil {
		return nil
	}
	return t.provider.Shutdown(ctx)
}
