package auth

import "fmt"

// MaxNameLen is the length in bytes of the longest valid name.
const MaxNameLen = 128

// NameError is the error of [ValidName] and [ValidTenant].
type NameError struct {
	// Name is what was refused, as it was given.
	Name string
	// Reserved is true if the name follows the grammar but is kept for another use.
	Reserved bool
}

// Error quotes the beginning of the name.
func (e *NameError) Error() string {
	if e.Reserved {
		return fmt.Sprintf("auth: name %.140q is reserved", e.Name)
	}
	return fmt.Sprintf("auth: invalid name %.140q: want a letter or digit and up to %d more of those, '.', '_' and '-'", e.Name, MaxNameLen-1)
}

// ValidName checks the name of a tenant, namespace, stream or cache: [A-Za-z0-9][A-Za-z0-9._-]{0,127}. The characters
// left out are those that would make a resource ambiguous ("/" and ":") or a pattern ("*"). It returns nil or a
// [*NameError]. Names are checked where they are created; what is not created is not found
// (docs/protocol/tokens.md#names).
func ValidName(name string) error {
	if len(name) == 0 || len(name) > MaxNameLen {
		return &NameError{Name: name}
	}
	for i := range len(name) {
		c := name[i]
		switch {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9':
		case i > 0 && (c == '.' || c == '_' || c == '-'):
		default:
			return &NameError{Name: name}
		}
	}
	return nil
}

// ValidTenant is [ValidName] for tenant ids, of which "snapshot" and "changes" are reserved: they would collide with
// routes of the control plane.
func ValidTenant(id string) error {
	if err := ValidName(id); err != nil {
		return err
	}
	if id == "snapshot" || id == "changes" {
		return &NameError{Name: id, Reserved: true}
	}
	return nil
}
