package child

import (
	"context"
	"errors"
	"io"
	"os"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
)

// TestMain is also the children of the tests.
func TestMain(m *testing.M) {
	Serve("echo", func(_ context.Context, job string, p *Parent) (any, error) {
		err := p.Send(job)
		for err == nil {
			var question int
			if err = p.Receive(&question); err == nil {
				err = p.Send(question + 1)
			}
		}
		if !errors.Is(err, io.EOF) {
			return nil, err
		}
		return os.Getenv("CHILD_TEST"), nil
	})
	Serve("broken", func(context.Context, any, *Parent) (any, error) { return nil, errors.New("told to fail") })
	Serve("silent", func(ctx context.Context, _ any, _ *Parent) (any, error) {
		<-ctx.Done()
		return nil, nil
	})
	goleak.VerifyTestMain(m)
}

func TestChild(t *testing.T) {
	var hello, bye string
	p, err := Start(t.Context(), "echo", "hello", []string{"CHILD_TEST=bye"}, &hello)
	if err != nil {
		t.Fatal(err)
	}
	var answer int
	if err := p.Ask(1, &answer); err != nil || answer != 2 {
		t.Errorf("answered %d, %v", answer, err)
	}
	if err := p.Stop(&bye); err != nil || hello != "hello" || bye != "bye" {
		t.Errorf("got %q, %q, %v", hello, bye, err)
	}
	if p.CPUTime() <= 0 {
		t.Error("it took no processor time")
	}
}

// What a child wrote to its standard error says why it is not ready.
func TestNotReady(t *testing.T) {
	if _, err := Start(t.Context(), "broken", nil, nil, new(any)); err == nil || !strings.Contains(err.Error(), "told to fail") {
		t.Errorf("got %v", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := Start(ctx, "silent", nil, nil, new(any)); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v", err)
	}
}

func TestKill(t *testing.T) {
	p, err := Start(t.Context(), "echo", "", nil, new(string))
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := p.Stop(nil); err == nil {
		t.Error("a child that was killed ended well")
	}
}
