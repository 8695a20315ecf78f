package conformance

import (
	"fmt"
	"strconv"

	"github.com/felix-mq/felix/codec"
	"github.com/felix-mq/felix/quicx"
)

// Replies are compared and reported as text:
//
//	auth_ok 63                                 ok
//	error "forbidden"                          subscribed 5
//	publish_ok 7                               event_stream_hello 5
//	publish_error 7 "forbidden"                subscribe_cursor_error in_future requested=9 available=4
//	ack 7 ok                                   cache_ok 7
//	ack 7 "forbidden"                          cache_value "t1" "default" "primary" "key" = "value" id=7
//	FIN, RESET 0, nothing for 10s              cache_value "t1" "default" "primary" "key" miss
func describe(f quicx.Frame) string {
	flags, payload := f.Header.Flags, f.Payload()
	switch flags {
	case codec.LayoutJSON:
		return describeMessage(payload)
	case codec.LayoutPublishAck:
		a, err := codec.ParsePublishAck(payload)
		switch {
		case err != nil:
			return fmt.Sprintf("a malformed acknowledgement (%v): %x", err, clip(payload))
		case len(payload) != 11+len(a.Message) || (a.OK && len(a.Message) > 0):
			return fmt.Sprintf("an acknowledgement with something after it: %x", clip(payload))
		case a.OK:
			return fmt.Sprintf("ack %d ok", a.RequestID)
		}
		return fmt.Sprintf("ack %d %s", a.RequestID, short(string(a.Message)))
	default:
		return fmt.Sprintf("a frame with flags %#04x and %d bytes: %x", uint16(flags), len(payload), clip(payload))
	}
}

func describeMessage(payload []byte) string {
	var m codec.Message
	if err := codec.ParseMessage(payload, &m); err != nil {
		return fmt.Sprintf("a message that does not decode (%v): %s", err, clip(payload))
	}
	switch m.Type {
	case codec.MsgAuthOK:
		return fmt.Sprintf("auth_ok %d", m.ServerFlags)
	case codec.MsgError:
		return fmt.Sprintf("error %s", short(string(m.Text)))
	case codec.MsgPublishOK, codec.MsgCacheOK:
		return fmt.Sprintf("%v %d", m.Type, m.RequestID)
	case codec.MsgPublishError:
		return fmt.Sprintf("publish_error %d %s", m.RequestID, short(string(m.Text)))
	case codec.MsgSubscribed, codec.MsgEventStreamHello:
		return fmt.Sprintf("%v %d", m.Type, m.SubscriptionID)
	case codec.MsgSubscribeCursorError:
		return fmt.Sprintf("subscribe_cursor_error %v requested=%d available=%d", m.Reason, m.Requested, m.Available)
	case codec.MsgCacheValue:
		text := "cache_value " + entry(string(m.Tenant), string(m.Namespace), string(m.Cache), string(m.Key)) + " miss"
		if m.HasValue {
			text = text[:len(text)-len("miss")] + "= " + short(string(m.Value))
		}
		if m.HasRequestID {
			text += fmt.Sprintf(" id=%d", m.RequestID)
		}
		return text
	default:
		return m.Type.String()
	}
}

// entry names a cache entry in a reply.
func entry(tenant, namespace, cache, key string) string {
	return fmt.Sprintf("%s %s %s %s", short(tenant), short(namespace), short(cache), short(key))
}

func (f *Fixture) entry(key string) string { return entry(f.Tenant, f.Namespace, f.Cache, key) }

// clip is what fits into a report.
func clip(b []byte) []byte { return b[:min(len(b), 64)] }

// short quotes a text, and says of a long one how it begins, ends and how long it is.
func short(text string) string {
	const most = 600 // the longest text of an acknowledgement stays whole
	if len(text) <= most {
		return strconv.Quote(text)
	}
	return fmt.Sprintf("%s + %d bytes + %s", strconv.Quote(text[:40]), len(text)-80, strconv.Quote(text[len(text)-40:]))
}
