// Package auth decides who a peer is and what it may do: Felix tokens, permissions, the matcher and key sets.
//
// A Felix token is a JWT in compact form, signed with Ed25519 by a key of the tenant it is for. [Verifier.Verify]
// checks one against the tenant's keys and yields an [Identity], which answers [Identity.Allowed] for each operation
// without allocating. A [Signer] mints tokens and publishes its key, for development mode and for tools.
//
// Where keys come from is left to a [KeySource]; [StaticKeys] holds them in memory. HTTP, the exchange of upstream
// tokens and the replies to a refused peer are left to the packages above. Begin at [Verifier].
//
// # What is verified
//
// The rules are those of docs/protocol/tokens.md. A token that the reference broker accepts is
// accepted here, except where it is better refused:
//
//   - a token above [MaxTokenLen] bytes or with more than [MaxPermissions] permissions;
//   - one whose header is above [MaxHeaderLen], with more than [MaxMembers] members in the header or the payload, 4096
//     values in one of them, permissions aside, or 127 levels of nesting, or with more than [MaxStars] stars;
//   - a time of more than 64 characters, and escapes that are half a character, wherever they stand;
//   - a "crit" header member, whatever it holds;
//   - a member that stands twice in the header or in the payload, known or not;
//   - "iat" later than now + [Leeway] (the reference ignores its value; zero and negative values pass here too);
//   - "nbf" later than now + [Leeway], if it is a JSON number (the reference ignores it; we do for another type).
//
// Tokens are read strictly: base64url is canonical and unpadded, the algorithm is the word "EdDSA", member names are
// case-sensitive, "aud" is a string and times are integers that never pass through a float.
//
// # Cost
//
// Whatever the token holds, the check costs hardly more than the signature: SHA-512 over the token and
// one curve operation, for each key that is tried. Sizes are looked at first, then the header, then the signature; the
// payload is parsed if that is good. One pass over the JSON takes no memory, and permissions are indexed, not compiled.
//
// # JOSE
//
// The JSON of key sets is decoded with go-jose's json package, which is case-sensitive and refuses duplicate members;
// that of tokens here, because peers choose what it holds. The envelope is three strings and one Ed25519 signature and
// is handled here: a general JOSE reader decodes base64 leniently, signs over the re-encoded text, and parses embedded
// keys and certificates before the signature is known to be good. Tests use go-jose as a second opinion in both
// directions.
package auth
