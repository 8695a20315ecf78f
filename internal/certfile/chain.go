package certfile

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"time"
)

// maxChain bounds the certificates of a file: each is checked against the others.
const maxChain = 32

// A validityError is a certificate that is refused because of the time. It may be good at another time.
type validityError struct {
	which       string
	from, until time.Time
}

func (e *validityError) Error() string {
	return fmt.Sprintf("%s is valid from %v to %v", e.which, e.from.UTC(), e.until.UTC())
}

// over reports whether now is a time at which the certificate is valid.
func (e *validityError) over(now time.Time) bool { return !now.Before(e.from) && !now.After(e.until) }

// checkChain checks all certificates of a file as a client will do that trusts the authority at the end of them: each
// must be valid now, and each but the first must have signed one of the others that lead to it. It returns the earliest
// end of their validity.
func checkChain(pair *tls.Certificate, now time.Time) (notAfter time.Time, err error) {
	if n := len(pair.Certificate); n > maxChain {
		return time.Time{}, fmt.Errorf("%d certificates, of which no chain has more than %d", n, maxChain)
	}
	chain := make([]*x509.Certificate, 0, len(pair.Certificate))
	for i, der := range pair.Certificate {
		cert, err := x509.ParseCertificate(der)
		if err != nil {
			return time.Time{}, fmt.Errorf("certificate %d of %d: %w", i+1, len(pair.Certificate), err)
		}
		if e := (&validityError{describe(cert, i, len(pair.Certificate)), cert.NotBefore, cert.NotAfter}); !e.over(now) {
			return time.Time{}, e
		}
		if notAfter.IsZero() || cert.NotAfter.Before(notAfter) {
			notAfter = cert.NotAfter
		}
		chain = append(chain, cert)
	}
	if len(chain) == 0 {
		return time.Time{}, errors.New("no certificate")
	}
	return notAfter, checkLinks(chain, now)
}

func describe(cert *x509.Certificate, i, of int) string {
	if of == 1 {
		return "the certificate"
	}
	return fmt.Sprintf("certificate %d of %d (%s)", i+1, of, cert.Subject)
}

// checkLinks checks that the certificates are one chain. They may stand in any order after the first, as TLS 1.3
// allows.
func checkLinks(chain []*x509.Certificate, now time.Time) error {
	linked := []*x509.Certificate{chain[0]}
	for next := 0; next < len(linked); next++ {
		for _, issuer := range chain[1:] {
			if !contains(linked, issuer) && bytes.Equal(linked[next].RawIssuer, issuer.RawSubject) && linked[next].CheckSignatureFrom(issuer) == nil {
				linked = append(linked, issuer)
			}
		}
	}
	for i, cert := range chain {
		if !contains(linked, cert) {
			return fmt.Errorf("%s has signed none of the others: the file must hold the server's certificate and then those that lead to its authority",
				describe(cert, i, len(chain)))
		}
	}
	if len(linked) == 1 {
		return nil
	}
	top, intermediates := x509.NewCertPool(), x509.NewCertPool()
	for _, cert := range linked[1 : len(linked)-1] {
		intermediates.AddCert(cert)
	}
	top.AddCert(linked[len(linked)-1])
	_, err := chain[0].Verify(x509.VerifyOptions{
		Roots: top, Intermediates: intermediates, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny},
	})
	return err
}

func contains(all []*x509.Certificate, cert *x509.Certificate) bool {
	for _, one := range all {
		if bytes.Equal(one.Raw, cert.Raw) {
			return true
		}
	}
	return false
}
