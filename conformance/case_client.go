package conformance

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/felix-mq/felix/client"
)

// clientCases are the rows of the checklist in which package client is one side.
func clientCases() []Case {
	return []Case{
		{ID: "IC-01", Name: "client connects", run: func(p *probe) { p.client() }},
		{ID: "IC-15", Name: "client with a token that is refused", run: clientRefused},
		{ID: "IC-19", Name: "client: batches without acknowledgement", run: clientSends},
		{ID: "IC-20", Name: "client: 200 acknowledged publishes at once", run: clientPipelined},
		{ID: "IC-33", Name: "client: a refused publish, then good ones", run: clientRefusedPublish},
		{ID: "IC-35", Name: "client: subscribe, publish, receive in order", run: clientSubscribes},
		{ID: "IC-42", Name: "client: start at earliest and at an offset", run: clientStarts},
		{ID: "IC-46", Name: "client: one of three subscriptions of a connection is closed", run: clientCloses},
		{ID: "IC-48", Name: "client: 150 subscriptions on one connection", run: clientMany},
		{ID: "IC-50", Name: "client: put, get, overwrite, miss, empty, binary", run: clientCache},
		{ID: "IC-51", Name: "client: lifetimes of 100 ms, none and 0", run: clientTTL},
	}
}

// client connects with everything allowed.
func (p *probe) client(opts ...client.Option) *client.Client {
	opts = append([]client.Option{
		client.WithTLS(p.target.TLS), client.WithToken(p.fx.Tenant, p.fx.token(allActions...)), client.WithRequestTimeout(p.o.ReplyTimeout),
	}, opts...)
	c, err := client.Connect(p.ctx, p.target.Addr, opts...)
	if err != nil {
		p.fail("the client connects", err.Error())
	}
	p.onClose(func() { _ = c.Close() })
	return c
}

func clientRefused(p *probe) {
	token := p.fx.forge(allActions, func(t *forgery) { t.claims["exp"] = time.Now().Add(-time.Hour).Unix() })
	c, err := client.Connect(p.ctx, p.target.Addr, client.WithTLS(p.target.TLS), client.WithToken(p.fx.Tenant, token))
	if err == nil {
		_ = c.Close()
	}
	if !errors.Is(err, client.ErrAuth) {
		p.fail(client.ErrAuth.Error(), fmt.Sprint(err))
	}
}

// clientSub is a subscription of package client.
type clientSub struct {
	p *probe
	s *client.Subscription
}

func (p *probe) clientSubscribe(c *client.Client, opts ...client.SubscribeOption) clientSub {
	s, err := c.Subscribe(p.ctx, p.fx.Namespace, p.fx.Stream, opts...)
	if err != nil {
		p.fail("the client subscribes", err.Error())
	}
	p.onClose(func() { _ = s.Close() })
	return clientSub{p, s}
}

// next returns the payload of the next event.
func (s clientSub) next() string {
	ctx, cancel := context.WithTimeout(s.p.ctx, s.p.o.ReplyTimeout)
	defer cancel()
	ev, err := s.s.Next(ctx)
	for err == nil && ev.IsGap() {
		ev, err = s.s.Next(ctx)
	}
	if err != nil {
		s.p.fail("an event", s.p.waitText(err))
	}
	return string(ev.Payload)
}

func (s clientSub) expect(payloads ...string) {
	for _, want := range payloads {
		if got := s.next(); got != want {
			s.p.fail(short(want), short(got))
		}
	}
}

func clientSends(p *probe) {
	c := p.client()
	s := p.clientSubscribe(c)
	pub := c.Publisher(p.fx.Namespace, p.fx.Stream)
	items := p.payloads(100, 0)
	items[3], items[99] = "", ""
	p.must("Send", pub.Send(p.ctx, []byte(items[0])))
	p.must("Send", pub.Send(p.ctx, byteItems(items[1:])...))
	s.expect(items...)
}

// clientPipelined publishes from 200 goroutines at once, which the client pipelines on one stream. Every acknowledged
// event is delivered once.
func clientPipelined(p *probe) {
	c := p.client()
	s := p.clientSubscribe(c)
	pub := c.Publisher(p.fx.Namespace, p.fx.Stream)
	items := p.payloads(200, 0)
	errs := make([]error, len(items))
	var wg sync.WaitGroup
	for i, item := range items {
		wg.Go(func() { errs[i] = pub.Publish(p.ctx, []byte(item)) })
	}
	wg.Wait()
	missing := make(map[string]bool)
	for i, err := range errs {
		refused, isRefused := errors.AsType[*client.BrokerError](err)
		switch {
		case err == nil:
			missing[items[i]] = true
		case p.fx.Reference && isRefused && refused.Message == "publish queue full":
		default:
			p.fail("200 publishes are acknowledged", err.Error())
		}
	}
	for range len(missing) {
		got := s.next()
		if !missing[got] {
			p.fail("each event once", short(got)+" again, or one that was refused")
		}
		delete(missing, got)
	}
}

func clientRefusedPublish(p *probe) {
	c := p.client(client.WithTransport(client.Transport{PublishConns: 1}))
	s := p.clientSubscribe(c)
	pub := c.Publisher(p.fx.Namespace, p.fx.Stream)
	none := c.Publisher(p.fx.Namespace, noStream)
	for _, item := range p.payloads(5, 0) {
		err := none.Publish(p.ctx, []byte("x"))
		if refused, ok := errors.AsType[*client.BrokerError](err); !ok || refused.Message != p.fx.missing().notFound() {
			p.fail(p.fx.missing().notFound(), fmt.Sprint(err))
		}
		p.must("a publish after a refused one", pub.Publish(p.ctx, []byte(item)))
		s.expect(item)
	}
}

func clientSubscribes(p *probe) {
	c := p.client()
	s := p.clientSubscribe(c)
	pub := c.Publisher(p.fx.Namespace, p.fx.Stream)
	items := p.payloads(50, 0)
	for _, item := range items {
		p.must("Publish", pub.Publish(p.ctx, []byte(item)))
	}
	s.expect(items...)
}

func clientStarts(p *probe) {
	c := p.client()
	pub := c.Publisher(p.fx.Namespace, p.fx.Stream)
	tail := p.dial(plain).tail(p.fx.topic())
	items := p.payloads(20, 0)
	p.must("Publish", pub.Publish(p.ctx, byteItems(items)...))
	p.clientSubscribe(c, client.FromOffset(tail+5)).expect(items[5:]...)
	s := p.clientSubscribe(c, client.FromEarliest())
	for s.next() != items[0] {
	}
	s.expect(items[1:]...)

	_, err := c.Subscribe(p.ctx, p.fx.Namespace, p.fx.Stream, client.FromOffset(tail+21))
	if ce, ok := errors.AsType[*client.CursorError](err); !ok || ce.TooOld || ce.Requested != tail+21 || ce.Available != tail+20 {
		p.fail((&client.CursorError{Requested: tail + 21, Available: tail + 20}).Error(), fmt.Sprint(err))
	}
}

func clientCloses(p *probe) {
	c := p.client(client.WithTransport(client.Transport{EventConns: 1}))
	subs := []clientSub{p.clientSubscribe(c), p.clientSubscribe(c), p.clientSubscribe(c)}
	pub := c.Publisher(p.fx.Namespace, p.fx.Stream)
	for i, item := range p.payloads(20, 0) {
		p.must("Publish", pub.Publish(p.ctx, []byte(item)))
		for j, s := range subs {
			if j != 1 || i == 0 {
				s.expect(item)
			}
		}
		if i == 0 {
			p.must("Close", subs[1].s.Close())
		}
	}
}

func clientMany(p *probe) {
	const n = 150
	c := p.client(client.WithTransport(client.Transport{EventConns: 1, SubscriptionsPerConn: n}))
	subs := make([]clientSub, n)
	for i := range subs {
		subs[i] = p.clientSubscribe(c)
	}
	if p.fx.Reference {
		return // it loses events beyond 100 subscriptions (D36)
	}
	marker := p.unique()
	p.must("Publish", c.Publisher(p.fx.Namespace, p.fx.Stream).Publish(p.ctx, []byte(marker)))
	for _, s := range subs {
		s.expect(marker)
	}
}

func clientCache(p *probe) {
	cache := p.client().Cache(p.fx.Namespace, p.fx.Cache)
	key := p.unique()
	if _, err := cache.Get(p.ctx, key); !errors.Is(err, client.ErrMiss) {
		p.fail(client.ErrMiss.Error(), fmt.Sprint(err))
	}
	for _, value := range []string{"one", "two", "", strings.Repeat("\x00\xff", 1000)} {
		p.must("Put", cache.Put(p.ctx, key, []byte(value), client.NoExpiry))
		got, err := cache.Get(p.ctx, key)
		p.must("Get", err)
		if string(got) != value {
			p.fail(short(value), short(string(got)))
		}
	}
}

func clientTTL(p *probe) {
	cache := p.client().Cache(p.fx.Namespace, p.fx.Cache)
	gone, stays, never := p.unique(), p.unique(), p.unique()
	p.must("Put", cache.Put(p.ctx, stays, []byte("v"), client.NoExpiry))
	p.must("Put", cache.Put(p.ctx, never, []byte("v"), 0)) // no expiry
	p.must("Put", cache.Put(p.ctx, gone, []byte("v"), 100*time.Millisecond))
	if err := cache.Put(p.ctx, never, []byte("w"), -time.Second); !errors.Is(err, client.ErrInvalidTTL) {
		p.fail(client.ErrInvalidTTL.Error(), fmt.Sprint(err))
	}
	end := p.deadline()
	for {
		_, err := cache.Get(p.ctx, gone)
		if errors.Is(err, client.ErrMiss) {
			break
		}
		p.must("Get", err)
		if time.Now().After(end) {
			p.fail("a miss after a lifetime of 100 ms", "a hit")
		}
	}
	_, err := cache.Get(p.ctx, stays)
	p.must("Get without a lifetime", err)
}
