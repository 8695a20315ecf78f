package auth

import (
	"bytes"
	"crypto/ed25519"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"time"
	"unicode/utf8"
)

// Claims are what a [Signer] puts into a token.
type Claims struct {
	Tenant  string
	Subject string
	// IssuedAt is cut to seconds. It must be set.
	IssuedAt time.Time
	// Expires is cut to seconds; zero means IssuedAt + [TokenLifetime].
	Expires time.Time
	// ID becomes "jti"; empty means none.
	ID string
	// Permissions are written in this order, each as ACTION:PATTERN ([Permission.String]). None is allowed nothing.
	Permissions []string
}

// Signer mints tokens for one tenant's key. It may be used from many goroutines.
type Signer struct {
	private ed25519.PrivateKey
	key     Key
	header  []byte
}

// NewSigner returns a signer for a private key and the kid it is published under, which must not be empty. It copies
// the key. The error matches [ErrSigner] if the key has a wrong length or its public half does not belong to its seed
// (docs/protocol/tokens.md#header).
func NewSigner(private ed25519.PrivateKey, kid string) (*Signer, error) {
	if len(private) != ed25519.PrivateKeySize {
		return nil, fmt.Errorf("%w: private key of %d bytes, want %d", ErrSigner, len(private), ed25519.PrivateKeySize)
	}
	derived := ed25519.NewKeyFromSeed(private.Seed())
	if !derived.Equal(private) {
		return nil, fmt.Errorf("%w: public key does not belong to the seed", ErrSigner)
	}
	if kid == "" || !utf8.ValidString(kid) {
		return nil, fmt.Errorf("%w: kid must be UTF-8 and not empty", ErrSigner)
	}
	header := marshal(struct {
		Type      string `json:"typ"`
		Algorithm string `json:"alg"`
		KID       string `json:"kid"`
	}{tokenType, algorithm, kid})
	public := derived[ed25519.PrivateKeySize-ed25519.PublicKeySize:]
	return &Signer{private: derived, key: Key{ID: kid, Public: ed25519.PublicKey(public)}, header: header}, nil
}

// Key returns the public half, which a [KeySet] of the tenant must hold.
func (s *Signer) Key() Key { return s.key }

// JWKS returns the key set document with this key alone, as docs/protocol/tokens.md#keys has it.
func (s *Signer) JWKS() []byte {
	type jwk struct {
		Type      string `json:"kty"`
		KID       string `json:"kid"`
		Algorithm string `json:"alg"`
		Use       string `json:"use"`
		Curve     string `json:"crv"`
		X         string `json:"x"`
	}
	return marshal(struct {
		Keys []jwk `json:"keys"`
	}{[]jwk{{"OKP", s.key.ID, algorithm, "sig", "Ed25519", base64.RawURLEncoding.EncodeToString(s.key.Public)}}})
}

// Mint returns a signed token. Equal claims give equal bytes (docs/protocol/tokens.md#example). The error matches
// [ErrSigner], and also [ErrPermission] if a permission is malformed, since one such entry would have the whole token
// refused; so would the what is above [MaxTokenLen], [MaxPermissions] and [MaxStars].
func (s *Signer) Mint(c Claims) (string, error) {
	if c.IssuedAt.IsZero() {
		return "", fmt.Errorf("%w: issue time is not set", ErrSigner)
	}
	if c.Expires.IsZero() {
		c.Expires = c.IssuedAt.Add(TokenLifetime)
	}
	if c.Expires.Unix() < 0 {
		return "", fmt.Errorf("%w: expiry before 1970", ErrSigner)
	}
	if len(c.Permissions) > MaxPermissions {
		return "", fmt.Errorf("%w: %d permissions exceed %d", ErrSigner, len(c.Permissions), MaxPermissions)
	}
	var tried grants
	for _, p := range c.Permissions {
		permission, err := ParsePermission(p)
		if err != nil {
			return "", fmt.Errorf("%w: %w", ErrSigner, err)
		}
		tried.add(actionIndex(permission.Action), []byte(permission.Pattern))
	}
	if tried.stars > MaxStars {
		return "", fmt.Errorf("%w: %d stars in permissions exceed %d", ErrSigner, tried.stars, MaxStars)
	}
	for _, text := range append([]string{c.Tenant, c.Subject, c.ID}, c.Permissions...) {
		if !utf8.ValidString(text) {
			return "", fmt.Errorf("%w: %.80q is not UTF-8", ErrSigner, text)
		}
	}
	token := s.sign(s.header, marshal(struct {
		Issuer      string   `json:"iss"`
		Audience    string   `json:"aud"`
		Subject     string   `json:"sub"`
		Tenant      string   `json:"tid"`
		Expires     int64    `json:"exp"`
		IssuedAt    int64    `json:"iat"`
		ID          string   `json:"jti,omitempty"`
		Permissions []string `json:"perms"`
	}{
		issuer, audience, c.Subject, c.Tenant, c.Expires.Unix(), c.IssuedAt.Unix(), c.ID,
		append([]string{}, c.Permissions...), // never null
	}))
	if len(token) > MaxTokenLen {
		return "", fmt.Errorf("%w: token of %d bytes exceeds %d", ErrSigner, len(token), MaxTokenLen)
	}
	return token, nil
}

// sign returns the compact serialization of header and payload.
func (s *Signer) sign(header, payload []byte) string {
	enc := base64.RawURLEncoding
	token := enc.AppendEncode(nil, header)
	token = append(token, '.')
	token = enc.AppendEncode(token, payload)
	signature := ed25519.Sign(s.private, token)
	token = append(token, '.')
	return string(enc.AppendEncode(token, signature))
}

// marshal writes v without the escapes for HTML, which other writers of JSON do not use.
func marshal(v any) []byte {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		panic("auth: BUG: " + err.Error()) // v holds strings and integers only
	}
	return bytes.TrimSuffix(b.Bytes(), []byte("\n"))
}
