package client_test

import (
	"encoding/json"
	"math"
	"testing"

	"github.com/felix-mq/felix/client"
)

// TestPositionIsStored stores positions as text and as JSON, and reads them back.
func TestPositionIsStored(t *testing.T) {
	for _, p := range []client.Position{{}, {Epoch: math.MaxUint64, Offset: math.MaxUint64}, {Epoch: 1<<53 + 1, Offset: 7}} {
		type state struct {
			At  client.Position
			For map[client.Position]int
		}
		b, err := json.Marshal(state{p, map[client.Position]int{p: 1}})
		if err != nil {
			t.Fatal(err)
		}
		var again state
		if err := json.Unmarshal(b, &again); err != nil || again.At != p || again.For[p] != 1 {
			t.Errorf("%v is %s in JSON, and that %v again: %v", p, b, again, err)
		}
		var text client.Position
		if err := text.UnmarshalText([]byte(p.String())); err != nil || text != p {
			t.Errorf("%v is %v again: %v", p, text, err)
		}
	}
	var p client.Position
	if err := json.Unmarshal([]byte(`{"Epoch":18446744073709551615,"Offset":3}`), &p); err != nil || p != (client.Position{Epoch: math.MaxUint64, Offset: 3}) {
		t.Errorf("an object of JSON is %v: %v", p, err)
	}
	if b, _ := json.Marshal(client.Position{Epoch: 7, Offset: 42}); string(b) != `"7:42"` {
		t.Errorf("JSON is %s", b)
	}
	before := p
	for _, bad := range []string{"", ":", "7", "7:", ":7", "7:8:9", "-1:2", "x:2", " 7:8", "7:18446744073709551616"} {
		if err := p.UnmarshalText([]byte(bad)); err == nil || p != before {
			t.Errorf("%q is %v: %v", bad, p, err)
		}
	}
	if err := json.Unmarshal([]byte("7"), &p); err == nil {
		t.Error("a number is a position")
	}
}

func FuzzPosition(f *testing.F) {
	f.Add([]byte("7:42"))
	f.Fuzz(func(t *testing.T, text []byte) {
		var p, again client.Position
		if p.UnmarshalText(text) != nil {
			return
		}
		if err := again.UnmarshalText([]byte(p.String())); err != nil || again != p {
			t.Errorf("%q is %v, and then %v: %v", text, p, again, err)
		}
	})
}
