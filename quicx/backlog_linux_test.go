package quicx

import (
	"testing"
	"testing/synctest"
	"time"
)

func TestBacklog(t *testing.T) {
	for _, c := range []struct {
		name    string
		given   int
		takes   []uint64 // by the connection, until each look
		waits   int      // before more is received
		looks   int
		pending int // then
	}{
		{"few are given", maxBacklog - 1, nil, 0, 0, maxBacklog - 1},
		{"all are taken", 200, []uint64{200}, 0, 1, 0},
		{"enough are taken", 200, []uint64{150}, 0, 1, 50},
		{"taken in time", 200, []uint64{50, 0, 50, 90}, 3, 4, 10},
		{"more is taken than was given", 200, []uint64{300}, 0, 1, 0}, // from before the account began
		{"nothing is taken", 200, nil, backlogWaits, backlogWaits, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				taken, looks := uint64(1000), 0
				b := &backlog{last: taken, given: c.given, received: func() uint64 {
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
