// Package logs makes the logger of a server: lines that machines find by a stable name, in a number that no peer can
// drive up. Begin at [New].
//
// The message of a record is its event: a short constant text. The logger adds it in the form of a name, "auth failed"
// as event=auth_failed, for searches and alerts that outlive a change of wording elsewhere in the line.
// docs/operate/operations.md lists all events.
//
// Each event has a rate of its own. Records above it are dropped; the next one that is written says how many
// (suppressed=17), and [Limiter.Suppressed] counts them all.
package logs

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"

	"golang.org/x/time/rate"
)

// Settings of the logger.
type Settings struct {
	Format Format     `env:"FELIX_LOG_FORMAT" words:"text,json" doc:"form of log lines: text or json"`
	Level  slog.Level `env:"FELIX_LOG_LEVEL" words:"debug,info,warn,error" reload:"value" doc:"lowest level that is logged: debug, info, warn or error"`
}

// DefaultSettings returns the settings of a logger that nobody has told anything.
func DefaultSettings() Settings { return Settings{Format: Text} }

// Format is the form of log lines.
type Format string

// The forms.
const (
	Text Format = "text"
	JSON Format = "json"
)

// UnmarshalText implements [encoding.TextUnmarshaler].
func (f *Format) UnmarshalText(b []byte) error {
	switch Format(b) {
	case Text, JSON:
		*f = Format(b)
		return nil
	}
	return fmt.Errorf("logs: %q is neither text nor json", b)
}

// Each event may have burst records at once, and perSecond after that.
const (
	burst     = 20
	perSecond = 1
)

// maxEvents bounds the events that are told apart. Those beyond, which a program with constant messages does not have,
// share one rate.
const maxEvents = 1024

// New returns a logger that writes to w, and what limits it. The zero value of s is text from level info on. Durations
// have their unit in both forms: 25s.
func New(w io.Writer, s Settings) (*slog.Logger, *Limiter) {
	l := &Limiter{events: make(map[string]*event)}
	l.level.Set(s.Level)
	o := &slog.HandlerOptions{Level: &l.level, ReplaceAttr: durationWithUnit}
	var next slog.Handler = slog.NewTextHandler(w, o)
	if s.Format == JSON {
		next = slog.NewJSONHandler(w, o)
	}
	return slog.New(handler{next, l}), l
}

// durationWithUnit writes a duration as text: JSON has a number of nanoseconds otherwise.
func durationWithUnit(_ []string, a slog.Attr) slog.Attr {
	if a.Value.Kind() == slog.KindDuration {
		a.Value = slog.StringValue(a.Value.Duration().String())
	}
	return a
}

// Limiter bounds the records of each event, and knows the level. Its methods may be called from any goroutine.
type Limiter struct {
	level      slog.LevelVar
	suppressed atomic.Uint64

	mu     sync.Mutex
	events map[string]*event
}

type event struct {
	name       string
	limit      *rate.Limiter
	suppressed atomic.Int64 // since the last record that was written
}

// SetLevel changes the lowest level that is logged.
func (l *Limiter) SetLevel(level slog.Level) { l.level.Set(level) }

// Suppressed returns how many records were dropped.
func (l *Limiter) Suppressed() uint64 { return l.suppressed.Load() }

func (l *Limiter) event(message string) *event {
	l.mu.Lock()
	defer l.mu.Unlock()
	if e := l.events[message]; e != nil {
		return e
	}
	name := strings.ReplaceAll(message, " ", "_")
	if len(l.events) >= maxEvents {
		message = "" // the key of the shared limit: no message is empty
		if e := l.events[message]; e != nil {
			return &event{name: name, limit: e.limit}
		}
	}
	e := &event{name: name, limit: rate.NewLimiter(perSecond, burst)}
	l.events[message] = e
	return e
}

// handler adds the event to each record, and drops those above the rate.
type handler struct {
	slog.Handler
	limiter *Limiter
}

// Handle implements [slog.Handler].
func (h handler) Handle(ctx context.Context, r slog.Record) error {
	e := h.limiter.event(r.Message)
	if !e.limit.AllowN(r.Time, 1) {
		e.suppressed.Add(1)
		h.limiter.suppressed.Add(1)
		return nil
	}
	out := slog.NewRecord(r.Time, r.Level, r.Message, r.PC)
	out.AddAttrs(slog.String("event", e.name))
	r.Attrs(func(a slog.Attr) bool {
		out.AddAttrs(a)
		return true
	})
	if n := e.suppressed.Swap(0); n > 0 {
		out.AddAttrs(slog.Int64("suppressed", n))
	}
	return h.Handler.Handle(ctx, out)
}

// WithAttrs implements [slog.Handler].
func (h handler) WithAttrs(attrs []slog.Attr) slog.Handler {
	return handler{h.Handler.WithAttrs(attrs), h.limiter}
}

// WithGroup implements [slog.Handler].
func (h handler) WithGroup(name string) slog.Handler {
	return handler{h.Handler.WithGroup(name), h.limiter}
}
