package conformance_test

import (
	"context"
	"crypto/ed25519"
	"regexp"
	"testing"

	"github.com/felix-mq/felix/broker"
	"github.com/felix-mq/felix/conformance"
	"github.com/felix-mq/felix/internal/vfs"
)

// embedded starts a development broker and describes it.
func embedded(t *testing.T) (conformance.Target, conformance.Options) {
	t.Helper()
	_, key, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	pem, err := conformance.EncodeKey(key)
	if err != nil {
		t.Fatal(err)
	}
	cfg := broker.DefaultConfig()
	cfg.Bind = "127.0.0.1:0"
	cfg.Storage.FS, cfg.Storage.Dir = &vfs.Mem{}, "data"
	// Other names than the usual ones, so that nothing depends on those.
	d, err := broker.NewDev(cfg, broker.DevOptions{
		Tenant: "acme", Namespace: "shop", Streams: []string{"audit"}, Cache: "stock", Key: key,
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"orders", "returns"} {
		if err := d.AddStream("acme", "shop", name); err != nil {
			t.Fatal(err)
		}
	}
	ctx, stop := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- d.Serve(ctx) }()
	t.Cleanup(func() {
		stop()
		if err := <-served; err != nil {
			t.Errorf("broker: %v", err)
		}
	})
	target := conformance.Target{
		Addr: d.Addr().String(),
		TLS:  d.ClientTLS(),
		Fixture: conformance.Fixture{
			Tenant: "acme", Namespace: "shop", Stream: "orders", OtherStream: "returns", Cache: "stock", DurableStream: "audit",
			SigningKey: pem, KeyID: broker.DevKeyID,
		},
	}
	return target, conformance.Options{
		CreateStream: func(name string) error { return d.AddStream("acme", "shop", name) },
	}
}

// TestEmbedded runs the quick cases against a broker in this process.
func TestEmbedded(t *testing.T) {
	target, o := embedded(t)
	for _, c := range conformance.Cases() {
		t.Run(c.Title(), func(t *testing.T) {
			o := o
			o.Match = regexp.MustCompile("^" + regexp.QuoteMeta(c.ID) + " ")
			report := conformance.Run(t.Context(), target, o)
			if report.Err != nil {
				t.Fatal(report.Err)
			}
			for _, r := range report.Results {
				switch r.Status {
				case conformance.Failed:
					t.Errorf("expected %s\nsaw      %s", r.Expected, r.Seen)
				case conformance.Skipped:
					t.Skip(r.Reason)
				case conformance.Passed:
				}
			}
		})
	}
}

// TestAsReference runs the quick cases with the laxer expectations towards the reference, which a better broker meets
// too.
func TestAsReference(t *testing.T) {
	target, o := embedded(t)
	target.Fixture.Reference = true
	report := conformance.Run(t.Context(), target, o)
	if report.Err != nil {
		t.Fatal(report.Err)
	}
	for _, r := range report.Results {
		if r.Status == conformance.Failed {
			t.Errorf("%s %s: expected %s, saw %s", r.ID, r.Name, r.Expected, r.Seen)
		}
		if r.ID == "D35a" && r.Status != conformance.Skipped {
			t.Error("D35a would end the listener of the reference")
		}
	}
}

// TestRunIsCutShort ends a run in its middle, which must not look like success.
func TestRunIsCutShort(t *testing.T) {
	target, o := embedded(t)
	ctx, cancel := context.WithCancel(t.Context())
	o.OnResult = func(conformance.Result) { cancel() }
	report := conformance.Run(ctx, target, o)
	if report.OK() || len(report.Results) != 1 {
		t.Errorf("%d results, error %v", len(report.Results), report.Err)
	}
}

// TestRunWithoutBroker fails once, not once for each case.
func TestRunWithoutBroker(t *testing.T) {
	target, o := embedded(t)
	target.Fixture.Tenant = "nobody"
	report := conformance.Run(t.Context(), target, o)
	if report.OK() || len(report.Results) != 0 {
		t.Errorf("%d results, error %v", len(report.Results), report.Err)
	}
	target.Fixture.SigningKey = "no key"
	if report := conformance.Run(t.Context(), target, o); report.OK() {
		t.Error("an unusable fixture is OK")
	}
	target, o = embedded(t)
	o.Match = regexp.MustCompile("no such case")
	if report := conformance.Run(t.Context(), target, o); report.OK() {
		t.Error("a run of no case is OK")
	}
}
