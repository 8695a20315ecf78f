package quicx

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/x509"
	"net"
	"slices"
	"testing"

	"github.com/felix-mq/felix/internal/dev"
)

func TestSelfSignedCertificate(t *testing.T) {
	checkLeaks(t)
	for _, tc := range []struct {
		hosts, names []string
		ips          int
		dialAs       string
	}{
		{nil, []string{"localhost"}, 2, "localhost"},
		{nil, []string{"localhost"}, 2, "127.0.0.1"},
		{[]string{"broker.example", "localhost", "localhost"}, []string{"broker.example", "localhost"}, 0, "broker.example"},
		{[]string{"127.0.0.1"}, []string{"localhost"}, 1, "127.0.0.1"},
	} {
		cert, pool, err := dev.SelfSigned(tc.hosts...)
		if err != nil {
			t.Fatal(err)
		}
		leaf := cert.Leaf
		if !slices.Equal(leaf.DNSNames, tc.names) || len(leaf.IPAddresses) != tc.ips {
			t.Errorf("%v: names %v, addresses %v", tc.hosts, leaf.DNSNames, leaf.IPAddresses)
		}
		key, ok := leaf.PublicKey.(*ecdsa.PublicKey)
		if !ok || key.Curve != elliptic.P256() || leaf.Version != 3 || leaf.IsCA || !slices.Equal(leaf.ExtKeyUsage, []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}) {
			t.Errorf("%v: %T, version %d, CA %t, usage %v", tc.hosts, leaf.PublicKey, leaf.Version, leaf.IsCA, leaf.ExtKeyUsage)
		}

		l, err := Listen("127.0.0.1:0", serverTLS(cert), Config{})
		if err != nil {
			t.Fatal(err)
		}
		conf := clientTLS(pool)
		conf.ServerName = tc.dialAs
		if net.ParseIP(tc.dialAs) != nil {
			conf.ServerName = "" // from the address
		}
		c, err := Dial(t.Context(), l.Addr().String(), conf, Config{})
		if err != nil {
			t.Errorf("%v as %s: %v", tc.hosts, tc.dialAs, err)
		} else {
			c.Close(0, "")
		}
		l.Close()
	}
}
