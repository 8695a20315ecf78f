package auth

import "errors"

// Errors that a caller can test for with [errors.Is]. [Verifier.Verify] wraps them in a [*TokenError].
var (
	// ErrTokenMalformed means that the text is not a token: size, encoding, header or JSON.
	ErrTokenMalformed = errors.New("auth: malformed token")
	// ErrTokenSignature means that no key of the tenant verifies the token.
	ErrTokenSignature = errors.New("auth: token signature does not verify")
	// ErrTokenExpired means that the token expired more than [Leeway] ago.
	ErrTokenExpired = errors.New("auth: token expired")
	// ErrTokenClaims means that a claim is missing, has the wrong type or the wrong value.
	ErrTokenClaims = errors.New("auth: token claims refused")
	// ErrPermission means that a permission has no colon or names an unknown action. One such entry refuses the
	// whole token.
	ErrPermission = errors.New("auth: malformed permission")
	// ErrUnknownTenant means that the [KeySource] knows no such tenant.
	ErrUnknownTenant = errors.New("auth: unknown tenant")
	// ErrKeySet means that a JWKS document does not parse or holds no usable key.
	ErrKeySet = errors.New("auth: unusable key set")
	// ErrSigner means that a [Signer] was given an unusable key or claims it must not sign.
	ErrSigner = errors.New("auth: refused to sign")
)

// Reason names why a token was refused, in one stable word that fits a metric label or a log field. It never holds
// bytes of the token.
type Reason string

// The reasons, with the error each one comes with.
const (
	ReasonSize      Reason = "size"      // ErrTokenMalformed: longer than MaxTokenLen
	ReasonEncoding  Reason = "encoding"  // ErrTokenMalformed: not three parts of canonical base64url
	ReasonHeader    Reason = "header"    // ErrTokenMalformed: the header is not JSON, or a member has a wrong type
	ReasonAlgorithm Reason = "algorithm" // ErrTokenMalformed: "alg" is missing or not "EdDSA"
	ReasonCritical  Reason = "critical"  // ErrTokenMalformed: the header has "crit"
	ReasonPayload   Reason = "payload"   // ErrTokenMalformed: the signed payload is not a JSON object

	ReasonUnknownTenant Reason = "unknown_tenant" // ErrUnknownTenant
	ReasonKeys          Reason = "keys"           // any other error of the KeySource
	ReasonBusy          Reason = "busy"           // the bound of [Verifier.Bound]
	ReasonSignature     Reason = "signature"      // ErrTokenSignature

	ReasonIssuer      Reason = "issuer"      // ErrTokenClaims: "iss"
	ReasonAudience    Reason = "audience"    // ErrTokenClaims: "aud"
	ReasonTenant      Reason = "tenant"      // ErrTokenClaims: "tid"
	ReasonSubject     Reason = "subject"     // ErrTokenClaims: "sub"
	ReasonExpiry      Reason = "expiry"      // ErrTokenClaims: "exp" is missing or not an integer in range
	ReasonIssuedAt    Reason = "issued_at"   // ErrTokenClaims: "iat" is missing, not an integer, or in the future
	ReasonNotBefore   Reason = "not_before"  // ErrTokenClaims: "nbf" is in the future
	ReasonTokenID     Reason = "token_id"    // ErrTokenClaims: "jti" is not a string
	ReasonPermissions Reason = "permissions" // ErrTokenClaims: "perms" is not an array of strings, or too long
	ReasonPermission  Reason = "permission"  // ErrPermission
	ReasonExpired     Reason = "expired"     // ErrTokenExpired

	ReasonOther Reason = "other" // ReasonOf was given an error of another kind
)

// TokenError is the error of [Verifier.Verify]. Err is one of the package's sentinels or wraps one, or is what the
// [KeySource] returned; errors.Is looks through it.
type TokenError struct {
	Reason Reason
	Err    error
}

// Error returns the text of Err and the reason.
func (e *TokenError) Error() string { return e.Err.Error() + " (" + string(e.Reason) + ")" }

// Unwrap returns Err.
func (e *TokenError) Unwrap() error { return e.Err }

// ReasonOf returns the reason that err carries, or [ReasonOther].
func ReasonOf(err error) Reason {
	if e, ok := errors.AsType[*TokenError](err); ok {
		return e.Reason
	}
	return ReasonOther
}

// Tokens come from peers, so that refusing one costs no allocation.
var (
	errSize        = &TokenError{ReasonSize, ErrTokenMalformed}
	errEncoding    = &TokenError{ReasonEncoding, ErrTokenMalformed}
	errHeader      = &TokenError{ReasonHeader, ErrTokenMalformed}
	errAlgorithm   = &TokenError{ReasonAlgorithm, ErrTokenMalformed}
	errCritical    = &TokenError{ReasonCritical, ErrTokenMalformed}
	errPayload     = &TokenError{ReasonPayload, ErrTokenMalformed}
	errSignature   = &TokenError{ReasonSignature, ErrTokenSignature}
	errIssuer      = &TokenError{ReasonIssuer, ErrTokenClaims}
	errAudience    = &TokenError{ReasonAudience, ErrTokenClaims}
	errTenant      = &TokenError{ReasonTenant, ErrTokenClaims}
	errSubject     = &TokenError{ReasonSubject, ErrTokenClaims}
	errExpiry      = &TokenError{ReasonExpiry, ErrTokenClaims}
	errIssuedAt    = &TokenError{ReasonIssuedAt, ErrTokenClaims}
	errNotBefore   = &TokenError{ReasonNotBefore, ErrTokenClaims}
	errTokenID     = &TokenError{ReasonTokenID, ErrTokenClaims}
	errPermissions = &TokenError{ReasonPermissions, ErrTokenClaims}
	errExpired     = &TokenError{ReasonExpired, ErrTokenExpired}
)
