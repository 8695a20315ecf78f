package auth

import (
	"context"
	"crypto/ed25519"
	"encoding/base64"
	"fmt"
	"strings"
	"unicode/utf8"

	"github.com/go-jose/go-jose/v4/json"
)

// Key is a public key that verifies tokens of one tenant.
type Key struct {
	// ID is the "kid" of tokens signed with this key. It decides which key is tried first and nothing else.
	ID string
	// Public has 32 bytes; a key of another length verifies nothing.
	Public ed25519.PublicKey
}

// Fingerprint tells public keys apart, whatever their ids. It is the public key itself, so it is no secret, and it is
// comparable. The zero value is the fingerprint of no usable key.
type Fingerprint [ed25519.PublicKeySize]byte

// Fingerprint returns the key's fingerprint, and the zero value for a key of the wrong length.
func (k Key) Fingerprint() Fingerprint {
	if len(k.Public) != ed25519.PublicKeySize {
		return Fingerprint{}
	}
	return Fingerprint(k.Public)
}

// KeySet holds the keys of one tenant, the current one first. All of them verify.
type KeySet []Key

// Has reports whether the set holds the key with that fingerprint, under any id. It allocates nothing. The set has no
// zero fingerprint.
func (s KeySet) Has(f Fingerprint) bool {
	for _, key := range s {
		if f != (Fingerprint{}) && key.Fingerprint() == f {
			return true
		}
	}
	return false
}

// KeySource knows the keys of tenants. It is used from many goroutines.
//
// Keys may block, for instance to fetch them, until ctx ends. It returns an error that matches [ErrUnknownTenant] if
// there is no such tenant; the tenant is what a peer claims and has not been checked. The caller does not change the
// key set, and neither may the source after it has returned it.
type KeySource interface {
	Keys(ctx context.Context, tenant string) (KeySet, error)
}

// StaticKeys is a [KeySource] in memory, by tenant. It must not be changed while it is in use.
type StaticKeys map[string]KeySet

// Keys returns the tenant's keys or [ErrUnknownTenant]. It does not block.
func (s StaticKeys) Keys(_ context.Context, tenant string) (KeySet, error) {
	keys, ok := s[tenant]
	if !ok {
		return nil, ErrUnknownTenant
	}
	return keys, nil
}

// ParseJWKS reads a JWKS document, {"keys":[...]}, in the order of its entries. Nothing in the result aliases doc.
//
// Entries that are not usable are skipped: usable are those with "kty" OKP, "crv" Ed25519, "alg" EdDSA or absent,
// "use" sig or absent, an "x" of 32 bytes, and no private half (docs/protocol/tokens.md#keys). Unknown members are
// ignored. The error matches [ErrKeySet] if the document is not a key set or has no usable entry, so that a caller does
// not replace a good set by an empty one.
func ParseJWKS(doc []byte) (KeySet, error) {
	if !utf8.Valid(doc) {
		return nil, fmt.Errorf("%w: not UTF-8", ErrKeySet)
	}
	var set struct {
		Keys []json.RawMessage `json:"keys"`
	}
	if err := json.Unmarshal(doc, &set); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrKeySet, err)
	}
	var keys KeySet
	for _, entry := range set.Keys {
		if key, ok := parseJWK(entry); ok {
			keys = append(keys, key)
		}
	}
	if len(keys) == 0 {
		return nil, fmt.Errorf("%w: none of %d entries is usable", ErrKeySet, len(set.Keys))
	}
	return keys, nil
}

func parseJWK(entry []byte) (Key, bool) {
	var jwk struct {
		Type    string          `json:"kty"`
		Curve   string          `json:"crv"`
		ID      string          `json:"kid"`
		Public  string          `json:"x"`
		Alg     *string         `json:"alg"`
		Use     *string         `json:"use"`
		Private json.RawMessage `json:"d"`
	}
	if json.Unmarshal(entry, &jwk) != nil {
		return Key{}, false
	}
	if jwk.Type != "OKP" || jwk.Curve != "Ed25519" || jwk.Private != nil {
		return Key{}, false
	}
	if jwk.Alg != nil && *jwk.Alg != algorithm || jwk.Use != nil && *jwk.Use != "sig" {
		return Key{}, false
	}
	public, ok := decodeBase64(jwk.Public)
	if !ok || len(public) != ed25519.PublicKeySize {
		return Key{}, false
	}
	return Key{ID: jwk.ID, Public: public}, true
}

// strictBase64 refuses padding, and bits set after the last byte.
var strictBase64 = base64.RawURLEncoding.Strict()

// decodeBase64 decodes canonical base64url, so that one value has one spelling.
func decodeBase64(s string) ([]byte, bool) {
	if strings.ContainsAny(s, "\r\n") { // the standard library skips them
		return nil, false
	}
	b, err := strictBase64.DecodeString(s)
	return b, err == nil
}
