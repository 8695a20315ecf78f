package client

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"time"
	"unicode/utf8"

	"github.com/felix-mq/felix/codec"
	"github.com/felix-mq/felix/quicx"
)

// Option changes one setting of a [Client].
type Option func(*options)

type options struct {
	tls            *tls.Config
	tenant         string
	token          func(ctx context.Context) (string, error)
	publishConns   int
	publishStreams int
	eventConns     int
	cacheConns     int
	cacheStreams   int
	subsPerConn    int
	maxFrame       int
	maxUnmatched   int
	requestTimeout time.Duration
	statsEvery     time.Duration // 0 for never
	compress       bool
	ext            codec.Extensions
	roundRobin     bool
	inFlight       int
	inFlightBytes  int
	whileDown      WhileDown
	whileDownBytes int
	batching       Batching
	backoff        backoff
	connectRetry   bool
	hooks          []Hook
	quic           quicx.Config
	eventWindows   windows
	cacheWindows   windows
	problems       []error // of options themselves
}

// windows are receive windows in bytes; zero means what the other options say.
type windows struct{ stream, conn uint64 }

func defaultOptions() options {
	return options{
		publishConns:   1,
		publishStreams: 1,
		eventConns:     8,
		cacheConns:     1,
		cacheStreams:   4,
		subsPerConn:    32,
		maxFrame:       codec.DefaultMaxFrame,
		maxUnmatched:   4096,
		requestTimeout: 10 * time.Second,
		ext:            codec.KnownExtensions(),
		inFlight:       1024,
		inFlightBytes:  4 << 20,
		whileDownBytes: 16 << 20,
		backoff:        backoff{base: 50 * time.Millisecond, limit: 2 * time.Second},
		quic: quicx.Config{
			StreamWindow: 256 << 10,
			IdleTimeout:  7 * time.Second,
			KeepAlive:    3 * time.Second,
		},
	}
}

func (o *options) validate() error {
	errs := slices.Clone(o.problems)
	if o.tls == nil {
		errs = append(errs, errors.New("client: no TLS configuration: use WithTLS"))
	}
	if o.tenant == "" || o.token == nil {
		errs = append(errs, errors.New("client: no tenant or token: use WithToken"))
	}
	if err := checkNames(o.tenant); err != nil {
		errs = append(errs, fmt.Errorf("client: tenant: %w", err))
	}
	for _, h := range o.hooks {
		if !isHook(h) {
			errs = append(errs, fmt.Errorf("client: hook of type %T: it has the methods of no kind of hook", h))
		}
	}
	var err error
	if o.batching, err = o.batching.orDefaults(o.maxFrame); err != nil {
		errs = append(errs, err)
	}
	if o.requestTimeout <= 0 {
		errs = append(errs, fmt.Errorf("client: request timeout: %v is not positive", o.requestTimeout))
	}
	for _, n := range []struct {
		name  string
		value int
	}{
		{"publish connections", o.publishConns},
		{"publish streams", o.publishStreams},
		{"event connections", o.eventConns},
		{"cache connections", o.cacheConns},
		{"cache streams", o.cacheStreams},
		{"subscriptions per connection", o.subsPerConn},
		{"maximum frame size", o.maxFrame},
		{"publishes in flight", o.inFlight},
		{"bytes in flight", o.inFlightBytes},
		{"bytes while down", o.whileDownBytes},
	} {
		if n.value < 1 {
			errs = append(errs, fmt.Errorf("client: %s: %d is less than 1", n.name, n.value))
		}
	}
	if o.backoff.base <= 0 || o.backoff.limit < o.backoff.base {
		errs = append(errs, fmt.Errorf("client: backoff: from %v to %v", o.backoff.base, o.backoff.limit))
	}
	if err := errors.Join(errs...); err != nil {
		return optionError{err}
	}
	return nil
}

// WithTLS sets how the broker's certificate is verified. The configuration is copied; its protocol list is ignored,
// since felix-wire offers none (docs/protocol/session.md#tls). Required.
func WithTLS(cfg *tls.Config) Option { return func(o *options) { o.tls = cfg } }

// WithToken sets the tenant and the Felix token that each stream authenticates with. This or [WithTokenSource] is
// required.
func WithToken(tenant, token string) Option {
	return func(o *options) {
		o.tenant, o.token = tenant, nil
		switch {
		case !utf8.ValidString(token):
			o.problems = append(o.problems, errors.New("client: token is not UTF-8"))
		case token != "":
			o.token = func(context.Context) (string, error) { return token, nil }
		}
	}
}

// WithTokenSource sets the tenant and a function that returns the token to authenticate with. It is called from several
// goroutines: whenever a stream is opened, and before the token of a stream for publishes or cache requests ends, by
// its claim exp, to replace the stream in time with nothing in doubt. It should keep a token and return a new one a
// minute before the old one ends, or a fifth of its life before. An error counts as [ErrDisconnected]: the next call
// asks again. Subscriptions end with their token at the broker, and subscribe again where they were.
func WithTokenSource(tenant string, token func(ctx context.Context) (string, error)) Option {
	return func(o *options) { o.tenant, o.token = tenant, token }
}

// WithInFlight bounds what [Publisher.PublishAsync] has sent and not seen acknowledged: batches per stream, 1024 by
// default, and payload bytes of the whole client, 4 MiB by default. A batch above a bound waits; one that is larger
// than all of it goes alone.
func WithInFlight(publishes, bytes int) Option {
	return func(o *options) { o.inFlight, o.inFlightBytes = publishes, bytes }
}

// WhileDown says what a publish does while there is no connection to the broker.
type WhileDown int

// The policies.
const (
	// WhileDownBlock waits until its context or the request timeout ends. It is the default.
	WhileDownBlock WhileDown = iota
	// WhileDownFail fails at once with [ErrDisconnected], and the connection is tried again meanwhile.
	WhileDownFail
	// WhileDownBuffer takes a copy of the publish into memory, up to the bytes of [WithWhileDownBytes], and sends what
	// it has, in order, when the connection is back. Calls that wait for an acknowledgement wait for it all the same.
	WhileDownBuffer
)

// WithWhileDown sets what publishes do while there is no connection. What has been sent already when the connection is
// lost is in doubt, and is not sent again, unless its stream is durable and the policy is not [WhileDownFail]: see
// [Publisher].
func WithWhileDown(policy WhileDown) Option { return func(o *options) { o.whileDown = policy } }

// WithWhileDownBytes bounds what [WhileDownBuffer] holds, in payload bytes; 16 MiB by default. What does not fit fails
// with [ErrBufferFull].
func WithWhileDownBytes(n int) Option { return func(o *options) { o.whileDownBytes = n } }

// WithBackoff sets the pauses between attempts to connect and to subscribe again: each is a random time between 0 and a
// bound that doubles with each failure, from the first, 50 ms by default, up to the last, 2 s by default.
func WithBackoff(first, last time.Duration) Option {
	return func(o *options) { o.backoff = backoff{base: first, limit: last} }
}

// WithConnectRetry has [Connect] try again while the broker cannot be reached, with the pauses of [WithBackoff], until
// its context ends. A refusal that another attempt would meet as well, of a token for instance, still fails at once.
func WithConnectRetry() Option { return func(o *options) { o.connectRetry = true } }

// WithHooks adds hooks for metrics, tracing and states: see [Hook]. Those that are not given cost nothing. A value that
// is no hook makes Connect fail.
func WithHooks(h ...Hook) Option { return func(o *options) { o.hooks = append(o.hooks, h...) } }

// WithLogger logs connections and subscriptions that are lost and come back.
func WithLogger(l *slog.Logger) Option {
	return func(o *options) {
		if l == nil {
			o.problems = append(o.problems, errors.New("client: no logger"))
			return
		}
		o.hooks = append(o.hooks, logHook{l})
	}
}

// WithCompression compresses batches before they are published, once for all subscribers, if the broker forwards such
// batches and they shrink. Payloads that do not compress are noticed and left alone.
func WithCompression() Option { return func(o *options) { o.compress = true } }

// WithRequestTimeout bounds calls that send something and whose context has no deadline, and the wait for the
// acknowledgement of an asynchronous publish; 10 s by default.
func WithRequestTimeout(d time.Duration) Option { return func(o *options) { o.requestTimeout = d } }

// WithoutExtensions offers the broker no extension of the protocol, as a client of felix-wire alone would.
func WithoutExtensions() Option { return func(o *options) { o.ext = 0 } }
