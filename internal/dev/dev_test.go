package dev

import (
	"net"
	"strings"
	"testing"
)

func TestLoopbackTLS(t *testing.T) {
	for addr, ok := range map[string]bool{
		"127.0.0.1:5000": true, "[::1]:0": true, "localhost:1": true,
		"0.0.0.0:5000": false, ":5000": false, "[::]:1": false, "10.0.0.1:1": false, "broker.example:1": false, "127.0.0.1": false,
	} {
		conf, caPEM, err := LoopbackTLS(addr)
		if (err == nil) != ok {
			t.Errorf("%s: %v", addr, err)
		}
		if ok && (len(conf.Certificates) != 1 || len(caPEM) == 0) {
			t.Errorf("%s: %d certificates, authority %q", addr, len(conf.Certificates), caPEM)
		}
		if _, _, splitErr := net.SplitHostPort(addr); !ok && splitErr == nil && !strings.Contains(err.Error(), "FELIX_TLS_CERT_FILE") {
			t.Errorf("%s: the error does not say what to do: %v", addr, err)
		}
	}
}
