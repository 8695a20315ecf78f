package hostile

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/felix-mq/felix/internal/stats"
	"github.com/felix-mq/felix/quicx"
)

const (
	attackers      = 4   // connections at a time
	streamsAtATime = 16  // of each
	streamsPerConn = 500 // then it is closed and another one dialed
)

// TestMutatedFrames sends damaged streams. Each must end as documented: every reply is one that the protocol has, the
// broker finishes its half and never resets it, and the connection lives on.
func TestMutatedFrames(t *testing.T) {
	seed := *seedFlag
	if seed == 0 {
		seed = rand.Uint64()
	}
	t.Logf("to repeat: -hostile.seed=%d -hostile.frames=%d", seed, *framesFlag)
	s := newSite(t, nil)
	s.takeBase(t)
	a := &attack{
		site: s, seed: seed, total: int64(*framesFlag), replies: make(map[string]int),
		corpus: NewCorpus(Target{Tenant: s.Tenant, Token: s.Token, Namespace: s.Namespace, Stream: liveStream, Cache: s.Cache}),
	}
	ctx, fail := context.WithCancelCause(t.Context())
	defer fail(nil)
	var wg sync.WaitGroup
	for range attackers {
		wg.Go(func() {
			for a.frames.Load() < a.total && ctx.Err() == nil {
				if err := a.connection(ctx); err != nil {
					fail(err)
				}
			}
		})
	}
	wg.Wait()
	if err := context.Cause(ctx); err != nil {
		t.Fatalf("seed %d: %v", seed, err)
	}
	after, cancel := context.WithTimeout(t.Context(), within)
	defer cancel()
	delete(s.base, "chunks") // topics keep some of what was published; the end of the test counts those
	if err := s.restored(after); err != nil {
		t.Error(err)
	}
	t.Logf("%d frames on %d streams; from the last of a stream to its end: %s", a.frames.Load(), a.streams.Load(), stats.Percentiles(a.took))
	for _, text := range slices.Sorted(maps.Keys(a.replies)) {
		t.Logf("%8d × %s", a.replies[text], text)
	}
}

// attack is the account of TestMutatedFrames.
type attack struct {
	*site
	seed   uint64
	corpus *Corpus

	streams atomic.Uint64
	frames  atomic.Int64
	total   int64

	mu      sync.Mutex
	took    []time.Duration
	replies map[string]int // without the numbers in them
}

// connection plays a number of streams on one connection.
func (a *attack) connection(ctx context.Context) error {
	p, err := a.dial(ctx, quicx.Config{})
	if err != nil {
		return err
	}
	defer p.close()
	ctx, fail := context.WithCancelCause(ctx)
	defer fail(nil)
	p.wg.Go(func() {
		for {
			r, err := p.AcceptUniStream(ctx)
			if err != nil {
				return
			}
			if err := events(r); err != nil && p.Context().Err() == nil {
				fail(err)
			}
		}
	})
	var wg sync.WaitGroup
	for range streamsAtATime {
		wg.Go(func() {
			for range streamsPerConn / streamsAtATime {
				if a.frames.Load() >= a.total || ctx.Err() != nil {
					return
				}
				if err := a.stream(ctx, p); err != nil {
					fail(err)
				}
			}
		})
	}
	wg.Wait()
	if err := context.Cause(ctx); err != nil {
		return err
	}
	last, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	return p.survives(last)
}

// stream plays the next stream.
func (a *attack) stream(ctx context.Context, p *peer) error {
	number := a.streams.Add(1)
	s := a.corpus.Stream(a.seed, number)
	a.frames.Add(int64(len(s.Frames)))
	ctx, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	if s.Uni {
		if err := p.playUni(ctx, s); err != nil {
			return fmt.Errorf("publish stream %d %q: %w", number, s.How, err)
		}
		return nil
	}
	replies, took, err := p.play(ctx, s)
	if err != nil {
		return fmt.Errorf("control stream %d %q: %w", number, s.How, err)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.took = append(a.took, took)
	for _, text := range replies {
		text, _, _ = strings.Cut(text, "tenant=") // names may be anything
		text, _, _ = strings.Cut(text, "not found: ")
		a.replies[digits.ReplaceAllString(text, "N")]++
	}
	return nil
}

var digits = regexp.MustCompile("[0-9]+")

// play sends a control stream and reads its replies, both at once: a peer that only writes would be stopped by replies
// that it does not read. It returns them, and the time from the peer's last byte to the broker's.
func (p *peer) play(ctx context.Context, s Stream) (replies []string, took time.Duration, _ error) {
	stream, err := p.OpenStream(ctx)
	if err != nil {
		return nil, 0, err
	}
	var sendErr error
	var sent time.Time
	var sending sync.WaitGroup
	sending.Go(func() {
		sendErr = send(stream.Send(), s)
		sent = time.Now()
	})
	replies, err = p.replies(ctx, stream.Recv())
	end := time.Now()
	if ctx.Err() != nil {
		stream.Send().Cancel(0)
	}
	sending.Wait()
	return replies, max(0, end.Sub(sent)), cmp.Or(err, sendErr)
}

// playUni sends a publish stream. There is nothing to see but whether the broker takes all of it or stops reading.
func (p *peer) playUni(ctx context.Context, s Stream) error {
	stream, err := p.OpenUniStream(ctx)
	if err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { stream.Cancel(0) })
	defer stop()
	return send(stream, s)
}

// send writes the stream, or as much of it as the broker reads.
func send(w *quicx.SendStream, s Stream) error {
	_, err := w.Write(bytes.Join(s.Frames, nil))
	switch {
	case stopped(err):
		return nil
	case err != nil:
		return err
	case s.Reset:
		w.Cancel(0)
		return nil
	}
	if err := w.Close(); err != nil && !stopped(err) {
		return err
	}
	return nil
}
