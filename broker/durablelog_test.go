package broker

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"testing"

	"github.com/felix-mq/felix/catalog"
	"github.com/felix-mq/felix/internal/vfs"
	"github.com/felix-mq/felix/storage"
)

// withStorage returns a broker with a data directory that serves nobody.
func withStorage(t *testing.T, streams ...string) *Dev {
	t.Helper()
	cfg := DefaultConfig()
	cfg.Bind, cfg.Logger = "127.0.0.1:0", slog.New(slog.NewTextHandler(io.Discard, nil))
	cfg.Storage.FS, cfg.Storage.Dir, cfg.Storage.Headroom, cfg.Storage.SegmentBytes = &vfs.Mem{}, "data", 0, 1000
	d, err := NewDev(cfg, DevOptions{Streams: streams})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.closeAll(context.Background()) })
	return d
}

// appendTo appends to the log of a stream.
func appendTo(t *testing.T, d *Dev, stream string, payloads ...[]byte) *storage.Log {
	t.Helper()
	l, err := d.store.Log(storage.Key{Tenant: d.Tenant, Namespace: d.Namespace, Stream: stream})
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range payloads {
		done := make(chan error, 1)
		if _, err := l.Append([][]byte{p}, storage.ClassOS, func(err error) { done <- err }); err != nil {
			t.Fatal(err)
		}
		if err := <-done; err != nil {
			t.Fatal(err)
		}
	}
	return l
}

// TestRemovedStreamKeepsItsFiles applies retention while a stream is removed, in each of the ways in which that
// happens, and when it is there again.
func TestRemovedStreamKeepsItsFiles(t *testing.T) {
	for name, remove := range map[string]func(d *Dev) error{
		"removed": func(d *Dev) error {
			if !d.RemoveStream(d.Tenant, d.Namespace, "demo") {
				return errors.New("there is no stream")
			}
			return nil
		},
		"not in the catalog": func(d *Dev) error {
			d.apply(&catalog.Change{Kind: catalog.KindStream, Tenant: d.Tenant, Namespace: d.Namespace, Name: "demo", Removed: true})
			return nil
		},
		"in memory": func(d *Dev) error { return d.PutStream(d.Tenant, d.Namespace, "demo", catalog.Stream{}) },
	} {
		t.Run(name, func(t *testing.T) {
			d := withStorage(t)
			put := func() {
				t.Helper()
				if err := d.PutStream(d.Tenant, d.Namespace, "demo", catalog.Stream{Durable: true, RetentionEvents: 1}); err != nil {
					t.Fatal(err)
				}
			}
			put()
			var payloads [][]byte
			for i := range 10 {
				payloads = append(payloads, make([]byte, 300+i))
			}
			l := appendTo(t, d, "demo", payloads...)
			before := l.Bounds()
			if err := remove(d); err != nil {
				t.Fatal(err)
			}
			if err := d.store.Retain(); err != nil || l.Bounds() != before {
				t.Errorf("retention of a stream that is removed leaves %+v of %+v: %v", l.Bounds(), before, err)
			}
			put()
			if err := d.store.Retain(); err != nil || l.Base() == 0 {
				t.Errorf("retention of a stream that is there again leaves all: %v", err)
			}
		})
	}
}
