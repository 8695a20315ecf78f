package auth

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"errors"
	"strings"
	"sync"
	"time"
)

const (
	// MaxTokenLen is the length in bytes of the longest token that is looked at.
	MaxTokenLen = 64 << 10
	// MaxHeaderLen is the length in bytes of the longest encoded header that is looked at. Headers that are in use have
	// 30 to 300; it leaves space for keys and certificates, which are checked and not used.
	MaxHeaderLen = 8 << 10
	// MaxMembers is the number of members that a header or a payload may have.
	MaxMembers = 128
	// MaxPermissions is the number of permissions a token may hold.
	MaxPermissions = 10_000
	// MaxStars is the number of stars in all permissions of a token together, those left out that end a permission
	// without another star. A run of stars is one.
	MaxStars = 2048
	// Leeway is the difference between the clocks of issuer and verifier that is forgiven, itself included.
	Leeway = 60 * time.Second
	// TokenLifetime is the time from issue to expiry of the tokens that control planes mint.
	TokenLifetime = 15 * time.Minute
)

// Fixed values of docs/protocol/tokens.md#format.
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
	keys  KeySource
	now   func() time.Time
	enter func(ctx context.Context, tenant string) error // nil: there is no bound
	leave func()
}

// NewVerifier returns a verifier that takes keys from keys and the time from now; nil means [time.Now].
func NewVerifier(keys KeySource, now func() time.Time) *Verifier {
	if now == nil {
		now = time.Now
	}
	return &Verifier{keys: keys, now: now}
}

// Bound has enter called before each look at a signature, which is what costs most, and leave after the token has been
// read. enter may wait, for as long as ctx lives; its error refuses the token. The tenant is what the peer claims, and
// has keys. Bound is called before the verifier is used.
func (v *Verifier) Bound(enter func(ctx context.Context, tenant string) error, leave func()) {
	v.enter, v.leave = enter, leave
}

// Verify checks a token that a peer presents for tenant, and returns its bearer. The rules are in the package
// documentation.
//
// Every error is a [*TokenError]; a peer learns none of it (docs/protocol/session.md#on-a-control-stream). Verify
// blocks only in [KeySource.Keys], and as [Verifier.Bound] says, with ctx. It asks for keys only for tokens whose form
// is right. No claim is looked at before a key has verified the signature. With a kid that names no key, or none, all
// keys are tried in their order.
func (v *Verifier) Verify(ctx context.Context, tenant, token string) (*Identity, error) {
	if len(token) > MaxTokenLen {
		return nil, errSize
	}
	split := strings.LastIndexByte(token, '.')
	if split < 0 {
		return nil, errEncoding
	}
	signed := token[:split]
	header, _, ok := strings.Cut(signed, ".")
	if !ok {
		return nil, errEncoding
	}
	if len(header) > MaxHeaderLen {
		return nil, errHeader
	}
	buf := buffers.Get().(*buffer)
	defer buffers.Put(buf)
	buf.signed = append(buf.signed[:0], signed...)
	// A further dot is outside the alphabet and fails here.
	headerJSON, ok1 := decodeInto(&buf.header, buf.signed[:len(header)])
	payloadJSON, ok2 := decodeInto(&buf.payload, buf.signed[len(header)+1:])
	var signature []byte
	ok3 := true
	if text := token[split+1:]; len(text) <= maxSignatureText { // another cannot be one
		signature, ok3 = decodeBase64(text)
	}
	if !ok1 || !ok2 || !ok3 {
		return nil, errEncoding
	}
	kid, hasKID, err := parseHeader(headerJSON)
	if err != nil {
		return nil, err
	}

	keys, err := v.keysOf(ctx, tenant)
	if err != nil {
		return nil, err
	}
	if v.enter != nil {
		if err := v.enter(ctx, tenant); err != nil {
			return nil, &TokenError{ReasonBusy, err}
		}
		defer v.leave()
	}
	key, ok := keys.verify(kid, hasKID, buf.signed, signature)
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

// VerifyAgain checks a token once more whose bearer is id: that its time is not over, and that its tenant still has the
// key that verified it. The caller has seen [Verifier.Verify] accept the same token for the same tenant. It spares the
// signature, which is what costs most. Errors are those of Verify, and it blocks in [KeySource.Keys] alone.
func (v *Verifier) VerifyAgain(ctx context.Context, id *Identity) error {
	keys, err := v.keysOf(ctx, id.Tenant)
	if err != nil {
		return err
	}
	if !keys.Has(id.Key) {
		return errSignature
	}
	if id.Expires.Unix() < v.now().Unix()-int64(Leeway/time.Second) {
		return errExpired
	}
	return nil
}

func (v *Verifier) keysOf(ctx context.Context, tenant string) (KeySet, error) {
	keys, err := v.keys.Keys(ctx, tenant)
	switch {
	case errors.Is(err, ErrUnknownTenant):
		return nil, &TokenError{ReasonUnknownTenant, err}
	case err != nil:
		return nil, &TokenError{ReasonKeys, err}
	}
	return keys, nil
}

// maxSignatureText is more than the 86 characters of a signature: one that is nearly right is named what it is.
const maxSignatureText = 128

// buffer is the memory for one token.
type buffer struct{ signed, header, payload []byte }

var buffers = sync.Pool{New: func() any { return new(buffer) }}

// decodeInto is decodeBase64 into memory that is used again.
func decodeInto(into *[]byte, text []byte) ([]byte, bool) {
	if bytes.IndexByte(text, '\r') >= 0 || bytes.IndexByte(text, '\n') >= 0 {
		return nil, false
	}
	out, err := strictBase64.AppendDecode((*into)[:0], text)
	*into = out
	return out, err == nil
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

// parseClaims checks the payload of a token whose signature is good. now is in seconds.
func parseClaims(payload []byte, tenant string, now int64) (*Identity, error) {
	const leeway = int64(Leeway / time.Second)
	var c claims
	if err := c.parse(payload); err != nil {
		return nil, err
	}
	if !equalString(c.iss, issuer) {
		return nil, errIssuer
	}
	if !equalString(c.aud, audience) {
		return nil, errAudience
	}
	if !equalString(c.tid, tenant) {
		return nil, errTenant
	}
	if len(c.sub) == 0 || c.sub[0] != '"' {
		return nil, errSubject
	}
	exp, ok := parseInt(c.exp)
	if !ok || exp < 0 {
		return nil, errExpiry
	}
	if exp < now-leeway {
		return nil, errExpired
	}
	if iat, ok := parseInt(c.iat); !ok || iat > now+leeway {
		return nil, errIssuedAt
	}
	if nbf, ok := parseNumber(c.nbf); ok && nbf > float64(now+leeway) {
		return nil, errNotBefore
	}
	if c.jti != nil && c.jti[0] != '"' && c.jti[0] != 'n' {
		return nil, errTokenID
	}
	g, err := parsePermissions(c.perms, c.permissions)
	if err != nil {
		return nil, err
	}
	sub, _ := parseString(c.sub)
	return &Identity{Tenant: tenant, Subject: sub, Expires: time.Unix(min(exp, maxExpires), 0).UTC(), grants: g}, nil
}
