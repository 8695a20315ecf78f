// Package quicx carries felix frames over QUIC. It is the only importer of quic-go.
//
// It owns what is the same for every user of the transport: UDP sockets that receive many datagrams per system call,
// the TLS rules of the protocol (TLS 1.3 and never ALPN: docs/protocol/session.md#tls), flow control windows that
// cannot starve each other, one mapping of quic-go's errors to errors that callers can test for, a reader that
// cuts frames out of counted buffers without copying them, and a writer that turns many small frames into one write.
//
// What a frame means is left to others: this package looks at the 12 bytes of a header and no further.
//
// Begin at [Listen] and [Dial], which give a [Conn], and at [NewFrameReader] and [NewFrameWriter], which sit on the two
// directions of a [Stream].
package quicx
