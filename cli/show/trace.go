package show

import (
	"context"
	"errors"
	"fmt"
	"time"

	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracehttp"
	"go.opentelemetry.io/otel/sdk/resource"
	sdk "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"
)

// traceLimit bounds sending a trace: a collector that does not answer holds
// nothing up.
const traceLimit = 2 * time.Second

// SendTrace sends the trace of an operation, a span for each step, to where the
// OTEL_ variables say.
func SendTrace(r *Record, version string) error {
	ctx, cancel := context.WithTimeout(context.Background(), traceLimit)
	defer cancel()
	// What else the SDK says of it comes back from the flush.
	otel.SetErrorHandler(otel.ErrorHandlerFunc(func(error) {}))
	exporter, err := otlptracehttp.New(ctx, otlptracehttp.WithRetry(otlptracehttp.RetryConfig{}))
	if err != nil {
		return fmt.Errorf("the trace was not sent: %w", err)
	}
	about, err := resource.New(ctx, resource.WithTelemetrySDK(), resource.WithAttributes(
		attribute.String("service.name", "drainctl"), attribute.String("service.version", version)), resource.WithFromEnv())
	if err != nil {
		return fmt.Errorf("the trace was not sent: %w", err)
	}
	provider := sdk.NewTracerProvider(sdk.WithBatcher(exporter), sdk.WithResource(about))
	r.spans(ctx, provider.Tracer("github.com/drainctl/drainctl"))
	err = provider.ForceFlush(ctx)
	_ = provider.Shutdown(ctx)
	if err != nil {
		return fmt.Errorf("the trace was not sent: %w", err)
	}
	return nil
}

// spans makes the spans, each with its own times.
func (r *Record) spans(ctx context.Context, tracer trace.Tracer) {
	ctx, whole := tracer.Start(ctx, "drainctl "+r.Kind(), trace.WithTimestamp(r.began), trace.WithAttributes(
		attribute.String("drainctl.operation", r.result.Operation),
		attribute.StringSlice("drainctl.targets", r.Spec.Targets),
		attribute.StringSlice("drainctl.lbs", r.lbs),
		attribute.String("drainctl.result", string(r.result.Result)),
		attribute.Int("drainctl.exit_code", int(r.result.ExitCode))))
	for _, s := range r.steps {
		_, span := tracer.Start(ctx, string(s.step), trace.WithTimestamp(s.began), trace.WithAttributes(
			attribute.String("drainctl.direction", string(s.direction)),
			attribute.StringSlice("drainctl.backends", s.backends),
			attribute.Bool("drainctl.changed", s.changed)))
		failSpan(span, s.err, s.ended)
		span.End(trace.WithTimestamp(s.ended))
	}
	failSpan(whole, r.result.Error, r.result.Time)
	whole.End(trace.WithTimestamp(r.result.Time))
}

// failSpan records an error, if there is one.
func failSpan(span trace.Span, text string, at time.Time) {
	if text != "" {
		span.RecordError(errors.New(text), trace.WithTimestamp(at))
		span.SetStatus(codes.Error, text)
	}
}
