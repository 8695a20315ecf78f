//go:build linux

package isolation

import (
	"bytes"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/felix-mq/felix/internal/program"
)

func TestMain(m *testing.M) {
	serveAttacker()
	goleak.VerifyTestMain(m)
}

// TestSmoke runs two attacks against a broker. How long B's calls take is not judged: machines that test do other
// things.
func TestSmoke(t *testing.T) {
	if testing.Short() {
		t.Skip("builds the broker")
	}
	binary := filepath.Join(t.TempDir(), "broker")
	if out, err := exec.CommandContext(t.Context(), "go", "build", "-o", binary, "github.com/felix-mq/felix/cmd/broker").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	chosen, err := choose([]string{"foreign-host", "hot-key"})
	if err != nil {
		t.Fatal(err)
	}
	var out, log bytes.Buffer
	b := &bench{out: &out, progress: program.Progress{Writer: &log}, rounds: 1, duration: 200 * time.Millisecond, patience: time.Second, binary: binary}
	results, err := b.attacks(t.Context(), chosen)
	if err != nil || len(results) != len(chosen) {
		t.Fatalf("%d results, %v\n%s", len(results), err, log.String())
	}
	for _, r := range results {
		if len(r.Rounds) != 1 {
			t.Fatalf("%s: %q", r.Attack, r.Failures)
		}
		n := r.Rounds[0]
		if r.Errors > 0 || r.Calls == 0 || len(n.Faults) > 0 || n.Did == "" {
			t.Errorf("%s: %d errors of %d calls %v, faults %q, did %q", r.Attack, r.Errors, r.Calls, n.Errors, n.Faults, n.Did)
		}
		if n.Before <= 0 || n.Peak <= 0 || n.Peak > n.Bound*6/5 || n.Control.Deliver <= 0 || n.Under.Get <= 0 || n.Under.Connect <= 0 {
			t.Errorf("%s: not measured, or too much memory: %+v", r.Attack, n)
		}
	}
}
