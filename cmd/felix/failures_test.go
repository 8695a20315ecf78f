package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/felix-mq/felix/client"
	"github.com/felix-mq/felix/codec"
	"github.com/felix-mq/felix/conformance/script"
	"github.com/felix-mq/felix/quicx"
)

func TestPlain(t *testing.T) {
	for _, tt := range []struct {
		err  error
		want string
	}{
		{errors.New("client: a: quicx: dial: b"), "a: dial: b"},
		{errors.New("my client: x"), "my x"},
		{errors.Join(errors.New("one"), errors.New("two")), "one\ntwo"},
		{fmt.Errorf("x: %w", &client.BrokerError{Message: "a\nfelix: done"}), `x: broker says: a\nfelix: done`},
		{errors.Join(errors.New("y"), &quicx.ConnClosedError{Remote: true, Reason: "\n\x1b[2J"}), "y\n" + `connection closed by peer, code 0x0: \n\x1b[2J`},
		{errors.New("\x1b]52;c;eA==\x07 \u202e \u009b2J \xff ü"), `\x1b]52;c;eA==\a \u202e \u009b2J \xff ü`},
	} {
		if got := plain(tt.err); got != tt.want {
			t.Errorf("%q is shown as %q, want %q", tt.err, got, tt.want)
		}
	}
}

// A broker cannot do anything to the terminal of a client that it refuses.
func TestRefusalIsEscaped(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), deadline)
	defer cancel()
	s, err := script.Listen(ctx, quicx.Config{})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	answered := make(chan error, 1)
	go func() {
		conn, err := s.Accept()
		if err == nil {
			var ctl *script.Control
			if ctl, err = conn.AcceptControl(); err == nil {
				err = ctl.Send(codec.AppendError(nil, "\x1b]52;c;eA==\x07\x1b[2J\r\nfelix: published 1"))
			}
		}
		answered <- err
	}()
	t.Setenv("FELIX_AUTH_TOKEN", "x")
	t.Setenv("XDG_CONFIG_HOME", t.TempDir())
	var out, errOut bytes.Buffer
	code := run([]string{"pub", "demo", "x", "--addr", s.Addr(), "--insecure"}, strings.NewReader(""), &out, &errOut)
	if err := <-answered; err != nil {
		t.Fatal(err)
	}
	if code == exitOK || strings.ContainsAny(errOut.String(), "\x1b\x07\r") || strings.Contains(errOut.String(), "\nfelix: published") {
		t.Errorf("exit code %d and %q", code, errOut.String())
	}
}

// What is not printable is escaped in JSON too, and stays the same value.
func TestJSONIsEscaped(t *testing.T) {
	var b bytes.Buffer
	if err := printJSON(&b, formatNDJSON, "a\u202eb\u009b\U000e0001ü\x1b"); err != nil {
		t.Fatal(err)
	}
	if want := `"a\u202eb\u009b\udb40\udc01ü\u001b"` + "\n"; b.String() != want {
		t.Errorf("got %q, want %q", b.String(), want)
	}
}
