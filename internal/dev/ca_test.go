package dev

import (
	"crypto/tls"
	"crypto/x509"
	"testing"
)

// What an authority issues is good for its hosts, for servers and clients, and comes back from its files.
func TestIssue(t *testing.T) {
	ca, err := NewCA()
	if err != nil {
		t.Fatal(err)
	}
	other, err := NewCA()
	if err != nil {
		t.Fatal(err)
	}
	cert, err := ca.Issue("broker.example", "10.0.0.1")
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(ca.CertPEM()) {
		t.Fatal("the authority's PEM does not parse")
	}
	for _, c := range []struct {
		name  string
		host  string
		roots *x509.CertPool
		use   x509.ExtKeyUsage
		ok    bool
	}{
		{"server", "broker.example", roots, x509.ExtKeyUsageServerAuth, true},
		{"server by address", "10.0.0.1", ca.Pool(), x509.ExtKeyUsageServerAuth, true},
		{"client", "", roots, x509.ExtKeyUsageClientAuth, true},
		{"other name", "localhost", roots, x509.ExtKeyUsageServerAuth, false},
		{"other authority", "broker.example", other.Pool(), x509.ExtKeyUsageServerAuth, false},
		{"other use", "broker.example", roots, x509.ExtKeyUsageCodeSigning, false},
	} {
		_, err := cert.Leaf.Verify(x509.VerifyOptions{DNSName: c.host, Roots: c.roots, KeyUsages: []x509.ExtKeyUsage{c.use}})
		if (err == nil) != c.ok {
			t.Errorf("%s: %v", c.name, err)
		}
	}
	key, err := KeyPEM(cert)
	if err != nil {
		t.Fatal(err)
	}
	back, err := tls.X509KeyPair(CertPEM(cert.Leaf), key)
	if err != nil || !back.Leaf.Equal(cert.Leaf) {
		t.Errorf("read back: %v", err)
	}
}
