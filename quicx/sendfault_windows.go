package quicx

import (
	"syscall"

	"golang.org/x/sys/windows"
)

// final reports whether a later attempt cannot succeed either, because the socket is gone, or whether quic-go has to
// know: it takes WSAEMSGSIZE for a loss too, but finds the size of its first packets by it.
func final(errno syscall.Errno) bool {
	switch errno {
	case windows.WSAEBADF, windows.WSAENOTSOCK, windows.WSAESHUTDOWN, windows.WSAEFAULT, windows.WSAEMSGSIZE:
		return true
	default:
		return false
	}
}

func refusesSegments(syscall.Errno) bool { return false }
