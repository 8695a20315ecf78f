package loadgen

import (
	"crypto/tls"
	"errors"
	"math"
	"strings"
	"testing"
	"time"
)

func TestDefaults(t *testing.T) {
	if err := (Config{}).Validate(); err != nil {
		t.Fatalf("the zero value is refused: %v", err)
	}
	c := Config{}.withDefaults()
	if c.Fanout != 1 || c.Payload != 256 || c.Kind != Random || c.Batch != 64 || c.Window != 8 || c.Conns != 1 ||
		c.Duration != 5*time.Second || c.MaxDuration != time.Minute || c.Processes != 1 {
		t.Errorf("defaults are %+v", c)
	}
	if c := (Config{Duration: time.Second}).withDefaults(); c.MaxDuration != time.Second {
		t.Errorf("a duration of 1 s may last %v", c.MaxDuration)
	}
	if c := (Config{Rate: 1}).withDefaults(); c.Window != Unbounded {
		t.Errorf("an open loop has a window of %d", c.Window)
	}
	if c := (Config{Fanout: 3, SlowSubs: 2}).withDefaults(); c.Conns != 5 {
		t.Errorf("5 subscriptions have %d connections", c.Conns)
	}
}

func TestValidate(t *testing.T) {
	target := &Target{Addr: "x:1", Tenant: "t", Namespace: "n", Stream: "s", Token: "k", TLS: &tls.Config{}}
	for name, tc := range map[string]struct {
		cfg  Config
		want string // in the message; empty means valid
	}{
		"fanout":                  {Config{Fanout: -1}, "fanout -1"},
		"payload":                 {Config{Payload: 15}, "payload of 15 bytes has no room for the stamp of 16"},
		"smallest payload":        {Config{Payload: 16}, ""},
		"kind":                    {Config{Kind: 9}, "payload kind 9"},
		"batch":                   {Config{Batch: -2}, "batch -2"},
		"frame":                   {Config{Batch: 4096, Payload: 4096}, "does not fit into a frame"},
		"large frame":             {Config{Batch: 4000, Payload: 4096}, ""},
		"overflow":                {Config{Batch: math.MaxInt, Payload: math.MaxInt}, "is not between"},
		"window":                  {Config{Window: -2}, "window -2"},
		"unbounded":               {Config{Window: Unbounded}, ""},
		"rate":                    {Config{Rate: math.NaN()}, "rate NaN"},
		"rate and window":         {Config{Rate: 10, Window: 8}, "exclude each other"},
		"total":                   {Config{Total: -1}, "total -1"},
		"total and duration":      {Config{Total: 1 << 20, Duration: time.Second}, "exclude each other"},
		"small total":             {Config{Total: 16383}, "at least 16384 events"},
		"sufficient total":        {Config{Total: 16384}, ""},
		"small unbounded total":   {Config{Window: Unbounded, Total: 16384}, "run too small"},
		"small open loop":         {Config{Rate: 10, Total: 1}, ""},
		"small closed loop":       {Config{Window: 1, Batch: 1, Total: 32}, ""},
		"processes":               {Config{Processes: 3}, "processes: 3"},
		"processes and target":    {Config{Processes: 2, Target: target}, "there is one at x:1"},
		"target":                  {Config{Target: target}, ""},
		"empty target":            {Config{Target: &Target{}}, "TLS configuration is missing"},
		"slow without window":     {Config{SlowSubs: 1, Window: Unbounded}, "slow subscriptions need"},
		"slow with window":        {Config{SlowSubs: 1}, ""},
		"slow with rate":          {Config{SlowSubs: 1, Rate: 10}, ""},
		"slow with allowed drops": {Config{SlowSubs: 1, Window: Unbounded, AllowDrops: true}, ""},
		"negative slow":           {Config{SlowSubs: -1}, "slow subscriptions: -1"},
		"negative times":          {Config{Duration: -1, Warmup: -1, IdleTimeout: -1}, "idle timeout -1ns"},
	} {
		t.Run(name, func(t *testing.T) {
			err := tc.cfg.Validate()
			switch {
			case tc.want == "" && err != nil:
				t.Errorf("refused: %v", err)
			case tc.want != "" && (err == nil || !strings.Contains(err.Error(), tc.want)):
				t.Errorf("got %v, want %q in it", err, tc.want)
			}
		})
	}
	t.Run("all at once", func(t *testing.T) {
		err := Config{Fanout: -1, Payload: 1, Batch: -1, Target: &Target{}}.Validate()
		if n := strings.Count(err.Error(), "\n") + 1; n != 7 {
			t.Errorf("%d problems, want 7:\n%v", n, err)
		}
	})
}

func TestCheckVolume(t *testing.T) {
	for name, tc := range map[string]struct {
		cfg    Config
		needed int64 // events
	}{
		"window":      {Config{Window: 4, Batch: 10, Payload: 100}, 32 * 4 * 10},
		"closed loop": {Config{Window: 1, Batch: 1, Payload: 1024}, 32},
		"unbounded":   {Config{Window: Unbounded, Payload: 4096}, 32 * transportBytes / 4096},
		"open loop":   {Config{Rate: 1}, 0},
	} {
		t.Run(name, func(t *testing.T) {
			c := tc.cfg.withDefaults()
			if err := c.checkVolume(tc.needed); err != nil {
				t.Errorf("%d events are refused: %v", tc.needed, err)
			}
			if tc.needed == 0 {
				return
			}
			var small *TooSmallError
			if err := c.checkVolume(tc.needed - 1); !errors.As(err, &small) || small.NeededEvents != tc.needed {
				t.Errorf("%d events: got %v, want to be told %d", tc.needed-1, err, tc.needed)
			}
		})
	}
}
