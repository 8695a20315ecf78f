package main

import (
	"net"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// readSystem reads what only the system knows, and tries what it says.
func (m *machine) readSystem() {
	m.gso, m.gro = tryOffload()
	m.rmem, m.wmem = readInt("/proc/sys/net/core/rmem_max"), readInt("/proc/sys/net/core/wmem_max")
	var limit unix.Rlimit
	if unix.Getrlimit(unix.RLIMIT_NOFILE, &limit) == nil {
		m.files = limit.Max // Go raises the soft limit to it at start
	}
	var tx unix.Timex
	if state, err := unix.Adjtimex(&tx); err == nil {
		m.clock = clockSynchronized
		if state == unix.TIME_ERROR || tx.Status&unix.STA_UNSYNC != 0 {
			m.clock = clockFree
		}
	}
	var name unix.Utsname
	if unix.Uname(&name) == nil {
		m.kernel = unix.ByteSliceToString(name.Sysname[:]) + " " + unix.ByteSliceToString(name.Release[:])
	}
}

// tryOffload sends a message that the kernel has to split into two datagrams, on loopback, and looks whether it comes
// joined.
func tryOffload() (gso, gro bool) {
	const segment = 1000
	receiver, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		return false, false
	}
	defer func() { _ = receiver.Close() }()
	sender, err := net.DialUDP("udp4", nil, receiver.LocalAddr().(*net.UDPAddr)) //nolint:forcetypeassert // it is one
	if err != nil {
		return false, false
	}
	defer func() { _ = sender.Close() }()
	gro = setOption(receiver, unix.UDP_GRO, 1)
	gso = setOption(sender, unix.UDP_SEGMENT, segment)
	if n, err := sender.Write(make([]byte, 2*segment)); err != nil || n != 2*segment {
		return false, false
	}
	_ = receiver.SetReadDeadline(time.Now().Add(time.Second)) // cannot fail on an open socket
	n, err := receiver.Read(make([]byte, 4*segment))
	return gso && err == nil, gro && n == 2*segment
}

// setOption reports whether the kernel has accepted an option of UDP.
func setOption(conn *net.UDPConn, option, value int) (ok bool) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return false
	}
	err = raw.Control(func(fd uintptr) { ok = unix.SetsockoptInt(int(fd), unix.IPPROTO_UDP, option, value) == nil })
	return ok && err == nil
}

// readInt returns the number in a file, or 0.
func readInt(file string) int {
	text, err := os.ReadFile(file)
	if err != nil {
		return 0
	}
	n, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		return 0
	}
	return n
}
