// Package clienttest has what the tests of package client and of felixtest share.
package clienttest

import (
	"context"

	"github.com/felix-mq/felix/client"
)

// Outcome is that of an event which was published asynchronously.
type Outcome chan error

// PublishAsync publishes an event.
func PublishAsync(ctx context.Context, pub *client.Publisher, payload []byte) Outcome {
	o := make(Outcome, 1)
	pub.PublishAsync(ctx, payload, func(err error) { o <- err })
	return o
}

// Wait waits for the outcome, once, and returns it. If ctx ends first it returns the reason.
func (o Outcome) Wait(ctx context.Context) error {
	select {
	case err := <-o:
		return err
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
