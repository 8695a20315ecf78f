package catalog

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/felix-mq/felix/auth"
	"github.com/felix-mq/felix/ring"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// within bounds everything that a test waits for; it only ever passes when something is broken.
const within = 20 * time.Second

const publicKey = "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo" // of RFC 8037, appendix A.2

const jwksFile = `{"keys":[{"kty":"RSA","n":"AQAB"},{"kty":"OKP","crv":"Ed25519","kid":"k2","x":"` + publicKey + `"}]}`

const valid = `tenants:
  acme:
    jwks:
      keys:
        - {kty: OKP, crv: Ed25519, kid: k1, x: ` + publicKey + `}
    namespaces:
      default:
        streams:
          orders:
            overflow: block
            queue_batches: 8
            queue_bytes: 4096
            replay_bytes: -1
          audit:
        caches:
          sessions:
          carts: {}
      empty: {}
  other:
    jwks_file: other.json
    limits: {memory_guarantee: 64MiB, memory_max: 1GiB, connections_max: 100, watches_guarantee: -1}
`

// put writes files into a directory and returns the name of the first.
func put(t testing.TB, dir string, files ...string) string {
	t.Helper()
	for i := 0; i < len(files); i += 2 {
		if err := os.WriteFile(filepath.Join(dir, files[i]), []byte(files[i+1]), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return filepath.Join(dir, files[0])
}

func key(id string) auth.Key {
	set, err := auth.ParseJWKS([]byte(`{"keys":[{"kty":"OKP","crv":"Ed25519","kid":"` + id + `","x":"` + publicKey + `"}]}`))
	if err != nil {
		panic(err)
	}
	return set[0]
}

func TestLoad(t *testing.T) {
	c, err := Load(put(t, t.TempDir(), "catalog.yml", valid, "other.json", jwksFile))
	if err != nil {
		t.Fatal(err)
	}
	want := &Catalog{Tenants: map[string]Tenant{
		"acme": {Keys: auth.KeySet{key("k1")}, Namespaces: map[string]Namespace{
			"default": {
				Streams: map[string]Stream{
					"orders": {Overflow: new(ring.Block), QueueBatches: 8, QueueBytes: 4096, ReplayBytes: -1},
					"audit":  {},
				},
				Caches: map[string]Cache{"sessions": {}, "carts": {}},
			},
			"empty": {},
		}},
		"other": {Keys: auth.KeySet{key("k2")}, Limits: Limits{
			MemoryGuarantee: new(int64(64 << 20)), MemoryMax: new(int64(1 << 30)), ConnectionsMax: new(int64(100)), WatchesGuarantee: new(int64(-1)),
		}},
	}}
	if !reflect.DeepEqual(c, want) {
		t.Errorf("read %+v\nwant %+v", c, want)
	}
}

func TestEveryProblemAtOnce(t *testing.T) {
	name := put(t, t.TempDir(), "catalog.yml", `tenants:
  snapshot: {jwks_file: other.json}
  a/b:
  acme:
    jwks: {keys: [{kty: OKP, crv: Ed25519, x: AAAA}], key: 1}
    jwks_file: none.json
    namespaces:
      default:
        streams:
          orders: {overflow: blok, queue_bytes: 1, replay_bytes: -2, replay_byte: 1}
          "": {}
          orders: {}
        caches:
          sessions: {size: 1}
        stream: {}
      other: 1
    namespace: {}
  keyless: {}
  limited: {jwks_file: other.json, limits: {read_guarantee: 2KiB, read_max: 1KiB, connections_max: -1, memory_may: 1}}
  open: {jwks_file: other.json, limits: }
tenant: {}
`, "other.json", jwksFile)
	_, err := Load(name)
	if err == nil {
		t.Fatal("accepted")
	}
	const ns = "tenants.acme.namespaces.default"
	for i, want := range []string{
		`2: tenants.snapshot: auth: name "snapshot" is reserved`,
		`3: tenants.a/b: auth: invalid name "a/b"`,
		`3: tenants.a/b: want keys and values`,
		`3: tenants.a/b: needs either jwks or jwks_file`,
		`4: tenants.acme: needs either jwks or jwks_file`,
		`5: tenants.acme.jwks.keys[0]: is not a public Ed25519 key`,
		`5: tenants.acme.jwks.key: unknown key; the nearest is keys`,
		`5: tenants.acme.jwks: has no keys`,
		`6: tenants.acme.jwks_file: open `,
		`10: ` + ns + `.streams.orders.overflow: "blok" is none of block, drop_new, drop_old; the nearest is block`,
		`10: ` + ns + `.streams.orders.queue_bytes: 1 is less than 1024`,
		`10: ` + ns + `.streams.orders.replay_bytes: -2 is less than -1`,
		`10: ` + ns + `.streams.orders.replay_byte: unknown key; the nearest is replay_bytes`,
		`11: ` + ns + `.streams.: auth: invalid name ""`,
		`12: ` + ns + `.streams.orders: stands twice; first in line 10`,
		`14: ` + ns + `.caches.sessions.size: unknown key`,
		`15: ` + ns + `.stream: unknown key; the nearest is streams`,
		`16: tenants.acme.namespaces.other: want keys and values`,
		`17: tenants.acme.namespace: unknown key; the nearest is namespaces`,
		`18: tenants.keyless: needs either jwks or jwks_file`,
		`19: tenants.limited.limits: read_guarantee is 2048, above read_max, which is 1024`,
		`19: tenants.limited.limits.connections_max: -1 is less than 0`,
		`19: tenants.limited.limits.memory_may: unknown key; the nearest is memory_max`,
		`21: tenant: unknown key; the nearest is tenants`,
	} {
		if !strings.Contains(err.Error(), name+":"+want) {
			t.Errorf("problem %d: %q is not in\n%v", i, want, err)
		}
	}
	if n := strings.Count(err.Error(), "\n") + 1; n != 24 {
		t.Errorf("%d problems, want 24:\n%v", n, err)
	}
}

func TestFilesThatAreNone(t *testing.T) {
	for text, want := range map[string]string{
		"":                           "is empty",
		"# nothing":                  "is empty",
		"{}":                         "tenants: is missing",
		"[]":                         "want keys and values",
		"tenants:":                   "want keys and values",
		"tenants: {}\n---\n":         "only one document",
		"tenants: {a: &x {}, b: *x}": "aliases are not read",
		"\t":                         "catalog.yml",
	} {
		if _, err := Load(put(t, t.TempDir(), "catalog.yml", text)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: got %v, want %q", text, err, want)
		}
	}
	if _, err := Load(filepath.Join(t.TempDir(), "none")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("got %v", err)
	}
	if c, err := Load(put(t, t.TempDir(), "catalog.yml", "tenants: {}")); err != nil || len(c.Tenants) > 0 {
		t.Errorf("read %v, %v", c, err)
	}
}

func TestWrite(t *testing.T) {
	c, err := Load(put(t, t.TempDir(), "catalog.yml", valid, "other.json", jwksFile))
	if err != nil {
		t.Fatal(err)
	}
	name := filepath.Join(t.TempDir(), "written.yml")
	for range 2 { // the second replaces the first
		if err := Write(name, c); err != nil {
			t.Fatal(err)
		}
	}
	back, err := Load(name)
	if err != nil {
		t.Fatal(err)
	}
	if d := Diff(c, back); len(d) > 0 {
		t.Errorf("differs: %+v", d)
	}
	if files, _ := os.ReadDir(filepath.Dir(name)); len(files) != 1 {
		t.Errorf("files left: %v", files)
	}
	if err := Write(filepath.Join(t.TempDir(), "none", "file"), c); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("got %v", err)
	}
}

// text shows changes in one line each.
func text(changes []Change) (lines []string) {
	for _, c := range changes {
		lines = append(lines, fmt.Sprintf("%s%d %s/%s/%s", map[bool]string{true: "-", false: "+"}[c.Removed], c.Kind, c.Tenant, c.Namespace, c.Name))
	}
	return lines
}

func TestDiff(t *testing.T) {
	from := &Catalog{Tenants: map[string]Tenant{
		"a": {Keys: auth.KeySet{key("k1")}, Namespaces: map[string]Namespace{
			"n": {Streams: map[string]Stream{"same": {}, "other": {}, "gone": {}}, Caches: map[string]Cache{"same": {}, "gone": {}}},
			"g": {Caches: map[string]Cache{"c": {}}},
		}},
		"g": {Keys: auth.KeySet{key("k1")}, Namespaces: map[string]Namespace{"n": {Streams: map[string]Stream{"s": {}}}}},
		"k": {Keys: auth.KeySet{key("k1")}},
	}}
	to := &Catalog{Tenants: map[string]Tenant{
		"a": {Keys: auth.KeySet{key("k1")}, Namespaces: map[string]Namespace{
			"n": {Streams: map[string]Stream{"same": {}, "other": {ReplayBytes: -1}, "new": {}}, Caches: map[string]Cache{"same": {}, "new": {}}},
		}},
		"k": {Keys: auth.KeySet{key("k1"), key("k2")}},
		"n": {Keys: auth.KeySet{key("k1")}, Namespaces: map[string]Namespace{"n": {Streams: map[string]Stream{"s": {}}}}},
	}}
	for _, c := range []struct {
		from, to *Catalog
		want     []string
	}{
		{from, from, nil},
		{from, to, []string{"-2 a/g/c", "-1 a/n/gone", "-2 a/n/gone", "-1 g/n/s", "-0 g//", "+1 a/n/new", "+1 a/n/other", "+2 a/n/new", "+0 k//", "+0 n//", "+1 n/n/s"}},
		{nil, to, []string{"+0 a//", "+1 a/n/new", "+1 a/n/other", "+1 a/n/same", "+2 a/n/new", "+2 a/n/same", "+0 k//", "+0 n//", "+1 n/n/s"}},
		{to, nil, []string{"-1 a/n/new", "-1 a/n/other", "-1 a/n/same", "-2 a/n/new", "-2 a/n/same", "-0 a//", "-0 k//", "-1 n/n/s", "-0 n//"}},
	} {
		if got := text(Diff(c.from, c.to)); !reflect.DeepEqual(got, c.want) {
			t.Errorf("got %v\nwant %v", got, c.want)
		}
	}
}

// TestFollow replaces files in each of the ways that happen, and expects the changes and nothing else.
func TestFollow(t *testing.T) {
	dir := t.TempDir()
	file := NewFile(put(t, dir, "catalog.yml", valid, "other.json", jwksFile))
	ctx, cancel := context.WithCancel(t.Context())
	if _, err := file.Snapshot(ctx); err != nil {
		t.Fatal(err)
	}
	put(t, dir, "catalog.yml", strings.Replace(valid, "  audit:", "  events:", 1)) // before anybody follows
	type change struct {
		lines []string
		err   error
	}
	updates := make(chan change)
	done := make(chan struct{})
	go func() {
		defer close(done)
		file.Follow(ctx, func(c []Change, err error) { updates <- change{text(c), err} })
	}()
	defer func() { cancel(); <-done }()
	next := func(want ...string) {
		t.Helper()
		select {
		case u := <-updates:
			if u.err != nil || !reflect.DeepEqual(u.lines, want) {
				t.Errorf("got %v, %v; want %v", u.lines, u.err, want)
			}
		case <-time.After(within):
			t.Fatal("no update")
		}
	}
	next("-1 acme/default/audit", "+1 acme/default/events")

	replace := func(name, text string) { // in one step, so that no half is seen
		t.Helper()
		put(t, dir, "new", text)
		if err := os.Rename(filepath.Join(dir, "new"), filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	replace("catalog.yml", "tenants: {acme: {jwks_file: none}}")
	if u := <-updates; u.err == nil || !strings.Contains(u.err.Error(), "jwks_file") {
		t.Errorf("got %+v", u)
	}
	replace("none", "{}") // the file that it names has come, and is no key set
	if u := <-updates; !errors.Is(u.err, auth.ErrKeySet) {
		t.Errorf("got %+v", u)
	}
	replace("catalog.yml", valid) // no error any more: the difference to the last good one is reported
	next("-1 acme/default/events", "+1 acme/default/audit")
	replace("other.json", strings.Replace(jwksFile, "k2", "k3", 1))
	next("+0 other//")
	if err := os.Remove(file.name); err != nil {
		t.Fatal(err)
	}
	if u := <-updates; !errors.Is(u.err, os.ErrNotExist) {
		t.Errorf("got %+v", u)
	}
	replace("catalog.yml", valid)
	next()
}

// TestReload reads although nothing has changed, reports what it finds, and keeps the former catalog when that is bad.
func TestReload(t *testing.T) {
	name := filepath.Join(t.TempDir(), "catalog.yml")
	write := func(text string) {
		t.Helper()
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("tenants: {}")
	file := NewFile(name)
	if _, err := file.Snapshot(t.Context()); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	updates := make(chan error)
	var work sync.WaitGroup
	work.Go(func() {
		file.Follow(ctx, func(_ []Change, err error) {
			select {
			case updates <- err:
			case <-ctx.Done():
			}
		})
	})
	file.Reload()
	if err := <-updates; err != nil {
		t.Errorf("the same again: %v", err)
	}
	write("tenants: 1")
	if err := <-updates; err == nil {
		t.Error("a bad catalog is none")
	}
	file.Reload()
	if err := <-updates; err == nil {
		t.Error("a bad catalog is not reported again when it is asked for")
	}
	cancel()
	work.Wait()
}

// FuzzParse reads any catalog: what is accepted can be written and read again, and names in it are valid.
func FuzzParse(f *testing.F) {
	f.Add([]byte(valid))
	f.Add([]byte("tenants: {a: {jwks: {keys: [{kty: OKP, crv: Ed25519, x: " + publicKey + ", d: AA}]}}}"))
	f.Add([]byte("tenants: {a: {jwks: {keys: *x}, namespaces: {n: {streams: {s: {overflow: [a]}}}}}}"))
	f.Add([]byte("? {}\n: {}"))
	read := func(text []byte) func(string) ([]byte, error) {
		return func(name string) ([]byte, error) {
			if name == "catalog.yml" {
				return text, nil
			}
			return []byte(jwksFile), nil
		}
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		c, _, err := load("catalog.yml", read(text))
		if err != nil {
			return
		}
		for name, tenant := range c.Tenants {
			if auth.ValidTenant(name) != nil || len(tenant.Keys) == 0 {
				t.Errorf("accepted tenant %q with %d keys", name, len(tenant.Keys))
			}
		}
		written, err := Marshal(c)
		if err != nil {
			t.Fatal(err)
		}
		back, _, err := load("catalog.yml", read(written))
		if err != nil {
			t.Fatalf("%v in\n%s", err, written)
		}
		if d := Diff(c, back); len(d) > 0 {
			t.Errorf("differs after writing: %+v\n%s", d, written)
		}
	})
}
