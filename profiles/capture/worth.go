package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"time"

	"github.com/felix-mq/felix/internal/stats"
	"github.com/felix-mq/felix/loadgen/brokerproc"
)

// measureArg makes a build of this program measure itself.
const measureArg = "measure"

// result is what a build made of a scenario.
type result struct {
	PerSecond float64 // events delivered and values read
	CPU       float64 // of the broker for each, in microseconds
}

// measure runs every scenario once and prints the results.
func measure(ctx context.Context, duration time.Duration, stdout io.Writer) error {
	results := make([]result, len(scenarios))
	for i, s := range scenarios {
		var err error
		if results[i], err = s.measure(ctx, duration); err != nil {
			return fmt.Errorf("%s: %w", s.name, err)
		}
	}
	return json.NewEncoder(stdout).Encode(results)
}

func (s scenario) measure(ctx context.Context, duration time.Duration) (r result, err error) {
	broker, err := brokerproc.Start("FELIX_SUB_QUEUE_POLICY=block", "FELIX_QUIC_SPIN=0", "GOMAXPROCS=1")
	if err != nil {
		return r, err
	}
	defer func() { err = errors.Join(err, broker.Stop()) }()
	cpu, err := broker.CPUTime()
	if err != nil {
		return r, err
	}
	begin := time.Now()
	if err := s.run(ctx, broker, duration); err != nil {
		return r, err
	}
	took := time.Since(begin)
	after, err := broker.CPUTime()
	if err != nil {
		return r, err
	}
	_, delivered, err := operations(broker)
	return result{delivered / took.Seconds(), float64((after - cpu).Microseconds()) / delivered}, err
}

// worth builds this program, which is broker and client, without a profile and with the broker's, and lets both measure
// themselves alternately.
func worth(ctx context.Context, rounds int, duration time.Duration, stdout, stderr io.Writer) error {
	dir, err := os.MkdirTemp("", "felix-worth-")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(dir) }()
	builds := map[string]string{"off": "off", "on": brokerFile}
	for name, pgo := range builds {
		fmt.Fprintln(stderr, "building with -pgo="+pgo)
		cmd := exec.CommandContext(ctx, "go", "build", "-pgo="+pgo, "-o", filepath.Join(dir, name), "./profiles/capture")
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("building: %w\n%s", err, out)
		}
	}
	rates, costs := make([][]float64, len(scenarios)), make([][]float64, len(scenarios))
	for round := range rounds {
		fmt.Fprintf(stderr, "round %d of %d\n", round+1, rounds)
		order := []string{"off", "on"}
		if round%2 == 1 {
			slices.Reverse(order)
		}
		measured := make(map[string][]result)
		for _, name := range order {
			cmd := exec.CommandContext(ctx, filepath.Join(dir, name), measureArg, "--duration", duration.String())
			cmd.Stderr = stderr
			out, err := cmd.Output()
			if err != nil {
				return fmt.Errorf("measuring: %w", err)
			}
			var results []result
			if err := json.Unmarshal(out, &results); err != nil {
				return err
			}
			measured[name] = results
		}
		for i := range scenarios {
			on, off := measured["on"][i], measured["off"][i]
			rates[i] = append(rates[i], on.PerSecond/off.PerSecond)
			costs[i] = append(costs[i], on.CPU/off.CPU)
		}
	}
	fmt.Fprintf(stdout, "With the profile ÷ without, %d alternating rounds, median and range\n\n| %-12s | %-22s | %-26s |\n| :----------- | :--------------------- | :------------------------- |\n",
		rounds, "load", "delivered per second", "broker's time per delivery")
	for i, s := range scenarios {
		fmt.Fprintf(stdout, "| %-12s | %-22s | %-26s |\n", s.name, stats.Spread("%.2f", rates[i]), stats.Spread("%.2f", costs[i]))
	}
	return nil
}
