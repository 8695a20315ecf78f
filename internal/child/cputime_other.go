//go:build !unix

package child

import (
	"errors"
	"time"
)

// CPUTime fails: this system does not tell.
func CPUTime() (time.Duration, error) { return 0, errors.ErrUnsupported }
