package codec_test

import (
	"fmt"
	"math/bits"
	"slices"
	"strings"
	"testing"

	"github.com/felix-mq/felix/codec"
)

func TestRegistry(t *testing.T) {
	names, sets := codec.RegistryNames()
	var all codec.Extensions
	for i, name := range names {
		if name == "" || slices.Contains(names[:i], name) {
			t.Errorf("name %q is empty or not the only one", name)
		}
		if bits.OnesCount32(uint32(sets[i])) != 1 || all&sets[i] != 0 {
			t.Errorf("%s stands for %#x, want one bit of its own", name, sets[i])
		}
		all |= sets[i]
		equal(t, "names of one extension", sets[i].Names(), []string{name})
	}
	if got := codec.KnownExtensions(); got != all {
		t.Errorf("known are %#x, want %#x", got, all)
	}
	if got := codec.KnownExtensions().Names(); !slices.Equal(got, names) {
		t.Errorf("known are %q, want %q", got, names)
	}
	if got := (^all).Names(); got == nil || len(got) != 0 {
		t.Errorf("bits that stand for nothing are called %q", got)
	}
}

// TestExtensionsTravel negotiates extensions that do not exist.
func TestExtensionsTravel(t *testing.T) {
	defer codec.SetRegistry("first", "second", `"third"`)()
	const first, second, third = codec.Extensions(1), codec.Extensions(2), codec.Extensions(4)
	if got := codec.KnownExtensions(); got != first|second|third {
		t.Errorf("known are %#x", got)
	}
	for _, c := range []struct {
		name, frame, want string
	}{
		{
			"auth", string(codec.AppendAuth(nil, "t", "x", 63, true, third|first)),
			`{"type":"auth","tenant_id":"t","token":"x","client_flags":63,"ext":["first","\"third\""]}`,
		},
		{
			"auth with flags 0", string(codec.AppendAuth(nil, "t", "x", 0, true, second)),
			`{"type":"auth","tenant_id":"t","token":"x","client_flags":0,"ext":["second"]}`,
		},
		{
			"auth without extensions", string(codec.AppendAuth(nil, "t", "x", 63, true, 0)),
			`{"type":"auth","tenant_id":"t","token":"x","client_flags":63}`,
		},
		{
			"auth without flags", string(codec.AppendAuth(nil, "t", "x", 63, false, first)),
			`{"type":"auth","tenant_id":"t","token":"x"}`,
		},
		{
			"auth_ok", string(codec.AppendAuthOK(nil, 63, second, true)),
			`{"type":"auth_ok","server_flags":63,"ext":["second"]}`,
		},
		{
			"auth_ok with nothing in common", string(codec.AppendAuthOK(nil, 63, 0, true)),
			`{"type":"auth_ok","server_flags":63,"ext":[]}`,
		},
		{
			"auth_ok without an offer", string(codec.AppendAuthOK(nil, 63, first, false)),
			`{"type":"auth_ok","server_flags":63}`,
		},
	} {
		if got := c.frame[codec.HeaderLen:]; got != c.want {
			t.Errorf("%s\n got %s\nwant %s", c.name, got, c.want)
		}
		checkMessage(t, []byte(c.frame[codec.HeaderLen:]))
	}

	for ext, want := range map[string]codec.Extensions{
		`[]`:                           0,
		`["first"]`:                    first,
		`["second","first"]`:           first | second,
		`["first","first"]`:            first,
		`["nobody","second","knows"]`:  second,
		`["FIRST","first ","firs",""]`: 0,
		`["f\u0069rst", "\"third\"" ]`: first | third,
		`["nobody"]`:                   0,
		`[` + strings.Repeat(`"x",`, 99) + `"first"]`: first,
	} {
		for typ, members := range map[codec.MessageType]string{
			codec.MsgAuth:   `"tenant_id":"t","token":"x","client_flags":63`,
			codec.MsgAuthOK: `"server_flags":63`,
		} {
			payload := fmt.Appendf(nil, `{"type":%q,%s,"ext":%s}`, typ, members, ext)
			checkMessage(t, payload)
			var m codec.Message
			if err := codec.ParseMessage(payload, &m); err != nil || m.Ext != want || !m.HasExt {
				t.Errorf("%s: extensions %#x, %v, %v, want %#x", payload, m.Ext, m.HasExt, err, want)
			}
		}
	}
	// Extensions say nothing about messages that have no ext.
	checkMessage(t, []byte(`{"type":"ok","ext":["first"]}`))
}

func TestParseExtension(t *testing.T) {
	for _, payload := range []string{"", "\x00", "\x01", "\xffbody"} {
		checkExtension(t, []byte(payload))
	}
}

func TestGaps(t *testing.T) {
	for _, p := range []codec.Position{{}, {Epoch: 1, Offset: 2}, {Epoch: 1<<64 - 1, Offset: 1<<64 - 2}} {
		frame := codec.AppendPosition([]byte("x"), p)[1:]
		equalBytes(t, "position", frame, slowFrame(codec.LayoutExtension, "\x01"+big(8, p.Epoch)+big(8, p.Offset)))
		checkBody(t, frame, codec.ExtensionPosition, func(body []byte) error {
			got, err := codec.ParsePosition(body)
			if err == nil {
				equal(t, "position", got, p)
			}
			return err
		})
	}
	for _, g := range []codec.Gap{{}, {codec.GapReclaimed, 7, 42}, {255, 1<<64 - 1, 1<<64 - 2}} {
		frame := codec.AppendGap([]byte("x"), g)[1:]
		equalBytes(t, "gap", frame, slowFrame(codec.LayoutExtension, "\x02"+big(1, uint64(g.Reason))+big(8, g.Lost)+big(8, g.Next)))
		checkBody(t, frame, codec.ExtensionGap, func(body []byte) error {
			got, err := codec.ParseGap(body)
			if err == nil {
				equal(t, "gap", got, g)
			}
			return err
		})
	}
	for reason, want := range map[codec.GapReason]string{
		codec.GapUnknown: "unknown", codec.GapQueueFull: "queue_full", codec.GapReclaimed: "reclaimed",
		codec.GapExpired: "expired", codec.GapEpoch: "epoch", codec.GapCorrupt: "corrupt", 6: "unknown", 255: "unknown",
	} {
		equal(t, "reason", reason.String(), want)
	}
}

// checkBody parses an extension frame whole, with bytes after it, and cut at every byte.
func checkBody(t *testing.T, frame []byte, want codec.ExtensionType, parse func([]byte) error) {
	t.Helper()
	typ, body, err := codec.ParseExtension(frame[codec.HeaderLen:])
	if err != nil || typ != want {
		t.Fatalf("type %d, %v, want %d", typ, err, want)
	}
	defer untouched(t, body)()
	if err := parse(append(slices.Clone(body), 0xff)); err != nil {
		t.Errorf("with a byte after it: %v", err)
	}
	if err := parse(body); err != nil {
		t.Error(err)
	}
	for n := range body {
		sameClass(t, parse(body[:n]), incomplete)
	}
}

func TestCompressed(t *testing.T) {
	names := func(s ...string) (out string) {
		for _, n := range s {
			out += slowName(n)
		}
		return out
	}
	block := "0123456789"
	list := big(4, 2) + big(4, 13) + block
	for _, acked := range []bool{false, true} {
		mode, head, typ := codec.AckNone, "\x03", codec.ExtensionPublishS2
		if acked {
			mode, head, typ = codec.AckPerBatch, "\x04"+big(8, 7)+big(1, 2), codec.ExtensionPublishAckedS2
		}
		frame := append(codec.AppendCompressedPublish([]byte("x"), 7, mode, "t", "n", "s", 2, 13, len(block)), block...)[1:]
		equalBytes(t, "publish", frame, slowFrame(codec.LayoutExtension, head+names("t", "n", "s")+list))
		got, body, err := codec.ParseExtension(frame[codec.HeaderLen:])
		if err != nil || got != typ || !got.FromClient() {
			t.Fatalf("type %d, %v", got, err)
		}
		if acked {
			id, m, rest, err := codec.ParsePublishAckedPrefix(body)
			if err != nil || id != 7 || m != mode {
				t.Fatalf("prefix %d, %v, %v", id, m, err)
			}
			body = rest
		}
		p, err := codec.ParseCompressedPublish(body)
		if err != nil || string(p.Tenant)+string(p.Namespace)+string(p.Stream) != "tns" || p.Count != 2 || p.RawLen != 13 || string(p.Block) != block {
			t.Fatalf("%+v, %v", p, err)
		}
		endsWithItself(t, "block", p.Block)
		for n := range len(body) - len(block) {
			_, err := codec.ParseCompressedPublish(body[:n])
			sameClass(t, err, incomplete)
		}
		_, err = codec.ParseCompressedPublish([]byte(names("t", "\xff", "s") + list))
		sameClass(t, err, notUTF8)

		countAt := len(frame) - len(list)
		event := codec.RewriteCompressed(frame, countAt, 42)
		equalBytes(t, "events", event, slowFrame(codec.LayoutExtension, "\x05"+big(8, 42)+list))
		_, body, _ = codec.ParseExtension(event[codec.HeaderLen:])
		e, err := codec.ParseCompressedEvents(body)
		if err != nil || e.BaseOffset != 42 || e.Count != 2 || string(e.Block) != block {
			t.Fatalf("%+v, %v", e, err)
		}
		for n := range 16 {
			_, err := codec.ParseCompressedEvents(body[:n])
			sameClass(t, err, incomplete)
		}
	}
	// More items than the bytes can hold.
	_, err := codec.ParseCompressedEvents([]byte(big(8, 0) + big(4, 4) + big(4, 15)))
	sameClass(t, err, incomplete)

	c := codec.Compressed{Count: 2, RawLen: 13}
	for raw, want := range map[string]string{
		big(4, 5) + "hello" + big(4, 0):            "",
		big(4, 5) + "hello":                        incomplete,
		big(4, 5) + "hello" + big(4, 1):            incomplete,
		big(4, 0) + big(4, 0) + big(4, 0) + "x":    incomplete,
		big(4, 4) + "hell" + big(4, 0) + "x":       incomplete,
		big(4, 5) + "hello" + big(4, 0) + "longer": incomplete,
	} {
		items, err := c.Items([]byte("    " + raw))
		sameClass(t, err, want)
		if want == "" && (items.Len() != 2 || string(items.Raw()) != big(4, 2)+raw) {
			t.Errorf("items %q", items.Raw())
		}
	}
}

func TestOrigin(t *testing.T) {
	names := slowName("t") + slowName("n") + slowName("s")
	for _, o := range []codec.Origin{{}, {Producer: [16]byte{1, 15: 9}, Sequence: 1<<64 - 2, Repeated: true}} {
		repeated := "\x00"
		if o.Repeated {
			repeated = "\x01"
		}
		head := string(o.Producer[:]) + big(8, o.Sequence) + repeated + big(8, 7) + "\x02"
		plain := codec.AppendPublishFrom([]byte("x"), o, 7, codec.AckPerBatch, "t", "n", "s", [][]byte{[]byte("hi")})[1:]
		equalBytes(t, "publish", plain, slowFrame(codec.LayoutExtension, "\x09"+head+names+big(4, 1)+big(4, 2)+"hi"))
		block := "0123456789"
		compressed := codec.AppendCompressedPublishFrom([]byte("x"), o, 7, codec.AckPerBatch, "t", "n", "s", 2, 13, len(block))[1:]
		compressed = append(compressed, block...)
		equalBytes(t, "compressed", compressed, slowFrame(codec.LayoutExtension, "\x0a"+head+names+big(4, 2)+big(4, 13)+block))
		for typ, frame := range map[codec.ExtensionType][]byte{codec.ExtensionPublishFrom: plain, codec.ExtensionPublishFromS2: compressed} {
			got, body, err := codec.ParseExtension(frame[codec.HeaderLen:])
			if err != nil || got != typ || !got.FromClient() {
				t.Fatalf("type %d, %v", got, err)
			}
			read, rest, err := codec.ParseOrigin(body)
			if err != nil || read != o {
				t.Fatalf("origin %+v, %v, want %+v", read, err, o)
			}
			if id, mode, _, err := codec.ParsePublishAckedPrefix(rest); err != nil || id != 7 || mode != codec.AckPerBatch {
				t.Fatalf("prefix %d, %v, %v", id, mode, err)
			}
			for n := range codec.OriginLen {
				_, _, err := codec.ParseOrigin(body[:n])
				sameClass(t, err, incomplete)
			}
			codec.PutSequence(frame, 42)
			if read, _, err = codec.ParseOrigin(body); err != nil || read.Sequence != 42 || read.Producer != o.Producer || read.Repeated != o.Repeated {
				t.Errorf("with another sequence: %+v, %v", read, err)
			}
		}
	}
	ack := codec.AppendPublishAckNotKept([]byte("x"), 7)[1:]
	equalBytes(t, "acknowledgement", ack, slowFrame(codec.LayoutPublishAck, big(1, 0)+big(8, 7)+big(2, 8)+"not kept"))
	for text, want := range map[string]bool{"not kept": true, "": false, "not kept ": false, "Not kept": false} {
		a, err := codec.ParsePublishAck([]byte(big(1, 0) + big(8, 7) + big(2, uint64(len(text))) + text))
		if err != nil || !a.OK || a.NotKept != want || a.Message != nil {
			t.Errorf("%q: %+v, %v", text, a, err)
		}
		if a, err := codec.ParsePublishAck([]byte(big(1, 1) + big(8, 7) + big(2, uint64(len(text))) + text)); err != nil || a.NotKept {
			t.Errorf("%q, refused: %+v, %v", text, a, err)
		}
	}
}
