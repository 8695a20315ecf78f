package deploy

import (
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"sigs.k8s.io/yaml"
)

// What stands in a file of deploy and is taken for a setting is one.
func TestVariablesAreKnown(t *testing.T) {
	_, bin := dist(t)
	reference := output(t, filepath.Join(bin, "felix-broker"), "--reference")
	variable := regexp.MustCompile(`\bFELIX_[A-Z0-9_]+`)
	found := 0
	err := filepath.WalkDir(".", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || strings.HasSuffix(path, ".go") || filepath.Base(path) == "felix.json" {
			return err
		}
		content, err := os.ReadFile(path)
		for _, name := range variable.FindAllString(string(content), -1) {
			found++
			if !strings.Contains(reference, "`"+name+"`") {
				t.Errorf("%s: the broker knows no %s", path, name)
			}
		}
		return err
	})
	if err != nil || found == 0 {
		t.Errorf("%d variables found, %v", found, err)
	}
}

// So is what the documentation takes for one, or for a metric.
func TestDocumentedSettings(t *testing.T) {
	_, bin := dist(t)
	reference := output(t, filepath.Join(bin, "felix-broker"), "--reference")
	content, err := os.ReadFile("../docs/operate/deployment.md")
	if err != nil {
		t.Fatal(err)
	}
	metrics, err := os.ReadFile("../docs/operate/operations.md") // which is compared with the broker's by its own test
	if err != nil {
		t.Fatal(err)
	}
	names := regexp.MustCompile("`(FELIX_[A-Z_]+|[a-z]+_[a-z_]+)`").FindAllStringSubmatch(string(content), -1)
	for _, m := range names {
		known := reference
		if strings.HasPrefix(m[1], "felix_") {
			known = string(metrics)
		}
		if !strings.Contains(known, m[0]) && m[1] != "nf_conntrack_udp_timeout" {
			t.Errorf("docs/operate/deployment.md: the broker knows no %s", m[1])
		}
	}
	if len(names) == 0 {
		t.Error("no settings found")
	}
}

// The unit leaves the broker the time that it takes to drain.
func TestUnit(t *testing.T) {
	_, bin := dist(t)
	unit, err := os.ReadFile("systemd/felix-broker.service")
	if err != nil {
		t.Fatal(err)
	}
	var defaults struct {
		Drain any `json:"shutdown_drain_timeout_ms"`
	}
	dump := output(t, filepath.Join(bin, "felix-broker"), "--dump-config")
	if err := yaml.Unmarshal([]byte(dump), &defaults); err != nil {
		t.Fatal(err)
	}
	drain, ok := defaults.Drain.(float64)
	stop, err := strconv.Atoi(option(unit, "TimeoutStopSec"))
	if !ok || err != nil || time.Duration(stop)*time.Second < time.Duration(drain)*time.Millisecond+5*time.Second {
		t.Errorf("killed after %d s, %v; draining takes up to %v ms", stop, err, defaults.Drain)
	}
}

// option returns the value of the last line that sets a unit's option.
func option(unit []byte, name string) (value string) {
	for line := range strings.Lines(string(unit)) {
		if v, ok := strings.CutPrefix(strings.TrimSpace(line), name+"="); ok {
			value = v
		}
	}
	return value
}

func TestSystemdAnalyze(t *testing.T) {
	need(t, "systemd-analyze")
	need(t, "dpkg-deb")
	packages, _ := dist(t)
	root := t.TempDir()
	output(t, "dpkg-deb", "-x", one(t, packages+"/*.deb"), root)
	// Units of the system that ours is ordered after.
	for _, name := range []string{"network-online.target", "sysinit.target", "basic.target", "shutdown.target", "multi-user.target", "system.slice", "-.slice"} {
		path := filepath.Join(root, "usr/lib/systemd/system", name)
		if err := os.WriteFile(path, []byte("[Unit]\nDescription="+name+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	// The command of the system that sends the signal of a reload.
	if err := os.MkdirAll(filepath.Join(root, "bin"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(root, "bin/kill"), []byte("#!/bin/sh\n"), 0o700); err != nil { //nolint:gosec // it has to be executable
		t.Fatal(err)
	}
	if out := output(t, "systemd-analyze", "verify", "--man=no", "--root="+root, "felix-broker.service"); out != "" {
		t.Errorf("systemd-analyze verify: %s", out)
	}
	// Of 10; what is left is the network, which it serves.
	out, err := exec.Command("systemd-analyze", "security", "--offline=true", "--threshold=15", "--root="+root, "felix-broker.service").CombinedOutput()
	if err != nil {
		t.Errorf("systemd-analyze security: %v\n%s", err, out)
	}
}
