package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/dustin/go-humanize"
	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
	"github.com/spf13/cobra"

	"github.com/felix-mq/felix/broker"
)

// snapshot is a broker at one moment.
type snapshot struct {
	Time          time.Time            `json:"time"`
	Addr          string               `json:"addr,omitempty"` // of the broker, if the context says that the metrics are of it
	MetricsURL    string               `json:"metrics_url"`
	Started       *time.Time           `json:"started,omitempty"`
	Restarts      int                  `json:"restarts"` // that were seen since the command began
	Connections   float64              `json:"connections"`
	Subscriptions float64              `json:"subscriptions"`
	Published     float64              `json:"published_events"`
	Delivered     float64              `json:"delivered_events"`
	Dropped       float64              `json:"dropped_events"`
	RetainedBytes float64              `json:"retained_bytes"`
	CacheEntries  float64              `json:"cache_entries"`
	Streams       []broker.StreamStats `json:"streams"`
}

// topRows bounds the streams that a table shows: those with the most events.
const topRows = 40

func (a *app) newTop() *cobra.Command {
	format := formatTable
	var once bool
	var interval time.Duration
	c := &cobra.Command{
		Use:   "top",
		Short: "Watch a broker: streams, subscriptions, lag and drops",
		Long: `Watch a broker by its metrics: connections, subscriptions, events, and for each stream its subscriptions, how many
bytes wait in the longest of their queues (lag), and what the present subscriptions have lost. It goes on until an
interrupt, over restarts of the broker too, and shows at the top which broker that is.

The context says where the metrics are; for a broker of --addr, --metrics-url does, and without it port 8080 of the
same host is asked. --output json is one array, or one object with --once; ndjson is an object per line.`,
		Example: `  felix top
  felix top --once --output json`,
		Args: arguments(0, 0),
		RunE: func(c *cobra.Command, _ []string) error {
			if interval < 100*time.Millisecond {
				return usageError{error: fmt.Errorf("--interval is at least 100ms, not %v", interval)}
			}
			w := c.OutOrStdout()
			if once {
				now, err := a.look(c.Context())
				if err != nil {
					return err
				}
				if format != formatTable {
					return printJSON(w, format, now)
				}
				return now.print(w, nil)
			}
			return a.watchBroker(c, interval, format)
		},
	}
	c.Flags().BoolVar(&once, "once", false, "look once, and end")
	c.Flags().DurationVar(&interval, "interval", 2*time.Second, "time between looks")
	format.bind(c)
	return c
}

// watchBroker looks at the broker until an interrupt. The first look has to succeed; later the broker may go and come
// back, as the context then says.
func (a *app) watchBroker(c *cobra.Command, interval time.Duration, format format) (err error) {
	ctx, w := c.Context(), c.OutOrStdout()
	list := jsonList{w: w, format: format}
	if format != formatTable {
		defer func() { err = errors.Join(err, list.end()) }()
	}
	ticker := time.NewTicker(interval)
	defer ticker.Stop()
	var before *snapshot
	for away := false; ; {
		now, err := a.look(ctx)
		switch {
		case err != nil && ctx.Err() != nil:
			return nil // an interrupt is the ordinary end
		case err != nil && before != nil: // also in the middle of an answer
			if !away {
				fmt.Fprintf(c.ErrOrStderr(), "%s; looking again every %v\n", plain(err), interval)
			}
			away = true
		case err != nil:
			return err
		default:
			away = false
			now.Restarts = now.restarts(before)
			if format != formatTable {
				err = list.add(now)
			} else {
				if isTerminal(w) {
					fmt.Fprint(w, "\x1b[H\x1b[2J") // from the top of an empty screen
				}
				err = now.print(w, before)
			}
			if err != nil {
				return err
			}
			before = now
		}
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		}
	}
}

// look takes a snapshot of the broker that flags, variables and the context lead to.
func (a *app) look(ctx context.Context) (*snapshot, error) {
	r, err := a.resolve()
	if err != nil {
		return nil, err
	}
	return takeSnapshot(ctx, r)
}

// restarts returns how many restarts were seen up to now.
func (s *snapshot) restarts(before *snapshot) int {
	if before == nil {
		return 0
	}
	if s.restarted(before) {
		return before.Restarts + 1
	}
	return before.Restarts
}

// restarted reports whether the broker has restarted since an earlier snapshot: its start is another, or a counter
// fell.
func (s *snapshot) restarted(before *snapshot) bool {
	if s.Started != nil && before.Started != nil {
		return !s.Started.Equal(*before.Started)
	}
	return s.Published < before.Published || s.Delivered < before.Delivered || s.Dropped < before.Dropped
}

// takeSnapshot asks a broker's HTTP server.
func takeSnapshot(ctx context.Context, r *resolved) (*snapshot, error) {
	streams, err := url.Parse(r.MetricsURL)
	if err != nil {
		return nil, usageError{error: fmt.Errorf("--metrics-url: %w", err)}
	}
	streams.Path = broker.StreamsPath
	ctx, cancel := context.WithTimeout(ctx, r.timeout)
	defer cancel()
	get, err := r.metricsClient()
	if err != nil {
		return nil, err
	}
	s := &snapshot{Time: time.Now(), MetricsURL: r.MetricsURL}
	if r.origin("metrics-url") == r.origin("addr") {
		s.Addr = r.Addr
	}
	err = get(ctx, r.MetricsURL, func(body io.Reader) error {
		parser := expfmt.NewTextParser(model.LegacyValidation)
		families, err := parser.TextToMetricFamilies(body)
		s.Connections, s.Subscriptions = sum(families, "felix_connections"), sum(families, "felix_subscriptions")
		s.Published, s.Delivered = sum(families, "felix_published_events_total"), sum(families, "felix_delivered_events_total")
		s.Dropped, s.RetainedBytes = sum(families, "felix_dropped_events_total"), sum(families, "felix_retained_bytes")
		s.CacheEntries = sum(families, "felix_cache_entries")
		if seconds := sum(families, "process_start_time_seconds"); seconds > 0 {
			started := time.UnixMilli(int64(seconds * 1e3)).UTC()
			s.Started = &started
		}
		return err
	})
	if err == nil {
		err = get(ctx, streams.String(), func(body io.Reader) error { return json.NewDecoder(body).Decode(&s.Streams) })
	}
	return s, err
}

// getter reads what is at a URL.
type getter func(ctx context.Context, from string, read func(io.Reader) error) error

// metricsClient returns what asks the server of metrics, with its token and the authorities that the broker is
// trusted with.
func (r *resolved) metricsClient() (getter, error) {
	conf, err := r.tls()
	if err != nil {
		return nil, err
	}
	token := ""
	if r.MetricsToken != "" {
		text, err := os.ReadFile(r.MetricsToken)
		if err != nil {
			return nil, usagef("--metrics-token-file: %w", err)
		}
		token = strings.TrimSpace(string(text))
	}
	return func(ctx context.Context, from string, read func(io.Reader) error) error {
		client := http.Client{Transport: &http.Transport{TLSClientConfig: conf, DisableKeepAlives: true, Proxy: http.ProxyFromEnvironment}}
		request, err := http.NewRequestWithContext(ctx, http.MethodGet, from, nil)
		if err != nil {
			return usagef("--metrics-url: %w", err)
		}
		if token != "" {
			request.Header.Set("Authorization", "Bearer "+token)
		}
		response, err := client.Do(request)
		if err != nil {
			return connectError{err, from, flagMetricsURL}
		}
		defer func() { _ = response.Body.Close() }()
		switch response.StatusCode {
		case http.StatusOK:
		case http.StatusUnauthorized, http.StatusForbidden:
			return connectError{fmt.Errorf("%s: %q: --metrics-token-file names the token", from, response.Status), from, flagMetricsURL}
		default:
			return connectError{fmt.Errorf("%s: %q", from, response.Status), from, flagMetricsURL}
		}
		if err := read(io.LimitReader(response.Body, maxMetrics)); err != nil {
			return fmt.Errorf("%s: %w", from, err)
		}
		return nil
	}, nil
}

// maxMetrics bounds what is read: a broker with many streams has some MiB.
const maxMetrics = 256 << 20

// sum adds up a metric over all its labels.
func sum(families map[string]*dto.MetricFamily, name string) (n float64) {
	for _, m := range families[name].GetMetric() {
		n += m.GetCounter().GetValue() + m.GetGauge().GetValue()
	}
	return n
}

// print prints the snapshot, with rates since the one before, if there is one.
func (s *snapshot) print(w io.Writer, before *snapshot) error {
	rate := func(now, then float64) string { return "-" }
	events := make(map[string]uint64) // of each stream, before
	if before == nil {
		before = &snapshot{}
	} else {
		seconds := s.Time.Sub(before.Time).Seconds()
		if s.restarted(before) { // it counts from 0 since it has started
			if s.Started != nil {
				seconds = min(seconds, s.Time.Sub(*s.Started).Seconds())
			}
			before = &snapshot{}
		}
		rate = func(now, then float64) string {
			if now < then { // the stream was made again
				then = 0
			}
			return humanize.SIWithDigits((now-then)/max(seconds, 1e-3), 1, "/s")
		}
		for _, stream := range before.Streams {
			events[stream.Tenant+"/"+stream.Namespace+"/"+stream.Stream] = stream.Events
		}
	}
	head := "metrics " + s.MetricsURL
	if s.Addr != "" {
		head = "broker " + s.Addr + ", " + head
	}
	if s.Started != nil {
		head += ", started " + humanize.Time(*s.Started)
	}
	if s.Restarts > 0 {
		head += ", " + plural(s.Restarts, "restart") + " seen"
	}
	fmt.Fprintf(w, "%s\n\n", escape(head))
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintf(t, "connections\t%.0f\tpublished\t%.0f\t%s\n", s.Connections, s.Published, rate(s.Published, before.Published))
	fmt.Fprintf(t, "subscriptions\t%.0f\tdelivered\t%.0f\t%s\n", s.Subscriptions, s.Delivered, rate(s.Delivered, before.Delivered))
	fmt.Fprintf(t, "retained\t%s\tdropped\t%.0f\t%s\n", humanize.IBytes(uint64(s.RetainedBytes)), s.Dropped, rate(s.Dropped, before.Dropped))
	if err := t.Flush(); err != nil {
		return asOutput(err)
	}
	fmt.Fprintln(t, "\nSTREAM\tSUBS\tEVENTS\tRATE\tDROPPED\tLAG")
	rows := slices.SortedStableFunc(slices.Values(s.Streams), func(a, b broker.StreamStats) int { return cmp.Compare(b.Events, a.Events) })
	for i, stream := range rows {
		if i == topRows {
			fmt.Fprintf(t, "and %d others\n", len(rows)-topRows)
			break
		}
		name := stream.Tenant + "/" + stream.Namespace + "/" + stream.Stream
		fmt.Fprintf(t, "%s\t%d\t%d\t%s\t%d\t%s\n", escape(name), stream.Subscriptions, stream.Events,
			rate(float64(stream.Events), float64(events[name])), stream.DroppedEvents, humanize.IBytes(uint64(stream.LagBytes)))
	}
	return asOutput(t.Flush())
}
