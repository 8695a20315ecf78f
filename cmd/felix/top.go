package main

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
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
		Long: `Watch a broker by its metrics: connections, subscriptions, events, and for each stream its subscriptions, how many bytes wait
in the longest of their queues (lag), and what the present subscriptions have lost. It goes on until an interrupt.`,
		Example: `  felix top
  felix top --once --output json`,
		Args: arguments(0, 0),
		RunE: func(c *cobra.Command, _ []string) error {
			if interval < 100*time.Millisecond {
				return usageError{error: fmt.Errorf("--interval is at least 100ms, not %v", interval)}
			}
			r, err := a.resolve()
			if err != nil {
				return err
			}
			w := c.OutOrStdout()
			ticker := time.NewTicker(interval)
			defer ticker.Stop()
			var before *snapshot
			for {
				now, err := takeSnapshot(c.Context(), r)
				if err != nil && !once && c.Context().Err() != nil {
					return nil // an interrupt is the ordinary end
				}
				if err != nil {
					return err
				}
				if format != formatTable {
					err = printJSON(w, format, now)
				} else {
					if !once && isTerminal(w) {
						fmt.Fprint(w, "\x1b[H\x1b[2J") // from the top of an empty screen
					}
					err = now.print(w, before)
				}
				if err != nil || once {
					return err
				}
				before = now
				select {
				case <-c.Context().Done():
					return nil
				case <-ticker.C:
				}
			}
		},
	}
	c.Flags().BoolVar(&once, "once", false, "look once")
	c.Flags().DurationVar(&interval, "interval", 2*time.Second, "time between looks")
	format.bind(c)
	return c
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
	s := &snapshot{Time: time.Now()}
	err = fetch(ctx, r.MetricsURL, func(body io.Reader) error {
		parser := expfmt.NewTextParser(model.LegacyValidation)
		families, err := parser.TextToMetricFamilies(body)
		s.Connections, s.Subscriptions = sum(families, "felix_connections"), sum(families, "felix_subscriptions")
		s.Published, s.Delivered = sum(families, "felix_published_events_total"), sum(families, "felix_delivered_events_total")
		s.Dropped, s.RetainedBytes = sum(families, "felix_dropped_events_total"), sum(families, "felix_retained_bytes")
		s.CacheEntries = sum(families, "felix_cache_entries")
		return err
	})
	if err == nil {
		err = fetch(ctx, streams.String(), func(body io.Reader) error { return json.NewDecoder(body).Decode(&s.Streams) })
	}
	return s, err
}

// fetch reads what is at a URL.
func fetch(ctx context.Context, from string, read func(io.Reader) error) error {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, from, nil)
	if err != nil {
		return usageError{error: fmt.Errorf("--metrics-url: %w", err)}
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return connectError{err, from, flagMetricsURL}
	}
	defer func() { _ = response.Body.Close() }()
	if response.StatusCode != http.StatusOK {
		return connectError{fmt.Errorf("%s: %s", from, response.Status), from, flagMetricsURL}
	}
	if err := read(response.Body); err != nil {
		return fmt.Errorf("%s: %w", from, err)
	}
	return nil
}

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
		rate = func(now, then float64) string { return humanize.SIWithDigits((now-then)/seconds, 1, "/s") }
		for _, stream := range before.Streams {
			events[stream.Tenant+"/"+stream.Namespace+"/"+stream.Stream] = stream.Events
		}
	}
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintf(t, "connections\t%.0f\tpublished\t%.0f\t%s\n", s.Connections, s.Published, rate(s.Published, before.Published))
	fmt.Fprintf(t, "subscriptions\t%.0f\tdelivered\t%.0f\t%s\n", s.Subscriptions, s.Delivered, rate(s.Delivered, before.Delivered))
	fmt.Fprintf(t, "retained\t%s\tdropped\t%.0f\t%s\n", humanize.IBytes(uint64(s.RetainedBytes)), s.Dropped, rate(s.Dropped, before.Dropped))
	if err := t.Flush(); err != nil {
		return err
	}
	fmt.Fprintln(t, "\nSTREAM\tSUBS\tEVENTS\tRATE\tDROPPED\tLAG")
	rows := slices.SortedStableFunc(slices.Values(s.Streams), func(a, b broker.StreamStats) int { return cmp.Compare(b.Events, a.Events) })
	for i, stream := range rows {
		if i == topRows {
			fmt.Fprintf(t, "and %d others\n", len(rows)-topRows)
			break
		}
		name := stream.Tenant + "/" + stream.Namespace + "/" + stream.Stream
		fmt.Fprintf(t, "%s\t%d\t%d\t%s\t%d\t%s\n", name, stream.Subscriptions, stream.Events,
			rate(float64(stream.Events), float64(events[name])), stream.DroppedEvents, humanize.IBytes(uint64(stream.LagBytes)))
	}
	return t.Flush()
}
