package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os/signal"
	"syscall"

	"github.com/spf13/pflag"

	"github.com/felix-mq/felix/loadgen"
)

// runCache is `loadgen cache`.
func runCache(args []string, stdout, stderr io.Writer) int {
	cfg := loadgen.DefaultCacheConfig()
	var o options
	var table bool
	f := pflag.NewFlagSet("loadgen cache", pflag.ContinueOnError)
	f.SetOutput(stderr)
	f.SortFlags = false
	f.Float64Var(&cfg.GetRatio, "get-ratio", cfg.GetRatio, "part of the calls that are gets")
	f.IntVar(&cfg.Keys, "keys", cfg.Keys, "keys in use, stored before the run")
	f.BoolVar(&cfg.Absent, "absent", false, "do not store them: every get is a miss until a put")
	f.Float64Var(&cfg.Zipf, "zipf", 0, "`exponent` of the keys' popularity, above 1; 0 is uniform")
	f.IntVar(&cfg.Value, "value", cfg.Value, "`bytes` of a value")
	f.DurationVar(&cfg.TTL, "ttl", cfg.TTL, "lifetime of an entry; negative is for ever")
	f.IntVar(&cfg.Concurrency, "concurrency", cfg.Concurrency, "callers, each with one call in flight")
	f.IntVar(&cfg.Pipeline, "pipeline", cfg.Pipeline, "keys of one get")
	f.DurationVar(&cfg.Duration, "duration", cfg.Duration, "measured time")
	f.DurationVar(&cfg.Warmup, "warmup", cfg.Warmup, "time before that")
	f.Uint64Var(&cfg.Seed, "seed", 0, "seed of keys and values")
	f.IntVar(&cfg.Conns, "conns", cfg.Conns, "connections of the client")
	f.IntVar(&cfg.Streams, "streams", cfg.Streams, "streams on each of them")
	f.BoolVar(&cfg.JSON, "json-frames", false, "a client without extensions: JSON and base64")
	f.DurationVar(&cfg.Spin, "spin", 0, "time that the client polls its sockets before it sleeps")
	f.BoolVar(&table, "table", false, "put, get hit and get miss of 0, 256 and 4096 bytes, as one table")
	f.BoolVar(&o.json, "json", false, "print the result as one JSON object")
	f.IntVar(&cfg.Processes, "processes", cfg.Processes, "1 embeds a broker, 2 starts one as a process of its own")
	f.StringVar(&o.addr, "addr", "", "`host:port` of a broker that is there")
	f.StringVar(&o.tenant, "tenant", "", "its tenant")
	f.StringVar(&o.namespace, "namespace", "default", "its namespace")
	f.StringVar(&o.stream, "cache", "primary", "its cache")
	f.StringVar(&o.token, "token", "", "a token for it")
	f.StringVar(&o.authority, "ca", "", "`file` with its certificate authority")
	f.BoolVar(&o.insecure, "insecure", false, "do not verify its certificate")
	err := f.Parse(args)
	if errors.Is(err, pflag.ErrHelp) {
		return exitOK
	}
	if err == nil && f.NArg() > 0 {
		err = fmt.Errorf("unexpected argument %q", f.Arg(0))
	}
	if err == nil {
		err = cfg.Validate()
	}
	if err == nil && o.addr != "" {
		tlsConf, tlsErr := o.tls()
		err = tlsErr
		cfg.Target = &loadgen.Target{Addr: o.addr, Tenant: o.tenant, Namespace: o.namespace, Stream: o.stream, Token: o.token, TLS: tlsConf}
	}
	if err != nil {
		fmt.Fprintf(stderr, "loadgen: %v; see loadgen cache --help\n", err)
		return exitUsage
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	if table {
		err = loadgen.CacheTable(ctx, cfg, stdout)
	} else {
		var res *loadgen.CacheResult
		if res, err = loadgen.RunCache(ctx, cfg); err == nil {
			if o.json {
				err = json.NewEncoder(stdout).Encode(res)
			} else {
				err = res.WriteText(stdout)
			}
		}
	}
	if err != nil {
		fmt.Fprintln(stderr, err)
		return exitFailed
	}
	return exitOK
}
