package main

import (
	"context"
	"errors"

	"github.com/spf13/pflag"

	"github.com/felix-mq/felix/loadgen"
	"github.com/felix-mq/felix/loadgen/report"
)

// cache is `loadgen cache`.
func cache(c *command) {
	flags := loadgen.DefaultCacheConfig()
	var table bool
	c.group("Load", func(f *pflag.FlagSet) {
		f.Float64Var(&flags.GetRatio, "get-ratio", flags.GetRatio, "part of the calls that are gets")
		f.IntVar(&flags.Keys, "keys", flags.Keys, "keys in use, stored before the run")
		f.BoolVar(&flags.Absent, "absent", false, "do not store them: every get is a miss until a put")
		f.Float64Var(&flags.Zipf, "zipf", 0, "`exponent` of the keys' popularity, above 1; 0 is uniform")
		f.Var((*sizeValue)(&flags.Value), "value", "`size` of a value in bytes or with a unit, as in 4KiB")
		f.DurationVar(&flags.TTL, "ttl", flags.TTL, "lifetime of an entry; 0 is for ever")
		f.IntVar(&flags.Concurrency, "concurrency", flags.Concurrency, "callers, each with one call in flight")
		f.Float64Var(&flags.Rate, "rate", 0, "`calls` per second of an open loop; latency counts from when a call is due, a free caller or not")
		f.IntVar(&flags.Pipeline, "pipeline", flags.Pipeline, "keys of one get")
		f.IntVar(&flags.Conns, "conns", flags.Conns, "connections of the client")
		f.IntVar(&flags.Streams, "streams", flags.Streams, "streams on each of them")
		f.BoolVar(&flags.JSON, "json-frames", false, "a client without extensions: JSON and base64")
		f.DurationVar(&flags.Spin, "spin", 0, "time that the client polls its sockets before it sleeps")
		f.Uint64Var(&flags.Seed, "seed", 0, "seed of keys and values")
		sweepable(f)
	})
	c.group("Length", func(f *pflag.FlagSet) {
		f.DurationVar(&flags.Duration, "duration", flags.Duration, "measured time")
		f.DurationVar(&flags.Warmup, "warmup", flags.Warmup, "time before that")
		f.DurationVar(&flags.Timeout, "timeout", flags.Timeout, "cancel a call after this time, and count it as hung; 0 leaves that to the client")
	})
	c.group("In place of a run", func(f *pflag.FlagSet) {
		f.BoolVar(&table, "table", false, "put, get hit and get miss of 0, 256 and 4096 bytes, as one table")
	})
	c.outputFlags()
	c.targetFlags("cache", "primary")
	c.head, c.tail = cacheHead, "\nA broker that loadgen starts is tuned by the FELIX_* variables of cmd/broker.\n"+sweepTail+compareTail+exitTail
	config := func() (loadgen.CacheConfig, error) {
		cfg := flags
		cfg.Interval = c.output.interval
		var err error
		cfg.Target, cfg.Processes, cfg.Tune, err = c.broker()
		return cfg, errors.Join(err, c.nameFlags(cfg.Validate()))
	}
	c.prepare = func() (runner, error) {
		cfg, err := config()
		return func(ctx context.Context, o loadgen.Observer) (report.Result, error) {
			cfg.Observer = o
			return present(loadgen.RunCache(ctx, cfg))
		}, err
	}
	c.instead = func(ctx context.Context) (bool, error) {
		if !table {
			return false, nil
		}
		cfg, err := config() // has been valid
		if err == nil {
			err = loadgen.CacheTable(ctx, cfg, c.stdout)
		}
		return true, err
	}
}

const cacheHead = `Usage: loadgen cache [flags]

Loads the cache of a Felix broker with gets and puts and reports the latency of calls and the rate of keys.

  loadgen cache                                          32 callers, 9 of 10 calls are gets
  loadgen cache --rate 20000                             latency at a given load
  loadgen cache --concurrency 1,8,32 --value 256,4096 --out results
                                                         all six, with tables and plots
`
