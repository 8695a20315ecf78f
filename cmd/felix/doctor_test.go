package main

import (
	"strings"
	"testing"

	"github.com/felix-mq/felix/quicx"
)

func TestJudge(t *testing.T) {
	good := machine{
		socket: quicx.SocketInfo{SendBufferAsked: 8 << 20, SendBufferGranted: 8 << 20, RecvBufferAsked: 8 << 20, RecvBufferGranted: 8 << 20, GRO: true, GSO: true},
		gso:    true, gro: true, rmem: 8 << 20, wmem: 8 << 20, files: 1 << 20, clock: clockSynchronized, kernel: "Linux 6.1",
	}
	for _, c := range []struct {
		name    string
		change  func(*machine)
		check   string
		verdict verdict
		says    string
	}{
		{"all good", func(*machine) {}, "", verdictOK, ""},
		{"small receive buffer", func(m *machine) { m.rmem, m.socket.RecvBufferGranted = 208<<10, 208<<10 }, "UDP receive buffer", verdictFinding, "sysctl -w net.core.rmem_max=8388608"},
		{"small send buffer", func(m *machine) { m.wmem, m.socket.SendBufferGranted = 208<<10, 208<<10 }, "UDP send buffer", verdictFinding, "sysctl -w net.core.wmem_max=8388608"},
		{"privileged", func(m *machine) { m.rmem = 208 << 10 }, "UDP receive buffer", verdictNote, "sysctl -w net.core.rmem_max=8388608"},
		{"no GRO", func(m *machine) { m.socket.GRO, m.gro = false, false }, "receive offload (GRO)", verdictFinding, "off"},
		{"GSO in name", func(m *machine) { m.gso = false }, "send offload (GSO)", verdictFinding, "does not work"},
		{"few files", func(m *machine) { m.files = 256 }, "open files", verdictFinding, "ulimit -n 1024"},
		{"free clock", func(m *machine) { m.clock = clockFree }, "clock", verdictNote, "set-ntp"},
		{"unknown system", func(m *machine) { m.files, m.clock = 0, clockUnknown }, "open files", verdictNote, "unknown"},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := good
			c.change(&m)
			var out strings.Builder
			checks := m.judge()
			if err := printChecks(&out, formatTable, checks); err != nil {
				t.Fatal(err)
			}
			if !strings.Contains(out.String(), c.says) {
				t.Errorf("it does not say %q:\n%s", c.says, &out)
			}
			for _, got := range checks {
				if got.Name == c.check && got.Verdict != c.verdict {
					t.Errorf("%s is %s, want %s", got.Name, got.Verdict, c.verdict)
				}
				if c.check == "" && (got.Verdict != verdictOK || got.Fix != "") {
					t.Errorf("a good machine: %+v", got)
				}
			}
		})
	}
}
