package testvectors

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// ReferenceVector is a vector of the reference implementation: a pair of files NAME.json and NAME.hex
// (testvectors/README.md#where-they-come-from). The fields hold what the files say, unchecked.
type ReferenceVector struct {
	// File is the NAME of the pair, Name the member of the JSON file, which should be the same.
	File string `json:"-"`
	Name string `json:"name"`
	Note string `json:"note"`
	// Kind is "" for a JSON message, or binary_acked_publish_batch or binary_publish_ack.
	Kind string `json:"kind"`
	// Flags are the flags in the header of the frame.
	Flags uint16 `json:"flags"`
	// PayloadHex is the payload in hex, FrameHex the frame: the header and the payload.
	PayloadHex string `json:"payload_hex"`
	FrameHex   string `json:"frame_hex"`
	// Hex is the content of NAME.hex without the space around it.
	Hex string `json:"-"`

	// PayloadJSON is the text of the payload, for JSON messages alone.
	PayloadJSON string `json:"payload_json"`

	// The decoded values, for binary kinds alone. Message is nil if the file says null.
	Status       string   `json:"status"`
	RequestID    uint64   `json:"request_id"`
	Message      *string  `json:"message"`
	AckMode      string   `json:"ack_mode"`
	TenantID     string   `json:"tenant_id"`
	Namespace    string   `json:"namespace"`
	Stream       string   `json:"stream"`
	PayloadsUTF8 []string `json:"payloads_utf8"`
}

// ReadReference reads the folder of the reference implementation's vectors, in the order of their names. It fails if
// the folder has none, if a file cannot be read or parsed, and if a JSON file has no hex file next to it or the other
// way round. Members it does not know are ignored.
func ReadReference(dir string) ([]ReferenceVector, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("testvectors: reading reference vectors: %w", err)
	}
	var vectors []ReferenceVector
	for _, entry := range entries {
		path := filepath.Join(dir, entry.Name())
		base, isHex := strings.CutSuffix(path, ".hex")
		if isHex {
			if _, err := os.Stat(base + ".json"); err != nil {
				return nil, fmt.Errorf("testvectors: hex file without its vector: %w", err)
			}
			continue
		}
		base, isJSON := strings.CutSuffix(path, ".json")
		if !isJSON {
			continue
		}
		content, err := os.ReadFile(path)
		if err != nil {
			return nil, fmt.Errorf("testvectors: reading a reference vector: %w", err)
		}
		v := ReferenceVector{File: filepath.Base(base)}
		if err := json.Unmarshal(content, &v); err != nil {
			return nil, fmt.Errorf("testvectors: %s: %w", entry.Name(), err)
		}
		digits, err := os.ReadFile(base + ".hex")
		if err != nil {
			return nil, fmt.Errorf("testvectors: vector without its hex file: %w", err)
		}
		v.Hex = strings.TrimSpace(string(digits))
		vectors = append(vectors, v)
	}
	if len(vectors) == 0 {
		return nil, fmt.Errorf("testvectors: no reference vectors in %s", dir)
	}
	return vectors, nil
}
