package codec

import (
	"bytes"
	"encoding/base64"
	"encoding/binary"
	"math"
	"slices"
	"strconv"

	"github.com/felix-mq/felix/internal/jsonscan"
)

// maxDepth is how deep JSON values may be nested, the message itself included (docs/protocol/wire.md#decoding).
const maxDepth = 127

// MaxIgnoredValues is how many values a message may hold in members that it does not have, nested ones and the elements
// of an ext included. They are checked and dropped, which is all the more work the more there are.
const MaxIgnoredValues = 4096

// maxName is longer than the names of all members and extensions, written with an escape for each character.
const maxName = 6 * 32

// maxFence is as long as a fence can be, written with an escape for each character.
const maxFence = 6 * (maxFenceID + len(".18446744073709551615"))

// ParseMessage decodes the payload of a frame of [LayoutJSON] into m, whose former content and views are lost. It is as
// strict as docs/protocol/wire.md#decoding asks: members that the message does not have are ignored but must be well
// formed, and hold at most [MaxIgnoredValues] values together. Its time is linear in the payload, whatever that holds.
// After an error m has no meaning. See [Message] for the lives of what it holds.
func ParseMessage(payload []byte, m *Message) error {
	m.Reset()
	p := parser{b: payload, m: m, limits: ignored}
	p.space()
	switch p.peek() {
	case '{':
	case 0:
		return p.syntax("unexpected end of the message")
	default:
		return p.notAnObject()
	}
	t, err := p.messageType()
	if err != nil {
		return err
	}
	m.Type = t
	p.limits = ignored
	return p.message()
}

// ignored are the bounds on what a message does not have.
var ignored = jsonscan.Limits{Values: MaxIgnoredValues, Range: true}

// parser is a position in a payload. Its methods return prebuilt errors where a hot path could meet them.
type parser struct {
	b []byte
	i int
	m *Message

	limits jsonscan.Limits // on ignored values: what is left
}

// peek returns the byte at the position, and 0 at the end: 0 is never part of well-formed JSON.
func (p *parser) peek() byte {
	if p.i < len(p.b) {
		return p.b[p.i]
	}
	return 0
}

func (p *parser) space() { p.i = jsonscan.Space(p.b, p.i) }

// fault returns the error for a fault at the position.
func (p *parser) fault(f jsonscan.Fault) error {
	switch f {
	case jsonscan.NotUTF8:
		return ErrNotUTF8.with("string at byte %d is not UTF-8", p.i)
	case jsonscan.TooMany:
		return ErrSyntax.with("more than %d ignored values at byte %d", MaxIgnoredValues, p.i)
	default:
		return p.syntax(f.String())
	}
}

func (p *parser) syntax(what string) error {
	return ErrSyntax.with("malformed JSON at byte %d: %s", p.i, what)
}

// notAnObject tells well-formed JSON of another type from what is no JSON at all.
func (p *parser) notAnObject() error {
	if err := p.skip(1); err != nil {
		return err
	}
	p.space()
	if p.i < len(p.b) {
		return p.syntax("something after the value")
	}
	return ErrType.with("message is not a JSON object")
}

// messageType finds the type without moving. It is nearly always the first member.
func (p *parser) messageType() (MessageType, error) {
	const usual = `{"type":"`
	if rest := p.b[p.i:]; len(rest) > len(usual) && string(rest[:len(usual)]) == usual {
		rest = rest[len(usual):]
		if before, _, ok := bytes.Cut(rest, []byte{'"'}); ok {
			if t := typeOf(before); t != MsgInvalid {
				return t, nil
			}
		}
	}
	start := p.i
	defer func() { p.i = start }()
	const read = 64 // more than the values of all members that are read
	p.limits.Values += read
	t, found := MsgInvalid, false
	err := p.object(1, func(key []byte) error {
		if string(key) == "payloads" && p.peek() == '[' { // the one member with values without number
			return p.skipWith(2, &jsonscan.Limits{Values: len(p.b), Range: true})
		}
		if string(key) != "type" {
			return p.skip(2)
		}
		switch p.peek() {
		case '"':
		case 'n':
			return p.literal("null")
		default:
			if err := p.skip(2); err != nil {
				return err
			}
			return ErrType.with("type is not a string")
		}
		s, err := p.string()
		if err == nil && !found {
			t, found = typeOf(s), true
			if t == MsgInvalid {
				err = ErrUnknownType.with("unknown message type %.40q", s)
			}
		}
		return err
	})
	if err == nil && !found {
		err = ErrMissingField.with("message has no type")
	}
	return t, err
}

// message reads the object as a message of the known type.
func (p *parser) message() error {
	spec := &messages[p.m.Type]
	known := spec.required | spec.optional
	var seen, present member
	seenType := false
	p.i++ // the brace
	for first := true; ; first = false {
		key, done, err := p.key(first)
		if err != nil {
			return err
		}
		if done {
			break
		}
		if string(key) == "type" {
			if seenType || p.peek() != '"' { // null, and the type comes later
				return ErrDuplicateField.with("type occurs twice")
			}
			seenType = true
			if _, err := p.string(); err != nil {
				return err
			}
			continue
		}
		f := memberOf(key) & known
		if f == 0 || f&mExtension&seen != 0 {
			if err := p.skip(2); err != nil {
				return err
			}
			continue
		}
		if f&mExtension != 0 { // of several, the first counts
			seen |= f
			if err := p.extensionMember(f); err != nil {
				return err
			}
			continue
		}
		if seen&f != 0 {
			return ErrDuplicateField.with("%s of %s occurs twice", key, spec.name)
		}
		seen |= f
		if p.peek() == 'n' {
			if err := p.literal("null"); err != nil {
				return err
			}
			if f == mValue && p.m.Type == MsgCacheValue {
				present |= f // a miss
			}
			continue
		}
		present |= f
		if err := p.value(f); err != nil {
			return err
		}
	}
	p.space()
	if p.i < len(p.b) {
		return p.syntax("something after the message")
	}
	if spec.required&^present != 0 {
		return ErrMissingField.with("%s lacks a required member", spec.name)
	}
	return nil
}

// key reads up to the value of the next member, or past the end of the object. See name for the life of the key.
func (p *parser) key(first bool) (key []byte, done bool, err error) {
	p.space()
	switch c := p.peek(); {
	case c == '}':
		p.i++
		return nil, true, nil
	case first:
	case c != ',':
		return nil, false, p.syntax("want a comma or a brace")
	default:
		p.i++
		p.space()
	}
	if p.peek() != '"' {
		return nil, false, p.syntax("want the name of a member")
	}
	if key, err = p.name(); err != nil {
		return nil, false, err
	}
	p.space()
	if p.peek() != ':' {
		return nil, false, p.syntax("want a colon")
	}
	p.i++
	p.space()
	return key, false, nil
}

// name reads a string that is compared with names and not kept: it lives until the next read. One that is too long for
// any name is nil, so that it takes no memory.
func (p *parser) name() ([]byte, error) {
	at := len(p.m.scratch)
	s, err := p.short(maxName)
	p.m.scratch = p.m.scratch[:at] // it is looked at once
	return s, err
}

// short reads a string at the position. It returns nil if the string has escapes and is longer than most bytes as it is
// written.
func (p *parser) short(most int) ([]byte, error) {
	start := p.i + 1
	end, escaped, fault := jsonscan.String(p.b, p.i)
	p.i = end
	if fault != jsonscan.None {
		return nil, p.fault(fault)
	}
	s := p.b[start : end-1 : end-1]
	if !escaped {
		return s, nil
	}
	if len(s) > most {
		return nil, nil
	}
	at := len(p.m.scratch)
	p.m.scratch = jsonscan.Unescape(p.m.scratch, s)
	return p.m.scratch[at:len(p.m.scratch):len(p.m.scratch)], nil
}

// object calls value at each value of the object at the position, and moves past the object.
func (p *parser) object(depth int, value func(key []byte) error) error {
	if depth > maxDepth {
		return p.syntax("nested too deep")
	}
	p.i++
	for first := true; ; first = false {
		key, done, err := p.key(first)
		if done || err != nil {
			return err
		}
		if err := value(key); err != nil {
			return err
		}
	}
}

// value reads the value of a member that the message has, and that is not null.
func (p *parser) value(f member) (err error) {
	m := p.m
	switch f {
	case mTenant:
		m.Tenant, err = p.wantString()
	case mNamespace:
		m.Namespace, err = p.wantString()
	case mStream:
		m.Stream, err = p.wantString()
	case mCache:
		m.Cache, err = p.wantString()
	case mKey:
		m.Key, err = p.wantString()
	case mToken:
		m.Token, err = p.wantString()
	case mMessage:
		m.Text, err = p.wantString()
	case mPayload:
		m.Payload, err = p.base64()
	case mValue:
		m.Value, err = p.base64()
		m.HasValue = true
	case mPayloads:
		err = p.payloads()
	case mRequestID:
		m.RequestID, err = p.number(math.MaxUint64)
		m.HasRequestID = true
	case mSubscriptionID:
		m.SubscriptionID, err = p.number(math.MaxUint64)
		m.HasSubscriptionID = true
	case mOffset, mBaseOffset:
		m.Offset, err = p.number(math.MaxUint64)
		m.HasOffset = true
	case mTTL:
		m.TTL, err = p.number(math.MaxUint64)
		m.HasTTL = true
	case mRequested:
		m.Requested, err = p.number(math.MaxUint64)
	case mAvailable:
		m.Available, err = p.number(math.MaxUint64)
	case mClientFlags:
		m.ClientFlags, err = p.flags()
		m.HasClientFlags = true
	case mServerFlags:
		m.ServerFlags, err = p.flags()
	case mAck:
		err = p.ack()
	case mStart:
		err = p.start()
	case mReason:
		err = p.reason()
	default:
		panic("codec: a member that no message has")
	}
	return err
}

// wrongType skips the value at the position, so that a syntax error in it is reported as one.
func (p *parser) wrongType(want string) error {
	at := p.i
	if err := p.skip(2); err != nil {
		return err
	}
	return ErrType.with("value at byte %d is not %s", at, want)
}

func (p *parser) wantString() ([]byte, error) {
	if p.peek() != '"' {
		return nil, p.wrongType("a string")
	}
	return p.string()
}

func (p *parser) ack() error {
	s, err := p.wantString()
	if err != nil {
		return err
	}
	switch string(s) {
	case "none":
		p.m.Ack = AckNone
	case "per_message":
		p.m.Ack = AckPerMessage
	case "per_batch":
		p.m.Ack = AckPerBatch
	default:
		return ErrType.with("unknown ack mode %.40q", s)
	}
	return nil
}

func (p *parser) reason() error {
	s, err := p.wantString()
	if err != nil {
		return err
	}
	switch string(s) {
	case "too_old":
		p.m.Reason = CursorTooOld
	case "in_future":
		p.m.Reason = CursorInFuture
	default:
		return ErrType.with("unknown reason %.40q", s)
	}
	return nil
}

func (p *parser) start() error {
	switch p.peek() {
	case '"':
		s, err := p.string()
		if err != nil {
			return err
		}
		switch string(s) {
		case "latest":
			p.m.Start.Kind = StartLatest
		case "earliest":
			p.m.Start.Kind = StartEarliest
		default:
			return ErrType.with("unknown start position %.40q", s)
		}
		return nil
	case '{':
	default:
		return p.wrongType("a start position")
	}
	members := 0
	err := p.object(2, func(key []byte) (err error) {
		if members++; members > 1 || string(key) != "offset" {
			if err := p.skip(3); err != nil {
				return err
			}
			return ErrType.with("start position has another member than one offset")
		}
		p.m.Start.Kind = StartOffset
		p.m.Start.Offset, err = p.number(math.MaxUint64)
		return err
	})
	if err == nil && members == 0 {
		err = ErrType.with("start position is empty")
	}
	return err
}

// array calls item at each element of the array at the position, and moves past the array.
func (p *parser) array(depth int, item func() error) error {
	if depth > maxDepth {
		return p.syntax("nested too deep")
	}
	p.i++
	p.space()
	if p.peek() == ']' {
		p.i++
		return nil
	}
	for {
		if err := item(); err != nil {
			return err
		}
		p.space()
		switch p.peek() {
		case ',':
			p.i++
			p.space()
		case ']':
			p.i++
			return nil
		default:
			return p.syntax("want a comma or a bracket")
		}
	}
}

// extensionMember reads a member of an extension, or skips what has another type.
func (p *parser) extensionMember(f member) error {
	start := p.i
	if f == mExt && p.peek() == '[' {
		p.m.HasExt = true
		return p.array(2, func() error {
			if p.peek() != '"' {
				return p.skip(3)
			}
			if p.limits.Values--; p.limits.Values < 0 {
				return p.fault(jsonscan.TooMany)
			}
			s, err := p.name()
			p.m.Ext |= extensionOf(s)
			return err
		})
	}
	if f == mFence && p.peek() == '"' {
		var err error
		p.m.Fence, err = p.short(maxFence)
		return err
	}
	if err := p.skip(2); err != nil || f != mEpoch && f != mSince {
		return err
	}
	const most = 20 // digits of a number of 64 bits
	if text := p.b[start:p.i]; len(text) <= most {
		if v, err := strconv.ParseUint(string(text), 10, 64); err == nil {
			if f == mEpoch {
				p.m.Epoch, p.m.HasEpoch = v, true
			} else {
				p.m.Since, p.m.HasSince = v, true
			}
		}
	}
	return nil
}

// payloads decodes a list of base64 strings into the form of an item list: it lies in the message's own memory, which
// grows with the bytes that are there and by nothing that they say.
func (p *parser) payloads() error {
	if p.peek() != '[' {
		return p.wrongType("an array")
	}
	m := p.m
	at := len(m.scratch)
	m.scratch = slices.Grow(m.scratch, len(p.b)-p.i) // enough unless most items are empty
	m.scratch = append(m.scratch, 0, 0, 0, 0)
	n := 0
	err := p.array(2, func() error {
		lengthAt := len(m.scratch)
		m.scratch = append(m.scratch, 0, 0, 0, 0)
		if rest := p.b[p.i:]; len(rest) >= 2 && rest[0] == '"' && rest[1] == '"' {
			p.i += 2
			n++
			return nil
		}
		item, err := p.base64()
		if err != nil {
			return err
		}
		binary.BigEndian.PutUint32(m.scratch[lengthAt:], uint32(len(item)))
		n++
		return nil
	})
	if err != nil {
		return err
	}
	raw := m.scratch[at:len(m.scratch):len(m.scratch)]
	binary.BigEndian.PutUint32(raw, uint32(n))
	m.Items = Items{raw: raw, n: n}
	return nil
}

// base64 decodes a string into the message's memory, after what is there.
func (p *parser) base64() ([]byte, error) {
	if p.peek() != '"' {
		return nil, p.wrongType("a string")
	}
	rest := p.b[p.i+1:]
	if n := bytes.IndexByte(rest, '"'); n >= 0 {
		if out, ok := p.decodeBase64(rest[:n]); ok {
			p.i += n + 2
			return out, nil
		}
	}
	// It has escapes, or is wrong in one of several ways. The decoded bytes replace the unescaped text, because
	// the items of a list lie one after the other.
	at := len(p.m.scratch)
	s, err := p.string()
	if err != nil {
		return nil, err
	}
	out, ok := p.decodeBase64(s)
	if !ok {
		return nil, ErrBase64
	}
	n := copy(p.m.scratch[at:], out)
	p.m.scratch = p.m.scratch[:at+n]
	return p.m.scratch[at : at+n : at+n], nil
}

var strictBase64 = base64.StdEncoding.Strict()

// decodeBase64 appends what s stands for to the message's memory.
func (p *parser) decodeBase64(s []byte) ([]byte, bool) {
	if len(s)%4 != 0 {
		return nil, false
	}
	m := p.m
	at := len(m.scratch)
	m.scratch = slices.Grow(m.scratch, len(s)/4*3)
	n, err := strictBase64.Decode(m.scratch[at:cap(m.scratch)], s)
	if err != nil {
		return nil, false
	}
	padding := 0
	for padding < 2 && padding < len(s) && s[len(s)-1-padding] == '=' {
		padding++
	}
	if n != len(s)/4*3-padding {
		return nil, false // the library skips line breaks
	}
	m.scratch = m.scratch[:at+n]
	return m.scratch[at : at+n : at+n], true
}

// number reads an unsigned integer of at most limit.
func (p *parser) number(limit uint64) (uint64, error) {
	start := p.i
	if c := p.peek(); c != '-' && (c < '0' || c > '9') {
		return 0, p.wrongType("an unsigned integer")
	}
	end, fault := jsonscan.NumberInRange(p.b, p.i)
	if fault != jsonscan.None {
		return 0, p.fault(fault)
	}
	p.i = end
	var v uint64
	for _, c := range p.b[start:p.i] {
		d := uint64(c - '0')
		if c < '0' || c > '9' || v > (limit-d)/10 {
			p.i = start
			return 0, p.wrongType("an unsigned integer within its range")
		}
		v = v*10 + d
	}
	return v, nil
}

func (p *parser) flags() (Flags, error) {
	v, err := p.number(math.MaxUint16)
	return Flags(v), err
}

// skip moves past the value at the position, which is checked all the same. depth is the number of values it is in,
// itself included.
func (p *parser) skip(depth int) error { return p.skipWith(depth, &p.limits) }

func (p *parser) skipWith(depth int, limits *jsonscan.Limits) error {
	end, fault := jsonscan.Value(p.b, p.i, maxDepth-depth+1, limits)
	p.i = end
	if fault != jsonscan.None {
		return p.fault(fault)
	}
	return nil
}

func (p *parser) literal(word string) error {
	if rest := p.b[p.i:]; len(rest) < len(word) || string(rest[:len(word)]) != word {
		return p.fault(jsonscan.NoValue)
	}
	p.i += len(word)
	return nil
}

// string reads the string at the position. The result is a view into the payload, or into the message's memory if it
// had escapes; its capacity is its length.
func (p *parser) string() ([]byte, error) {
	start := p.i + 1
	end, escaped, fault := jsonscan.String(p.b, p.i)
	p.i = end
	if fault != jsonscan.None {
		return nil, p.fault(fault)
	}
	s := p.b[start : end-1 : end-1]
	if !escaped {
		return s, nil
	}
	m := p.m
	at := len(m.scratch)
	m.scratch = jsonscan.Unescape(slices.Grow(m.scratch, len(s)), s)
	return m.scratch[at:len(m.scratch):len(m.scratch)], nil
}
