package certfile

import (
	"bytes"
	"context"
	"crypto/tls"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"
	"go.uber.org/goleak"

	"github.com/felix-mq/felix/internal/dev"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func issue(t *testing.T, ca *dev.CA) (cert tls.Certificate, certPEM, keyPEM []byte) {
	t.Helper()
	cert, err := ca.Issue()
	if err != nil {
		t.Fatal(err)
	}
	keyPEM, err = dev.KeyPEM(cert)
	if err != nil {
		t.Fatal(err)
	}
	return cert, dev.CertPEM(cert.Leaf), keyPEM
}

func newCA(t *testing.T) *dev.CA {
	t.Helper()
	ca, err := dev.NewCA()
	if err != nil {
		t.Fatal(err)
	}
	return ca
}

func write(t *testing.T, path string, content []byte) {
	t.Helper()
	if err := os.WriteFile(path+".new", content, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		t.Fatal(err)
	}
}

// logged is a log that can be read while it is written.
type logged struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (l *logged) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(b)
}

func (l *logged) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

// watched is a source whose files are looked at all the time, and a server that uses it.
type watched struct {
	*Source
	t    *testing.T
	ca   *dev.CA
	log  *logged
	addr string
}

func watch(t *testing.T, ca *dev.CA, files Files) *watched {
	t.Helper()
	w := &watched{t: t, ca: ca, log: new(logged)}
	var err error
	if w.Source, err = Load(files, slog.New(slog.NewTextHandler(w.log, nil))); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	listener, err := tls.Listen("tcp", "127.0.0.1:0", w.TLS())
	if err != nil {
		t.Fatal(err)
	}
	w.addr = listener.Addr().String()
	var work sync.WaitGroup
	work.Go(func() { w.Watch(ctx, time.Millisecond) })
	work.Go(func() {
		for {
			c, err := listener.Accept()
			if err != nil {
				return
			}
			work.Go(func() {
				defer c.Close()
				if c.(*tls.Conn).Handshake() == nil {
					_, _ = c.Write([]byte{1})
				}
			})
		}
	})
	t.Cleanup(func() {
		cancel()
		listener.Close()
		work.Wait()
	})
	return w
}

// shake makes a handshake and returns the certificate that the server showed.
func (w *watched) shake(with ...tls.Certificate) (serial string, err error) {
	d := tls.Dialer{Config: &tls.Config{RootCAs: w.ca.Pool(), ServerName: "localhost", Certificates: with}}
	c, err := d.DialContext(w.t.Context(), "tcp", w.addr)
	if err != nil {
		return "", err
	}
	defer c.Close()
	if _, err := c.Read(make([]byte, 1)); err != nil { // TLS 1.3: the server's refusal comes after the handshake
		return "", err
	}
	return c.(*tls.Conn).ConnectionState().PeerCertificates[0].SerialNumber.String(), nil
}

// eventually waits for a condition.
func (w *watched) eventually(what string, cond func() bool) {
	w.t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !cond(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			w.t.Fatalf("%s: not in 20 s; log:\n%s", what, w.log)
		}
	}
}

// shows waits until handshakes show the certificate.
func (w *watched) shows(cert tls.Certificate, with ...tls.Certificate) {
	w.t.Helper()
	w.eventually("new certificate", func() bool {
		serial, err := w.shake(with...)
		if err != nil {
			w.t.Fatal(err)
		}
		return serial == cert.Leaf.SerialNumber.String()
	})
}

// Files that are replaced one after the other, and files that are replaced by nonsense.
func TestReload(t *testing.T) {
	dir, ca := t.TempDir(), newCA(t)
	files := Files{Cert: filepath.Join(dir, "tls.crt"), Key: filepath.Join(dir, "tls.key")}
	put := func() tls.Certificate {
		cert, certPEM, keyPEM := issue(t, ca)
		write(t, files.Cert, certPEM)
		write(t, files.Key, keyPEM)
		return cert
	}
	first := put()
	w := watch(t, ca, files)
	w.shows(first)
	second := put()
	w.shows(second)

	_, foreign, _ := issue(t, ca)
	for _, bad := range []struct {
		name    string
		content []byte
	}{
		{"nonsense", []byte("nonsense")}, {"empty", nil}, {"not this key's", foreign}, {"too long", bytes.Repeat([]byte("x"), maxFile+1)},
	} {
		write(t, files.Cert, bad.content)
		w.eventually(bad.name, func() bool { return w.failing.Load() })
		w.shows(second)
		if err := testutil.CollectAndCompare(w, strings.NewReader("# HELP felix_tls_reload_failing 1 if the files of the certificate hold none that can be used, and an earlier one is shown.\n"+
			"# TYPE felix_tls_reload_failing gauge\nfelix_tls_reload_failing 1\n"), "felix_tls_reload_failing"); err != nil {
			t.Error(err)
		}
		w.shows(put())
		w.eventually("good again", func() bool { return !w.failing.Load() })
		serial, err := w.shake()
		if err != nil {
			t.Fatal(err)
		}
		second = tls.Certificate{Leaf: w.current.Load().cert.Leaf}
		if serial != second.Leaf.SerialNumber.String() {
			t.Errorf("%s shown, want %s", serial, second.Leaf.SerialNumber)
		}
	}
	if err := os.Remove(files.Key); err != nil {
		t.Fatal(err)
	}
	w.eventually("missing key", func() bool { return w.failing.Load() })
	w.shows(second)
	said := strings.Count(w.log.String(), "no such file")
	for range 20 { // twenty looks at least
		before := time.Now()
		w.eventually("time", func() bool { return time.Since(before) > 2*time.Millisecond })
	}
	if again := strings.Count(w.log.String(), "no such file"); again != 1 || said != 1 {
		t.Errorf("a missing file was said %d times, then %d", said, again)
	}
	w.shows(put())
}

// A mounted Secret of Kubernetes: tls.crt and tls.key are links into ..data, which is a link to a directory that is
// exchanged as a whole.
func TestReloadSecret(t *testing.T) {
	dir, ca := t.TempDir(), newCA(t)
	n := 0
	put := func() tls.Certificate {
		cert, certPEM, keyPEM := issue(t, ca)
		n++
		data := filepath.Join(dir, "..v"+string(rune('0'+n)))
		if err := os.Mkdir(data, 0o700); err != nil {
			t.Fatal(err)
		}
		write(t, filepath.Join(data, "tls.crt"), certPEM)
		write(t, filepath.Join(data, "tls.key"), keyPEM)
		tmp := filepath.Join(dir, "..data_tmp")
		if err := os.Symlink(filepath.Base(data), tmp); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(tmp, filepath.Join(dir, "..data")); err != nil {
			t.Fatal(err)
		}
		return cert
	}
	first := put()
	for _, name := range []string{"tls.crt", "tls.key"} {
		if err := os.Symlink(filepath.Join("..data", name), filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	w := watch(t, ca, Files{Cert: filepath.Join(dir, "tls.crt"), Key: filepath.Join(dir, "tls.key")})
	w.shows(first)
	for range 5 {
		w.shows(put())
	}
	if strings.Contains(w.log.String(), "not reloaded") {
		t.Errorf("an exchange as a whole was seen half: %s", w.log)
	}
}

// Clients show a certificate of the authority that the file names at that time.
func TestClientCA(t *testing.T) {
	dir, ca, clients := t.TempDir(), newCA(t), newCA(t)
	files := Files{Cert: filepath.Join(dir, "crt"), Key: filepath.Join(dir, "key"), ClientCA: filepath.Join(dir, "ca")}
	cert, certPEM, keyPEM := issue(t, ca)
	write(t, files.Cert, certPEM)
	write(t, files.Key, keyPEM)
	write(t, files.ClientCA, clients.CertPEM())
	w := watch(t, ca, files)
	mine, _, _ := issue(t, clients)
	other, _, _ := issue(t, ca)
	w.shows(cert, mine)
	for name, with := range map[string][]tls.Certificate{"none": nil, "of another authority": {other}} {
		if _, err := w.shake(with...); err == nil {
			t.Errorf("certificate %s: accepted", name)
		}
	}
	write(t, files.ClientCA, ca.CertPEM())
	w.eventually("new authority", func() bool { _, err := w.shake(other); return err == nil })
	if _, err := w.shake(mine); err == nil {
		t.Error("a certificate of the former authority is accepted")
	}
	write(t, files.ClientCA, []byte("nonsense"))
	w.eventually("nonsense", func() bool { return w.failing.Load() })
	w.shows(cert, other)
}

func TestLoadErrors(t *testing.T) {
	dir, ca := t.TempDir(), newCA(t)
	path := func(name string) string { return filepath.Join(dir, name) }
	_, certPEM, keyPEM := issue(t, ca)
	write(t, path("crt"), certPEM)
	write(t, path("key"), keyPEM)
	write(t, path("bad"), []byte("bad"))
	for _, c := range []struct {
		files Files
		want  string
	}{
		{Files{}, "FELIX_TLS_CERT_FILE"},
		{Files{Cert: path("crt")}, "FELIX_TLS_KEY_FILE"},
		{Files{Cert: path("none"), Key: path("key")}, "FELIX_TLS_CERT_FILE: open " + path("none")},
		{Files{Cert: path("crt"), Key: dir}, "FELIX_TLS_KEY_FILE"},
		{Files{Cert: path("bad"), Key: path("key")}, path("bad")},
		{Files{Cert: path("crt"), Key: path("key"), ClientCA: path("bad")}, path("bad") + " holds no certificate"},
	} {
		if _, err := Load(c.files, slog.New(slog.DiscardHandler)); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%+v: %v, want %q", c.files, err, c.want)
		}
	}
}

// FuzzParse tries files that are anything.
func FuzzParse(f *testing.F) {
	ca, err := dev.NewCA()
	if err != nil {
		f.Fatal(err)
	}
	cert, err := ca.Issue()
	if err != nil {
		f.Fatal(err)
	}
	key, err := dev.KeyPEM(cert)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(dev.CertPEM(cert.Leaf), key, ca.CertPEM())
	f.Add([]byte{}, []byte{}, []byte{})
	s := &Source{files: Files{ClientCA: "x"}}
	f.Fuzz(func(t *testing.T, cert, key, ca []byte) {
		if p, err := s.parse([3][]byte{cert, key, ca}); err == nil && (p.cert.Leaf == nil || p.conf == nil) {
			t.Error("accepted without a certificate")
		}
	})
}
