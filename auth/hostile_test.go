package auth

import (
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
)

// hostileToken is a token of the largest size that costs a verifier the most, in one of many ways.
type hostileToken struct {
	name    string
	header  string // text
	payload string // text
	foreign bool   // signed by a key that the tenant does not have
}

func hostileTokens() []hostileToken {
	const good = `"iss":"felix-auth","aud":"felix-broker","sub":"s","tid":"acme","exp":4102444800,"iat":1750000000`
	const perms = `,"perms":["stream.publish:stream:acme/*"]`
	const room = (MaxTokenLen - 200) / 4 * 3
	fill := func(before, part, after string, used int) string {
		if part == "" {
			return before + after
		}
		return before + strings.Repeat(part, (room-used-len(before)-len(after))/len(part)) + after
	}
	payload := func(before, part, after string) string {
		used := len(good) + len(perms) + len(vectorHeader) + 2
		return "{" + good + perms + fill(before, part, after, used) + "}"
	}
	header := func(before, part, after string) string {
		used := len(vectorHeader) + len(vectorPayload) + 2
		return strings.TrimSuffix(vectorHeader, "}") + fill(before, part, after, used) + "}"
	}
	permissions := func(n int, f func(i int) string) string {
		var list []string
		for i := range n {
			list = append(list, f(i))
		}
		text, _ := json.Marshal(list)
		return "{" + good + `,"perms":` + string(text) + "}"
	}
	distinct := func(format string, n int) string { // members with names of their own
		var b strings.Builder
		for i := range n {
			fmt.Fprintf(&b, format, i)
		}
		return b.String()
	}
	out := []hostileToken{
		{name: "plain", payload: vectorPayload},
		{name: "most members", payload: payload(distinct(`,"%0340x":0`, MaxMembers-8), "", "")},
		{name: "too many members", payload: payload(distinct(`,"%x":0`, 5000), "", "")},
		{name: "nested", payload: payload(`,"x":[`, strings.Repeat("[", 120)+strings.Repeat("]", 120)+",", "0]")},
		{name: "numbers", payload: payload(`,"x":[`, "0,", "0]")},
		{name: "exponents", payload: payload(`,"x":[`, "1e9,", "0]")},
		{name: "long number", payload: payload(`,"x":0.`, "1", "")},
		{name: "long nbf", payload: payload(`,"nbf":0.`, "1", "")},
		{name: "escapes", payload: payload(`,"x":"`, `\u0061`, `"`)},
		{name: "escapes in jti", payload: payload(`,"jti":"`, `\u0061`, `"`)},
		{name: "space", payload: payload("", " ", "")},
		{name: "audiences", payload: strings.Replace(payload(`,"x":[`, `"felix-broker",`, "0]"), `"aud":"felix-broker"`, `"aud":["felix-broker"]`, 1)},
		{name: "header members", header: header(distinct(`,"%x":""`, 4000), "", "")},
		{name: "header jwk", header: header(`,"jwk":{"x":[`, "0,", "0]}")},
		{name: "header x5c", header: header(`,"x5c":[`, `"",`, `""]`)},
		{name: "header string", header: header(`,"x":"`, `\u0061`, `"`)},
		{name: "1500 literals", payload: permissions(1500, func(i int) string { return fmt.Sprintf("stream.publish:x%d", i) })},
		{name: "most literals", payload: permissions(2500, func(i int) string { return fmt.Sprintf("cache.read:%x", i) })},
		{name: "1500 prefixes", payload: permissions(1500, func(i int) string { return fmt.Sprintf("stream.publish:x%d*", i) })},
		{name: "prefixes of 200 lengths", payload: permissions(200, func(i int) string {
			return "stream.publish:stream:acme/" + strings.Repeat("a", i) + "b*"
		})},
		{name: "1500 suffixes", payload: permissions(1500, func(i int) string { return fmt.Sprintf("stream.publish:*x%d", i) })},
		{name: "most stars", payload: permissions(MaxStars/150, func(int) string { return "stream.publish:" + strings.Repeat("*a", 150) })},
		{name: "too many stars", payload: permissions(35, func(int) string { return "stream.publish:" + strings.Repeat("*a", 600) })},
		{name: "a run of stars", payload: permissions(1, func(int) string { return "stream.publish:" + strings.Repeat("*", 45_000) })},
	}
	for i := range out {
		if out[i].header == "" {
			out[i].header = vectorHeader
		}
		if out[i].payload == "" {
			out[i].payload = vectorPayload
		}
	}
	for _, h := range out {
		h.foreign = true
		out = append(out, h)
	}
	return out
}

func (h hostileToken) String() string {
	if h.foreign {
		return h.name + "/foreign"
	}
	return h.name + "/good"
}

func (h hostileToken) sign(good, bad *Signer) string {
	if h.foreign {
		good = bad
	}
	return good.sign([]byte(h.header), []byte(h.payload))
}

// TestHostileTokens has each verified or refused for its bound, and a foreign one never for what it claims.
func TestHostileTokens(t *testing.T) {
	good, bad := testSigner(t, 1, vectorKID), testSigner(t, 2, vectorKID)
	v := NewVerifier(StaticKeys{"acme": {good.Key()}}, frozen)
	refused := map[string]Reason{
		"too many members": ReasonPayload, "nested": ReasonPayload, "numbers": ReasonPayload, "exponents": ReasonPayload,
		"long nbf": ReasonNotBefore, "audiences": ReasonAudience, "header members": ReasonHeader, "header jwk": ReasonHeader,
		"header x5c": ReasonHeader, "header string": ReasonHeader, "too many stars": ReasonPermissions,
	}
	for _, h := range hostileTokens() {
		token := h.sign(good, bad)
		if len(token) > MaxTokenLen {
			t.Fatalf("%s has %d bytes", h, len(token))
		}
		_, err := v.Verify(t.Context(), "acme", token)
		want := refused[h.name]
		if h.foreign && want != ReasonHeader {
			want = ReasonSignature
		}
		t.Run(h.String(), func(t *testing.T) { checkReason(t, err, want) })
	}
}

func BenchmarkVerifyHostile(b *testing.B) {
	good, bad := testSigner(b, 1, vectorKID), testSigner(b, 2, vectorKID)
	v := NewVerifier(StaticKeys{"acme": {good.Key()}}, frozen)
	for _, h := range hostileTokens() {
		b.Run(h.String(), func(b *testing.B) {
			token := h.sign(good, bad)
			b.ReportAllocs()
			for b.Loop() {
				_, _ = v.Verify(b.Context(), "acme", token) // see TestHostileTokens
			}
		})
	}
}

func BenchmarkAllowedHostile(b *testing.B) {
	good := testSigner(b, 1, vectorKID)
	v := NewVerifier(StaticKeys{"acme": {good.Key()}}, frozen)
	ns, names := []byte(strings.Repeat("a", 128)), [2][]byte{[]byte(strings.Repeat("a", 127) + "x"), []byte(strings.Repeat("a", 127) + "y")}
	for _, h := range hostileTokens() {
		if h.foreign || !strings.Contains(h.payload, `"perms":["stream.publish:`) {
			continue
		}
		b.Run(h.name, func(b *testing.B) {
			id, err := v.Verify(b.Context(), "acme", h.sign(good, nil))
			if err != nil {
				b.Skip(err) // refused
			}
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				id.Allowed(ActionStreamPublish, KindStream, []byte("acme"), ns, names[i&1])
			}
		})
	}
}

// TestAllowedAgainstEachPattern compares the index with trying every permission, on patterns and names that nearly
// match.
func TestAllowedAgainstEachPattern(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	text := func(letters string, most int) string {
		b := make([]byte, r.IntN(most))
		for i := range b {
			b[i] = letters[r.IntN(len(letters))]
		}
		return string(b)
	}
	allowed := 0
	for range 300 {
		id := &Identity{Tenant: "t"}
		var all []Permission
		for range r.IntN(40) {
			p := Permission{Action: actions[r.IntN(len(actions))], Pattern: "stream:t/" + text("ab/*", 6)}
			switch r.IntN(8) {
			case 0:
				p.Pattern = text("*str", 8)
			case 1:
				p.Pattern += strings.Repeat("a", maxStackResource-12+r.IntN(8)) + text("*", 3)
			}
			all = append(all, p)
			id.allow(p)
		}
		for range 100 {
			namespace, name := text("ab", 3), text("ab/", 4)
			if r.IntN(8) == 0 {
				name += strings.Repeat("a", maxStackResource-14+r.IntN(12))
			}
			action := actions[r.IntN(len(actions))]
			resource := "stream:t/" + namespace + "/" + name
			want := false
			for _, p := range all {
				want = want || p.Action == action && glob([]byte(p.Pattern), []byte(resource)) // see TestGlob
			}
			if got := id.Allowed(action, KindStream, []byte("t"), []byte(namespace), []byte(name)); got != want {
				t.Fatalf("%s %s with %q: %v, want %v", action, resource, all, got, want)
			}
			if want {
				allowed++
			}
		}
	}
	if allowed == 0 {
		t.Error("nothing was allowed")
	}
}

// TestTokenBounds is at each bound and one past it.
func TestTokenBounds(t *testing.T) {
	s := testSigner(t, 1, "k")
	v := NewVerifier(StaticKeys{"acme": {s.Key()}}, frozen)
	members := func(open, format string, n int) string {
		var b strings.Builder
		b.WriteString(open)
		for i := range n {
			fmt.Fprintf(&b, format, i)
		}
		return b.String() + "}"
	}
	headerOf := func(size int) string { // in base64
		const open, end = `{"alg":"EdDSA","x":"`, `"}`
		return open + strings.Repeat("a", size/4*3-len(open)-len(end)) + end
	}
	open := strings.TrimSuffix(vectorPayload, "}") // seven members
	stars := func(n int) string {
		return strings.Replace(vectorPayload, `"perms":[`, `"perms":["cache.read:`+strings.Repeat("*a", n)+`",`, 1)
	}
	for _, c := range []struct {
		name, header, payload string
		want                  Reason
	}{
		{"header length", headerOf(MaxHeaderLen), vectorPayload, ""},
		{"header too long", headerOf(MaxHeaderLen + 4), vectorPayload, ReasonHeader},
		{"header members", members(`{"alg":"EdDSA"`, `,"%d":""`, MaxMembers-1), vectorPayload, ""},
		{"a header member too many", members(`{"alg":"EdDSA"`, `,"%d":""`, MaxMembers), vectorPayload, ReasonHeader},
		{"claims", vectorHeader, members(open, `,"%d":0`, MaxMembers-7), ""},
		{"a claim too many", vectorHeader, members(open, `,"%d":0`, MaxMembers-6), ReasonPayload},
		{"values", vectorHeader, open + `,"x":[0` + strings.Repeat(`,0`, maxValues-8) + `]}`, ""},
		{"a value too many", vectorHeader, open + `,"x":[0` + strings.Repeat(`,0`, maxValues-7) + `]}`, ReasonPayload},
		{"depth", vectorHeader, open + `,"x":` + strings.Repeat("[", maxDepth-1) + strings.Repeat("]", maxDepth-1) + `}`, ""},
		{"too deep", vectorHeader, open + `,"x":` + strings.Repeat("[", maxDepth) + strings.Repeat("]", maxDepth) + `}`, ReasonPayload},
		{"stars", vectorHeader, stars(MaxStars), ""},
		{"a star too many", vectorHeader, stars(MaxStars + 1), ReasonPermissions},
		{"members of jwk that stand twice", `{"alg":"EdDSA","jwk":{"a":1,"\u0061":1}}`, vectorPayload, ReasonHeader},
		{"x5c with null", `{"alg":"EdDSA","x5c":["a",null]}`, vectorPayload, ""},
		{"x5c with an array", `{"alg":"EdDSA","x5c":["a",[]]}`, vectorPayload, ReasonHeader},
		{"perms with an array", vectorHeader, strings.Replace(vectorPayload, `"perms":[`, `"perms":[["cache.read:*"],`, 1), ReasonPermissions},
		{"escaped constants", `{"\u0061lg":"Ed\u0044SA"}`, strings.Replace(vectorPayload, `"felix-auth"`, `"felix\u002dauth"`, 1), ""},
		{"lone surrogate", vectorHeader, open + `,"x":"\ud800"}`, ReasonPayload},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := v.Verify(t.Context(), "acme", s.sign([]byte(c.header), []byte(c.payload)))
			checkReason(t, err, c.want)
		})
	}
	if _, err := s.Mint(Claims{IssuedAt: frozen(), Permissions: []string{"cache.read:" + strings.Repeat("*a", MaxStars+1)}}); !errors.Is(err, ErrSigner) {
		t.Errorf("Mint: %v, want %v", err, ErrSigner)
	}
}

// TestIdentityOwnsItsText verifies other tokens after one, whose identity must keep its texts.
func TestIdentityOwnsItsText(t *testing.T) {
	s := testSigner(t, 1, "k")
	v := NewVerifier(StaticKeys{"acme": {s.Key()}}, frozen)
	var ids []*Identity
	for i := range 50 {
		token, err := s.Mint(Claims{
			Tenant: "acme", Subject: fmt.Sprint(i), IssuedAt: frozen(), Permissions: []string{fmt.Sprintf("stream.publish:*/%d", i)},
		})
		if err != nil {
			t.Fatal(err)
		}
		id, err := v.Verify(t.Context(), "acme", token)
		if err != nil {
			t.Fatal(err)
		}
		ids = append(ids, id)
	}
	for i, id := range ids {
		if id.Subject != fmt.Sprint(i) || !publish(id, "a", fmt.Sprint(i)) || publish(id, "other", fmt.Sprint(i+1)) {
			t.Errorf("%d: identity is %+v", i, id)
		}
	}
}
