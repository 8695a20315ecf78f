package loadgen

import (
	"testing"

	"go.uber.org/goleak"

	"github.com/felix-mq/felix/broker"
)

// TestMain is also the broker's process of the tests with two.
func TestMain(m *testing.M) {
	ServeBroker(func(cfg *broker.Config) error {
		cfg.ReplayBytes = -1
		return nil
	})
	goleak.VerifyTestMain(m)
}
