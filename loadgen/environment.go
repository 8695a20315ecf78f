package loadgen

import (
	"bufio"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
)

// Environment is where a result was measured. What the system does not tell is empty.
type Environment struct {
	CPU        string `json:"cpu"` // model
	CPUs       int    `json:"cpus"`
	GOMAXPROCS int    `json:"gomaxprocs"`
	Go         string `json:"go"`
	OS         string `json:"os"`
	Kernel     string `json:"kernel"`
	Commit     string `json:"commit"`  // of this program, with "+dirty" if it was changed
	Dirty      bool   `json:"dirty"`   // it was changed
	PGO        string `json:"pgo"`     // name of the profile that it was optimized by, or "off"
	Tags       string `json:"tags"`    // of the build, separated by commas
	Race       bool   `json:"race"`    // built with the race detector
	QUIC       string `json:"quic_go"` // version of quic-go
	// Variables are those of Felix and of the Go runtime that change what is measured, as NAME=value separated by
	// spaces; those that hold a secret are not among them.
	Variables string `json:"variables"`

	// Most that a socket's buffers may hold without privileges.
	ReceiveBufferMax int `json:"rmem_max_bytes"`
	SendBufferMax    int `json:"wmem_max_bytes"`
}

// CurrentEnvironment returns that of this process.
func CurrentEnvironment() Environment {
	e := Environment{
		CPU:        lineAfter("/proc/cpuinfo", "model name"),
		CPUs:       runtime.NumCPU(),
		GOMAXPROCS: runtime.GOMAXPROCS(0),
		Go:         runtime.Version(),
		OS:         runtime.GOOS + "/" + runtime.GOARCH,
		Kernel:     firstLine("/proc/sys/kernel/osrelease"),
		PGO:        "off",
		Variables:  variables(os.Environ()),
	}
	e.ReceiveBufferMax, _ = strconv.Atoi(firstLine("/proc/sys/net/core/rmem_max"))
	e.SendBufferMax, _ = strconv.Atoi(firstLine("/proc/sys/net/core/wmem_max"))
	if info, ok := debug.ReadBuildInfo(); ok {
		e.readBuild(info)
	}
	return e
}

// readBuild reads how this program was built. The commit is known if go build did so in a checkout, not if go run or
// go test did.
func (e *Environment) readBuild(info *debug.BuildInfo) {
	for _, s := range info.Settings {
		switch s.Key {
		case "vcs.revision":
			e.Commit = s.Value[:min(12, len(s.Value))]
		case "vcs.modified":
			e.Dirty = s.Value == "true"
		case "-tags":
			e.Tags = s.Value
		case "-race":
			e.Race = s.Value == "true"
		case "-pgo":
			e.PGO = filepath.Base(s.Value)
		}
	}
	if e.Commit != "" && e.Dirty {
		e.Commit += "+dirty"
	}
	for _, m := range info.Deps {
		if m.Path == "github.com/quic-go/quic-go" {
			e.QUIC = m.Version
		}
	}
}

// String sums the environment up in one line.
func (e *Environment) String() string {
	s := fmt.Sprintf("%s, GOMAXPROCS %d, %s, %s, PGO %s", plural(e.CPUs, "CPU"), e.GOMAXPROCS, e.Go, e.OS, e.PGO)
	if e.QUIC != "" {
		s += ", quic-go " + e.QUIC
	}
	if e.CPU != "" {
		s += ", " + e.CPU
	}
	if e.Kernel != "" {
		s += ", kernel " + e.Kernel
	}
	if e.Tags != "" {
		s += ", tags " + e.Tags
	}
	if e.Race {
		s += ", race detector"
	}
	if e.Variables != "" {
		s += ", with " + e.Variables
	}
	if e.Commit != "" {
		s += ", commit " + e.Commit
	}
	return s
}

// variables picks those that change what is measured. An empty variable is not set.
func variables(environ []string) string {
	var set []string
	for _, v := range environ {
		name, value, _ := strings.Cut(v, "=")
		felix := strings.HasPrefix(name, "FELIX_") && !strings.HasPrefix(name, "FELIX_AUTH_")
		if value != "" && (felix || slices.Contains([]string{"GOGC", "GOMEMLIMIT", "GODEBUG"}, name)) {
			set = append(set, v)
		}
	}
	slices.Sort(set)
	return strings.Join(set, " ")
}

func firstLine(file string) string {
	b, err := os.ReadFile(file)
	if err != nil {
		return ""
	}
	line, _, _ := strings.Cut(string(b), "\n")
	return line
}

// lineAfter returns what follows the colon in the first line of a file that begins with prefix.
func lineAfter(file, prefix string) string {
	f, err := os.Open(file)
	if err != nil {
		return ""
	}
	defer func() { _ = f.Close() }()
	for in := bufio.NewScanner(f); in.Scan(); {
		if line := in.Text(); strings.HasPrefix(line, prefix) {
			_, value, _ := strings.Cut(line, ":")
			return strings.TrimSpace(value)
		}
	}
	return ""
}

// meter is a reading of counters that a measurement wants the difference of.
type meter struct{ packetsLost, udpErrors int64 }

func readMeter(s System) meter {
	m := meter{udpErrors: KernelCounter("Udp:", "InErrors")}
	if s, ok := s.(Meter); ok {
		m.packetsLost = s.PacketsLost()
	}
	return m
}

// KernelCounter reads a counter of the whole machine, such as InErrors of "Udp:", datagrams that were dropped on
// receipt, mostly because a socket's buffer was full. It is 0 where the system does not tell.
func KernelCounter(protocol, counter string) int64 {
	b, _ := os.ReadFile("/proc/net/snmp")
	return snmp(string(b), protocol, counter)
}

// snmp finds a counter. Each protocol has a line of names and then a line of numbers, which both begin with its name.
func snmp(file, protocol, counter string) int64 {
	var names []string
	for line := range strings.Lines(file) {
		fields := strings.Fields(line)
		if len(fields) == 0 || fields[0] != protocol {
			continue
		}
		if names == nil {
			names = fields
			continue
		}
		for i, name := range names {
			if name == counter && i < len(fields) {
				n, _ := strconv.ParseInt(fields[i], 10, 64)
				return n
			}
		}
	}
	return 0
}
