package auth

import (
	"bytes"
	"errors"
	"strings"
	"testing"

	"github.com/felix-mq/felix/internal/race"
)

// slowGlob says what glob means: a star stands for nothing, or for one byte and a star.
func slowGlob(pattern, value string) bool {
	switch {
	case pattern == "":
		return value == ""
	case pattern[0] == '*':
		return slowGlob(pattern[1:], value) || value != "" && slowGlob(pattern, value[1:])
	default:
		return value != "" && value[0] == pattern[0] && slowGlob(pattern[1:], value[1:])
	}
}

var globCases = []struct {
	pattern, value string
	want           bool
}{
	// docs/protocol/tokens.md#permissions
	{"stream:t1/default/orders", "stream:t1/default/orders", true},
	{"stream:t1/default/orders", "stream:t1/default/", false},
	{"stream:t1/default/orders", "stream:t1/a/b/c", false},
	{"stream:t1/default/orders", "stream:t10/default/x", false},
	{"stream:t1/default/*", "stream:t1/default/orders", true},
	{"stream:t1/default/*", "stream:t1/default/", true},
	{"stream:t1/default/*", "stream:t1/a/b/c", false},
	{"stream:t1/default/*", "stream:t10/default/x", false},
	{"stream:t1/*", "stream:t1/default/orders", true},
	{"stream:t1/*", "stream:t1/default/", true},
	{"stream:t1/*", "stream:t1/a/b/c", true},
	{"stream:t1/*", "stream:t10/default/x", false},
	{"stream:t1*", "stream:t1/default/orders", true},
	{"stream:t1*", "stream:t1/default/", true},
	{"stream:t1*", "stream:t1/a/b/c", true},
	{"stream:t1*", "stream:t10/default/x", true},
	{"stream:*/orders", "stream:t1/default/orders", true},
	{"stream:*/orders", "stream:t1/default/", false},
	{"stream:*/orders", "stream:t1/a/b/c", false},
	{"stream:*/orders", "stream:t10/default/x", false},
	{"*", "stream:t1/default/orders", true},
	{"*", "stream:t1/default/", true},
	{"*", "stream:t1/a/b/c", true},
	{"*", "stream:t10/default/x", true},
	// docs/protocol/tokens.md#permissions
	{"stream:acme/billing/*", "stream:acme/billing/invoices", true},
	{"stream:acme/billing/*", "stream:acme/billing/", true},
	{"stream:acme/billing/*", "stream:acme/billing/a/b", true},
	{"stream:acme/billing/*", "stream:acme/billing2/x", false},
	{"stream:acme/*/*", "stream:acme/billing/invoices", true},
	{"stream:acme/*", "stream:acme/billing/invoices", true},
	{"stream:acme/billing/inv*", "stream:acme/billing/invoices", true},
	{"stream:acme/billing/inv?ices", "stream:acme/billing/invoices", false},
	{"*", "", true},
	{"stream:acme/billing/invoices", "stream:acme/billing/Invoices", false},
	// corners
	{"", "", true},
	{"", "a", false},
	{"a", "", false},
	{"**", "", true},
	{"a*a", "a", false},
	{"a*a", "aa", true},
	{"*ab*ab", "ab", false},
	{"*ab*ab", "abab", true},
	{"*ab*ab*", "aab", false},
	{"a*b*c", "abcbc", true},
	{"a*b*c", "acb", false},
	{"*\x00*", "a\x00", true},
	{"\xff*", "\xffz", true},
}

// allow adds a permission whose action is known.
func (id *Identity) allow(p Permission) {
	if id.grants == nil {
		id.grants = new(grants)
	}
	id.grants.add(actionIndex(p.Action), []byte(p.Pattern))
}

func TestGlob(t *testing.T) {
	for _, c := range globCases {
		if got := glob([]byte(c.pattern), []byte(c.value)); got != c.want {
			t.Errorf("glob(%q, %q) = %v, want %v", c.pattern, c.value, got, c.want)
		}
		if got := slowGlob(c.pattern, c.value); got != c.want {
			t.Errorf("slowGlob(%q, %q) = %v, want %v", c.pattern, c.value, got, c.want)
		}
	}
}

// TestGlobIsLinear runs a match that would not end if stars were tried in every place.
func TestGlobIsLinear(t *testing.T) {
	pattern := []byte(strings.Repeat("*a", 20_000) + "*b")
	if glob(pattern, bytes.Repeat([]byte("a"), 40_000)) {
		t.Error("matched")
	}
}

func FuzzGlob(f *testing.F) {
	for _, c := range globCases {
		f.Add(c.pattern, c.value)
	}
	f.Fuzz(func(t *testing.T, pattern, value string) {
		if len(value) > 40 || strings.Count(pattern, "*") > 4 {
			return // the judge takes exponential time
		}
		if got, want := glob([]byte(pattern), []byte(value)), slowGlob(pattern, value); got != want {
			t.Errorf("glob(%q, %q) = %v, want %v", pattern, value, got, want)
		}
	})
}

func identity(t testing.TB, tenant string, permissions ...string) *Identity {
	t.Helper()
	id := &Identity{Tenant: tenant}
	for _, s := range permissions {
		p, err := ParsePermission(s)
		if err != nil {
			t.Fatal(err)
		}
		id.allow(p)
	}
	return id
}

func TestAllowed(t *testing.T) {
	long := strings.Repeat("n", 70_000)
	for _, c := range []struct {
		name        string
		permissions []string
		action      Action
		kind        Kind
		resource    string // tenant, namespace and name, separated by blanks
		want        bool
	}{
		{"literal", []string{"stream.publish:stream:acme/a/b"}, ActionStreamPublish, KindStream, "acme a b", true},
		{"another name", []string{"stream.publish:stream:acme/a/b"}, ActionStreamPublish, KindStream, "acme a c", false},
		{"another action", []string{"stream.publish:stream:acme/a/b"}, ActionStreamSubscribe, KindStream, "acme a b", false},
		{"another kind", []string{"stream.publish:stream:acme/a/b"}, ActionStreamPublish, KindCache, "acme a b", false},
		{"no action implies another", []string{"stream.manage:*", "ns.manage:*", "tenant.manage:*"}, ActionStreamPublish, KindStream, "acme a b", false},
		{"any entry will do", []string{"cache.read:*", "stream.publish:x", "stream.publish:*/c", "stream.publish:*/b"}, ActionStreamPublish, KindStream, "acme a b", true},
		{"T-24 another tenant", []string{"stream.publish:stream:globex/billing/*", "stream.publish:*"}, ActionStreamPublish, KindStream, "globex billing x", false},
		{"T-25 widest", []string{"stream.publish:*"}, ActionStreamPublish, KindStream, "acme a b", true},
		{"T-26 a name with a slash", []string{"stream.publish:stream:acme/a/*"}, ActionStreamPublish, KindStream, "acme a/b c", true},
		{"empty names", []string{"stream.publish:stream:acme//"}, ActionStreamPublish, KindStream, "acme  ", true},
		{"question mark is literal", []string{"cache.write:cache:acme/a/?"}, ActionCacheWrite, KindCache, "acme a b", false},
		{"long name", []string{"cache.read:cache:acme/*/" + long}, ActionCacheRead, KindCache, "acme a " + long, true},
		{"long literal", []string{"cache.read:cache:acme/a/" + long}, ActionCacheRead, KindCache, "acme a " + long, true},
		{"long name, too long", []string{"cache.read:cache:acme/*/" + long}, ActionCacheRead, KindCache, "acme a " + long + "n", false},
		{"nothing", nil, ActionCacheRead, KindCache, "acme a b", false},
	} {
		t.Run(c.name, func(t *testing.T) {
			part := strings.Split(c.resource, " ")
			got := identity(t, "acme", c.permissions...).Allowed(c.action, c.kind, []byte(part[0]), []byte(part[1]), []byte(part[2]))
			if got != c.want {
				t.Errorf("got %v, want %v", got, c.want)
			}
		})
	}
	if new(Identity).Allowed(ActionStreamPublish, KindStream, nil, nil, nil) {
		t.Error("the zero identity may publish")
	}
}

func TestParsePermission(t *testing.T) {
	for _, s := range []string{"stream.publish:stream:acme/a/b", "rbac.policy.manage:", "cache.read::*:"} {
		p, err := ParsePermission(s)
		if err != nil || p.String() != s {
			t.Errorf("%q became %+v, %v", s, p, err)
		}
	}
	for _, s := range []string{"", ":", "stream.publish", "stream.fly:x", " stream.publish:x", "STREAM.PUBLISH:x", ":x"} {
		if p, err := ParsePermission(s); !errors.Is(err, ErrPermission) {
			t.Errorf("%q: got %+v, %v, want %v", s, p, err, ErrPermission)
		}
	}
	for _, a := range []Action{
		"rbac.view", "rbac.policy.manage", "rbac.assignment.manage", "tenant.manage", "ns.manage", "stream.manage",
		"cache.manage", "stream.publish", "stream.subscribe", "cache.read", "cache.write",
	} {
		if !a.Known() {
			t.Errorf("%s is not known", a)
		}
	}
}

func TestAllocAllowed(t *testing.T) {
	if race.Enabled {
		t.Skip("allocation counts mean nothing under the race detector")
	}
	name := bytes.Repeat([]byte("n"), MaxNameLen)
	tenant := string(name)
	id := identity(t, tenant, "cache.read:cache:"+tenant+"/a/x", "cache.read:*z", "cache.read:cache:*/"+tenant+"/*")
	var denied bool
	for _, c := range []struct {
		label  string
		action Action
		name   []byte
	}{
		{"literal", ActionCacheRead, []byte("x")},
		{"glob", ActionCacheRead, name},
		{"no grant", ActionStreamPublish, name},
	} {
		allocs := testing.AllocsPerRun(100, func() {
			denied = id.Allowed(c.action, KindCache, name, name, c.name) || denied
		})
		if allocs != 0 {
			t.Errorf("%s: %v allocations, want 0", c.label, allocs)
		}
	}
}

func BenchmarkAllowed(b *testing.B) {
	tenant, namespace, name := []byte("acme"), []byte("billing"), []byte("invoices")
	for _, c := range []struct{ name, permission string }{
		{"literal", "stream.publish:stream:acme/billing/invoices"},
		{"prefix", "stream.publish:stream:acme/billing/*"},
		{"inner", "stream.publish:stream:acme/*/inv*"},
	} {
		b.Run(c.name, func(b *testing.B) {
			id := identity(b, "acme", c.permission)
			b.ReportAllocs()
			for b.Loop() {
				if !id.Allowed(ActionStreamPublish, KindStream, tenant, namespace, name) {
					b.Fatal("refused")
				}
			}
		})
	}
}
