package main

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/felix-mq/felix/loadgen"
)

// briefCache is an open loop: however slow the machine is, its calls are made.
var briefCache = []string{"cache", "--rate=200", "--duration=300ms", "--warmup=1ms"}

func TestCacheExitCodes(t *testing.T) {
	for name, tc := range map[string]struct {
		args []string
		code int
		want string // on stderr
	}{
		"help":         {[]string{"--help"}, exitOK, "--get-ratio"},
		"unknown flag": {[]string{"--fanout=1"}, exitUsage, "unknown flag"},
		"no number":    {[]string{"--keys=many"}, exitUsage, "many"},
		"argument":     {[]string{"now"}, exitUsage, `unexpected argument "now"`},
		"several":      {[]string{"--get-ratio=2", "--keys=0"}, exitUsage, "0 keys"},
		"lifetime":     {[]string{"--ttl=-1s"}, exitUsage, "(--ttl)"},
		"processes":    {[]string{"--processes=3"}, exitUsage, "3 processes"},
		"table":        {[]string{"--table", "--pipeline=0"}, exitUsage, "pipeline of 0 keys"},
		"target flags": {[]string{"--insecure", "--cache=x"}, exitUsage, "--cache needs --addr"},
		"no such file": {[]string{"--addr=127.0.0.1:1", "--token=x", "--ca=nosuch.pem"}, exitUsage, "nosuch.pem"},
	} {
		t.Run(name, func(t *testing.T) {
			code, stdout, stderr := execute(t, program(t, append([]string{"cache"}, tc.args...)...))
			if code != tc.code || !strings.Contains(stderr, tc.want) || stdout != "" {
				t.Errorf("exit code %d, want %d, and %q on stderr\n%s\n%s", code, tc.code, tc.want, stdout, stderr)
			}
		})
	}
}

func TestCacheOutput(t *testing.T) {
	code, stdout, stderr := execute(t, program(t, append(briefCache, "--json", "--get-ratio=1", "--pipeline=4", "--processes=2")...))
	var res loadgen.CacheResult
	if err := json.Unmarshal([]byte(stdout), &res); code != exitOK || stderr != "" || err != nil {
		t.Fatalf("exit code %d, %v\n%s\n%s", code, err, stdout, stderr)
	}
	if res.Get.Calls == 0 || res.Get.Keys != 4*res.Get.Calls || res.Get.Hits != res.Get.Keys || res.Put.Calls != 0 {
		t.Errorf("got %s", stdout)
	}
	cmd := program(t, append(briefCache, "--json")...)
	cmd.Env = append(cmd.Env, "FELIX_SUB_QUEUE_POLICY=drop_old")
	code, stdout, stderr = execute(t, cmd)
	if code != exitOK || stderr != "" || !strings.Contains(stdout, `"policy":"drop_old"`) || !strings.Contains(stdout, `"gomaxprocs"`) {
		t.Errorf("exit code %d\n%s\n%s", code, stdout, stderr)
	}
	cmd = program(t, briefCache...)
	cmd.Env = append(cmd.Env, "FELIX_SUB_QUEUE_POLICY=sometimes")
	if code, stdout, stderr = execute(t, cmd); code != exitUsage || !strings.Contains(stderr, "sometimes") {
		t.Errorf("exit code %d\n%s\n%s", code, stdout, stderr)
	}
	code, stdout, stderr = execute(t, program(t, append(briefCache, "--get-ratio=0", "--json-frames")...))
	if code != exitOK || stderr != "" || !strings.HasPrefix(stdout, "put: n=") || !strings.Contains(stdout, "\nall: n=") || strings.Contains(stdout, "get:") {
		t.Errorf("exit code %d\n%s\n%s", code, stdout, stderr)
	}
	code, stdout, stderr = execute(t, program(t, "cache", "--table", "--duration=10ms", "--warmup=1ms"))
	if code != exitOK || stderr != "" || !strings.Contains(stdout, "\n| get miss | – | ") {
		t.Errorf("exit code %d\n%s\n%s", code, stdout, stderr)
	}
}
