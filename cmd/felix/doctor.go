package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/felix-mq/felix/broker"
	"github.com/felix-mq/felix/quicx"
)

// verdict is what a check comes to.
type verdict string

const (
	verdictOK      verdict = "ok"
	verdictNote    verdict = "note" // worth knowing; nothing to mend
	verdictFinding verdict = "finding"
)

// check is one thing that the doctor has looked at.
type check struct {
	Name    string  `json:"name"`
	Verdict verdict `json:"verdict"`
	Is      string  `json:"is"`
	Why     string  `json:"why,omitempty"`
	Fix     string  `json:"fix,omitempty"`
}

// machine is what the doctor judges.
type machine struct {
	socket     quicx.SocketInfo // of a broker with default settings
	gso, gro   bool             // the kernel has split what was sent on loopback, and joined what came
	rmem, wmem int              // net.core.rmem_max and wmem_max; 0 if unknown
	files      uint64           // files that a process may have open; 0 if unknown
	clock      clockState
	kernel     string
}

// clockState tells whether something keeps the system's clock right.
type clockState int

const (
	clockUnknown clockState = iota
	clockFree
	clockSynchronized
)

// minFiles is how many files a broker should be able to open: its sockets are few, but each HTTP connection is one.
const minFiles = 1024

func newDoctor() *cobra.Command {
	format := formatTable
	c := &cobra.Command{
		Use:   "doctor",
		Short: "Check whether this machine is good for a broker, and say what to change",
		Long: `Check whether this machine is good for a broker, and say what to change: UDP buffers, segmentation offload on a socket
on loopback, the limit of open files, the clock and the kernel. Exit code 1 says that there is something to mend.`,
		Args: arguments(0, 0),
		RunE: func(c *cobra.Command, _ []string) error {
			m, err := examine()
			if err != nil {
				return err
			}
			checks := m.judge()
			if err := printChecks(c.OutOrStdout(), format, checks); err != nil {
				return err
			}
			found := 0
			for _, check := range checks {
				if check.Verdict == verdictFinding {
					found++
				}
			}
			if found > 0 {
				return errors.New(plural(found, "finding"))
			}
			return nil
		},
	}
	format.bind(c)
	return c
}

// examine looks at this machine.
func examine() (machine, error) {
	cfg := broker.DefaultConfig()
	cfg.Bind = "127.0.0.1:0"
	d, err := broker.NewDev(cfg, broker.DevOptions{})
	if err != nil {
		return machine{}, fmt.Errorf("opening a socket as a broker does: %w", err)
	}
	m := machine{socket: d.Socket()}
	if err := d.Shutdown(context.Background()); err != nil {
		return machine{}, err
	}
	m.readSystem()
	return m, nil
}

// judge says what is good and what is not.
func (m machine) judge() []check {
	return []check{
		m.buffer("receive buffer", "net.core.rmem_max", m.rmem, m.socket.RecvBufferAsked, m.socket.RecvBufferGranted, "datagrams that arrive while the broker is busy are lost"),
		m.buffer("send buffer", "net.core.wmem_max", m.wmem, m.socket.SendBufferAsked, m.socket.SendBufferGranted, "the broker waits for the network card in small steps"),
		offload("receive offload (GRO)", m.socket.GRO, m.gro, "5.0"),
		offload("send offload (GSO)", m.socket.GSO, m.gso, "4.18"),
		m.openFiles(),
		m.clockCheck(),
		{Name: "kernel", Verdict: verdictOK, Is: m.kernel},
	}
}

func (m machine) buffer(name, sysctl string, limit, asked, granted int, why string) check {
	c := check{Name: "UDP " + name, Verdict: verdictOK, Is: fmt.Sprintf("%d of %d KiB", granted>>10, asked>>10)}
	switch {
	case granted < asked:
		c.Verdict, c.Why, c.Fix = verdictFinding, why, fmt.Sprintf("sudo sysctl -w %s=%d", sysctl, asked)
	case limit > 0 && limit < asked:
		c.Verdict = verdictNote
		c.Why = fmt.Sprintf("granted because this process is privileged: %s is %d, and others get no more", sysctl, limit)
		c.Fix = fmt.Sprintf("sudo sysctl -w %s=%d", sysctl, asked)
	}
	return c
}

// offload tells of one that the broker's socket has accepted, and that was seen at work.
func offload(name string, accepted, works bool, since string) check {
	c := check{Name: name, Verdict: verdictOK, Is: "works"}
	if !accepted || !works {
		c.Verdict, c.Is, c.Why = verdictFinding, "off", "each datagram costs a system call"
		c.Fix = "use a Linux kernel from " + since
		if accepted {
			c.Is = "accepted, but does not work"
		}
	}
	return c
}

func (m machine) openFiles() check {
	c := check{Name: "open files", Verdict: verdictOK, Is: fmt.Sprint(m.files)}
	switch {
	case m.files == 0:
		c.Verdict, c.Is = verdictNote, "unknown"
	case m.files < minFiles:
		c.Verdict, c.Why, c.Fix = verdictFinding, "HTTP connections need one each", fmt.Sprintf("ulimit -n %d, or LimitNOFILE=%d in the systemd unit", minFiles, minFiles)
	}
	return c
}

func (m machine) clockCheck() check {
	switch m.clock {
	case clockSynchronized:
		return check{Name: "clock", Verdict: verdictOK, Is: "synchronized"}
	case clockFree:
		return check{
			Name: "clock", Verdict: verdictNote, Is: "not known to be synchronized",
			Why: "tokens of issuers whose clock differs by more than a minute are refused; containers and some time services do not tell the kernel",
			Fix: "timedatectl set-ntp true",
		}
	default:
		return check{Name: "clock", Verdict: verdictNote, Is: "unknown"}
	}
}

func printChecks(w io.Writer, f format, checks []check) error {
	if f != formatTable {
		return printList(w, f, checks, "", nil)
	}
	colors := map[verdict]string{verdictOK: green, verdictNote: yellow, verdictFinding: red}
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, c := range checks {
		// Padded before it is colored: tabwriter would count the colors.
		fmt.Fprintf(t, "%s  %s\t%s\n", colored(w, colors[c.Verdict], fmt.Sprintf("%-7s", c.Verdict)), c.Name, c.Is)
	}
	if err := t.Flush(); err != nil {
		return asOutput(err)
	}
	var advice strings.Builder
	for _, c := range checks {
		if c.Fix != "" {
			fmt.Fprintf(&advice, "\n%s: %s.\n  %s\n", c.Name, c.Why, c.Fix)
		}
	}
	_, err := io.WriteString(w, advice.String())
	return asOutput(err)
}
