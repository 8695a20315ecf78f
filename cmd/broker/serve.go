package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"sync/atomic"
	"syscall"

	"github.com/felix-mq/felix/broker"
	"github.com/felix-mq/felix/catalog"
)

// ready is the line that development mode prints when clients can connect.
type ready struct {
	Addr      string   `json:"addr"`
	Tenant    string   `json:"tenant"`
	Namespace string   `json:"namespace"`
	Streams   []string `json:"streams"`
	Cache     string   `json:"cache"`
	Token     string   `json:"token"`
	CACert    string   `json:"ca_pem"`
}

// newBroker makes the broker, and in development mode the line that says how to use it.
func newBroker(o *options) (*broker.Broker, *ready, error) {
	if o.Catalog != "" {
		o.broker.Catalog = catalog.NewFile(o.Catalog)
		b, err := broker.New(o.broker)
		return b, nil, err
	}
	if o.DevKeyFile != "" {
		key, err := devKey(o.DevKeyFile)
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

// serve runs the broker until a signal drains it.
func serve(o *options, stdout io.Writer, log *slog.Logger) error {
	o.broker.TuneRuntime()
	b, ready, err := newBroker(o)
	if err != nil {
		return err
	}
	socket := b.Socket()
	log.Info("listening", "addr", b.Addr().String(),
		"receive_buffer", socket.RecvBufferGranted, "send_buffer", socket.SendBufferGranted, "gro", socket.GRO, "gso", socket.GSO)

	ctx, stopSignals := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	defer stopSignals()

	var draining atomic.Bool
	stopHTTP, err := serveHTTP(o.MetricsBind, b, &draining, log)
	if err != nil {
		_ = b.Shutdown(context.Background())
		return err
	}
	defer stopHTTP()

	served := make(chan error, 1)
	go func() { served <- b.Serve(context.Background()) }()
	if ready != nil {
		if err := json.NewEncoder(stdout).Encode(ready); err != nil {
			return fmt.Errorf("printing the ready line: %w", err)
		}
	}
	select {
	case err := <-served:
		return err
	case <-ctx.Done():
	}
	stopSignals() // a second signal ends the process at once
	draining.Store(true)
	log.Info("draining", "budget", o.broker.ShutdownDrain)
	drainCtx, cancel := context.WithTimeout(context.Background(), o.broker.ShutdownDrain)
	defer cancel()
	err = b.Shutdown(drainCtx)
	if served := <-served; !errors.Is(served, broker.ErrShutdown) {
		err = errors.Join(err, served)
	}
	if err != nil {
		return fmt.Errorf("drain cut short: %w", err)
	}
	log.Info("drained")
	return nil
}
