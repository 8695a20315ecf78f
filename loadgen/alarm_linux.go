package loadgen

import (
	"context"
	"errors"
	"fmt"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// timerFD is an alarm on a kernel timer that the runtime's poller waits for, like a socket: about 50 µs late in an
// idle process, where a timer of the runtime, which hands the poller whole milliseconds, is 900.
type timerFD struct {
	ctx    context.Context
	f      *os.File
	conn   syscall.RawConn
	unbind func() bool
}

func newAlarm(ctx context.Context) alarm {
	fd, err := unix.TimerfdCreate(unix.CLOCK_MONOTONIC, unix.TFD_NONBLOCK|unix.TFD_CLOEXEC)
	if err != nil {
		return timerAlarm{ctx}
	}
	f := os.NewFile(uintptr(fd), "timerfd")
	conn, err := f.SyscallConn()
	if err != nil {
		_ = f.Close()
		return timerAlarm{ctx}
	}
	return &timerFD{
		ctx: ctx, f: f, conn: conn,
		unbind: context.AfterFunc(ctx, func() { _ = f.SetReadDeadline(time.Unix(1, 0)) }),
	}
}

func (t *timerFD) wait(d time.Duration) error {
	var armed error
	err := t.conn.Control(func(fd uintptr) {
		armed = unix.TimerfdSettime(int(fd), 0, &unix.ItimerSpec{Value: unix.NsecToTimespec(int64(d))}, nil)
	})
	var expirations [8]byte
	if err = errors.Join(err, armed); err == nil {
		_, err = t.f.Read(expirations[:])
	}
	switch {
	case err == nil:
		return nil
	case t.ctx.Err() != nil:
		return context.Cause(t.ctx)
	}
	return fmt.Errorf("loadgen: waiting for a timer: %w", err)
}

func (t *timerFD) close() {
	t.unbind()
	_ = t.f.Close()
}
