package main

import (
	"fmt"
	"io"
	"maps"
	"regexp"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/spf13/pflag"

	"github.com/felix-mq/felix/internal/brokerd"
	"github.com/felix-mq/felix/internal/settings"
)

//go:generate sh -c "go run . --reference > ../../docs/operate/configuration.md"

// markdownLink is a link in a text that is made for docs/operate/configuration.md.
var markdownLink = regexp.MustCompile(`\[([^\]]*)\]\(([^)]*)\)`)

// usage is what --help prints.
func usage(w io.Writer, flags *pflag.FlagSet, o *options) {
	fmt.Fprintf(w, `Usage: broker [--config FILE] [--catalog FILE | --dev] [--set KEY=VALUE ...]

Runs a Felix broker until SIGTERM or SIGINT, which drain it; a second signal ends it at once. SIGHUP makes it read its files again.

Flags:
%s
Settings, by their key in --set and in files, and their variable (default in brackets; times without a unit are milliseconds,
sizes without one bytes).
The command line wins over the environment, that over the file, and that over the profile:
`, flags.FlagUsages())
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, s := range settings.Describe(o.structs()...) {
		doc := markdownLink.ReplaceAllString(s.Doc, "docs/operate/$2")
		if s.DefaultText() != "" {
			doc += " [" + s.DefaultText() + "]"
		}
		fmt.Fprintf(tw, "  %s\t%s\t%s\n", s.Key, s.Variables[0], doc)
	}
	_ = tw.Flush()
	fmt.Fprintln(w, "\nExit status: 0 after a drain, 1 if the broker could not start or what it served was not finished in time, 2 for a wrong\nflag or setting or a bad file that one names, 128 and the number of the signal after a second one.")
	fmt.Fprintln(w, "\nGOGC and GOMEMLIMIT are Go's; without them they are 400 and 5/4 of the retained, unfinished and cached bytes and of 56KiB for each open\nconnection together, at most 9/10 of the memory that the process's control group may have.")
}

// writeReference writes docs/operate/configuration.md.
func writeReference(w io.Writer, o *options) {
	fmt.Fprint(w, referenceHead)
	for i, title := range []string{"The process", "The broker", "Development mode", "Certificates", "Metrics, probes and the end", "Logs"} {
		fmt.Fprintf(w, "\n### %s\n\n| Key | Variable | Values | Default | Meaning |\n|---|---|---|---|---|\n", title)
		for _, s := range settings.Describe(o.structs()[i]) {
			doc := s.Doc
			switch s.Reload {
			case "":
			case "value":
				doc += ". Its value is read again at a SIGHUP"
			default:
				doc += ". Its " + s.Reload + " is reloaded while the broker runs"
			}
			fmt.Fprintf(w, "| `%s` | %s | %s | %s | %s |\n", s.Key, code(s.Variables...), s.Values(), code(s.DefaultText()), doc)
		}
	}
	fmt.Fprint(w, "\n## Profiles\n\n"+profilesHead)
	for _, name := range slices.Sorted(maps.Keys(brokerd.Profiles)) {
		for _, key := range slices.Sorted(maps.Keys(brokerd.Profiles[name])) {
			fmt.Fprintf(w, "| %s | `%s` | %s |\n", name, key, brokerd.Profiles[name][key])
		}
	}
	fmt.Fprint(w, "\n## Settings of the reference that have no effect\n\nThey are accepted, with a warning.\n\n| Key | Variable | Why |\n|---|---|---|\n")
	for _, s := range brokerd.WithoutEffect {
		fmt.Fprintf(w, "| %s | `%s` | %s |\n", code(s.Key), s.Variable, s.Why)
	}
}

// code marks words as code, and leaves nothing of nothing.
func code(words ...string) string {
	words = slices.DeleteFunc(slices.Clone(words), func(s string) bool { return s == "" })
	if len(words) == 0 {
		return ""
	}
	return "`" + strings.Join(words, "`, `") + "`"
}

const referenceHead = `# Configuration of the broker

<!-- Generated from the tags of its settings by go generate ./cmd/broker. Do not edit. -->

Each setting has one key. It can be given in four places, of which the first wins:

1. on the command line, ` + "`broker --set key=value`" + `; there is one list of settings for all places, so that a flag of its own for each would say
   nothing that ` + "`--help`" + ` does not say already. ` + "`--profile`, `--catalog` and `--dev`" + ` are short for the three that are set most.
2. in the environment, by the variable. A variable that is set and empty counts only where the empty text is a value, as for names of files and
   addresses: everywhere else it counts as not set.
3. in the YAML file that ` + "`--config` or `FELIX_BROKER_CONFIG`" + ` names, or else in ` + "`" + defaultFile + "`" + ` if it is there: one mapping of keys
   to values. Aliases and further documents are refused.
4. in a profile, which the setting ` + "`profile`" + ` chooses.

Times without a unit are milliseconds; ` + "`2s` and `100us`" + ` are durations too. Sizes without a unit are bytes; ` + "`512MiB`, `64KiB` and `1GB`" + ` are sizes
too (` + "`KiB`, `MiB`, `GiB`, `TiB`, `PiB`" + ` by 1024, ` + "`KB`, `MB`, `GB`, `TB`, `PB`" + ` by 1000). Lists are separated by commas, or are lists in YAML.

Every value that is given is checked, those that another one wins over too. All problems are reported at once, each with its place
and, for a word that is like a known one, the nearest: ` + "`config.yml:3: quic_bnid: unknown key; the nearest is quic_bind`" + `. The
broker does not start then, and exits with 2. An unknown key in the file or on the command line is a problem. An unknown variable is
a warning: an environment is shared with clients and other programs, and Kubernetes sets ` + "`FELIX_SERVICE_HOST`" + ` and the like of its own
accord for a service called felix.

` + "`broker --validate-config`" + ` does all that a start does before it binds addresses: it checks all this, how settings go together, and the addresses and
files that they name. It exits with 0, or with 2 where a start would; nothing is bound, made or changed. ` + "`broker --dump-config`" + ` prints every setting as a file that can be used again, with the origin of each as a comment and secrets left out.

` + "`GOGC` and `GOMEMLIMIT`" + ` are Go's; without them they are 400 and 5/4 of the retained, unfinished and cached bytes and of 56 KiB for each open
connection together, at most nine tenths of the memory that the process's control group (its container) may have. A line of log says if
the budgets do not fit that.

## Settings
`

const profilesHead = `` + "`balanced`" + ` is the defaults, which are made for few microseconds already. What the others set, by which one good is bought with another:

- ` + "`latency`" + ` bounds how old an event can be when it arrives: a subscriber that is too slow loses events after 1 MiB or 128 batches instead
  of reading ever older ones, and less is under way on each stream. With subscribers that keep up, on loopback, it measures like the
  defaults. Polling longer (` + "`quic_spin`" + `) is not in it: where broker and clients share two processors, 1 ms of it tripled the median.
- ` + "`throughput`" + ` gathers up to 256 KiB into a write, which delivers 4 to 9 % more events of 256 bytes and changes nothing for those of
  4 KiB; has queues that ride out bursts; and lets publishers far away send 1 MiB before they hear from the broker, 20 MB/s at 50 ms. It needs
  memory for that: see ` + "`retained_bytes`" + `.

| Profile | Key | Value |
|---|---|---|
`
