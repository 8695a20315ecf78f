package main

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/VictoriaMetrics/metricsql"
	"github.com/prometheus/client_golang/prometheus/testutil/promlint"
	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"

	"github.com/felix-mq/felix/client"
	"github.com/felix-mq/felix/codec"
	"github.com/felix-mq/felix/loadgen"
	"github.com/felix-mq/felix/quicx"
)

// scrape reads the metrics as Prometheus does.
func (p *program) scrape(t *testing.T) map[string]*dto.MetricFamily {
	t.Helper()
	body := get(t, p.http+"/metrics")
	problems, err := promlint.New(strings.NewReader(body)).Lint()
	if err != nil {
		t.Fatal(err)
	}
	for _, problem := range problems {
		t.Errorf("%s: %s", problem.Metric, problem.Text)
	}
	exposition := expfmt.NewTextParser(model.UTF8Validation)
	families, err := exposition.TextToMetricFamilies(strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	return families
}

// ours are the names that are not those of every program in Go.
func ours(families map[string]*dto.MetricFamily) map[string]bool {
	names := make(map[string]bool)
	for name := range families {
		if !strings.HasPrefix(name, "go_") && !strings.HasPrefix(name, "process_") {
			names[name] = true
		}
	}
	return names
}

// dashboard is what the test reads of deploy/grafana/felix.json.
type dashboard struct {
	UID    string
	Panels []struct {
		Type, Title string
		Targets     []struct{ Expr string }
	}
}

func readDashboard(t *testing.T) (d dashboard) {
	t.Helper()
	b, err := os.ReadFile("../../deploy/grafana/felix.json")
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(b, &d); err != nil {
		t.Fatal(err)
	}
	return d
}

// hasData reports whether series match each selector of the expression, apart from what Prometheus adds to each series.
// The expression must parse, and each name in it be exported.
func hasData(t *testing.T, families map[string]*dto.MetricFamily, title, expr string) bool {
	t.Helper()
	e, err := metricsql.Parse(strings.NewReplacer("$__rate_interval", "1m", "$job", ".*", "$instance", ".*").Replace(expr))
	if err != nil {
		t.Errorf("%s: %s: %v", title, expr, err)
		return false
	}
	selectors, found := 0, true
	metricsql.VisitAll(e, func(e metricsql.Expr) {
		m, ok := e.(*metricsql.MetricExpr)
		if !ok {
			return
		}
		selectors++
		for _, filters := range m.LabelFilterss {
			name := filters[0].Value
			family := families[name]
			if filters[0].Label != "__name__" || family == nil {
				t.Errorf("%s: %s: nothing is exported as %q", title, expr, name)
				found = false
				return
			}
			if !slices.ContainsFunc(family.GetMetric(), func(m *dto.Metric) bool { return matches(t, m, filters[1:]) }) {
				t.Errorf("%s: %s: no series of %s matches", title, expr, name)
				found = false
			}
		}
	})
	return found && selectors > 0
}

func matches(t *testing.T, m *dto.Metric, filters []metricsql.LabelFilter) bool {
	t.Helper()
	for _, f := range filters {
		if f.Label == "job" || f.Label == "instance" {
			continue
		}
		value := ""
		for _, l := range m.GetLabel() {
			if l.GetName() == f.Label {
				value = l.GetValue()
			}
		}
		equal := value == f.Value
		if f.IsRegexp {
			equal = regexp.MustCompile("^(?:" + f.Value + ")$").MatchString(value)
		}
		if equal == f.IsNegative {
			return false
		}
	}
	return true
}

// The metrics of an idle broker are few and named as they should be; those of a broker under load fill each panel of
// the dashboard; and docs/operate/operations.md has them all, with their help.
func TestMetricsAndDashboard(t *testing.T) {
	s := newSecret(t)
	s.put(t)
	p := startProgram(t, append(s.env(), "FELIX_DURABLE_STORAGE_DIR="+t.TempDir(), "FELIX_CACHE_SNAPSHOT_DIR="+t.TempDir())...)
	conf := &tls.Config{RootCAs: s.ca.Pool(), ServerName: "localhost", MinVersion: tls.VersionTLS13}

	idle := p.scrape(t)
	series := 0
	for name := range ours(idle) {
		series += len(idle[name].GetMetric())
	}
	t.Logf("%d series on an idle broker", series)
	if series > 90 {
		t.Errorf("%d series on an idle broker, want at most 90", series)
	}

	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	target := &loadgen.Target{Addr: p.Addr, Tenant: p.Tenant, Namespace: p.Namespace, Stream: p.Streams[0], Token: p.Token, TLS: conf}
	if _, err := loadgen.Run(ctx, loadgen.Config{Fanout: 4, Rate: 2000, Batch: 8, Duration: 500 * time.Millisecond, Target: target}); err != nil {
		if _, small := errors.AsType[*loadgen.TooSmallError](err); !small {
			t.Fatal(err)
		}
	}
	caches := *target
	caches.Stream = p.Cache
	cacheLoad := loadgen.DefaultCacheConfig()
	cacheLoad.Target, cacheLoad.Duration, cacheLoad.Warmup = &caches, 300*time.Millisecond, 100*time.Millisecond
	if _, err := loadgen.RunCache(ctx, cacheLoad); err != nil {
		t.Fatal(err)
	}
	if _, err := client.Connect(ctx, p.Addr, client.WithTLS(conf), client.WithToken(p.Tenant, "x")); err == nil {
		t.Error("connected with a bad token")
	}
	send(ctx, t, p.Addr, conf, []byte("GET / HTTP/1.1\r\n\r\n"))
	send(ctx, t, p.Addr, conf, codec.AppendHeader(nil, codec.LayoutJSON, 1<<20))

	loaded := p.scrape(t)
	for deadline := time.Now().Add(20 * time.Second); len(loaded) < len(idle)+3 && time.Now().Before(deadline); {
		loaded = p.scrape(t) // what has no series until it happens
	}
	for _, name := range []string{"felix_published_events_total", "felix_delivered_bytes_total", "felix_quic_packets_sent_total"} {
		if loaded[name].GetMetric()[0].GetCounter().GetValue() == 0 {
			t.Errorf("%s is 0 under load", name)
		}
	}
	d := readDashboard(t)
	panels := 0
	for _, panel := range d.Panels {
		if panel.Type == "row" {
			continue
		}
		panels++
		if len(panel.Targets) == 0 {
			t.Errorf("panel %q shows nothing", panel.Title)
		}
		for _, target := range panel.Targets {
			if !hasData(t, loaded, panel.Title, target.Expr) {
				t.Errorf("panel %q has no data for %s", panel.Title, target.Expr)
			}
		}
	}
	if panels < 10 || d.UID == "" {
		t.Errorf("the dashboard %q has %d panels", d.UID, panels)
	}

	listed := listedIn(t, "../../docs/operate/operations.md", regexp.MustCompile("(?m)^\\| `(felix_[a-z_]+)`.* \\| (.*?) \\|$"))
	for name := range ours(loaded) {
		if what, ok := listed[name]; !ok || what != loaded[name].GetHelp() {
			t.Errorf("docs/operate/operations.md has %q for %s, want %q", what, name, loaded[name].GetHelp())
		}
		delete(listed, name)
	}
	for name := range listed {
		// Development mode has no catalog, and the one tenant met no limit.
		if strings.HasPrefix(name, "felix_catalog_") || name == "felix_tenant_refused_total" {
			continue
		}
		t.Errorf("docs/operate/operations.md lists %s, which is not exported", name)
	}
}

// send sends bytes for which a broker ends the stream.
func send(ctx context.Context, t *testing.T, addr string, conf *tls.Config, b []byte) {
	t.Helper()
	c, err := quicx.Dial(ctx, addr, conf, quicx.Config{})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close(0, "")
	s, err := c.OpenStream(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Send().Write(b); err != nil {
		t.Fatal(err)
	}
	_, _ = s.Recv().Read(make([]byte, 1)) // until the broker ends the stream
}

// listedIn returns what the first group of a pattern matches in a file, each with what the last group matches.
func listedIn(t *testing.T, path string, pattern *regexp.Regexp) map[string]string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	all := make(map[string]string)
	for _, m := range pattern.FindAllStringSubmatch(string(b), -1) {
		all[m[1]] = m[len(m)-1]
	}
	return all
}

// docs/operate/operations.md lists every event that is logged, found in the source: messages are constants.
func TestEventsAreListed(t *testing.T) {
	listed := listedIn(t, "../../docs/operate/operations.md", regexp.MustCompile("(?m)^\\| `([a-z_]+)` \\| (?:debug|info|warn|error)"))
	logged := make(map[string]bool)
	for _, dir := range []string{"../../broker", "../../catalog", "../../internal", "."} {
		err := filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
			if dir == "../../catalog" && errors.Is(err, fs.ErrNotExist) {
				return nil
			}
			if err != nil || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
				return err
			}
			file, err := parser.ParseFile(token.NewFileSet(), path, nil, 0)
			if err != nil {
				return err
			}
			ast.Inspect(file, func(n ast.Node) bool {
				if message, ok := logCall(n); ok {
					text, err := strconv.Unquote(message)
					if err != nil {
						t.Errorf("%s: a log message is not constant", path)
					}
					logged[strings.ReplaceAll(text, " ", "_")] = true
				}
				return true
			})
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	for event := range logged {
		if listed[event] == "" {
			t.Errorf("docs/operate/operations.md does not list %s", event)
		}
		delete(listed, event)
	}
	for event := range listed {
		t.Errorf("docs/operate/operations.md lists %s, which nothing logs", event)
	}
}

// logCall returns the message of a call such as b.log.Info("message", ...). It is empty if it is no literal.
func logCall(n ast.Node) (message string, ok bool) {
	call, ok := n.(*ast.CallExpr)
	if !ok || len(call.Args) == 0 {
		return "", false
	}
	method, ok := call.Fun.(*ast.SelectorExpr)
	if !ok || !slices.Contains([]string{"Debug", "Info", "Warn", "Error"}, method.Sel.Name) {
		return "", false
	}
	var receiver string
	switch x := method.X.(type) {
	case *ast.Ident:
		receiver = x.Name
	case *ast.SelectorExpr:
		receiver = x.Sel.Name
	}
	if !strings.EqualFold(receiver, "log") && receiver != "Logger" {
		return "", false
	}
	if literal, ok := call.Args[0].(*ast.BasicLit); ok {
		message = literal.Value
	}
	return message, true
}
