package main

import (
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/pprof/profile"
	"go.uber.org/goleak"

	"github.com/felix-mq/felix/loadgen/brokerproc"
)

// TestMain is also the broker's process.
func TestMain(m *testing.M) {
	brokerproc.Serve()
	goleak.VerifyTestMain(m)
}

// TestCommitted: what is committed is what this program makes, and knows the code that it is for.
func TestCommitted(t *testing.T) {
	for file, function := range map[string]string{
		brokerFile:  "github.com/felix-mq/felix/fanout.(*Topic).Publish",
		loadgenFile: "github.com/felix-mq/felix/client.(*Subscription).NextBatch",
	} {
		b, err := os.ReadFile(filepath.Join("..", "..", file))
		if err != nil {
			t.Fatal(err)
		}
		if len(b) > 300<<10 {
			t.Errorf("%s has %d bytes: keep it below 300 KiB", file, len(b))
		}
		p, err := profile.ParseData(b)
		if err != nil {
			t.Fatal(err)
		}
		if !knows(p, function) {
			t.Errorf("%s does not know %s: make profile SCENARIO=pgo", file, function)
		}
	}
}

func knows(p *profile.Profile, function string) bool {
	for _, f := range p.Function {
		if strings.HasPrefix(f.Name, function) {
			return true
		}
	}
	return false
}

func TestMakesBoth(t *testing.T) {
	t.Chdir(t.TempDir())
	for _, file := range []string{brokerFile, loadgenFile} {
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := makePGO(t.Context(), []scenario{scenarios[0], {name: "cache"}}, 100*time.Millisecond, io.Discard); err != nil {
		t.Fatal(err)
	}
	for _, file := range []string{brokerFile, loadgenFile} {
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := profile.ParseData(b); err != nil {
			t.Error(err)
		}
	}
}
