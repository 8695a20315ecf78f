package auth

import (
	"errors"
	"fmt"
	"strings"
	"testing"
)

func TestParseJWKS(t *testing.T) {
	const (
		x    = "A6EHv_POEL4dcN0Y50vAmWfk1jCbpQ1fHdyGZBJVMbg"
		good = `{"kty":"OKP","kid":"vec-key-1","alg":"EdDSA","use":"sig","crv":"Ed25519","x":"` + x + `"}`
	)
	entry := func(old, replacement string) string { return strings.Replace(good, old, replacement, 1) }
	for _, c := range []struct {
		name string
		doc  string // if it is not a document, the entry next to a good one
		want string // kids of the usable entries; "error" for none
	}{
		{"vector", vectorJWKS, "vec-key-1"},
		{"J-02 two keys keep their order", `{"keys":[` + entry("vec-key-1", "k2") + `,` + good + `]}`, "k2 vec-key-1"},
		{"unknown members", `{"x":1,"keys":[` + entry(`"kty"`, `"y":{"z":[]},"kty"`) + `]}`, "vec-key-1"},
		{"no alg", `{"keys":[` + entry(`"alg":"EdDSA",`, ``) + `]}`, "vec-key-1"},
		{"no use", `{"keys":[` + entry(`"use":"sig",`, ``) + `]}`, "vec-key-1"},
		{"no kid", `{"keys":[` + entry(`"kid":"vec-key-1",`, ``) + `]}`, ""},

		{"T-29 x of 31 bytes", entry(x, x[:41]+"w"), "vec-key-1"},
		{"x of 33 bytes", entry(x, x+"A"), "vec-key-1"},
		{"x padded", entry(x, x+"="), "vec-key-1"},
		{"x with bits after the last byte", entry(x, x[:42]+"h"), "vec-key-1"},
		{"x with a line end", entry(x, x+`\n`), "vec-key-1"},
		{"x missing", entry(`"x"`, `"y"`), "vec-key-1"},
		{"x a number", entry(`"`+x+`"`, `7`), "vec-key-1"},
		{"kty", entry("OKP", "EC"), "vec-key-1"},
		{"kty in another case", entry(`"kty"`, `"Kty"`), "vec-key-1"},
		{"kty missing", entry(`"kty":"OKP",`, ``), "vec-key-1"},
		{"crv", entry(`"Ed25519"`, `"Ed448"`), "vec-key-1"},
		{"crv missing", entry(`"crv":"Ed25519",`, ``), "vec-key-1"},
		{"alg", entry(`"EdDSA"`, `"ES256"`), "vec-key-1"},
		{"use", entry(`"sig"`, `"enc"`), "vec-key-1"},
		{"kid a number", entry(`"vec-key-1"`, `1`), "vec-key-1"},
		{"member twice", entry(`"kty"`, `"kty":"OKP","kty"`), "vec-key-1"},
		{"private half", entry(`"x"`, `"d":"AAAA","x"`), "vec-key-1"},
		{"null", `null`, "vec-key-1"},
		{"not an object", `[]`, "vec-key-1"},

		{"T-30 error body", `{"keys":null,"code":"not_found","message":"tenant not found"}`, "error"},
		{"no member keys", `{ "Keys":[` + good + `], "keys":{}}`, "error"},
		{"none usable", `{"keys":[{}]}`, "error"},
		{"keys twice", `{"keys":[],"keys":[` + good + `]}`, "error"},
	} {
		t.Run(c.name, func(t *testing.T) {
			doc := c.doc
			if !strings.Contains(doc, `"keys"`) {
				doc = `{"keys":[` + doc + `,` + good + `]}`
			}
			keys, err := ParseJWKS([]byte(doc))
			if c.want == "error" {
				if !errors.Is(err, ErrKeySet) {
					t.Errorf("got %v, %v, want %v", keys, err, ErrKeySet)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			var kids []string
			for _, k := range keys {
				kids = append(kids, k.ID)
			}
			if got := strings.Join(kids, " "); got != c.want || len(keys) == 0 {
				t.Errorf("got %q, want %q", got, c.want)
			}
		})
	}
	for _, doc := range []string{"", "null", "[]", `{"message":"tenant not found"}`, "{", vectorJWKS + "x", "{\"keys\":\"\xff\"}"} {
		if keys, err := ParseJWKS([]byte(doc)); !errors.Is(err, ErrKeySet) {
			t.Errorf("%q: got %v, %v, want %v", doc, keys, err, ErrKeySet)
		}
	}
}

// TestIdentityNamesItsKey follows a key through a rotation: it is recognized by what it is, not by its id.
func TestIdentityNamesItsKey(t *testing.T) {
	old, current := testSigner(t, 1, "k"), testSigner(t, 2, "k")
	token := mint(t, old)
	id, err := NewVerifier(StaticKeys{"acme": {current.Key(), old.Key()}}, frozen).Verify(t.Context(), "acme", token)
	if err != nil {
		t.Fatal(err)
	}
	if id.Key != old.Key().Fingerprint() || id.Key == current.Key().Fingerprint() {
		t.Errorf("the key of the identity is %x", id.Key)
	}
	for _, c := range []struct {
		name string
		keys KeySet
		want bool
	}{
		{"rotated", KeySet{current.Key(), old.Key()}, true},
		{"other id", KeySet{{ID: "new name", Public: old.Key().Public}}, true},
		{"removed", KeySet{current.Key()}, false},
		{"tenant gone", nil, false},
	} {
		if got := c.keys.Has(id.Key); got != c.want {
			t.Errorf("%s: Has is %v, want %v", c.name, got, c.want)
		}
	}
	unusable := KeySet{{ID: "k"}, {ID: "k", Public: make([]byte, 31)}}
	if unusable.Has(Fingerprint{}) || (KeySet{{Public: make([]byte, 32)}}).Has(Fingerprint{}) {
		t.Error("a set has the zero fingerprint")
	}
}

// mint returns a token of s for tenant acme, valid at testNow.
func mint(tb testing.TB, s *Signer, permissions ...string) string {
	tb.Helper()
	token, err := s.Mint(Claims{
		Tenant: "acme", Subject: "s", IssuedAt: frozen(), Expires: frozen().Add(TokenLifetime), Permissions: permissions,
	})
	if err != nil {
		tb.Fatal(err)
	}
	return token
}

func FuzzParseJWKS(f *testing.F) {
	f.Add([]byte(vectorJWKS))
	f.Add([]byte(`{"keys":[{},null,{"kty":"OKP"}]}`))
	f.Fuzz(func(t *testing.T, doc []byte) {
		keys, err := ParseJWKS(doc)
		if (err == nil) != (len(keys) > 0) || err != nil && !errors.Is(err, ErrKeySet) {
			t.Fatalf("got %d keys and error %v", len(keys), err)
		}
		for _, key := range keys {
			if len(key.Public) != 32 {
				t.Fatalf("key of %d bytes", len(key.Public))
			}
			again, err := ParseJWKS((&Signer{key: key}).JWKS())
			if err != nil || len(again) != 1 || fmt.Sprint(again[0]) != fmt.Sprint(key) {
				t.Fatalf("%+v became %+v, %v", key, again, err)
			}
		}
	})
}
