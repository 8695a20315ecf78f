package auth

import (
	"context"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"math"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
)

// The known-answer vector of docs/protocol/tokens.md#example.
const (
	vectorKID     = "vec-key-1"
	vectorSubject = "f9c343189d2db768e3f89f2f4657e6966d5e58d9c115b028a090f36c9360789c"
	vectorJWKS    = `{"keys":[{"kty":"OKP","kid":"vec-key-1","alg":"EdDSA","use":"sig","crv":"Ed25519","x":"A6EHv_POEL4dcN0Y50vAmWfk1jCbpQ1fHdyGZBJVMbg"}]}`
	vectorHeader  = `{"typ":"JWT","alg":"EdDSA","kid":"vec-key-1"}`
	vectorPayload = `{"iss":"felix-auth","aud":"felix-broker","sub":"f9c343189d2db768e3f89f2f4657e6966d5e58d9c115b028a090f36c9360789c","tid":"acme","exp":4102444800,"iat":1750000000,"perms":["stream.publish:stream:acme/billing/invoices","cache.read:cache:acme/billing/*"]}`
	vectorToken   = "eyJ0eXAiOiJKV1QiLCJhbGciOiJFZERTQSIsImtpZCI6InZlYy1rZXktMSJ9." +
		"eyJpc3MiOiJmZWxpeC1hdXRoIiwiYXVkIjoiZmVsaXgtYnJva2VyIiwic3ViIjoiZjljMzQzMTg5ZDJkYjc2OGUzZjg5ZjJmNDY1N2U2OTY2ZDVlNThkOWMxMTViMDI4YTA5MGYzNmM5MzYwNzg5YyIsInRpZCI6ImFjbWUiLCJleHAiOjQxMDI0NDQ4MDAsImlhdCI6MTc1MDAwMDAwMCwicGVybXMiOlsic3RyZWFtLnB1Ymxpc2g6c3RyZWFtOmFjbWUvYmlsbGluZy9pbnZvaWNlcyIsImNhY2hlLnJlYWQ6Y2FjaGU6YWNtZS9iaWxsaW5nLyoiXX0." +
		"5b6eO2NF7o1BCEde0ipOMYZ05JBBvFd18ZiUWBr5fx-72S-qtOsmgqEPnt5H0c00lbWO0QplGJeXskJ0l8vyDA"
)

// testNow is the frozen clock of the tests, in seconds.
const testNow = 1_760_000_000

func frozen() time.Time { return time.Unix(testNow, 999_999_999) }

// testSigner returns a signer whose seed is made of one byte.
func testSigner(tb testing.TB, seed byte, kid string) *Signer {
	tb.Helper()
	s, err := NewSigner(ed25519.NewKeyFromSeed([]byte(strings.Repeat(string(rune(seed)), 32))), kid)
	if err != nil {
		tb.Fatal(err)
	}
	return s
}

func vectorSigner(tb testing.TB) *Signer {
	tb.Helper()
	seed := make([]byte, 32)
	for i := range seed {
		seed[i] = byte(i)
	}
	s, err := NewSigner(ed25519.NewKeyFromSeed(seed), vectorKID)
	if err != nil {
		tb.Fatal(err)
	}
	return s
}

func b64(s string) string { return base64.RawURLEncoding.EncodeToString([]byte(s)) }

func publish(id *Identity, namespace, name string) bool {
	return id.Allowed(ActionStreamPublish, KindStream, []byte(id.Tenant), []byte(namespace), []byte(name))
}

func TestVerifyVector(t *testing.T) { // T-01
	keys, err := ParseJWKS([]byte(vectorJWKS))
	if err != nil {
		t.Fatal(err)
	}
	v := NewVerifier(StaticKeys{"acme": keys}, frozen)
	id, err := v.Verify(t.Context(), "acme", vectorToken)
	if err != nil {
		t.Fatal(err)
	}
	if id.Tenant != "acme" || id.Subject != vectorSubject || !id.Expires.Equal(time.Unix(4102444800, 0)) {
		t.Errorf("identity is %+v", id)
	}
	for _, c := range []struct {
		action Action
		kind   Kind
		name   string
		want   bool
	}{
		{ActionStreamPublish, KindStream, "invoices", true},
		{ActionStreamPublish, KindStream, "other", false},
		{ActionCacheRead, KindCache, "sessions", true},
		{ActionCacheWrite, KindCache, "sessions", false},
		{ActionStreamSubscribe, KindStream, "invoices", false},
	} {
		got := id.Allowed(c.action, c.kind, []byte("acme"), []byte("billing"), []byte(c.name))
		if got != c.want {
			t.Errorf("%s on %s billing/%s: got %v, want %v", c.action, c.kind, c.name, got, c.want)
		}
	}
}

// TestVerifyClaims changes one thing at a time in tokens that are signed with the right key.
func TestVerifyClaims(t *testing.T) {
	s := vectorSigner(t)
	v := NewVerifier(StaticKeys{"acme": {s.Key()}, "globex": {s.Key()}}, frozen)
	const header = `{"typ":"JWT","alg":"EdDSA","kid":"vec-key-1"}`
	// payload returns a good payload with the named members replaced; an empty value removes one.
	payload := func(pairs ...string) string {
		names := []string{"iss", "aud", "sub", "tid", "exp", "iat", "perms"}
		values := map[string]string{
			"iss": `"felix-auth"`, "aud": `"felix-broker"`, "sub": `"p"`, "tid": `"acme"`,
			"exp": fmt.Sprint(testNow + 900), "iat": fmt.Sprint(testNow), "perms": `["stream.publish:stream:acme/a/*"]`,
		}
		for i := 0; i < len(pairs); i += 2 {
			if _, ok := values[pairs[i]]; !ok {
				names = append(names, pairs[i])
			}
			values[pairs[i]] = pairs[i+1]
		}
		var members []string
		for _, n := range names {
			if values[n] != "" {
				members = append(members, fmt.Sprintf("%q:%s", n, values[n]))
			}
		}
		return "{" + strings.Join(members, ",") + "}"
	}
	good := payload()

	const ok Reason = ""
	for _, c := range []struct {
		name    string
		header  string
		payload string
		want    Reason
	}{
		{"plain", header, good, ok},
		{"T-02 other tenant", header, payload("tid", `"globex"`), ReasonTenant},
		{"T-05 alg Ed25519", `{"alg":"Ed25519"}`, good, ReasonAlgorithm},
		{"alg in another case", `{"alg":"EDDSA"}`, good, ReasonAlgorithm},
		{"alg missing", `{"typ":"JWT"}`, good, ReasonAlgorithm},
		{"alg null", `{"alg":null}`, good, ReasonAlgorithm},
		{"alg in an array", `{"alg":["EdDSA"]}`, good, ReasonAlgorithm},
		{"Alg is another member", `{"Alg":"EdDSA"}`, good, ReasonAlgorithm},
		{"alg twice", `{"alg":"EdDSA","alg":"EdDSA"}`, good, ReasonHeader},
		{"alg twice, once escaped", `{"alg":"EdDSA","\u0061lg":"none"}`, good, ReasonHeader},
		{"T-09 iss", header, payload("iss", `"felix-auth2"`), ReasonIssuer},
		{"iss missing", header, payload("iss", ""), ReasonIssuer},
		{"T-10 aud", header, payload("aud", `"felix-cp"`), ReasonAudience},
		{"T-11 aud array", header, payload("aud", `["felix-broker"]`), ReasonAudience},
		{"aud missing", header, payload("aud", ""), ReasonAudience},
		{"T-12 exp 59 s ago", header, payload("exp", fmt.Sprint(testNow-59)), ok},
		{"T-12 exp 60 s ago", header, payload("exp", fmt.Sprint(testNow-60)), ok},
		{"T-12 exp 61 s ago", header, payload("exp", fmt.Sprint(testNow-61)), ReasonExpired},
		{"T-13 exp missing", header, payload("exp", ""), ReasonExpiry},
		{"T-13 exp string", header, payload("exp", `"4102444800"`), ReasonExpiry},
		{"T-13 exp fractional", header, payload("exp", `4102444800.5`), ReasonExpiry},
		{"exp whole but written as a float", header, payload("exp", `4102444800.0`), ReasonExpiry},
		{"exp with an exponent", header, payload("exp", `4.1e9`), ReasonExpiry},
		{"exp null", header, payload("exp", `null`), ReasonExpiry},
		{"exp negative", header, payload("exp", `-1`), ReasonExpiry},
		{"exp negative zero", header, payload("exp", `-0`), ReasonExpiry},
		{"exp zero", header, payload("exp", `0`), ReasonExpired},
		{"exp 2^63-1", header, payload("exp", `9223372036854775807`), ok},
		{"exp 2^63", header, payload("exp", `9223372036854775808`), ReasonExpiry},
		{"T-14 perms missing", header, payload("perms", ""), ReasonPermissions},
		{"T-14 perms null", header, payload("perms", "null"), ReasonPermissions},
		{"perms string", header, payload("perms", `"stream.publish:*"`), ReasonPermissions},
		{"perms object", header, payload("perms", `{}`), ReasonPermissions},
		{"perms with a number", header, payload("perms", `["stream.publish:*",7]`), ReasonPermissions},
		{"perms with null", header, payload("perms", `[null]`), ReasonPermission},
		{"T-15 perms empty", header, payload("perms", "[]"), ok},
		// As docs/protocol/tokens.md#permissions has it: an unknown action refuses the whole
		// token, and any pattern is valid.
		{"T-16 unknown action", header, payload("perms", `["stream.fly:stream:acme/x/y","stream.publish:stream:acme/a/*"]`), ReasonPermission},
		{"permission without a colon", header, payload("perms", `["stream.publish"]`), ReasonPermission},
		{"action in another case", header, payload("perms", `["Stream.publish:*"]`), ReasonPermission},
		{"T-25 widest pattern", header, payload("perms", `["stream.publish:*"]`), ok},
		{"empty pattern", header, payload("perms", `["stream.publish:"]`), ok},
		{"10000 permissions", header, payload("perms", "["+strings.Repeat(`"",`, MaxPermissions-1)+`""]`), ReasonPermission},
		{"10001 permissions", header, payload("perms", "["+strings.Repeat(`"",`, MaxPermissions)+`""]`), ReasonPermissions},
		{"T-17 no kid", `{"alg":"EdDSA"}`, good, ok},
		{"T-18 unknown kid", `{"alg":"EdDSA","kid":"nobody"}`, good, ok},
		{"kid and typ null", `{"alg":"EdDSA","kid":null,"typ":null}`, good, ok},
		{"kid a number", `{"alg":"EdDSA","kid":7}`, good, ReasonHeader},
		{"T-22 tid twice", header, payload("tid", `"acme","tid":"globex"`), ReasonPayload},
		{"tid twice, equal", header, payload("tid", `"acme","tid":"acme"`), ReasonPayload},
		{"unknown claim twice", header, payload("x", `1,"x":1`), ReasonPayload},
		{"T-23 tid missing", header, payload("tid", ""), ReasonTenant},
		{"Tid is another member", header, payload("tid", "", "Tid", `"acme"`), ReasonTenant},
		{"tid null", header, payload("tid", "null"), ReasonTenant},
		{"sub missing", header, payload("sub", ""), ReasonSubject},
		{"sub a number", header, payload("sub", "7"), ReasonSubject},
		{"sub empty", header, payload("sub", `""`), ok},
		{"iat missing", header, payload("iat", ""), ReasonIssuedAt},
		{"iat string", header, payload("iat", `"1"`), ReasonIssuedAt},
		{"iat fractional", header, payload("iat", `1.5`), ReasonIssuedAt},
		{"iat zero", header, payload("iat", `0`), ok},
		{"iat negative", header, payload("iat", `-9223372036854775808`), ok},
		{"iat within the leeway", header, payload("iat", fmt.Sprint(testNow+60)), ok},
		{"iat in the future", header, payload("iat", fmt.Sprint(testNow+61)), ReasonIssuedAt},
		{"nbf within the leeway", header, payload("nbf", fmt.Sprint(testNow+60)), ok},
		{"nbf in the future", header, payload("nbf", fmt.Sprint(testNow+61)), ReasonNotBefore},
		{"nbf in the future, fractional", header, payload("nbf", fmt.Sprint(testNow+60)+".5"), ReasonNotBefore},
		{"nbf beyond a float", header, payload("nbf", `1e999`), ReasonNotBefore},
		{"nbf not a number", header, payload("nbf", `"tomorrow"`), ok},
		{"nbf null", header, payload("nbf", `null`), ok},
		{"jti", header, payload("jti", `"j"`), ok},
		{"jti null", header, payload("jti", `null`), ok},
		{"jti a number", header, payload("jti", `1`), ReasonTokenID},
		{"unknown claims", header, payload("a", `{"b":[1e400]}`, "c", `null`), ok},
		{"whitespace", " {\n\t\"alg\" : \"EdDSA\" } ", " \n" + strings.ReplaceAll(good, `,"`, "\t,\r \""), ok},
		{"unknown header member", `{"alg":"EdDSA","x":"y"}`, good, ok},
		{"unknown header member, not a string", `{"alg":"EdDSA","x":1}`, good, ReasonHeader},
		{"unknown header member null", `{"alg":"EdDSA","x":null}`, good, ReasonHeader},
		{"unknown header member twice", `{"alg":"EdDSA","x":"y","x":"y"}`, good, ReasonHeader},
		{"b64 false", `{"alg":"EdDSA","b64":false}`, good, ReasonHeader},
		{"crit", `{"alg":"EdDSA","crit":["exp"]}`, good, ReasonCritical},
		{"crit empty", `{"alg":"EdDSA","crit":[]}`, good, ReasonCritical},
		{"crit null", `{"alg":"EdDSA","crit":null}`, good, ReasonCritical},
		{"jku", `{"alg":"EdDSA","jku":"http://127.0.0.1/"}`, good, ok},
		{"x5c", `{"alg":"EdDSA","x5c":["a","b"]}`, good, ok},
		{"x5c a string", `{"alg":"EdDSA","x5c":"a"}`, good, ReasonHeader},
		{"jwk", `{"alg":"EdDSA","jwk":{"kty":"OKP"}}`, good, ok},
		{"jwk a string", `{"alg":"EdDSA","jwk":"a"}`, good, ReasonHeader},
		{"jwk nested deeply", `{"alg":"EdDSA","jwk":` + strings.Repeat("[", 40_000) + strings.Repeat("]", 3), good, ReasonHeader},
		{"header not an object", `["EdDSA"]`, good, ReasonHeader},
		{"header null", `null`, good, ReasonHeader},
		{"header empty", ``, good, ReasonHeader},
		{"header with a tail", header + "x", good, ReasonHeader},
		{"header not UTF-8", "{\"alg\":\"EdDSA\",\"x\":\"\xff\"}", good, ReasonHeader},
		{"payload null", header, `null`, ReasonPayload},
		{"payload array", header, `[]`, ReasonPayload},
		{"payload empty", header, ``, ReasonPayload},
		{"payload with a tail", header, good + "{}", ReasonPayload},
		{"payload not UTF-8", header, payload("sub", "\"\xff\""), ReasonPayload},
		{"payload nested deeply", header, payload("x", strings.Repeat("[", 20_000)+strings.Repeat("]", 20_000)), ReasonPayload},
	} {
		t.Run(c.name, func(t *testing.T) {
			id, err := v.Verify(t.Context(), "acme", s.sign([]byte(c.header), []byte(c.payload)))
			checkReason(t, err, c.want)
			if (id != nil) != (c.want == ok) {
				t.Errorf("identity is %+v", id)
			}
		})
	}
}

// checkReason fails unless err carries the reason, and the sentinel that belongs to it. An empty reason wants no error.
func checkReason(t *testing.T, err error, want Reason) {
	t.Helper()
	if want == "" {
		if err != nil {
			t.Errorf("got %v, want no error", err)
		}
		return
	}
	if err == nil {
		t.Errorf("got no error, want %s", want)
		return
	}
	if got := ReasonOf(err); got != want {
		t.Errorf("got reason %s, want %s (%v)", got, want, err)
	}
	sentinel := map[Reason]error{
		ReasonSize: ErrTokenMalformed, ReasonEncoding: ErrTokenMalformed, ReasonHeader: ErrTokenMalformed,
		ReasonAlgorithm: ErrTokenMalformed, ReasonCritical: ErrTokenMalformed, ReasonPayload: ErrTokenMalformed,
		ReasonUnknownTenant: ErrUnknownTenant, ReasonSignature: ErrTokenSignature, ReasonIssuer: ErrTokenClaims,
		ReasonAudience: ErrTokenClaims, ReasonTenant: ErrTokenClaims, ReasonSubject: ErrTokenClaims,
		ReasonExpiry: ErrTokenClaims, ReasonIssuedAt: ErrTokenClaims, ReasonNotBefore: ErrTokenClaims,
		ReasonTokenID: ErrTokenClaims, ReasonPermissions: ErrTokenClaims, ReasonPermission: ErrPermission,
		ReasonExpired: ErrTokenExpired,
	}[want]
	if sentinel != nil && !errors.Is(err, sentinel) {
		t.Errorf("%v does not match %v", err, sentinel)
	}
}

// TestVerifyEnvelope damages or replaces the three parts of a token.
func TestVerifyEnvelope(t *testing.T) {
	s := vectorSigner(t)
	public := s.Key().Public
	v := NewVerifier(StaticKeys{"acme": {s.Key()}}, frozen)
	header, rest, _ := strings.Cut(vectorToken, ".")
	payload, signature, _ := strings.Cut(rest, ".")
	sig, err := base64.RawURLEncoding.DecodeString(signature)
	if err != nil {
		t.Fatal(err)
	}
	flipped := append([]byte(nil), sig...)
	flipped[17] ^= 0x10

	mac := func(header string) string {
		signed := b64(header) + "." + payload
		h := hmac.New(sha256.New, public)
		h.Write([]byte(signed))
		return signed + "." + base64.RawURLEncoding.EncodeToString(h.Sum(nil))
	}
	ec, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	es, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.ES256, Key: ec}, nil)
	if err != nil {
		t.Fatal(err)
	}
	upstream, err := es.Sign([]byte(vectorPayload))
	if err != nil {
		t.Fatal(err)
	}
	upstreamToken, err := upstream.CompactSerialize()
	if err != nil {
		t.Fatal(err)
	}
	// An attacker signs with a key of its own and offers it in the header.
	attacker := testSigner(t, 'a', "x")
	embedded := attacker.sign([]byte(`{"alg":"EdDSA","kid":"vec-key-1","jwk":{"kty":"OKP","crv":"Ed25519","x":"`+
		base64.RawURLEncoding.EncodeToString(attacker.Key().Public)+`"}}`), []byte(vectorPayload))

	for _, c := range []struct {
		name  string
		token string
		want  Reason
	}{
		{"whole", vectorToken, ""},
		{"T-03 HS256 keyed with the public key", mac(`{"alg":"HS256","kid":"vec-key-1"}`), ReasonAlgorithm},
		{"HS256 called EdDSA", mac(`{"alg":"EdDSA","kid":"vec-key-1"}`), ReasonSignature},
		{"T-04 none", b64(`{"alg":"none"}`) + "." + payload + ".", ReasonAlgorithm},
		{"EdDSA without a signature", header + "." + payload + ".", ReasonSignature},
		{"T-06 RS256", b64(`{"alg":"RS256"}`) + "." + payload + "." + signature, ReasonAlgorithm},
		{"T-07 one bit flipped", header + "." + payload + "." + base64.RawURLEncoding.EncodeToString(flipped), ReasonSignature},
		{"signature too short", header + "." + payload + "." + base64.RawURLEncoding.EncodeToString(sig[:63]), ReasonSignature},
		{"signature too long", header + "." + payload + "." + base64.RawURLEncoding.EncodeToString(append(sig[:64:64], 0)), ReasonSignature},
		{"T-08 payload edited", header + "." + b64(strings.Replace(vectorPayload, "invoices", "*", 1)) + "." + signature, ReasonSignature},
		{"header edited", b64(`{"alg":"EdDSA"}`) + "." + payload + "." + signature, ReasonSignature},
		{"T-21 key never published", attacker.sign([]byte(vectorHeader), []byte(vectorPayload)), ReasonSignature},
		{"key in the header", embedded, ReasonSignature},
		{"T-27 upstream token", upstreamToken, ReasonAlgorithm},
		{"T-28 1 MiB", vectorToken + strings.Repeat("A", 1<<20), ReasonSize},
		{"longest that is read", vectorToken + strings.Repeat("A", MaxTokenLen-len(vectorToken)), ReasonSignature},
		{"one more", vectorToken + strings.Repeat("A", MaxTokenLen-len(vectorToken)+1), ReasonSize},
		{"empty", "", ReasonEncoding},
		{"one part", header, ReasonEncoding},
		{"two parts", header + "." + payload, ReasonEncoding},
		{"four parts", vectorToken + "." + header, ReasonEncoding},
		{"dots", "..", ReasonHeader},
		{"padded", header + "." + payload + "." + signature + "==", ReasonEncoding},
		{"standard alphabet", header + "." + payload + "." + strings.NewReplacer("-", "+", "_", "/").Replace(signature), ReasonEncoding},
		{"bits after the last byte", vectorToken[:len(vectorToken)-1] + "B", ReasonEncoding},
		{"line end", header + "." + payload + ".\n" + signature, ReasonEncoding},
		{"blank", " " + vectorToken, ReasonEncoding},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := v.Verify(t.Context(), "acme", c.token)
			checkReason(t, err, c.want)
		})
	}
}

// sourceFunc is a KeySource made of a function.
type sourceFunc func(ctx context.Context, tenant string) (KeySet, error)

func (f sourceFunc) Keys(ctx context.Context, tenant string) (KeySet, error) { return f(ctx, tenant) }

func TestVerifyKeys(t *testing.T) {
	current, previous, other := testSigner(t, 'a', "k2"), testSigner(t, 'b', "k1"), testSigner(t, 'c', "k0")
	mint := func(s *Signer, tenant string) string {
		token, err := s.Mint(Claims{Tenant: tenant, IssuedAt: frozen()})
		if err != nil {
			t.Fatal(err)
		}
		return token
	}
	errDown := errors.New("down")
	v := NewVerifier(sourceFunc(func(ctx context.Context, tenant string) (KeySet, error) {
		switch tenant {
		case "acme":
			return KeySet{current.Key(), previous.Key()}, nil
		case "globex":
			return KeySet{other.Key()}, nil
		case "short":
			return KeySet{{ID: "k2", Public: current.Key().Public[:31]}, current.Key()}, nil
		case "empty":
			return nil, nil
		case "down":
			return nil, errDown
		case "slow":
			<-ctx.Done()
			return nil, ctx.Err()
		}
		return nil, fmt.Errorf("catalog: %w", ErrUnknownTenant)
	}), frozen)

	for _, c := range []struct {
		name   string
		tenant string
		token  string
		want   Reason
	}{
		{"current", "acme", mint(current, "acme"), ""},
		{"T-19 previous", "acme", mint(previous, "acme"), ""},
		{"kid of another key", "acme", previous.sign([]byte(`{"alg":"EdDSA","kid":"k2"}`), []byte(`{}`)), ReasonIssuer},
		{"other tenant's key", "acme", mint(other, "acme"), ReasonSignature},
		{"other tenant's token", "globex", mint(other, "acme"), ReasonTenant},
		{"unusable key is passed over", "short", mint(current, "short"), ""},
		{"no keys", "empty", mint(current, "empty"), ReasonSignature},
		{"unknown tenant", "nobody", mint(current, "nobody"), ReasonUnknownTenant},
		{"source fails", "down", mint(current, "down"), ReasonKeys},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := v.Verify(t.Context(), c.tenant, c.token)
			checkReason(t, err, c.want)
		})
	}

	t.Run("error of the source", func(t *testing.T) {
		if _, err := v.Verify(t.Context(), "down", mint(current, "down")); !errors.Is(err, errDown) {
			t.Errorf("got %v, want %v", err, errDown)
		}
	})
	t.Run("canceled", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if _, err := v.Verify(ctx, "slow", mint(current, "slow")); !errors.Is(err, context.Canceled) {
			t.Errorf("got %v, want %v", err, context.Canceled)
		}
	})
	t.Run("malformed tokens fetch nothing", func(t *testing.T) {
		v := NewVerifier(sourceFunc(func(context.Context, string) (KeySet, error) {
			t.Error("keys were asked for")
			return nil, nil
		}), nil)
		if _, err := v.Verify(t.Context(), "acme", b64(`{"alg":"none"}`)+".."); err == nil {
			t.Error("accepted")
		}
	})
}

func TestExpiresStaysInRange(t *testing.T) {
	s := testSigner(t, 'a', "k")
	v := NewVerifier(StaticKeys{"acme": {s.Key()}}, frozen)
	id, err := v.Verify(t.Context(), "acme", s.sign([]byte(`{"alg":"EdDSA"}`), []byte(
		`{"iss":"felix-auth","aud":"felix-broker","sub":"","tid":"acme","exp":9223372036854775807,"iat":0,"perms":[]}`)))
	if err != nil {
		t.Fatal(err)
	}
	if want := time.Date(9999, 12, 31, 23, 59, 59, 0, time.UTC); !id.Expires.Equal(want) {
		t.Errorf("got %v, want %v", id.Expires, want)
	}
}

func TestReasonOf(t *testing.T) {
	for _, err := range []error{nil, errors.New("x"), ErrTokenExpired} {
		if got := ReasonOf(err); got != ReasonOther {
			t.Errorf("%v: got %s, want %s", err, got, ReasonOther)
		}
	}
	if got := ReasonOf(fmt.Errorf("broker: %w", errExpired)); got != ReasonExpired {
		t.Errorf("got %s, want %s", got, ReasonExpired)
	}
	if got, want := errExpired.Error(), "auth: token expired (expired)"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

// FuzzVerify signs any header and payload with a good key. What is accepted must also be accepted by go-jose, and hold
// the fixed claims as another JSON reader sees them.
func FuzzVerify(f *testing.F) {
	f.Add([]byte(vectorHeader), []byte(vectorPayload))
	f.Add([]byte(`{"alg":"EdDSA","kid":null,"x5t":"","x":"y"}`), []byte(strings.Replace(vectorPayload, `"iat"`, `"nbf":1e3,"jti":null,"iat"`, 1)))
	f.Add([]byte(`{"alg":"EdDSA","crit":["b64"],"b64":false}`), []byte(`{"iss":"felix-auth","aud":["felix-broker"]}`))
	s := vectorSigner(f)
	v := NewVerifier(StaticKeys{"acme": {s.Key()}}, frozen)
	f.Fuzz(func(t *testing.T, header, payload []byte) {
		token := s.sign(header, payload)
		id, err := v.Verify(t.Context(), "acme", token)
		if err != nil {
			if ReasonOf(err) == ReasonOther || ReasonOf(err) == ReasonSignature || id != nil {
				t.Errorf("identity %+v with error %v", id, err)
			}
			return
		}
		judge(t, s, token, id)
		if _, err := v.Verify(t.Context(), "acme", token[:len(token)-2]+"AA"); err == nil && !strings.HasSuffix(token, "AA") {
			t.Error("accepted with a damaged signature")
		}
	})
}

// FuzzVerifyText gives Verify any text.
func FuzzVerifyText(f *testing.F) {
	f.Add(vectorToken)
	f.Add("..")
	f.Add(strings.ReplaceAll(vectorToken, ".", "..."))
	s := vectorSigner(f)
	v := NewVerifier(StaticKeys{"acme": {s.Key()}}, frozen)
	f.Fuzz(func(t *testing.T, token string) {
		id, err := v.Verify(t.Context(), "acme", token)
		if err == nil && token != vectorToken {
			t.Errorf("accepted a token that was never minted: %+v", id)
		}
		if err != nil && ReasonOf(err) == ReasonOther {
			t.Errorf("no reason in %v", err)
		}
	})
}

func BenchmarkVerify(b *testing.B) {
	s := vectorSigner(b)
	v := NewVerifier(StaticKeys{"acme": {s.Key()}}, frozen)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := v.Verify(b.Context(), "acme", vectorToken); err != nil {
			b.Fatal(err)
		}
	}
}

func TestParseNumbers(t *testing.T) {
	for _, c := range []struct {
		text string
		want int64
		ok   bool
	}{
		{"0", 0, true},
		{"-1", -1, true},
		{" 7\n", 7, true},
		{"9223372036854775807", math.MaxInt64, true},
		{"-9223372036854775808", math.MinInt64, true},
		{"9223372036854775808", 0, false},
		{"-0", 0, false},
		{"1.0", 0, false},
		{"1e2", 0, false},
		{`"1"`, 0, false},
		{"null", 0, false},
		{"", 0, false},
		{"[1]", 0, false},
	} {
		got, ok := parseInt([]byte(c.text))
		if ok != c.ok || ok && got != c.want {
			t.Errorf("parseInt(%q) = %d, %v, want %d, %v", c.text, got, ok, c.want, c.ok)
		}
	}
}

// TestBound: the bound of a verifier is asked before a token of a tenant that has keys is read, and hears when it has
// been.
func TestBound(t *testing.T) {
	signer := testSigner(t, 1, vectorKID)
	v := NewVerifier(StaticKeys{"acme": {signer.Key()}}, frozen)
	full := errors.New("full")
	entered, left := 0, 0
	v.Bound(func(_ context.Context, tenant string) error {
		if tenant != "acme" {
			t.Errorf("entered for %q", tenant)
		}
		if entered++; entered == 3 {
			return full
		}
		return nil
	}, func() { left++ })
	token := mint(t, signer)
	if _, err := v.Verify(t.Context(), "acme", token); err != nil {
		t.Fatal(err)
	}
	if _, err := v.Verify(t.Context(), "other", token); ReasonOf(err) != ReasonUnknownTenant {
		t.Errorf("a tenant without keys: %v", err)
	}
	if _, err := v.Verify(t.Context(), "acme", mint(t, testSigner(t, 2, vectorKID))); ReasonOf(err) != ReasonSignature {
		t.Errorf("another key: %v", err)
	}
	if _, err := v.Verify(t.Context(), "acme", token); !errors.Is(err, full) || ReasonOf(err) != ReasonBusy {
		t.Errorf("beyond the bound: %v", err)
	}
	if entered != 3 || left != 2 {
		t.Errorf("entered %d times, left %d times", entered, left)
	}
}

func TestVerifyAgain(t *testing.T) {
	s, other := testSigner(t, 'a', "k1"), testSigner(t, 'b', "k1")
	token, err := s.Mint(Claims{Tenant: "acme", IssuedAt: frozen(), Expires: frozen().Add(time.Hour)})
	if err != nil {
		t.Fatal(err)
	}
	errDown := errors.New("down")
	now, keys, keysErr := frozen(), KeySet{other.Key(), s.Key()}, error(nil)
	v := NewVerifier(sourceFunc(func(context.Context, string) (KeySet, error) { return keys, keysErr }), func() time.Time { return now })
	id, err := v.Verify(t.Context(), "acme", token)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name   string
		change func()
		want   Reason
	}{
		{"as before", func() {}, ""},
		{"at its end, with leeway", func() { now = frozen().Add(time.Hour + Leeway) }, ""},
		{"over", func() { now = frozen().Add(time.Hour + Leeway + time.Second) }, ReasonExpired},
		{"key renamed", func() { keys = KeySet{{ID: "k9", Public: s.Key().Public}} }, ""},
		{"key gone", func() { keys = KeySet{other.Key()} }, ReasonSignature},
		{"no keys", func() { keys = nil }, ReasonSignature},
		{"tenant gone", func() { keysErr = ErrUnknownTenant }, ReasonUnknownTenant},
		{"source down", func() { keysErr = errDown }, ReasonKeys},
	} {
		now, keys, keysErr = frozen(), KeySet{other.Key(), s.Key()}, nil
		c.change()
		err := v.VerifyAgain(t.Context(), id)
		if c.want == "" && err != nil || c.want != "" && ReasonOf(err) != c.want {
			t.Errorf("%s: %v, want %q", c.name, err, c.want)
		}
	}
}
