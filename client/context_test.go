package client_test

import (
	"context"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/felix-mq/felix/client"
	"github.com/felix-mq/felix/client/internal/clienttest"
	"github.com/felix-mq/felix/client/nearcache"
	"github.com/felix-mq/felix/conformance/script"
	"github.com/felix-mq/felix/internal/relay"
)

// canceledCall is what a call has to work with: a client that is connected to a broker, with a subscription.
type canceledCall struct {
	p      *peer
	c      *client.Client
	pub    *client.Publisher
	sub    *client.Subscription
	cache  *client.Cache
	near   *nearcache.Cache
	silent string // the address
}

// big fills the windows of QUIC, so that sending it blocks.
var big = make([]byte, 8<<20)

// contextCalls are all calls that take a context. Each gets a client of its own whose broker has fallen silent, and
// something to wait for.
var contextCalls = map[string]func(t *canceledCall, ctx context.Context) error{
	"Connect": func(t *canceledCall, ctx context.Context) error {
		c, err := client.Connect(ctx, t.silent, t.p.options()...)
		if err == nil {
			_ = c.Close()
		}
		return err
	},
	"Client.Subscribe": func(t *canceledCall, ctx context.Context) error {
		_, err := t.c.Subscribe(ctx, "default", "demo")
		return err
	},
	"Client.Flush": func(t *canceledCall, ctx context.Context) error {
		t.pub.PublishAsync(t.p.ctx, nil, nil)
		return t.c.Flush(ctx)
	},
	"Publisher.Flush": func(t *canceledCall, ctx context.Context) error {
		t.pub.PublishAsync(t.p.ctx, nil, nil)
		return t.pub.Flush(ctx)
	},
	"Client.Drain": func(t *canceledCall, ctx context.Context) error {
		t.pub.PublishAsync(t.p.ctx, nil, nil)
		return t.c.Drain(ctx)
	},
	"Publisher.Publish": func(t *canceledCall, ctx context.Context) error { return t.pub.Publish(ctx, nil) },
	"Publisher.Send":    func(t *canceledCall, ctx context.Context) error { return t.pub.Send(ctx, big) },
	"Publisher.PublishAsync": func(t *canceledCall, ctx context.Context) error {
		var outcome clienttest.Outcome
		for range 3 { // one is being written, one is in a batch, and one has to wait
			outcome = clienttest.PublishAsync(ctx, t.pub, big)
		}
		return outcome.Wait(t.p.ctx)
	},
	"Subscription.Next":      func(t *canceledCall, ctx context.Context) error { _, err := t.sub.Next(ctx); return err },
	"Subscription.NextBatch": func(t *canceledCall, ctx context.Context) error { _, err := t.sub.NextBatch(ctx); return err },
	"Subscription.Events": func(t *canceledCall, ctx context.Context) error {
		for _, err := range t.sub.Events(ctx) {
			return err
		}
		return nil
	},
	"Subscription.Each": func(t *canceledCall, ctx context.Context) error {
		return t.sub.Each(ctx, func(client.Event) error { return nil })
	},
	"Cache.Watch": func(t *canceledCall, ctx context.Context) error {
		for _, err := range t.cache.Watch(ctx) {
			if err != nil {
				return err
			}
		}
		return nil
	},
	"nearcache.Cache.Get": func(t *canceledCall, ctx context.Context) error { _, err := t.near.Get(ctx, "k"); return err },
	"nearcache.Cache.AppendGet": func(t *canceledCall, ctx context.Context) error {
		_, err := t.near.AppendGet(ctx, nil, "k")
		return err
	},
	"nearcache.Cache.Put": func(t *canceledCall, ctx context.Context) error { return t.near.Put(ctx, "k", nil, client.NoExpiry) },
	"nearcache.Cache.PutIf": func(t *canceledCall, ctx context.Context) error {
		_, err := t.near.PutIf(ctx, "k", nil, client.NoExpiry, 0)
		return err
	},
	"nearcache.Cache.Delete": func(t *canceledCall, ctx context.Context) error { _, err := t.near.Delete(ctx, "k"); return err },
	"Cache.Get":              func(t *canceledCall, ctx context.Context) error { _, err := t.cache.Get(ctx, "k"); return err },
	"Cache.Put": func(t *canceledCall, ctx context.Context) error {
		return t.cache.Put(ctx, "k", nil, client.NoExpiry)
	},
	"Cache.PutIf": func(t *canceledCall, ctx context.Context) error {
		_, err := t.cache.PutIf(ctx, "k", nil, client.NoExpiry, 0)
		return err
	},
	"Cache.Delete": func(t *canceledCall, ctx context.Context) error { _, err := t.cache.Delete(ctx, "k"); return err },
	"Cache.GetMany": func(t *canceledCall, ctx context.Context) error {
		results := t.cache.GetMany(ctx, "k", "l")
		if !errors.Is(results[1].Err, context.Cause(ctx)) {
			return fmt.Errorf("the second key: %w", results[1].Err)
		}
		return results[0].Err
	},
}

// TestCanceledCalls cancels each call, before it begins and while the broker is silent: it ends with the reason, and
// nothing is left over.
func TestCanceledCalls(t *testing.T) {
	for _, name := range slices.Sorted(maps.Keys(contextCalls)) {
		for _, before := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s, canceled before: %v", name, before), func(t *testing.T) {
				testCanceledCall(t, contextCalls[name], before)
			})
		}
	}
}

func testCanceledCall(t *testing.T, do func(*canceledCall, context.Context) error, before bool) {
	p := newPeer(t)
	p.serve(script.NewNormal())
	silencer, err := relay.New(p.Addr())
	p.must(err)
	defer silencer.Close()
	c, err := client.Connect(p.ctx, silencer.Addr(), p.options()...)
	p.must(err)
	defer c.Close()
	sub, err := c.Subscribe(p.ctx, "default", "demo")
	p.must(err)
	defer sub.Close()
	cache := c.Cache("default", "primary")
	p.must(cache.Put(p.ctx, "warm", nil, client.NoExpiry))
	silencer.Silence(true)

	cause := errors.New("no longer wanted")
	ctx, cancel := context.WithCancelCause(p.ctx)
	defer cancel(nil)
	if before {
		cancel(cause)
	}
	done := make(chan error, 1)
	near, err := nearcache.New(cache, nearcache.Options{})
	p.must(err)
	defer near.Close()
	call := &canceledCall{p: p, c: c, pub: c.Publisher("default", "demo"), sub: sub, cache: cache, near: near, silent: silencer.Addr()}
	go func() { done <- do(call, ctx) }()
	if !before {
		// It is waiting by then, or it is not: what is expected is the same.
		time.Sleep(2 * time.Millisecond)
		cancel(cause)
	}
	select {
	case err := <-done:
		if !errors.Is(err, cause) {
			t.Errorf("got %v", err)
		}
	case <-time.After(10 * time.Second):
		t.Fatal("the call did not end")
	}
}

// testedElsewhere are calls with a context that need a real broker.
var testedElsewhere = map[string]string{"Subscription.Lag": "TestCanceledLag in felixtest"}

// TestContextCallsAreComplete looks for exported functions and methods with a context that contextCalls does not have.
func TestContextCallsAreComplete(t *testing.T) {
	files, err := filepath.Glob("*.go")
	if err != nil {
		t.Fatal(err)
	}
	near, err := filepath.Glob("nearcache/*.go")
	if err != nil {
		t.Fatal(err)
	}
	found := make(map[string]bool)
	for _, name := range append(files, near...) {
		if strings.HasSuffix(name, "_test.go") {
			continue
		}
		file, err := parser.ParseFile(token.NewFileSet(), name, nil, parser.SkipObjectResolution)
		if err != nil {
			t.Fatal(err)
		}
		for _, decl := range file.Decls {
			if f, ok := decl.(*ast.FuncDecl); ok && f.Name.IsExported() && takesContext(f.Type) {
				name := receiver(f) + f.Name.Name
				if !ast.IsExported(name) {
					continue
				}
				if file.Name.Name != "client" {
					name = file.Name.Name + "." + name
				}
				found[name] = true
			}
		}
	}
	for name := range found {
		if contextCalls[name] == nil && testedElsewhere[name] == "" {
			t.Errorf("%s takes a context and is not tested", name)
		}
	}
	for name := range contextCalls {
		if !found[name] {
			t.Errorf("%s does not exist", name)
		}
	}
}

func takesContext(f *ast.FuncType) bool {
	return slices.ContainsFunc(f.Params.List, func(p *ast.Field) bool {
		sel, ok := p.Type.(*ast.SelectorExpr)
		return ok && sel.Sel.Name == "Context"
	})
}

// receiver returns the name of the type of a method, with a dot.
func receiver(f *ast.FuncDecl) string {
	if f.Recv == nil {
		return ""
	}
	t := f.Recv.List[0].Type
	if star, ok := t.(*ast.StarExpr); ok {
		t = star.X
	}
	if id, ok := t.(*ast.Ident); ok {
		return id.Name + "."
	}
	return ""
}
