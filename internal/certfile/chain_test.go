package certfile

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"log/slog"
	"math/big"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/felix-mq/felix/internal/dev"
)

// authority is a certificate that can sign others, or a leaf.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

// sign makes a certificate, signed by a, or by itself if a is nil.
func (a *authority) sign(t *testing.T, name string, ca bool, from, until time.Time) *authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	serial, err := rand.Int(rand.Reader, big.NewInt(1<<62))
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: name}, DNSNames: []string{"localhost"},
		NotBefore: from, NotAfter: until, IsCA: ca, BasicConstraintsValid: true,
	}
	issuer := authority{template, key}
	if a != nil {
		issuer = *a
	}
	der, err := x509.CreateCertificate(rand.Reader, template, issuer.cert, &key.PublicKey, issuer.key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return &authority{cert, key}
}

// put writes the chain, whose first certificate is the server's.
func put(t *testing.T, files Files, chain ...*authority) {
	t.Helper()
	var certs []byte
	for _, a := range chain {
		certs = append(certs, dev.CertPEM(a.cert)...)
	}
	key, err := dev.KeyPEM(tls.Certificate{PrivateKey: chain[0].key})
	if err != nil {
		t.Fatal(err)
	}
	write(t, files.Cert, certs)
	write(t, files.Key, key)
}

func newFiles(t *testing.T) Files {
	t.Helper()
	dir := t.TempDir()
	return Files{Cert: filepath.Join(dir, "tls.crt"), Key: filepath.Join(dir, "tls.key")}
}

// reload looks at the files as Watch does from time to time.
func (s *Source) reload() { _ = s.look(context.Background(), false) }

// TestChains offers each chain at the start and at a reload.
func TestChains(t *testing.T) {
	now := time.Now()
	before, after := now.Add(-time.Hour), now.Add(24*time.Hour)
	soon := now.Add(time.Hour)
	root := (*authority)(nil).sign(t, "root", true, before, after)
	intermediate := root.sign(t, "intermediate", true, before, soon)
	leaf := intermediate.sign(t, "leaf", false, before, after)
	direct := root.sign(t, "direct", false, before, after)
	expired := root.sign(t, "expired", true, before, now.Add(-time.Minute))
	future := root.sign(t, "future", true, soon, after)
	namesake := (*authority)(nil).sign(t, "intermediate", true, before, after)
	noCA := root.sign(t, "no authority", false, before, after)
	self := (*authority)(nil).sign(t, "self", false, before, after)
	long := []*authority{leaf, intermediate}
	for range maxChain {
		long = append(long, (*authority)(nil).sign(t, "x", true, before, after))
	}
	for name, c := range map[string]struct {
		chain []*authority
		want  string    // in the error
		until time.Time // of the gauge
	}{
		"leaf alone":             {[]*authority{direct}, "", after},
		"self-signed":            {[]*authority{self}, "", after},
		"with intermediate":      {[]*authority{leaf, intermediate}, "", soon},
		"with root":              {[]*authority{leaf, intermediate, root}, "", soon},
		"another order":          {[]*authority{leaf, root, intermediate}, "", soon},
		"the same twice":         {[]*authority{leaf, intermediate, intermediate}, "", soon},
		"expired intermediate":   {[]*authority{expired.sign(t, "leaf", false, before, after), expired}, "certificate 2 of 2 (CN=expired) is valid from", time.Time{}},
		"future intermediate":    {[]*authority{future.sign(t, "leaf", false, before, after), future}, "certificate 2 of 2 (CN=future) is valid from", time.Time{}},
		"expired leaf":           {[]*authority{root.sign(t, "leaf", false, before, now.Add(-time.Minute))}, "the certificate is valid from", time.Time{}},
		"foreign certificate":    {[]*authority{leaf, self}, "certificate 2 of 2 (CN=self) has signed none of the others", time.Time{}},
		"missing link":           {[]*authority{leaf, root}, "certificate 2 of 2 (CN=root) has signed none of the others", time.Time{}},
		"authority of that name": {[]*authority{leaf, namesake}, "certificate 2 of 2 (CN=intermediate) has signed none", time.Time{}},
		"signed by no authority": {[]*authority{noCA.sign(t, "leaf", false, before, after), noCA}, "has signed none of the others", time.Time{}},
		"more than a chain has":  {long, "no chain has more than", time.Time{}},
	} {
		t.Run(name, func(t *testing.T) {
			files := newFiles(t)
			put(t, files, c.chain...)
			if _, err := Load(files, slog.New(slog.DiscardHandler)); (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
				t.Errorf("at the start: %v, want %q", err, c.want)
			}
			put(t, files, direct)
			var log bytes.Buffer
			s, err := Load(files, slog.New(slog.NewTextHandler(&log, nil)))
			if err != nil {
				t.Fatal(err)
			}
			put(t, files, c.chain...)
			err = s.Reload(t.Context())
			shown := s.current.Load()
			if c.want == "" {
				if err != nil || s.failing.Load() || !shown.cert.Leaf.Equal(c.chain[0].cert) {
					t.Errorf("at a reload: %v", err)
				}
				if !shown.notAfter.Equal(c.until.Truncate(time.Second).UTC()) {
					t.Errorf("expires at %v, want %v", shown.notAfter, c.until)
				}
				return
			}
			if err == nil || !strings.Contains(err.Error(), c.want) || !strings.Contains(log.String(), "certificate not reloaded") {
				t.Errorf("at a reload: %v, want %q; log %s", err, c.want, log.String())
			}
			if !shown.cert.Leaf.Equal(direct.cert) {
				t.Error("the former certificate is gone")
			}
			if err := testutil.CollectAndCompare(s, strings.NewReader("# HELP felix_tls_reload_failing 1 if the files of the certificate hold none that can be used, and an earlier one is shown.\n"+
				"# TYPE felix_tls_reload_failing gauge\nfelix_tls_reload_failing 1\n"), "felix_tls_reload_failing"); err != nil {
				t.Error(err)
			}
			s.reload()
			if n := strings.Count(log.String(), "certificate not reloaded"); n != 1 {
				t.Errorf("said %d times what was looked at twice", n)
			}
			if again := s.Reload(t.Context()); again == nil {
				t.Error("asked once more, it does not say what is wrong")
			}
			put(t, files, direct)
			if err := s.Reload(t.Context()); err != nil || s.failing.Load() {
				t.Errorf("the former files are back: %v", err)
			}
		})
	}
}

// TestCertificateFromTheFuture puts certificates in place whose time comes while the program runs: the server's, and
// then a chain whose intermediate is later than the server's.
func TestCertificateFromTheFuture(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		now := time.Now()
		end := now.Add(90 * 24 * time.Hour)
		root := (*authority)(nil).sign(t, "root", true, now, end)
		first := root.sign(t, "first", false, now, now.Add(24*time.Hour))
		second := root.sign(t, "second", false, now.Add(10*time.Second), end)
		later := root.sign(t, "later", true, now.Add(time.Hour), end)
		third := later.sign(t, "third", false, now.Add(30*time.Minute), end)
		files := newFiles(t)
		put(t, files, first)
		var log bytes.Buffer
		s, err := Load(files, slog.New(slog.NewTextHandler(&log, nil)))
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		go s.follow(ctx, func(ctx context.Context) error { // no notifications: they would come from outside of the bubble
			select {
			case <-ctx.Done():
			case <-time.After(Every):
			}
			return ctx.Err()
		})
		shows := func(after time.Duration, want *authority, failing bool) {
			t.Helper()
			time.Sleep(time.Until(now.Add(after)) + Every/2)
			synctest.Wait()
			if got := s.current.Load().cert.Leaf; !got.Equal(want.cert) || s.failing.Load() != failing {
				t.Errorf("after %v it shows %s, failing %v", after, got.Subject, s.failing.Load())
			}
		}
		put(t, files, second)
		shows(5*time.Second, first, true)
		shows(8*time.Second, first, true)
		shows(11*time.Second, second, false)
		put(t, files, third, later)
		shows(time.Minute, second, true)
		shows(31*time.Minute, second, true)
		shows(time.Hour+time.Second, third, false)
		if n := strings.Count(log.String(), "certificate not reloaded"); n > 3 {
			t.Errorf("said %d times:\n%s", n, log.String())
		}
	})
}
