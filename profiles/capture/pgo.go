package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime/pprof"
	"time"

	"github.com/google/pprof/profile"

	"github.com/felix-mq/felix/loadgen/brokerproc"
)

// The files that go build takes for the two commands.
var (
	brokerFile  = filepath.Join("cmd", "broker", "default.pgo")
	loadgenFile = filepath.Join("cmd", "loadgen", "default.pgo")
)

// makePGO profiles a load that is to stand for all others, in the broker's process and in this one, and writes both
// files. What this program is itself built with does not matter: the compiler finds its way by names of functions and
// lines in them.
func makePGO(ctx context.Context, loads []scenario, duration time.Duration, stderr io.Writer) (err error) {
	broker, err := brokerproc.Start("FELIX_SUB_QUEUE_POLICY=block")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, broker.Stop()) }()
	if err := broker.StartCPUProfile(); err != nil {
		return err
	}
	var own bytes.Buffer
	if err := pprof.StartCPUProfile(&own); err != nil {
		return err
	}
	for _, s := range loads {
		if err == nil {
			fmt.Fprintln(stderr, s.name)
			err = s.run(ctx, broker, duration)
		}
	}
	pprof.StopCPUProfile()
	brokers, profileErr := broker.CPUProfile()
	if err := errors.Join(err, profileErr); err != nil {
		return err
	}
	owns, err := profile.ParseData(own.Bytes())
	if err != nil {
		return err
	}
	return errors.Join(write(brokerFile, brokers), write(loadgenFile, owns))
}

// write makes a profile small, as only functions and lines matter to the compiler, and replaces the file.
func write(file string, p *profile.Profile) error {
	if err := p.Aggregate(true, true, true, true, false, false); err != nil {
		return err
	}
	p, err := profile.Merge([]*profile.Profile{p}) // joins samples whose stacks do not differ any more
	if err != nil {
		return err
	}
	var b bytes.Buffer
	if err := p.Write(&b); err != nil {
		return err
	}
	return os.WriteFile(file, b.Bytes(), 0o644)
}
