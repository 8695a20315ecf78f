package quicx

import (
	"errors"
	"io"
	"net"
	"os"
	"sync/atomic"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// failSends has the socket fail with errno, or work again if that is 0. It returns a counter of the attempts that
// failed.
func failSends(s *socket, errno unix.Errno) *atomic.Int64 {
	failed := new(atomic.Int64)
	s.txMu.Lock()
	defer s.txMu.Unlock()
	s.tx.call = s.tx.send
	if errno != 0 {
		s.tx.call = func(uintptr) bool {
			s.tx.errno = errno
			failed.Add(1)
			return true
		}
	}
	return failed
}

// TestSendFaultsAreLosses has either side's socket refuse to send for some packets: the connection lives, and all that
// was written arrives.
func TestSendFaultsAreLosses(t *testing.T) {
	for _, errno := range []unix.Errno{
		unix.ENOBUFS, unix.ENOMEM, unix.ENETUNREACH, unix.EHOSTUNREACH, unix.ENETDOWN, unix.EHOSTDOWN, unix.EPERM, unix.EACCES,
		unix.EINVAL, unix.ECONNREFUSED, unix.EADDRNOTAVAIL, unix.EPROTO,
	} {
		for _, noGSO := range []bool{false, true} {
			for _, side := range []string{"client", "server"} {
				t.Run(errno.Error()+"/"+side, func(t *testing.T) {
					checkLeaks(t)
					l, conf := listen(t, Config{Sockets: 1, DisableGSO: noGSO})
					client := dial(t, l, conf, Config{DisableGSO: noGSO})
					server := accept(t, l)
					from, to, sock := server, client, l.ends[0].sock
					if side == "client" {
						from, to, sock = client, server, client.sock
					}
					send, accepted := uniStream(t, from, to)
					if _, err := send.Write([]byte{0}); err != nil {
						t.Fatal(err)
					}
					recv := accepted()

					failed := failSends(sock, errno)
					data := pattern(20000, 5)
					if _, err := send.Write(data); err != nil {
						t.Fatal(err)
					}
					if err := send.Close(); err != nil {
						t.Fatal(err)
					}
					for failed.Load() == 0 { // quic-go sends on a goroutine of its own
						if err := from.Context().Err(); err != nil {
							t.Fatal(err)
						}
						_ = unix.Nanosleep(&unix.Timespec{Nsec: 1e6}, nil)
					}
					failSends(sock, 0)
					got, err := io.ReadAll(reader{recv})
					if err != nil || len(got) != len(data)+1 {
						t.Fatalf("%d bytes of %d, %v", len(got), len(data)+1, err)
					}
					if n := sock.faults.n.Load(); n == 0 {
						t.Error("nothing was counted")
					}
				})
			}
		}
	}
}

// TestSendFaultsOfTheSystem provokes refusals instead of injecting them.
func TestSendFaultsOfTheSystem(t *testing.T) {
	for _, gso := range []bool{true, false} {
		s := openSocket(t, "udp4", "127.0.0.1:0", Config{DisableGSO: !gso})
		elsewhere := &net.UDPAddr{IP: net.IPv4(192, 0, 2, 1), Port: 9} // no way leads there from a loopback address
		data := pattern(3000, 1)
		n, oobn, err := s.WriteMsgUDP(data, segmentCmsg(nil, 1200), elsewhere)
		if err != nil || n != len(data) || oobn == 0 && gso {
			t.Errorf("gso=%t: WriteMsgUDP = %d, %d, %v", gso, n, oobn, err)
		}
		if got := s.faults.n.Load(); got != 3 {
			t.Errorf("gso=%t: %d datagrams counted, want 3", gso, got)
		}
	}
}

// TestFinalSendErrors holds what quic-go has to know against what passes.
func TestFinalSendErrors(t *testing.T) {
	target := &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 9}
	for _, errno := range []unix.Errno{unix.EBADF, unix.ENOTSOCK, unix.EPIPE, unix.EMSGSIZE, unix.EIO} {
		s := openSocket(t, "udp4", "127.0.0.1:0", Config{})
		failSends(s, errno)
		_, _, err := s.WriteMsgUDP(pattern(2400, 1), segmentCmsg(nil, 1200), target)
		if sys, ok := errors.AsType[*os.SyscallError](err); !ok || !errors.Is(sys, errno) {
			t.Errorf("%v: got %v", errno, err)
		}
		if n := s.faults.n.Load(); n != 0 {
			t.Errorf("%v: counted as %d losses", errno, n)
		}
	}
	// EIO says that a device cannot split. Without anything to split it passes like others.
	s := openSocket(t, "udp4", "127.0.0.1:0", Config{})
	failSends(s, unix.EIO)
	if _, _, err := s.WriteMsgUDP(pattern(1200, 1), nil, target); err != nil {
		t.Errorf("EIO of one datagram: %v", err)
	}
	s.Close()
	if _, _, err := s.WriteMsgUDP(pattern(1200, 1), nil, target); !errors.Is(err, net.ErrClosed) {
		t.Errorf("closed: %v", err)
	}
}

// TestFirstSendMayBeRefused: a refusal of a moment by EPERM costs nothing.
func TestFirstSendMayBeRefused(t *testing.T) {
	recv := openSocket(t, "udp4", "127.0.0.1:0", Config{})
	s := openSocket(t, "udp4", "127.0.0.1:0", Config{})
	refused := false
	s.tx.call = func(fd uintptr) bool {
		if !refused {
			refused, s.tx.errno = true, syscall.EPERM
			return true
		}
		return s.tx.send(fd)
	}
	if _, _, err := s.WriteMsgUDP(pattern(1200, 1), nil, recv.LocalAddr().(*net.UDPAddr)); err != nil {
		t.Fatal(err)
	}
	if got := readDatagrams(t, recv, newMessages(1, 1452), 1); len(got[0].data) != 1200 {
		t.Errorf("%d bytes", len(got[0].data))
	}
	if n := s.faults.n.Load(); n != 0 || !refused {
		t.Errorf("refused %t, %d counted", refused, n)
	}
}
