package quicx

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/quic-go/quic-go"
	"golang.org/x/time/rate"
)

// A path can begin to drop large packets while it passes small ones: a tunnel came up, a route changed. That is a black
// hole, because no router says so. QUIC raises the size of its packets while larger ones arrive, and never lowers it:
// what was written is sent again in packets that are just as large, and the acknowledgements of small packets keep the
// connection alive.
//
// Nothing that QUIC counts tells a black hole from heavy random loss, so it is measured. Every second the counters of
// each connection are looked at. Where packets are lost, or sent and not acknowledged, datagrams of two sizes are sent
// that the peer's package quicx answers: 1200 bytes, which every path for QUIC has to pass, and what the connection
// sends.
//
//	┌─ watch, each second ──┐  losses   ┌─ test ───────────────────────────┐  small answered, large not
//	│ counters of quic-go   │ ────────▶ │ ask 1200 bytes │ ask N bytes     │ ───────▶ close, remember the address
//	└───────────────────────┘           │ 40 ms apart, until it is certain │ ───────▶ one large answered: go on
//	                                    └──────────────────────────────────┘
//
// It is certain when that no large one was answered is by chance once in ten million (see [improbable]), whatever the
// path loses: simulated, none of 5 million tests errs where 30 % are lost each way. A black hole takes half a second to
// be certain of where nothing else is lost, and 1.6 s where 30 % are lost each way. A peer that answers nothing proves
// nothing: it is gone, which the idle timeout is for, or does not know the datagrams. Otherwise the connection is
// closed with [ErrBlackHole], and new ones to the address keep to packets of 1200 bytes for [Config.BlackHoleCooldown].
//
// Nothing of this is on the way of a packet: quic-go itself keeps datagrams apart that are not QUIC's.

// Sizes of packets in bytes.
const (
	MinPacketSize     = 1200 // what every path has to pass (RFC 9000, section 14)
	MaxPacketSize     = 1452 // the largest that is sent
	defaultPacketSize = 1280 // what quic-go begins with
)

const (
	watchEvery = time.Second

	// suspectAfter is how many looks in a row have to find losses or silence before it is tested.
	suspectAfter = 2

	// clearedFor is how many looks pass before a connection is tested again.
	clearedFor = 3

	// dataBytes tells packets with data from those that only acknowledge, by the mean of a second.
	dataBytes = 400

	// maxTests bounds the tests that run at a time for one listener; a connection that finds no place is tested later.
	maxTests = 32

	testEvery = 40 * time.Millisecond
	testPairs = 64

	// maxChance is the probability of an error that is certain enough. As a test looks at it after each pair, it errs a
	// few times as often.
	maxChance = 1e-7

	answersPerSecond = 2000
	answersBurst     = 512
)

// ErrBlackHole is the cause of the end of a connection whose path drops packets that are as large as those that passed
// before. It is wrapped in a [ConnClosedError]; the peer sees code 0. Another connection is made with smaller packets.
var ErrBlackHole = errors.New("quicx: the path drops large packets")

// tooLarge reports whether a datagram is lost on purpose: path MTU discovery, which nothing else bounds, then takes it
// that the path does not pass that size. Of all packets only its probes are larger than those that passed before.
func tooLarge(limit, size int) bool { return limit < MaxPacketSize && size > limit }

// blackHoleReason begins the reason that the peer gets. A client that gets it does as if it had found out itself.
const blackHoleReason = "the path drops packets of"

// ended returns the reason for the end of a connection, and learns from it.
func (t *sizeTester) ended(c *Conn, err error) error {
	closed, ok := errors.AsType[*ConnClosedError](err)
	if !ok || !strings.HasPrefix(closed.Reason, blackHoleReason) || closed.Code != 0 || closed.Transport {
		return err
	}
	if closed.Remote && t.believes {
		smallPaths.add(c.qc.RemoteAddr(), t.cooldown)
	}
	closed.cause = ErrBlackHole
	return closed
}

// pathWatch is what is known about the packets of one connection. Its owner is the goroutine that looks.
type pathWatch struct {
	last      ConnStats
	suspicion int    // looks in a row that found losses or silence
	sizes     [2]int // the two largest mean sizes of what a look found lost or sent during the suspicion
	cleared   int    // looks to come before the next test
	testing   bool
	done      atomic.Bool // set when a test is over
}

// look takes the counters of this moment and reports whether the path has to be tested.
func (w *pathWatch) look(now ConnStats) bool {
	last := w.last
	if now.PacketsSent == last.PacketsSent && w.suspicion == 0 { // idle, as most connections are
		return false
	}
	w.last = now
	if w.testing {
		if !w.done.Load() {
			return false
		}
		w.testing, w.suspicion, w.sizes, w.cleared = false, 0, [2]int{}, clearedFor
		w.done.Store(false)
	}
	sent := mean(now.BytesSent-last.BytesSent, now.PacketsSent-last.PacketsSent)
	lost := 0
	if now.PacketsLost > last.PacketsLost && now.BytesLost > last.BytesLost { // they may fall
		lost = mean(now.BytesLost-last.BytesLost, now.PacketsLost-last.PacketsLost)
	}
	// Each acknowledgement of something new gives a sample of the round trip time.
	acked := now.LatestRTT != last.LatestRTT || now.RTT != last.RTT || now.RTTVar != last.RTTVar
	switch {
	case lost >= dataBytes || sent >= dataBytes && !acked:
		w.suspicion++
		w.sizes[1] = max(w.sizes[1], min(w.sizes[0], max(lost, sent)))
		w.sizes[0] = max(w.sizes[0], lost, sent)
	case acked:
		w.suspicion, w.sizes = 0, [2]int{}
	}
	if w.cleared > 0 {
		w.cleared--
		return false
	}
	return w.suspicion >= suspectAfter && w.size() > MinPacketSize
}

// size is what the connection sends. A mean is that, or less where small packets were among them; more it is only when
// path MTU discovery had a larger one under way, which happens once in a suspicion, as it waits for what became of
// that.
func (w *pathWatch) size() int { return min(w.sizes[1], MaxPacketSize) }

func mean(bytes, packets uint64) int {
	if packets == 0 {
		return 0
	}
	return int((bytes + packets - 1) / packets)
}

// sizeTester asks and answers on the transports of a listener, or of a dialed connection.
type sizeTester struct {
	every    time.Duration // between looks
	cooldown time.Duration
	stop     <-chan struct{} // ends tests
	limit    *rate.Limiter   // of answers
	found    atomic.Uint64   // black holes
	believes bool            // the peer's reasons: of a listener anybody is the peer

	mu    sync.Mutex
	tests map[uint64]*sizeTest // under way, by their ids
}

func newSizeTester(cfg Config, stop <-chan struct{}) *sizeTester {
	return &sizeTester{
		every: cfg.watchEvery, cooldown: cfg.BlackHoleCooldown, stop: stop,
		limit: rate.NewLimiter(answersPerSecond, answersBurst),
		tests: make(map[uint64]*sizeTest),
	}
}

// The datagrams of a test. The second bit of the first byte is 0, by which quic-go knows that they are not QUIC's.
//
//	0        8     9       17     18     20
//	┌────────┬─────┬───────┬──────┬──────┬── ─ ─ ─ ──┐
//	│ magic  │ 0/1 │ id    │ pair │ size │ 0 …       │  0: ask, of size bytes   1: answer, of 20 bytes
//	└────────┴─────┴───────┴──────┴──────┴── ─ ─ ─ ──┘
const (
	testMagic  = "\x01felixmt"
	testHeader = 20

	testAsk, testAnswer = 0, 1
)

// serve answers, and hands answers to the tests that wait for them, until the transport is closed.
func (t *sizeTester) serve(tr *quic.Transport) {
	b := make([]byte, MaxPacketSize+1)
	for {
		n, from, err := tr.ReadNonQUICPacket(context.Background(), b)
		if err != nil {
			return
		}
		if n < testHeader || string(b[:len(testMagic)]) != testMagic {
			continue
		}
		switch b[8] {
		case testAsk: // the answer is smaller than what asks for it, so that it is of no use against others
			if n >= MinPacketSize && n == int(binary.BigEndian.Uint16(b[18:])) && t.limit.Allow() {
				b[8] = testAnswer
				_, _ = tr.WriteTo(b[:testHeader], from) // lost, like any datagram may be
			}
		case testAnswer:
			t.mu.Lock()
			test := t.tests[binary.BigEndian.Uint64(b[9:])]
			t.mu.Unlock()
			if test != nil {
				test.answered(int(b[17]), int(binary.BigEndian.Uint16(b[18:])))
			}
		}
	}
}

// sizeTest is one test of one path.
type sizeTest struct {
	size int // of the large ones

	mu    sync.Mutex // guards all below
	small [testPairs]bool
	large bool // at least one was answered
}

func (s *sizeTest) answered(pair, size int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case pair >= testPairs:
	case size == MinPacketSize:
		s.small[pair] = true
	case size == s.size:
		s.large = true
	}
}

// verdict says whether the path drops large datagrams, and whether that is certain.
func (s *sizeTest) verdict() (drops, certainly bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.large {
		return false, true
	}
	pairs, answered := 0, 0 // up to the last pair whose small one was answered: those after it may still be under way
	for i, ok := range s.small {
		if ok {
			pairs, answered = i+1, answered+1
		}
	}
	return true, improbable(pairs, answered)
}

// improbable reports whether it is due to more than chance that of so many pairs as many small ones were answered and
// no large one. It is Fisher's exact test: if size did not matter, all answers being for small ones would have the
// probability of drawing that many of them without a large one, whatever the path loses.
func improbable(pairs, answered int) bool {
	chance := 1.0
	for i := range answered {
		chance *= float64(pairs-i) / float64(2*pairs-i)
	}
	return chance <= maxChance
}

// run asks until it is certain, or until it has asked often enough. It reports whether the path drops datagrams of that
// size.
func (t *sizeTester) run(ctx context.Context, tr *quic.Transport, to net.Addr, size int) bool {
	test := &sizeTest{size: size}
	var random [8]byte
	_, _ = rand.Read(random[:]) // never fails
	id := binary.BigEndian.Uint64(random[:])
	t.mu.Lock()
	t.tests[id] = test
	t.mu.Unlock()
	defer func() {
		t.mu.Lock()
		delete(t.tests, id)
		t.mu.Unlock()
	}()

	b := make([]byte, size)
	copy(b, testMagic)
	b[8] = testAsk
	binary.BigEndian.PutUint64(b[9:], id)
	tick := time.NewTicker(testEvery)
	defer tick.Stop()
	for pair := range testPairs {
		b[17] = byte(pair)
		first, second := MinPacketSize, size
		if pair%2 == 1 {
			first, second = second, first
		}
		for _, n := range [...]int{first, second} {
			binary.BigEndian.PutUint16(b[18:], uint16(n))
			_, _ = tr.WriteTo(b[:n], to) // what cannot be sent is lost
		}
		select {
		case <-ctx.Done():
			return false
		case <-t.stop:
			return false
		case <-tick.C:
		}
		if drops, certainly := test.verdict(); certainly {
			return drops
		}
	}
	return false
}

// check looks at a connection, and has its path tested by start if it has to be.
func (t *sizeTester) check(c *Conn, start func(test func()) bool) {
	w := &c.watch
	if !w.look(c.Stats()) {
		return
	}
	size := w.size()
	w.testing = start(func() {
		defer w.done.Store(true)
		to := c.qc.RemoteAddr()
		if !t.run(c.ctx, c.tr, to, size) {
			return
		}
		t.found.Add(1)
		smallPaths.add(to, t.cooldown)
		_ = c.qc.CloseWithError(0, fmt.Sprintf("%s %d bytes", blackHoleReason, size))
	})
}

// watchOne looks at a dialed connection until it ends.
func (t *sizeTester) watchOne(c *Conn) {
	tick := time.NewTicker(t.every)
	defer tick.Stop()
	for {
		select {
		case <-c.ctx.Done():
			return
		case <-tick.C:
			t.check(c, func(test func()) bool { test(); return true })
		}
	}
}

// addresses are those of peers to which the path drops large packets, each for a time. It is bounded: when it is
// full, the one that would expire next is forgotten.
type addresses struct {
	mu    sync.Mutex
	until map[netip.Addr]time.Time
}

const maxAddresses = 4096

// smallPaths is one for the process: the path to an address is the same for all that dial it.
var smallPaths = addresses{until: make(map[netip.Addr]time.Time)}

func (a *addresses) add(addr net.Addr, cooldown time.Duration) {
	ip, ok := ipOf(addr)
	if !ok {
		return
	}
	now := time.Now()
	a.mu.Lock()
	defer a.mu.Unlock()
	if _, ok := a.until[ip]; !ok && len(a.until) >= maxAddresses {
		var next netip.Addr
		for other, until := range a.until {
			if !next.IsValid() || until.Before(a.until[next]) {
				next = other
			}
		}
		delete(a.until, next)
	}
	a.until[ip] = now.Add(cooldown)
}

func (a *addresses) has(addr net.Addr) bool {
	ip, ok := ipOf(addr)
	if !ok {
		return false
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	until, ok := a.until[ip]
	if ok && time.Now().After(until) {
		delete(a.until, ip)
		return false
	}
	return ok
}

func ipOf(addr net.Addr) (netip.Addr, bool) {
	udp, ok := addr.(*net.UDPAddr)
	if !ok {
		return netip.Addr{}, false
	}
	ip, ok := netip.AddrFromSlice(udp.IP)
	return ip.Unmap(), ok
}
