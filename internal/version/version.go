// Package version says which build of Felix a program is. Commands print [Get] for --version.
package version

import (
	"cmp"
	"fmt"
	"runtime"
	"runtime/debug"
)

// Set by the linker where a build knows them better than Go does, as in a tree without .git:
//
//	go build -ldflags '-X github.com/felix-mq/felix/internal/version.version=v1.2.3 -X …/version.revision=0123abc'
var version, revision string

// Info describes a build. Its fields are not secret, and fit for the label values of a metric.
type Info struct {
	Version  string `json:"version"`  // v1.2.3, a pseudo-version of Go's, or (devel)
	Revision string `json:"revision"` // the commit; empty if it is not known
	Go       string `json:"go"`       // version of the toolchain, as in go1.26.8
	Platform string `json:"platform"` // as in linux/amd64
}

// Get returns the description of the running program.
func Get() Info {
	build, ok := debug.ReadBuildInfo()
	if !ok {
		build = &debug.BuildInfo{}
	}
	return describe(build)
}

func describe(build *debug.BuildInfo) Info {
	info := Info{
		Version:  cmp.Or(version, build.Main.Version, "(devel)"),
		Revision: revision,
		Go:       runtime.Version(),
		Platform: runtime.GOOS + "/" + runtime.GOARCH,
	}
	for _, s := range build.Settings {
		if s.Key == "vcs.revision" {
			info.Revision = cmp.Or(revision, s.Value)
		}
	}
	return info
}

// String returns the description on one line, without the program's name.
func (i Info) String() string {
	if i.Revision == "" {
		return fmt.Sprintf("%s (%s, %s)", i.Version, i.Go, i.Platform)
	}
	return fmt.Sprintf("%s (commit %s, %s, %s)", i.Version, i.Revision, i.Go, i.Platform)
}
