package conformance

import (
	"fmt"
	"strings"
	"time"

	"github.com/felix-mq/felix/codec"
)

// authCases are rows 12 to 16 of the checklist.
func authCases(f *Fixture) []Case {
	t, c := f.topic(), f.store()
	required := []string{errorReply("auth required")}
	all := []Case{
		{ID: "RAW-12a", Name: "client_flags 63", run: func(p *probe) { answerToAuth(p, `,"client_flags":63`, "auth_ok 63") }},
		{ID: "RAW-12b", Name: "client_flags 0", run: func(p *probe) { answerToAuth(p, `,"client_flags":0`, "auth_ok 63") }},
		{ID: "RAW-12c", Name: "client_flags absent", run: func(p *probe) { answerToAuth(p, ``, "ok") }},
		{ID: "RAW-12d", Name: "client_flags null", run: func(p *probe) { answerToAuth(p, `,"client_flags":null`, "ok") }},
		{ID: "RAW-12e", Name: "client_flags with unknown bits", run: func(p *probe) { answerToAuth(p, `,"client_flags":65535`, "auth_ok 63") }},
	}
	all = append(all, cases(
		exchange{id: "RAW-13a", name: "JSON publish before auth", bare: true, send: t.publish(codec.AckPerMessage, 7), replies: required, then: ends},
		exchange{id: "RAW-13b", name: "0x0001 before auth", bare: true, send: t.binary("x"), replies: required, then: ends},
		exchange{id: "RAW-13c", name: "0x0009 before auth", bare: true, send: t.acked(7, "x"), replies: required, then: ends},
		exchange{id: "RAW-13d", name: "subscribe before auth", bare: true, send: t.subscribe(live), replies: required, then: ends},
		exchange{id: "RAW-13e", name: "cache_put before auth", bare: true, send: c.put("k", "v", 7), replies: required, then: ends},
		exchange{id: "RAW-13f", name: "cache_get before auth", bare: true, send: c.get("k", 7), replies: required, then: ends},
		exchange{id: "RAW-13g", name: "JSON publish_batch before auth", bare: true, send: t.batch(codec.AckPerBatch, 7), replies: required, then: ends},
	)...)
	all = append(all, Case{ID: "RAW-14", Name: "second auth", run: func(p *probe) {
		s := p.authed()
		s.send(codec.AppendAuth(nil, p.fx.Tenant, p.fx.token(allActions...), codec.KnownFlags, true, 0))
		s.expectErrorEnd(errorReply("auth already established"))
	}})
	for _, x := range []struct {
		id, name string
		good     bool
		change   func(*forgery)
	}{
		{"RAW-15a", "token expired 30 s ago", true, func(t *forgery) { t.claims["exp"] = time.Now().Unix() - 30 }},
		{"RAW-15b", "token expired 90 s ago", false, func(t *forgery) { t.claims["exp"] = time.Now().Unix() - 90 }},
		{"RAW-15c", "token for another audience", false, func(t *forgery) { t.claims["aud"] = "felix-other" }},
		{"RAW-15d", "token with the audience in an array", false, func(t *forgery) { t.claims["aud"] = []string{"felix-broker"} }},
		{"RAW-15e", "token of another tenant", false, func(t *forgery) { t.claims["tid"] = noTenant }},
		{"RAW-15f", "token with an unknown kid", true, func(t *forgery) { t.header["kid"] = "conformance-none" }},
		{"RAW-15g", "token signed with HS256 by the public key", false, func(t *forgery) { t.header["alg"], t.hmac = "HS256", true }},
		{"RAW-15h", "token with an unknown action", false, func(t *forgery) { t.claims["perms"] = []string{"cache.read:*", "stream.destroy:*"} }},
		{"RAW-15i", "token with a permission without a colon", false, func(t *forgery) { t.claims["perms"] = []string{"cache.read:*", "stream.publish"} }},
		{"RAW-15j", "token without a signature, alg none", false, func(t *forgery) { t.header["alg"], t.unsigned = "none", true }},
		{"RAW-15k", "token of another issuer", false, func(t *forgery) { t.claims["iss"] = "felix-other" }},
		{"RAW-15l", "token without kid", true, func(t *forgery) { delete(t.header, "kid") }},
		{"RAW-15m", "token without exp", false, func(t *forgery) { delete(t.claims, "exp") }},
		{"RAW-15n", "token with a signature of zeros, alg EdDSA", false, func(t *forgery) { t.unsigned = true }},
	} {
		all = append(all, Case{ID: x.id, Name: x.name, run: func(p *probe) {
			s := p.stream()
			token := p.fx.forge(allActions, x.change)
			if x.good {
				s.auth(token)
				s.expectServed()
				return
			}
			s.send(codec.AppendAuth(nil, p.fx.Tenant, token, codec.KnownFlags, true, 0))
			s.expectErrorEnd(errorReply("auth failed"))
			s.expectOthersServed()
		}})
	}
	all = append(all, Case{ID: "RAW-15o", Name: "tenant that does not exist", run: func(p *probe) {
		s := p.stream()
		token := p.fx.forge(allActions, func(t *forgery) { t.claims["tid"] = noTenant })
		s.send(codec.AppendAuth(nil, noTenant, token, codec.KnownFlags, true, 0))
		s.expectErrorEnd(errorReply("auth failed"))
	}})
	return append(all, wildcardCases(f)...)
}

// answerToAuth sends an auth with the given members at its end. What was negotiated or not, binary publishes with
// acknowledgement are answered (docs/start/from-the-reference.md#client).
func answerToAuth(p *probe, members, reply string) {
	s := p.stream()
	s.send(message(`{"type":"auth","tenant_id":%q,"token":%q%s}`, p.fx.Tenant, p.fx.token(allActions...), members))
	s.expect(reply)
	s.authed = true
	s.send(p.fx.topic().acked(7, "x"))
	s.expect("ack 7 ok")
	s.expectServed()
}

// wildcardCases are the table of docs/protocol/tokens.md#permissions with the fixture's names. What a pattern allows is
// read off the texts: a stream that is allowed and does not exist is "not found".
func wildcardCases(f *Fixture) []Case {
	exact := fmt.Sprintf("stream:%s/%s/%s", f.Tenant, f.Namespace, f.Stream)
	resources := []topic{
		f.topic(),
		{f.Tenant, f.Namespace, ""},
		{f.Tenant, "conformance-a", "b/" + noStream},
	}
	last := f.Stream[len(f.Stream)-1:]
	var all []Case
	for i, x := range []struct {
		pattern string
		allowed [3]bool
	}{
		{exact, [3]bool{true, false, false}},
		{"stream:" + f.Tenant + "/" + f.Namespace + "/*", [3]bool{true, true, false}},
		{"stream:" + f.Tenant + "/*", [3]bool{true, true, true}},
		{"stream:" + f.Tenant + "*", [3]bool{true, true, true}},
		{"stream:*/" + f.Stream, [3]bool{true, false, false}},
		{"*", [3]bool{true, true, true}},
		{exact + "x", [3]bool{}},
		{exact[:len(exact)-1], [3]bool{false, len(f.Stream) == 1, false}},
		{"s*:*/*/*" + last, [3]bool{true, false, strings.HasSuffix(noStream, last)}},
	} {
		all = append(all, Case{
			ID: fmt.Sprintf("RAW-16%c", 'a'+i), Name: "permission stream.publish:" + x.pattern,
			run: func(p *probe) {
				s := p.dial(plain).authed("stream.publish:"+x.pattern, "cache.read:*")
				for j, t := range resources {
					id := uint64(j)
					s.send(t.acked(id, "x"))
					switch {
					case !x.allowed[j]:
						s.expect(fmt.Sprintf("ack %d %q", id, "forbidden"))
					case j == 0:
						s.expect(fmt.Sprintf("ack %d ok", id))
					default:
						s.expect(fmt.Sprintf("ack %d %s", id, short(t.notFound())))
					}
				}
				s.send(p.fx.foreign().acked(9, "x")) // however wide the pattern
				s.expect(`ack 9 "tenant mismatch"`)
				s.expectServed()
			},
		})
	}
	return append(all, Case{ID: "RAW-16z", Name: "no action implies another", run: func(p *probe) {
		s := p.dial(plain).authed("stream.manage:*", "ns.manage:*", "tenant.manage:*", "stream.subscribe:*", "cache.read:*")
		s.send(p.fx.topic().acked(7, "x"))
		s.expect(`ack 7 "forbidden"`)
		s.expectServed()
	}})
}
