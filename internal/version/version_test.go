package version

import (
	"runtime"
	"runtime/debug"
	"testing"
)

func TestDescribe(t *testing.T) {
	toolchain := runtime.Version() + ", " + runtime.GOOS + "/" + runtime.GOARCH
	vcs := []debug.BuildSetting{{Key: "vcs", Value: "git"}, {Key: "vcs.revision", Value: "0123abc"}}
	for _, c := range []struct {
		name              string
		version, revision string
		build             debug.BuildInfo
		want              string
	}{
		{"nothing known", "", "", debug.BuildInfo{}, "(devel) (" + toolchain + ")"},
		{"installed by go install", "", "", debug.BuildInfo{Main: debug.Module{Version: "v1.2.3"}}, "v1.2.3 (" + toolchain + ")"},
		{"built in a checkout", "", "", debug.BuildInfo{Main: debug.Module{Version: "v1.2.4-0.2026+dirty"}, Settings: vcs}, "v1.2.4-0.2026+dirty (commit 0123abc, " + toolchain + ")"},
		{"linked", "v2.0.0", "feed", debug.BuildInfo{Main: debug.Module{Version: "(devel)"}, Settings: vcs}, "v2.0.0 (commit feed, " + toolchain + ")"},
	} {
		t.Run(c.name, func(t *testing.T) {
			defer func(v, r string) { version, revision = v, r }(version, revision)
			version, revision = c.version, c.revision
			if got := describe(&c.build).String(); got != c.want {
				t.Errorf("got %q, want %q", got, c.want)
			}
		})
	}
}
