package auth

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"errors"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/go-jose/go-jose/v4/json"
)

const (
	// MaxTokenLen is the length in bytes of the longest token that is looked at.
	MaxTokenLen = 64 << 10
	// MaxPermissions is the number of permissions a token may hold.
	MaxPermissions = 10_000
	// Leeway is the difference between the clocks of issuer and verifier that is forgiven, itself included.
	Leeway = 60 * time.Second
	// TokenLifetime is the time from issue to expiry of the tokens that control planes mint.
	TokenLifetime = 15 * time.Minute
)

// Fixed values of authz.md 2.
const (
	issuer    = "felix-auth"
	audience  = "felix-broker"
	algorithm = "EdDSA"
	tokenType = "JWT"
)

// maxExpires is the last second of the year 9999. Later times leave the range that time.Time can print and compare.
const maxExpires = 253402300799

// Verifier checks tokens. It may be used from many goroutines.
type Verifier struct {
	keys KeySource
	now  func() time.Time
}

// NewVerifier returns a verifier that takes keys from keys and the time from now; nil means [time.Now].
func NewVerifier(keys KeySource, now func() time.Time) *Verifier {
	if now == nil {
		now = time.Now
	}
	return &Verifier{keys: keys, now: now}
}

// Verify checks a token that a peer presents for tenant, and returns its bearer. The rules are in the package
// documentation.
//
// Every error is a [*TokenError]; a peer learns none of it (session.md 4.1). Verify blocks only in
// [KeySource.Keys], with ctx, and asks it only for tokens whose form is right. No claim is looked at before a key has
// verified the signature. With a kid that names no key, or none, all keys are tried in their order.
func (v *Verifier) Verify(ctx context.Context, tenant, token string) (*Identity, error) {
	if len(token) > MaxTokenLen {
		return nil, errSize
	}
	split := strings.LastIndexByte(token, '.')
	if split < 0 {
		return nil, errEncoding
	}
	signed := token[:split]
	header, payload, ok := strings.Cut(signed, ".")
	if !ok {
		return nil, errEncoding
	}
	// A further dot is outside the alphabet and fails here.
	headerJSON, ok1 := decodeBase64(header)
	payloadJSON, ok2 := decodeBase64(payload)
	signature, ok3 := decodeBase64(token[split+1:])
	if !ok1 || !ok2 || !ok3 {
		return nil, errEncoding
	}
	kid, hasKID, err := parseHeader(headerJSON)
	if err != nil {
		return nil, err
	}

	keys, err := v.keys.Keys(ctx, tenant)
	if err != nil {
		if errors.Is(err, ErrUnknownTenant) {
			return nil, &TokenError{ReasonUnknownTenant, err}
		}
		return nil, &TokenError{ReasonKeys, err}
	}
	key, ok := keys.verify(kid, hasKID, []byte(signed), signature)
	if !ok {
		return nil, errSignature
	}
	id, err := parseClaims(payloadJSON, tenant, v.now().Unix())
	if err != nil {
		return nil, err
	}
	id.Key = key
	return id, nil
}

// verify tries the keys that bear kid, then the others, and returns the fingerprint of the one that verifies.
func (s KeySet) verify(kid string, hasKID bool, signed, signature []byte) (Fingerprint, bool) {
	for _, named := range [...]bool{true, false} {
		for _, key := range s {
			if (hasKID && key.ID == kid) != named || len(key.Public) != ed25519.PublicKeySize {
				continue
			}
			if ed25519.Verify(key.Public, signed, signature) {
				return key.Fingerprint(), true
			}
		}
	}
	return Fingerprint{}, false
}

// parseHeader checks the types that session.md 4.4 demands of the members of the protected header. Registered members
// may be null, unknown ones must be strings, and none but alg and kid has an effect: keys and addresses of keys in a
// header are never used.
func parseHeader(header []byte) (kid string, hasKID bool, err error) {
	members, ok := parseObject(header)
	if !ok {
		return "", false, errHeader
	}
	if alg, ok := parseString(members["alg"]); !ok || alg != algorithm {
		return "", false, errAlgorithm
	}
	if _, ok := members["crit"]; ok {
		return "", false, errCritical
	}
	for name, value := range members {
		switch name {
		case "kid", "typ", "cty", "jku", "x5u", "x5t", "x5t#S256":
			ok = json.Unmarshal(value, new(string)) == nil // null is left alone
		case "jwk":
			ok = json.Unmarshal(value, new(map[string]json.RawMessage)) == nil
		case "x5c":
			ok = json.Unmarshal(value, new([]string)) == nil
		default:
			_, ok = parseString(value)
		}
		if !ok {
			return "", false, errHeader
		}
	}
	kid, hasKID = parseString(members["kid"])
	return kid, hasKID, nil
}

// parseClaims checks the payload of a token whose signature is good. now is in seconds.
func parseClaims(payload []byte, tenant string, now int64) (*Identity, error) {
	const leeway = int64(Leeway / time.Second)
	members, ok := parseObject(payload)
	if !ok {
		return nil, errPayload
	}
	if iss, ok := parseString(members["iss"]); !ok || iss != issuer {
		return nil, errIssuer
	}
	if aud, ok := parseString(members["aud"]); !ok || aud != audience {
		return nil, errAudience
	}
	if tid, ok := parseString(members["tid"]); !ok || tid != tenant {
		return nil, errTenant
	}
	sub, ok := parseString(members["sub"])
	if !ok {
		return nil, errSubject
	}
	exp, ok := parseInt(members["exp"])
	if !ok || exp < 0 {
		return nil, errExpiry
	}
	if exp < now-leeway {
		return nil, errExpired
	}
	if iat, ok := parseInt(members["iat"]); !ok || iat > now+leeway {
		return nil, errIssuedAt
	}
	if nbf, ok := parseNumber(members["nbf"]); ok && nbf > float64(now+leeway) {
		return nil, errNotBefore
	}
	if jti, ok := members["jti"]; ok && json.Unmarshal(jti, new(string)) != nil {
		return nil, errTokenID
	}
	var perms []string
	if raw := members["perms"]; raw == nil || json.Unmarshal(raw, &perms) != nil || perms == nil {
		return nil, errPermissions
	}
	if len(perms) > MaxPermissions {
		return nil, errPermissions
	}

	id := &Identity{Tenant: tenant, Subject: sub, Expires: time.Unix(min(exp, maxExpires), 0).UTC()}
	for _, s := range perms { // a null among them has become "", which has no colon
		p, err := ParsePermission(s)
		if err != nil {
			return nil, &TokenError{ReasonPermission, err}
		}
		id.allow(p)
	}
	return id, nil
}

// parseObject splits a JSON object into its members. It refuses invalid UTF-8 and members that stand twice.
func parseObject(text []byte) (map[string]json.RawMessage, bool) {
	var members map[string]json.RawMessage
	if !utf8.Valid(text) || json.Unmarshal(text, &members) != nil {
		return nil, false
	}
	return members, members != nil // null leaves it nil
}

// parseString reads a JSON string. A missing value (nil) and null are none.
func parseString(value json.RawMessage) (string, bool) {
	var s *string
	if value == nil || json.Unmarshal(value, &s) != nil || s == nil {
		return "", false
	}
	return *s, true
}

// parseInt reads a JSON integer of 64 bits without a fraction, an exponent or a negative zero.
func parseInt(value json.RawMessage) (int64, bool) {
	text := string(bytes.TrimSpace(value))
	n, err := strconv.ParseInt(text, 10, 64)
	return n, err == nil && text != "-0"
}

// parseNumber reads any JSON number; beyond the range of a float it yields an infinity.
func parseNumber(value json.RawMessage) (float64, bool) {
	text := bytes.TrimSpace(value)
	if len(text) == 0 || text[0] != '-' && (text[0] < '0' || text[0] > '9') {
		return 0, false
	}
	f, err := strconv.ParseFloat(string(text), 64)
	return f, err == nil || errors.Is(err, strconv.ErrRange)
}
