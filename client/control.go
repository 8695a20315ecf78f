package client

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/felix-mq/felix/codec"
	"github.com/felix-mq/felix/quicx"
)

// control is an authenticated bi-directional stream before anything has been asked on it.
type control struct {
	k     *conn
	s     *quicx.Stream
	fr    *quicx.FrameReader
	msg   codec.Message
	flags codec.Flags      // what the broker advertised
	ext   codec.Extensions // what was agreed on
	ends  time.Time        // when the token does; zero if that is not known
}

// openControl opens a stream and sends auth, and right after it what the caller wants to send.
func (k *conn) openControl(ctx context.Context, pipelined func([]byte) []byte) (*control, error) {
	return withToken(ctx, k.c, func(token string) (*control, error) { return k.openControlWith(ctx, token, pipelined) })
}

// withToken calls open with a token. A token may end on its way to the broker, so if the broker does not take it and
// the source has another one by then, it calls open again with that.
func withToken[T any](ctx context.Context, c *Client, open func(token string) (T, error)) (stream T, err error) {
	token, err := c.token(ctx)
	if err != nil {
		return stream, err
	}
	if stream, err = open(token); !errors.Is(err, ErrAuth) {
		return stream, err
	}
	if newer, noToken := c.token(ctx); noToken == nil && newer != token {
		return open(newer)
	}
	return stream, err
}

// token asks for the token to authenticate with.
func (c *Client) token(ctx context.Context) (string, error) {
	token, err := c.o.token(ctx)
	switch {
	case err != nil && ctx.Err() != nil:
		return "", fmt.Errorf("%w: token: %w", context.Cause(ctx), err)
	case err != nil: // the next call asks again
		return "", fmt.Errorf("%w: token: %w", ErrDisconnected, err)
	}
	return token, nil
}

// openControlWith is openControl with a token.
func (k *conn) openControlWith(ctx context.Context, token string, pipelined func([]byte) []byte) (*control, error) {
	s, err := k.qc.OpenStream(ctx)
	if err != nil {
		if ctx.Err() != nil {
			return nil, fmt.Errorf("%w: %w", context.Cause(ctx), err)
		}
		return nil, k.streamError("opening a stream", err)
	}
	ctl := &control{k: k, s: s, ends: tokenEnd(token), fr: quicx.NewFrameReader(s.Recv(), k.c.o.maxFrame+frameSlack)}
	stop := context.AfterFunc(ctx, func() {
		_ = s.Recv().SetReadDeadline(past)
		_ = s.Send().SetWriteDeadline(past)
	})
	out := codec.AppendAuthFenced(nil, k.c.o.tenant, token, clientFlags, true, k.c.o.ext, k.fence)
	if pipelined != nil {
		out = pipelined(out)
	}
	if err = ctl.write(out); err == nil {
		err = ctl.authReply()
	}
	if !stop() && err == nil {
		err = context.Cause(ctx)
	}
	if err != nil {
		ctl.abandon()
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		return nil, err
	}
	return ctl, nil
}

// authReply reads the answer to auth: auth_ok with the broker's flags, or a plain ok from one that does not negotiate.
func (ctl *control) authReply() error {
	if err := ctl.read(); err != nil {
		return err
	}
	switch ctl.msg.Type {
	case codec.MsgAuthOK:
		ctl.flags = ctl.msg.ServerFlags
		ctl.ext = ctl.msg.Ext & ctl.k.c.o.ext
	case codec.MsgOK:
		ctl.flags = codec.OriginalV1Flags
	case codec.MsgError:
		return fmt.Errorf("%w: %w", ErrAuth, &BrokerError{string(ctl.msg.Text)})
	default:
		return fmt.Errorf("%w: %v in answer to auth", ErrProtocol, ctl.msg.Type)
	}
	return nil
}

// write sends a request. If the broker has stopped reading it has a reason, and the reply says which.
func (ctl *control) write(b []byte) error {
	if _, err := ctl.s.Send().Write(b); err != nil && !stoppedReading(err) {
		return ctl.k.streamError("sending a request", err)
	}
	return nil
}

// read reads one JSON message.
func (ctl *control) read() error {
	f, err := ctl.fr.Next()
	if err != nil {
		if errors.Is(err, io.EOF) {
			return fmt.Errorf("%w: the broker ended the stream without a reply", ErrDisconnected)
		}
		return ctl.k.streamError("reading a reply", err)
	}
	ctl.k.heard.Store(ctl.k.c.now())
	if f.Header.Flags != codec.LayoutJSON {
		return fmt.Errorf("%w: reply with flags %#04x", ErrProtocol, uint16(f.Header.Flags))
	}
	if err := codec.ParseMessage(f.Bytes[codec.HeaderLen:], &ctl.msg); err != nil {
		return fmt.Errorf("%w: %w", ErrProtocol, err)
	}
	return nil
}

// abandon ends both halves.
func (ctl *control) abandon() {
	ctl.s.Send().Cancel(0)
	ctl.s.Recv().Cancel(0)
	ctl.fr.Close()
}
