package logs

import (
	"bytes"
	"encoding/json"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

func TestForms(t *testing.T) {
	var b bytes.Buffer
	log, _ := New(&b, Settings{})
	log.Debug("not shown")
	log.With("conn", 7).Info("auth failed", "error", "bad token")
	if line := b.String(); !strings.Contains(line, `level=INFO msg="auth failed" conn=7 event=auth_failed error="bad token"`) || strings.Count(line, "\n") != 1 {
		t.Error(line)
	}
	b.Reset()
	log, _ = New(&b, Settings{Format: JSON, Level: slog.LevelDebug})
	log.Debug("auth failed", "error", "bad\ntoken")
	var line struct{ Level, Event, Msg, Error string }
	if err := json.Unmarshal(b.Bytes(), &line); err != nil || line.Level != "DEBUG" || line.Event != "auth_failed" || line.Error != "bad\ntoken" {
		t.Errorf("%s: %v", b.String(), err)
	}
}

func TestFormat(t *testing.T) {
	var f Format
	if err := f.UnmarshalText([]byte("json")); err != nil || f != JSON {
		t.Errorf("%q, %v", f, err)
	}
	if err := f.UnmarshalText([]byte("xml")); err == nil || !strings.Contains(err.Error(), `"xml"`) {
		t.Error(err)
	}
}

// A flood of one event leaves the others alone, and what it lost is said with the next line and counted.
func TestLimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var b bytes.Buffer
		log, limiter := New(&b, Settings{})
		for range 1000 {
			log.With("a", 1).Warn("flood")
		}
		log.Info("other")
		if got := strings.Count(b.String(), "flood"); got != 2*burst {
			t.Errorf("%d mentions, want %d lines with message and event each", got, burst)
		}
		if !strings.Contains(b.String(), "msg=other") || strings.Contains(b.String(), "suppressed") {
			t.Error(b.String())
		}
		b.Reset()
		time.Sleep(time.Second)
		log.Warn("flood")
		log.Warn("flood")
		if want := fmt.Sprint("suppressed=", 1000-burst); strings.Count(b.String(), "\n") != 1 || !strings.Contains(b.String(), want) {
			t.Errorf("%q, want %s", b.String(), want)
		}
		if got := limiter.Suppressed(); got != 1000-burst+1 {
			t.Errorf("%d suppressed", got)
		}
	})
}

// Messages that are not constant, which would be a mistake, cost neither memory nor lines without bound.
func TestManyEvents(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var b bytes.Buffer
		log, limiter := New(&b, Settings{})
		for i := range 10 * maxEvents {
			log.Info(fmt.Sprint("message ", i))
		}
		if len(limiter.events) != maxEvents+1 {
			t.Errorf("%d events", len(limiter.events))
		}
		if lines := strings.Count(b.String(), "\n"); lines != maxEvents+burst {
			t.Errorf("%d lines", lines)
		}
	})
}

// Every record is written or counted, however many goroutines log at the same time.
func TestConcurrent(t *testing.T) {
	var b bytes.Buffer
	log, limiter := New(&b, Settings{Format: JSON})
	const writers, each = 8, 500
	var wg sync.WaitGroup
	for w := range writers {
		wg.Go(func() {
			for i := range each {
				log.Info(fmt.Sprint("event ", (w+i)%5))
			}
		})
	}
	wg.Wait()
	if lines := strings.Count(b.String(), "\n"); lines+int(limiter.Suppressed()) != writers*each || lines < 5*burst {
		t.Errorf("%d lines and %d suppressed of %d", lines, limiter.Suppressed(), writers*each)
	}
}

func TestDurationsHaveAUnit(t *testing.T) {
	for _, form := range []Format{Text, JSON} {
		var out bytes.Buffer
		log, _ := New(&out, Settings{Format: form})
		log.With("with", time.Minute).Info("x", "budget", 25*time.Second, slog.Group("g", "took", 1500*time.Microsecond))
		for _, want := range []string{"25s", "1.5ms", "1m0s"} {
			if !strings.Contains(out.String(), want) {
				t.Errorf("%s: %q is not in %s", form, want, out.String())
			}
		}
	}
}

func TestLevelCanBeChanged(t *testing.T) {
	var out bytes.Buffer
	log, limiter := New(&out, Settings{})
	log.Debug("one")
	limiter.SetLevel(slog.LevelDebug)
	log.Debug("two")
	limiter.SetLevel(slog.LevelError)
	log.Warn("three")
	if got := out.String(); strings.Contains(got, "one") || !strings.Contains(got, "two") || strings.Contains(got, "three") {
		t.Errorf("logged %s", got)
	}
}
