package broker

import (
	"bytes"
	"context"
	"sync/atomic"
	"testing"

	"github.com/felix-mq/felix/codec"
	"github.com/felix-mq/felix/quicx"
)

// TestProvenToken: a connection's streams that show one token cost one look at its signature, and any other token, with
// another signature for instance, costs another look.
func TestProvenToken(t *testing.T) {
	d := startDev(t, nil)
	var looks atomic.Int32
	d.verifier.Bound(func(context.Context, string) error { looks.Add(1); return nil }, func() {})
	open := dialDev(t, d, quicx.Config{})
	ok := func(frame []byte) bool {
		t.Helper()
		f, err := open(frame).Next()
		if err != nil {
			t.Fatal(err)
		}
		return !bytes.Contains(f.Bytes, []byte(codec.AuthFailed.Text))
	}
	for range 5 {
		if !ok(authFrame(d)) {
			t.Fatal("a good token is refused")
		}
	}
	if n := looks.Load(); n != 1 {
		t.Errorf("%d looks at one signature", n)
	}
	forged := []byte(d.Token)
	at := bytes.LastIndexByte(forged, '.') + 5
	if forged[at] == 'A' {
		forged[at] = 'B'
	} else {
		forged[at] = 'A'
	}
	if ok(codec.AppendAuth(nil, d.Tenant, string(forged), codec.KnownFlags, true, codec.KnownExtensions())) {
		t.Error("another signature is accepted")
	}
	if ok(codec.AppendAuth(nil, "other", d.Token, codec.KnownFlags, true, codec.KnownExtensions())) {
		t.Error("the token is accepted for another tenant")
	}
	if !ok(authFrame(d)) {
		t.Error("the good token is refused after that")
	}
	if n := looks.Load(); n != 2 {
		t.Errorf("%d looks, want one for each of two texts", n)
	}
}
