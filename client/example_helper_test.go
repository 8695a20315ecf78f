package client_test

import (
	"context"
	"crypto/tls"
	"log"

	"github.com/felix-mq/felix/client"
	"github.com/felix-mq/felix/conformance/script"
	"github.com/felix-mq/felix/quicx"
)

// exampleBroker is a broker for one example: every stream and cache exists, every token is good, and payloads that say
// "refuse me" are.
type exampleBroker struct {
	Addr  string
	TLS   *tls.Config
	Token string
	Close func()
}

func startBroker() *exampleBroker {
	s, err := script.Listen(context.Background(), quicx.Config{})
	if err != nil {
		log.Fatal(err)
	}
	n := script.NewNormal()
	n.Hook = func(_ *script.Conn, ctl *script.Control, r *script.Request) (bool, error) {
		if r.Payload() != "refuse me" {
			return false, nil
		}
		return true, ctl.Ack(r, "publish admission timed out")
	}
	s.Go(func() { n.Serve(s) })
	return &exampleBroker{Addr: s.Addr(), TLS: s.ClientTLS(), Token: "token", Close: s.Close}
}

// connect returns a client of a broker of its own, and what ends both.
func connect(ctx context.Context) (c *client.Client, end func()) {
	broker := startBroker()
	c, err := client.Connect(ctx, broker.Addr, client.WithTLS(broker.TLS), client.WithToken("t1", broker.Token))
	if err != nil {
		log.Fatal(err)
	}
	return c, func() {
		c.Close()
		broker.Close()
	}
}
