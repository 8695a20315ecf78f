package main

import (
	"cmp"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"math"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"

	"github.com/spf13/pflag"

	"github.com/felix-mq/felix/broker"
	"github.com/felix-mq/felix/internal/settings"
	"github.com/felix-mq/felix/loadgen"
)

// output are the flags that say what to do with the results.
type output struct {
	trials               int
	json                 bool
	dir, compare, commit string
	unlike               bool
	interval             time.Duration
	version              bool
}

func (c *command) outputFlags() {
	o := &c.output
	c.group("Trials and output", func(f *pflag.FlagSet) {
		f.IntVar(&o.trials, "trials", 1, "runs of each load; each round runs all loads once")
		f.BoolVar(&o.json, "json", false, "print each result as a JSON object on a line of its own")
		f.StringVar(&o.dir, "out", "", "`directory` for report.json, CSV, histograms (.hlog, .hgrm) and plots (PNG, SVG)")
		f.StringVar(&o.compare, "compare", "", "`report.json`, or directory of such files, to compare the trials with")
		f.BoolVar(&o.unlike, "unlike", false, unlikeHelp)
		f.StringVar(&o.commit, "commit", "", "what the report calls the commit, if the build does not know")
		f.BoolVar(&o.version, "version", false, "print the version")
		f.DurationVar(&o.interval, "interval", 0, "length of the timeline's intervals (default 1s; of a soak at least 1/500 of its duration)")
	})
}

// target are the flags that say what broker to load.
type target struct {
	processes                                         int
	addr, tenant, namespace, object, token, authority string
	insecure                                          bool
	noun                                              string // what object is
}

func (c *command) targetFlags(noun, defaultObject string) {
	t := &c.target
	t.noun = noun
	c.group("Broker", func(f *pflag.FlagSet) {
		f.IntVar(&t.processes, "processes", 1, "1 embeds a broker, 2 starts one as a process of its own")
		f.StringVar(&t.addr, "addr", "", "`host:port` of a broker that is already there")
		f.StringVar(&t.tenant, "tenant", cmp.Or(os.Getenv("FELIX_AUTH_TENANT"), "t1"), "its tenant [FELIX_AUTH_TENANT]")
		if noun != "" {
			f.StringVar(&t.namespace, "namespace", "default", "its namespace")
			f.StringVar(&t.object, noun, defaultObject, "its "+noun+", which nobody else may use meanwhile")
		}
		f.StringVar(&t.token, "token", "", "Felix `token` [FELIX_AUTH_TOKEN]")
		f.StringVar(&t.authority, "ca", "", "PEM `file` of certificates to trust in place of the system's")
		f.BoolVar(&t.insecure, "insecure", false, "trust any certificate")
	})
	// Not as a default: the help would print it.
	t.token = os.Getenv("FELIX_AUTH_TOKEN")
}

// broker returns the broker to load, or how to start one: in this many processes (1 if it is there), and with which
// settings. Errors are of the flags and the environment.
func (c *command) broker() (there *loadgen.Target, processes int, settings func(*broker.Config) error, err error) {
	t := &c.target
	if t.addr == "" {
		for _, name := range []string{"tenant", "namespace", t.noun, "token", "ca", "insecure"} {
			if c.flags.Changed(name) {
				err = errors.Join(err, fmt.Errorf("loadgen: --%s needs --addr", name))
			}
		}
		scratch := broker.DefaultConfig()
		if tuneErr := tune(&scratch); tuneErr != nil {
			err = errors.Join(err, fmt.Errorf("loadgen: environment: %w", tuneErr))
		}
		return nil, t.processes, tune, err
	}
	if c.flags.Changed("processes") {
		err = fmt.Errorf("loadgen: --processes says where a broker is started, but there is one at %s", t.addr)
	}
	conf := &tls.Config{MinVersion: tls.VersionTLS13, InsecureSkipVerify: t.insecure} // what --insecure says
	if t.authority != "" {
		pem, readErr := os.ReadFile(t.authority)
		conf.RootCAs = x509.NewCertPool()
		switch {
		case readErr != nil:
			err = errors.Join(err, fmt.Errorf("loadgen: --ca: %w", readErr))
		case !conf.RootCAs.AppendCertsFromPEM(pem):
			err = errors.Join(err, fmt.Errorf("loadgen: --ca: no certificate in %s", t.authority))
		}
	}
	return &loadgen.Target{
		Addr: t.addr, Tenant: t.tenant, Namespace: t.namespace, Stream: t.object, Token: t.token, TLS: conf,
	}, 1, nil, err
}

// atLeastOne refuses zero, which means the default to the library and nothing to the user.
func (c *command) atLeastOne(names ...string) error {
	var errs []error
	for _, name := range names {
		if c.flags.Lookup(name).Value.String() == "0" {
			errs = append(errs, fmt.Errorf("loadgen: --%s 0 is less than 1", name))
		}
	}
	return errors.Join(errs...)
}

const sweepTail = `
A flag of the group Load may have several values, separated by commas: every combination is run. --trials repeats them
round robin.
`

const compareTail = `
Comparisons use Welch's t-test. A figure has changed if that would be a coincidence in less than 5 % of all comparisons,
corrected for the number of figures, and if it has changed by 3 % or more: with many trials, less than that is how the
linker placed a function. Trials that alternate between two builds tell more than those of one after the other.
`

const exitTail = `
Exit status: 0 all accounted for, and nothing slower; 1 a run failed, lost events or turned out too small, or a soak
found growth; 2 usage; 3 slower than what was compared with. A run that has failed prints no figures.
`

// sizeValue is a flag of bytes that may have a unit.
type sizeValue int

func (s *sizeValue) String() string { return strconv.Itoa(int(*s)) }

func (s *sizeValue) Type() string { return "bytes" }

func (s *sizeValue) Set(text string) error {
	n, err := settings.ParseSize(text)
	if err != nil {
		return err
	}
	if n > math.MaxInt32 || n < math.MinInt32 {
		return fmt.Errorf("%q is out of range", text)
	}
	*s = sizeValue(n)
	return nil
}

// flagNames are the flags of fields whose names are not theirs in another spelling.
var flagNames = map[string]string{"Kind": "payload-kind", "JSON": "json-frames", "Stream": "stream", "TLS": "ca", "TTL": "ttl"}

// nameFlags adds to the problems of a configuration which flag sets what is wrong.
func (c *command) nameFlags(err error) error {
	var joined interface{ Unwrap() []error }
	if errors.As(err, &joined) {
		all := slices.Clone(joined.Unwrap())
		for i, e := range all {
			all[i] = c.nameFlags(e)
		}
		return errors.Join(all...)
	}
	if invalid, ok := errors.AsType[*loadgen.InvalidError](err); ok {
		name := flagNames[invalid.Field]
		if name == "" {
			name = kebab(invalid.Field)
		}
		if c.flags.Lookup(name) != nil {
			return fmt.Errorf("%w (--%s)", err, name)
		}
	}
	if _, small := errors.AsType[*loadgen.TooSmallError](err); small {
		return fmt.Errorf("%w: --duration, --total, --window or --batch", err)
	}
	return err
}

// kebab writes SlowSubs as slow-subs.
func kebab(field string) string {
	var b strings.Builder
	for i, r := range field {
		if unicode.IsUpper(r) && i > 0 {
			b.WriteByte('-')
		}
		b.WriteRune(unicode.ToLower(r))
	}
	return b.String()
}
