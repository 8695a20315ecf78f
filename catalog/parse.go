package catalog

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"

	"github.com/felix-mq/felix/auth"
	"github.com/felix-mq/felix/internal/settings"
)

// Load reads a catalog file, and the files with keys that it names. The error reports every problem at once, each with
// the line that it is in.
func Load(name string) (*Catalog, error) {
	c, _, err := load(name, bounded(context.Background()))
	return c, err
}

// load returns the names of all files that it has read, too.
func load(name string, read func(string) ([]byte, error)) (*Catalog, []string, error) {
	p := parser{dir: filepath.Dir(name), read: read, files: []string{name}}
	text, err := read(name)
	if err != nil {
		return nil, p.files, fmt.Errorf("catalog: %w", err)
	}
	c, err := p.parse(name, text)
	if err != nil {
		return nil, p.files, err
	}
	return c, p.files, nil
}

// parser walks over a catalog file.
type parser struct {
	*settings.File
	dir   string // where files that it names are
	read  func(string) ([]byte, error)
	files []string // that it has read
}

func (p *parser) parse(name string, text []byte) (*Catalog, error) {
	var root *settings.Node
	p.File, root = settings.Parse(name, text)
	if err := p.Err(); err != nil {
		return nil, err
	}
	if root == nil { // such as a file that is just being written
		return nil, fmt.Errorf("catalog: %s is empty: an empty catalog is written \"tenants: {}\"", name)
	}
	c := &Catalog{Tenants: map[string]Tenant{}}
	found := false
	for _, m := range p.Members(root, "") {
		if m.Key != "tenants" {
			p.Unknown(m, "", []string{"tenants"})
			continue
		}
		found = true
		for _, m := range p.named(m, "", auth.ValidTenant) {
			c.Tenants[m.Key] = p.tenant(m)
		}
	}
	if !found {
		p.Problem(root, "tenants", errors.New("is missing"))
	}
	return c, p.Err()
}

// named returns the members of a mapping from names, of which those that are none are problems. What key names is
// inside of m.
func (p *parser) named(m settings.Member, in string, valid func(string) error) []settings.Member {
	key := settings.Join(in, m.Key)
	members := p.Members(m.Value, key)
	for _, m := range members {
		if err := valid(m.Key); err != nil {
			p.Problem(m.Name, settings.Join(key, m.Key), err)
		}
	}
	return members
}

func (p *parser) tenant(m settings.Member) (t Tenant) {
	key := "tenants." + m.Key
	keys := 0
	for _, m := range p.Members(m.Value, key) {
		switch m.Key {
		case "jwks":
			keys++
			t.Keys = p.inlineKeys(m.Value, key+".jwks")
		case "jwks_file":
			keys++
			t.Keys = p.keyFile(m.Value, key+".jwks_file")
		case "limits":
			if m.Value.Tag != "!!null" {
				p.Decode(m.Value, key+".limits", &t.Limits)
				if err := t.Limits.Validate(); err != nil {
					p.Problem(m.Value, key+".limits", err)
				}
			}
		case "namespaces":
			t.Namespaces = make(map[string]Namespace)
			for _, n := range p.named(m, key, auth.ValidName) {
				t.Namespaces[n.Key] = p.namespace(n, key+".namespaces."+n.Key)
			}
		default:
			p.Unknown(m, key, []string{"jwks", "jwks_file", "limits", "namespaces"})
		}
	}
	if keys != 1 {
		p.Problem(m.Name, key, errors.New("needs either jwks or jwks_file, with the keys that verify its tokens"))
	}
	return t
}

func (p *parser) namespace(m settings.Member, key string) (n Namespace) {
	for _, m := range p.Members(m.Value, key) {
		switch m.Key {
		case "streams":
			n.Streams = objects[Stream](p, m, key)
		case "caches":
			n.Caches = objects[Cache](p, m, key)
		default:
			p.Unknown(m, key, []string{"streams", "caches"})
		}
	}
	return n
}

// objects reads the streams or caches of a namespace. After the name of each come its settings, or nothing. in names
// what m stands in.
func objects[T any](p *parser, m settings.Member, in string) map[string]T {
	key := settings.Join(in, m.Key)
	all := make(map[string]T)
	for _, m := range p.named(m, in, auth.ValidName) {
		var one T
		if m.Value.Tag != "!!null" {
			p.Decode(m.Value, settings.Join(key, m.Key), &one)
			if v, ok := any(one).(interface{ Validate() error }); ok {
				if err := v.Validate(); err != nil {
					p.Problem(m.Value, settings.Join(key, m.Key), err)
				}
			}
		}
		all[m.Key] = one
	}
	return all
}

// inlineKeys reads a JWKS that stands in the file. Each of its keys must be one that verifies: it was written for this
// broker.
func (p *parser) inlineKeys(n *settings.Node, key string) (keys auth.KeySet) {
	for _, m := range p.Members(n, key) {
		if m.Key != "keys" {
			p.Unknown(m, key, []string{"keys"})
			continue
		}
		for i, entry := range m.Value.Content {
			var jwk map[string]any
			err := entry.Decode(&jwk)
			var doc []byte
			if err == nil {
				doc, err = json.Marshal(map[string]any{"keys": []any{jwk}})
			}
			var one auth.KeySet
			if err == nil {
				one, err = auth.ParseJWKS(doc)
			}
			if err != nil {
				p.Problem(entry, fmt.Sprintf("%s.keys[%d]", key, i), errors.New("is not a public Ed25519 key: want kty OKP, crv Ed25519 and x of 32 bytes in base64url, and no private part"))
			}
			keys = append(keys, one...)
		}
	}
	if len(keys) == 0 {
		p.Problem(n, key, errors.New("has no keys"))
	}
	return keys
}

// keyFile reads a JWKS document as other programs publish it, in which keys of other kinds may be
// (docs/protocol/tokens.md#keys).
func (p *parser) keyFile(n *settings.Node, key string) auth.KeySet {
	name := p.Text(n, key)
	if name == "" {
		return nil
	}
	if !filepath.IsAbs(name) {
		name = filepath.Join(p.dir, name)
	}
	p.files = append(p.files, name)
	text, err := p.read(name)
	var keys auth.KeySet
	if err == nil {
		keys, err = auth.ParseJWKS(text)
	}
	if err != nil {
		p.Problem(n, key, err)
	}
	return keys
}
