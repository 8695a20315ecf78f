// Command broker runs a Felix broker. `broker --help` says how to configure it; docs/operate/configuration.md lists all
// settings.
package main

import (
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/spf13/pflag"

	"github.com/felix-mq/felix/internal/logs"
	"github.com/felix-mq/felix/internal/ops"
	"github.com/felix-mq/felix/internal/settings"
	"github.com/felix-mq/felix/internal/version"
)

// Exit codes. A second signal ends the process as signals do: 128 and its number, for a shell.
const (
	exitOK    = 0
	exitError = 1 // the broker could not start, such as at an address that is in use, or could not end in time
	exitUsage = 2 // a flag or a setting is wrong, or a file that one names
)

func main() {
	os.Exit(run(os.Args[1:], os.Stdout, os.Stderr))
}

func run(args []string, stdout, stderr io.Writer) int {
	o := defaultOptions()
	flags := pflag.NewFlagSet("broker", pflag.ContinueOnError)
	flags.SortFlags = false
	flags.SetOutput(stderr)
	flags.Usage = func() { usage(stderr, flags, o) }
	file := flags.String("config", "", "YAML `FILE` of settings, like FELIX_BROKER_CONFIG; without either "+defaultFile+", if it is there")
	assignments := flags.StringArray("set", nil, "a setting, as `KEY=VALUE`; may be repeated")
	profile := flags.String("profile", "", "`NAME` of the profile: latency, balanced or throughput, like --set profile=NAME")
	catalog := flags.String("catalog", "", "YAML `FILE` of what the broker serves, like --set catalog=FILE")
	dev := flags.Bool("dev", false, "development mode, like --set dev=true")
	validate := flags.Bool("validate-config", false, "do all that a start does before it binds addresses, and exit with 0 or 2")
	dump := flags.Bool("dump-config", false, "print all settings as a YAML file, with the origin of each, and exit")
	reference := flags.Bool("reference", false, "print the reference of all settings in Markdown, and exit")
	health := flags.Bool("healthcheck", false, "ask the broker that runs with these settings whether it is ready, and exit with 0 or 1")
	showVersion := flags.Bool("version", false, "print the version, and exit")
	if err := flags.Parse(args); err != nil {
		if errors.Is(err, pflag.ErrHelp) {
			return exitOK
		}
		fmt.Fprintln(stderr, "broker:", err)
		return exitUsage
	}
	if flags.NArg() > 0 {
		fmt.Fprintf(stderr, "broker: unexpected argument %q; see broker --help\n", flags.Arg(0))
		return exitUsage
	}
	if *showVersion {
		fmt.Fprintln(stdout, "broker", version.Get())
		return exitOK
	}
	if *reference {
		writeReference(stdout, o)
		return exitOK
	}
	for flag, value := range map[string]string{"profile": *profile, "catalog": *catalog, "dev": fmt.Sprint(*dev)} {
		if flags.Changed(flag) {
			*assignments = append(*assignments, flag+"="+value)
		}
	}
	if !*validate && !*dump && !*health {
		o.hangups = ops.CatchHangups() // from here on SIGHUP does not end the process
		defer o.hangups.Stop()
	}
	read := func(o *options) (*settings.Loaded, error) { return o.load(*file, os.Environ(), *assignments) }
	loaded, err := read(o)
	if err != nil {
		return notValid(stderr, err)
	}
	if *dump {
		if err := loaded.Dump(stdout); err != nil {
			fmt.Fprintln(stderr, "broker:", err)
			return exitError
		}
		return exitOK
	}
	if *health {
		if err := healthcheck(o.ops); err != nil {
			fmt.Fprintln(stderr, "broker: not ready:", err)
			return exitError
		}
		return exitOK
	}
	log, limiter := logs.New(stderr, o.logs)
	for _, n := range loaded.Ignored {
		log.Warn("setting has no effect", "name", n.Name, "where", n.Where, "why", n.Why)
	}
	for _, n := range loaded.Unknown {
		log.Warn("unknown variable", "name", n.Name, "why", n.Why)
	}
	o.broker.Logger = log
	defer o.release()
	if err := o.prepare(loaded); err != nil {
		return notValid(stderr, err)
	}
	if *validate {
		fmt.Fprintln(stdout, "the configuration is valid")
		return exitOK
	}
	reload := &reloader{log: log, limiter: limiter, options: o, running: loaded, read: read}
	if err := serve(o, stdout, log, limiter, reload); err != nil {
		log.Error("broker ended", "error", err)
		return exitError
	}
	return exitOK
}

// notValid says what is wrong with the configuration, in the same way at a start and at a validation.
func notValid(stderr io.Writer, err error) int {
	fmt.Fprintf(stderr, "broker: the configuration is not valid:\n%v\n", err)
	return exitUsage
}
