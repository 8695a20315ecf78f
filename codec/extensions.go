package codec

// Extensions is a set of extensions of the protocol: of those in the registry below, the ones that a peer offered or
// that both sides agreed on. The rules of negotiation are in docs/wire-extensions.md.
type Extensions uint32

// extension is an entry of the registry.
type extension struct {
	name string // in ext of auth and auth_ok
	set  Extensions
}

// registry holds every extension, in the order in which names are written. docs/wire-extensions.md lists the same.
var registry = []extension{}

// KnownExtensions returns all extensions of the registry: what a complete implementation offers.
func KnownExtensions() Extensions {
	var all Extensions
	for _, e := range registry {
		all |= e.set
	}
	return all
}

// Names returns the names of the extensions in the set, in the order of the registry.
func (e Extensions) Names() []string {
	names := []string{}
	for _, r := range registry {
		if e&r.set != 0 {
			names = append(names, r.name)
		}
	}
	return names
}

// extensionOf returns the extension of that name, or none.
func extensionOf(name []byte) Extensions {
	for _, r := range registry {
		if r.name == string(name) {
			return r.set
		}
	}
	return 0
}

// appendExtensions appends the set as a JSON array of names.
func appendExtensions(dst []byte, e Extensions) []byte {
	dst = append(dst, '[')
	first := true
	for _, r := range registry {
		if e&r.set == 0 {
			continue
		}
		if !first {
			dst = append(dst, ',')
		}
		first = false
		dst = appendString(dst, r.name)
	}
	return append(dst, ']')
}

// ExtensionType is the first byte of the payload of an extension frame.
type ExtensionType uint8

// CheckNegotiated is [Flags.Check] for a stream on which the given extensions were negotiated: with any, the extension
// bit alone is a layout too.
func (f Flags) CheckNegotiated(ext Extensions) error {
	if f == LayoutExtension && ext != 0 {
		return nil
	}
	return f.Check()
}

// ParseExtension reads the type of an extension frame and returns the rest of the payload. It fails with
// [ErrIncomplete]; whether the type is known, and belongs to an extension that was negotiated, is for the caller to
// check.
func ParseExtension(b []byte) (ExtensionType, []byte, error) {
	if len(b) == 0 {
		return 0, nil, ErrIncomplete.with("extension frame without a type")
	}
	return ExtensionType(b[0]), b[1:], nil
}
