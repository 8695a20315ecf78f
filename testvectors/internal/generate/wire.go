package main

import (
	"encoding/base64"
	"fmt"
	"strconv"
	"strings"
)

// The plain encoders. They are written from the protocol document alone, share nothing with package codec and care for
// nothing but being obvious, since they judge it.

const (
	clientToBroker = "client_to_broker"
	brokerToClient = "broker_to_client"
)

// The eight layouts of docs/protocol/wire.md#layouts.
const (
	flagsJSON          = 0x0000
	flagsPublish       = 0x0001
	flagsPublishAcked  = 0x0009
	flagsPublishAck    = 0x0010
	flagsEvent         = 0x0002
	flagsEventOffsets  = 0x0022
	flagsShared        = 0x0004
	flagsSharedOffsets = 0x0024
)

const (
	defaultMaxFrame = 16 << 20
	maxU16          = 1<<16 - 1
	maxU32          = uint32(1<<32 - 1)
	maxU64          = 1<<64 - 1
)

func u8(v int) blob      { return hx(fmt.Sprintf("%02x", v)) }
func u16(v int) blob     { return hx(fmt.Sprintf("%04x", v)) }
func be64(v uint64) blob { return hx(fmt.Sprintf("%016x", v)) }

// u32 takes what an int of 32 bits cannot hold, too.
func u32[N int | uint32](v N) blob { return hx(fmt.Sprintf("%08x", v)) }

// header is the frame header of docs/protocol/wire.md#header.
func header[N int | uint32](flags uint16, length N) blob {
	return cat(hx("464c5831"), u16(1), u16(int(flags)), u32(length))
}

func frame(flags uint16, payload blob) blob {
	return cat(header(flags, payload.len()), payload)
}

// itemList is the item list of docs/protocol/wire.md#item-list.
func itemList(items []blob) blob {
	out := u32(len(items))
	for _, item := range items {
		out = cat(out, u32(item.len()), item.asHex())
	}
	return out
}

func name(s blob) blob { return cat(u16(s.len()), s.asHex()) }

// names is the part of a publish batch in front of its item list, docs/protocol/wire.md#publish-batch.
func names(tenant, namespace, stream blob) blob {
	return cat(name(tenant), name(namespace), name(stream))
}

// ackedPrefix is what 0x0009 puts in front of a publish batch, docs/protocol/wire.md#acknowledged-publish-batch.
func ackedPrefix(id uint64, mode int) blob { return cat(be64(id), u8(mode)) }

// publishAck is the payload of 0x0010, docs/protocol/wire.md#publish-acknowledgement.
func publishAck(status int, id uint64, message blob) blob {
	return cat(u8(status), be64(id), u16(message.len()), message.asHex())
}

// u64 is written as a decimal string in the decoded fields, since many JSON readers turn numbers into doubles.
type u64 uint64

func (v u64) MarshalText() ([]byte, error) { //nolint:unparam // the interface wants an error
	return strconv.AppendUint(nil, uint64(v), 10), nil
}

// quote writes a JSON string with the escapes of docs/protocol/wire.md#encoding and no others.
func quote(s string) string {
	var out strings.Builder
	out.WriteByte('"')
	for _, r := range s {
		switch {
		case r == '"':
			out.WriteString(`\"`)
		case r == '\\':
			out.WriteString(`\\`)
		case r == '\b':
			out.WriteString(`\b`)
		case r == '\t':
			out.WriteString(`\t`)
		case r == '\n':
			out.WriteString(`\n`)
		case r == '\f':
			out.WriteString(`\f`)
		case r == '\r':
			out.WriteString(`\r`)
		case r < 0x20:
			fmt.Fprintf(&out, `\u%04x`, r)
		default:
			out.WriteRune(r)
		}
	}
	out.WriteByte('"')
	return out.String()
}

// member is one member of a JSON message: its text on the wire and its value in the decoded fields.
type member struct {
	name   string
	json   blob
	value  any
	absent bool // written (as null), but absent after decoding
}

func str(name, value string) member {
	return member{name: name, json: text(quote(value)), value: textValue(text(value))}
}

// longStr is a string of n times the one character unit, which needs no escape.
func longStr(name, unit string, n int) member {
	run := repeat(text(unit), n)
	return member{name: name, json: cat(text(`"`), run, text(`"`)), value: textValue(run)}
}

func num(name string, value uint64) member {
	return member{name: name, json: text(strconv.FormatUint(value, 10)), value: u64(value)}
}

// num16 is a number in the decoded fields too: 16 bits are safe in every JSON reader.
func num16(name string, value uint16) member {
	return member{name: name, json: text(strconv.Itoa(int(value))), value: value}
}

func enum(name, value string) member {
	return member{name: name, json: text(`"` + value + `"`), value: value}
}

func startOffset(offset uint64) member {
	return member{
		name:  "start",
		json:  text(`{"offset":` + strconv.FormatUint(offset, 10) + `}`),
		value: fields{{"offset", u64(offset)}},
	}
}

// base64Text is the base64 form of docs/protocol/wire.md#base64. A run whose unit is a multiple of three bytes stays a
// run.
func base64Text(b blob) blob {
	var out blob
	for _, p := range b {
		if p.Count > 0 && p.unitLen()%3 == 0 {
			unit := p
			unit.Count = 0
			out = cat(out, repeat(base64Text(blob{unit}), p.Count))
			continue
		}
		if len(b) != 1 || p.Count > 0 {
			panic("base64Text wants plain bytes or runs of multiples of three bytes")
		}
		out = cat(out, text(base64.StdEncoding.EncodeToString(b.bytes())))
	}
	return out
}

func b64(name string, value blob) member {
	return member{name: name, json: cat(text(`"`), base64Text(value), text(`"`)), value: value.asHex()}
}

// b64s is the payloads of a batch.
func b64s(values ...blob) member {
	out := text(`[`)
	list := []any{}
	for i, v := range values {
		if i > 0 {
			out = cat(out, text(`,`))
		}
		out = cat(out, text(`"`), base64Text(v), text(`"`))
		list = append(list, v.asHex())
	}
	return member{name: "payloads", json: cat(out, text(`]`)), value: list}
}

// nullValue is the value of a cache_value that reports a miss: null is the decoded value.
func nullValue() member { return member{name: "value", json: text(`null`)} }

// nullTTL is the ttl_ms of a cache_put without one: null on the wire, absent after decoding.
func nullTTL() member { return member{name: "ttl_ms", json: text(`null`), absent: true} }

// message is a JSON message: its type and the other members in the order of docs/protocol/wire.md#messages.
type message struct {
	kind    string
	members []member
}

func msg(kind string, members ...member) message { return message{kind, members} }

// payload encodes m as docs/protocol/wire.md#encoding says.
func (m message) payload() blob {
	out := text(`{"type":"` + m.kind + `"`)
	for _, f := range m.members {
		out = cat(out, text(`,"`+f.name+`":`), f.json)
	}
	return cat(out, text(`}`))
}

func (m message) fields() fields {
	out := fields{}
	for _, f := range m.members {
		if !f.absent {
			out = append(out, field{f.name, f.value})
		}
	}
	return out
}

// without returns m without the named member, with returns it with that member's text replaced.

func (m message) without(name string) message {
	var kept []member
	for _, f := range m.members {
		if f.name != name {
			kept = append(kept, f)
		}
	}
	return message{m.kind, kept}
}

func (m message) with(name, json string) message {
	var changed []member
	for _, f := range m.members {
		if f.name == name {
			f.json = text(json)
		}
		changed = append(changed, f)
	}
	return message{m.kind, changed}
}

func (m message) direction() string {
	switch m.kind {
	case "auth", "publish", "publish_batch", "subscribe", "cache_put", "cache_get":
		return clientToBroker
	}
	return brokerToClient
}

// canonical is the vector of a JSON message as an encoder writes it.
func canonical(name, note string, m message) vector {
	return vector{
		Name: m.kind + "/" + name, Note: note, Direction: m.direction(), Kind: m.kind, Flags: flagsJSON,
		Canonical: true, Frame: frame(flagsJSON, m.payload()), Fields: m.fields(),
	}
}

// accepted is the vector of a payload that decodes to m although an encoder would write m differently.
func accepted(name, note string, payload blob, m message) vector {
	v := canonical(name, note, m)
	v.Name = "decode/" + name
	v.Canonical = false
	v.CanonicalFrame = v.Frame
	v.Frame = frame(flagsJSON, payload)
	return v
}
