package conformance

import (
	"crypto/ed25519"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"time"
)

// forgery is a token before it is signed. It is written here and not by package auth, because most of its uses are
// tokens that a signer must refuse to make.
type forgery struct {
	header, claims map[string]any
	hmac           bool // signs with the public key as an HMAC secret
	unsigned       bool
}

// allActions are permissions for everything a broker serves, within the token's tenant.
var allActions = []string{"stream.publish:*", "stream.subscribe:*", "cache.read:*", "cache.write:*"}

// token mints a good token with the given permissions.
func (f *Fixture) token(permissions ...string) string {
	return f.forge(permissions, func(*forgery) {})
}

// forge mints a token that change has made odd.
func (f *Fixture) forge(permissions []string, change func(*forgery)) string {
	now := time.Now()
	t := forgery{
		header: map[string]any{"typ": "JWT", "alg": "EdDSA", "kid": f.KeyID},
		claims: map[string]any{
			"iss": "felix-auth", "aud": "felix-broker", "sub": "conformance", "tid": f.Tenant,
			"iat": now.Unix(), "exp": now.Add(time.Hour).Unix(), "perms": append([]string{}, permissions...),
		},
	}
	change(&t)
	enc := base64.RawURLEncoding
	text := enc.AppendEncode(nil, mustJSON(t.header))
	text = append(text, '.')
	text = enc.AppendEncode(text, mustJSON(t.claims))
	var signature []byte
	switch {
	case t.unsigned:
	case t.hmac:
		public, _ := f.key.Public().(ed25519.PublicKey)
		mac := hmac.New(sha256.New, public)
		mac.Write(text)
		signature = mac.Sum(nil)
	default:
		signature = ed25519.Sign(f.key, text)
	}
	text = append(text, '.')
	return string(enc.AppendEncode(text, signature))
}

func mustJSON(v any) []byte {
	b, err := json.Marshal(v)
	if err != nil {
		panic("conformance: BUG: " + err.Error()) // strings, numbers and lists of them
	}
	return b
}
