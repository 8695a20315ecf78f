package quicx

import (
	"os"
	"sync"
)

// SocketInfo says what a UDP socket was given by the operating system.
type SocketInfo struct {
	// Bytes of kernel memory asked for and granted for datagrams in each direction. Granted is 0 where the system does
	// not tell. Less than asked usually means that a system-wide limit is lower: net.core.rmem_max and wmem_max on
	// Linux.
	SendBufferAsked, SendBufferGranted int
	RecvBufferAsked, RecvBufferGranted int

	// GRO: the kernel joins received datagrams, so that one system call brings many.
	GRO bool
	// GSO: the kernel splits what is sent, so that one system call sends many datagrams.
	GSO bool

	// Shared says why a listener has one socket although several were asked for, or is nil: a kernel that cannot choose
	// the socket of a datagram by its connection.
	Shared error
}

// quietBuffers keeps quic-go from printing its own warning about socket buffers to the standard logger: what was
// granted is in [SocketInfo], and whether and where to say it is up to the program. An environment variable is the only
// switch that quic-go has for it.
var quietBuffers = sync.OnceFunc(func() {
	const name = "QUIC_GO_DISABLE_RECEIVE_BUFFER_WARNING"
	if _, set := os.LookupEnv(name); !set {
		_ = os.Setenv(name, "true") // cannot fail for a valid name; otherwise there is one line of log too many
	}
})
