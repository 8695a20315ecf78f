package quicx

import (
	"crypto/tls"
	"crypto/x509"

	"github.com/felix-mq/felix/internal/devca"
)

// DevCertificate makes a self-signed certificate for development and tests, valid for 30 days, and a pool that trusts
// it. Hosts are names and IP addresses; without a name among them it is also valid for localhost, and without any host
// for the loopback addresses as well.
func DevCertificate(hosts ...string) (tls.Certificate, *x509.CertPool, error) {
	return devca.SelfSigned(hosts...)
}
