package auth

import (
	"bytes"
	"errors"
	"hash/maphash"
	"math"
	"strconv"

	"github.com/felix-mq/felix/internal/jsonscan"
)

// Bounds on the JSON of a token, besides [MaxPermissions].
const (
	maxDepth  = 127  // levels of nesting
	maxValues = 4096 // values in a header or in a payload without its permissions, nested ones included
	maxNumber = 64   // characters of a time that is looked at
)

// object walks over the members of a JSON object: each costs the same, and the names take a fixed memory.
type object struct {
	text   []byte
	i      int
	value  jsonscan.Limits
	n      int
	hashes [MaxMembers]uint64
	names  [MaxMembers][]byte
}

// open moves to the first member of the object that text is.
func (o *object) open(text []byte) bool {
	o.text, o.value = text, jsonscan.Limits{Values: maxValues}
	o.i = jsonscan.Space(text, 0)
	if o.i == len(text) || text[o.i] != '{' {
		return false
	}
	o.i++
	return true
}

// next reads up to the value of the next member. It returns no name at the end of the object, and then ok is false if
// anything is wrong, a name that stands twice and a member too many included.
func (o *object) next() (name []byte, ok bool) {
	b := o.text
	i := jsonscan.Space(b, o.i)
	switch {
	case i == len(b):
		return nil, false
	case b[i] == '}':
		return nil, jsonscan.Space(b, i+1) == len(b)
	case o.n > 0 && b[i] != ',' || o.n == MaxMembers:
		return nil, false
	case o.n > 0:
		i = jsonscan.Space(b, i+1)
	}
	if i == len(b) || b[i] != '"' {
		return nil, false
	}
	end, escaped, fault := jsonscan.String(b, i)
	if fault != jsonscan.None {
		return nil, false
	}
	name = b[i+1 : end-1]
	if escaped {
		name = jsonscan.Unescape(make([]byte, 0, len(name)), name)
	}
	i = jsonscan.Space(b, end)
	if i == len(b) || b[i] != ':' {
		return nil, false
	}
	o.i = jsonscan.Space(b, i+1)
	hash := maphash.Bytes(hashSeed, name)
	for k, h := range o.hashes[:o.n] {
		if h == hash && bytes.Equal(o.names[k], name) {
			return nil, false
		}
	}
	o.hashes[o.n], o.names[o.n] = hash, name
	o.n++
	if name == nil {
		name = []byte{}
	}
	return name, true
}

// skip reads past the value and returns it.
func (o *object) skip(l *jsonscan.Limits) ([]byte, jsonscan.Fault) {
	start := o.i
	end, fault := jsonscan.Value(o.text, start, maxDepth-1, l)
	if fault != jsonscan.None {
		return nil, fault
	}
	o.i = end
	return o.text[start:end], jsonscan.None
}

// parseHeader checks the types that docs/protocol/tokens.md#format demands of the members of the protected header.
// Registered members may be null, unknown ones must be strings, and none but alg and kid has an effect: keys and
// addresses of keys in a header are never used.
func parseHeader(header []byte) (kid string, hasKID bool, err error) {
	var o object
	if !o.open(header) {
		return "", false, errHeader
	}
	good, eddsa, critical := true, false, false
	for {
		name, ok := o.next()
		if !ok {
			return "", false, errHeader
		}
		if name == nil {
			break
		}
		value, fault := o.skip(&o.value)
		if fault != jsonscan.None {
			return "", false, errHeader
		}
		null := value[0] == 'n'
		switch string(name) {
		case "alg":
			eddsa = equalString(value, algorithm)
		case "crit":
			critical = true
		case "kid":
			kid, hasKID = parseString(value)
			good = good && (hasKID || null)
		case "typ", "cty", "jku", "x5u", "x5t", "x5t#S256":
			good = good && (value[0] == '"' || null)
		case "jwk":
			good = good && (null || isObject(value))
		case "x5c":
			good = good && (null || isStrings(value))
		default:
			good = good && value[0] == '"'
		}
	}
	switch {
	case !eddsa:
		return "", false, errAlgorithm
	case critical:
		return "", false, errCritical
	case !good:
		return "", false, errHeader
	}
	return kid, hasKID, nil
}

// isObject reports whether the well-formed value is an object whose members differ.
func isObject(value []byte) bool {
	var o object
	if !o.open(value) {
		return false
	}
	for {
		name, ok := o.next()
		if !ok || name == nil {
			return ok
		}
		if _, fault := o.skip(&o.value); fault != jsonscan.None {
			return false
		}
	}
}

// isStrings reports whether the well-formed value is an array of strings and nulls.
func isStrings(value []byte) bool {
	good := value[0] == '['
	eachElement(value, func(e []byte) bool {
		good = e[0] == '"' || e[0] == 'n'
		return good
	})
	return good
}

// eachElement calls f with the elements of a well-formed value, none unless it is an array, until f returns false or
// an element is an array or an object, which is the last then.
func eachElement(value []byte, f func(e []byte) bool) {
	if value[0] != '[' {
		return
	}
	for i := jsonscan.Space(value, 1); value[i] != ']'; {
		l := jsonscan.Limits{Values: 1}
		end, fault := jsonscan.Value(value, i, 0, &l)
		if !f(value[i:max(end, i+1)]) || fault != jsonscan.None {
			return
		}
		if i = jsonscan.Space(value, end); value[i] == ',' {
			i = jsonscan.Space(value, i+1)
		}
	}
}

// claims are the values of a payload as they are written; nil if they are missing.
type claims struct {
	iss, aud, tid, sub, exp, iat, nbf, jti, perms []byte
	permissions                                   int // values in perms
}

// parse finds the claims in a payload and checks all of it as JSON.
func (c *claims) parse(payload []byte) error {
	var o object
	if !o.open(payload) {
		return errPayload
	}
	for {
		name, ok := o.next()
		if !ok {
			return errPayload
		}
		if name == nil {
			return nil
		}
		var into *[]byte
		switch string(name) {
		case "iss":
			into = &c.iss
		case "aud":
			into = &c.aud
		case "tid":
			into = &c.tid
		case "sub":
			into = &c.sub
		case "exp":
			into = &c.exp
		case "iat":
			into = &c.iat
		case "nbf":
			into = &c.nbf
		case "jti":
			into = &c.jti
		case "perms":
			l := jsonscan.Limits{Values: MaxPermissions + 1}
			value, fault := o.skip(&l)
			if fault == jsonscan.TooMany {
				return errPermissions
			}
			if fault != jsonscan.None {
				return errPayload
			}
			c.perms, c.permissions = value, MaxPermissions-l.Values
			continue
		}
		value, fault := o.skip(&o.value)
		if fault != jsonscan.None {
			return errPayload
		}
		if into != nil {
			*into = value
		}
	}
}

// parsePermissions reads the well-formed value of perms, of n values besides the array.
func parsePermissions(value []byte, n int) (*grants, error) {
	if len(value) == 0 || value[0] != '[' {
		return nil, errPermissions
	}
	g := new(grants)
	const shortest = len(`"ns.manage:",`)
	g.reserve(min(n, len(value)/shortest+1), len(value))
	var err error
	var scratch []byte
	eachElement(value, func(e []byte) bool {
		s := e[:0] // null is read as "", which has no colon
		switch {
		case e[0] == '"':
			if s = e[1 : len(e)-1]; bytes.IndexByte(s, '\\') >= 0 {
				scratch = jsonscan.Unescape(scratch[:0], s)
				s = scratch
			}
		case e[0] != 'n':
			err = errPermissions
			return false
		}
		name, pattern, ok := bytes.Cut(s, []byte{':'})
		action := -1
		if ok {
			action = actionIndex(name)
		}
		if action < 0 {
			if err == nil { // a wrong type further on counts more
				_, malformed := ParsePermission(string(s))
				err = &TokenError{ReasonPermission, malformed}
			}
			return true
		}
		if err == nil {
			g.add(action, pattern)
		}
		return true
	})
	if err == nil && g.stars > MaxStars {
		err = errPermissions
	}
	return g, err
}

// equalString reports whether the well-formed value is the string s.
func equalString(value []byte, s string) bool {
	if len(value) == len(s)+2 && value[0] == '"' && string(value[1:len(value)-1]) == s {
		return true // no s that is asked for has a backslash
	}
	if bytes.IndexByte(value, '\\') < 0 {
		return false
	}
	text, ok := parseString(value)
	return ok && text == s
}

// parseString reads a well-formed value that is a string. A missing value (nil) and null are none.
func parseString(value []byte) (string, bool) {
	if len(value) == 0 || value[0] != '"' {
		return "", false
	}
	s := value[1 : len(value)-1]
	if bytes.IndexByte(s, '\\') >= 0 {
		s = jsonscan.Unescape(make([]byte, 0, len(s)), s)
	}
	return string(s), true
}

// parseInt reads a JSON integer of 64 bits without a fraction, an exponent or a negative zero.
func parseInt(value []byte) (int64, bool) {
	text := bytes.TrimSpace(value)
	if len(text) > maxNumber {
		return 0, false
	}
	n, err := strconv.ParseInt(string(text), 10, 64)
	return n, err == nil && string(text) != "-0"
}

// parseNumber reads any JSON number; beyond the range of a float, and if it is too long to be a time, it yields an
// infinity.
func parseNumber(value []byte) (float64, bool) {
	text := bytes.TrimSpace(value)
	if len(text) == 0 || text[0] != '-' && (text[0] < '0' || text[0] > '9') {
		return 0, false
	}
	if len(text) > maxNumber {
		return math.Inf(1), true
	}
	f, err := strconv.ParseFloat(string(text), 64)
	return f, err == nil || errors.Is(err, strconv.ErrRange)
}
