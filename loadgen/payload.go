package loadgen

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"strconv"
)

// PayloadKind is what the bytes of an event are, after its stamp.
type PayloadKind uint8

// Kinds of payloads. The zero value means [Random].
const (
	Random PayloadKind = iota + 1 // cannot be compressed
	JSON                          // documents as services exchange them: compress to about a third
	Zero                          // nothing but zeros: compress to nearly nothing
)

// String returns the name that [ParsePayloadKind] reads, or nothing for an unknown kind.
func (k PayloadKind) String() string {
	switch k {
	case Random:
		return "random"
	case JSON:
		return "json"
	case Zero:
		return "zero"
	}
	return ""
}

// ParsePayloadKind returns the kind of that name.
func ParsePayloadKind(name string) (PayloadKind, error) {
	for _, k := range []PayloadKind{Random, JSON, Zero} {
		if name == k.String() {
			return k, nil
		}
	}
	return 0, fmt.Errorf("loadgen: unknown payload kind %q: want random, json or zero", name)
}

// StampLen is the length of the stamp at the beginning of each event: its number and the nanosecond, of this process's
// clock, at which it was due; both big-endian, 8 bytes each.
//
// A number is, from the highest bit: the mark, 15 bits for the publisher of the topic, 48 for its sequence.
const StampLen = 16

const (
	// markBit in a number makes an item a mark: not an event itself, it says that all events of that publisher below
	// that sequence number have been sent before it.
	markBit        = 1 << 63
	publisherShift = 48
	sequenceMask   = 1<<publisherShift - 1
)

func putStamp(item []byte, number uint64, at int64) {
	binary.BigEndian.PutUint64(item, number)
	binary.BigEndian.PutUint64(item[8:], uint64(at))
}

// stamp reads what putStamp wrote. The item has at least StampLen bytes.
func stamp(item []byte) (number uint64, at int64) {
	return binary.BigEndian.Uint64(item), int64(binary.BigEndian.Uint64(item[8:]))
}

// NewItems makes the items of one batch of a run, each of payload bytes, all different; equal arguments make equal
// items. Every batch of the run sends them under new stamps. The caller owns them.
func NewItems(kind PayloadKind, batch, payload int, seed uint64) [][]byte {
	rng := rand.New(rand.NewPCG(seed, 0x5EED))
	all := make([]byte, batch*payload)
	items := make([][]byte, batch)
	for i := range items {
		items[i] = all[i*payload : (i+1)*payload : (i+1)*payload]
		body := items[i][StampLen:]
		switch kind {
		case JSON:
			fillJSON(body, rng)
		case Zero:
		default:
			fillRandom(body, rng)
		}
	}
	return items
}

func fillRandom(b []byte, rng *rand.Rand) {
	for len(b) >= 8 {
		binary.LittleEndian.PutUint64(b, rng.Uint64())
		b = b[8:]
	}
	for i := range b {
		b[i] = byte(rng.Uint32())
	}
}

var (
	jsonTypes  = []string{"order.created", "order.updated", "payment.captured", "shipment.sent", "customer.changed"}
	jsonCities = []string{"Amsterdam", "Berlin", "Chicago", "Dakar", "Edinburgh", "Fukuoka", "Geneva", "Hamburg"}
	jsonWords  = []string{"express", "delivery", "gift", "wrapped", "leave", "with", "neighbor", "fragile", "call", "before", "arrival", "invoice", "attached"}
)

// fillJSON fills b with one JSON document of exactly that length: members as long as they fit, and a note that
// takes the rest. What is too short for the shortest document gets its beginning.
func fillJSON(b []byte, rng *rand.Rand) {
	const end = `"}`
	pick := func(words []string) string { return words[rng.IntN(len(words))] }
	doc := make([]byte, 0, len(b)+256)
	doc = append(doc, `{"id":"`...)
	doc = strconv.AppendUint(doc, rng.Uint64(), 16)
	doc = append(doc, `","type":"`+pick(jsonTypes)+`","lines":[`...)
	for first := true; ; first = false {
		line := fmt.Sprintf(`{"sku":"FX-%05d","quantity":%d,"price":{"amount":%d.%02d,"currency":"EUR"},"warehouse":%q}`,
			rng.IntN(100_000), 1+rng.IntN(9), rng.IntN(500), rng.IntN(100), pick(jsonCities))
		if !first {
			line = "," + line
		}
		if len(doc)+len(line)+len(`],"note":"`)+len(end) > len(b) {
			break
		}
		doc = append(doc, line...)
	}
	doc = append(doc, `],"note":"`...)
	for len(doc)+len(end) < len(b) {
		doc = append(append(doc, pick(jsonWords)...), ' ')
	}
	if n := len(b) - len(end); len(doc) > n && n >= 0 {
		doc = doc[:n]
	}
	copy(b, append(doc, end...))
}
