package isolation

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/felix-mq/felix/catalog"
	"github.com/felix-mq/felix/codec"
)

func httpSilent(ctx context.Context, a *attacker) {
	a.crowd(ctx, 264, 16, func(int) {
		d := net.Dialer{Timeout: time.Second}
		c := must(d.DialContext(ctx, "tcp", a.HTTP))
		a.atTheEnd(func() { _ = c.Close() })
	})
}

func foreignHost(ctx context.Context, a *attacker) {
	_, port, err := net.SplitHostPort(a.HTTP)
	check(err)
	hosts := []string{"evil.example", "evil.example:" + port, "127.0.0.1.evil.example", "localhost.evil.example:" + port}
	n := 0
	a.repeat(ctx, 1, 20*time.Millisecond, func() {
		n++
		path := []string{"/metrics", "/ready", "/debug/pprof/", "/"}[n/len(hosts)%4]
		req := must(http.NewRequestWithContext(ctx, http.MethodGet, "http://"+a.HTTP+path, http.NoBody))
		req.Host = hosts[n%len(hosts)]
		resp := must(probes.Do(req))
		_ = resp.Body.Close()
		if resp.StatusCode < http.StatusBadRequest {
			a.fault(fmt.Sprintf("%s is answered with %s to the host %s", path, resp.Status, req.Host))
		}
	})
}

// replace gives the broker another catalog and tells it.
func (a *attacker) replace(keyA []byte) {
	check(catalog.Write(a.Catalog, must(catalogOf(keyA, a.PublicB))))
	check(hangUp(a.PID))
}

func tenantRekeyed(ctx context.Context, a *attacker) {
	a.atTheEnd(func() { _ = attempt(func() { a.replace(a.SeedA) }) })
	c := a.dial(ctx, small())
	s := a.open(ctx, c, 0)
	publish := func(n int) error {
		return attempt(func() {
			must(s.Send().Write(codec.AppendPublish(nil, tenantA, namespace, streamOther, []byte("x"), codec.AckPerMessage, 1, true)))
			replies(ctx, s, n)
		})
	}
	if err := publish(2); err != nil {
		check(fmt.Errorf("before it is removed: %w", err))
	}
	a.replace(nil)
	check(pause(ctx, 500*time.Millisecond))
	a.replace(a.OtherA)
	// The new tenant is there when a new token is good.
	other := must(signer(tenantA, a.OtherA))
	fresh := must(token(tenantA, other, time.Now().Add(time.Hour)))
	old := a.token
	var err error
	for range 100 {
		a.token = fresh
		err = attempt(func() { a.known(ctx, c) })
		a.token = old
		if err == nil {
			break
		}
		check(pause(ctx, 20*time.Millisecond))
	}
	if err != nil {
		check(fmt.Errorf("with the new key: %w", err))
	}
	a.stands()
	if publish(1) == nil {
		a.fault("a stream of the removed tenant publishes to the one with its name")
	}
	a.did.Add(1)
}

// spoil puts something else in the place of the catalog, tells the broker, and puts the catalog back in the end.
func (a *attacker) spoil(ctx context.Context, put func(file string) error) {
	a.atTheEnd(func() { _ = attempt(func() { a.replace(a.SeedA) }) })
	file := a.Catalog + ".new"
	check(put(file))
	check(os.Rename(file, a.Catalog))
	a.repeat(ctx, 1, 500*time.Millisecond, func() { check(hangUp(a.PID)) })
}

func catalogFIFO(ctx context.Context, a *attacker) { a.spoil(ctx, makeFIFO) }

func catalogBomb(ctx context.Context, a *attacker) {
	a.spoil(ctx, func(file string) error {
		var b strings.Builder
		b.WriteString("l0: &l0 {a: b}\n")
		for i := range 30 {
			fmt.Fprintf(&b, "l%d: &l%d [%s]\n", i+1, i+1, strings.TrimSuffix(strings.Repeat(fmt.Sprintf("*l%d,", i), 10), ","))
		}
		b.WriteString("tenants: *l30\n")
		return os.WriteFile(file, []byte(b.String()), 0o600)
	})
}

func tokenEndsWhileWaiting(ctx context.Context, a *attacker) {
	c := a.dial(ctx, small())
	a.subscribe(ctx, c, codec.KnownExtensions(), streamBlock, codec.StartLatest)
	p := a.dial(ctx, small())
	// Tokens are accepted for another minute after their end.
	const lives = 2 * time.Second
	short := must(token(tenantA, a.signer, time.Now().Add(lives-time.Minute)))
	ends := time.Now().Add(lives)
	s := must(p.OpenStream(ctx))
	must(s.Send().Write(codec.AppendAuth(nil, tenantA, short, codec.KnownFlags, true, 0)))
	// It ends with a stream that does not take more: by the broker, because of the token.
	event := make([]byte, 64<<10)
	ended := make(chan error, 1)
	go func() {
		for {
			request := codec.AppendPublish(nil, tenantA, namespace, streamBlock, event, codec.AckPerMessage, 1, true)
			_ = s.Send().SetWriteDeadline(time.Now().Add(time.Minute))
			if _, err := s.Send().Write(request); err != nil {
				ended <- err
				return
			}
			a.did.Add(1)
		}
	}()
	const patience = 5 * time.Second
	select {
	case err := <-ended:
		a.try(err) // which is what is wanted
	case <-time.After(time.Until(ends) + patience):
		a.fault(fmt.Sprintf("a publish waits %v after the end of its token", patience))
	case <-ctx.Done():
	}
}
