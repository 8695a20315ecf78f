// Package cgroup reads how much memory the kernel grants this process: the least limit of its control group and of all
// above it. Begin at [MemoryLimit]. On systems without control groups there is no limit.
package cgroup

import (
	"bytes"
	"context"
	"path"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/felix-mq/felix/internal/readfile"
)

// maxFile bounds what is read of each file of the kernel.
const maxFile = 1 << 20

// unlimited is the least of the numbers by which version 1 says that there is no limit: it depends on the page size.
const unlimited = 1 << 60

// MemoryLimit returns the limit in bytes, and whether there is one. It reads files of the kernel each time.
func MemoryLimit() (limit int64, ok bool) { return memoryLimit("/") }

// memoryLimit looks below root.
func memoryLimit(root string) (limit int64, ok bool) {
	groups, err := read(root, "proc/self/cgroup")
	if err != nil {
		return 0, false
	}
	least := func(mount, group string, names ...string) {
		// Inside of a container the group may be the host's name of what is mounted here, or lie above it (/../..):
		// what is there of the path is looked at, and the mount itself in any case.
		for at := path.Clean("/" + group); ; at = path.Dir(at) {
			for _, name := range names {
				if n, found := number(root, path.Join(mount, at, name)); found && (!ok || n < limit) {
					limit, ok = n, true
				}
			}
			if at == "/" {
				return
			}
		}
	}
	for line := range strings.Lines(string(groups)) { // HIERARCHY:CONTROLLERS:PATH
		fields := strings.SplitN(strings.TrimSuffix(line, "\n"), ":", 3)
		if len(fields) != 3 {
			continue
		}
		switch {
		case fields[0] == "0" && fields[1] == "":
			for _, mount := range []string{"sys/fs/cgroup", "sys/fs/cgroup/unified"} {
				least(mount, fields[2], "memory.max", "memory.high")
			}
		case hasController(fields[1], "memory"):
			for _, mount := range []string{"sys/fs/cgroup/memory", "sys/fs/cgroup/" + fields[1]} {
				least(mount, fields[2], "memory.limit_in_bytes")
			}
		}
	}
	return limit, ok
}

func hasController(list, name string) bool {
	for one := range strings.SplitSeq(list, ",") {
		if one == name {
			return true
		}
	}
	return false
}

// number reads a limit, which may be the word max.
func number(root, name string) (n int64, ok bool) {
	text, err := read(root, name)
	if err != nil {
		return 0, false
	}
	n, err = strconv.ParseInt(string(bytes.TrimSpace(text)), 10, 64)
	return n, err == nil && n > 0 && n < unlimited
}

func read(root, name string) ([]byte, error) {
	return readfile.Read(context.Background(), filepath.Join(root, filepath.FromSlash(name)), maxFile)
}
