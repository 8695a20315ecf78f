package flood

import (
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/sha256"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
)

// Sizes of an Initial packet (RFC 9000, section 17.2.2). Connection ids are as long as those of most clients.
const (
	datagramLen  = 1200
	idLen        = 8
	numberLen    = 4
	numberOffset = 1 + 4 + 1 + idLen + 1 + idLen + 1 + 2 // flags, version, both ids with their lengths, no token, length
	tagLen       = 16
)

// forge makes Initials of clients that will never be heard of again: each is well-formed, carries a whole ClientHello
// and has a connection id of its own, so that a server that takes it at its word does the work of a handshake. All
// carry the same ClientHello, which no server can tell.
type forge struct {
	source [idLen]byte
	frames []byte // CRYPTO and PADDING
}

func newForge(source [idLen]byte) (*forge, error) {
	hello, err := clientHello(source)
	if err != nil {
		return nil, fmt.Errorf("flood: making a ClientHello: %w", err)
	}
	frames := []byte{0x06, 0} // CRYPTO at offset 0
	frames = binary.BigEndian.AppendUint16(frames, 0x4000|uint16(len(hello)))
	frames = append(frames, hello...)
	room := datagramLen - numberOffset - numberLen - tagLen
	if len(frames) > room {
		return nil, fmt.Errorf("flood: a ClientHello of %d bytes does not fit into one datagram", len(hello))
	}
	return &forge{source: source, frames: append(frames, make([]byte, room-len(frames))...)}, nil
}

// clientHello is what a client that talks to the broker sends first.
func clientHello(source [idLen]byte) ([]byte, error) {
	c := tls.QUICClient(&tls.QUICConfig{TLSConfig: &tls.Config{
		ServerName: "localhost", MinVersion: tls.VersionTLS13,
		CurvePreferences: []tls.CurveID{tls.X25519}, // those of larger keys take two datagrams
	}})
	c.SetTransportParameters(append([]byte{0x0f, idLen}, source[:]...)) // initial_source_connection_id
	if err := c.Start(context.Background()); err != nil {
		return nil, err
	}
	defer func() { _ = c.Close() }()
	for e := c.NextEvent(); e.Kind != tls.QUICNoEvent; e = c.NextEvent() {
		if e.Kind == tls.QUICWriteData && e.Level == tls.QUICEncryptionLevelInitial {
			return append([]byte(nil), e.Data...), nil
		}
	}
	return nil, errors.New("TLS has nothing to say")
}

// initialSalt is that of QUIC version 1 (RFC 9001, section 5.2).
var initialSalt = []byte{
	0x38, 0x76, 0x2c, 0xf7, 0xf5, 0x59, 0x34, 0xb3, 0x4d, 0x17, 0x9a, 0xe6, 0xa4, 0xc8, 0x0c, 0xad, 0xcc, 0xbb, 0x7f, 0x0a,
}

// initial appends a datagram to dst, protected as RFC 9001, section 5, has it. destination is to be fresh for each.
func (f *forge) initial(dst []byte, destination [idLen]byte) ([]byte, error) {
	prk, err := hkdf.Extract(sha256.New, destination[:], initialSalt)
	if err != nil {
		return nil, err
	}
	secret, err := expandLabel(prk, "client in", sha256.Size)
	if err != nil {
		return nil, err
	}
	key, err := expandLabel(secret, "quic key", 16)
	if err != nil {
		return nil, err
	}
	iv, err := expandLabel(secret, "quic iv", 12)
	if err != nil {
		return nil, err
	}
	hp, err := expandLabel(secret, "quic hp", 16)
	if err != nil {
		return nil, err
	}
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, err
	}
	aead, err := cipher.NewGCM(block)
	if err != nil {
		return nil, err
	}
	mask, err := aes.NewCipher(hp)
	if err != nil {
		return nil, err
	}

	start := len(dst)
	dst = append(dst, 0xc0|numberLen-1, 0, 0, 0, 1, idLen)
	dst = append(append(dst, destination[:]...), idLen)
	dst = append(append(dst, f.source[:]...), 0)
	dst = binary.BigEndian.AppendUint16(dst, 0x4000|uint16(numberLen+len(f.frames)+tagLen))
	dst = append(dst, make([]byte, numberLen)...) // packet number 0: the nonce is the iv
	dst = aead.Seal(dst, iv, f.frames, dst[start:])

	packet := dst[start:]
	var bits [aes.BlockSize]byte
	mask.Encrypt(bits[:], packet[numberOffset+4:][:aes.BlockSize])
	packet[0] ^= bits[0] & 0x0f
	for i := range numberLen {
		packet[numberOffset+i] ^= bits[1+i]
	}
	return dst, nil
}

// expandLabel is HKDF-Expand-Label of TLS 1.3 without a context.
func expandLabel(secret []byte, label string, n int) ([]byte, error) {
	label = "tls13 " + label
	info := append([]byte{byte(n >> 8), byte(n), byte(len(label))}, label...)
	return hkdf.Expand(sha256.New, secret, string(append(info, 0)), n)
}
