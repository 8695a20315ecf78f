package main

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

const packageDir = "../.."

// TestCommittedFiles fails if somebody edits a vector by hand, or changes the generator and forgets to run it.
func TestCommittedFiles(t *testing.T) {
	written := map[string]bool{}
	for _, f := range files() {
		written[f.path] = true
		want, err := f.encode()
		if err != nil {
			t.Fatal(err)
		}
		got, err := os.ReadFile(filepath.Join(packageDir, filepath.FromSlash(f.path)))
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got, want) {
			t.Errorf("%s differs from what the generator writes: run go generate ./testvectors", f.path)
		}
	}
	for _, dir := range []string{"valid", "invalid", "fanout"} {
		entries, err := os.ReadDir(filepath.Join(packageDir, dir))
		if err != nil {
			t.Fatal(err)
		}
		for _, entry := range entries {
			if path := dir + "/" + entry.Name(); !written[path] {
				t.Errorf("%s is not written by the generator", path)
			}
		}
	}
}

func TestNamesAreUnique(t *testing.T) {
	seen := map[string]string{}
	check := func(path, name string) {
		t.Helper()
		if name == "" || strings.ContainsAny(name, " \t\n") {
			t.Errorf("%s: bad name %q", path, name)
		}
		if other, ok := seen[name]; ok {
			t.Errorf("%s: the name %q is also in %s", path, name, other)
		}
		seen[name] = path
	}
	for _, f := range files() {
		switch vectors := f.Vectors.(type) {
		case []vector:
			for _, v := range vectors {
				check(f.path, v.Name)
			}
		case []invalidVector:
			for _, v := range vectors {
				check(f.path, v.Name)
			}
		case []rewrite:
			for _, v := range vectors {
				check(f.path, v.Name)
			}
		default:
			t.Errorf("%s: no vectors", f.path)
		}
	}
}

// The worked examples of docs/protocol/wire.md#binary-payloads, typed from there, against the encoders here.
func TestWorkedExamples(t *testing.T) {
	hello := []blob{raw("hello"), nil}
	subscription, offset := be64(5), be64(42)
	for _, c := range []struct {
		name string
		got  blob
		want string
	}{
		{
			"publish batch", frame(flagsPublish, cat(demo.payload(), itemList(hello))),
			"464c5831 0001 0001 00000024 0002 7431 0007 64656661756c74 0004 64656d6f 00000002 00000005 68656c6c6f 00000000",
		},
		{
			"acked publish batch", frame(flagsPublishAcked, cat(ackedPrefix(7, 1), demo.payload(), itemList(hello))),
			"464c5831 0001 0009 0000002d 0000000000000007 01 0002 7431 0007 64656661756c74 0004 64656d6f " +
				"00000002 00000005 68656c6c6f 00000000",
		},
		{
			"shared event batch", frame(flagsShared, itemList(hello)),
			"464c5831 0001 0004 00000011 00000002 00000005 68656c6c6f 00000000",
		},
		{
			"shared event batch with offset", frame(flagsSharedOffsets, cat(offset, itemList(hello))),
			"464c5831 0001 0024 00000019 000000000000002a 00000002 00000005 68656c6c6f 00000000",
		},
		{
			"event batch", frame(flagsEvent, cat(subscription, itemList(hello))),
			"464c5831 0001 0002 00000019 0000000000000005 00000002 00000005 68656c6c6f 00000000",
		},
		{
			"event batch with offset", frame(flagsEventOffsets, cat(subscription, offset, itemList(hello))),
			"464c5831 0001 0022 00000021 0000000000000005 000000000000002a 00000002 00000005 68656c6c6f 00000000",
		},
		// Of the reference implementation.
		{
			"acknowledgement", frame(flagsPublishAck, publishAck(0, 7, nil)),
			"464c5831 0001 0010 0000000b 00 0000000000000007 0000",
		},
		{
			"error acknowledgement", frame(flagsPublishAck, publishAck(1, 9, text("stream not found"))),
			"464c5831 0001 0010 0000001b 01 0000000000000009 0010 73747265616d206e6f7420666f756e64",
		},
	} {
		if got, want := hex.EncodeToString(c.got.bytes()), strings.ReplaceAll(c.want, " ", ""); got != want {
			t.Errorf("%s:\n got %s\nwant %s", c.name, got, want)
		}
	}

	for _, c := range []struct {
		message message
		length  int
		want    string
	}{
		{
			msg("auth", str("tenant_id", "t1"), str("token", "demo-token")), 53,
			`{"type":"auth","tenant_id":"t1","token":"demo-token"}`,
		},
		{
			msg("publish_batch", topic(b64s(hello...), num("request_id", 7), enum("ack", "per_batch"))...), 139,
			`{"type":"publish_batch","tenant_id":"t1","namespace":"default","stream":"demo","payloads":["aGVsbG8=",""],` +
				`"request_id":7,"ack":"per_batch"}`,
		},
		{
			msg("subscribe", topic(startOffset(42))...), 97,
			`{"type":"subscribe","tenant_id":"t1","namespace":"default","stream":"demo","start":{"offset":42}}`,
		},
		{msg("subscribed", num("subscription_id", 5)), 41, `{"type":"subscribed","subscription_id":5}`},
		{msg("event_stream_hello", num("subscription_id", 5)), 49, `{"type":"event_stream_hello","subscription_id":5}`},
		{msg("publish_ok", num("request_id", 7)), 36, `{"type":"publish_ok","request_id":7}`},
		{
			msg("publish_error", num("request_id", 7), str("message", "forbidden")), 61,
			`{"type":"publish_error","request_id":7,"message":"forbidden"}`,
		},
		{
			msg("cache_put", entry(b64("value", raw("v")), num("request_id", 1), nullTTL())...), 131,
			`{"type":"cache_put","tenant_id":"t1","namespace":"default","cache":"primary","key":"k","value":"dg==",` +
				`"request_id":1,"ttl_ms":null}`,
		},
		{msg("cache_ok", num("request_id", 1)), 34, `{"type":"cache_ok","request_id":1}`},
		{
			msg("cache_value", entry(nullValue(), num("request_id", 2))...), 117,
			`{"type":"cache_value","tenant_id":"t1","namespace":"default","cache":"primary","key":"k","value":null,"request_id":2}`,
		},
		{
			msg("subscribe_cursor_error", enum("reason", "too_old"), num("requested", 3), num("available", 16)), 81,
			`{"type":"subscribe_cursor_error","reason":"too_old","requested":3,"available":16}`,
		},
	} {
		got := string(c.message.payload().bytes())
		if got != c.want || len(got) != c.length {
			t.Errorf("%s:\n got %d %s\nwant %d %s", c.message.kind, len(got), got, c.length, c.want)
		}
	}
}

// TestJSONReadsBack judges the JSON encoder with another decoder: its payloads are JSON and hold the fields.
func TestJSONReadsBack(t *testing.T) {
	for _, v := range jsonMessages() {
		var decoded map[string]any
		if err := json.Unmarshal(v.Frame.bytes()[12:], &decoded); err != nil {
			t.Errorf("%s: %v", v.Name, err)
			continue
		}
		for _, f := range v.Fields {
			want, isText := f.value.(textValue)
			if isText && decoded[f.name] != string(blob(want).bytes()) {
				t.Errorf("%s: %s = %q, want %q", v.Name, f.name, decoded[f.name], blob(want).bytes())
			}
			delete(decoded, f.name)
		}
		delete(decoded, "type")
		if v, ok := decoded["ttl_ms"]; ok && v == nil {
			delete(decoded, "ttl_ms")
		}
		if len(decoded) > 0 {
			t.Errorf("%s: members without fields: %v", v.Name, decoded)
		}
	}
}

func TestNotation(t *testing.T) {
	for _, c := range []struct {
		name string
		b    blob
		want string
		len  int
	}{
		{"empty", nil, `""`, 0},
		{"hex", hx("46 4c"), `"464c"`, 2},
		{"merged", cat(hx("46"), hx("4c"), raw("X")), `"464c58"`, 3},
		{"text", cat(hx("46"), text("<é"), text("\"")), `[{"hex":"46"},{"text":"<é\""}]`, 5},
		{"run", cat(hx("46"), repeat(hx("00ff"), 3), hx("4c")), `[{"hex":"46"},{"hex":"00ff","count":3},{"hex":"4c"}]`, 8},
	} {
		got, err := plainJSON(c.b)
		if err != nil {
			t.Fatal(err)
		}
		if string(got) != c.want || c.b.len() != c.len || len(c.b.bytes()) != c.len {
			t.Errorf("%s: %s with %d bytes, want %s with %d", c.name, got, c.b.len(), c.want, c.len)
		}
	}
}
