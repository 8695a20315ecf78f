package isolation

import (
	"os"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"
)

// On systems of their own, neither B's client nor A's would take a processor from the broker, and the broker none from
// them. Where they share a machine, strict priorities come closest to that: B's client runs at once, the broker's
// threads whenever it does not, and the attacker on what is left.

func runFirst() {
	schedule("self", &unix.SchedAttr{Policy: unix.SCHED_RR, Priority: 2, Flags: unix.SCHED_FLAG_RESET_ON_FORK})
}

func runSecond(pid int) {
	schedule(strconv.Itoa(pid), &unix.SchedAttr{Policy: unix.SCHED_RR, Priority: 1})
}

func runLast() {
	schedule("self", &unix.SchedAttr{Policy: unix.SCHED_IDLE})
}

// schedule changes all threads of a process, if the system allows that. Linux keeps a policy for each; a new thread
// or process has that of the thread that makes it, unless that one resets it.
func schedule(process string, attr *unix.SchedAttr) {
	attr.Size = unix.SizeofSchedAttr
	tasks, _ := os.ReadDir("/proc/" + process + "/task")
	for _, t := range tasks {
		if id, err := strconv.Atoi(t.Name()); err == nil {
			_ = unix.SchedSetAttr(id, attr, 0)
		}
	}
}

func makeFIFO(file string) error { return syscall.Mkfifo(file, 0o600) }

// hangUp makes the broker read its files again.
func hangUp(pid int) error { return syscall.Kill(pid, syscall.SIGHUP) }
