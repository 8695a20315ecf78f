package main

import (
	"fmt"
	"os"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// machineState says how much else the machine did while something was measured.
type machineState struct {
	LoadBefore string `json:"load_before"` // averages of 1, 5 and 15 minutes; empty if the system does not tell
	LoadAfter  string `json:"load_after"`
	// Others is the part of the machine's processors that other processes used, or other guests of its host; negative
	// if the system does not tell.
	Others float64 `json:"others"`
}

// quiet is the most that others may use of a machine that counts as quiet.
const quiet = 0.05

func (m machineState) String() string {
	if m.Others < 0 {
		return "what others used is unknown"
	}
	s := fmt.Sprintf("others used %.0f %% of the processors, load averages %s before and %s after", m.Others*100, m.LoadBefore, m.LoadAfter)
	if m.Others > quiet {
		s += ": NOT QUIET, figures are rough"
	}
	return s
}

// watchMachine begins to watch. The function that it returns ends that.
func watchMachine() func() machineState {
	m := machineState{LoadBefore: loadAverages(), Others: -1}
	busy, own, began := busyTime(), ownTime(), time.Now()
	return func() machineState {
		m.LoadAfter = loadAverages()
		all := time.Since(began).Seconds() * float64(runtime.NumCPU())
		if after := busyTime(); busy >= 0 && after >= 0 && all > 0 {
			m.Others = max((after-busy)-(ownTime()-own), 0) / all
		}
		return m
	}
}

func loadAverages() string {
	b, _ := os.ReadFile("/proc/loadavg")
	fields := strings.Fields(string(b))
	return strings.Join(fields[:min(3, len(fields))], " ")
}

// ticks is how many units of /proc/stat a second has on all systems that Go runs on.
const ticks = 100

// busyTime returns the seconds that the machine's processors have worked, or that its host withheld, since it began; -1
// if the system does not tell.
func busyTime() float64 {
	b, _ := os.ReadFile("/proc/stat")
	line, _, _ := strings.Cut(string(b), "\n")
	fields := strings.Fields(line)
	if len(fields) < 9 || fields[0] != "cpu" {
		return -1
	}
	sum := 0.0
	for i, f := range fields[1:9] {
		if i == 3 || i == 4 { // idle, and waiting for a disk
			continue
		}
		n, err := strconv.ParseFloat(f, 64)
		if err != nil {
			return -1
		}
		sum += n
	}
	return sum / ticks
}

// ownTime returns the seconds of processor time of this process and of all its descendants that have ended.
func ownTime() float64 {
	sum := 0.0
	for _, who := range []int{syscall.RUSAGE_SELF, syscall.RUSAGE_CHILDREN} {
		var u syscall.Rusage
		if syscall.Getrusage(who, &u) == nil {
			sum += time.Duration(u.Utime.Nano() + u.Stime.Nano()).Seconds()
		}
	}
	return sum
}
