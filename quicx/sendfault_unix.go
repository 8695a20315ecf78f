//go:build !windows

package quicx

import "syscall"

// final reports whether a later attempt cannot succeed either, because the socket is gone, or whether quic-go has to
// know: it takes EMSGSIZE for a loss too, but finds the size of its first packets by it.
func final(errno syscall.Errno) bool {
	switch errno {
	case syscall.EBADF, syscall.ENOTSOCK, syscall.EPIPE, syscall.EFAULT, syscall.EMSGSIZE:
		return true
	default:
		return false
	}
}

// refusesSegments reports whether a network device cannot split what is sent. quic-go then stops asking for it.
func refusesSegments(errno syscall.Errno) bool { return errno == syscall.EIO }
