package fanout

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/felix-mq/felix/ring"
)

// The age of what is queued is right to two sweeps, for a queue that does not move and for one that is always late.
func TestQueued(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := checkedHub(t, Options{})
		topic := h.Register(testKey, noReplay(ring.DropNew, 0))
		s, _ := subscribe(t, topic, From{})
		other, _ := subscribe(t, topic, From{})
		want := func(what string, oldest time.Duration, frames int) {
			t.Helper()
			synctest.Wait()
			st := h.Stats()
			if off := st.Oldest - oldest; off < -2*sweepEvery || off > 2*sweepEvery {
				t.Errorf("%s: oldest %v, want %v", what, st.Oldest, oldest)
			}
			if bytes := int64(s.QueuedBytes() + other.QueuedBytes()); st.QueuedBytes != bytes || (bytes == 0) != (frames == 0) {
				t.Errorf("%s: %d bytes queued, want %d in %d frames", what, st.QueuedBytes, bytes, frames)
			}
		}
		want("nothing yet", 0, 0)
		const late = 10
		for range late {
			publish(t, topic, 1)
			drain(other)
			time.Sleep(100 * time.Millisecond)
		}
		want("stands still", time.Second, late)
		for range 30 {
			publish(t, topic, 1)
			drain(other)
			if have, _ := take(s, 1); len(have) != 1 {
				t.Fatalf("%d frames", len(have))
			}
			time.Sleep(100 * time.Millisecond)
		}
		want("always late", late*100*time.Millisecond, late)
		drain(s)
		time.Sleep(3 * sweepEvery)
		want("empty", 0, 0)
		publish(t, topic, 1)
		drain(other)
		time.Sleep(2 * time.Second)
		want("one frame", 2*time.Second, 1)
		drain(s)
	})
}
