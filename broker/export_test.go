package broker

import (
	"testing"
	"time"
)

// SetDiskGrace sets how long a broker waits for its disk after its drain, until the test ends.
func SetDiskGrace(t *testing.T, to time.Duration) {
	before := diskGrace
	diskGrace = to
	t.Cleanup(func() { diskGrace = before })
}
