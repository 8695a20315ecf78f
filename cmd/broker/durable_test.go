package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/felix-mq/felix/client"
)

// kills is how often TestDurableKills kills a broker: 20 times, or as often as FELIX_KILLS says (make prove T=kills).
func kills(t *testing.T) int {
	t.Helper()
	n := 20
	if s := os.Getenv("FELIX_KILLS"); s != "" {
		var err error
		if n, err = strconv.Atoi(s); err != nil {
			t.Fatal(err)
		}
	}
	return n
}

// durableModel is what must be in a stream.
type durableModel struct {
	mu       sync.Mutex
	verified []string        // what was read, by offset
	acked    map[string]bool // and not read yet
	received map[uint64]string
}

// TestDurableKills kills a broker with SIGKILL while publishers wait for acknowledgements and subscribers read, starts
// another one with its data directory, and compares what its streams have with what was acknowledged and delivered.
//
//   - Everything that was acknowledged is there, at one offset, and offsets have no gap.
//   - Events of a publisher are in the order in which it published them.
//   - What was delivered is there, under the same offset. What was read once never changes.
func TestDurableKills(t *testing.T) {
	const publishers = 6
	dir := t.TempDir()
	streams := []string{"a", "b", "c"}
	models := map[string]*durableModel{}
	for _, s := range streams {
		models[s] = &durableModel{acked: map[string]bool{}, received: map[uint64]string{}}
	}
	n := kills(t)
	events := 0
	for life := range n + 1 {
		p := startProgram(t, "FELIX_DURABLE_STORAGE_DIR="+dir, "FELIX_DEV_STREAMS=a,b,c", "FELIX_DURABLE_SEGMENT_BYTES=65536",
			"FELIX_SUBSCRIBER_QUEUE_CAPACITY=8", "FELIX_REPLAY_BYTES=4096", "FELIX_DURABLE_HEADROOM_BYTES=0")
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		for name, m := range models {
			m.verify(ctx, t, p, name, life%10 == 0 || life == n)
		}
		if life == n || t.Failed() {
			cancel()
			if _, err := p.end(t); err != nil {
				t.Errorf("the last broker: %v", err)
			}
			break
		}
		var work sync.WaitGroup
		for name, m := range models {
			c := p.connect(ctx, t, p.roots(t))
			sub, err := c.Subscribe(ctx, p.Namespace, name, client.WithoutResume())
			if err != nil {
				t.Fatal(err)
			}
			work.Go(func() { m.receive(ctx, sub) })
			for i := range publishers {
				work.Go(func() { m.publish(ctx, c.Publisher(p.Namespace, name), fmt.Sprintf("%d/%d", life, i)) })
			}
			defer c.Close()
		}
		time.Sleep(time.Duration(rand.IntN(60)+1) * time.Millisecond) // any moment will do
		if err := p.cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		if err := <-p.exited; err == nil {
			t.Error("a broker exited with 0 when it was killed")
		}
		p.exited = nil
		cancel() // clients need not find out by themselves
		work.Wait()
	}
	for _, m := range models {
		events += len(m.verified)
	}
	t.Logf("%d kills, %d events", n, events)
	if events == 0 {
		t.Error("nothing was published")
	}
}

// publish publishes numbers until it fails.
func (m *durableModel) publish(ctx context.Context, p *client.Publisher, name string) {
	for i := 0; ; i++ {
		payload := fmt.Sprintf("%s/%d", name, i)
		if p.Publish(ctx, []byte(payload)) != nil {
			return
		}
		m.mu.Lock()
		m.acked[payload] = true
		m.mu.Unlock()
	}
}

func (m *durableModel) receive(ctx context.Context, s *client.Subscription) {
	for {
		ev, err := s.Next(ctx)
		if err != nil {
			return
		}
		if ev.Payload != nil {
			m.mu.Lock()
			m.received[ev.Offset] = string(ev.Payload)
			m.mu.Unlock()
		}
	}
}

// verify reads what a stream has, from its begin or from where it was read to before.
func (m *durableModel) verify(ctx context.Context, t *testing.T, p *program, stream string, all bool) {
	t.Helper()
	c := p.connect(ctx, t, p.roots(t))
	defer c.Close()
	const marker = "marker"
	if err := c.Publisher(p.Namespace, stream).Publish(ctx, []byte(marker)); err != nil {
		t.Fatal(err)
	}
	from := uint64(len(m.verified))
	if all {
		from = 0
	}
	s, err := c.Subscribe(ctx, p.Namespace, stream, client.FromOffset(from), client.WithoutResume())
	if err != nil {
		t.Fatal(err)
	}
	last := map[string]int{} // by publisher
	for offset := from; ; offset++ {
		ev, err := s.Next(ctx)
		if err != nil || ev.Gap != nil || ev.Offset != offset {
			t.Fatalf("stream %s: got offset %d, gap %v, error %v, want offset %d", stream, ev.Offset, ev.Gap, err, offset)
		}
		payload := string(ev.Payload)
		if offset < uint64(len(m.verified)) {
			if payload != m.verified[offset] {
				t.Errorf("stream %s: offset %d has %q, and had %q", stream, offset, payload, m.verified[offset])
			}
			continue
		}
		m.verified = append(m.verified, payload)
		if was, ok := m.received[offset]; ok && was != payload {
			t.Errorf("stream %s: offset %d has %q, and %q was delivered", stream, offset, payload, was)
		}
		delete(m.received, offset)
		if payload == marker {
			break
		}
		var life, publisher, number int
		if _, err := fmt.Sscanf(payload, "%d/%d/%d", &life, &publisher, &number); err != nil {
			t.Fatalf("stream %s: offset %d has %q", stream, offset, payload)
		}
		name := fmt.Sprintf("%d/%d", life, publisher)
		if want := last[name]; number != want {
			t.Errorf("stream %s: %s published %d, after %d", stream, name, number, want-1)
		}
		last[name] = number + 1
		delete(m.acked, payload)
	}
	for payload := range m.acked {
		t.Errorf("stream %s: %q was acknowledged and is lost", stream, payload)
	}
	for offset, payload := range m.received {
		t.Errorf("stream %s: %q was delivered under offset %d and is lost", stream, payload, offset)
	}
	clear(m.acked)
	clear(m.received)
}
