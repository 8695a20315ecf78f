package quicx

import (
	"encoding/binary"
	"net"
	"os"
	"runtime"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"

	"github.com/quic-go/quic-go"
	"golang.org/x/net/ipv4"
	"golang.org/x/sys/unix"
)

const (
	// Four buffers of the largest UDP payload are enough: one alone costs 2 % of throughput, sixteen bring nothing.
	groMessages = 4
	groSize     = 64 << 10

	// Without GRO each message is one datagram. quic-go never sends more than 1452 bytes and cannot use more.
	plainMessages = 8
	plainSize     = 2 << 10

	// Enough for every control message that may come with a datagram: segment size, TOS or traffic class, and packet
	// info of either address family (both, on a dual-stack socket).
	controlSize = 256

	// maxPeers bounds the cache of peer addresses of a socket. An entry is about 150 bytes.
	maxPeers = 4096
)

// socket is the UDP socket below a quic-go transport, which finds ReadBatch and WriteMsgUDP by their names.
//
// It differs from a plain [net.UDPConn] in two ways. With UDP_GRO the kernel hands over up to 64 KiB of joined
// datagrams per message, which are cut up again here: ×1.4 to ×1.9 in throughput. And system calls are made raw and
// non-blocking: an ordinary one from a process that was idle wakes the runtime's monitor thread, which costs more than
// the call. Raw calls never block (MSG_DONTWAIT); on EAGAIN the goroutine parks in the runtime's poller. They run
// inside [syscall.RawConn], which keeps the descriptor open for their duration, so that Close may come at any time.
//
//	kernel ──recvmmsg──▶ rx: ≤ 4 messages of joined datagrams ──cut, copied──▶ quic-go's packet buffers
//
// The methods of the embedded connection that read are not for use: they would return joined datagrams.
type socket struct {
	*net.UDPConn
	raw   syscall.RawConn
	inet6 bool // address family, constant
	noGSO bool // constant
	limit int  // largest datagram that is sent, constant
	info  SocketInfo

	dropped atomic.Uint64 // by the kernel, when it was last asked

	only atomic.Pointer[backlog] // of the one connection that the socket was made for, once there is one; owned as rx is

	rx receiver // owned by the goroutine in ReadBatch

	faults sendFaults

	txMu sync.Mutex
	tx   sender // guarded by txMu
}

var _ quic.OOBCapablePacketConn = (*socket)(nil)

// mmsghdr is struct mmsghdr of recvmmsg(2).
type mmsghdr struct {
	hdr unix.Msghdr
	n   uint32
}

func newSocket(conn *net.UDPConn, cfg Config) (*socket, error) {
	quietBuffers()
	raw, err := conn.SyscallConn()
	if err != nil {
		return nil, err
	}
	s := &socket{UDPConn: conn, raw: raw, noGSO: cfg.DisableGSO, limit: cfg.MaxPacketSize}
	s.info.SendBufferAsked, s.info.RecvBufferAsked = cfg.SendBuffer, cfg.RecvBuffer

	var domain int
	var domainErr error
	if err := raw.Control(func(fd uintptr) {
		domain, domainErr = unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_DOMAIN)
		if !cfg.DisableGRO {
			s.info.GRO = unix.SetsockoptInt(int(fd), unix.IPPROTO_UDP, unix.UDP_GRO, 1) == nil
		}
		if !cfg.DisableGSO {
			_, err := unix.GetsockoptInt(int(fd), unix.IPPROTO_UDP, unix.UDP_SEGMENT)
			s.info.GSO = err == nil
		}
	}); err != nil {
		return nil, err
	}
	if domainErr != nil {
		return nil, os.NewSyscallError("getsockopt", domainErr)
	}
	s.inet6 = domain == unix.AF_INET6
	s.tx.init()
	s.rx.init(s.info.GRO)
	s.rx.spin = cfg.Spin
	return s, s.setBuffers()
}

// setBuffers asks for the configured buffers and records what was granted. Privileged processes get them whatever the
// system-wide limit is.
func (s *socket) setBuffers() error {
	return s.raw.Control(func(fd uintptr) {
		s.info.RecvBufferGranted = setBuffer(int(fd), unix.SO_RCVBUF, unix.SO_RCVBUFFORCE, s.info.RecvBufferAsked)
		s.info.SendBufferGranted = setBuffer(int(fd), unix.SO_SNDBUF, unix.SO_SNDBUFFORCE, s.info.SendBufferAsked)
	})
}

func setBuffer(fd, option, force, size int) (granted int) {
	if unix.SetsockoptInt(fd, unix.SOL_SOCKET, force, size) != nil {
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, option, size) // what came of it is asked for below
	}
	granted, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, option)
	if err != nil {
		return 0
	}
	return granted / 2 // the kernel doubles what it is asked for, to allow for bookkeeping
}

// serves says that the socket has one connection, which has received so many datagrams.
func (s *socket) serves(received func() uint64) {
	s.only.Store(&backlog{received: received, last: received()})
}

// drops returns how many datagrams the kernel has dropped for lack of space. A closed socket returns the last value.
func (s *socket) drops() uint64 {
	_ = s.raw.Control(func(fd uintptr) {
		var info [unix.SK_MEMINFO_VARS]uint32
		size := uint32(unsafe.Sizeof(info))
		if _, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, fd, unix.SOL_SOCKET, unix.SO_MEMINFO,
			uintptr(unsafe.Pointer(&info)), uintptr(unsafe.Pointer(&size)), 0); errno == 0 {
			s.dropped.Store(uint64(info[unix.SK_MEMINFO_DROPS]))
		}
	})
	return s.dropped.Load()
}

// receiver holds the messages of one recvmmsg call while their datagrams are handed out.
type receiver struct {
	hdrs    []mmsghdr
	iovs    []unix.Iovec
	names   []unix.RawSockaddrInet6 // large enough for both families
	control [][]byte
	bufs    [][]byte

	call  func(fd uintptr) bool // recv, bound once
	errno syscall.Errno         // result of the last call

	spin   time.Duration // how long to poll before parking
	idle   int           // polls in a row that were in vain
	handed int           // datagrams handed out since others had a chance to run

	count int // messages of the last call
	next  int // the message that datagrams are being cut from; next == count: none left
	// About message next:
	off     int // bytes handed out
	size    int // bytes in total
	segment int // bytes of each datagram but the last
	oob     []byte
	addr    *net.UDPAddr

	// quic-go wants a net.Addr with each datagram; one per peer instead of one per datagram.
	peers    map[peer]*net.UDPAddr
	lastPeer peer
	lastAddr *net.UDPAddr
}

// peer is the source of a datagram. IPv4 addresses are in their IPv6-mapped form.
type peer struct {
	ip   [16]byte
	zone uint32
	port uint16
}

func (r *receiver) init(gro bool) {
	messages, size := plainMessages, plainSize
	if gro {
		messages, size = groMessages, groSize
	}
	r.call = r.recv
	r.peers = make(map[peer]*net.UDPAddr)
	r.hdrs = make([]mmsghdr, messages)
	r.iovs = make([]unix.Iovec, messages)
	r.names = make([]unix.RawSockaddrInet6, messages)
	r.control = make([][]byte, messages)
	r.bufs = make([][]byte, messages)
	for i := range messages {
		r.control[i] = make([]byte, controlSize)
		r.bufs[i] = make([]byte, size)
		r.iovs[i].Base = &r.bufs[i][0]
		r.iovs[i].SetLen(size)
		h := &r.hdrs[i].hdr
		h.Name = (*byte)(unsafe.Pointer(&r.names[i]))
		h.Iov = &r.iovs[i]
		h.SetIovlen(1)
		h.Control = &r.control[i][0]
	}
}

// recv is called with the descriptor, and again when it has become readable.
func (r *receiver) recv(fd uintptr) bool {
	if r.try(fd) {
		return true
	}
	if r.spin > 0 && r.poll(fd) {
		return true
	}
	return false
}

// yieldAfter is after how many datagrams others run before the next call. quic-go queues 256 for a connection and drops
// what comes on top: one call brings up to 180, and the connection may wait for the very processor that receives.
const yieldAfter = 64

// spinning says that a socket of this process polls: a second one would take the processor that the first one's work
// needs.
var spinning atomic.Bool

// maxIdlePolls is how many polls may be in vain before a socket polls only now and then.
const (
	maxIdlePolls  = 8
	idlePollEvery = 16
)

// poll tries again for a while. A socket on which nothing comes stops polling after a few attempts, and tries again
// with every sixteenth park, or when something came soon.
func (r *receiver) poll(fd uintptr) bool {
	if r.idle >= maxIdlePolls {
		if r.idle++; (r.idle-maxIdlePolls)%idlePollEvery != 0 {
			return false
		}
	}
	if !spinning.CompareAndSwap(false, true) {
		return false
	}
	defer spinning.Store(false)
	for start := time.Now(); time.Since(start) < r.spin; {
		runtime.Gosched() // what is runnable goes first
		if r.try(fd) {
			r.idle = 0
			return true
		}
		// And what else could run on this processor, such as the peer that is waited for: polling must not keep it from
		// that.
		_, _, _ = unix.RawSyscall(unix.SYS_SCHED_YIELD, 0, 0, 0)
	}
	r.idle++
	return false
}

// try receives what is there, or reports that nothing is.
func (r *receiver) try(fd uintptr) bool {
	for {
		for i := range r.hdrs { // the kernel overwrites these
			h := &r.hdrs[i].hdr
			h.Namelen = unix.SizeofSockaddrInet6
			h.SetControllen(controlSize)
		}
		n, _, errno := unix.RawSyscall6(unix.SYS_RECVMMSG, fd,
			uintptr(unsafe.Pointer(&r.hdrs[0])), uintptr(len(r.hdrs)), unix.MSG_DONTWAIT, 0, 0)
		switch errno {
		case unix.EINTR:
			continue
		case unix.EAGAIN:
			return false
		default:
			r.count, r.errno = int(n), errno
			return true
		}
	}
}

// ReadBatch fills ms with received datagrams, one each, and returns how many. It blocks while there are none, until the
// socket is closed or its read deadline passes. Datagrams larger than their buffer are cut. One goroutine may call it.
func (s *socket) ReadBatch(ms []ipv4.Message, _ int) (n int, err error) {
	r := &s.rx
	for n == 0 {
		if r.next == r.count {
			if err := s.receive(); err != nil {
				return 0, err
			}
		}
		n = s.cut(ms)
	}
	return n, nil
}

// receive makes one call, which brings at least one message, or fails.
func (s *socket) receive() error {
	r := &s.rx
	r.count, r.next = 0, 0
	if r.handed >= yieldAfter {
		r.handed = 0
		runtime.Gosched()
	}
	if b := s.only.Load(); b != nil {
		b.wait()
	}
	err := s.raw.Read(r.call)
	if err == nil && r.errno != 0 {
		r.count = 0
		err = s.opError("read", "recvmmsg", nil, r.errno)
	}
	if err == nil {
		r.open()
	}
	return err
}

// cut fills ms with datagrams of the received messages.
func (s *socket) cut(ms []ipv4.Message) (n int) {
	r := &s.rx
	for n < len(ms) && r.next < r.count {
		datagram := r.bufs[r.next][r.off:min(r.off+r.segment, r.size)]
		m := &ms[n]
		m.N = copy(m.Buffers[0], datagram)
		m.NN = 0
		if len(r.oob) <= len(m.OOB) { // half a control message would be an error to quic-go, and end the transport
			m.NN = copy(m.OOB, r.oob)
		}
		m.Flags = 0
		m.Addr = r.addr
		n++
		r.advance(len(datagram))
	}
	r.handed += n
	if b := s.only.Load(); b != nil {
		b.given += n
	}
	return n
}

// advance moves past a datagram of message next.
func (r *receiver) advance(n int) {
	r.off += n
	if r.off >= r.size {
		r.next++
		r.open()
	}
}

// open begins to hand out message next, if there is one.
func (r *receiver) open() {
	if r.next == r.count {
		return
	}
	m := &r.hdrs[r.next]
	r.off, r.size = 0, int(m.n)
	r.oob, r.segment = cutSegmentSize(r.control[r.next][:m.hdr.Controllen], unix.UDP_GRO)
	if r.segment <= 0 { // a single datagram
		r.segment = r.size
	}
	r.addr = r.address(&r.names[r.next])
}

// address returns the address that the kernel wrote to sa.
func (r *receiver) address(sa *unix.RawSockaddrInet6) *net.UDPAddr {
	var p peer
	if sa.Family == unix.AF_INET {
		sa4 := (*unix.RawSockaddrInet4)(unsafe.Pointer(sa))
		p.ip[10], p.ip[11] = 0xff, 0xff
		copy(p.ip[12:], sa4.Addr[:])
	} else {
		p.ip = sa.Addr
		p.zone = sa.Scope_id
	}
	p.port = networkOrder(sa.Port) // at the same place in both families
	if p == r.lastPeer && r.lastAddr != nil {
		return r.lastAddr
	}
	addr := r.peers[p]
	if addr == nil {
		addr = &net.UDPAddr{IP: append(net.IP(nil), p.ip[:]...), Port: int(p.port)}
		if ip4 := addr.IP.To4(); ip4 != nil {
			addr.IP = ip4
		}
		if p.zone != 0 {
			addr.Zone = strconv.FormatUint(uint64(p.zone), 10)
		}
		if len(r.peers) == maxPeers {
			clear(r.peers) // a cache: those who are still there come back at once
		}
		r.peers[p] = addr
	}
	r.lastPeer, r.lastAddr = p, addr
	return addr
}

// sender holds the arguments of one sendmsg call. They live here because a system call needs stable addresses.
type sender struct {
	hdr     unix.Msghdr
	iov     unix.Iovec
	name    unix.RawSockaddrInet6 // large enough for both families
	control [controlSize]byte

	call  func(fd uintptr) bool // send, bound once
	errno syscall.Errno         // result of the last call
}

func (t *sender) init() {
	t.call = t.send
	t.hdr.Name = (*byte)(unsafe.Pointer(&t.name))
	t.hdr.Iov = &t.iov
	t.hdr.SetIovlen(1)
}

// send is called with the descriptor, and again when it has become writable.
func (t *sender) send(fd uintptr) bool {
	for {
		_, _, errno := unix.RawSyscall(unix.SYS_SENDMSG, fd,
			uintptr(unsafe.Pointer(&t.hdr)), unix.MSG_DONTWAIT)
		switch errno {
		case unix.EINTR:
			continue
		case unix.EAGAIN:
			return false
		default:
			t.errno = errno
			return true
		}
	}
}

// WriteMsgUDP sends b to addr, as several datagrams if the control messages in oob give a segment size. It blocks while
// the socket's buffer is full. What the system refuses for the moment counts as lost on the way. Other errors of the
// system come as [*net.OpError] around [*os.SyscallError], which quic-go looks into. It may be called from many
// goroutines.
func (s *socket) WriteMsgUDP(b, oob []byte, addr *net.UDPAddr) (n, oobn int, err error) {
	if tooLarge(s.limit, len(b)) && segmentSize(oob) == 0 {
		return len(b), len(oob), nil
	}
	s.txMu.Lock()
	defer s.txMu.Unlock()
	if len(b) == 0 || !s.tx.setName(s.inet6, addr) {
		// Unusual or wrong: the standard library knows what to do.
		if n, oobn, err = s.UDPConn.WriteMsgUDP(b, oob, addr); err != nil {
			if err = s.faults.absorbError(err, segmentSize(oob) > 0, 1); err == nil {
				n, oobn = len(b), len(oob)
			}
		}
		return n, oobn, err
	}
	segment := len(b)
	if s.noGSO && len(oob) <= len(s.tx.control) {
		oob, segment = cutSegmentSize(s.tx.control[:copy(s.tx.control[:], oob)], unix.UDP_SEGMENT)
		if segment <= 0 {
			segment = len(b)
		}
	}
	for n < len(b) {
		part := b[n:min(n+segment, len(b))]
		if err := s.sendLocked(part, oob, addr); err != nil {
			return n, 0, err
		}
		n += len(part)
	}
	return n, len(oob), nil
}

func (s *socket) sendLocked(b, oob []byte, addr *net.UDPAddr) error {
	t := &s.tx
	t.iov.Base = &b[0]
	t.iov.SetLen(len(b))
	t.hdr.Control = nil
	if len(oob) > 0 {
		t.hdr.Control = &oob[0]
	}
	t.hdr.SetControllen(len(oob))
	err := s.raw.Write(t.call)
	if err == nil && t.errno == unix.EPERM { // the first send of a socket sometimes fails by it: golang.org/issue/63322
		err = s.raw.Write(t.call)
	}
	t.iov.Base, t.hdr.Control = nil, nil // the caller's again
	if err == nil && t.errno != 0 && !s.absorb(b, oob, t.errno) {
		err = s.opError("write", "sendmsg", addr, t.errno)
	}
	return err
}

// absorb reports whether a failed send of b counts as a loss.
func (s *socket) absorb(b, oob []byte, errno syscall.Errno) bool {
	segment, datagrams := segmentSize(oob), 1
	if segment > 0 {
		datagrams = (len(b) + segment - 1) / segment
	}
	return s.faults.absorb(errno, segment > 0, datagrams)
}

// setName writes addr in the form of the socket's family. It reports false for what it cannot or need not handle.
func (t *sender) setName(inet6 bool, addr *net.UDPAddr) bool {
	if addr == nil || addr.Zone != "" {
		return false
	}
	port := networkOrder(uint16(addr.Port))
	if !inet6 {
		ip := addr.IP.To4()
		if ip == nil {
			return false
		}
		sa := (*unix.RawSockaddrInet4)(unsafe.Pointer(&t.name))
		sa.Family, sa.Port = unix.AF_INET, port
		copy(sa.Addr[:], ip)
		t.hdr.Namelen = unix.SizeofSockaddrInet4
		return true
	}
	sa := &t.name
	sa.Family, sa.Port = unix.AF_INET6, port
	switch len(addr.IP) {
	case net.IPv6len:
		copy(sa.Addr[:], addr.IP)
	case net.IPv4len:
		sa.Addr = [16]byte{10: 0xff, 11: 0xff}
		copy(sa.Addr[12:], addr.IP)
	default:
		return false
	}
	t.hdr.Namelen = unix.SizeofSockaddrInet6
	return true
}

func (s *socket) opError(op, call string, addr *net.UDPAddr, errno syscall.Errno) error {
	e := &net.OpError{Op: op, Net: "udp", Source: s.LocalAddr(), Err: os.NewSyscallError(call, errno)}
	if addr != nil {
		e.Addr = addr
	}
	return e
}

// cutSegmentSize takes the control message of UDP with the given type out of oob, in place, and returns the rest and
// the size that it carries, or 0.
func cutSegmentSize(oob []byte, kind int32) (rest []byte, size int) {
	for at := oob; len(at) > 0; {
		hdr, body, remainder, err := unix.ParseOneSocketControlMessage(at)
		if err != nil {
			break
		}
		if hdr.Level == unix.IPPROTO_UDP && hdr.Type == kind {
			switch len(body) {
			case 2: // as it is sent
				size = int(binary.NativeEndian.Uint16(body))
			case 4: // as it is received
				size = int(binary.NativeEndian.Uint32(body))
			}
			return oob[:len(oob)-len(at)+copy(at, remainder)], size
		}
		at = remainder
	}
	return oob, 0
}

// segmentSize returns the size of the datagrams that a send is split into by its control messages, or 0.
func segmentSize(oob []byte) int {
	for len(oob) > 0 {
		hdr, body, rest, err := unix.ParseOneSocketControlMessage(oob)
		if err != nil {
			break
		}
		if hdr.Level == unix.IPPROTO_UDP && hdr.Type == unix.UDP_SEGMENT && len(body) == 2 {
			return int(binary.NativeEndian.Uint16(body))
		}
		oob = rest
	}
	return 0
}

// networkOrder converts a port between the machine's byte order and that of the network.
func networkOrder(port uint16) uint16 {
	var b [2]byte
	binary.BigEndian.PutUint16(b[:], port)
	return binary.NativeEndian.Uint16(b[:])
}
