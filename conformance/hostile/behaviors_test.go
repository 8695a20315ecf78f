package hostile

import (
	"bytes"
	"cmp"
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/quic-go/quic-go"

	"github.com/felix-mq/felix/auth"
	"github.com/felix-mq/felix/broker"
	"github.com/felix-mq/felix/codec"
	"github.com/felix-mq/felix/internal/race"
	"github.com/felix-mq/felix/internal/stats"
	"github.com/felix-mq/felix/quicx"
)

// behavior is a script of a hostile peer. It is played again and again, each time on a connection of its own, which is
// closed when the script returns; that it returns nil means that its documented end was seen.
type behavior struct {
	name   string
	end    string // what it ends with, for the table
	rounds int    // 0 means 10
	cfg    quicx.Config
	run    func(ctx context.Context, p *peer) error
}

// behaviors end as soon as the broker has understood.
var behaviors = []behavior{
	// Frames that break off.
	{name: "FIN at once", end: "FIN", run: func(ctx context.Context, p *peer) error { return p.kept(ctx, nil) }},
	{name: "FIN inside a header", end: "FIN", run: func(ctx context.Context, p *peer) error {
		return p.kept(ctx, []string{"auth_ok"}, p.auth(), p.get("k", 1)[:5])
	}},
	{name: "FIN inside a payload", end: "FIN", run: func(ctx context.Context, p *peer) error {
		get := p.get("k", 1)
		return p.kept(ctx, []string{"auth_ok"}, p.auth(), get[:len(get)-1])
	}},
	{name: "reset before the first byte", end: "FIN", run: resetAfter(func(*peer) []byte { return nil })},
	{name: "reset inside a header", end: "FIN", run: resetAfter(func(p *peer) []byte { return p.auth()[:5] })},
	{name: "reset inside a payload", end: "FIN", run: resetAfter(func(p *peer) []byte { return p.auth()[:50] })},
	{name: "reset after auth", end: "FIN", run: resetAfter((*peer).auth)},
	{name: "reset after a subscribe", end: "FIN, and the subscription lives or not", run: resetAfter(func(p *peer) []byte {
		return append(p.auth(), p.subscribe()...)
	})},
	{name: "reset after 500 publishes", end: "FIN", run: resetAfter(func(p *peer) []byte {
		return append(p.auth(), bytes.Repeat(p.publishAcked([]byte("x"), 1), 500)...)
	})},
	{name: "a publish larger than the window, then a reset", end: "FIN, and the memory is back", run: resetAfter(func(p *peer) []byte {
		return append(p.auth(), p.publish(make([]byte, 8<<20))[:1<<20]...)
	})},

	// Frames that are wrong.
	{name: "an oversized frame", end: "FIN, nothing is allocated", run: func(ctx context.Context, p *peer) error {
		return p.ends(ctx, []string{"auth_ok"}, p.auth(), codec.AppendHeader(nil, codec.LayoutPublish, codec.DefaultMaxFrame+1))
	}},
	{name: "wrong magic", end: "FIN", run: func(ctx context.Context, p *peer) error {
		return p.ends(ctx, []string{"auth_ok"}, p.auth(), []byte("GET / HTTP/1.1\r\n\r\n"))
	}},
	{name: "empty frames", end: "FIN, or a negative acknowledgement", run: emptyFrames},
	{name: "unknown flags before auth", end: "an error for each, stream kept", run: func(ctx context.Context, p *peer) error {
		return p.kept(ctx, []string{"error: unsupported frame flags", "auth_ok", "cache_value 1: miss"},
			frame(0x0040, []byte("what?")), p.auth(), p.get("nothing", 1))
	}},
	{name: "20000 frames with unknown flags before auth", end: "errors, then FIN at FELIX_AUTH_MAX_BYTES", rounds: 3, run: unknownFlags},
	{name: "a large frame before auth", end: "FIN at its header", run: func(ctx context.Context, p *peer) error {
		return p.ends(ctx, nil, codec.AppendHeader(nil, codec.LayoutJSON, broker.DefaultConfig().AuthMaxBytes+1))
	}},
	{name: "frames of the broker", end: "error and FIN, or FIN alone for error", run: framesOfTheBroker},
	{name: "an extension that was not negotiated", end: "error, stream kept", run: func(ctx context.Context, p *peer) error {
		return p.kept(ctx, []string{"auth_ok", "error: unsupported frame flags"}, p.auth(), frame(codec.FlagExtension, []byte{1, 2}))
	}},
	{name: "deeply nested JSON", end: "FIN", run: func(ctx context.Context, p *peer) error {
		nested := `{"type":"cache_get","x":` + strings.Repeat("[", 1<<20) + strings.Repeat("]", 1<<20) + "}"
		return p.ends(ctx, []string{"auth_ok"}, p.auth(), jsonFrame(nested))
	}},
	{name: "huge numbers", end: "FIN", run: hugeNumbers},
	{name: "a key of a million escapes", end: "a miss", run: func(ctx context.Context, p *peer) error {
		return p.kept(ctx, []string{"auth_ok", "cache_value 1: miss"}, p.auth(), p.get(strings.Repeat("\x00", 1<<17), 1))
	}},
	{name: "half a surrogate, a million times", end: "FIN", run: func(ctx context.Context, p *peer) error {
		return p.ends(ctx, []string{"auth_ok"}, p.auth(), jsonFrame(`{"type":"error","message":"`+strings.Repeat(`\ud800`, 1<<17)+`"}`))
	}},
	{name: "batches that promise 4 billion items", end: "FIN, or a negative acknowledgement", run: promisedItems},
	{name: "bad acknowledgement modes", end: "FIN", run: badAckModes},

	// Authentication.
	{name: "two auths", end: "error and FIN", run: func(ctx context.Context, p *peer) error {
		return p.ends(ctx, []string{"auth_ok", "error: auth already established"}, p.auth(), p.auth())
	}},
	{name: "requests before auth", end: "error and FIN", run: requestsBeforeAuth},
	{name: "bad tokens", end: "error and FIN", run: badTokens},
	{name: "an expired token", end: "error and FIN", run: expiredToken},
	{name: "a token of 64 KiB", end: "error and FIN", run: func(ctx context.Context, p *peer) error {
		return p.ends(ctx, []string{"error: auth failed"}, p.authWith(strings.Repeat("A", 64<<10)))
	}},
	{name: "a token without rights", end: "error and FIN, or a negative acknowledgement", run: noRights},
	{name: "requests for a foreign tenant", end: "error and FIN, or a negative acknowledgement", run: foreignTenant},

	// Publish streams.
	{name: "a publish stream without auth", end: "STOP_SENDING", run: func(ctx context.Context, p *peer) error {
		return p.endsUni(ctx, p.publish([]byte("x")))
	}},
	{name: "a publish stream with a bad token", end: "STOP_SENDING", run: func(ctx context.Context, p *peer) error {
		return p.endsUni(ctx, p.authWith("no.such.token"))
	}},
	{name: "a publish stream with 0x0009", end: "STOP_SENDING", run: func(ctx context.Context, p *peer) error {
		return p.endsUni(ctx, p.auth(), p.publishAcked([]byte("x"), 1))
	}},
	{name: "requests on a publish stream", end: "STOP_SENDING", run: requestsOnPublishStream},
	{name: "unknown flags on a publish stream", end: "STOP_SENDING", run: func(ctx context.Context, p *peer) error {
		return p.endsUni(ctx, p.auth(), frame(0x0040, []byte("what?")))
	}},
	{name: "a publish stream finished inside a frame", end: "nothing", run: func(ctx context.Context, p *peer) error {
		s, err := p.openUni(ctx, p.auth(), p.publish([]byte("x"))[:20])
		if err != nil {
			return err
		}
		return s.Close()
	}},

	// Subscriptions.
	{name: "duplicate subscription ids", end: "error and FIN, the first one lives", run: duplicateIDs},
	{name: "requests after a subscribe", end: "discarded, FIN", run: func(ctx context.Context, p *peer) error {
		return p.ends(ctx, []string{"auth_ok", "subscribed"}, p.auth(), p.subscribe(), p.subscribe(), p.publishAcked([]byte("x"), 1))
	}},
	{name: "4097 subscriptions", end: "error and FIN for the last", rounds: 1, cfg: quicx.Config{MaxStreams: 5000}, run: tooManySubscriptions},
	{
		name: "no credit for event streams", end: "error and FIN after FELIX_STREAM_OPEN_TIMEOUT_MS", rounds: 2, cfg: quicx.Config{MaxStreams: -1},
		run: func(ctx context.Context, p *peer) error {
			return p.ends(ctx, []string{"auth_ok", "error: open uni stream"}, p.auth(), p.subscribe())
		},
	},
	{name: "subscribe and unsubscribe, 200 times", end: "each forgotten at once", rounds: 3, run: subscribeChurn},
	{name: "subscribe, then vanish", end: "all given back", rounds: 20, run: func(ctx context.Context, p *peer) error {
		_, err := p.open(ctx, p.auth(), p.subscribe())
		return err
	}},
	{name: "never reads its events", end: "dropped and counted, nobody waits", rounds: 3, run: neverReadsEvents},
	{name: "receive windows of 512 bytes", end: "everything, slowly", rounds: 3, cfg: quicx.Config{StreamWindow: 512, StreamsHint: 1}, run: tinyWindows},
	// Less than a frame's header would stop our own reader, which waits for one.
	{
		name: "receive windows of 16 bytes", end: "replies, bit by bit", rounds: 3, cfg: quicx.Config{StreamWindow: 16, StreamsHint: 1},
		run: func(ctx context.Context, p *peer) error {
			return p.kept(ctx, []string{"auth_ok", "cache_value 1: miss"}, p.auth(), p.get("nothing", 1))
		},
	},

	// Cache.
	{name: "a cache key of 1 MiB", end: "stored and found", rounds: 3, run: func(ctx context.Context, p *peer) error {
		key := strings.Repeat("k", 1<<20)
		return p.kept(ctx, []string{"auth_ok", "cache_ok 1", "cache_value 2: hit"}, p.auth(), p.put(key, []byte("v")), p.get(key, 2))
	}},
	{name: "requests after a cache request without id", end: "discarded, FIN", run: func(ctx context.Context, p *peer) error {
		get := codec.AppendCacheGet(nil, p.Tenant, p.Namespace, p.Cache, "nothing", 0, false)
		return p.ends(ctx, []string{"auth_ok", "cache_value 0: miss"}, p.auth(), get, get)
	}},

	// Peers that do not read.
	{name: "STOP_SENDING on the replies", end: "STOP_SENDING", run: stopSending},
	{name: "never reads replies, pipelines thousands", end: "flow control, then STOP_SENDING", rounds: 2, run: neverReadsReplies},

	// Crowds.
	{name: "1500 unauthenticated control streams", end: "1024 at a time", rounds: 2, run: manyStreams},
	{name: "2000 streams opened and reset", end: "each FIN", rounds: 2, run: streamChurn},
	{name: "5000 streams opened and reset", end: "the connection is closed at FELIX_FAILED_STREAMS_PER_SECOND", rounds: 2, run: tooMuchChurn},
	{name: "unfinished publishes on 16 streams", end: "FIN for those beyond FELIX_CONN_READ_BYTES", rounds: 2, run: unfinishedPublishes},
	{name: "100 unauthenticated connections", end: "the oldest closed at FELIX_MAX_UNAUTHENTICATED_CONNECTIONS", rounds: 1, run: manyConnections},
	{name: "100 connections opened and closed", end: "all given back", rounds: 1, run: connectionChurn},
	{name: "close in the middle of everything", end: "all given back", rounds: 20, run: closeInTheMiddle},

	// Below the protocol.
	{name: "ALPN offered", end: "this handshake fails, and no other", run: offersALPN},
	{name: "500 datagrams of garbage", end: "ignored", rounds: 3, run: garbageDatagrams},
	{name: "a version that does not exist", end: "version negotiation", run: unknownVersion},
}

// patient ones are ended by time alone. They are played all at once, four times each.
var patient = []behavior{
	{name: "one byte of a header, no auth, then silence", end: "FIN at FELIX_AUTH_TIMEOUT_MS", run: func(ctx context.Context, p *peer) error {
		return p.ends(ctx, nil, []byte("F"))
	}},
	{name: "no stream of a connection authenticates", end: "the connection is closed", run: func(ctx context.Context, p *peer) error {
		if _, err := p.open(ctx, []byte("F")); err != nil {
			return err
		}
		return p.closedFor(ctx, "not authenticated in time")
	}},
	{name: "one byte of a header, then silence", end: "FIN at FELIX_FRAME_TIMEOUT_MS", run: func(ctx context.Context, p *peer) error {
		return p.ends(ctx, []string{"auth_ok"}, p.auth(), []byte("F"))
	}},
	{name: "half a payload, then silence", end: "FIN at FELIX_FRAME_TIMEOUT_MS", run: func(ctx context.Context, p *peer) error {
		return p.ends(ctx, []string{"auth_ok"}, p.auth(), p.get("k", 1)[:60])
	}},
	{name: "half a payload on a publish stream", end: "STOP_SENDING at FELIX_FRAME_TIMEOUT_MS", run: func(ctx context.Context, p *peer) error {
		return p.endsUni(ctx, p.auth(), p.publish(make([]byte, 1000))[:500])
	}},
	{name: "a payload byte by byte", end: "FIN at FELIX_FRAME_TIMEOUT_MS", run: trickle},
	{name: "a token that expires meanwhile", end: "error and FIN, FIN for the subscription", run: expiresMeanwhile},
	{name: "a connection abandoned without close", end: "gone at FELIX_IDLE_TIMEOUT_MS", run: abandonConnection},
	{name: "a handshake abandoned", end: "gone at the time-out of handshakes", run: abandonHandshake},
	{name: "Initials that cannot be decrypted", end: "gone at the time-out of handshakes", run: undecryptableInitials},
}

// TestBehaviors plays the scripts. After each of them the broker's accounts have to be back at their base, and the
// healthy pair must work.
func TestBehaviors(t *testing.T) {
	s := newSite(t, func(cfg *broker.Config) {
		cfg.ReplayBytes = -1 // or topics would keep what was published
		cfg.AuthTimeout, cfg.FrameTimeout = 2*time.Second, time.Second
		cfg.MaxUnauthenticatedConns = maxUnauthenticated
		cfg.ConnReadBytes = 8 << 20
		cfg.RetryAbove = -1 // or most handshakes would be abandoned before the broker has begun them
	})
	t.Run("at rest", s.takeBase)
	for _, b := range behaviors {
		t.Run(b.name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), within)
			defer cancel()
			var took []time.Duration
			rounds := cmp.Or(b.rounds, 10) * *roundsFlag
			if race.Enabled {
				rounds = *roundsFlag // each path once is what the detector needs
			}
			for range rounds {
				d, err := s.play(ctx, b)
				if err != nil {
					t.Fatal(err)
				}
				took = append(took, d)
			}
			begin := time.Now()
			if err := s.restored(ctx); err != nil {
				t.Fatal(err)
			}
			t.Logf("%s: %s: %s; accounts back after %v", b.name, b.end, stats.Percentiles(took), time.Since(begin).Round(10*time.Microsecond))
		})
	}
	t.Run("patient", func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), within)
		defer cancel()
		var wg sync.WaitGroup
		took := make([][]time.Duration, len(patient))
		for i, b := range patient {
			took[i] = make([]time.Duration, 4)
			for j := range took[i] {
				wg.Go(func() {
					var err error
					if took[i][j], err = s.play(ctx, b); err != nil {
						t.Errorf("%s: %v", b.name, err)
					}
				})
			}
		}
		wg.Wait()
		for i, b := range patient {
			t.Logf("%s: %s: %s", b.name, b.end, stats.Percentiles(took[i]))
		}
		begin := time.Now()
		if err := s.restored(ctx); err != nil {
			t.Fatal(err)
		}
		t.Logf("accounts back after %v", time.Since(begin).Round(time.Millisecond))
	})
}

// maxUnauthenticated is the bound of the broker under test.
const maxUnauthenticated = 64

// play plays a script once and returns how long it took to its end.
func (s *site) play(ctx context.Context, b behavior) (time.Duration, error) {
	p, err := s.dial(ctx, b.cfg)
	if err != nil {
		return 0, err
	}
	defer p.close()
	begin := time.Now()
	err = b.run(ctx, p)
	return time.Since(begin), err
}

// resetAfter resets a stream after some bytes. Replies to them may come or not, then FIN.
func resetAfter(begin func(*peer) []byte) func(context.Context, *peer) error {
	return func(ctx context.Context, p *peer) error {
		s, err := p.open(ctx, begin(p))
		if err != nil {
			return err
		}
		s.Send().Cancel(0)
		_, err = p.replies(ctx, s.Recv())
		return err
	}
}

// all plays parts that end independently of each other and returns the first error.
func all(parts ...func() error) error {
	for i, part := range parts {
		if err := part(); err != nil {
			return fmt.Errorf("part %d: %w", i, err)
		}
	}
	return nil
}

func emptyFrames(ctx context.Context, p *peer) error {
	return all(
		func() error { return p.ends(ctx, nil, frame(codec.LayoutJSON, nil)) },
		func() error {
			return p.ends(ctx, []string{"auth_ok"}, p.auth(), frame(codec.LayoutPublish, nil))
		},
		func() error {
			return p.ends(ctx, []string{"auth_ok"}, p.auth(), frame(codec.LayoutPublishAcked, nil))
		},
	)
}

func unknownFlags(ctx context.Context, p *peer) error {
	s, err := p.OpenStream(ctx)
	if err != nil {
		return err
	}
	p.wg.Go(func() {
		_, _ = s.Send().Write(bytes.Repeat(frame(0x4000, nil), 20_000)) // until the broker has enough of it
	})
	got, err := p.replies(ctx, s.Recv())
	if err != nil {
		return err
	}
	if i := slices.IndexFunc(got, func(text string) bool { return text != "error: unsupported frame flags" }); i >= 0 {
		return fmt.Errorf("reply %d is %q", i, got[i])
	}
	if want := broker.DefaultConfig().AuthMaxBytes / codec.HeaderLen; len(got) != want {
		return fmt.Errorf("%d replies, want %d", len(got), want)
	}
	return nil
}

func framesOfTheBroker(ctx context.Context, p *peer) error {
	for _, f := range [][]byte{
		codec.AppendOK(nil), codec.AppendAuthOK(nil, 63, 0, false), codec.AppendSubscribed(nil, 1), codec.AppendEventStreamHello(nil, 1),
		codec.AppendPublishOK(nil, 1), codec.AppendPublishError(nil, 1, "x"), codec.AppendCacheOK(nil, 1),
		codec.AppendEvent(nil, p.Tenant, p.Namespace, liveStream, []byte("x"), 0, false),
	} {
		if err := p.ends(ctx, []string{"error: unexpected message type"}, f); err != nil {
			return fmt.Errorf("%s: %w", f, err)
		}
	}
	return all(
		func() error {
			return p.ends(ctx, []string{"error: subscribe_cursor_error is a server-to-client message"},
				codec.AppendSubscribeCursorError(nil, codec.CursorTooOld, 1, 2))
		},
		func() error { return p.ends(ctx, nil, codec.AppendError(nil, "broken")) },
		func() error {
			return p.kept(ctx, []string{"auth_ok", "error: unsupported frame flags"}, p.auth(), codec.AppendPublishAckOK(nil, 1))
		},
	)
}

func hugeNumbers(ctx context.Context, p *peer) error {
	for _, number := range []string{"1e400", "18446744073709551616", "1.0", "-1", strings.Repeat("9", 1<<20)} {
		request := fmt.Sprintf(`{"type":"cache_get","tenant_id":%q,"namespace":%q,"cache":%q,"key":"k","request_id":%s}`,
			p.Tenant, p.Namespace, p.Cache, number)
		if err := p.ends(ctx, []string{"auth_ok"}, p.auth(), jsonFrame(request)); err != nil {
			return fmt.Errorf("request_id %.20s: %w", number, err)
		}
	}
	return nil
}

// promisedItems declare more items, or longer ones, than there are bytes.
func promisedItems(ctx context.Context, p *peer) error {
	plain, acked := p.publish([]byte("x")), p.publishAcked([]byte("x"), 7)
	promise := func(f []byte, behind int) []byte { // of the two numbers in front of the item
		f = bytes.Clone(f)
		binary.BigEndian.PutUint32(f[len(f)-behind:], 1<<32-1)
		return f
	}
	return all(
		func() error { return p.ends(ctx, []string{"auth_ok"}, p.auth(), promise(plain, 9)) },
		func() error { return p.ends(ctx, []string{"auth_ok"}, p.auth(), promise(plain, 5)) },
		func() error {
			want := []string{"auth_ok", "ack 7: malformed publish batch", "ack 7: malformed publish batch"}
			return p.kept(ctx, want, p.auth(), promise(acked, 9), promise(acked, 5))
		},
		func() error { return p.endsUni(ctx, p.auth(), promise(plain, 9)) },
	)
}

func badAckModes(ctx context.Context, p *peer) error {
	for _, mode := range []byte{0, 3, 255} {
		f := p.publishAcked([]byte("x"), 7)
		f[codec.HeaderLen+8] = mode
		if err := p.ends(ctx, []string{"auth_ok"}, p.auth(), f); err != nil {
			return fmt.Errorf("mode %d: %w", mode, err)
		}
	}
	return nil
}

func requestsBeforeAuth(ctx context.Context, p *peer) error {
	for _, f := range [][]byte{
		p.publish([]byte("x")), p.publishAcked([]byte("x"), 1), p.publishJSON([]byte("x"), 1), p.subscribe(), p.get("k", 1), p.put("k", nil),
	} {
		if err := p.ends(ctx, []string{"error: auth required"}, f); err != nil {
			return fmt.Errorf("%.50q: %w", f, err)
		}
	}
	return nil
}

func badTokens(ctx context.Context, p *peer) error {
	for _, token := range []string{
		"", ".", "..", "a.b.c", strings.Repeat(".", 1000), p.Token[1:], p.Token[:len(p.Token)-4] + "AAAA", p.Token + "A", "\x00" + p.Token,
	} {
		if err := p.ends(ctx, []string{"error: auth failed"}, p.authWith(token)); err != nil {
			return fmt.Errorf("token %.50q: %w", token, err)
		}
	}
	unknown := codec.AppendAuth(nil, "t2", p.Token, codec.KnownFlags, true, 0)
	return p.ends(ctx, []string{"error: auth failed"}, unknown)
}

func expiredToken(ctx context.Context, p *peer) error {
	signer, err := auth.NewSigner(p.Key, broker.DevKeyID)
	if err != nil {
		return err
	}
	token, err := signer.Mint(auth.Claims{
		Tenant: p.Tenant, Subject: "late", IssuedAt: time.Now().Add(-time.Hour), Expires: time.Now().Add(-90 * time.Second),
	})
	if err != nil {
		return err
	}
	return p.ends(ctx, []string{"error: auth failed"}, p.authWith(token))
}

func noRights(ctx context.Context, p *peer) error {
	token, err := p.Mint()
	if err != nil {
		return err
	}
	powerless := p.authWith(token)
	return all(
		func() error {
			return p.ends(ctx, []string{"auth_ok", "error: forbidden"}, powerless, p.subscribe())
		},
		func() error {
			return p.ends(ctx, []string{"auth_ok", "error: forbidden"}, powerless, p.put("k", nil))
		},
		func() error {
			return p.ends(ctx, []string{"auth_ok", "error: forbidden"}, powerless, p.get("k", 1))
		},
		func() error {
			return p.ends(ctx, []string{"auth_ok", "publish_error 1: forbidden"}, powerless, p.publishJSON([]byte("x"), 1))
		},
		func() error {
			want := []string{"auth_ok", "ack 1: forbidden", "ack 2: forbidden"}
			return p.kept(ctx, want, powerless, p.publishAcked([]byte("x"), 1), p.publishAcked([]byte("x"), 2))
		},
		func() error { return p.ends(ctx, []string{"auth_ok"}, powerless, p.publish([]byte("x"))) },
		func() error { return p.endsUni(ctx, powerless, p.publish([]byte("x"))) },
	)
}

func foreignTenant(ctx context.Context, p *peer) error {
	items := [][]byte{[]byte("x")}
	plain := codec.AppendPublishBatch(nil, "t2", p.Namespace, liveStream, items)
	acked := codec.AppendPublishBatchAcked(nil, 7, codec.AckPerBatch, "t2", p.Namespace, liveStream, items)
	mismatch := []string{"auth_ok", "error: tenant mismatch"}
	return all(
		func() error { return p.ends(ctx, []string{"auth_ok"}, p.auth(), plain) },
		func() error { return p.endsUni(ctx, p.auth(), plain) },
		func() error { return p.kept(ctx, []string{"auth_ok", "ack 7: tenant mismatch"}, p.auth(), acked) },
		func() error {
			return p.ends(ctx, mismatch, p.auth(), codec.AppendPublish(nil, "t2", p.Namespace, liveStream, nil, codec.AckPerMessage, 1, true))
		},
		func() error {
			return p.ends(ctx, mismatch, p.auth(), codec.AppendSubscribe(nil, "t2", p.Namespace, liveStream, codec.Start{}, 0, false))
		},
		func() error {
			return p.ends(ctx, mismatch, p.auth(), codec.AppendCacheGet(nil, "t2", p.Namespace, p.Cache, "k", 1, true))
		},
	)
}

func requestsOnPublishStream(ctx context.Context, p *peer) error {
	for _, f := range [][]byte{p.subscribe(), p.get("k", 1), p.put("k", nil), p.auth(), codec.AppendOK(nil), codec.AppendPublishAckOK(nil, 1)} {
		if err := p.endsUni(ctx, p.auth(), f); err != nil {
			return fmt.Errorf("%.50q: %w", f, err)
		}
	}
	return nil
}

// subscribed subscribes to the live stream and returns the event stream, of which nothing has been read.
func (p *peer) subscribed(ctx context.Context, subscribe []byte) (*quicx.RecvStream, error) {
	if err := p.kept(ctx, []string{"auth_ok", "subscribed"}, p.auth(), subscribe); err != nil {
		return nil, err
	}
	return p.AcceptUniStream(ctx)
}

// receive reads events until n items have come.
func (p *peer) receive(ctx context.Context, r *quicx.RecvStream, n int) error {
	stop := context.AfterFunc(ctx, func() { r.Cancel(0) })
	defer stop()
	fr := quicx.NewFrameReader(r, 0)
	defer fr.Close()
	if _, err := fr.Next(); err != nil { // the hello
		return err
	}
	for got := 0; got < n; {
		f, err := fr.Next()
		if err != nil {
			return fmt.Errorf("after %d of %d events: %w", got, n, err)
		}
		b, err := codec.ParseEventBatch(f.Header.Flags, f.Payload())
		if err != nil {
			return err
		}
		got += b.Items.Len()
	}
	return nil
}

func duplicateIDs(ctx context.Context, p *peer) error {
	events, err := p.subscribed(ctx, p.subscribeAs(5))
	if err != nil {
		return err
	}
	return all(
		func() error {
			return p.ends(ctx, []string{"auth_ok", "error: duplicate subscription id"}, p.auth(), p.subscribeAs(5))
		},
		func() error {
			return p.kept(ctx, []string{"auth_ok", "ack 1: ok"}, p.auth(), p.publishAcked([]byte("x"), 1))
		},
		func() error { return p.receive(ctx, events, 1) },
	)
}

func tooManySubscriptions(ctx context.Context, p *peer) error {
	const most, atATime = 4096, 32
	var wg sync.WaitGroup
	ctx, fail := context.WithCancelCause(ctx)
	defer fail(nil)
	for range atATime {
		wg.Go(func() {
			for range most / atATime {
				if err := p.kept(ctx, []string{"auth_ok", "subscribed"}, p.auth(), p.subscribe()); err != nil {
					fail(err)
					return
				}
			}
		})
	}
	wg.Wait()
	if err := context.Cause(ctx); err != nil {
		return err
	}
	return p.ends(ctx, []string{"auth_ok", "error: max subscriptions per connection exceeded"}, p.auth(), p.subscribe())
}

func subscribeChurn(ctx context.Context, p *peer) error {
	for range 200 {
		r, err := p.subscribed(ctx, p.subscribe())
		if err != nil {
			return err
		}
		r.Cancel(0)
	}
	return nil
}

// neverReadsEvents publishes more to a subscription than its queue and every window hold.
func neverReadsEvents(ctx context.Context, p *peer) error {
	if _, err := p.subscribed(ctx, p.subscribe()); err != nil {
		return err
	}
	publishes := bytes.Repeat(p.publish(make([]byte, 64<<10)), 160)
	return p.kept(ctx, []string{"auth_ok", "ack 1: ok"}, p.auth(), publishes, p.publishAcked(nil, 1))
}

func tinyWindows(ctx context.Context, p *peer) error {
	events, err := p.subscribed(ctx, p.subscribe())
	if err != nil {
		return err
	}
	p.wg.Go(func() { // the events come while it publishes, and would fill the connection's window
		_ = p.kept(ctx, []string{"auth_ok"}, p.auth(), bytes.Repeat(p.publish(make([]byte, 1<<10)), 50))
	})
	return p.receive(ctx, events, 50)
}

func stopSending(ctx context.Context, p *peer) error {
	s, err := p.open(ctx, p.auth())
	if err != nil {
		return err
	}
	s.Recv().Cancel(0)
	for { // the broker learns of it when it writes a reply
		if _, err := s.Send().Write(p.get("k", 1)); err != nil {
			return p.awaitStop(ctx, s.Send())
		}
		if err := p.survives(ctx); err != nil {
			return err
		}
	}
}

// neverReadsReplies writes requests until the broker takes no more of them.
func neverReadsReplies(ctx context.Context, p *peer) error {
	if err := p.kept(ctx, []string{"auth_ok", "cache_ok 1"}, p.auth(), p.put("large", make([]byte, 1<<10))); err != nil {
		return err
	}
	s, err := p.open(ctx, p.auth())
	if err != nil {
		return err
	}
	requests := bytes.Repeat(p.get("large", 2), 100)
	for n := 0; err == nil; n += 100 {
		if n > 100_000 {
			return errors.New("the broker takes requests without bound")
		}
		_ = s.Send().SetWriteDeadline(time.Now().Add(100 * time.Millisecond))
		_, err = s.Send().Write(requests)
	}
	if !errors.Is(err, os.ErrDeadlineExceeded) {
		return err
	}
	if err := p.survives(ctx); err != nil { // other streams go on
		return err
	}
	_ = s.Send().SetWriteDeadline(time.Time{})
	s.Recv().Cancel(0)
	return p.awaitStop(ctx, s.Send())
}

func manyStreams(ctx context.Context, p *peer) error {
	opened := 0
	for ; opened < 1500; opened++ {
		ctx, cancel := context.WithTimeout(ctx, 50*time.Millisecond)
		_, err := p.open(ctx, []byte("F"))
		cancel()
		if errors.Is(err, quicx.ErrStreamLimit) {
			break
		}
		if err != nil {
			return fmt.Errorf("stream %d: %w", opened, err)
		}
	}
	if opened > 1024 {
		return fmt.Errorf("%d streams are open at a time", opened)
	}
	return nil
}

func streamChurn(ctx context.Context, p *peer) error {
	if err := p.survives(ctx); err != nil { // or it would be closed for authenticating nothing
		return err
	}
	for i := range 2000 {
		s, err := p.open(ctx, []byte("F")[:i%2])
		if err != nil {
			return err
		}
		s.Send().Cancel(0)
		s.Recv().Cancel(0)
	}
	return p.survives(ctx)
}

func tooMuchChurn(ctx context.Context, p *peer) error {
	if err := p.survives(ctx); err != nil {
		return err
	}
	for p.Context().Err() == nil {
		s, err := p.open(ctx, []byte("F"))
		if err != nil {
			break // closed meanwhile, or something that closedFor will tell
		}
		s.Send().Cancel(0)
		s.Recv().Cancel(0)
	}
	return p.closedFor(ctx, "too many failed streams")
}

// closedFor waits until the broker has closed the connection, and checks why.
func (p *peer) closedFor(ctx context.Context, reason string) error {
	select {
	case <-p.Context().Done():
	case <-ctx.Done():
		return errors.New("the connection stays open")
	}
	e, ok := errors.AsType[*quicx.ConnClosedError](context.Cause(p.Context()))
	if !ok || !e.Remote || e.Transport || e.Code != 0 || e.Reason != reason {
		return fmt.Errorf("the connection was closed with %w, want reason %q", context.Cause(p.Context()), reason)
	}
	return nil
}

// unfinishedPublishes are more than the broker keeps for one connection: some must be cut off. Those that fit would be
// finished in time if this peer went on.
func unfinishedPublishes(ctx context.Context, p *peer) error {
	if err := p.survives(ctx); err != nil { // a connection that is known may use more memory
		return err
	}
	unfinished := p.publish(make([]byte, 4<<20))
	unfinished = unfinished[:len(unfinished)-1]
	cut := make(chan struct{}, 16)
	for range cap(cut) {
		p.wg.Go(func() {
			if s, err := p.openUni(ctx, p.auth(), unfinished); stopped(err) || (err == nil && p.awaitStop(ctx, s) == nil) {
				cut <- struct{}{}
			}
		})
	}
	for range cap(cut) - 1 { // one fits, perhaps, until its time is over
		select {
		case <-cut:
		case <-ctx.Done():
			return errors.New("the broker holds whatever it is sent")
		}
	}
	return p.survives(ctx)
}

func manyConnections(ctx context.Context, p *peer) error {
	const extra = 36
	var peers []*peer
	defer func() {
		for _, q := range peers {
			q.close()
		}
	}()
	for range maxUnauthenticated + extra {
		q, err := p.dial(ctx, quicx.Config{})
		if err != nil {
			return err
		}
		peers = append(peers, q)
	}
	// Handshakes that overlap may be accepted in another order, so only the number of those that go is certain.
	closed := make(chan int, len(peers))
	for i, q := range peers {
		p.wg.Go(func() {
			select {
			case <-q.Context().Done():
				closed <- i
			case <-ctx.Done():
			}
		})
	}
	gone := make(map[int]bool)
	for range extra {
		select {
		case i := <-closed:
			gone[i] = true
			if err := peers[i].closedFor(ctx, "too many unauthenticated connections"); err != nil {
				return fmt.Errorf("connection %d: %w", i, err)
			}
		case <-ctx.Done():
			return fmt.Errorf("%d connections were closed, want %d", len(gone), extra)
		}
	}
	for i, q := range slices.Backward(peers) {
		if !gone[i] {
			return q.survives(ctx)
		}
	}
	return errors.New("none is left")
}

// trickle sends a request so slowly that it never stands still for long.
func trickle(ctx context.Context, p *peer) error {
	s, err := p.open(ctx, p.auth())
	if err != nil {
		return err
	}
	p.wg.Go(func() {
		tick := time.NewTicker(20 * time.Millisecond)
		defer tick.Stop()
		for b := range slices.Values(p.put("k", make([]byte, 1<<10))) {
			if _, err := s.Send().Write([]byte{b}); err != nil {
				return
			}
			select {
			case <-tick.C:
			case <-ctx.Done():
				return
			}
		}
	})
	return p.expect(ctx, s, []string{"auth_ok"})
}

// expiresMeanwhile uses a token in the last seconds of its leeway.
func expiresMeanwhile(ctx context.Context, p *peer) error {
	signer, err := auth.NewSigner(p.Key, broker.DevKeyID)
	if err != nil {
		return err
	}
	now := time.Now()
	token, err := signer.Mint(auth.Claims{
		Tenant: p.Tenant, Subject: "short", IssuedAt: now.Add(-time.Hour), Expires: now.Add(4*time.Second - auth.Leeway),
		Permissions: []string{"stream.subscribe:stream:" + p.Tenant + "/*"},
	})
	if err != nil {
		return err
	}
	if err := p.kept(ctx, []string{"auth_ok", "subscribed"}, p.authWith(token), p.subscribe()); err != nil {
		return err
	}
	r, err := p.AcceptUniStream(ctx)
	if err != nil {
		return err
	}
	if err := p.ends(ctx, []string{"auth_ok", "error: auth failed"}, p.authWith(token)); err != nil {
		return err
	}
	if err := p.receive(ctx, r, 1); !errors.Is(err, io.EOF) {
		return fmt.Errorf("the subscription ended with %w, want FIN", err)
	}
	return nil
}

func connectionChurn(ctx context.Context, p *peer) error {
	for range 100 {
		other, err := p.dial(ctx, quicx.Config{})
		if err != nil {
			return err
		}
		if _, err := other.open(ctx, p.auth()[:20]); err != nil {
			return err
		}
		other.close()
	}
	return nil
}

// closeInTheMiddle leaves while subscriptions, publishes, cache requests and unfinished frames are under way.
func closeInTheMiddle(ctx context.Context, p *peer) error {
	if _, err := p.subscribed(ctx, p.subscribe()); err != nil {
		return err
	}
	for range 8 {
		p.wg.Go(func() {
			_, _ = p.openUni(ctx, p.auth(), bytes.Repeat(p.publish(make([]byte, 16<<10)), 50))
		})
		p.wg.Go(func() {
			_, _ = p.open(ctx, p.auth(), bytes.Repeat(p.put("k", make([]byte, 1<<10)), 50), p.get("k", 2)[:20])
		})
		p.wg.Go(func() { _, _ = p.open(ctx, p.auth(), p.subscribe()) })
	}
	_, err := p.AcceptUniStream(ctx) // by when some of it is under way
	return err
}

// mute is a socket that can fall silent: what is written to it then goes nowhere.
type mute struct {
	net.PacketConn
	left atomic.Int64 // datagrams that still go out
}

// WriteTo is the only way in which quic-go writes to a connection that it does not know.
func (m *mute) WriteTo(b []byte, to net.Addr) (int, error) {
	if m.left.Add(-1) < 0 {
		return len(b), nil
	}
	return m.PacketConn.WriteTo(b, to)
}

// dialMute is a handshake in which no more than left datagrams leave. The connection is nil if they were too few.
func (p *peer) dialMute(ctx context.Context, conf *tls.Config, left int64) (qc *quic.Conn, end func(), err error) {
	socket, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		return nil, func() {}, err
	}
	m := &mute{PacketConn: socket}
	m.left.Store(left)
	tr := &quic.Transport{Conn: m}
	end = func() {
		m.left.Store(0)
		_ = tr.Close()
		_ = socket.Close()
	}
	qc, err = tr.Dial(ctx, p.RemoteAddr(), conf, nil)
	return qc, end, err
}

func abandonConnection(ctx context.Context, p *peer) error {
	qc, end, err := p.dialMute(ctx, p.ClientTLS(), 1<<30)
	defer end()
	if err != nil {
		return err
	}
	s, err := qc.OpenStreamSync(ctx)
	if err != nil {
		return err
	}
	if _, err := s.Write(slices.Concat(p.auth(), p.subscribe())); err != nil {
		return err
	}
	_, err = qc.AcceptUniStream(ctx) // the subscription stands
	return err
}

// abandonHandshake sends a ClientHello, which takes two datagrams, and nothing more. To the client it may look
// complete.
func abandonHandshake(ctx context.Context, p *peer) error {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	_, end, _ := p.dialMute(ctx, p.ClientTLS(), 2)
	end()
	return nil
}

func offersALPN(ctx context.Context, p *peer) error {
	conf := p.ClientTLS()
	conf.NextProtos = []string{"h3"}
	_, end, err := p.dialMute(ctx, conf, 1<<30)
	defer end()
	if failed, ok := errors.AsType[*quic.TransportError](err); !ok || !failed.ErrorCode.IsCryptoError() {
		return fmt.Errorf("the handshake ended with %w, want a TLS alert", err)
	}
	other, err := p.dial(ctx, quicx.Config{})
	if err != nil {
		return err
	}
	defer other.close()
	return other.survives(ctx)
}

// udp returns a socket to the broker.
func (p *peer) udp() (*net.UDPConn, error) {
	to, err := net.ResolveUDPAddr("udp4", p.Addr().String())
	if err != nil {
		return nil, err
	}
	return net.DialUDP("udp4", nil, to)
}

func garbageDatagrams(ctx context.Context, p *peer) error {
	socket, err := p.udp()
	if err != nil {
		return err
	}
	defer socket.Close()
	rng := rand.New(rand.NewPCG(*seedFlag, 99))
	for range 500 {
		b := make([]byte, 1+rng.IntN(1400))
		fill(rng, b)
		b[0] &^= 0x80 // not the beginning of a connection: those have a script of their own
		if _, err := socket.Write(b); err != nil {
			return err
		}
	}
	return p.survives(ctx)
}

// initial is a datagram that looks like the beginning of a connection and cannot be decrypted.
func initial(version uint32) []byte {
	b := make([]byte, 1200)
	fill(rand.New(rand.NewPCG(rand.Uint64(), 0)), b)
	b[0] = 0xc3
	binary.BigEndian.PutUint32(b[1:], version)
	b[5], b[14] = 8, 8 // lengths of the connection ids
	b[23] = 0          // no token
	binary.BigEndian.PutUint16(b[24:], 0x4000|uint16(len(b)-26))
	return b
}

func unknownVersion(ctx context.Context, p *peer) error {
	socket, err := p.udp()
	if err != nil {
		return err
	}
	defer socket.Close()
	if _, err := socket.Write(initial(0x0a0a0a0a)); err != nil {
		return err
	}
	deadline, _ := ctx.Deadline()
	_ = socket.SetReadDeadline(deadline)
	b := make([]byte, 1500)
	n, err := socket.Read(b)
	if err == nil && (n < 7 || b[0]&0x80 == 0 || binary.BigEndian.Uint32(b[1:]) != 0) {
		err = fmt.Errorf("answer %x is no version negotiation", b[:n])
	}
	return err
}

func undecryptableInitials(_ context.Context, p *peer) error {
	socket, err := p.udp()
	if err != nil {
		return err
	}
	defer socket.Close()
	for range 50 {
		if _, err := socket.Write(initial(1)); err != nil {
			return err
		}
	}
	return nil
}
