// Package gate compares what the micro benchmarks of the hot packages allocate and execute with what was recorded, and
// exits with status 1 if one of them does more. It never looks at a clock, so a busy machine changes nothing.
//
//	allocations   allocs/op as `go test -benchmem` prints them; each one more fails
//	instructions  executed for each operation, as valgrind counts them; 3 % more fails, 10 % in cache
//
// An instruction count is the difference of two runs of the test binary, one of which repeats the operation often: what
// starting and preparing cost cancels out. A benchmark above its bound is counted twice more, and the median decides.
// Those whose count depends on background work or random numbers are held to their allocations alone.
//
// Recorded values belong to a release of Go, and instructions to a kind of processor as well, because Go's library
// chooses its code by that. On others the comparison is skipped, which is said. `--record` records the values
// again.
package gate

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/felix-mq/felix/internal/program"
)

// rooms are the packages whose benchmarks count.
var rooms = []string{"codec", "ring", "fanout", "cache"}

// recordFile is relative to the root of the module, where this program runs.
var recordFile = filepath.Join("benchmarks", "gate", "recorded.json")

// record is what the benchmarks are held to.
type record struct {
	Go      string `json:"go"`
	CPU     string `json:"cpu"`
	Counter string `json:"counter"`
	Rows    []row  `json:"rows"`
}

// row is one benchmark: "package/Name/sub=1".
type row struct {
	Name         string  `json:"name"`
	Allocations  int     `json:"allocs"`
	Instructions float64 `json:"instructions,omitempty"` // for each operation; 0 if they are not held
	Repeats      int     `json:"repeats,omitempty"`      // for which they were counted
}

// Run is the command. It works in the root of the module.
func Run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	flags := program.Flags("gate", stderr)
	recording := flags.Bool("record", false, "rewrite "+recordFile)
	if code, ok := program.Parse(flags, args); !ok {
		return code
	}
	if flags.NArg() > 0 {
		fmt.Fprintln(stderr, "gate: want no arguments")
		return 2
	}
	do := check
	if *recording {
		do = recordAnew
	}
	if err := do(ctx, stdout); err != nil {
		fmt.Fprintln(stderr, "gate:", err)
		return 1
	}
	return 0
}

// recordAnew measures every benchmark and writes the file.
func recordAnew(ctx context.Context, stdout io.Writer) error {
	counter, err := findCounter(ctx)
	if err != nil {
		return err
	}
	b, err := build(ctx, rooms)
	if err != nil {
		return err
	}
	defer b.remove()
	rec := record{Go: goRelease(), CPU: cpuKind(), Counter: counter}
	if rec.Rows, err = b.allocations(ctx); err != nil {
		return err
	}
	err = forEach(rec.Rows, func(r *row) error {
		if unsteady.MatchString(r.Name) {
			return nil
		}
		var err error
		if r.Repeats, err = b.repeats(ctx, r.Name); err == nil {
			r.Instructions, err = b.medianInstructions(ctx, r.Name, r.Repeats)
		}
		return err
	})
	if err != nil {
		return err
	}
	text, err := json.MarshalIndent(rec, "", "\t")
	if err != nil {
		return err
	}
	fmt.Fprintf(stdout, "%d benchmarks recorded\n", len(rec.Rows))
	return os.WriteFile(recordFile, append(text, '\n'), 0o644)
}

// tolerated is how much more than recorded may be executed. Counts of one build differ by less than 1 %, those of a
// look-up in the cache by up to 5 %: which of them hand ristretto a batch of used keys is chance.
func tolerated(name string) float64 {
	if strings.HasPrefix(name, "cache/") {
		return 1.10
	}
	return 1.03
}

// errWorse says that the gate stays shut.
var errWorse = errors.New("more than recorded. If that is the price of something, say so in the commit and run make gate RECORD=1")

// check measures what can be compared on this machine.
func check(ctx context.Context, stdout io.Writer) error {
	text, err := os.ReadFile(recordFile)
	if err != nil {
		return err
	}
	var rec record
	if err := json.Unmarshal(text, &rec); err != nil {
		return fmt.Errorf("%s: %w", recordFile, err)
	}
	if have := goRelease(); have != rec.Go {
		fmt.Fprintf(stdout, "skipped: recorded with %s, this is %s\n", rec.Go, have)
		return nil
	}
	b, err := build(ctx, rooms)
	if err != nil {
		return err
	}
	defer b.remove()
	now, err := b.allocations(ctx)
	if err != nil {
		return err
	}
	worse := compareAllocations(stdout, rec.Rows, now)
	fmt.Fprintf(stdout, "allocations: %d benchmarks compared\n", len(now))

	counter, err := findCounter(ctx)
	switch have := cpuKind(); {
	case err != nil:
		fmt.Fprintln(stdout, "instructions: skipped:", err)
	case have != rec.CPU || counter != rec.Counter:
		fmt.Fprintf(stdout, "instructions: skipped: recorded with %s on %s, this is %s on %s\n", rec.Counter, rec.CPU, counter, have)
	default:
		held := slices.DeleteFunc(slices.Clone(rec.Rows), func(r row) bool {
			return r.Instructions == 0 || !slices.ContainsFunc(now, func(n row) bool { return n.Name == r.Name })
		})
		counts, err := b.counts(ctx, held)
		if err != nil {
			return err
		}
		worse = compareInstructions(stdout, held, counts) || worse
		fmt.Fprintf(stdout, "instructions: %d benchmarks compared\n", len(held))
	}
	if worse {
		return errWorse
	}
	return nil
}

// compareAllocations reports whether a benchmark allocates more than recorded, or either list has one that the other
// has not.
func compareAllocations(stdout io.Writer, recorded, now []row) (worse bool) {
	was := make(map[string]int, len(recorded))
	for _, r := range recorded {
		was[r.Name] = r.Allocations
	}
	for _, n := range now {
		old, ok := was[n.Name]
		delete(was, n.Name)
		switch {
		case !ok:
			fmt.Fprintf(stdout, "NEW     %s is not recorded\n", n.Name)
			worse = true
		case n.Allocations > old:
			fmt.Fprintf(stdout, "WORSE   %s: %d allocations, recorded %d\n", n.Name, n.Allocations, old)
			worse = true
		case n.Allocations < old:
			fmt.Fprintf(stdout, "better  %s: %d allocations, recorded %d\n", n.Name, n.Allocations, old)
		}
	}
	for name := range was {
		fmt.Fprintf(stdout, "GONE    %s is recorded\n", name)
		worse = true
	}
	return worse
}

// compareInstructions reports whether one of counts is more than tolerated.
func compareInstructions(stdout io.Writer, recorded []row, counts []float64) (worse bool) {
	for i, r := range recorded {
		verdict := ""
		switch ratio := counts[i] / r.Instructions; {
		case ratio > tolerated(r.Name):
			verdict, worse = "WORSE ", true
		case ratio < 1/tolerated(r.Name):
			verdict = "better"
		default:
			continue
		}
		fmt.Fprintf(stdout, "%s  %s: %.1f instructions, recorded %.1f: %+.1f %%\n", verdict, r.Name, counts[i], r.Instructions, 100*(counts[i]/r.Instructions-1))
	}
	return worse
}
