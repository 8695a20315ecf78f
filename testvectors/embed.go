// Package testvectors holds golden frames of the Felix wire protocol, valid and invalid, for clients and brokers in any
// language.
//
// The vectors are JSON files in valid/, invalid/ and fanout/; README.md describes their members one by one and is the
// place to begin for users of other languages. This package embeds and parses them for Go: [Valid], [Invalid] and
// [Rewrites]. [ReadReference] reads the vectors of the reference implementation, which are not part of this package.
//
// The files are written by internal/generate from encoders of its own, so that the vectors can judge package codec. How
// frames are used in a conversation is not their subject: a vector is one frame, right or wrong by itself.
package testvectors

import (
	"bytes"
	"embed"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"sync"
)

//go:generate go run ./internal/generate

//go:embed valid/*.json invalid/*.json fanout/*.json
var files embed.FS

// DefaultMaxFrame is the frame length limit, in bytes of payload, of vectors that do not name another one
// (docs/protocol/wire.md#maximum-frame-size).
const DefaultMaxFrame = 16 << 20

// Directions of a [Vector].
const (
	ClientToBroker = "client_to_broker"
	BrokerToClient = "broker_to_client"
)

// Vector is a frame that every decoder accepts.
type Vector struct {
	// Name is unique among all vectors of the package.
	Name string `json:"name"`
	// Note says what the vector is about where the name does not; it may be empty.
	Note string `json:"note"`
	// Direction is [ClientToBroker] or [BrokerToClient].
	Direction string `json:"direction"`
	// Kind is the type of a JSON message, such as "publish", or binary_publish_batch, binary_acked_publish_batch,
	// binary_publish_ack, binary_event_batch or binary_shared_event_batch, or extension_position, extension_gap,
	// extension_publish_s2, extension_acked_publish_s2, extension_events_s2, extension_cache_get, extension_cache_put,
	// extension_cache_delete, extension_cache_put_if, extension_cache_watch, extension_cache_reply,
	// extension_cache_events, extension_publish_from or extension_publish_from_s2.
	Kind string `json:"kind"`
	// Flags are the flags in the header of the frame.
	Flags uint16 `json:"flags"`
	// MaxFrame is the limit to decode the frame under, in bytes of payload: the frame is exactly at it or below.
	MaxFrame int `json:"max_frame"`
	// Negotiated are the names of the extensions without which the frame means nothing, or something else.
	Negotiated []string `json:"negotiated"`
	// Canonical says that encoding Fields yields Frame byte for byte.
	Canonical bool `json:"canonical"`
	// Frame is the whole frame with its header.
	Frame Bytes `json:"frame"`
	// CanonicalFrame is what encoding Fields yields. It equals Frame if the vector is canonical.
	CanonicalFrame Bytes `json:"canonical_frame"`
	// Fields are the decoded values.
	Fields Fields `json:"fields"`
}

// Fields are the decoded values of a frame. Which of them a frame has depends on its [Vector.Kind]; the others are
// zero. Optional ones are pointers, and nil means absent.
type Fields struct {
	TenantID  Text `json:"tenant_id"`
	Namespace Text `json:"namespace"`
	Stream    Text `json:"stream"`
	Cache     Text `json:"cache"`
	Key       Text `json:"key"`
	Token     Text `json:"token"`
	// Message is the text of error, publish_error and of a binary acknowledgement with the status "error".
	Message Text `json:"message"`
	// UncutMessage is the text an encoder is given to make Message of it, which is cut at 512 bytes. It is nil where
	// that says nothing new.
	UncutMessage *Text `json:"uncut_message"`

	// Payload is the application's message in publish and event, Payloads those of all batches.
	Payload  Bytes `json:"payload"`
	Payloads Items `json:"payloads"`
	// Value is the value of cache_put and cache_value. It is nil for a cache_value that reports a miss.
	Value *Bytes `json:"value"`

	RequestID      *uint64 `json:"request_id,string"`
	SubscriptionID *uint64 `json:"subscription_id,string"`
	Offset         *uint64 `json:"offset,string"`
	BaseOffset     *uint64 `json:"base_offset,string"`
	// TTL is in milliseconds.
	TTL *uint64 `json:"ttl_ms,string"`
	// Ack is "none", "per_message" or "per_batch", and "" if absent.
	Ack string `json:"ack"`
	// Start is where a subscription begins.
	Start *Start `json:"start"`

	ClientFlags *uint16 `json:"client_flags"`
	ServerFlags *uint16 `json:"server_flags"`

	// Status is "ok" or "error" in a binary acknowledgement.
	Status string `json:"status"`
	// Reason is "too_old" or "in_future".
	Reason    string  `json:"reason"`
	Requested *uint64 `json:"requested,string"`
	Available *uint64 `json:"available,string"`

	// Of extensions. Ext is nil if absent, and Fence empty.
	Ext       *[]string `json:"ext"`
	Fence     Text      `json:"fence"`
	Epoch     *uint64   `json:"epoch,string"`
	Since     *uint64   `json:"since,string"`
	GapReason *uint8    `json:"gap_reason"`
	Lost      *uint64   `json:"lost,string"`
	Next      *uint64   `json:"next,string"`
	// Producer, Sequence and Repeated are the origin of a publish.
	Producer Bytes   `json:"producer"`
	Sequence *uint64 `json:"sequence,string"`
	Repeated *bool   `json:"repeated"`
	// Count and RawLength are those of a compressed list, Block is an S2 block.
	Count     *int  `json:"count"`
	RawLength *int  `json:"raw_length"`
	Block     Bytes `json:"block"`
	// Of the cache's frames; Versions are numbers in decimal.
	Keys        Items    `json:"keys"`
	Values      Items    `json:"values"`
	Version     *uint64  `json:"version,string"`
	Versions    []string `json:"versions"`
	Expected    *uint64  `json:"expected,string"`
	ReplyStatus *uint8   `json:"reply_status"`
	EventKinds  []int    `json:"event_kinds"`
}

// Start is a start position: Keyword is "latest" or "earliest", or it is empty and Offset counts.
type Start struct {
	Keyword string
	Offset  uint64
}

// UnmarshalJSON reads a start position as the files write it.
func (s *Start) UnmarshalJSON(b []byte) error {
	*s = Start{}
	if b[0] == '"' {
		return json.Unmarshal(b, &s.Keyword)
	}
	var object struct {
		Offset uint64 `json:"offset,string"`
	}
	err := strictUnmarshal(b, &object)
	s.Offset = object.Offset
	return err
}

// InvalidVector is a frame that every decoder refuses, or the beginning of one.
type InvalidVector struct {
	// Name is unique among all vectors of the package.
	Name string `json:"name"`
	// Note says what the vector is about where the name does not; it may be empty.
	Note string `json:"note"`
	// Class names the failure: one of the classes in README.md. The frame has no second fault.
	Class string `json:"class"`
	// Flags are the flags in the header, nil if the header itself is bad.
	Flags *uint16 `json:"flags"`
	// MaxFrame is the limit to decode the frame under, in bytes of payload.
	MaxFrame int `json:"max_frame"`
	// RequestID is set for an acked publish batch with a good prefix and a bad body: a broker answers this id with an
	// error and keeps the stream (docs/protocol/wire.md#acknowledged-publish-batch).
	RequestID *uint64 `json:"request_id,string"`
	// Frame is the frame with its header, as far as a decoder has to look.
	Frame Bytes `json:"frame"`
}

// Rewrite is a received publish frame and the event frames that a broker makes of it without re-encoding
// (docs/protocol/wire.md#delivery-without-encoding).
type Rewrite struct {
	// Name is unique among all vectors of the package.
	Name string `json:"name"`
	// Note says what the vector is about where the name does not; it may be empty.
	Note string `json:"note"`
	// Received is the publish frame with its header, acked or not.
	Received Bytes `json:"received"`
	// CountAt and End are the positions in Received, counted from the first byte of the header, of the count field and
	// after the last item.
	CountAt int `json:"count_at"`
	End     int `json:"end"`
	// BaseOffset is the offset of the first item.
	BaseOffset uint64 `json:"base_offset,string"`
	// Shared is the frame with the flags 0x0004.
	Shared Bytes `json:"shared"`
	// SharedOffsets is the frame with the flags 0x0024 and BaseOffset.
	SharedOffsets Bytes `json:"shared_offsets"`
	// Parts are the frames of a delivery in parts; most rewrites have none.
	Parts []RewritePart `json:"parts"`
}

// RewritePart is a part of a [Rewrite]: the items from From up to, not including, To.
type RewritePart struct {
	From          int   `json:"from"`
	To            int   `json:"to"`
	Shared        Bytes `json:"shared"`
	SharedOffsets Bytes `json:"shared_offsets"`
}

// Valid returns all frames that decode, in the order of the files. What the slice refers to is shared: treat it as
// read-only. Valid is safe for concurrent use.
func Valid() []Vector { return slices.Clone(valid()) }

// Invalid returns all frames that do not decode, under the same rules as [Valid].
func Invalid() []InvalidVector { return slices.Clone(invalid()) }

// Rewrites returns all fan-out vectors, under the same rules as [Valid].
func Rewrites() []Rewrite { return slices.Clone(fanout()) }

var (
	valid = sync.OnceValue(func() []Vector {
		vectors := load[Vector]("valid")
		for i := range vectors {
			v := &vectors[i]
			if v.MaxFrame == 0 {
				v.MaxFrame = DefaultMaxFrame
			}
			if v.Canonical {
				v.CanonicalFrame = v.Frame
			}
		}
		return vectors
	})
	invalid = sync.OnceValue(func() []InvalidVector {
		vectors := load[InvalidVector]("invalid")
		for i := range vectors {
			if vectors[i].MaxFrame == 0 {
				vectors[i].MaxFrame = DefaultMaxFrame
			}
		}
		return vectors
	})
	fanout = sync.OnceValue(func() []Rewrite { return load[Rewrite]("fanout") })
)

// load parses the embedded files of a directory. They are part of the program, so a bad one is a bug and panics.
func load[V any](dir string) []V {
	names, err := fs.Glob(files, dir+"/*.json")
	if err != nil {
		panic("testvectors: " + err.Error())
	}
	vectors := make([]V, 0, 64)
	for _, name := range names {
		content, err := files.ReadFile(name)
		if err != nil {
			panic("testvectors: " + err.Error())
		}
		var file struct {
			About   string `json:"about"`
			Vectors []V    `json:"vectors"`
		}
		if err := strictUnmarshal(content, &file); err != nil {
			panic("testvectors: " + name + ": " + err.Error())
		}
		vectors = append(vectors, file.Vectors...)
	}
	return vectors
}

func strictUnmarshal(b []byte, v any) error {
	dec := json.NewDecoder(bytes.NewReader(b))
	dec.DisallowUnknownFields()
	return dec.Decode(v)
}

// Part is one stretch of a byte string: a unit and how often it occurs in a row.
type Part struct {
	Unit  []byte
	Count int
}

// UnmarshalJSON reads a part as the files write it.
func (p *Part) UnmarshalJSON(b []byte) error {
	var object struct {
		Hex   *string `json:"hex"`
		Text  *string `json:"text"`
		Count *int    `json:"count"`
	}
	if err := strictUnmarshal(b, &object); err != nil {
		return err
	}
	*p = Part{Count: 1}
	if object.Count != nil {
		p.Count = *object.Count
	}
	switch {
	case p.Count < 1:
		return fmt.Errorf("a part occurs %d times", p.Count)
	case object.Hex != nil && object.Text == nil:
		var err error
		p.Unit, err = hex.DecodeString(*object.Hex)
		return err
	case object.Text != nil && object.Hex == nil:
		p.Unit = []byte(*object.Text)
		return nil
	}
	return errors.New("a part has either hex or text")
}

// Bytes is a byte string in run-length form: some frames have millions of bytes and a few lines in their file.
type Bytes []Part

// Len returns the number of bytes.
func (b Bytes) Len() int {
	n := 0
	for _, p := range b {
		n += len(p.Unit) * p.Count
	}
	return n
}

// Expand returns the bytes in a new slice of the caller's, whose capacity is its length. It is never nil.
func (b Bytes) Expand() []byte {
	out := make([]byte, 0, b.Len())
	for _, p := range b {
		for range p.Count {
			out = append(out, p.Unit...)
		}
	}
	return out
}

// UnmarshalJSON reads a hex string or an array of parts.
func (b *Bytes) UnmarshalJSON(data []byte) error {
	if data[0] != '"' {
		return json.Unmarshal(data, (*[]Part)(b))
	}
	var digits string
	if err := json.Unmarshal(data, &digits); err != nil {
		return err
	}
	unit, err := hex.DecodeString(digits)
	if err != nil {
		return err
	}
	*b = Bytes{{Unit: unit, Count: 1}}
	return nil
}

// Text is a text among the decoded values, always UTF-8.
type Text string

// UnmarshalJSON reads a string or an array of parts.
func (t *Text) UnmarshalJSON(data []byte) error {
	if data[0] == '"' {
		return json.Unmarshal(data, (*string)(t))
	}
	var parts Bytes
	if err := json.Unmarshal(data, &parts); err != nil {
		return err
	}
	*t = Text(parts.Expand())
	return nil
}

// Items is the list of a batch's messages. Equal neighbors may share their parts.
type Items []Bytes

// Expand returns the items, each in a slice of its own. It is never nil.
func (it Items) Expand() [][]byte {
	out := make([][]byte, len(it))
	for i, item := range it {
		out[i] = item.Expand()
	}
	return out
}

// UnmarshalJSON reads an array of byte strings and runs of equal ones.
func (it *Items) UnmarshalJSON(data []byte) error {
	var elements []json.RawMessage
	if err := json.Unmarshal(data, &elements); err != nil {
		return err
	}
	*it = Items{}
	for _, element := range elements {
		run := struct {
			Item  Bytes `json:"item"`
			Count int   `json:"count"`
		}{Count: 1}
		var err error
		if element[0] == '{' {
			err = strictUnmarshal(element, &run)
		} else {
			err = json.Unmarshal(element, &run.Item)
		}
		if err != nil {
			return err
		}
		for range run.Count {
			*it = append(*it, run.Item)
		}
	}
	return nil
}
