package main

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"os/signal"
	"sync"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"github.com/felix-mq/felix/broker"
	"github.com/felix-mq/felix/internal/certfile"
	"github.com/felix-mq/felix/internal/dev"
	"github.com/felix-mq/felix/internal/logs"
	"github.com/felix-mq/felix/internal/ops"
	"github.com/felix-mq/felix/telemetry"
)

// ready is the line that says what a client needs and cannot know, once it can connect: of development mode, and with a
// catalog of a certificate for development.
type ready struct {
	Addr      string   `json:"addr"`
	Tenant    string   `json:"tenant,omitempty"`
	Namespace string   `json:"namespace,omitempty"`
	Streams   []string `json:"streams,omitempty"`
	Cache     string   `json:"cache,omitempty"`
	Token     string   `json:"token,omitempty"`
	CACert    string   `json:"ca_pem,omitempty"` // absent if the certificate came from files
}

// serve runs the broker, for which all is prepared, until a signal drains it.
func serve(o *options, stdout io.Writer, log *slog.Logger, limiter *logs.Limiter, reload *reloader) (err error) {
	// From here on signals are heard, so that one which comes before all is ready drains too.
	signaled, stopSignals := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	defer stopSignals()

	o.broker.TuneRuntime()
	if o.tracer != nil {
		o.broker.Trace = o.tracer.Trace
	}
	b, line, err := newBroker(o)
	if err != nil {
		return err
	}
	sayListening(b, log)

	var life ops.Lifecycle
	metrics := registry(b, o.certs, limiter)
	conf := o.metricsConfig()
	conf.Metrics, conf.Checks, conf.Streams, conf.Debug = metrics, []ops.Check{life.Check(), {Name: "storage", Err: b.StorageError}}, http.HandlerFunc(b.ServeStreams), stages()
	server, err := ops.Start(*conf)
	if err != nil {
		return errors.Join(err, b.Shutdown(context.Background()))
	}
	defer server.Close() // last, so that a drain can be watched
	metrics.MustRegister(server)

	background, stopBackground := context.WithCancel(context.Background())
	var work sync.WaitGroup
	defer work.Wait()
	defer stopBackground()
	o.certs.watch(background, &work)
	work.Go(func() { o.hangups.Serve(background, func() { reload.reload(background) }) })
	work.Go(func() {
		// Gathering takes every lock that the broker's work takes.
		if err := ops.Watchdog(background, func() { _, _ = b.Registry().Gather() }); err != nil {
			log.Warn("watchdog is off", "error", err)
		}
	})

	restored := make(chan struct{})
	go func() { // Shutdown waits for it, but not for ever
		defer close(restored)
		b.RestoreCaches(signaled) // its time is not that of clients
	}()
	select {
	case <-restored:
	case <-signaled.Done():
	}
	if signaled.Err() != nil { // what was loaded may be a part, which nobody is to see
		stopSignals()
		return drain(b, o, &life, nil, log)
	}
	served := make(chan error, 1)
	go func() { served <- b.Serve(context.Background()) }()
	life.Serving() // before the line: its reader may ask at once
	if line != nil {
		if err := json.NewEncoder(stdout).Encode(line); err != nil {
			return errors.Join(fmt.Errorf("printing the ready line: %w", err), b.Shutdown(context.Background()), ignoreShutdown(<-served))
		}
	}
	select {
	case err := <-served:
		return err
	case <-signaled.Done():
	}
	stopSignals() // a second signal ends the process at once
	return drain(b, o, &life, served, log)
}

// stages shows what a build with telemetry records; others have nothing to show.
func stages() http.Handler {
	if !telemetry.Enabled {
		return nil
	}
	return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, telemetry.Text()) })
}

// drain ends the broker within its budget (docs/protocol/session.md#shutdown): first it says that it is not ready, and
// serves on for as long as balancers may need to hear that. served is nil if it has not served.
func drain(b *broker.Broker, o *options, life *ops.Lifecycle, served <-chan error, log *slog.Logger) error {
	budget := o.broker.ShutdownDrain
	ctx, cancel := context.WithTimeout(context.Background(), budget)
	defer cancel()
	life.Draining()
	log.Info("draining", "budget", budget)
	began := time.Now()
	var err error
	delay := min(o.ops.DrainDelay, budget/2)
	if served == nil {
		delay = 0
	}
	select {
	case err = <-served: // it has ended by itself
	case <-time.After(delay):
		err = b.Shutdown(ctx)
		if served != nil {
			err = errors.Join(err, ignoreShutdown(<-served))
		}
	}
	if err != nil {
		return fmt.Errorf("drain cut short: %w", err)
	}
	log.Info("drained", "took", time.Since(began))
	return nil
}

func ignoreShutdown(err error) error {
	if errors.Is(err, broker.ErrShutdown) {
		return nil
	}
	return err
}

// certificates are the sources of those that come from files; nil if they do not.
type certificates struct{ broker, metrics *certfile.Source }

// loadCertificates reads the files that the settings name.
func loadCertificates(o *options) (c certificates, err error) {
	log := o.broker.Logger
	if o.files == (certfile.Files{}) {
		return c, nil
	}
	if c.broker, err = certfile.Load(o.files, log); err != nil {
		return c, err
	}
	o.broker.TLS = c.broker.TLS()
	c.metrics = c.broker
	if o.ops.TLS {
		files := o.files
		files.ClientCA = o.ops.ClientCA
		c.metrics, err = certfile.Load(files, log)
	}
	return c, err
}

func (c certificates) metricsTLS() *tls.Config {
	if c.metrics == nil {
		return nil
	}
	return c.metrics.TLS()
}

// reload looks at the files now. What is wrong is logged by the sources.
func (c certificates) reload(ctx context.Context) error {
	var errs []error
	if c.broker != nil {
		errs = append(errs, c.broker.Reload(ctx))
	}
	if c.metrics != c.broker {
		errs = append(errs, c.metrics.Reload(ctx))
	}
	return errors.Join(errs...)
}

// watch follows the files until the context ends.
func (c certificates) watch(ctx context.Context, work *sync.WaitGroup) {
	if c.broker != nil {
		work.Go(func() { c.broker.Watch(ctx, certfile.Every) })
	}
	if c.metrics != c.broker {
		work.Go(func() { c.metrics.Watch(ctx, certfile.Every) })
	}
}

// sayListening says once what the kernel granted: too small buffers show under load alone, as lost packets.
func sayListening(b *broker.Broker, log *slog.Logger) {
	s := b.Socket()
	log.Info("listening", "addr", b.Addr().String(),
		"receive_buffer", s.RecvBufferGranted, "send_buffer", s.SendBufferGranted, "gro", s.GRO, "gso", s.GSO)
	if s.Shared != nil {
		log.Warn("one socket instead of several", "error", s.Shared)
	}
	if 0 < s.RecvBufferGranted && s.RecvBufferGranted < s.RecvBufferAsked || 0 < s.SendBufferGranted && s.SendBufferGranted < s.SendBufferAsked {
		log.Warn("udp buffers are small", "receive_asked", s.RecvBufferAsked, "receive_granted", s.RecvBufferGranted,
			"send_asked", s.SendBufferAsked, "send_granted", s.SendBufferGranted,
			"hint", fmt.Sprintf("sysctl -w net.core.rmem_max=%d net.core.wmem_max=%d", s.RecvBufferAsked, s.SendBufferAsked))
	}
}

// registry returns the broker's metrics with those of the process.
func registry(b *broker.Broker, certs certificates, limiter *logs.Limiter) *prometheus.Registry {
	r := b.Registry()
	r.MustRegister(
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}), collectors.NewBuildInfoCollector(),
		prometheus.NewCounterFunc(prometheus.CounterOpts{Name: "felix_log_suppressed_total", Help: "Log records dropped because their event came too often."},
			func() float64 { return float64(limiter.Suppressed()) }))
	if certs.broker != nil {
		r.MustRegister(certs.broker)
	}
	return r
}

// newBroker makes the broker, and the line that says how to use it, if there is something to say.
func newBroker(o *options) (*broker.Broker, *ready, error) {
	if o.Catalog != "" {
		o.broker.Catalog = o.source
		b, err := broker.New(o.broker)
		if err != nil || o.devCA == nil {
			return b, nil, err
		}
		return b, &ready{Addr: b.Addr().String(), CACert: string(o.devCA)}, nil
	}
	if o.DevKeyFile != "" {
		key, err := dev.ReadOrMakeKey(o.DevKeyFile)
		if err != nil {
			return nil, nil, fmt.Errorf("dev_key_file: %w", err)
		}
		o.dev.Key = key
	}
	d, err := broker.NewDev(o.broker, o.dev)
	if err != nil {
		return nil, nil, err
	}
	return d.Broker, &ready{d.Addr().String(), d.Tenant, d.Namespace, d.Streams, d.Cache, d.Token, string(d.CertPEM)}, nil
}
