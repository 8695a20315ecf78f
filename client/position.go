package client

import (
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
)

// Position is a place in a stream: after the last event or gap that a subscription has handed out. Offsets count
// within an epoch, which ends when the broker forgets the stream's past, by a restart for instance. A durable stream
// keeps its epoch, so a position in one can be stored and used after restarts of both sides: as text, by String and
// UnmarshalText, or as JSON, where it is that text as a string. An epoch is too large for the numbers of many programs
// that read JSON.
type Position struct {
	Epoch  uint64
	Offset uint64 // of the next event
}

// String returns the position as text: the epoch, a colon and the offset, both decimal.
func (p Position) String() string { return fmt.Sprintf("%d:%d", p.Epoch, p.Offset) }

// MarshalText implements [encoding.TextMarshaler]. It returns the text of String, and no error.
func (p Position) MarshalText() ([]byte, error) { return []byte(p.String()), nil }

// UnmarshalText implements [encoding.TextUnmarshaler]. It reads the text of String, and fails for any other, with p as
// it was.
func (p *Position) UnmarshalText(text []byte) error {
	epoch, offset, _ := strings.Cut(string(text), ":")
	var read Position
	var err error
	if read.Epoch, err = strconv.ParseUint(epoch, 10, 64); err == nil {
		read.Offset, err = strconv.ParseUint(offset, 10, 64)
	}
	if err != nil {
		return fmt.Errorf("client: no position: %w", err)
	}
	*p = read
	return nil
}

// UnmarshalJSON implements [json.Unmarshaler]. It reads the string that a position is in JSON, and also the object with
// the members Epoch and Offset that it was before there was a text.
func (p *Position) UnmarshalJSON(b []byte) error {
	if len(b) > 0 && b[0] == '{' {
		type object Position // without the methods
		return json.Unmarshal(b, (*object)(p))
	}
	var text string
	if err := json.Unmarshal(b, &text); err != nil {
		return fmt.Errorf("client: no position: %w", err)
	}
	return p.UnmarshalText([]byte(text))
}
