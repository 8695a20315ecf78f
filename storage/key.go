package storage

import (
	"encoding/binary"
	"fmt"
	"hash/fnv"
	"strings"
)

// Key names a log.
type Key struct {
	Tenant, Namespace, Stream string
	Shard                     uint32
}

// String returns the key for people: tenant/namespace/stream/shard.
func (k Key) String() string {
	return fmt.Sprintf("%s/%s/%s/%d", k.Tenant, k.Namespace, k.Stream, k.Shard)
}

// Dir returns the name of the log's directory. The names in it are for people and may be shortened; the hash tells keys
// apart.
func (k Key) Dir() string {
	h := fnv.New64a()
	var n [8]byte
	for _, s := range []string{k.Tenant, k.Namespace, k.Stream} {
		binary.BigEndian.PutUint64(n[:], uint64(len(s)))
		h.Write(n[:])
		h.Write([]byte(s))
	}
	binary.BigEndian.PutUint32(n[:4], k.Shard)
	h.Write(n[:4])
	return fmt.Sprintf("%s_%s_%s_%d-%016x", readable(k.Tenant), readable(k.Namespace), readable(k.Stream), k.Shard, h.Sum64())
}

// readable keeps at most 32 characters of s, and replaces those that file systems treat differently.
func readable(s string) string {
	var b strings.Builder
	n := 0
	for _, r := range s {
		if n == 32 {
			break
		}
		n++
		switch {
		case r >= 'a' && r <= 'z', r >= 'A' && r <= 'Z', r >= '0' && r <= '9', r == '-':
			b.WriteRune(r)
		default:
			b.WriteByte('_')
		}
	}
	if n == 0 {
		return "_"
	}
	return b.String()
}
