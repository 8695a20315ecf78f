package quicx

import (
	"testing"
	"testing/synctest"
	"time"
)

func TestBacklog(t *testing.T) {
	const (
		never   = time.Hour
		patient = int(backlogPatience / backlogWait)
		hasty   = int(backlogHaste / backlogWait)
	)
	for _, c := range []struct {
		name    string
		given   int
		takes   []uint64      // by the connection, until each look
		inVain  time.Duration // since a wait was
		waits   int           // before more is received
		looks   int
		pending int // then
	}{
		{"few are given", maxBacklog - 1, nil, never, 0, 0, maxBacklog - 1},
		{"all are taken", 200, []uint64{200}, never, 0, 1, 0},
		{"enough are taken", 200, []uint64{150}, never, 0, 1, 50},
		{"taken in time", 200, []uint64{50, 0, 50, 90}, never, 3, 4, 10},
		{"more is taken than was given", 200, []uint64{300}, never, 0, 1, 0}, // from before the account began
		{"taken late", 200, append(make([]uint64, patient), 200), never, patient, patient + 1, 0},
		{"nothing is taken", 200, nil, never, patient, patient + 1, 0},
		{"nothing is taken again", 200, nil, backlogDistrust - 1, hasty, hasty + 1, 0},
		{"nothing is taken for a while", 200, nil, backlogDistrust, patient, patient + 1, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				taken, looks := uint64(1000), 0
				b := &backlog{last: taken, given: c.given, inVain: time.Now().Add(-c.inVain), received: func() uint64 {
					if looks < len(c.takes) {
						taken += c.takes[looks]
					}
					looks++
					return taken
				}}
				start := time.Now()
				b.wait()
				if waits := int(time.Since(start) / backlogWait); waits != c.waits || looks != c.looks || b.given != c.pending {
					t.Errorf("%d waits, %d looks, %d pending; want %d, %d, %d", waits, looks, b.given, c.waits, c.looks, c.pending)
				}
			})
		})
	}
}

// Datagrams of no use to the connection must not stop it.
func TestBacklogOfStrangers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := &backlog{received: func() uint64 { return 0 }}
		time.Sleep(backlogDistrust)
		start := time.Now()
		const waits = 500
		for range waits {
			b.given += maxBacklog
			b.wait()
		}
		if took, most := time.Since(start), backlogPatience+(waits-1)*backlogHaste; took != most {
			t.Errorf("%d waits took %v, want %v", waits, took, most)
		}
	})
}
