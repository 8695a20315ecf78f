package main

import (
	"context"
	"fmt"
	"net"
	"slices"
	"strings"
)

// settings are the values of a system's knobs, by their names.
type settings map[string]int

// knob is something that a system's user can set and that a sweep tries. The first value is the one without a sweep.
type knob struct {
	name, about string
	values      []int
	bytes       bool // values are sizes
	throughput  bool // of no use with one event in flight
}

// Names of knobs.
const (
	inFlight     = "in_flight"
	serverProcs  = "server_procs"
	loadProcs    = "load_procs"
	writeBuffer  = "write_buffer"
	socketBuffer = "socket_buffer"
	unchecked    = "unchecked_subject"
	noReply      = "no_reply"
	ioThreads    = "io_threads"
	noDelay      = "no_delay"
)

// Knobs that several systems have.
var (
	inFlightKnob = knob{
		name: inFlight, about: "bytes of payload that are published and not yet received by every subscription; 0 is that of the load",
		values: []int{0, 1 << 20, 4 << 20, 16 << 20}, bytes: true, throughput: true,
	}
	serverProcsKnob  = knob{name: serverProcs, about: "GOMAXPROCS of the server; 0 is all", values: []int{1, 0}}
	loadProcsKnob    = knob{name: loadProcs, about: "GOMAXPROCS of publisher and subscriptions; 0 is all", values: []int{0, 1}}
	socketBufferKnob = knob{
		name: socketBuffer, about: "of the client's sockets, each way; 0 leaves it to the system", values: []int{0, 4 << 20}, bytes: true,
	}
	// Those of Felix and the relay. More than 4 MiB in flight does not fit into a queue of Felix.
	ownKnobs = []knob{
		{name: inFlight, about: inFlightKnob.about, values: inFlightKnob.values[:3], bytes: true, throughput: true},
		serverProcsKnob, loadProcsKnob,
	}
)

// defaultSuffix in a system's name asks for its settings without a sweep.
const defaultSuffix = "@default"

// knobsOf returns the knobs of a system.
func knobsOf(system string) []knob {
	switch base := baseName(system); base {
	case felixName, relayName:
		return ownKnobs
	case pipeName:
		return nil
	default:
		p, _ := peerOf(base)
		return p.knobs
	}
}

// allKnobs returns the knobs of Felix and of the others, each once.
func allKnobs(others []string) (all []knob) {
	for _, system := range append([]string{felixName}, others...) {
		for _, k := range knobsOf(system) {
			i := slices.IndexFunc(all, func(a knob) bool { return a.name == k.name })
			switch {
			case i < 0:
				k.values = slices.Clone(k.values)
				all = append(all, k)
			default:
				for _, v := range k.values {
					if !slices.Contains(all[i].values, v) {
						all[i].values = append(all[i].values, v)
					}
				}
			}
		}
	}
	return all
}

// valueText is a value for people.
func (k knob) valueText(v int) string {
	if k.bytes && v > 0 {
		return size(v)
	}
	return fmt.Sprint(v)
}

func (k knob) text() string {
	parts := make([]string, len(k.values))
	for i, v := range k.values {
		parts[i] = k.valueText(v)
	}
	return strings.Join(parts, ", ")
}

// baseName is a system's name without what it says of settings.
func baseName(system string) string { return strings.TrimSuffix(system, defaultSuffix) }

// defaults are the first values of knobs.
func defaults(knobs []knob) settings {
	s := settings{}
	for _, k := range knobs {
		s[k.name] = k.values[0]
	}
	return s
}

// mostInFlight bounds what all subscriptions of a run together may have in flight, which lies in some queue.
const mostInFlight = 256 << 20

// candidates are the values of the knob that can be tried with a load.
func (k knob) candidates(load shape) []int {
	if k.throughput && load.Window == 1 {
		return k.values[:1]
	}
	if k.name != inFlight {
		return k.values
	}
	return slices.DeleteFunc(slices.Clone(k.values), func(v int) bool { return v*load.Fanout > mostInFlight })
}

// unset is the text of settings without a difference.
const unset = "defaults"

// text says what differs from the defaults.
func (s settings) text(knobs []knob) string {
	var parts []string
	for _, k := range knobs {
		v, ok := s[k.name]
		if !ok || v == k.values[0] {
			continue
		}
		parts = append(parts, k.name+" "+k.valueText(v))
	}
	if len(parts) == 0 {
		return unset
	}
	return strings.Join(parts, ", ")
}

// enoughVolume is how many times over a run with much in flight must move that. Its clock runs from the first event
// that leaves to the last that arrives, so the filling of the window counts, at the expense of the system.
const enoughVolume = 4

// shape is that of a load with these settings.
func (s settings) shape(load shape) shape {
	if bytes := s[inFlight]; bytes > 0 && load.Window > 1 {
		load.Window = max(bytes/(load.Batch*load.Payload), 2)
		load.Volume = enoughVolume
	}
	return load
}

// dial opens a connection for a client.
func (s settings) dial(ctx context.Context, addr string) (net.Conn, error) {
	c, err := new(net.Dialer).DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil, err
	}
	if n := s[socketBuffer]; n > 0 {
		if tcp, ok := c.(*net.TCPConn); ok {
			_ = tcp.SetReadBuffer(n) // the system may grant less
			_ = tcp.SetWriteBuffer(n)
		}
	}
	return c, nil
}
