package ops

import (
	"bufio"
	"crypto/tls"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/felix-mq/felix/internal/certfile"
	"github.com/felix-mq/felix/internal/dev"
)

// trouble is what a client does with a connection and does not finish.
var trouble = map[string]func(c net.Conn) error{
	"silent": func(net.Conn) error { return nil },
	"slow header": func(c net.Conn) error {
		_, err := io.WriteString(c, "GET /livez HTTP/1.1\r\nHost: localhost\r\nX-Slow: ")
		return err
	},
	"slow body": func(c net.Conn) error {
		_, err := io.WriteString(c, "GET /livez HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\nx")
		return err
	},
	"chunked body": func(c net.Conn) error {
		_, err := io.WriteString(c, "POST /metrics HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nffff\r\n")
		return err
	},
	"kept alive": func(c net.Conn) error {
		if _, err := io.WriteString(c, "GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n"); err != nil {
			return err
		}
		res, err := http.ReadResponse(bufio.NewReader(c), nil)
		if err != nil {
			return err
		}
		return res.Body.Close()
	},
	"pipelined and not read": func(c net.Conn) error {
		_, err := io.WriteString(c, strings.Repeat("GET /readyz HTTP/1.1\r\nHost: localhost\r\n\r\n", 1000))
		return err
	},
	"HTTP/2": func(c net.Conn) error {
		_, err := io.WriteString(c, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00")
		return err
	},
	"TLS record": func(c net.Conn) error {
		_, err := c.Write([]byte{22, 3, 1, 1, 0, 1})
		return err
	},
}

// TestProbesAnswerWhateverElseConnects holds more connections than the server keeps, of one address and of several, in
// the clear and with TLS, and asks the probes between them.
func TestProbesAnswerWhateverElseConnects(t *testing.T) {
	for _, secure := range []bool{false, true} {
		for name, misbehave := range trouble {
			for _, addresses := range []int{1, 7} {
				if secure && addresses > 1 {
					continue // where connections come from does not depend on what is in them
				}
				t.Run(fmt.Sprintf("%s/TLS %v/%d addresses", name, secure, addresses), func(t *testing.T) {
					s, conf := server(t, secure)
					const each = 100
					for i := range maxConns + each {
						c, err := dialFrom(s, i%addresses)
						if err != nil {
							t.Fatal(err)
						}
						defer c.Close()
						if secure && i%8 == 0 && name != "TLS record" { // handshakes take their time
							client := tls.Client(c, conf)
							if err := client.HandshakeContext(t.Context()); err != nil {
								t.Fatal(err)
							}
							c = client
						}
						if err := misbehave(c); err != nil && !secure {
							t.Logf("connection %d: %v", i, err) // it may have been closed for others
						}
						if i%each == 0 || i > maxConns && i%10 == 0 {
							probe(t, s, conf)
						}
					}
					if n := s.open(); n > maxConns {
						t.Errorf("%d connections are kept, want at most %d", n, maxConns)
					}
				})
			}
		}
	}
}

func (s *Server) open() int {
	s.listener.mu.Lock()
	defer s.listener.mu.Unlock()
	return len(s.listener.open)
}

func server(t *testing.T, secure bool) (*Server, *tls.Config) {
	t.Helper()
	if !secure {
		return serve(t, func(*Config) {}), nil
	}
	ca, err := dev.NewCA()
	if err != nil {
		t.Fatal(err)
	}
	source, err := certfile.Load(certificateOf(t, ca), slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	return serve(t, func(cfg *Config) { cfg.TLS, cfg.Certificate = true, source.TLS() }), &tls.Config{RootCAs: ca.Pool(), ServerName: "localhost"}
}

// certificateOf returns the files of a certificate that ca has issued.
func certificateOf(t *testing.T, ca *dev.CA) certfile.Files {
	t.Helper()
	cert, err := ca.Issue()
	if err != nil {
		t.Fatal(err)
	}
	key, err := dev.KeyPEM(cert)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	files := certfile.Files{Cert: filepath.Join(dir, "crt"), Key: filepath.Join(dir, "key")}
	for name, content := range map[string][]byte{files.Cert: dev.CertPEM(cert.Leaf), files.Key: key} {
		if err := os.WriteFile(name, content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return files
}

// dialFrom connects from one of several loopback addresses.
func dialFrom(s *Server, i int) (net.Conn, error) {
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, byte(1+i))}}
	c, err := d.Dial("tcp", s.Addr().String())
	if err != nil { // only Linux has all of 127.0.0.0/8
		return net.Dial("tcp", s.Addr().String())
	}
	return c, nil
}

func probe(t *testing.T, s *Server, conf *tls.Config) {
	t.Helper()
	for _, path := range []string{"/livez", "/readyz", "/healthz"} {
		if got := ask(t, s, path, "", conf); got.status != http.StatusOK {
			t.Errorf("%s answers %+v", path, got)
		}
	}
}

// Clients that ask for much and read nothing use up the places of such requests, and no probe's.
func TestLongRequestsLeaveProbesAlone(t *testing.T) {
	release := make(chan struct{})
	entered := make(chan struct{}, maxLong)
	s := serve(t, func(cfg *Config) {
		cfg.Streams = http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
			entered <- struct{}{}
			<-release
		})
	})
	defer close(release)
	for range maxLong {
		c, err := dialFrom(s, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if _, err := io.WriteString(c, "GET /streams HTTP/1.1\r\nHost: localhost\r\n\r\n"); err != nil {
			t.Fatal(err)
		}
		<-entered
	}
	if got := ask(t, s, "/streams", "", nil); got.status != http.StatusServiceUnavailable {
		t.Errorf("one more answers %+v", got)
	}
	for range 2 * maxConns {
		c, err := dialFrom(s, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
	}
	probe(t, s, nil)
	handling := 0
	s.listener.mu.Lock()
	for c := range s.listener.open {
		handling += c.handling
	}
	s.listener.mu.Unlock()
	if handling != maxLong {
		t.Errorf("%d requests are being handled, want %d: none is closed for others", handling, maxLong)
	}
}

// The connection that is closed is the longest unused one of the address that has most.
func TestWhichConnectionIsClosed(t *testing.T) {
	cs := newConns(nil, 5)
	add := func(ip string) (c, victim *tracked) {
		c = &tracked{owner: cs, from: network(&net.TCPAddr{IP: net.ParseIP(ip)})}
		return c, cs.add(c)
	}
	lone, _ := add("10.0.0.1")
	first, _ := add("10.0.0.2")
	second, _ := add("10.0.0.2")
	busy, _ := add("10.0.0.2")
	defer busy.handle()()
	first.handle()() // it is used once more
	if _, victim := add("10.0.0.3"); victim != nil {
		t.Errorf("%v is closed while there is no need", victim.from)
	}
	if _, victim := add("10.0.0.3"); victim != second {
		t.Errorf("closed %+v, want the second of 10.0.0.2", victim)
	}
	if _, victim := add("10.0.0.4"); victim == lone || victim == first || victim == busy || victim == nil {
		t.Errorf("closed %+v, want one of 10.0.0.3", victim)
	}
	if a, b := network(&net.TCPAddr{IP: net.ParseIP("2001:db8::1")}), network(&net.TCPAddr{IP: net.ParseIP("2001:db8::ffff")}); a != b {
		t.Errorf("%v and %v are one network", a, b)
	}
}

func TestEvictionsAreCounted(t *testing.T) {
	s := serve(t, func(*Config) {})
	for range maxConns + 3 {
		c, err := dialFrom(s, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
	}
	probe(t, s, nil) // accepted after all of them
	var want strings.Builder
	fmt.Fprintf(&want, "# HELP felix_http_connections_evicted_total Connections to the metrics and probes that were closed unused because there were too many.\n"+
		"# TYPE felix_http_connections_evicted_total counter\nfelix_http_connections_evicted_total %d\n", s.listener.evicted.Load())
	if err := testutil.CollectAndCompare(s, strings.NewReader(want.String())); err != nil || s.listener.evicted.Load() < 4 {
		t.Errorf("%d evicted: %v", s.listener.evicted.Load(), err)
	}
	var none *Server
	if n := testutil.CollectAndCount(none); n != 0 {
		t.Errorf("no server has %d metrics", n)
	}
}

func TestHosts(t *testing.T) {
	for _, c := range []struct {
		bind  string
		hosts []string
		want  map[string]bool
	}{
		{"127.0.0.1:0", nil, map[string]bool{
			"localhost": true, "LOCALHOST:8080": true, "localhost.": true, "felix.localhost:1": true, "127.0.0.1": true, "127.0.0.1:80": true,
			"127.1.2.3": true, "[::1]:8080": true, "[::1]": true, "[::ffff:127.0.0.1]": true,
			"evil.example": false, "evil.example:8080": false, "localhost.evil.example": false, "notlocalhost": false, "10.0.0.1": false,
			"0.0.0.0": false, "127.0.0.1.evil.example": false, "127.1": false, "[::]": false, "[::1": false, "::1": false, "localhost:1:2": false, "[::1]x": false,
		}},
		{"127.0.0.1:0", []string{"Metrics.example", "*.internal", "10.0.0.9"}, map[string]bool{
			"metrics.example:9090": true, "METRICS.EXAMPLE": true, "a.b.internal": true, "10.0.0.9:1": true, "localhost": true,
			"internal": false, "metrics.example.evil": false, "10.0.0.8": false,
		}},
		{"127.0.0.1:0", []string{"*"}, map[string]bool{"evil.example": true}},
		{"0.0.0.0:0", nil, map[string]bool{"evil.example": true, "10.0.0.1:80": true}},
		{"0.0.0.0:0", []string{"metrics.example"}, map[string]bool{
			"metrics.example": true, "localhost": true, "127.0.0.1": true, "evil.example": false, "10.0.0.1": false, "0.0.0.0": false,
		}},
		{"localhost:0", nil, map[string]bool{"localhost": true, "evil.example": false}},
	} {
		t.Run(fmt.Sprint(c.bind, c.hosts), func(t *testing.T) {
			s := serve(t, func(cfg *Config) { cfg.Bind, cfg.Hosts = c.bind, c.hosts })
			_, port, err := net.SplitHostPort(s.Addr().String())
			if err != nil {
				t.Fatal(err)
			}
			for host, allowed := range c.want {
				for _, path := range []string{"/livez", "/metrics", "/nothing"} {
					if got := raw(t, "127.0.0.1:"+port, "GET "+path+" HTTP/1.1\r\nHost: "+host+"\r\nConnection: close\r\n\r\n"); (got == http.StatusMisdirectedRequest) == allowed && got != http.StatusBadRequest {
						t.Errorf("%s for host %q answers %d", path, host, got)
					} else if got == http.StatusBadRequest && allowed {
						t.Errorf("%s for host %q is no request", path, host)
					}
				}
			}
			if got := raw(t, "127.0.0.1:"+port, "GET /livez HTTP/1.0\r\n\r\n"); got != http.StatusOK {
				t.Errorf("a request without a host answers %d", got)
			}
		})
	}
}

// raw sends a request as it is and returns the status of the answer.
func raw(t *testing.T, addr, request string) int {
	t.Helper()
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(20 * time.Second))
	if _, err := io.WriteString(c, request); err != nil {
		t.Fatal(err)
	}
	res, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	return res.StatusCode
}

func TestAllowedHostsAreChecked(t *testing.T) {
	for name, ok := range map[string]bool{
		"a.example": true, "*.a.example": true, "*": true, "::1": true, "10.0.0.1": true, "localhost": true,
		"a.example:80": false, "http://a": false, "*.": false, ".": false, "": false, "*.*": false, "a b": false, "[::1]": false, "*.::1": false,
	} {
		cfg := Config{Settings: Settings{Bind: "127.0.0.1:0", Hosts: []string{name}}}
		if err := cfg.Validate(); (err == nil) != ok || err != nil && !strings.Contains(err.Error(), "FELIX_METRICS_ALLOWED_HOSTS") {
			t.Errorf("%q: %v", name, err)
		}
	}
}

// FuzzHost tries any host: a server on loopback answers to none that is not of loopback.
func FuzzHost(f *testing.F) {
	for _, host := range []string{"localhost", "[::1]:80", "127.0.0.1", "evil.example", "[fe80::1%lo]", "a.localhost."} {
		f.Add(host)
	}
	s := &hosts{names: map[string]bool{"localhost": true}, below: []string{".localhost"}}
	f.Fuzz(func(t *testing.T, host string) {
		if host == "" || !s.allow((&http.Request{Host: host}).WithContext(t.Context())) {
			return
		}
		u, err := url.Parse("http://" + host)
		if err != nil {
			return // package http refuses what it cannot take apart
		}
		name := strings.TrimSuffix(strings.ToLower(u.Hostname()), ".")
		ip, err := netip.ParseAddr(name)
		if name != "localhost" && !strings.HasSuffix(name, ".localhost") && (err != nil || !ip.Unmap().IsLoopback()) {
			t.Errorf("answers to %q", host)
		}
	})
}
