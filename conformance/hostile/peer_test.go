package hostile

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"

	"github.com/felix-mq/felix/codec"
	"github.com/felix-mq/felix/quicx"
)

// peer is one connection of an attacker.
type peer struct {
	*site
	*quicx.Conn
	wg sync.WaitGroup // what it has started
}

// dial connects as a client would, with limits of the caller's.
func (s *site) dial(ctx context.Context, cfg quicx.Config) (*peer, error) {
	c, err := quicx.Dial(ctx, s.Addr().String(), s.ClientTLS(), cfg)
	if err != nil {
		return nil, err
	}
	return &peer{site: s, Conn: c}, nil
}

// close ends the connection. Whatever the peer is doing on it fails, and is waited for.
func (p *peer) close() {
	_ = p.Close(0, "")
	p.wg.Wait()
}

// survives checks that the connection is there and can be used.
func (p *peer) survives(ctx context.Context) error {
	if p.Context().Err() != nil {
		return fmt.Errorf("the connection was ended: %w", context.Cause(p.Context()))
	}
	if err := p.kept(ctx, []string{"auth_ok", "cache_value 1: miss"}, p.auth(), p.get("nothing", 1)); err != nil {
		return fmt.Errorf("the connection is of no use any more: %w", err)
	}
	return nil
}

// open opens a control stream and writes to it.
func (p *peer) open(ctx context.Context, frames ...[]byte) (*quicx.Stream, error) {
	s, err := p.OpenStream(ctx)
	if err != nil {
		return nil, err
	}
	_, err = s.Send().Write(bytes.Join(frames, nil))
	return s, err
}

// openUni opens a publish stream and writes to it.
func (p *peer) openUni(ctx context.Context, frames ...[]byte) (*quicx.SendStream, error) {
	s, err := p.OpenUniStream(ctx)
	if err != nil {
		return nil, err
	}
	_, err = s.Write(bytes.Join(frames, nil))
	return s, err
}

// ends sends frames and does not finish: the broker must answer as wanted, finish its half and stop reading ours.
func (p *peer) ends(ctx context.Context, want []string, frames ...[]byte) error {
	s, err := p.open(ctx, frames...)
	if err != nil && !stopped(err) {
		return err
	}
	if err := p.expect(ctx, s, want); err != nil {
		return err
	}
	return p.awaitStop(ctx, s.Send())
}

// kept sends frames and FIN: the broker must have answered all of them as wanted before it finishes its half. It may
// stop reading after the last of them.
func (p *peer) kept(ctx context.Context, want []string, frames ...[]byte) error {
	s, err := p.open(ctx, frames...)
	if err == nil {
		err = s.Send().Close()
	}
	if err != nil && !stopped(err) {
		return err
	}
	return p.expect(ctx, s, want)
}

// endsUni sends frames on a publish stream: the broker must stop reading it.
func (p *peer) endsUni(ctx context.Context, frames ...[]byte) error {
	s, err := p.openUni(ctx, frames...)
	if err != nil && !stopped(err) {
		return err
	}
	return p.awaitStop(ctx, s)
}

// expect reads the replies up to FIN.
func (p *peer) expect(ctx context.Context, s *quicx.Stream, want []string) error {
	got, err := p.replies(ctx, s.Recv())
	if err == nil && !slices.Equal(got, want) {
		err = fmt.Errorf("replies %q, want %q", got, want)
	}
	return err
}

// awaitStop waits for STOP_SENDING.
func (p *peer) awaitStop(ctx context.Context, s *quicx.SendStream) error {
	select {
	case <-s.Context().Done():
	case <-ctx.Done():
		return errors.New("the broker goes on reading")
	}
	// The error of a write says how the stream ended: its context does not distinguish the ways to end.
	if _, err := s.Write([]byte{0}); !stopped(err) {
		return fmt.Errorf("the stream ended with %w, want STOP_SENDING", err)
	}
	return nil
}

// stopped reports whether a write has met STOP_SENDING.
func stopped(err error) bool {
	reset, ok := errors.AsType[*quicx.StreamResetError](err)
	return ok && reset.Remote
}

// replies reads replies up to FIN, each as a short text. A peer's replies always end so: brokers do not reset streams.
func (p *peer) replies(ctx context.Context, r *quicx.RecvStream) ([]string, error) {
	stop := context.AfterFunc(ctx, func() { r.Cancel(0) })
	defer stop()
	fr := quicx.NewFrameReader(r, 0)
	defer fr.Close()
	var got []string
	for {
		f, err := fr.Next()
		if errors.Is(err, io.EOF) {
			return got, nil
		}
		if err != nil {
			if ctx.Err() != nil {
				err = context.Cause(ctx)
			}
			return got, fmt.Errorf("after %d replies %.200q: %w", len(got), got, err)
		}
		text, err := describeReply(f)
		if err != nil {
			return got, err
		}
		got = append(got, text)
	}
}

// describeReply turns a reply into a short text. It fails if the frame is none that a broker may send there.
func describeReply(f quicx.Frame) (string, error) {
	payload := f.Payload()
	if f.Header.Flags == codec.LayoutPublishAck {
		a, err := codec.ParsePublishAck(payload)
		switch {
		case err != nil:
			return "", fmt.Errorf("malformed reply %.200q: %w", payload, err)
		case a.OK:
			return fmt.Sprintf("ack %d: ok", a.RequestID), nil
		}
		return fmt.Sprintf("ack %d: %.100s", a.RequestID, a.Message), checkText(string(a.Message))
	}
	if f.Header.Flags == codec.LayoutExtension {
		return describeCacheReply(payload)
	}
	if f.Header.Flags != codec.LayoutJSON {
		return "", fmt.Errorf("reply with flags %#04x", uint16(f.Header.Flags))
	}
	var m codec.Message
	if err := codec.ParseMessage(payload, &m); err != nil {
		return "", fmt.Errorf("malformed reply %.200q: %w", payload, err)
	}
	switch m.Type {
	case codec.MsgAuthOK, codec.MsgOK, codec.MsgSubscribed:
		return m.Type.String(), nil
	case codec.MsgError:
		return fmt.Sprintf("error: %.100s", m.Text), checkText(string(m.Text))
	case codec.MsgPublishOK, codec.MsgCacheOK:
		return fmt.Sprintf("%v %d", m.Type, m.RequestID), nil
	case codec.MsgPublishError:
		return fmt.Sprintf("%v %d: %.100s", m.Type, m.RequestID, m.Text), checkText(string(m.Text))
	case codec.MsgSubscribeCursorError:
		return fmt.Sprintf("%v %v", m.Type, m.Reason), nil
	case codec.MsgCacheValue:
		if !m.HasValue {
			return fmt.Sprintf("%v %d: miss", m.Type, m.RequestID), nil
		}
		return fmt.Sprintf("%v %d: hit", m.Type, m.RequestID), nil
	default:
		return "", fmt.Errorf("%v in answer to a request", m.Type)
	}
}

// describeCacheReply is describeReply for the extension cache, the only one with replies
// (docs/protocol/extensions.md#cache).
func describeCacheReply(payload []byte) (string, error) {
	kind, body, err := codec.ParseExtension(payload)
	if err != nil || kind != codec.ExtensionCacheReply {
		return "", fmt.Errorf("extension frame of type %d in answer to a request: %w", kind, err)
	}
	r, err := codec.ParseCacheReply(body)
	if err != nil {
		return "", fmt.Errorf("malformed reply %.200q: %w", payload, err)
	}
	text := fmt.Sprintf("cache %d: status %d", r.RequestID, r.Status)
	if r.Status != codec.CacheRefused || len(r.Text) == 0 { // no text: the request could not be read
		return text, nil
	}
	return fmt.Sprintf("%s: %.100s", text, r.Text), checkText(string(r.Text))
}

// documented are the texts of docs/protocol/errors.md that a broker of this kind uses. They are written out here so
// that the broker is not judged by its own words.
var documented = []string{
	"unsupported frame flags", "auth required", "auth already established", "auth failed", "tenant mismatch", "forbidden",
	"unexpected message type", "subscribe_cursor_error is a server-to-client message",
	"missing request_id for acked publish", "missing request_id for acked publish batch", "malformed publish batch",
	"publish admission timed out", "publish admission closed", "max subscriptions per connection exceeded",
	"duplicate subscription id", "open uni stream", "cache entry too large",
}

func checkText(text string) error {
	if slices.Contains(documented, text) ||
		strings.HasPrefix(text, "stream not found: tenant=") || strings.HasPrefix(text, "cache scope not found: ") ||
		strings.HasPrefix(text, "limit reached: ") {
		return nil
	}
	return fmt.Errorf("error text %.200q is not documented", text)
}

// events checks the beginning of an event stream: a hello, followed only by events and extension frames, as far as they
// are there.
func events(r *quicx.RecvStream) error {
	fr := quicx.NewFrameReader(r, 0)
	defer fr.Close()
	defer r.Cancel(0)
	for first := true; first || fr.Ready(); first = false {
		f, err := fr.Next()
		if err != nil {
			return fmt.Errorf("reading an event stream: %w", err)
		}
		if first {
			var m codec.Message
			if err := codec.ParseMessage(f.Payload(), &m); err != nil || m.Type != codec.MsgEventStreamHello {
				return fmt.Errorf("an event stream begins with %.100q", f.Payload())
			}
			continue
		}
		if f.Header.Flags == codec.LayoutExtension {
			if _, _, err := codec.ParseExtension(f.Payload()); err != nil {
				return fmt.Errorf("malformed extension frame: %w", err)
			}
			continue
		}
		if _, err := codec.ParseEventBatch(f.Header.Flags, f.Payload()); err != nil {
			return fmt.Errorf("malformed events: %w", err)
		}
	}
	return nil
}

// Frames, for names that exist.

func (p *peer) auth() []byte { return p.authWith(p.Token) }

func (p *peer) authWith(token string) []byte {
	return codec.AppendAuth(nil, p.Tenant, token, codec.KnownFlags, true, 0)
}

func (p *peer) get(key string, id uint64) []byte {
	return codec.AppendCacheGet(nil, p.Tenant, p.Namespace, p.Cache, key, id, true)
}

// put has the request id 1.
func (p *peer) put(key string, value []byte) []byte {
	return codec.AppendCachePut(nil, p.Tenant, p.Namespace, p.Cache, key, value, 1, true, 0, false)
}

func (p *peer) publish(payload []byte) []byte {
	return codec.AppendPublishBatch(nil, p.Tenant, p.Namespace, liveStream, [][]byte{payload})
}

func (p *peer) publishAcked(payload []byte, id uint64) []byte {
	return codec.AppendPublishBatchAcked(nil, id, codec.AckPerBatch, p.Tenant, p.Namespace, liveStream, [][]byte{payload})
}

func (p *peer) publishJSON(payload []byte, id uint64) []byte {
	return codec.AppendPublish(nil, p.Tenant, p.Namespace, liveStream, payload, codec.AckPerMessage, id, true)
}

func (p *peer) subscribe() []byte {
	return codec.AppendSubscribe(nil, p.Tenant, p.Namespace, liveStream, codec.Start{}, 0, false)
}

func (p *peer) subscribeAs(id uint64) []byte {
	return codec.AppendSubscribe(nil, p.Tenant, p.Namespace, liveStream, codec.Start{}, id, true)
}

// jsonFrame is a frame with a payload that no encoder would write.
func jsonFrame(payload string) []byte { return frame(codec.LayoutJSON, []byte(payload)) }

func frame(flags codec.Flags, payload []byte) []byte {
	return append(codec.AppendHeader(nil, flags, len(payload)), payload...)
}
