package main

import (
	"context"
	"log/slog"

	"github.com/felix-mq/felix/internal/logs"
	"github.com/felix-mq/felix/internal/settings"
)

// reloader reads again what can change while the broker runs, when a SIGHUP asks for it.
type reloader struct {
	log     *slog.Logger
	limiter *logs.Limiter
	options *options
	running *settings.Loaded // that the broker was started with
	read    func(*options) (*settings.Loaded, error)
}

// reload takes up settings that are reloaded, certificates and the catalog. What is bad changes nothing and is logged;
// the catalog says so by itself, a moment later.
func (r *reloader) reload(ctx context.Context) {
	r.log.Info("reloading")
	fresh := defaultOptions()
	loaded, err := r.read(fresh)
	if err != nil {
		r.log.Error("settings not reloaded", "error", err)
	} else {
		r.limiter.SetLevel(fresh.logs.Level)
		if keys := r.changed(loaded); len(keys) > 0 {
			r.log.Warn("settings need a restart", "keys", keys)
		}
	}
	if r.options.source != nil {
		r.options.source.Reload()
	}
	if certErr := r.options.certs.reload(ctx); err == nil && certErr == nil {
		r.log.Info("reloaded")
	}
}

// changed lists the settings that are others than those the broker runs with, and are read only at the start.
func (r *reloader) changed(now *settings.Loaded) (keys []string) {
	for i, s := range now.Settings { // both lists are of the same structs
		if s.Reload != "value" && s.Text() != r.running.Settings[i].Text() {
			keys = append(keys, s.Key)
		}
	}
	return keys
}
