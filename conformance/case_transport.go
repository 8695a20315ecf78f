package conformance

import (
	"encoding/binary"
	"fmt"
	"slices"
	"strings"

	"github.com/felix-mq/felix/codec"
	"github.com/felix-mq/felix/quicx"
)

// transportCases are rows 1 to 11 of the checklist.
func transportCases(f *Fixture) []Case {
	t := f.topic()
	names := fmt.Sprintf(`"tenant_id":%q,"namespace":%q,"stream":%q`, t.tenant, t.namespace, t.stream)
	cacheNames := fmt.Sprintf(`"tenant_id":%q,"namespace":%q,"cache":%q`, f.Tenant, f.Namespace, f.Cache)
	wrongMagic, version2 := t.binary("x"), t.binary("x")
	wrongMagic[0] = 'f'
	version2[5] = 2
	flags40 := frame(0x0040, "anything")
	cutPayload := t.acked(7, "cut")
	cutPayload = cutPayload[:len(cutPayload)-1]

	all := []Case{
		{ID: "RAW-01", Name: "connection without ALPN", run: func(p *probe) { p.authed().expectServed() }},
		{ID: "RAW-04a", Name: "frames one byte at a time", run: byteByByte},
		{ID: "RAW-04b", Name: "ten frames in one write", run: tenFrames},
		{ID: "RAW-05a", Name: "wrong magic ends the stream alone", run: func(p *probe) { silentEnd(p, wrongMagic) }},
		{ID: "RAW-05b", Name: "version 2 ends the stream alone", run: func(p *probe) { silentEnd(p, version2) }},
		{ID: "RAW-06a", Name: "payload of exactly the limit", run: largestFrame},
		{ID: "RAW-06b", Name: "header announcing one byte more than the limit", run: func(p *probe) {
			silentEnd(p, codec.AppendHeader(nil, codec.LayoutPublish, p.fx.MaxFrameBytes+1))
		}},
	}
	all = append(all, cases(
		exchange{id: "RAW-07a", name: "unknown flags before auth", bare: true, send: flags40, replies: []string{errorReply("unsupported frame flags")}},
		exchange{id: "RAW-07b", name: "unknown flags after auth", send: flags40, replies: []string{errorReply("unsupported frame flags")}},

		exchange{id: "RAW-08a", name: "invalid JSON", send: message(`{"type":"cache_get",}`), then: ends},
		exchange{id: "RAW-08b", name: "unknown type", send: message(`{"type":"unsubscribe"}`), then: ends},
		exchange{id: "RAW-08c", name: "missing member", send: message(`{"type":"cache_get",%s,"request_id":7}`, cacheNames), then: ends},
		exchange{id: "RAW-08d", name: "request_id 1.0", send: message(`{"type":"publish",%s,"payload":"","request_id":1.0}`, names), then: ends},
		exchange{id: "RAW-08e", name: `request_id "1"`, send: message(`{"type":"publish",%s,"payload":"","request_id":"1"}`, names), then: ends},
		exchange{id: "RAW-08f", name: "base64 without padding", send: message(`{"type":"publish",%s,"payload":"eA","request_id":1}`, names), then: ends},
		exchange{id: "RAW-08g", name: "empty payload of a JSON frame", send: frame(0, ""), then: ends},

		exchange{
			id: "RAW-09a", name: "unknown members are ignored",
			send:    message(`{"type":"publish","x":{"type":[1,null]},%s,"payload":"eA==","request_id":7,"y":1.5}`, names),
			replies: []string{"publish_ok 7"},
		},
		exchange{
			id: "RAW-09b", name: "members in reverse order",
			send:    message(`{"ack":"per_message","request_id":7,"payload":"eA==","stream":%q,"namespace":%q,"tenant_id":%q,"type":"publish"}`, t.stream, t.namespace, t.tenant),
			replies: []string{"publish_ok 7"},
		},
		exchange{
			id: "RAW-09c", name: "surrounding blanks",
			send:    message(" \t\r\n{ \"type\" : \"publish\" , %s , \"payload\" : \"eA==\" , \"request_id\" : 7 } \n", names),
			replies: []string{"publish_ok 7"},
		},
		exchange{
			id: "RAW-09d", name: "ttl_ms absent",
			send:    message(`{"type":"cache_put",%s,"key":"conformance","value":"eA==","request_id":7}`, cacheNames),
			replies: []string{"cache_ok 7"},
		},
		exchange{
			id: "RAW-09e", name: "ttl_ms null",
			send:    message(`{"type":"cache_put",%s,"key":"conformance","value":"eA==","request_id":7,"ttl_ms":null}`, cacheNames),
			replies: []string{"cache_ok 7"},
		},

		exchange{id: "RAW-10a", name: "0x0001 too short for tenant_len", send: frame(0x0001, "\x00"), then: ends},
		exchange{id: "RAW-10b", name: "0x0001 that ends after the tenant", send: frame(0x0001, "\x00\x02\xff\xfe"), then: ends},
		exchange{id: "RAW-10c", name: "0x0001 with a tenant that is not UTF-8", send: frame(0x0001, "\x00\x02\xff\xfe\x00\x00\x00\x00\x00\x00\x00\x00"), then: ends},
		exchange{id: "RAW-10d", name: "0x0001 with a count of 4294967295", send: frame(0x0001, "\x00\x02t1\x00\x02ns\x00\x02st\xff\xff\xff\xff"), then: ends},
		exchange{id: "RAW-10e", name: "0x0009 with a prefix one byte short", send: frame(0x0009, strings.Repeat("\x00", 8)), then: ends},
		exchange{id: "RAW-10f", name: "0x0009 with a count of 4294967295", send: rawAcked(7, 1, "\x00\x02t1\x00\x02ns\x00\x02st\xff\xff\xff\xff"), replies: []string{`ack 7 "malformed publish batch"`}},

		exchange{id: "RAW-11", name: "FIN in the middle of a payload", send: cutPayload, fin: true, then: ends},
		exchange{id: "D29", name: "FIN in the middle of a header", send: cutPayload[:5], fin: true, then: ends},
	)...)
	return all
}

// silentEnd sends a frame that ends its stream without a word, and proves that nothing else is hurt.
func silentEnd(p *probe, f []byte) {
	s := p.authed()
	s.send(f)
	s.expectErrorEnd()
	s.expectOthersServed()
}

func byteByByte(p *probe) {
	s := p.stream()
	out := codec.AppendAuth(nil, p.fx.Tenant, p.fx.token(allActions...), codec.KnownFlags, true, 0)
	out = append(out, p.fx.topic().acked(7, "x")...)
	for i := range out {
		s.send(out[i : i+1])
	}
	s.expect("auth_ok 63", "ack 7 ok")
}

func tenFrames(p *probe) {
	s := p.authed()
	var frames []byte
	var replies []string
	for id := range uint64(5) {
		key := p.unique()
		frames = slices.Concat(frames, p.fx.topic().acked(id, "x"), p.fx.store().get(key, id))
		replies = append(replies, fmt.Sprintf("ack %d ok", id), p.fx.store().miss(key, id))
	}
	s.send(frames)
	s.expect(replies...)
}

// largestFrame publishes a batch whose payload is exactly the limit.
func largestFrame(p *probe) {
	c := p.dial(quicx.Config{StreamWindow: 1 << 20})
	e := c.subscribe(p.fx.Stream, live)
	t := p.fx.topic()
	room := p.fx.MaxFrameBytes - (len(t.binary("")) - codec.HeaderLen)
	item := strings.Repeat("0123456789abcdef", room/16+1)[:room]
	f := t.binary(item)
	if n := binary.BigEndian.Uint32(f[8:]); int(n) != p.fx.MaxFrameBytes {
		panic(fmt.Sprintf("conformance: BUG: payload of %d bytes", n))
	}
	c.authed().send(f)
	e.expect(item)
}
