package catalog

import (
	"encoding/base64"
	"os"
	"path/filepath"
	"reflect"

	"go.yaml.in/yaml/v3"
)

// Marshal returns a catalog as a file that [Load] reads.
func Marshal(c *Catalog) ([]byte, error) {
	type key struct {
		Type   string `yaml:"kty"`
		Curve  string `yaml:"crv"`
		ID     string `yaml:"kid"`
		Public string `yaml:"x"`
	}
	type stream struct {
		Overflow     string `yaml:"overflow,omitempty"`
		QueueBatches int    `yaml:"queue_batches,omitempty"`
		QueueBytes   int    `yaml:"queue_bytes,omitempty"`
		ReplayBytes  int    `yaml:"replay_bytes,omitempty"`

		Durable         bool   `yaml:"durable,omitempty"`
		Ack             string `yaml:"ack,omitempty"`
		RetentionBytes  int64  `yaml:"retention_bytes,omitempty"`
		RetentionAge    string `yaml:"retention_age,omitempty"`
		RetentionEvents int64  `yaml:"retention_events,omitempty"`
	}
	type namespace struct {
		Streams map[string]stream `yaml:"streams,omitempty"`
		Caches  map[string]Cache  `yaml:"caches,omitempty"`
	}
	type tenant struct {
		JWKS       map[string][]key     `yaml:"jwks"`
		Limits     map[string]int64     `yaml:"limits,omitempty"`
		Namespaces map[string]namespace `yaml:"namespaces"`
	}
	tenants := make(map[string]tenant)
	for name, t := range c.Tenants {
		out := tenant{JWKS: make(map[string][]key), Limits: make(map[string]int64), Namespaces: make(map[string]namespace)}
		limits := reflect.ValueOf(t.Limits)
		for i := range limits.NumField() {
			if n, ok := reflect.TypeAssert[*int64](limits.Field(i)); ok && n != nil {
				out.Limits[limits.Type().Field(i).Tag.Get("yaml")] = *n
			}
		}
		for _, k := range t.Keys {
			out.JWKS["keys"] = append(out.JWKS["keys"], key{"OKP", "Ed25519", k.ID, base64.RawURLEncoding.EncodeToString(k.Public)})
		}
		for name, n := range t.Namespaces {
			streams := make(map[string]stream)
			for name, s := range n.Streams {
				o := stream{
					QueueBatches: s.QueueBatches, QueueBytes: s.QueueBytes, ReplayBytes: s.ReplayBytes,
					Durable: s.Durable, RetentionBytes: s.RetentionBytes, RetentionEvents: s.RetentionEvents,
				}
				if s.RetentionAge != 0 {
					o.RetentionAge = s.RetentionAge.String()
				}
				if s.Ack != nil {
					o.Ack = s.Ack.String()
				}
				if s.Overflow != nil {
					o.Overflow = s.Overflow.String()
				}
				streams[name] = o
			}
			out.Namespaces[name] = namespace{streams, n.Caches}
		}
		tenants[name] = out
	}
	return yaml.Marshal(map[string]any{"tenants": tenants})
}

// Write replaces a file by a catalog, in one step: a reader sees the old one or the new one.
func Write(name string, c *Catalog) error {
	text, err := Marshal(c)
	if err != nil {
		return err
	}
	tmp, err := os.CreateTemp(filepath.Dir(name), ".catalog-*")
	if err != nil {
		return err
	}
	defer func() { _ = os.Remove(tmp.Name()) }() // after an error
	_, err = tmp.Write(text)
	if e := tmp.Close(); err == nil {
		err = e
	}
	if err == nil {
		err = os.Chmod(tmp.Name(), 0o644) // it holds no secrets
	}
	if err == nil {
		err = os.Rename(tmp.Name(), name)
	}
	return err
}
