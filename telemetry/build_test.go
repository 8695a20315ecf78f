//go:build !telemetry

package telemetry

import (
	"bytes"
	"debug/elf"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"testing"

	"github.com/felix-mq/felix/internal/race"
)

const module = "github.com/felix-mq/felix/"

// program builds a command of this module and returns its file.
func program(t *testing.T, command string, flags ...string) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), command)
	args := append([]string{"build", "-pgo=off", "-o", file}, flags...)
	if out, err := exec.CommandContext(t.Context(), "go", append(args, module+"cmd/"+command)...).CombinedOutput(); err != nil {
		t.Fatalf("building %s %q: %v\n%s", command, flags, err, out)
	}
	return file
}

// sizes returns those of a program's functions and variables.
func sizes(t *testing.T, file string) map[string]uint64 {
	t.Helper()
	f, err := elf.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	symbols, err := f.Symbols()
	if err != nil {
		t.Fatal(err)
	}
	all := make(map[string]uint64, len(symbols))
	for _, s := range symbols {
		all[s.Name] = s.Size
	}
	return all
}

func skipBuilding(t *testing.T) {
	t.Helper()
	switch {
	case runtime.GOOS != "linux":
		t.Skip("reads ELF files")
	case race.Enabled:
		t.Skip("what is built is not built with the race detector")
	}
}

// TestTelemetrySymbols: nothing of telemetry is in the broker unless it is built with the tag.
func TestTelemetrySymbols(t *testing.T) {
	skipBuilding(t)
	recording := regexp.MustCompile(`^github\.com/(felix-mq/felix/telemetry|HdrHistogram/)`)
	plain, tagged := sizes(t, program(t, "broker")), sizes(t, program(t, "broker", "-tags=telemetry"))
	for name := range plain {
		if recording.MatchString(name) {
			t.Errorf("the default build has %s", name)
		}
	}
	for _, name := range []string{"Observe", "observe", "Text", "stageNames", "counterNames"} {
		if tagged[module+"telemetry."+name] == 0 {
			t.Errorf("the build with the tag has no telemetry.%s", name)
		}
	}
	if plain["main.main"] == 0 || plain[module+"fanout.(*Topic).Publish"] == 0 {
		t.Error("the default build has not even what it must have: the symbols are not what they seem")
	}
}

var probeLine = regexp.MustCompile(`(?m)^\t+([\w.]+( :?= |\s+))?telemetry\.(Start\(|Observe\(|Add\(|Time\b).*$`)

// TestProbesLeaveNothing compares a default build of loadgen, which is broker and client, with one of the same files
// without the lines that probe: each function has the same size, so that nothing of a probe is left in it.
func TestProbesLeaveNothing(t *testing.T) {
	skipBuilding(t)
	root, err := filepath.Abs("..")
	if err != nil {
		t.Fatal(err)
	}
	dir, replaced, probes := t.TempDir(), make(map[string]string), 0
	for _, room := range []string{"fanout", "broker", "client"} {
		files, err := filepath.Glob(filepath.Join(root, room, "*.go"))
		if err != nil {
			t.Fatal(err)
		}
		for _, file := range files {
			text, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			n := len(probeLine.FindAll(text, -1))
			if n == 0 || strings.HasSuffix(file, "_test.go") {
				continue
			}
			probes += n
			text = probeLine.ReplaceAll(text, nil)
			text = bytes.ReplaceAll(text, []byte("telemetry.Enabled"), []byte("false"))
			text = bytes.Replace(text, []byte("\t\""+module+"telemetry\""), nil, 1)
			if at := bytes.Index(text, []byte("telemetry.")); at >= 0 {
				t.Errorf("%s: a probe does not stand on a line of its own: %.60q", file, text[at:])
			}
			replaced[file] = filepath.Join(dir, room+"_"+filepath.Base(file))
			if err := os.WriteFile(replaced[file], text, 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	text, err := json.Marshal(map[string]any{"Replace": replaced})
	if err != nil {
		t.Fatal(err)
	}
	overlay := filepath.Join(dir, "overlay.json")
	if err := os.WriteFile(overlay, text, 0o600); err != nil {
		t.Fatal(err)
	}
	with, without := sizes(t, program(t, "loadgen")), sizes(t, program(t, "loadgen", "-overlay="+overlay))
	functions := 0
	for name, a := range with {
		if !strings.Contains(name, module) {
			continue
		}
		functions++
		if b, ok := without[name]; !ok || a != b {
			t.Errorf("%s: %d bytes with probes, %d without", name, a, b)
		}
	}
	t.Logf("%d probes in %d functions and variables of the same size", probes, functions)
	if probes < 50 || functions < 500 {
		t.Error("that is too little to be true")
	}
}
