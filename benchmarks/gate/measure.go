package gate

import (
	"context"
	"fmt"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sync/errgroup"
)

// unsteady are benchmarks whose instructions are not held: ristretto's own goroutines and random choices, map growth
// and the hub's sweep, which comes by the clock, move them by up to 10 %.
var unsteady = regexp.MustCompile(`^(cache/(GetParallel|Put|PutNew)|fanout/PublishPastStalled/.*)$`)

// binaries are test binaries of rooms, in a directory.
type binaries struct {
	dir   string
	rooms []string
}

// build compiles the tests of rooms. flags are further ones for go test.
func build(ctx context.Context, rooms []string, flags ...string) (b binaries, err error) {
	if b.dir, err = os.MkdirTemp("", "felix-gate-"); err != nil {
		return b, err
	}
	b.rooms = rooms
	for _, room := range rooms {
		args := slices.Concat([]string{"test", "-c", "-pgo=off", "-o", b.path(room)}, flags, []string{"./" + room})
		cmd := exec.CommandContext(ctx, "go", args...)
		cmd.Env = append(os.Environ(), "GOAMD64=v1") // the default, which the record was made with
		if out, err := cmd.CombinedOutput(); err != nil {
			b.remove()
			return b, fmt.Errorf("building the tests of %s: %w\n%s", room, err, out)
		}
	}
	return b, nil
}

func (b binaries) path(room string) string { return filepath.Join(b.dir, room+".test") }

func (b binaries) remove() { _ = os.RemoveAll(b.dir) }

// benchmark runs benchmarks of a package that match pattern, each so many times, by the command in front, if any.
// Benchmarks of hostile input and of scale are left out: they are no hot path, and what matters there is a bound on
// time, which this gate does not measure.
func (b binaries) benchmark(ctx context.Context, room, pattern string, repeats int, front ...string) (string, error) {
	args := append(slices.Clone(front), b.path(room), "-test.run=^$", "-test.bench="+pattern, "-test.skip=Hostile|Scale", "-test.benchmem", "-test.cpu=1",
		fmt.Sprintf("-test.benchtime=%dx", repeats))
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	cmd.Dir = room
	// Garbage collections come at any time, and the caller's environment must not change what is counted.
	cmd.Env = append(os.Environ(), "GOMAXPROCS=1", "GOGC=off", "GOMEMLIMIT=off", "GODEBUG=")
	out, err := cmd.CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("running %q of %s: %w\n%s", pattern, room, err, out)
	}
	return string(out), nil
}

// allocationRepeats are so many that preparations, a thousand rings for example, do not show in the average.
const allocationRepeats = 10_000

var benchLine = regexp.MustCompile(`(?m)^Benchmark(\S+)\s+\d+\s.*\s(\d+) allocs/op$`)

// allocations returns a row for each benchmark of each package.
func (b binaries) allocations(ctx context.Context) (rows []row, err error) {
	for _, room := range b.rooms {
		out, err := b.benchmark(ctx, room, ".", allocationRepeats)
		if err != nil {
			return nil, err
		}
		for _, m := range benchLine.FindAllStringSubmatch(out, -1) {
			n, err := strconv.Atoi(m[2])
			if err != nil {
				return nil, err
			}
			rows = append(rows, row{Name: room + "/" + m[1], Allocations: n})
		}
	}
	return rows, nil
}

var instructionRefs = regexp.MustCompile(`I\s+refs:\s+([\d,]+)`)

// executed returns the instructions of one process that runs a benchmark so many times.
func (b binaries) executed(ctx context.Context, name string, repeats int) (float64, error) {
	room, benchmark, _ := strings.Cut(name, "/")
	levels := strings.Split("Benchmark"+benchmark, "/")
	for i, l := range levels {
		levels[i] = "^" + regexp.QuoteMeta(l) + "$"
	}
	out, err := b.benchmark(ctx, room, strings.Join(levels, "/"), repeats,
		"valgrind", "--tool=cachegrind", "--cache-sim=no", "--cachegrind-out-file=/dev/null")
	if err != nil {
		return 0, err
	}
	m := instructionRefs.FindStringSubmatch(out)
	if m == nil || !strings.Contains(out, "Benchmark"+benchmark) {
		return 0, fmt.Errorf("%s did not run:\n%s", name, out)
	}
	return strconv.ParseFloat(strings.ReplaceAll(m[1], ",", ""), 64)
}

// instructions returns those of one operation.
func (b binaries) instructions(ctx context.Context, name string, repeats int) (float64, error) {
	once, err := b.executed(ctx, name, 1)
	if err != nil {
		return 0, err
	}
	often, err := b.executed(ctx, name, repeats)
	return (often - once) / float64(repeats-1), err
}

func (b binaries) medianInstructions(ctx context.Context, name string, repeats int) (float64, error) {
	var counts [3]float64
	for i := range counts {
		var err error
		if counts[i], err = b.instructions(ctx, name, repeats); err != nil {
			return 0, err
		}
	}
	slices.Sort(counts[:])
	return math.Round(10*counts[1]) / 10, nil
}

// measuredInstructions are so many that what the runtime does meanwhile is less than a part in a hundred.
const measuredInstructions = 20_000_000

// repeats returns how often an operation has to be repeated.
func (b binaries) repeats(ctx context.Context, name string) (int, error) {
	one, err := b.instructions(ctx, name, 1000)
	return min(max(int(measuredInstructions/max(one, 1)), 10), 1_000_000), err
}

// counts returns the instructions of each row's benchmark: the first count that is tolerated, or else the median of
// three.
func (b binaries) counts(ctx context.Context, rows []row) ([]float64, error) {
	counts := make([]float64, len(rows))
	indexes := make([]int, len(rows))
	for i := range indexes {
		indexes[i] = i
	}
	return counts, forEach(indexes, func(i *int) (err error) {
		r := rows[*i]
		counts[*i], err = b.instructions(ctx, r.Name, r.Repeats)
		if err == nil && counts[*i] > tolerated(r.Name)*r.Instructions {
			counts[*i], err = b.medianInstructions(ctx, r.Name, r.Repeats)
		}
		return err
	})
}

// forEach calls f for all, as many at a time as there are processors. What is counted does not mind.
func forEach[T any](all []T, f func(*T) error) error {
	var g errgroup.Group
	g.SetLimit(runtime.NumCPU())
	for i := range all {
		g.Go(func() error { return f(&all[i]) })
	}
	return g.Wait()
}

// goRelease returns the release of Go without its last number, which mends faults alone: "go1.26".
func goRelease() string {
	parts := strings.SplitN(runtime.Version(), ".", 3)
	return strings.Join(parts[:min(2, len(parts))], ".")
}

var cpuNumbers = regexp.MustCompile(`(?m)^(?:vendor_id|cpu family|model)\s*: (.*)$`)

// cpuKind names the processor as Linux does: maker, family and model. Elsewhere it knows the architecture alone.
func cpuKind() string {
	kind := append(make([]string, 0, 4), runtime.GOARCH)
	info, _ := os.ReadFile("/proc/cpuinfo")
	for _, m := range cpuNumbers.FindAllSubmatch(info, 3) { // of the first processor
		kind = append(kind, string(m[1]))
	}
	return strings.Join(kind, " ")
}

// findCounter names the program that counts instructions.
func findCounter(ctx context.Context) (string, error) {
	out, err := exec.CommandContext(ctx, "valgrind", "--version").Output()
	if err != nil {
		return "", fmt.Errorf("valgrind does not run: %w", err)
	}
	return strings.TrimSpace(string(out)), nil
}
