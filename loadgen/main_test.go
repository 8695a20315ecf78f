package loadgen

import (
	"testing"

	"go.uber.org/goleak"

	"github.com/felix-mq/felix/loadgen/brokerproc"
)

// TestMain is also the broker's process of the tests with two.
func TestMain(m *testing.M) {
	brokerproc.Serve()
	goleak.VerifyTestMain(m)
}
