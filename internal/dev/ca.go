package dev

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"slices"
	"time"
)

// Lives of what is made here. They are short, because nobody should depend on such a certificate.
const (
	leafLife = 30 * 24 * time.Hour
	caLife   = 365 * 24 * time.Hour
)

// CA is a certificate authority. Its key lives in memory only unless [CA.KeyPEM] is written down. Its methods may be
// called from any goroutine.
type CA struct {
	key  *ecdsa.PrivateKey
	cert *x509.Certificate
}

// NewCA makes an authority, valid for a year.
func NewCA() (*CA, error) {
	t, key, err := template("Felix development CA", caLife)
	if err != nil {
		return nil, err
	}
	t.IsCA, t.KeyUsage = true, x509.KeyUsageCertSign|x509.KeyUsageCRLSign
	cert, err := sign(t, t, key, key)
	if err != nil {
		return nil, err
	}
	return &CA{key, cert.Leaf}, nil
}

// ReadCA reads an authority from the files of its certificate and its key, which [CA.CertPEM] and [CA.KeyPEM] are for.
func ReadCA(certFile, keyFile string) (*CA, error) {
	pair, err := tls.LoadX509KeyPair(certFile, keyFile)
	if err != nil {
		return nil, err
	}
	key, ok := pair.PrivateKey.(*ecdsa.PrivateKey)
	if !ok || !pair.Leaf.IsCA {
		return nil, fmt.Errorf("dev: %s and %s are no authority", certFile, keyFile)
	}
	return &CA{key, pair.Leaf}, nil
}

// KeyPEM returns the authority's private key as a file holds it (PKCS #8).
func (ca *CA) KeyPEM() ([]byte, error) { return KeyPEM(tls.Certificate{PrivateKey: ca.key}) }

// Expired reports whether the authority expires within a time from now.
func (ca *CA) Expired(within time.Duration) bool { return time.Until(ca.cert.NotAfter) < within }

// Issued reports whether a certificate is one of the authority.
func (ca *CA) Issued(cert *x509.Certificate) bool { return cert.CheckSignatureFrom(ca.cert) == nil }

// CertPEM returns the certificate that clients are told to trust.
func (ca *CA) CertPEM() []byte { return CertPEM(ca.cert) }

// Pool returns a pool that trusts the authority.
func (ca *CA) Pool() *x509.CertPool { return pool(ca.cert) }

// Issue makes a certificate for servers and clients, valid for 30 days, and its key. hosts are as for [SelfSigned].
func (ca *CA) Issue(hosts ...string) (tls.Certificate, error) {
	t, key, err := leaf(hosts)
	if err != nil {
		return tls.Certificate{}, err
	}
	t.ExtKeyUsage = append(t.ExtKeyUsage, x509.ExtKeyUsageClientAuth)
	return sign(t, ca.cert, key, ca.key)
}

// SelfSigned makes a certificate that signs itself, valid for 30 days, and a pool that trusts it. Hosts are names and
// IP addresses; without a name among them it is also valid for localhost, and without any host for the loopback
// addresses as well.
func SelfSigned(hosts ...string) (tls.Certificate, *x509.CertPool, error) {
	t, key, err := leaf(hosts)
	if err != nil {
		return tls.Certificate{}, nil, err
	}
	cert, err := sign(t, t, key, key)
	if err != nil {
		return tls.Certificate{}, nil, err
	}
	return cert, pool(cert.Leaf), nil
}

// Localhost returns the hosts that lead to a broker for development from its own machine, and more.
func Localhost(more ...string) []string {
	return append([]string{"localhost", "127.0.0.1", "::1"}, more...)
}

// ClientTLS returns what a client needs to trust a server on localhost, whose authority it is given in PEM. It asks for
// TLS 1.3.
func ClientTLS(caPEM []byte) (*tls.Config, error) {
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(caPEM) {
		return nil, errors.New("dev: the server gave no certificate")
	}
	return &tls.Config{RootCAs: roots, ServerName: "localhost", MinVersion: tls.VersionTLS13}, nil
}

// CertPEM returns a certificate as a file holds it.
func CertPEM(cert *x509.Certificate) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Raw})
}

// KeyPEM returns the private key of a certificate as a file holds it (PKCS #8).
func KeyPEM(cert tls.Certificate) ([]byte, error) {
	der, err := x509.MarshalPKCS8PrivateKey(cert.PrivateKey)
	if err != nil {
		return nil, fmt.Errorf("dev: %w", err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), nil
}

func pool(cert *x509.Certificate) *x509.CertPool {
	p := x509.NewCertPool()
	p.AddCert(cert)
	return p
}

func leaf(hosts []string) (*x509.Certificate, *ecdsa.PrivateKey, error) {
	if len(hosts) == 0 {
		hosts = Localhost()
	}
	var names []string
	var ips []net.IP
	for _, h := range hosts {
		if ip := net.ParseIP(h); ip != nil {
			ips = append(ips, ip)
		} else if !slices.Contains(names, h) {
			names = append(names, h)
		}
	}
	if len(names) == 0 {
		names = []string{"localhost"}
	}
	t, key, err := template(names[0], leafLife)
	if err != nil {
		return nil, nil, err
	}
	t.DNSNames, t.IPAddresses = names, ips
	t.KeyUsage, t.ExtKeyUsage = x509.KeyUsageDigitalSignature, []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
	return t, key, nil
}

func template(name string, life time.Duration) (*x509.Certificate, *ecdsa.PrivateKey, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, fmt.Errorf("dev: %w", err)
	}
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return nil, nil, fmt.Errorf("dev: %w", err)
	}
	now := time.Now()
	return &x509.Certificate{
		SerialNumber:          serial,
		Subject:               pkix.Name{CommonName: name},
		NotBefore:             now.Add(-time.Hour), // for peers whose clock is slow
		NotAfter:              now.Add(life),
		BasicConstraintsValid: true, // and IsCA false, unless it is set
	}, key, nil
}

func sign(t, parent *x509.Certificate, key, parentKey *ecdsa.PrivateKey) (tls.Certificate, error) {
	der, err := x509.CreateCertificate(rand.Reader, t, parent, &key.PublicKey, parentKey)
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("dev: %w", err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("dev: %w", err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: cert}, nil
}
