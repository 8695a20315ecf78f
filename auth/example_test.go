package auth_test

import (
	"context"
	"crypto/ed25519"
	"fmt"
	"time"

	"github.com/felix-mq/felix/auth"
)

func Example() {
	signer, err := auth.NewSigner(ed25519.NewKeyFromSeed(make([]byte, 32)), "key-1")
	if err != nil {
		fmt.Println(err)
		return
	}
	token, err := signer.Mint(auth.Claims{
		Tenant:      "acme",
		Subject:     "alice",
		IssuedAt:    time.Now(),
		Permissions: []string{"stream.publish:stream:acme/billing/*"},
	})
	if err != nil {
		fmt.Println(err)
		return
	}

	verifier := auth.NewVerifier(auth.StaticKeys{"acme": {signer.Key()}}, nil)
	id, err := verifier.Verify(context.Background(), "acme", token)
	if err != nil {
		fmt.Println(err)
		return
	}
	for _, stream := range []string{"invoices", "audit"} {
		namespace := "billing"
		if stream == "audit" {
			namespace = "ops"
		}
		allowed := id.Allowed(auth.ActionStreamPublish, auth.KindStream, []byte("acme"), []byte(namespace), []byte(stream))
		fmt.Println(id.Subject, namespace, stream, allowed)
	}
	// Output:
	// alice billing invoices true
	// alice ops audit false
}
