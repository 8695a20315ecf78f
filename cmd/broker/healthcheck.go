package main

import (
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"time"

	"github.com/felix-mq/felix/internal/ops"
)

// healthcheck asks the broker that runs with the same settings whether it is ready: an image without a shell has
// nothing else to ask with.
func healthcheck(s ops.Settings) error {
	host, port, err := net.SplitHostPort(s.Bind)
	if err != nil {
		return errors.New("metrics_bind is empty: there is nobody to ask")
	}
	if host == "" || net.ParseIP(host).IsUnspecified() {
		host = "127.0.0.1"
	}
	scheme := "http"
	if s.TLS {
		scheme = "https"
	}
	client := http.Client{Timeout: 2 * time.Second, Transport: &http.Transport{ // without a proxy
		DisableKeepAlives: true,
		TLSClientConfig:   &tls.Config{MinVersion: tls.VersionTLS13, InsecureSkipVerify: true}, // its names are not those of loopback
	}}
	res, err := client.Get(scheme + "://" + net.JoinHostPort(host, port) + "/readyz")
	if err != nil {
		return err
	}
	defer func() { _ = res.Body.Close() }()
	if res.StatusCode != http.StatusOK {
		why, _ := io.ReadAll(io.LimitReader(res.Body, 1024))
		return fmt.Errorf("%s: %s", res.Status, why)
	}
	return nil
}
