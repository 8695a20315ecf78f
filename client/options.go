package client

import (
	"crypto/tls"
	"errors"
	"fmt"
	"time"
	"unicode/utf8"

	"github.com/felix-mq/felix/codec"
	"github.com/felix-mq/felix/quicx"
)

// Option changes one setting of a [Client].
type Option func(*options)

type options struct {
	tls            *tls.Config
	tenant, token  string
	publishConns   int
	eventConns     int
	cacheConns     int
	cacheStreams   int
	subsPerConn    int
	maxFrame       int
	requestTimeout time.Duration
	compress       bool
	quic           quicx.Config
}

func defaultOptions() options {
	return options{
		publishConns:   1,
		eventConns:     8,
		cacheConns:     1,
		cacheStreams:   4,
		subsPerConn:    32,
		maxFrame:       codec.DefaultMaxFrame,
		requestTimeout: 10 * time.Second,
		quic: quicx.Config{
			StreamWindow: 256 << 10,
			IdleTimeout:  7 * time.Second,
			KeepAlive:    3 * time.Second,
		},
	}
}

func (o *options) validate() error {
	var errs []error
	if o.tls == nil {
		errs = append(errs, errors.New("client: no TLS configuration: use WithTLS"))
	}
	if o.tenant == "" || o.token == "" {
		errs = append(errs, errors.New("client: no tenant or token: use WithToken"))
	}
	if err := checkNames(o.tenant); err != nil {
		errs = append(errs, fmt.Errorf("client: tenant: %w", err))
	}
	if !utf8.ValidString(o.token) {
		errs = append(errs, errors.New("client: token is not UTF-8"))
	}
	if o.requestTimeout <= 0 {
		errs = append(errs, fmt.Errorf("client: request timeout: %v is not positive", o.requestTimeout))
	}
	for _, n := range []struct {
		name  string
		value int
	}{
		{"publish connections", o.publishConns},
		{"event connections", o.eventConns},
		{"cache connections", o.cacheConns},
		{"subscriptions per connection", o.subsPerConn},
		{"maximum frame size", o.maxFrame},
	} {
		if n.value < 1 {
			errs = append(errs, fmt.Errorf("client: %s: %d is less than 1", n.name, n.value))
		}
	}
	return errors.Join(errs...)
}

// WithTLS sets how the broker's certificate is verified. The configuration is copied; its protocol list is ignored,
// since felix-wire offers none (session.md, section 2.1). Required.
func WithTLS(cfg *tls.Config) Option { return func(o *options) { o.tls = cfg } }

// WithToken sets the tenant and the Felix token that each stream authenticates with. Required.
func WithToken(tenant, token string) Option {
	return func(o *options) { o.tenant, o.token = tenant, token }
}

// WithPublishConns sets the number of connections that publish; 1 by default. Topics are spread over them, and each
// topic stays on one, in order.
func WithPublishConns(n int) Option { return func(o *options) { o.publishConns = n } }

// WithEventConns sets the number of connections that subscriptions are spread over; 8 by default. More are opened
// when these are full ([WithSubscriptionsPerConn]).
func WithEventConns(n int) Option { return func(o *options) { o.eventConns = n } }

// WithSubscriptionsPerConn sets how many subscriptions share a connection at most; 32 by default. The connection's
// receive window is dialed for that many, so that subscriptions that are not read cannot stop the others.
func WithSubscriptionsPerConn(n int) Option { return func(o *options) { o.subsPerConn = n } }

// WithMaxFrame sets the largest frame payload in bytes that is accepted or sent; 16 MiB by default, like the broker's.
// Replies may be up to 64 bytes larger.
func WithMaxFrame(n int) Option { return func(o *options) { o.maxFrame = n } }

// WithCompression compresses batches before they are published, once for all subscribers, if the broker forwards such
// batches and they shrink. Payloads that do not compress are noticed and left alone.
func WithCompression() Option { return func(o *options) { o.compress = true } }

// WithRequestTimeout bounds calls that wait for an answer and whose context has no deadline; 10 s by default.
func WithRequestTimeout(d time.Duration) Option { return func(o *options) { o.requestTimeout = d } }

// WithIdleTimeout sets the time after which a silent connection counts as dead, 7 s by default, and the period of the
// keep-alives that keep a living one from being silent, 3 s by default. A dead peer is noticed after at most the sum.
func WithIdleTimeout(idle, keepAlive time.Duration) Option {
	return func(o *options) { o.quic.IdleTimeout, o.quic.KeepAlive = idle, keepAlive }
}

// WithStreamWindow sets the receive window of each stream in bytes; 256 KiB by default. It bounds what a broker may
// have in flight to one subscription; paths with a large product of bandwidth and delay want more.
func WithStreamWindow(n int) Option {
	return func(o *options) { o.quic.StreamWindow = uint64(max(n, 0)) }
}

// WithSocketBuffers sets the UDP buffers in bytes that are asked of the kernel for each connection; 0 keeps the
// default.
func WithSocketBuffers(send, receive int) Option {
	return func(o *options) { o.quic.SendBuffer, o.quic.RecvBuffer = send, receive }
}
