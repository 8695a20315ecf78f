package client_test

import (
	"errors"
	"fmt"
	"testing"

	"github.com/felix-mq/felix/client"
	"github.com/felix-mq/felix/client/felixtest"
	"github.com/felix-mq/felix/codec"
)

// TestRefusalsMatchTheirCode compares what a refusal matches with the table of errors.
func TestRefusalsMatchTheirCode(t *testing.T) {
	sentinels := map[codec.Code]error{
		codec.CodeUnauthenticated: client.ErrUnauthenticated,
		codec.CodeForbidden:       client.ErrForbidden,
		codec.CodeNotFound:        client.ErrNotFound,
		codec.CodeInvalid:         client.ErrInvalid,
		codec.CodeTooLarge:        client.ErrTooLarge,
		codec.CodePosition:        client.ErrPosition,
		codec.CodeLimit:           client.ErrLimit,
		codec.CodeOverloaded:      client.ErrOverloaded,
		codec.CodeClosing:         client.ErrClosing,
		codec.CodeStorage:         client.ErrStorage,
		codec.CodeInDoubt:         client.ErrInDoubt,
	}
	if len(sentinels) != len(codec.Codes()) {
		t.Errorf("%d codes, %d errors for them", len(codec.Codes()), len(sentinels))
	}
	for _, r := range append(codec.Refusals(), codec.Refusal{Text: "something new"}) {
		if r.Form == codec.FormCursorError || r.Text == "" {
			continue
		}
		refusal := &client.BrokerError{Message: r.Text}
		err := fmt.Errorf("wrapped: %w", refusal)
		if refusal.Code() != client.Code(r.Code) || client.Retryable(err) != r.Code.Retryable() {
			t.Errorf("%q: code %q, retryable %v", r.Text, refusal.Code(), client.Retryable(err))
		}
		for code, sentinel := range sentinels {
			want := code == r.Code || code == codec.CodeInDoubt && r.Code == codec.CodeStorage
			if errors.Is(err, sentinel) != want {
				t.Errorf("%q matches %v: %v", r.Text, sentinel, !want)
			}
		}
	}
	if !errors.Is(&client.CursorError{}, client.ErrPosition) {
		t.Error("a cursor error is not one of the position")
	}
}

// TestRefusals is refused by a broker in the usual ways.
func TestRefusals(t *testing.T) {
	b := felixtest.Start(t)
	c := b.Connect(t)
	if err := c.Publisher(felixtest.Namespace, "nothing").Publish(t.Context(), nil); !errors.Is(err, client.ErrNotFound) {
		t.Errorf("publish: %v", err)
	}
	if _, err := c.Subscribe(t.Context(), felixtest.Namespace, "nothing"); !errors.Is(err, client.ErrNotFound) {
		t.Errorf("subscribe: %v", err)
	}
	if _, err := c.Cache(felixtest.Namespace, "nothing").Get(t.Context(), "k"); !errors.Is(err, client.ErrNotFound) {
		t.Errorf("get: %v", err)
	}
	_, err := client.Connect(t.Context(), b.Addr(), client.WithTLS(b.TLS()), client.WithToken(felixtest.Tenant, "nonsense"))
	if !errors.Is(err, client.ErrUnauthenticated) || !errors.Is(err, client.ErrAuth) {
		t.Errorf("connect: %v", err)
	}
}
