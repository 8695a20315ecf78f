// Package isolation attacks a broker as one tenant, A, and measures what another one, B, feels of it. Each attack is a
// row of the table that it prints: what B's publishes, gets and new connections take with and without it, how much
// memory the broker holds at most, and how soon both are back when it has ended. It fails if one of them is worse than
// it may be.
//
// The broker is the real binary, with a catalog of two tenants and small budgets for memory, so that attacks meet them
// soon. B's load runs in this process: calls at a fixed rate, whether the ones before have ended or not. The attacker
// is a process of its own. All of them share a machine, and what is to be measured is the broker: where the system
// allows it, B's load runs first, then the broker, and the attacker on what they leave (system_linux.go).
//
// With the defaults it takes about 25 minutes. Begin reading at attacks.go.
package isolation

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"runtime/debug"
	"slices"
	"strings"
	"time"

	"github.com/felix-mq/felix/internal/program"
)

// Serve makes [Run] possible: the attacker's process is another instance of this program. It is called before anything
// else in main.
func Serve() { serveAttacker() }

// Bounds of the flags, so that a slip does not fill the machine.
const (
	maxRounds   = 25
	minDuration = 100 * time.Millisecond
	maxDuration = time.Minute
)

// Run is the command.
func Run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	debug.SetGCPercent(800) // B is small, and would collect ten times a second
	flags := program.Flags("isolation", stderr)
	only := flags.StringSlice("only", nil, "attacks to run, by name; all without it")
	list := flags.Bool("list", false, "print what the attacks do, and run none")
	rounds := flags.Int("rounds", 3, "times that each measurement is made")
	duration := flags.Duration("duration", 3*time.Second, "of each measurement")
	jsonFile := flags.String("json", "", "`file` for all that was measured")
	docs := flags.String("docs", "", "`file` that shows the table between two lines of comment; with --only those rows change")
	binary := flags.String("broker", "", "broker `binary`; without it, that of this tree is built")
	set := flags.StringArray("set", nil, "setting of the broker as a variable, such as FELIX_CACHE_SCOPE_SHARE=50")
	profiles := flags.String("profiles", "", "`directory` for heap profiles of the broker, one under each attack")
	if code, ok := program.Parse(flags, args); !ok {
		return code
	}
	if *list {
		for _, a := range attacks {
			fmt.Fprintf(stdout, "%-24s %s\n%24s Breaks: %s\n", a.name, a.does, "", a.breaks)
		}
		return 0
	}
	chosen, err := choose(*only)
	if err == nil && (*rounds < 1 || *rounds > maxRounds || *duration < minDuration || *duration > maxDuration || flags.NArg() > 0) {
		err = fmt.Errorf("want 1 to %d rounds of %v to %v, and no arguments", maxRounds, minDuration, maxDuration)
	}
	for _, s := range *set {
		if name, _, ok := strings.Cut(s, "="); err == nil && (!ok || !strings.HasPrefix(name, "FELIX_")) {
			err = fmt.Errorf("--set %s: want FELIX_NAME=VALUE", s)
		}
	}
	if err != nil {
		fmt.Fprintln(stderr, "isolation:", err)
		return 2
	}
	b := &bench{
		out: stdout, progress: program.Progress{Writer: stderr}, rounds: *rounds, duration: *duration, patience: maxBack,
		binary: *binary, set: *set, profiles: *profiles,
	}
	results, err := b.attacks(ctx, chosen)
	if err == nil && *jsonFile != "" {
		err = writeJSON(*jsonFile, results)
	}
	if err == nil && *docs != "" {
		err = fillIn(*docs, results)
	}
	if err != nil {
		fmt.Fprintln(stderr, "isolation:", err)
		return 1
	}
	if failed := failures(results); failed > 0 {
		fmt.Fprintf(stderr, "isolation: %d of %d attacks reach another tenant\n", failed, len(results))
		return 1
	}
	return 0
}

// choose returns the attacks of those names; all if there are none.
func choose(names []string) ([]attack, error) {
	if len(names) == 0 {
		return attacks, nil
	}
	var chosen []attack
	for _, name := range names {
		i := slices.IndexFunc(attacks, func(a attack) bool { return a.name == name })
		if i < 0 {
			return nil, fmt.Errorf("no attack %q; --list prints them", name)
		}
		chosen = append(chosen, attacks[i])
	}
	return chosen, nil
}

func writeJSON(file string, results []*result) error {
	text, err := json.MarshalIndent(results, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(file, append(text, '\n'), 0o644)
}

func failures(results []*result) (n int) {
	for _, r := range results {
		if len(r.Failures) > 0 {
			n++
		}
	}
	return n
}
