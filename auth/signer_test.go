package auth

import (
	"bytes"
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
)

// judge checks an accepted token with go-jose, which reads it in its own way.
func judge(t *testing.T, s *Signer, token string, id *Identity) {
	t.Helper()
	signed, err := jose.ParseSignedCompact(token, []jose.SignatureAlgorithm{jose.EdDSA})
	if err != nil {
		if strings.Contains(err.Error(), "x5c") || strings.Contains(err.Error(), "JWK") || strings.Contains(err.Error(), "jwk") {
			return // we do not look into keys and certificates in the header
		}
		t.Fatalf("go-jose does not read what we accepted: %v", err)
	}
	payload, err := signed.Verify(s.Key().Public)
	if err != nil {
		t.Fatalf("go-jose does not verify what we accepted: %v", err)
	}
	var claims struct {
		Issuer      string   `json:"iss"`
		Audience    string   `json:"aud"`
		Subject     string   `json:"sub"`
		Tenant      string   `json:"tid"`
		Permissions []string `json:"perms"`
	}
	// encoding/json also takes members in another case, and the last one wins; so compare only if there are none.
	var members map[string]json.RawMessage
	if err := json.Unmarshal(payload, &members); err != nil {
		t.Fatal(err)
	}
	for name := range members {
		if name != strings.ToLower(name) || strings.Contains(name, "\u017f") {
			return
		}
	}
	if err := json.Unmarshal(payload, &claims); err != nil {
		t.Fatal(err)
	}
	if claims.Issuer != issuer || claims.Audience != audience || claims.Subject != id.Subject || claims.Tenant != id.Tenant {
		t.Errorf("accepted %+v as %+v", claims, id)
	}
}

func TestMintVector(t *testing.T) {
	s := vectorSigner(t)
	claims := Claims{
		Tenant:      "acme",
		Subject:     vectorSubject,
		IssuedAt:    time.Unix(1750000000, 123),
		Expires:     time.Unix(4102444800, 456),
		Permissions: []string{"stream.publish:stream:acme/billing/invoices", "cache.read:cache:acme/billing/*"},
	}
	for range 2 {
		token, err := s.Mint(claims)
		if err != nil {
			t.Fatal(err)
		}
		if token != vectorToken {
			t.Fatalf("got  %s\nwant %s", token, vectorToken)
		}
	}
	if got := s.sign([]byte(vectorHeader), []byte(vectorPayload)); got != vectorToken {
		t.Errorf("signed %s", got)
	}
	if got := s.JWKS(); string(got) != vectorJWKS {
		t.Errorf("got  %s\nwant %s", got, vectorJWKS)
	}
}

func TestMintDefaults(t *testing.T) {
	s := testSigner(t, 'a', "k<&>")
	token, err := s.Mint(Claims{Tenant: "acme", Subject: "p", ID: "j", IssuedAt: time.Unix(testNow, 0)})
	if err != nil {
		t.Fatal(err)
	}
	signed, err := jwt.ParseSigned(token, []jose.SignatureAlgorithm{jose.EdDSA})
	if err != nil {
		t.Fatal(err)
	}
	if got := signed.Headers[0].KeyID; got != "k<&>" {
		t.Errorf("kid is %q", got)
	}
	var payload json.RawMessage
	if err := signed.Claims(s.Key().Public, &payload); err != nil {
		t.Fatal(err)
	}
	want := `{"iss":"felix-auth","aud":"felix-broker","sub":"p","tid":"acme","exp":1760000900,"iat":1760000000,"jti":"j","perms":[]}`
	if string(payload) != want {
		t.Errorf("got  %s\nwant %s", payload, want)
	}
	id, err := NewVerifier(StaticKeys{"acme": {s.Key()}}, frozen).Verify(t.Context(), "acme", token)
	if err != nil {
		t.Fatal(err)
	}
	if publish(id, "a", "b") {
		t.Error("a token without permissions may publish")
	}
}

func TestMintRefuses(t *testing.T) {
	s := testSigner(t, 'a', "k")
	good := Claims{Tenant: "acme", Subject: "p", IssuedAt: time.Unix(testNow, 0), Permissions: []string{"cache.read:*"}}
	for _, c := range []struct {
		name   string
		change func(*Claims)
		want   error
	}{
		{"nothing", func(*Claims) {}, nil},
		{"no issue time", func(c *Claims) { c.IssuedAt = time.Time{} }, ErrSigner},
		{"expiry before 1970", func(c *Claims) { c.Expires = time.Unix(-1, 0) }, ErrSigner},
		{"unknown action", func(c *Claims) { c.Permissions = []string{"stream.fly:*"} }, ErrPermission},
		{"no colon", func(c *Claims) { c.Permissions = []string{"stream.publish"} }, ErrPermission},
		{"too many permissions", func(c *Claims) { c.Permissions = make([]string, MaxPermissions+1) }, ErrSigner},
		{"too long", func(c *Claims) { c.Subject = strings.Repeat("s", 50_000) }, ErrSigner},
		{"not UTF-8", func(c *Claims) { c.Tenant = "\xff" }, ErrSigner},
	} {
		t.Run(c.name, func(t *testing.T) {
			claims := good
			c.change(&claims)
			if _, err := s.Mint(claims); !errors.Is(err, c.want) {
				t.Errorf("got %v, want %v", err, c.want)
			}
		})
	}
}

func TestNewSigner(t *testing.T) {
	private := ed25519.NewKeyFromSeed(make([]byte, 32))
	s, err := NewSigner(private, "k")
	if err != nil {
		t.Fatal(err)
	}
	token, err := s.Mint(Claims{Tenant: "acme", IssuedAt: frozen()})
	if err != nil {
		t.Fatal(err)
	}
	clear(private)
	if again, err := s.Mint(Claims{Tenant: "acme", IssuedAt: frozen()}); err != nil || again != token {
		t.Errorf("the signer depends on the caller's key: %v", err)
	}

	foreign := ed25519.NewKeyFromSeed(make([]byte, 32)) // J-04
	foreign[63] ^= 1
	for _, c := range []struct {
		name    string
		private ed25519.PrivateKey
		kid     string
	}{
		{"foreign public half", foreign, "k"},
		{"seed alone", foreign[:32], "k"},
		{"nil", nil, "k"},
		{"no kid", s.private, ""},
		{"kid not UTF-8", s.private, "\xff"},
	} {
		if _, err := NewSigner(c.private, c.kid); !errors.Is(err, ErrSigner) {
			t.Errorf("%s: got %v, want %v", c.name, err, ErrSigner)
		}
	}
}

func TestJWKSForOthers(t *testing.T) { // J-01
	s := testSigner(t, 'a', "k")
	var set jose.JSONWebKeySet
	if err := json.Unmarshal(s.JWKS(), &set); err != nil {
		t.Fatal(err)
	}
	if len(set.Keys) != 1 {
		t.Fatalf("got %d keys, want 1", len(set.Keys))
	}
	key := set.Keys[0]
	public, ok := key.Key.(ed25519.PublicKey)
	if !ok || !public.Equal(s.Key().Public) || key.KeyID != "k" || key.Algorithm != "EdDSA" || key.Use != "sig" || !key.IsPublic() {
		t.Errorf("go-jose reads %+v", key)
	}
	for _, private := range []string{`"d"`, `"n"`, `"e"`} {
		if bytes.Contains(s.JWKS(), []byte(private)) {
			t.Errorf("%s in %s", private, s.JWKS())
		}
	}
}

// TestVerifyForeignToken verifies a token that go-jose wrote: its header has other members in another order.
func TestVerifyForeignToken(t *testing.T) {
	s := testSigner(t, 'a', "k")
	signer, err := jose.NewSigner(
		jose.SigningKey{Algorithm: jose.EdDSA, Key: jose.JSONWebKey{Key: s.private, KeyID: "k"}},
		(&jose.SignerOptions{}).WithType("at+jwt").WithContentType("x"),
	)
	if err != nil {
		t.Fatal(err)
	}
	token, err := jwt.Signed(signer).Claims(map[string]any{
		"iss": issuer, "aud": audience, "sub": "p", "tid": "acme", "exp": testNow + 1, "iat": testNow,
		"perms": []string{"stream.publish:stream:acme/a/b"},
	}).Serialize()
	if err != nil {
		t.Fatal(err)
	}
	id, err := NewVerifier(StaticKeys{"acme": {s.Key()}}, frozen).Verify(t.Context(), "acme", token)
	if err != nil {
		t.Fatal(err)
	}
	if id.Subject != "p" || !publish(id, "a", "b") || publish(id, "a", "c") {
		t.Errorf("identity is %+v", id)
	}
}
