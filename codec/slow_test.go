package codec_test

import (
	"encoding/base64"
	"fmt"
	"math"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/felix-mq/felix/codec"
)

// This file is a second implementation of felix-wire, written from docs/protocol/wire.md to be obvious instead of fast.
// The other tests let it judge package codec. It works on strings, so that nothing it returns can alias anything.

// The classes of malformation, spelled as ClassOf does.
const (
	shortHeader    = "short_header"
	badMagic       = "bad_magic"
	badVersion     = "bad_version"
	incomplete     = "incomplete"
	notUTF8        = "not_utf8"
	ackMode        = "ack_mode"
	ackStatus      = "ack_status"
	badFlags       = "flag_combination"
	jsonSyntax     = "json_syntax"
	jsonType       = "json_type"
	missingField   = "json_missing_field"
	duplicateField = "json_duplicate_field"
	unknownType    = "json_unknown_type"
	badBase64      = "base64"
)

// faults is the set of classes of what is wrong with a JSON payload, as far as it can be read: docs/protocol/wire.md
// does not say which of several faults is found first.
type faults map[string]bool

// JSON values are nil, bool, slowNumber, string, []any, slowObject, or slowBroken.
type (
	slowNumber string
	slowObject []slowMember
	slowMember struct {
		name  string
		value any
	}
	// slowBroken stands for a value with a fault that has been noted, so that it is not held against it twice.
	slowBroken struct{}
)

// slowJSON reads JSON. Its methods return false if it is hopeless to go on; their other results are what they have read
// until then.
type slowJSON struct {
	text   string
	pos    int
	faults faults
}

func (j *slowJSON) rest() string { return j.text[j.pos:] }

func (j *slowJSON) space() {
	j.pos += len(j.rest()) - len(strings.TrimLeft(j.rest(), " \t\r\n"))
}

// take moves past the word if it is next.
func (j *slowJSON) take(word string) bool {
	if !strings.HasPrefix(j.rest(), word) {
		return false
	}
	j.pos += len(word)
	return true
}

func (j *slowJSON) malformed() bool {
	j.faults[jsonSyntax] = true
	return false
}

var slowNumberPattern = regexp.MustCompile(`^-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?`)

// value reads a value that is the depth-th level of nesting if it is an array or an object.
func (j *slowJSON) value(depth int) (any, bool) {
	switch {
	case j.take("null"):
		return nil, true
	case j.take("true"):
		return true, true
	case j.take("false"):
		return false, true
	case strings.HasPrefix(j.rest(), `"`):
		return j.string()
	case strings.HasPrefix(j.rest(), "["):
		return j.array(depth)
	case strings.HasPrefix(j.rest(), "{"):
		return j.object(depth)
	}
	number := slowNumberPattern.FindString(j.rest())
	if number == "" {
		return slowBroken{}, j.malformed()
	}
	j.pos += len(number)
	if _, err := strconv.ParseFloat(number, 64); err != nil {
		j.faults[jsonSyntax] = true
		return slowBroken{}, true
	}
	return slowNumber(number), true
}

func (j *slowJSON) array(depth int) (any, bool) {
	array := []any{}
	if depth > 127 {
		return slowBroken{}, j.malformed()
	}
	j.take("[")
	j.space()
	if j.take("]") {
		return array, true
	}
	for {
		j.space()
		v, ok := j.value(depth + 1)
		array = append(array, v)
		if !ok {
			return array, false
		}
		j.space()
		if j.take("]") {
			return array, true
		}
		if !j.take(",") {
			return array, j.malformed()
		}
	}
}

func (j *slowJSON) object(depth int) (any, bool) {
	object := slowObject{}
	if depth > 127 {
		return slowBroken{}, j.malformed()
	}
	j.take("{")
	j.space()
	if j.take("}") {
		return object, true
	}
	for {
		j.space()
		if !strings.HasPrefix(j.rest(), `"`) {
			return object, j.malformed()
		}
		name, ok := j.string()
		if !ok {
			return object, false
		}
		j.space()
		if !j.take(":") {
			return object, j.malformed()
		}
		j.space()
		v, ok := j.value(depth + 1)
		if s, isText := name.(string); isText {
			object = append(object, slowMember{s, v})
		}
		if !ok {
			return object, false
		}
		j.space()
		if j.take("}") {
			return object, true
		}
		if !j.take(",") {
			return object, j.malformed()
		}
	}
}

var slowEscapes = map[byte]string{
	'"': "\"", '\\': "\\", '/': "/", 'b': "\b", 'f': "\f", 'n': "\n", 'r': "\r", 't': "\t",
}

func (j *slowJSON) string() (any, bool) {
	j.take(`"`)
	start := j.pos
	var out strings.Builder
	for {
		rest := j.rest()
		switch {
		case rest == "" || rest[0] < 0x20:
			return slowBroken{}, j.malformed()
		case rest[0] == '"':
			raw := j.text[start:j.pos]
			j.pos++
			if !utf8.ValidString(raw) {
				j.faults[notUTF8] = true
				return slowBroken{}, true
			}
			return out.String(), true
		case rest[0] != '\\':
			out.WriteByte(rest[0])
			j.pos++
		case strings.HasPrefix(rest, `\u`):
			r, ok := slowUnicode(rest)
			j.pos += 6
			if ok && r >= 0xd800 && r < 0xdc00 {
				var low rune
				low, ok = slowUnicode(j.rest())
				ok = ok && low >= 0xdc00 && low < 0xe000
				r = 0x10000 + (r-0xd800)<<10 + (low - 0xdc00)
				j.pos += 6
			} else if r >= 0xdc00 && r < 0xe000 {
				ok = false
			}
			if !ok {
				return slowBroken{}, j.malformed()
			}
			out.WriteRune(r)
		case len(rest) > 1 && slowEscapes[rest[1]] != "":
			out.WriteString(slowEscapes[rest[1]])
			j.pos += 2
		default:
			return slowBroken{}, j.malformed()
		}
	}
}

// slowUnicode reads the six characters of an escape like \u00e9.
func slowUnicode(s string) (rune, bool) {
	if len(s) < 6 || s[:2] != `\u` {
		return 0, false
	}
	n, err := strconv.ParseUint(s[2:6], 16, 16)
	return rune(n), err == nil
}

// slowMessages are the tables of docs/protocol/wire.md#messages with ext from docs/protocol/extensions.md: the members
// in their order, with "?" after the type of an optional one, and "~" if it is written as null instead of being left
// out. The value of a cache_value has to be there, and may be null.
var slowMessages = []struct {
	typ     codec.MessageType
	name    string
	members string
}{
	{codec.MsgAuth, "auth", "tenant_id text, token text, client_flags u16?, ext ext?"},
	{codec.MsgPublish, "publish", "tenant_id text, namespace text, stream text, payload base64, request_id u64?, ack ack?"},
	{codec.MsgPublishBatch, "publish_batch", "tenant_id text, namespace text, stream text, payloads list, request_id u64?, ack ack?"},
	{codec.MsgSubscribe, "subscribe", "tenant_id text, namespace text, stream text, subscription_id u64?, start start?, epoch epoch?, since since?"},
	{codec.MsgCachePut, "cache_put", "tenant_id text, namespace text, cache text, key text, value base64, request_id u64?, ttl_ms u64~"},
	{codec.MsgCacheGet, "cache_get", "tenant_id text, namespace text, cache text, key text, request_id u64?"},
	{codec.MsgAuthOK, "auth_ok", "server_flags u16, ext ext?"},
	{codec.MsgOK, "ok", ""},
	{codec.MsgError, "error", "message text"},
	{codec.MsgPublishOK, "publish_ok", "request_id u64"},
	{codec.MsgPublishError, "publish_error", "request_id u64, message text"},
	{codec.MsgSubscribed, "subscribed", "subscription_id u64"},
	{codec.MsgSubscribeCursorError, "subscribe_cursor_error", "reason reason, requested u64, available u64"},
	{codec.MsgCacheOK, "cache_ok", "request_id u64"},
	{codec.MsgCacheValue, "cache_value", "tenant_id text, namespace text, cache text, key text, value base64-or-null, request_id u64?"},
	{codec.MsgEventStreamHello, "event_stream_hello", "subscription_id u64"},
	{codec.MsgEvent, "event", "tenant_id text, namespace text, stream text, payload base64, offset u64?"},
	{codec.MsgEventBatch, "event_batch", "tenant_id text, namespace text, stream text, payloads list, base_offset u64?"},
}

type slowField struct {
	name, kind         string
	optional, nullable bool
}

// slowFields returns the members of a message type.
func slowFields(t codec.MessageType) []slowField {
	var fields []slowField
	for _, m := range slowMessages {
		if m.typ != t || m.members == "" {
			continue
		}
		for column := range strings.SplitSeq(m.members, ", ") {
			name, kind, _ := strings.Cut(column, " ")
			fields = append(fields, slowField{
				name:     name,
				kind:     strings.TrimRight(kind, "?~"),
				optional: strings.HasSuffix(kind, "?") || strings.HasSuffix(kind, "~"),
				nullable: strings.HasSuffix(kind, "~"),
			})
		}
	}
	return fields
}

var (
	slowAcks    = map[string]codec.AckMode{"none": codec.AckNone, "per_message": codec.AckPerMessage, "per_batch": codec.AckPerBatch}
	slowReasons = map[string]codec.CursorReason{"too_old": codec.CursorTooOld, "in_future": codec.CursorInFuture}
)

// decoded is a message whose parts alias nothing, with the meanings of codec.Message.
type decoded struct {
	Type                                                 codec.MessageType
	Tenant, Namespace, Stream, Cache, Key, Token, Text   string
	Payload, Value                                       string
	Items                                                []string
	RequestID, SubscriptionID, Offset, TTL               uint64
	Requested, Available                                 uint64
	HasRequestID, HasSubscriptionID, HasOffset, HasTTL   bool
	HasValue, HasClientFlags, HasExt, HasEpoch, HasSince bool
	Epoch, Since                                         uint64
	Ack                                                  codec.AckMode
	Start                                                codec.Start
	ClientFlags, ServerFlags                             codec.Flags
	Ext                                                  codec.Extensions
	Reason                                               codec.CursorReason
}

// decodedOf copies what m holds.
func decodedOf(m *codec.Message) decoded {
	return decoded{
		Type:   m.Type,
		Tenant: string(m.Tenant), Namespace: string(m.Namespace), Stream: string(m.Stream), Cache: string(m.Cache),
		Key: string(m.Key), Token: string(m.Token), Text: string(m.Text),
		Payload: string(m.Payload), Value: string(m.Value), Items: itemStrings(m.Items),
		RequestID: m.RequestID, SubscriptionID: m.SubscriptionID, Offset: m.Offset, TTL: m.TTL,
		Requested: m.Requested, Available: m.Available,
		HasRequestID: m.HasRequestID, HasSubscriptionID: m.HasSubscriptionID, HasOffset: m.HasOffset, HasTTL: m.HasTTL,
		HasValue: m.HasValue, HasClientFlags: m.HasClientFlags, HasExt: m.HasExt,
		Ack: m.Ack, Start: m.Start, ClientFlags: m.ClientFlags, ServerFlags: m.ServerFlags, Ext: m.Ext, Reason: m.Reason,
		Epoch: m.Epoch, HasEpoch: m.HasEpoch, Since: m.Since, HasSince: m.HasSince,
	}
}

// itemStrings copies a list; an empty one is nil.
func itemStrings(items codec.Items) []string {
	var out []string
	for _, item := range items.All() {
		out = append(out, string(item))
	}
	return out
}

// text returns where a member of type text or base64 is kept.
func (d *decoded) text(name string) *string {
	return map[string]*string{
		"tenant_id": &d.Tenant, "namespace": &d.Namespace, "stream": &d.Stream, "cache": &d.Cache, "key": &d.Key,
		"token": &d.Token, "message": &d.Text, "payload": &d.Payload, "value": &d.Value,
	}[name]
}

// number returns where a member of type u64 is kept, and whether it is there.
func (d *decoded) number(name string) (*uint64, *bool) {
	switch name {
	case "request_id":
		return &d.RequestID, &d.HasRequestID
	case "subscription_id":
		return &d.SubscriptionID, &d.HasSubscriptionID
	case "offset", "base_offset":
		return &d.Offset, &d.HasOffset
	case "ttl_ms":
		return &d.TTL, &d.HasTTL
	case "requested":
		return &d.Requested, new(bool)
	default:
		return &d.Available, new(bool)
	}
}

// flags returns where a member of type u16 is kept, and whether it is there.
func (d *decoded) flags(name string) (*codec.Flags, *bool) {
	if name == "client_flags" {
		return &d.ClientFlags, &d.HasClientFlags
	}
	return &d.ServerFlags, new(bool)
}

// expressible returns d without what encoders leave out: an auth has ext only with client_flags, and no empty one; a
// subscribe has an epoch only with an offset and without an id, and a time only with "earliest" and without an id.
func (d decoded) expressible() decoded {
	if d.HasSubscriptionID || d.Start.Kind != codec.StartOffset {
		d.HasEpoch, d.Epoch = false, 0
	}
	if d.HasSubscriptionID || d.Start.Kind != codec.StartEarliest {
		d.HasSince, d.Since = false, 0
	}
	if d.Type == codec.MsgAuth && (!d.HasClientFlags || d.Ext == 0) {
		d.HasExt, d.Ext = false, 0
	}
	return d
}

// slowParseMessage decodes the payload of a JSON message. The message has a meaning if there are no faults.
func slowParseMessage(payload []byte) (decoded, faults) {
	j := slowJSON{text: string(payload), faults: faults{}}
	j.space()
	v, whole := j.value(1)
	if whole {
		if j.space(); j.rest() != "" {
			j.malformed()
		}
	}
	object, isObject := v.(slowObject)
	if !isObject {
		if slowCount(v) > codec.MaxIgnoredValues {
			j.faults[jsonSyntax] = true
		}
		if _, broken := v.(slowBroken); whole && !broken {
			j.faults[jsonType] = true
		}
		return decoded{}, j.faults
	}
	d := decoded{}
	values := map[string]any{} // the first of each name that is not null
	count := map[string]int{}
	for _, m := range object {
		count[m.name]++
		if _, ok := values[m.name]; !ok && m.value != nil {
			values[m.name] = m.value
		}
	}
	if count["type"] > 1 {
		j.faults[duplicateField] = true
		for _, m := range object {
			if _, isText := m.value.(string); m.name == "type" && m.value != nil && !isText {
				j.faults[jsonType] = true
			}
		}
	}
	switch name := values["type"].(type) {
	case string:
		for _, m := range slowMessages {
			if m.name == name {
				d.Type = m.typ
			}
		}
		if d.Type == codec.MsgInvalid {
			j.faults[unknownType] = true
		}
	case slowBroken:
	case nil:
		if whole {
			j.faults[missingField] = true
		}
	default:
		j.faults[jsonType] = true
	}
	for _, f := range slowFields(d.Type) {
		if f.kind == "ext" || f.kind == "epoch" || f.kind == "since" {
			for _, m := range slices.Backward(object) { // of several, the first counts
				if m.name == f.name {
					d.storeExtension(f, m.value)
				}
			}
			continue
		}
		if count[f.name] > 1 {
			j.faults[duplicateField] = true
		}
		v, ok := values[f.name]
		isNull := count[f.name] > 0 && !ok
		switch {
		case ok:
			if class := d.store(f, v); class != "" {
				j.faults[class] = true
			}
		case f.optional || f.kind == "base64-or-null" && isNull || !whole:
		default:
			j.faults[missingField] = true
		}
	}
	j.countIgnored(object, d.Type)
	return d, j.faults
}

// countIgnored notes a fault if there are more values than may be ignored. A message that is wrong anyway may be
// refused for the number of all its values but items, since its type is looked for first.
func (j *slowJSON) countIgnored(object slowObject, t codec.MessageType) {
	known := map[string]bool{"type": true}
	for _, f := range slowFields(t) {
		known[f.name] = true
	}
	ignored, all := 0, 0
	seenExt := false
	for _, m := range object {
		n := slowCount(m.value)
		all += n
		_, isList := m.value.([]any)
		switch {
		case m.name == "ext" && known["ext"] && !seenExt && isList:
			ignored += n - 1 // the list itself is read
		case !known[m.name] || m.name == "ext" || m.name == "epoch" || m.name == "since":
			ignored += n
		}
		seenExt = seenExt || m.name == "ext"
	}
	if ignored > codec.MaxIgnoredValues || all > codec.MaxIgnoredValues && len(j.faults) > 0 {
		j.faults[jsonSyntax] = true
	}
}

// slowCount counts the values in a value, itself included.
func slowCount(v any) int {
	n := 1
	switch v := v.(type) {
	case []any:
		for _, e := range v {
			n += slowCount(e)
		}
	case slowObject:
		for _, m := range v {
			n += slowCount(m.value)
		}
	}
	return n
}

// store keeps the value of a member, and returns the class of what is wrong with it.
func (d *decoded) store(f slowField, v any) (class string) {
	if _, ok := v.(slowBroken); ok {
		return ""
	}
	s, isText := v.(string)
	switch f.kind {
	case "text":
		if !isText {
			return jsonType
		}
		*d.text(f.name) = s
	case "base64", "base64-or-null":
		if !isText {
			return jsonType
		}
		b, ok := slowBase64(s)
		if !ok {
			return badBase64
		}
		*d.text(f.name) = b
		d.HasValue = f.name == "value"
	case "list":
		array, ok := v.([]any)
		if !ok {
			return jsonType
		}
		for _, e := range array {
			s, isText := e.(string)
			if _, broken := e.(slowBroken); !isText && !broken {
				return jsonType
			}
			b, ok := slowBase64(s)
			if !ok {
				return badBase64
			}
			d.Items = append(d.Items, b)
		}
	case "u64":
		n, ok := slowUint(v, math.MaxUint64)
		if !ok {
			return jsonType
		}
		value, has := d.number(f.name)
		*value, *has = n, true
	case "u16":
		n, ok := slowUint(v, math.MaxUint16)
		if !ok {
			return jsonType
		}
		value, has := d.flags(f.name)
		*value, *has = codec.Flags(n), true
	case "ack":
		if d.Ack = slowAcks[s]; d.Ack == codec.AckUnset {
			return jsonType
		}
	case "reason":
		if d.Reason = slowReasons[s]; d.Reason == codec.CursorUnset {
			return jsonType
		}
	case "start":
		object, isObject := v.(slowObject)
		switch {
		case isText && s == "latest":
			d.Start.Kind = codec.StartLatest
		case isText && s == "earliest":
			d.Start.Kind = codec.StartEarliest
		case isObject && len(object) == 1 && object[0].name == "offset":
			if object[0].value == (slowBroken{}) {
				return ""
			}
			n, ok := slowUint(object[0].value, math.MaxUint64)
			if !ok {
				return jsonType
			}
			d.Start = codec.Start{Kind: codec.StartOffset, Offset: n}
		default:
			return jsonType
		}
	}
	return ""
}

// storeExtension keeps the value of an extension's member, unless it has another type than the extension says.
func (d *decoded) storeExtension(f slowField, v any) {
	if f.kind == "since" {
		d.Since, d.HasSince = 0, false
		if n, ok := slowUint(v, math.MaxUint64); ok {
			d.Since, d.HasSince = n, true
		}
		return
	}
	if f.kind == "epoch" {
		d.Epoch, d.HasEpoch = 0, false
		if n, ok := slowUint(v, math.MaxUint64); ok {
			d.Epoch, d.HasEpoch = n, true
		}
		return
	}
	d.HasExt, d.Ext = false, 0
	array, ok := v.([]any)
	if !ok {
		return
	}
	d.HasExt = true
	for _, e := range array {
		if s, isText := e.(string); isText {
			d.Ext |= slowExtension(s)
		}
	}
}

// slowExtension returns the extension of that name by asking each bit for its own.
func slowExtension(name string) codec.Extensions {
	for bit := range 32 {
		if e := codec.Extensions(1) << bit; slices.Contains(e.Names(), name) {
			return e
		}
	}
	return 0
}

func slowUint(v any, limit uint64) (uint64, bool) {
	number, ok := v.(slowNumber)
	if !ok || strings.Trim(string(number), "0123456789") != "" {
		return 0, false
	}
	n, err := strconv.ParseUint(string(number), 10, 64)
	return n, err == nil && n <= limit
}

// slowBase64 decodes strict base64 four characters at a time (docs/protocol/wire.md#base64).
func slowBase64(s string) (string, bool) {
	const alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
	var out []byte
	for len(s) > 0 {
		if len(s) < 4 {
			return "", false
		}
		quad, rest := s[:4], s[4:]
		padding := 0
		if rest == "" {
			padding = min(2, len(quad)-len(strings.TrimRight(quad, "=")))
		}
		bits := 0
		for _, c := range []byte(quad[:4-padding]) {
			v := strings.IndexByte(alphabet, c)
			if v < 0 {
				return "", false
			}
			bits = bits<<6 | v
		}
		bits <<= 6 * padding
		three := []byte{byte(bits >> 16), byte(bits >> 8), byte(bits)}
		for _, over := range three[3-padding:] {
			if over != 0 {
				return "", false
			}
		}
		out = append(out, three[:3-padding]...)
		s = rest
	}
	return string(out), true
}

// slowMessageFrame encodes a message.
func slowMessageFrame(d decoded) []byte {
	d = d.expressible()
	members := []string{`"type":` + slowString(d.Type.String())}
	for _, f := range slowFields(d.Type) {
		value, has := "", true
		switch f.kind {
		case "text":
			value = slowString(*d.text(f.name))
		case "base64":
			value = slowString(base64.StdEncoding.EncodeToString([]byte(*d.text(f.name))))
		case "base64-or-null":
			value = "null"
			if d.HasValue {
				value = slowString(base64.StdEncoding.EncodeToString([]byte(d.Value)))
			}
		case "list":
			var list []string
			for _, item := range d.Items {
				list = append(list, slowString(base64.StdEncoding.EncodeToString([]byte(item))))
			}
			value = "[" + strings.Join(list, ",") + "]"
		case "u64":
			n, hasNumber := d.number(f.name)
			value, has = strconv.FormatUint(*n, 10), *hasNumber
		case "u16":
			n, hasNumber := d.flags(f.name)
			value, has = strconv.Itoa(int(*n)), *hasNumber
		case "ack":
			has = false
			for name, mode := range slowAcks {
				if mode == d.Ack {
					value, has = slowString(name), true
				}
			}
		case "reason":
			for name, reason := range slowReasons {
				if reason == d.Reason {
					value = slowString(name)
				}
			}
		case "start":
			switch d.Start.Kind {
			case codec.StartUnset:
				has = false
			case codec.StartLatest:
				value = `"latest"`
			case codec.StartEarliest:
				value = `"earliest"`
			case codec.StartOffset:
				value = fmt.Sprintf(`{"offset":%d}`, d.Start.Offset)
			}
		case "since":
			value, has = strconv.FormatUint(d.Since, 10), d.HasSince
		case "epoch":
			value, has = strconv.FormatUint(d.Epoch, 10), d.HasEpoch
		case "ext":
			has = d.HasExt
			var list []string
			for _, name := range d.Ext.Names() {
				list = append(list, slowString(name))
			}
			value = "[" + strings.Join(list, ",") + "]"
		}
		switch {
		case has || !f.optional:
			members = append(members, slowString(f.name)+":"+value)
		case f.nullable:
			members = append(members, slowString(f.name)+":null")
		}
	}
	return slowFrame(0, "{"+strings.Join(members, ",")+"}")
}

// slowString writes a string as docs/protocol/wire.md#encoding wants it.
func slowString(s string) string {
	var out strings.Builder
	for _, r := range s {
		switch {
		case r == '"' || r == '\\':
			out.WriteString(`\` + string(r))
		case r == '\b':
			out.WriteString(`\b`)
		case r == '\t':
			out.WriteString(`\t`)
		case r == '\n':
			out.WriteString(`\n`)
		case r == '\f':
			out.WriteString(`\f`)
		case r == '\r':
			out.WriteString(`\r`)
		case r < 0x20:
			fmt.Fprintf(&out, `\u%04x`, r)
		default:
			out.WriteRune(r)
		}
	}
	return `"` + out.String() + `"`
}

// big returns the big-endian form of v in size bytes.
func big(size int, v uint64) string {
	if size == 0 {
		return ""
	}
	return big(size-1, v>>8) + string([]byte{byte(v)})
}

// slowFrame puts a header in front of a payload.
func slowFrame(flags codec.Flags, payload string) []byte {
	return []byte("FLX1" + big(2, 1) + big(2, uint64(flags)) + big(4, uint64(len(payload))) + payload)
}

// slowList encodes an item list (docs/protocol/wire.md#item-list).
func slowList(items []string) string {
	var list strings.Builder
	list.WriteString(big(4, uint64(len(items))))
	for _, item := range items {
		list.WriteString(big(4, uint64(len(item))) + item)
	}
	return list.String()
}

func slowName(name string) string { return big(2, uint64(len(name))) + name }

func slowPublishBody(tenant, namespace, stream string, items []string) string {
	return slowName(tenant) + slowName(namespace) + slowName(stream) + slowList(items)
}

// slowEventFrame encodes one of the four event layouts (docs/protocol/wire.md#event-batch).
func slowEventFrame(flags codec.Flags, subscription, offset uint64, items []string) []byte {
	payload := ""
	if flags&0x0002 != 0 {
		payload += big(8, subscription)
	}
	if flags&0x0020 != 0 {
		payload += big(8, offset)
	}
	return slowFrame(flags, payload+slowList(items))
}

// slowAckErrorFrame encodes a refusal, whose text is cut to whole characters of at most 512 bytes.
func slowAckErrorFrame(id uint64, text string) []byte {
	cut := ""
	for _, r := range text {
		if len(cut)+len(string(r)) > 512 {
			break
		}
		cut += string(r)
	}
	return slowFrame(0x0010, big(1, 1)+big(8, id)+slowName(cut))
}

// slowBinary reads a binary payload from its front. The first thing that is wrong stays in class, and reads yield
// nothing from there on.
type slowBinary struct {
	rest  string
	read  int
	class string
}

// need notes a fault if fewer bytes are left.
func (b *slowBinary) need(n uint64) {
	if b.class == "" && uint64(len(b.rest)) < n {
		b.class = incomplete
	}
}

func (b *slowBinary) bytes(n uint64) string {
	b.need(n)
	if b.class != "" {
		return ""
	}
	out := b.rest[:n]
	b.rest = b.rest[n:]
	b.read += int(n)
	return out
}

func (b *slowBinary) uint(size uint64) uint64 {
	n := uint64(0)
	for _, c := range []byte(b.bytes(size)) {
		n = n*256 + uint64(c)
	}
	return n
}

func (b *slowBinary) utf8(text string) string {
	if b.class == "" && !utf8.ValidString(text) {
		b.class = notUTF8
	}
	return text
}

// name reads a name, and checks that there are bytes for what follows it.
func (b *slowBinary) name(follow uint64) string {
	n := b.uint(2)
	b.need(n + follow)
	return b.utf8(b.bytes(n))
}

func (b *slowBinary) items() []string {
	count := b.uint(4)
	if count > uint64(len(b.rest)/4) && b.class == "" {
		b.class = incomplete
	}
	var items []string
	for range count {
		item := b.bytes(b.uint(4))
		if b.class != "" {
			return nil
		}
		items = append(items, item)
	}
	return items
}

func slowParseHeader(in []byte) (flags codec.Flags, length uint32, class string) {
	b := slowBinary{rest: string(in)}
	if len(in) < 12 {
		return 0, 0, shortHeader
	}
	if b.bytes(4) != "FLX1" {
		return 0, 0, badMagic
	}
	if b.uint(2) != 1 {
		return 0, 0, badVersion
	}
	return codec.Flags(b.uint(2)), uint32(b.uint(4)), ""
}

func slowParseItems(in []byte) (items []string, end int, class string) {
	b := slowBinary{rest: string(in)}
	items = b.items()
	return items, b.read, b.class
}

type slowPublish struct {
	Tenant, Namespace, Stream string
	Items                     []string
	CountAt, End              int
}

func slowParsePublish(in []byte) (p slowPublish, class string) {
	b := slowBinary{rest: string(in)}
	p.Tenant = b.name(2)
	p.Namespace = b.name(2)
	p.Stream = b.name(4)
	p.CountAt = b.read
	p.Items = b.items()
	p.End = b.read
	return p, b.class
}

func slowParseAckedPrefix(in []byte) (id uint64, mode codec.AckMode, body, class string) {
	b := slowBinary{rest: string(in)}
	id = b.uint(8)
	n := b.uint(1)
	switch {
	case b.class != "":
	case n == 1:
		mode = codec.AckPerMessage
	case n == 2:
		mode = codec.AckPerBatch
	default:
		b.class = ackMode
	}
	return id, mode, b.rest, b.class
}

type slowAck struct {
	RequestID uint64
	OK        bool
	Message   string
}

func slowParseAck(in []byte) (a slowAck, class string) {
	b := slowBinary{rest: string(in)}
	b.need(11)
	status := b.uint(1)
	a.RequestID = b.uint(8)
	text := b.bytes(b.uint(2))
	switch {
	case b.class != "":
	case status == 0:
		a.OK = true
	case status == 1:
		a.Message = b.utf8(text)
	default:
		b.class = ackStatus
	}
	return a, b.class
}

type slowEvent struct {
	SubscriptionID, BaseOffset   uint64
	HasSubscriptionID, HasOffset bool
	Items                        []string
}

func slowParseEvent(flags codec.Flags, in []byte) (e slowEvent, class string) {
	switch flags {
	case 0x0002, 0x0022, 0x0004, 0x0024:
	default:
		return e, badFlags
	}
	b := slowBinary{rest: string(in)}
	if e.HasSubscriptionID = flags&0x0002 != 0; e.HasSubscriptionID {
		e.SubscriptionID = b.uint(8)
	}
	if e.HasOffset = flags&0x0020 != 0; e.HasOffset {
		e.BaseOffset = b.uint(8)
	}
	e.Items = b.items()
	return e, b.class
}
