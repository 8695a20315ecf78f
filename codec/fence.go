package codec

import (
	"bytes"
	"strconv"
)

// Fence names a connection among those that a client makes one after the other, each when it has given up the one
// before. The broker carries out nothing of a connection once it knows one with the same ID and a higher number
// (docs/protocol/extensions.md#fence). On the wire it is the ID, a dot and the number.
type Fence struct {
	ID     string // random, at most 64 bytes
	Number uint64
}

// maxFenceID bounds what a broker keeps for a connection.
const maxFenceID = 64

// ParseFence reads the member of an auth. It reports false if there is none or it is not a fence, which means the same.
func ParseFence(b []byte) (f Fence, ok bool) {
	dot := bytes.LastIndexByte(b, '.')
	if dot < 1 || dot > maxFenceID {
		return f, false
	}
	n, err := strconv.ParseUint(string(b[dot+1:]), 10, 64)
	return Fence{string(b[:dot]), n}, err == nil
}
