// Package dev makes what a broker for development and its clients know each other by, in place of what an operator
// provides: an authority and its certificates ([NewCA]), a certificate that signs itself ([SelfSigned]), and the key
// that signs tokens ([ReadOrMakeKey]). Nobody else should trust any of it, and certificates do not live long.
//
// Certificates are what every known peer accepts (docs/protocol/session.md#tls): X.509 v3, ECDSA P-256, each name as a
// DNS subject alternative name, and not a certificate authority.
//
// broker.NewDev makes a broker of it, cmd/broker serves that, and cmd/felix keeps it in a directory for the next start.
package dev

import (
	"crypto/tls"
	"fmt"
	"net"
)

// LoopbackTLS returns the configuration of a server that was given no files, with a certificate for localhost that an
// authority of its own has issued, and that authority's certificate in PEM, for clients to trust. Both last as long as
// the process. It is an error unless addr is on loopback: what others reach needs a certificate that they can know.
func LoopbackTLS(addr string) (conf *tls.Config, caPEM []byte, err error) {
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, nil, fmt.Errorf("dev: %w", err)
	}
	if ip := net.ParseIP(host); host != "localhost" && (ip == nil || !ip.IsLoopback()) {
		return nil, nil, fmt.Errorf("dev: %s can be reached from elsewhere and there is no certificate: set FELIX_TLS_CERT_FILE and FELIX_TLS_KEY_FILE, "+
			"or listen on 127.0.0.1 for a development certificate", addr)
	}
	ca, err := NewCA()
	if err != nil {
		return nil, nil, err
	}
	cert, err := ca.Issue()
	if err != nil {
		return nil, nil, err
	}
	return &tls.Config{Certificates: []tls.Certificate{cert}}, ca.CertPEM(), nil
}
