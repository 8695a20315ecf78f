package main

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/felix-mq/felix/catalog"
	"github.com/felix-mq/felix/client"
)

// connection is what leads to a broker, as flags give it and as a context holds it. Empty means not given.
type connection struct {
	Addr       string `yaml:"addr,omitempty"`
	Tenant     string `yaml:"tenant,omitempty"`
	Namespace  string `yaml:"namespace,omitempty"`
	Token      string `yaml:"token,omitempty"`
	TokenFile  string `yaml:"token_file,omitempty"`
	CA         string `yaml:"ca,omitempty"` // file
	CAPEM      string `yaml:"ca_pem,omitempty"`
	Insecure   bool   `yaml:"insecure,omitempty"`
	MetricsURL string `yaml:"metrics_url,omitempty"`
	// MetricsToken is the file of the token that metrics ask for.
	MetricsToken string `yaml:"metrics_token_file,omitempty"`
	Dev          bool   `yaml:"dev,omitempty"` // made by felix dev, which may replace it

	context string
	timeout time.Duration
}

// defaultTimeout bounds connecting and each request.
const defaultTimeout = 10 * time.Second

func (c *connection) bind(f *pflag.FlagSet) {
	f.StringVar(&c.context, "context", "", "context to use instead of the current one [FELIX_CONTEXT]")
	f.StringVar(&c.Addr, "addr", "", "`host:port` of the broker [FELIX_ADDR, default 127.0.0.1:5000]")
	f.StringVar(&c.Tenant, "tenant", "", "tenant [FELIX_AUTH_TENANT, default t1]")
	f.StringVarP(&c.Namespace, "namespace", "n", "", "namespace of streams and caches [FELIX_NAMESPACE, default default]")
	f.StringVar(&c.Token, "token", "", "Felix token; other users of the machine can see flags [FELIX_AUTH_TOKEN]")
	f.StringVar(&c.TokenFile, "token-file", "", "`file` with the token, read again for each stream [FELIX_TOKEN_FILE]")
	f.StringVar(&c.CA, "ca", "", "PEM `file` of certificates to trust instead of the system's [FELIX_CA_FILE]")
	f.BoolVar(&c.Insecure, "insecure", false, "trust any certificate")
	f.StringVar(&c.MetricsURL, "metrics-url", "", "`URL` of the broker's metrics, for felix top [FELIX_METRICS_URL, default port 8080 of the broker's host]")
	f.StringVar(&c.MetricsToken, "metrics-token-file", "", "`file` with the token that metrics ask for [FELIX_METRICS_TOKEN_FILE]")
	f.DurationVar(&c.timeout, "timeout", defaultTimeout, "time for connecting, and for each request")
}

// makeAbsolute makes the names of files good for any directory.
func (c *connection) makeAbsolute() error {
	for _, file := range []*string{&c.TokenFile, &c.CA, &c.MetricsToken} {
		if *file == "" {
			continue
		}
		path, err := filepath.Abs(*file)
		if err != nil {
			return err
		}
		*file = path
	}
	return nil
}

// setting is one resolved value, and where it comes from.
type setting struct {
	Name   string `json:"name"`
	Value  string `json:"value"`
	Origin string `json:"origin"`
}

// resolved is a connection with everything filled in.
type resolved struct {
	connection
	origins []setting
}

// resolve fills in what flags leave open: from variables, the context and defaults. Of the token's two forms, and of
// the certificates', the one that is nearer in this order counts.
func (a *app) resolve() (*resolved, error) {
	all, err := readContexts()
	if err != nil {
		return nil, err
	}
	flags := a.flags
	r := &resolved{}
	name := r.pick("context", "FELIX_CONTEXT", flags.context, all.Current, "in use", "")
	r.context, r.timeout = name, flags.timeout
	var ctx connection
	if name != "" {
		if ctx, err = all.get(name); err != nil {
			return nil, err
		}
	}
	origin := "context " + name
	r.Addr = r.pick("addr", "FELIX_ADDR", flags.Addr, ctx.Addr, origin, "127.0.0.1:5000")
	r.Tenant = r.pick("tenant", "FELIX_AUTH_TENANT", flags.Tenant, ctx.Tenant, origin, "t1")
	r.Namespace = r.pick("namespace", "FELIX_NAMESPACE", flags.Namespace, ctx.Namespace, origin, "default")
	r.Token = r.pick("token", "FELIX_AUTH_TOKEN", flags.Token, ctx.Token, origin, "")
	r.TokenFile = r.pick("token-file", "FELIX_TOKEN_FILE", flags.TokenFile, ctx.TokenFile, origin, "")
	r.CA = r.pick("ca", "FELIX_CA_FILE", flags.CA, ctx.CA, origin, "")
	metrics, metricsToken := ctx.MetricsURL, ctx.MetricsToken
	if r.Addr != ctx.Addr {
		metrics, metricsToken = "", "" // they are of another broker
	}
	r.MetricsURL = r.pick("metrics-url", "FELIX_METRICS_URL", flags.MetricsURL, metrics, origin, defaultMetrics(r.Addr))
	r.MetricsToken = r.pick("metrics-token-file", "FELIX_METRICS_TOKEN_FILE", flags.MetricsToken, metricsToken, origin, "")
	if r.rank("token") > r.rank("token-file") {
		r.Token = ""
	} else if r.Token != "" {
		r.TokenFile = ""
	}
	if r.CA == "" && ctx.CAPEM != "" {
		r.CAPEM = ctx.CAPEM
		i := slices.IndexFunc(r.origins, func(s setting) bool { return s.Name == "ca" })
		r.origins[i].Value, r.origins[i].Origin = "(a certificate in the context)", origin
	}
	switch {
	case flags.Insecure:
		r.origins = append(r.origins, setting{"insecure", "true", fromFlag})
	case ctx.Insecure:
		r.origins = append(r.origins, setting{"insecure", "true", origin})
	}
	r.Insecure = flags.Insecure || ctx.Insecure
	if r.timeout <= 0 {
		return nil, usagef("--timeout %v: want more than 0", r.timeout)
	}
	if err := checkAddr(r.Addr); err != nil {
		return nil, usagef("the broker's address (%s): %w", r.origin("addr"), err)
	}
	return r, nil
}

// defaultMetrics is the URL of metrics of the broker at addr, if its settings are the default ones.
func defaultMetrics(addr string) string {
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		host = "127.0.0.1" // checkAddr says so
	}
	return "http://" + net.JoinHostPort(host, "8080") + "/metrics"
}

// checkAddr reports why an address cannot be one of a broker.
func checkAddr(addr string) error {
	if strings.Contains(addr, "://") {
		return fmt.Errorf("%q: want HOST:PORT, without a scheme", addr)
	}
	host, port, err := net.SplitHostPort(addr)
	if err != nil || host == "" && port == "" {
		return fmt.Errorf("%q: want HOST:PORT, such as 127.0.0.1:5000 or [::1]:5000", addr)
	}
	if host == "" {
		return fmt.Errorf("%q: there is no host in front of the port", addr)
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
		return fmt.Errorf("%q: %q is no port from 1 to 65535", addr, port)
	}
	return nil
}

// Where values come from, the nearest first.
const (
	fromFlag        = "flag"
	fromEnvironment = "environment"
	fromDefault     = "default"
)

// pick returns the first value that is given and notes where it was found.
func (r *resolved) pick(name, variable, flag, context, origin, other string) string {
	s := setting{name, other, fromDefault}
	switch {
	case flag != "":
		s.Value, s.Origin = flag, fromFlag
	case os.Getenv(variable) != "":
		s.Value, s.Origin = os.Getenv(variable), fromEnvironment+" "+variable
	case context != "":
		s.Value, s.Origin = context, origin
	}
	r.origins = append(r.origins, s)
	return s.Value
}

// origin tells where a setting comes from.
func (r *resolved) origin(name string) string {
	for _, s := range r.origins {
		if s.Name == name {
			return s.Origin
		}
	}
	return fromDefault
}

// rank tells how near a setting's origin is: less is nearer.
func (r *resolved) rank(name string) int {
	switch origin := r.origin(name); {
	case origin == fromFlag:
		return 0
	case strings.HasPrefix(origin, fromEnvironment):
		return 1
	case origin != fromDefault:
		return 2
	}
	return 3
}

// readToken returns the token.
func (r *resolved) readToken() (string, error) {
	if r.TokenFile == "" {
		return r.Token, nil
	}
	text, err := os.ReadFile(r.TokenFile)
	return strings.TrimSpace(string(text)), err
}

func (r *resolved) tls() (*tls.Config, error) {
	conf := &tls.Config{MinVersion: tls.VersionTLS13, InsecureSkipVerify: r.Insecure} // what --insecure says
	text, source := []byte(r.CAPEM), "context "+r.context
	if r.CA != "" {
		var err error
		if text, err = os.ReadFile(r.CA); err != nil {
			return nil, usageError{error: fmt.Errorf("certificates to trust: %w", err)}
		}
		source = r.CA
	}
	if len(text) == 0 {
		return conf, nil
	}
	conf.RootCAs = x509.NewCertPool()
	if !conf.RootCAs.AppendCertsFromPEM(text) {
		return nil, usageError{error: fmt.Errorf("certificates to trust: none in %s", source)}
	}
	return conf, nil
}

// connect connects to the broker that flags, variables and the context lead to.
func (a *app) connect(ctx context.Context, opts ...client.Option) (*client.Client, *resolved, error) {
	r, err := a.resolve()
	if err != nil {
		return nil, nil, err
	}
	tlsConf, err := r.tls()
	if err != nil {
		return nil, nil, err
	}
	token, err := r.readToken()
	switch {
	case err != nil:
		return nil, nil, usageError{error: fmt.Errorf("token: %w", err)}
	case token == "":
		return nil, nil, usageError{errors.New("no token"), `--token or --token-file gives one, or FELIX_AUTH_TOKEN, or a context: "felix dev" makes one`}
	}
	all := append([]client.Option{
		client.FromEnv(), client.WithTLS(tlsConf), client.WithRequestTimeout(r.timeout),
		client.WithTokenSource(r.Tenant, func(context.Context) (string, error) {
			again, err := r.readToken()
			if err == nil && again == "" {
				again = token // a pipe is read once, and a file that is being replaced may be empty for a moment
			}
			return again, err
		}),
	}, opts...)
	ctx, cancel := context.WithTimeout(ctx, r.timeout)
	defer cancel()
	c, err := client.Connect(ctx, r.Addr, all...)
	if err == nil {
		return c, r, nil
	}
	if cause := context.Cause(ctx); errors.Is(cause, errInterrupted) {
		return nil, nil, connectError{cause, r.Addr, flagAddr}
	}
	if isConnectFailure(ctx, err) {
		return nil, nil, connectError{err, r.Addr, flagAddr}
	}
	return nil, nil, usageError{error: err} // a setting
}

// isConnectFailure reports whether an attempt to connect has failed for what is at the other end, or on the way there.
func isConnectFailure(ctx context.Context, err error) bool {
	_, refusal := errors.AsType[*client.BrokerError](err)
	_, network := errors.AsType[net.Error](err) // a name that nobody knows, a certificate that is not trusted
	return refusal || network || ctx.Err() != nil || client.Retryable(err) || errors.Is(err, client.ErrProtocol)
}

func (a *app) newConfig() *cobra.Command {
	return group("config", "Settings of this program, and where they come from", a.newConfigShow(), newConfigValidate())
}

func newConfigValidate() *cobra.Command {
	return &cobra.Command{
		Use:   "validate CATALOG",
		Short: "Check a catalog as a broker would",
		Long: `Check a catalog, and the files of keys that it names, as a broker would: exit code 1 and all problems with their lines
if it would refuse it. The broker's own settings are checked by broker --validate-config.`,
		Args: arguments(1, 1),
		RunE: func(_ *cobra.Command, args []string) error {
			_, err := catalog.Load(args[0])
			return err
		},
	}
}

func (a *app) newConfigShow() *cobra.Command {
	format := formatTable
	c := &cobra.Command{
		Use:   "show",
		Short: "Show what leads to the broker, and where each value comes from",
		Long: `Show what leads to the broker, and where each value comes from. Tokens are not shown.

Beside these, the FELIX_* variables of the Go client (FELIX_CLIENT_CONFIG among them) tune its connections; those that
are set are listed as well.`,
		Args: arguments(0, 0),
		RunE: func(c *cobra.Command, _ []string) error {
			r, err := a.resolve()
			if err != nil {
				return err
			}
			settings := r.origins
			for i, s := range settings {
				if s.Name == "token" && s.Value != "" {
					settings[i].Value = "(hidden)"
				}
			}
			for _, assignment := range os.Environ() {
				name, value, _ := strings.Cut(assignment, "=")
				if strings.HasPrefix(name, "FELIX_") && !strings.Contains(name, "TOKEN") && !r.has(name) {
					settings = append(settings, setting{name, value, fromEnvironment})
				}
			}
			return printList(c.OutOrStdout(), format, settings, "NAME\tVALUE\tORIGIN", func(s setting) string {
				return fmt.Sprintf("%s\t%s\t%s", s.Name, cmp.Or(s.Value, "-"), s.Origin)
			})
		},
	}
	format.bind(c)
	return c
}

// has reports whether a variable is the origin of a setting.
func (r *resolved) has(variable string) bool {
	return slices.ContainsFunc(r.origins, func(s setting) bool { return s.Origin == fromEnvironment+" "+variable })
}
