//go:build !linux

package loadgen

import "context"

func newAlarm(ctx context.Context) alarm { return timerAlarm{ctx} }
