package main

import (
	"crypto/ed25519"
	"crypto/x509"
	"encoding/pem"
	"flag"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/felix-mq/felix/auth"
	"github.com/felix-mq/felix/catalog"
	"github.com/felix-mq/felix/internal/brokerd"
	"github.com/felix-mq/felix/internal/dev"
	"github.com/felix-mq/felix/internal/settings"
	"github.com/felix-mq/felix/ring"
)

var (
	mutationSeed = flag.Uint64("mutations.seed", 0, "seed of TestMutationsAreRefused; 0 is a new one")
	mutations    = flag.Int("mutations.n", 1000, "how many mutations it makes")
)

// mutation is one thing done to a valid configuration that makes it invalid. That it does follows from how it is made,
// from the tags and the grammar of names, and not from asking the code that is tested.
type mutation struct {
	what        string
	key         string // that has to be named
	config      string // a line for the file, in place of the key's own
	duplicate   bool   // rather than in its place
	assignments []string
	environ     map[string]string
	catalog     func(string) string
}

// mutator makes mutations.
type mutator struct {
	*rand.Rand
	settings []*settings.Setting
	known    map[string]bool // all keys, with and without effect
}

func (m *mutator) word() string {
	w := []byte("x")
	for range 1 + m.IntN(12) {
		w = append(w, byte('a'+m.IntN(26)))
	}
	return string(w)
}

// misspell returns a key that is none.
func (m *mutator) misspell(key string) string {
	for {
		b := []byte(key)
		i := m.IntN(len(b))
		switch m.IntN(3) {
		case 0:
			b = slices.Delete(b, i, i+1)
		case 1:
			b = slices.Insert(b, i, byte('a'+m.IntN(26)))
		case 2:
			b[i] = byte('a' + m.IntN(26))
		}
		if s := string(b); len(s) > 0 && !m.known[s] {
			return s
		}
	}
}

// badValue returns a text that the setting cannot be.
func (m *mutator) badValue(s *settings.Setting) string {
	switch values := s.Values(); {
	case strings.Contains(values, "…"):
		var texts []string
		duration := strings.HasSuffix(s.Max, "h") || strings.HasSuffix(s.Max, "m") || strings.HasSuffix(s.Max, "s")
		if duration {
			least, _ := time.ParseDuration(s.Min)
			most, _ := time.ParseDuration(s.Max)
			texts = append(texts, (least - time.Duration(1+m.IntN(1e9))).String(), (most + time.Duration(1+m.IntN(1e9))).String())
			texts = append(texts, strconv.FormatInt(most.Milliseconds()+1+int64(m.IntN(1e9)), 10))
		} else {
			least, _ := strconv.ParseInt(s.Min, 10, 64)
			most, _ := strconv.ParseInt(s.Max, 10, 64)
			texts = append(texts, strconv.FormatInt(least-1-int64(m.IntN(1e9)), 10), strconv.FormatInt(most+1+int64(m.IntN(1e9)), 10), "1.5", "0x10")
		}
		texts = append(texts, m.word(), "9"+strings.Repeat("0", 19+m.IntN(20)))
		return texts[m.IntN(len(texts))]
	case s.Values() == "address":
		return []string{m.word(), "127.0.0.1:" + strconv.Itoa(65536+m.IntN(1e6)), "127.0.0.1:" + m.word(), "::1:80"}[m.IntN(4)]
	default: // a boolean or one of several words, none of which begins with an x
		return m.word()
	}
}

func (m *mutator) setting(fits func(*settings.Setting) bool) *settings.Setting {
	for {
		if s := m.settings[m.IntN(len(m.settings))]; fits(s) {
			return s
		}
	}
}

func (m *mutator) next() mutation {
	anySetting := func(*settings.Setting) bool { return true }
	checked := func(s *settings.Setting) bool { return s.Values() != "text" && s.Values() != "list" }
	switch m.IntN(12) {
	case 0:
		key := m.misspell(m.setting(anySetting).Key)
		return mutation{what: "unknown key in the file", key: key, config: key + ": 1"}
	case 1:
		key := m.misspell(m.setting(anySetting).Key)
		return mutation{what: "unknown key on the command line", key: key, assignments: []string{key + "=1"}}
	case 2, 3:
		s := m.setting(checked)
		return mutation{what: "bad value in the file", key: s.Key, config: s.Key + ": " + strconv.Quote(m.badValue(s))}
	case 4:
		s := m.setting(checked)
		return mutation{what: "bad value on the command line", key: s.Key, assignments: []string{s.Key + "=" + m.badValue(s)}}
	case 5:
		s := m.setting(checked)
		name := s.Variables[m.IntN(len(s.Variables))]
		return mutation{what: "bad value in the environment", key: name, environ: map[string]string{name: m.badValue(s)}}
	case 6:
		s := m.setting(anySetting)
		value := []string{"{a: 1}", "[[1]]", "~", "", "[{}]", "*a"}[m.IntN(6)]
		return mutation{what: "value of the wrong kind", key: s.Key, config: s.Key + ": " + strings.Replace(value, "*a", "{b: [c]}", 1)}
	case 7:
		s := m.setting(checked)
		return mutation{what: "key that stands twice", key: s.Key, config: s.Key + ": " + strconv.Quote(s.Default), duplicate: true}
	case 8:
		idle := 2000 + m.IntN(1e6)
		return mutation{
			what: "settings that do not go together", key: "keep_alive_ms",
			assignments: []string{"idle_timeout_ms=" + strconv.Itoa(idle), "keep_alive_ms=" + strconv.Itoa(idle/2+1+m.IntN(1000))},
		}
	case 9:
		key := []string{"catalog", "tls_cert_file"}[m.IntN(2)]
		return mutation{what: "file that is not there", key: key, assignments: []string{key + "=/none/" + m.word()}}
	default:
		return m.inCatalog()
	}
}

// inCatalog damages the catalog's file.
func (m *mutator) inCatalog() mutation {
	replace := func(what, key, old, new string) mutation {
		return mutation{what: what + " in the catalog", key: key, catalog: func(text string) string {
			if !strings.Contains(text, old) {
				panic(old + " is not in the catalog:\n" + text)
			}
			return strings.Replace(text, old, new, 1)
		}}
	}
	switch m.IntN(6) {
	case 0:
		key := []string{"tenants", "jwks", "keys", "namespaces", "streams", "caches", "overflow", "queue_bytes", "queue_batches", "replay_bytes"}[m.IntN(10)]
		wrong := m.misspell(key)
		return replace("unknown key", wrong, key+":", wrong+":")
	case 1:
		bounds := map[string][2]int{"queue_batches: 8": {1, 1 << 20}, "queue_bytes: 4096": {1024, 1<<31 - 1}, "replay_bytes: 2048": {-1, 1<<31 - 1}}
		for old, b := range bounds { // any of them
			key, _, _ := strings.Cut(old, ":")
			bad := b[0] - 1 - m.IntN(1e6)
			if m.IntN(2) == 0 {
				bad = b[1] + 1 + m.IntN(1e6)
			}
			return replace("number out of its range", key, old, key+": "+strconv.Itoa(bad))
		}
	case 2:
		return replace("unknown policy", "overflow", "overflow: block", "overflow: "+m.word())
	case 3:
		name := []string{"acme", "default", "orders", "sessions"}[m.IntN(4)]
		i := m.IntN(len(name) + 1)
		wrong := name[:i] + []string{"/", " ", "*", ":", "ü", "\\"}[m.IntN(6)] + name[i:]
		return replace("bad name", wrong, name+":", "'"+wrong+"':")
	case 4:
		return replace("bad key", "jwks.keys[0]", "kty: OKP", "kty: "+m.word())
	}
	wrong := m.word()
	return replace("unknown cache setting", wrong, "sessions: {}", "sessions: {"+wrong+": {}}")
}

// TestMutationsAreRefused damages a valid configuration in a thousand ways. Each is refused by --validate-config and at
// the start, with the same exit code, and what is wrong is named.
func TestMutationsAreRefused(t *testing.T) {
	seed := *mutationSeed
	if seed == 0 {
		seed = rand.Uint64()
	}
	t.Logf("-mutations.seed=%d", seed)
	dir := t.TempDir()
	text := validCatalog(t)
	catalogFile, configFile := filepath.Join(dir, "catalog.yml"), filepath.Join(dir, "config.yml")
	m := &mutator{rand.New(rand.NewPCG(seed, 0)), settings.Describe(defaultOptions().structs()...), make(map[string]bool)}
	base := map[string]string{"catalog": catalogFile, "quic_bind": "127.0.0.1:0", "metrics_bind": "127.0.0.1:0"}
	base["tls_cert_file"], base["tls_key_file"] = certificateFiles(t, dir)
	var lines []string // of a file with every setting
	for _, s := range m.settings {
		m.known[s.Key] = true
		value := s.Default
		if v, ok := base[s.Key]; ok {
			value = v
		}
		if s.Values() == "list" {
			lines = append(lines, s.Key+": ["+value+"]")
		} else {
			lines = append(lines, s.Key+": "+strconv.Quote(value))
		}
	}
	for _, w := range brokerd.WithoutEffect {
		m.known[w.Key] = true
	}
	for _, key := range []string{"tenants", "jwks", "jwks_file", "keys", "namespaces", "streams", "caches", "overflow", "queue_bytes", "queue_batches"} {
		m.known[key] = true
	}

	save := func(name, text string) {
		t.Helper()
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	save(catalogFile, text)
	save(configFile, strings.Join(lines, "\n"))
	if stdout, stderr := newOutput(), newOutput(); run([]string{"--config", configFile, "--validate-config"}, stdout, stderr) != exitOK {
		t.Fatalf("the configuration is not valid to begin with: %s", stderr)
	}
	for n := range *mutations {
		mu := m.next()
		config := slices.Clone(lines)
		if mu.config != "" {
			at := slices.IndexFunc(config, func(line string) bool { return strings.HasPrefix(line, mu.key+":") })
			if at < 0 || mu.duplicate {
				config = slices.Insert(config, m.IntN(len(config)+1), mu.config)
			} else {
				config[at] = mu.config
			}
		}
		save(configFile, strings.Join(config, "\n"))
		broken := text
		if mu.catalog != nil {
			broken = mu.catalog(text)
		}
		save(catalogFile, broken)
		args := []string{"--config", configFile}
		for _, a := range mu.assignments {
			args = append(args, "--set", a)
		}
		for name, value := range mu.environ {
			if err := os.Setenv(name, value); err != nil { //nolint:usetesting // it is unset below, a thousand times
				t.Fatal(err)
			}
		}
		for _, args := range [][]string{append(slices.Clone(args), "--validate-config"), args} {
			stdout, stderr := newOutput(), newOutput()
			code := make(chan int, 1)
			go func() { code <- run(args, stdout, stderr) }()
			select {
			case c := <-code:
				if c != exitUsage {
					t.Errorf("mutation %d, %s: exit code %d, want %d: %+v", n, mu.what, c, exitUsage, mu)
				}
			case <-time.After(20 * time.Second):
				t.Fatalf("mutation %d, %s: the broker has started: %+v", n, mu.what, mu)
			}
			if !strings.Contains(stderr.String(), mu.key) {
				t.Errorf("mutation %d, %s: %q is not named in %s", n, mu.what, mu.key, stderr)
			}
		}
		for name := range mu.environ {
			_ = os.Unsetenv(name)
		}
		if t.Failed() {
			t.FailNow()
		}
	}
}

// validCatalog is a catalog with everything that can be in one.
func validCatalog(t *testing.T) string {
	t.Helper()
	signer, err := auth.NewSigner(ed25519.NewKeyFromSeed(make([]byte, ed25519.SeedSize)), "k1")
	if err != nil {
		t.Fatal(err)
	}
	text, err := catalog.Marshal(&catalog.Catalog{Tenants: map[string]catalog.Tenant{"acme": {
		Keys: auth.KeySet{signer.Key()},
		Namespaces: map[string]catalog.Namespace{"default": {
			Streams: map[string]catalog.Stream{"orders": {Overflow: new(ring.Block), QueueBatches: 8, QueueBytes: 4096, ReplayBytes: 2048}},
			Caches:  map[string]catalog.Cache{"sessions": {}},
		}},
	}}})
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// certificateFiles makes a certificate for localhost.
func certificateFiles(t *testing.T, dir string) (certFile, keyFile string) {
	t.Helper()
	cert, _, err := dev.SelfSigned()
	if err != nil {
		t.Fatal(err)
	}
	key, err := x509.MarshalPKCS8PrivateKey(cert.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	certFile, keyFile = filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	for name, block := range map[string]*pem.Block{
		certFile: {Type: "CERTIFICATE", Bytes: cert.Certificate[0]}, keyFile: {Type: "PRIVATE KEY", Bytes: key},
	} {
		if err := os.WriteFile(name, pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return certFile, keyFile
}
