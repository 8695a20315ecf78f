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

func httpSilent(ctx context.Context, a *attacker) error {
	a.crowd(ctx, 264, 16, func(int) error {
		d := net.Dialer{Timeout: time.Second}
		c, err := d.DialContext(ctx, "tcp", a.HTTP)
		if err == nil {
			a.atTheEnd(func() { _ = c.Close() })
		}
		return err
	})
	return nil
}

func foreignHost(ctx context.Context, a *attacker) error {
	_, port, err := net.SplitHostPort(a.HTTP)
	if err != nil {
		return err
	}
	hosts := []string{"evil.example", "evil.example:" + port, "127.0.0.1.evil.example", "localhost.evil.example:" + port}
	n := 0
	a.repeat(ctx, 1, 20*time.Millisecond, func() error {
		n++
		path := []string{"/metrics", "/ready", "/debug/pprof/", "/"}[n/len(hosts)%4]
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+a.HTTP+path, http.NoBody)
		if err != nil {
			return err
		}
		req.Host = hosts[n%len(hosts)]
		resp, err := probes.Do(req)
		if err != nil {
			return err
		}
		_ = resp.Body.Close()
		if resp.StatusCode < http.StatusBadRequest {
			a.fault(fmt.Sprintf("%s is answered with %s to the host %s", path, resp.Status, req.Host))
		}
		return nil
	})
	return nil
}

// replace gives the broker another catalog and tells it.
func (a *attacker) replace(keyA []byte) error {
	c, err := catalogOf(keyA, a.PublicB)
	if err == nil {
		err = catalog.Write(a.Catalog, c)
	}
	if err == nil {
		err = hangUp(a.PID)
	}
	return err
}

func tenantRekeyed(ctx context.Context, a *attacker) error {
	a.atTheEnd(func() { _ = a.replace(a.SeedA) })
	c, err := a.dial(ctx, small())
	if err != nil {
		return err
	}
	s, err := a.open(ctx, c, 0)
	if err != nil {
		return err
	}
	publish := func(n int) error {
		request := codec.AppendPublish(nil, tenantA, namespace, streamOther, []byte("x"), codec.AckPerMessage, 1, true)
		if _, err := s.Send().Write(request); err != nil {
			return err
		}
		return replies(ctx, s, n)
	}
	if err := publish(2); err != nil {
		return fmt.Errorf("before it is removed: %w", err)
	}
	if err := a.replace(nil); err != nil {
		return err
	}
	if err := pause(ctx, 500*time.Millisecond); err != nil {
		return err
	}
	if err := a.replace(a.OtherA); err != nil {
		return err
	}
	// The new tenant is there when a new token is good.
	other, err := signer(tenantA, a.OtherA)
	if err != nil {
		return err
	}
	fresh, err := token(tenantA, other, time.Now().Add(time.Hour))
	if err != nil {
		return err
	}
	old := a.token
	for range 100 {
		a.token = fresh
		err = a.known(ctx, c)
		a.token = old
		if err == nil {
			break
		}
		if err := pause(ctx, 20*time.Millisecond); err != nil {
			return err
		}
	}
	if err != nil {
		return fmt.Errorf("with the new key: %w", err)
	}
	a.stands()
	if publish(1) == nil {
		a.fault("a stream of the removed tenant publishes to the one with its name")
	}
	a.did.Add(1)
	return nil
}

// spoil puts something else in the place of the catalog, tells the broker, and puts the catalog back in the end.
func (a *attacker) spoil(ctx context.Context, put func(file string) error) error {
	a.atTheEnd(func() { _ = a.replace(a.SeedA) })
	file := a.Catalog + ".new"
	if err := put(file); err != nil {
		return err
	}
	if err := os.Rename(file, a.Catalog); err != nil {
		return err
	}
	a.repeat(ctx, 1, 500*time.Millisecond, func() error { return hangUp(a.PID) })
	return nil
}

func catalogFIFO(ctx context.Context, a *attacker) error { return a.spoil(ctx, makeFIFO) }

func catalogBomb(ctx context.Context, a *attacker) error {
	return a.spoil(ctx, func(file string) error {
		var b strings.Builder
		b.WriteString("l0: &l0 {a: b}\n")
		for i := range 30 {
			fmt.Fprintf(&b, "l%d: &l%d [%s]\n", i+1, i+1, strings.TrimSuffix(strings.Repeat(fmt.Sprintf("*l%d,", i), 10), ","))
		}
		b.WriteString("tenants: *l30\n")
		return os.WriteFile(file, []byte(b.String()), 0o600)
	})
}

func tokenEndsWhileWaiting(ctx context.Context, a *attacker) error {
	c, err := a.dial(ctx, small())
	if err != nil {
		return err
	}
	if err := a.subscribe(ctx, c, codec.KnownExtensions(), streamBlock, codec.StartLatest); err != nil {
		return err
	}
	p, err := a.dial(ctx, small())
	if err != nil {
		return err
	}
	// Tokens are accepted for another minute after their end.
	const lives = 2 * time.Second
	short, err := token(tenantA, a.signer, time.Now().Add(lives-time.Minute))
	if err != nil {
		return err
	}
	ends := time.Now().Add(lives)
	s, err := p.OpenStream(ctx)
	if err != nil {
		return err
	}
	if _, err := s.Send().Write(codec.AppendAuth(nil, tenantA, short, codec.KnownFlags, true, 0)); err != nil {
		return err
	}
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
	return nil
}
