package codec

import (
	"encoding/binary"
	"math"
)

const (
	// HeaderLen is the length of a frame's header in bytes.
	HeaderLen = 12
	// DefaultMaxFrame is the limit of a payload in bytes that both sides keep unless they are told otherwise. It is
	// inclusive and not negotiated (docs/protocol/wire.md#maximum-frame-size).
	DefaultMaxFrame = 16 << 20

	magic   = 0x464C5831 // "FLX1"
	version = 1
)

// Header is a frame's header; magic and version have one value each and are not kept.
type Header struct {
	Flags  Flags
	Length uint32 // of the payload, in bytes
}

// ParseHeader reads the header at the beginning of b. It fails with [ErrShortHeader], [ErrMagic] or [ErrVersion], in
// this order. The caller checks the length ([Header.CheckLength]) before it allocates anything by it, and the flags
// ([Flags.Check]) when the whole frame is there.
func ParseHeader(b []byte) (Header, error) {
	if len(b) < HeaderLen {
		return Header{}, ErrShortHeader
	}
	if m := binary.BigEndian.Uint32(b); m != magic {
		return Header{}, ErrMagic.with("magic %#08x in the frame header, want %#08x", m, uint32(magic))
	}
	if v := binary.BigEndian.Uint16(b[4:]); v != version {
		return Header{}, ErrVersion.with("version %d in the frame header, want %d", v, version)
	}
	return Header{Flags: Flags(binary.BigEndian.Uint16(b[6:])), Length: binary.BigEndian.Uint32(b[8:])}, nil
}

// CheckLength fails with [ErrFrameTooLarge] if the payload is longer than limit bytes.
func (h Header) CheckLength(limit int) error {
	if uint64(h.Length) > uint64(max(limit, 0)) {
		return ErrFrameTooLarge.with("frame length %d exceeds %d", h.Length, limit)
	}
	return nil
}

// AppendHeader appends the header of a frame whose payload has length bytes.
func AppendHeader(dst []byte, flags Flags, length int) []byte {
	if length < 0 || uint64(length) > math.MaxUint32 {
		panic("codec: frame length out of range")
	}
	dst = binary.BigEndian.AppendUint32(dst, magic)
	dst = binary.BigEndian.AppendUint16(dst, version)
	dst = binary.BigEndian.AppendUint16(dst, uint16(flags))
	return binary.BigEndian.AppendUint32(dst, uint32(length))
}

// putHeader writes a header over the first 12 bytes of b.
func putHeader(b []byte, flags Flags, length int) { AppendHeader(b[:0:HeaderLen], flags, length) }
