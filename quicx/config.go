package quicx

import (
	"cmp"
	"crypto/tls"
	"errors"
	"fmt"
	"runtime"
	"time"

	"github.com/quic-go/quic-go"
)

// Defaults of [Config].
const (
	DefaultStreamWindow     = 256 << 10
	DefaultStreamsHint      = 8
	DefaultMaxStreams       = 1024
	DefaultIdleTimeout      = 30 * time.Second
	DefaultKeepAlive        = 10 * time.Second
	DefaultHandshakeTimeout = 10 * time.Second
	DefaultSocketBuffer     = 8 << 20

	DefaultBlackHoleCooldown = 10 * time.Minute
)

// Config sets the limits of a [Listener] or of a dialed [Conn]. The zero value works. It is copied on entry.
type Config struct {
	// StreamWindow is how many bytes a peer may send on one stream ahead of its reader. Zero means 256 KiB.
	StreamWindow uint64

	// ConnWindow is how many bytes a peer may send on one connection ahead of all its readers. It is raised to 4/3 ×
	// (StreamsHint + 2) × StreamWindow if it is less, zero included: the receiver renews a connection's credit only
	// after a quarter of the window was read, so with less than that the streams nobody reads would stop those that
	// somebody does.
	ConnWindow uint64

	// StreamsHint is how many incoming streams of a connection are expected to carry bulk data at the same time; it
	// only enters the bound of ConnWindow. Zero means 8.
	StreamsHint int

	// MaxStreams is how many streams of each kind a peer may have open on one connection at a time. Zero means 1024,
	// which peers of this protocol rely on (docs/protocol/session.md#quic-parameters). Negative means none.
	MaxStreams int64

	// IdleTimeout ends a connection on which nothing was heard from the peer for so long. The smaller of the two peers'
	// values counts. Zero means 30 s.
	IdleTimeout time.Duration

	// KeepAlive is after how much silence a packet is sent to keep the connection alive; it is clamped to half the idle
	// timeout. Zero means 10 s, negative means never.
	KeepAlive time.Duration

	// HandshakeTimeout bounds a handshake, whichever side began it. It ends earlier if the peer is silent for half of
	// it. Zero means 10 s.
	HandshakeTimeout time.Duration

	// SendBuffer and RecvBuffer are the bytes of kernel memory to ask for on the UDP socket. Zero means 8 MiB. What was
	// granted is in [SocketInfo]; too little shows as lost packets under load.
	SendBuffer, RecvBuffer int

	// DisableGRO receives one datagram per message even where the kernel could join them.
	DisableGRO bool

	// DisableGSO sends one datagram per system call even where the kernel could split them, for network drivers that
	// do it wrong.
	DisableGSO bool

	// RetryAbove is the number of connection attempts per second above which each has to prove its address, at the cost
	// of a round trip (RFC 9000, section 8.1.2). For listeners. Zero means 50 for each processor, negative never.
	RetryAbove int

	// HandshakesPerPrefix is the number of connection attempts per second that are accepted from one network, a /24 of
	// IPv4 or a /56 of IPv6, with a burst of two seconds. For listeners. Zero means 1000, negative any number.
	HandshakesPerPrefix int

	// Sockets is how many sockets of a listener share its port, each with a reader of its own. Zero means one for up to
	// five processors, and more by one for each two beyond that; more than one needs Linux.
	Sockets int

	// Spin is how long the reader of the socket polls for more before it parks, as long as traffic keeps coming. It
	// saves the wake-up of a thread for each datagram, at the cost of processor time; one socket of the process polls
	// at a time. Zero means not at all. It has an effect on Linux alone.
	Spin time.Duration

	// StatelessResetKey lets a restarted listener tell the peers of its former life that their connections are gone, if
	// it is given the same key again. Nil means that they find out by their idle timeout.
	StatelessResetKey *[32]byte

	// InitialPacketSize is the size of the packets that a connection begins with, and the least that it sends where it
	// has more, in bytes: a path that does not pass it lets no handshake through. It is at least 1200; above 1452
	// counts as that. Zero means 1280, and 1200 where the system refuses to send that.
	InitialPacketSize int

	// MaxPacketSize is the largest packet that path MTU discovery tries, in bytes, at least 1200. Above 1452 counts as
	// that, and so does zero. If it is not above what a connection begins with there is no discovery.
	MaxPacketSize int

	// BlackHoleCooldown is for how long connections to an address send packets of 1200 bytes and try no larger ones
	// after the path to it was seen to drop large ones ([ErrBlackHole]). Zero means 10 minutes.
	BlackHoleCooldown time.Duration

	watchEvery time.Duration // from one look at the packets of connections to the next, for tests; 0: one second

	lookup lookup // of the addresses of a name, for tests; nil: the system's

	now func() time.Time // by which handshakes are counted, for tests; nil: the present
}

func (c Config) withDefaults() Config {
	setDefault(&c.StreamWindow, DefaultStreamWindow)
	setDefault(&c.StreamsHint, DefaultStreamsHint)
	setDefault(&c.MaxStreams, DefaultMaxStreams)
	setDefault(&c.IdleTimeout, DefaultIdleTimeout)
	setDefault(&c.KeepAlive, DefaultKeepAlive)
	setDefault(&c.HandshakeTimeout, DefaultHandshakeTimeout)
	setDefault(&c.SendBuffer, DefaultSocketBuffer)
	setDefault(&c.RecvBuffer, DefaultSocketBuffer)
	setDefault(&c.BlackHoleCooldown, DefaultBlackHoleCooldown)
	setDefault(&c.watchEvery, watchEvery)
	c.setPacketSizes()
	if c.lookup == nil {
		c.lookup = systemLookup
	}
	c.ConnWindow = max(c.ConnWindow, 4*uint64(c.StreamsHint+2)*c.StreamWindow/3)
	c.KeepAlive = max(c.KeepAlive, 0)
	if c.Sockets == 0 {
		c.Sockets = min(max(1, runtime.GOMAXPROCS(0)/2-1), maxSockets)
	}
	return c
}

// setPacketSizes leaves an InitialPacketSize of zero where it may be what quic-go chooses.
func (c *Config) setPacketSizes() {
	if c.MaxPacketSize == 0 {
		c.MaxPacketSize = MaxPacketSize
	}
	c.MaxPacketSize = min(c.MaxPacketSize, MaxPacketSize)
	if c.InitialPacketSize > 0 || c.MaxPacketSize <= defaultPacketSize {
		c.InitialPacketSize = min(cmp.Or(c.InitialPacketSize, MaxPacketSize), c.MaxPacketSize)
	}
}

func setDefault[T comparable](field *T, value T) {
	var zero T
	if *field == zero {
		*field = value
	}
}

// minWindow fits a frame's header, which a reader waits for as a whole.
const minWindow = 16

// maxWindow keeps the product in withDefaults far from overflow; it is more than any machine can buffer.
const maxWindow = 1 << 40

// validate reports every problem of c at once.
func (c Config) validate() error {
	var problems []error
	bad := func(cond bool, name string, value any) {
		if cond {
			problems = append(problems, fmt.Errorf("quicx: Config.%s is out of range: %v", name, value))
		}
	}
	bad(c.StreamWindow > 0 && c.StreamWindow < minWindow, "StreamWindow", c.StreamWindow)
	bad(c.StreamWindow > maxWindow, "StreamWindow", c.StreamWindow)
	bad(c.ConnWindow > maxWindow, "ConnWindow", c.ConnWindow)
	bad(c.StreamsHint < 0 || c.StreamsHint > 1<<16, "StreamsHint", c.StreamsHint)
	bad(c.IdleTimeout < 0, "IdleTimeout", c.IdleTimeout)
	bad(c.Sockets < 0 || c.Sockets > maxSockets, "Sockets", c.Sockets)
	bad(c.Spin < 0 || c.Spin > time.Second, "Spin", c.Spin)
	bad(c.HandshakeTimeout < 0, "HandshakeTimeout", c.HandshakeTimeout)
	bad(c.InitialPacketSize != 0 && c.InitialPacketSize < MinPacketSize, "InitialPacketSize", c.InitialPacketSize)
	bad(c.MaxPacketSize != 0 && c.MaxPacketSize < MinPacketSize, "MaxPacketSize", c.MaxPacketSize)
	bad(c.BlackHoleCooldown < 0, "BlackHoleCooldown", c.BlackHoleCooldown)
	bad(c.SendBuffer < 0, "SendBuffer", c.SendBuffer)
	bad(c.RecvBuffer < 0, "RecvBuffer", c.RecvBuffer)
	return errors.Join(problems...)
}

// quic is called on a Config with defaults.
func (c Config) quic() *quic.Config {
	return &quic.Config{
		Versions: []quic.Version{quic.Version1},
		// quic-go ends a handshake after this long without a packet, and after twice as long in any case.
		HandshakeIdleTimeout: c.HandshakeTimeout / 2,
		MaxIdleTimeout:       c.IdleTimeout,
		KeepAlivePeriod:      c.KeepAlive,
		// Initial and maximum are the same: quic-go raises a connection's window by what it sees of the round trip
		// time, which flow control itself inflates, and it never raises one when it is needed.
		InitialStreamReceiveWindow:     c.StreamWindow,
		MaxStreamReceiveWindow:         c.StreamWindow,
		InitialConnectionReceiveWindow: c.ConnWindow,
		MaxConnectionReceiveWindow:     c.ConnWindow,
		MaxIncomingStreams:             c.MaxStreams,
		MaxIncomingUniStreams:          c.MaxStreams,
		InitialPacketSize:              uint16(c.InitialPacketSize),
		DisablePathMTUDiscovery:        c.MaxPacketSize <= cmp.Or(c.InitialPacketSize, defaultPacketSize),
	}
}

// quicSmall is quic for an address to which the path drops large packets.
func (c Config) quicSmall() *quic.Config {
	c.InitialPacketSize, c.MaxPacketSize = MinPacketSize, MinPacketSize
	return c.quic()
}

func (c Config) transport(sock *socket) *quic.Transport {
	tr := &quic.Transport{Conn: sock}
	if c.StatelessResetKey != nil {
		key := quic.StatelessResetKey(*c.StatelessResetKey)
		tr.StatelessResetKey = &key
	}
	return tr
}

// tlsRules returns a copy of conf that obeys the protocol: TLS 1.3 and no ALPN on either side. A server that has one
// configured turns away clients that offer none, and an offer can end the other side's listener.
func tlsRules(conf *tls.Config) *tls.Config {
	conf = conf.Clone()
	conf.NextProtos = nil
	conf.MinVersion = tls.VersionTLS13
	conf.MaxVersion = 0
	if inner := conf.GetConfigForClient; inner != nil {
		conf.GetConfigForClient = func(info *tls.ClientHelloInfo) (*tls.Config, error) {
			c, err := inner(info)
			if c == nil || err != nil {
				return nil, err
			}
			return tlsRules(c), nil
		}
	}
	return conf
}
