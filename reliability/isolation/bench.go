package isolation

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/felix-mq/felix/internal/program"
)

// bench is a run of this program.
type bench struct {
	out      io.Writer
	progress program.Progress

	rounds   int
	duration time.Duration
	patience time.Duration // until all must be back
	binary   string
	set      []string
	profiles string
}

const (
	// standsWithin bounds the time for an attack to be set up, on which it is measured too.
	standsWithin = 40 * time.Second
	// warmup is for connections, code and memory that B itself needs.
	warmup = time.Second
	// window is how long B is watched at a time when an attack has ended.
	window = time.Second
)

// attacks makes the measurements and prints each row when it is there.
func (b *bench) attacks(ctx context.Context, chosen []attack) ([]*result, error) {
	dir, err := os.MkdirTemp("", "felix-isolation-")
	if err != nil {
		return nil, err
	}
	defer func() { _ = os.RemoveAll(dir) }()
	if b.binary == "" {
		b.progress.Say("building the broker")
		if b.binary, err = buildBroker(ctx, dir); err != nil {
			return nil, err
		}
	}
	fmt.Fprintln(b.out, rules())
	printHead(b.out)
	results := make([]*result, 0, len(chosen))
	for i, a := range chosen {
		b.progress.Say("%d of %d: %s", i+1, len(chosen), a.name)
		home := filepath.Join(dir, a.name)
		if err := os.Mkdir(home, 0o700); err != nil {
			return results, err
		}
		r, err := b.attack(ctx, a, home)
		if ctx.Err() != nil {
			return results, context.Cause(ctx)
		}
		if err != nil {
			r = judge(a, nil)
			r.Failures = append(r.Failures, err.Error())
		}
		r.print(b.out)
		results = append(results, r)
	}
	return results, nil
}

// attack measures one attack, on a broker of its own.
func (b *bench) attack(ctx context.Context, a attack, dir string) (*result, error) {
	s, err := startSite(ctx, b.binary, dir, a.name, slices.Concat(a.set, b.set))
	if err != nil {
		return nil, err
	}
	l, err := newLoad(ctx, s)
	if err != nil {
		return nil, errors.Join(err, s.stop())
	}
	var rounds []round
	for range b.rounds {
		r, roundErr := b.round(ctx, a, s, l)
		if roundErr != nil {
			err = roundErr
			break
		}
		rounds = append(rounds, r)
		b.progress.Say("   %s; %s; %d errors, %.0f MiB, back %.1f s %s", r.Did, describe(r), len(r.Errors), mib(r.Peak), r.Back.Seconds(), r.Away)
	}
	closed := l.close()
	ended := s.stop()
	if err != nil || closed != nil {
		return nil, errors.Join(err, closed, ended)
	}
	r := judge(a, rounds)
	if ended != nil {
		r.Failures = append(r.Failures, ended.Error())
	}
	return r, nil
}

func describe(r round) string {
	return fmt.Sprintf("p99 without and with the attack: deliver %.1f, %.1f, get %.1f, %.1f, connect %.1f, %.1f ms",
		ms(r.Control.Deliver), ms(r.Under.Deliver), ms(r.Control.Get), ms(r.Under.Get), ms(r.Control.Connect), ms(r.Under.Connect))
}

// under runs B's load while an attack is set up and then for as long as each measurement lasts.
func (b *bench) under(ctx context.Context, l *load, at *process) *phase {
	stop, cancel := context.WithTimeout(ctx, standsWithin+b.duration)
	defer cancel()
	go func() {
		at.awaitStanding(stop)
		if pause(stop, b.duration) == nil {
			cancel()
		}
	}()
	return l.run(ctx, stop)
}

// during runs B's load for d.
func (l *load) during(ctx context.Context, d time.Duration) *phase {
	stop, cancel := context.WithTimeout(ctx, d)
	defer cancel()
	return l.run(ctx, stop)
}

// round measures without and with the attack, and then how soon all is back.
func (b *bench) round(ctx context.Context, a attack, s *site, l *load) (r round, err error) {
	l.during(ctx, warmup)
	control := l.during(ctx, b.duration)
	if len(control.errors) > 0 {
		return r, fmt.Errorf("without an attack B fails: %s", most(control.errors))
	}
	r.Control, r.Before = control.latencies(), s.resident()

	s.peak.Store(0)
	watchCtx, stopWatching := context.WithCancel(ctx)
	defer stopWatching()
	go s.watch(watchCtx)
	at, err := startAttacker(s.job)
	if err != nil {
		return r, err
	}
	under := b.under(ctx, l, at)
	connections := s.metric(ctx, "felix_connections")
	if b.profiles != "" {
		if err := s.profile(ctx, filepath.Join(b.profiles, a.name+".pb.gz")); err != nil {
			b.progress.Say("   no profile: %v", err)
		}
	}
	r.Did, r.Faults = at.stop()
	ended := time.Now()
	r.Under, r.Calls, r.Errors = under.latencies(), under.calls, under.errors
	if err := s.forgetA(ctx); err != nil {
		r.Faults = append(r.Faults, err.Error())
	}
	allowed := r.Control.allowed()
	for {
		w := l.during(ctx, window)
		r.After, r.Back = s.resident(), time.Since(ended)
		if r.IsBack, r.Away = back(w.latencies(), allowed, r.Before, r.After); r.IsBack && len(w.errors) > 0 {
			r.IsBack, r.Away = false, most(w.errors)
		}
		if r.IsBack || r.Back > b.patience {
			break
		}
		if ctx.Err() != nil {
			return r, context.Cause(ctx)
		}
	}
	stopWatching()
	r.Peak, r.Bound = s.peak.Load(), s.bound(max(connections, 1))
	r.Faults = append(r.Faults, l.keeps(ctx)...)
	return r, nil
}
