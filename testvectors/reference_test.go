package testvectors_test

import (
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/felix-mq/felix/codec"
	"github.com/felix-mq/felix/testvectors"
)

// referenceDir names the folder of the reference implementation's vectors.
const referenceDir = "FELIX_REFERENCE_VECTORS"

// requireReference, set to 1, makes a missing folder a failure.
const requireReference = "FELIX_REQUIRE_REFERENCE"

// TestReferenceVectors does with each vector of the reference implementation what the reference does
// (testvectors/README.md#where-they-come-from): frames the payload, decodes the frame, compares the values, encodes
// them again and compares the bytes.
func TestReferenceVectors(t *testing.T) {
	dir := os.Getenv(referenceDir)
	if dir == "" {
		if os.Getenv(requireReference) == "1" {
			t.Fatalf("%s=1, but %s is not set", requireReference, referenceDir)
		}
		t.Skip("set " + referenceDir + " to the folder of the reference implementation's vectors to run them")
	}
	vectors, err := testvectors.ReadReference(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, v := range vectors {
		t.Run(v.File, func(t *testing.T) {
			if v.Name != v.File {
				t.Errorf("name = %q, want the name of the file", v.Name)
			}
			if v.Hex != v.FrameHex {
				t.Errorf("the hex file and frame_hex differ:\n got %s\nwant %s", v.Hex, v.FrameHex)
			}
			payload, frame := unhex(t, v.PayloadHex), unhex(t, v.FrameHex)
			compareBytes(t, "framed payload",
				append(codec.AppendHeader(nil, codec.Flags(v.Flags), len(payload)), payload...), frame)

			kind, values, err := decode(frame, testvectors.DefaultMaxFrame, 0)
			if err != nil {
				t.Fatalf("decoding: %v (class %q)", err, codec.ClassOf(err))
			}
			wantKind := v.Kind
			var want testvectors.Fields
			if v.Kind == "" {
				compareBytes(t, "payload_json", []byte(v.PayloadJSON), payload)
				wantKind, want = fieldsOfJSON(t, v.PayloadJSON)
			} else {
				want = fieldsOfReference(t, v)
			}
			if kind != wantKind {
				t.Fatalf("kind = %q, want %q", kind, wantKind)
			}
			compareValues(t, values, valuesOf(want, kind))
			compareBytes(t, "encoded", encode(t, nil, kind, v.Flags, want), frame)
		})
	}
}

func unhex(t *testing.T, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(s)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func bytesOf(b []byte) testvectors.Bytes { return testvectors.Bytes{{Unit: b, Count: 1}} }

// fieldsOfReference returns the decoded values of a binary vector.
func fieldsOfReference(t *testing.T, v testvectors.ReferenceVector) testvectors.Fields {
	t.Helper()
	f := testvectors.Fields{
		TenantID: testvectors.Text(v.TenantID), Namespace: testvectors.Text(v.Namespace), Stream: testvectors.Text(v.Stream),
		RequestID: &v.RequestID, Status: v.Status, Ack: v.AckMode,
	}
	if v.Message != nil {
		f.Message = testvectors.Text(*v.Message)
	}
	for _, p := range v.PayloadsUTF8 {
		f.Payloads = append(f.Payloads, bytesOf([]byte(p)))
	}
	return f
}

// fieldsOfJSON reads a message with encoding/json, which is lax but has not been written by us.
func fieldsOfJSON(t *testing.T, text string) (kind string, f testvectors.Fields) {
	t.Helper()
	var m struct {
		Type           string   `json:"type"`
		TenantID       string   `json:"tenant_id"`
		Namespace      string   `json:"namespace"`
		Stream         string   `json:"stream"`
		Cache          string   `json:"cache"`
		Key            string   `json:"key"`
		Token          string   `json:"token"`
		Message        string   `json:"message"`
		Payload        string   `json:"payload"`
		Payloads       []string `json:"payloads"`
		Value          *string  `json:"value"`
		RequestID      *uint64  `json:"request_id"`
		SubscriptionID *uint64  `json:"subscription_id"`
		Offset         *uint64  `json:"offset"`
		BaseOffset     *uint64  `json:"base_offset"`
		TTL            *uint64  `json:"ttl_ms"`
		Ack            string   `json:"ack"`
		Start          any      `json:"start"`
		ClientFlags    *uint16  `json:"client_flags"`
		ServerFlags    *uint16  `json:"server_flags"`
		Reason         string   `json:"reason"`
		Requested      *uint64  `json:"requested"`
		Available      *uint64  `json:"available"`
	}
	if err := json.Unmarshal([]byte(text), &m); err != nil {
		t.Fatal(err)
	}
	unbase64 := func(s string) testvectors.Bytes {
		b, err := base64.StdEncoding.Strict().DecodeString(s)
		if err != nil {
			t.Fatal(err)
		}
		return bytesOf(b)
	}
	f = testvectors.Fields{
		TenantID: testvectors.Text(m.TenantID), Namespace: testvectors.Text(m.Namespace), Stream: testvectors.Text(m.Stream),
		Cache: testvectors.Text(m.Cache), Key: testvectors.Text(m.Key), Token: testvectors.Text(m.Token),
		Message: testvectors.Text(m.Message), Payload: unbase64(m.Payload),
		RequestID: m.RequestID, SubscriptionID: m.SubscriptionID, Offset: m.Offset, BaseOffset: m.BaseOffset, TTL: m.TTL,
		Ack: m.Ack, ClientFlags: m.ClientFlags, ServerFlags: m.ServerFlags,
		Reason: m.Reason, Requested: m.Requested, Available: m.Available,
	}
	for _, p := range m.Payloads {
		f.Payloads = append(f.Payloads, unbase64(p))
	}
	if m.Value != nil {
		value := unbase64(*m.Value)
		f.Value = &value
	}
	switch start := m.Start.(type) {
	case nil:
	case string:
		f.Start = &testvectors.Start{Keyword: start}
	case map[string]any:
		offset, ok := start["offset"].(float64)
		if !ok {
			t.Fatalf("start %v", start)
		}
		f.Start = &testvectors.Start{Offset: uint64(offset)}
	default:
		t.Fatalf("start %v", start)
	}
	return m.Type, f
}

func TestReadReference(t *testing.T) {
	const ok = `{"name":"ok","payload_json":"{}","payload_hex":"7b7d","frame_hex":"00","note":"n","later":[]}`
	const ack = `{"name":"ack","kind":"binary_publish_ack","flags":16,"status":"ok","request_id":18446744073709551615,` +
		`"message":null,"payload_hex":"","frame_hex":"01"}`
	for _, c := range []struct {
		name    string
		files   map[string]string
		want    []string // FILE kind hex
		wantErr string
	}{
		{
			name:  "pairs in order, newline trimmed, other files ignored",
			files: map[string]string{"ok.json": ok, "ok.hex": "00\n", "ack.json": ack, "ack.hex": "01", "README": ""},
			want:  []string{"ack binary_publish_ack 01", "ok  00"},
		},
		{name: "no vectors", files: map[string]string{"README": ""}, wantErr: "no reference vectors"},
		{name: "no hex file", files: map[string]string{"ok.json": ok}, wantErr: "without its hex file"},
		{name: "no json file", files: map[string]string{"ok.hex": "00"}, wantErr: "without its vector"},
		{name: "not json", files: map[string]string{"ok.json": "{", "ok.hex": "00"}, wantErr: "ok.json"},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			for name, content := range c.files {
				if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			vectors, err := testvectors.ReadReference(dir)
			if c.wantErr != "" {
				if err == nil || !strings.Contains(err.Error(), c.wantErr) {
					t.Fatalf("error = %v, want one with %q", err, c.wantErr)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, v := range vectors {
				got = append(got, v.File+" "+v.Kind+" "+v.Hex)
			}
			if strings.Join(got, "\n") != strings.Join(c.want, "\n") {
				t.Errorf("got %q, want %q", got, c.want)
			}
			if vectors[0].RequestID != 1<<64-1 || vectors[0].Message != nil || vectors[1].PayloadJSON != "{}" {
				t.Errorf("members: %+v", vectors)
			}
		})
	}
	t.Run("no folder", func(t *testing.T) {
		_, err := testvectors.ReadReference(filepath.Join(t.TempDir(), "none"))
		if !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("error = %v, want that the folder does not exist", err)
		}
	})
}
