package auth

import (
	"bytes"
	"fmt"
	"strings"
	"time"
)

// Action is what a permission allows, for example [ActionStreamPublish]. No action implies another.
type Action string

// The actions, docs/protocol/tokens.md#permissions. Brokers ask for the last four only.
const (
	ActionRBACView             Action = "rbac.view"
	ActionRBACPolicyManage     Action = "rbac.policy.manage"
	ActionRBACAssignmentManage Action = "rbac.assignment.manage"
	ActionTenantManage         Action = "tenant.manage"
	ActionNamespaceManage      Action = "ns.manage"
	ActionStreamManage         Action = "stream.manage"
	ActionCacheManage          Action = "cache.manage"
	ActionStreamPublish        Action = "stream.publish"
	ActionStreamSubscribe      Action = "stream.subscribe"
	ActionCacheRead            Action = "cache.read"
	ActionCacheWrite           Action = "cache.write"
)

// actions are all of them.
var actions = [...]Action{
	ActionRBACView, ActionRBACPolicyManage, ActionRBACAssignmentManage, ActionTenantManage, ActionNamespaceManage,
	ActionStreamManage, ActionCacheManage, ActionStreamPublish, ActionStreamSubscribe, ActionCacheRead, ActionCacheWrite,
}

// actionIndex returns the position in actions, or -1.
func actionIndex[T Action | []byte](name T) int {
	for i, a := range actions {
		if string(name) == string(a) {
			return i
		}
	}
	return -1
}

// Known reports whether a is one of the actions above.
func (a Action) Known() bool { return actionIndex(a) >= 0 }

// Kind is the first part of a resource: what its name is the name of.
type Kind string

// The kinds of resource that brokers serve.
const (
	KindStream Kind = "stream"
	KindCache  Kind = "cache"
)

// Permission allows one action on the resources that match a pattern.
//
// A resource is written KIND:TENANT/NAMESPACE/NAME. In the pattern, * stands for any run of bytes, the empty run, "/"
// and ":" included, and every other byte for itself; the whole resource must match
// (docs/protocol/tokens.md#permissions).
type Permission struct {
	Action  Action
	Pattern string
}

// String returns the form that [ParsePermission] reads.
func (p Permission) String() string { return string(p.Action) + ":" + p.Pattern }

// ParsePermission reads ACTION:PATTERN, split at the first colon. Any pattern is taken. The error matches
// [ErrPermission] if there is no colon or the action is unknown.
func ParsePermission(s string) (Permission, error) {
	action, pattern, ok := strings.Cut(s, ":")
	if !ok {
		return Permission{}, fmt.Errorf("%w: no colon in %.80q", ErrPermission, s)
	}
	if !Action(action).Known() {
		return Permission{}, fmt.Errorf("%w: unknown action %.80q", ErrPermission, action)
	}
	return Permission{Action: Action(action), Pattern: pattern}, nil
}

// Identity is the bearer of a verified token. It does not change and may be used from many goroutines. The zero
// value is allowed nothing.
type Identity struct {
	// Tenant is the tenant the token is for.
	Tenant string
	// Subject is the principal, uninterpreted.
	Subject string
	// Expires is the token's expiry, without [Leeway], in UTC; times past the year 9999 are cut to its end.
	// [Verifier.Verify] has checked it; code that keeps an identity for long may check it again.
	Expires time.Time
	// Key is the fingerprint of the key that verified the token. An owner of identities looks it up in the tenant's
	// current keys ([KeySet.Has]): if it is not there, the key has been removed, and so has the trust in the identity.
	Key Fingerprint

	grants *grants // nil: none
}

// Size returns about how many bytes of memory the identity holds. A token of [MaxTokenLen] can make one of 150 KiB.
func (id *Identity) Size() int { return len(id.Tenant) + len(id.Subject) + id.grants.size() }

// maxStackResource fits the longest resource whose three names are valid ([ValidName]).
const maxStackResource = 400

// Allowed reports whether the identity may do action on the resource kind:tenant/namespace/name.
//
// A tenant other than the identity's own is never allowed, however wide the pattern. Allowed keeps none of its
// arguments, and allocates only for a resource of more than 400 bytes, which no valid names make. Literal patterns, and
// those whose only star comes last, are looked up in a time that is linear in the resource; the others are tried, which
// the stars of a token bound ([MaxStars]). Rules: docs/protocol/tokens.md#permissions.
func (id *Identity) Allowed(action Action, kind Kind, tenant, namespace, name []byte) bool {
	if string(tenant) != id.Tenant {
		return false
	}
	known := actionIndex(action)
	if id.grants == nil || known < 0 {
		return false
	}
	var stack [maxStackResource]byte
	resource := append(stack[:0], kind...)
	resource = append(resource, ':')
	resource = append(resource, tenant...)
	resource = append(resource, '/')
	resource = append(resource, namespace...)
	resource = append(resource, '/')
	resource = append(resource, name...)
	return id.grants.allows(known, resource)
}

// glob reports whether value matches pattern as a whole. The text between two stars may be taken where it is found
// first: whatever a later place would leave for the rest of the pattern, the first leaves too. So there is nothing to
// go back to, and the time is linear for every pattern.
func glob(pattern, value []byte) bool {
	star := bytes.IndexByte(pattern, '*')
	if star < 0 {
		return bytes.Equal(pattern, value)
	}
	if !bytes.HasPrefix(value, pattern[:star]) {
		return false
	}
	value, pattern = value[star:], pattern[star+1:]
	for {
		star = bytes.IndexByte(pattern, '*')
		if star < 0 {
			return bytes.HasSuffix(value, pattern)
		}
		at := bytes.Index(value, pattern[:star])
		if at < 0 {
			return false
		}
		value, pattern = value[at+star:], pattern[star+1:]
	}
}
