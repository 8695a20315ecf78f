package conformance_test

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/felix-mq/felix/conformance"
)

// mutant is a behavior taken out of the broker, and cases that must notice. Snippets are replaced in copies of the
// sources, which `go build -overlay` uses in place of the files. They must not be in code that the cases themselves
// run.
type mutant struct {
	name  string
	edits []edit
	cases string // the ids, each of which must fail
}

// edit replaces a snippet that occurs exactly once in a file, named from the root of the module.
type edit struct{ file, old, new string }

var mutants = []mutant{
	{"acknowledgements overtake those before them", []edit{{
		"broker/publish.go",
		"ctl.reply(codec.AppendPublishAckOK(ctl.w.Buffer(), id))",
		"ctl.reply(append(codec.AppendPublishAckOK(nil, id), ctl.w.Buffer()...))",
	}}, "RAW-20 D02 D16"},
	{"trailing bytes are forwarded", []edit{{
		"broker/publish.go",
		"at + p.CountAt, at + p.End, false",
		"at + p.CountAt, len(f.Bytes), false",
	}}, "RAW-60"},
	{"a token is accepted for ever", []edit{{"auth/token.go", "if exp < now-leeway {", "if exp < 0 {"}}, "RAW-15b IC-15"},

	{"the error text is lost before FIN", []edit{{
		"broker/control.go",
		"_ = ctl.flush()\n\t_ = ctl.s.Send().Close()",
		"ctl.w.Close()\n\t_ = ctl.s.Send().Close()",
	}}, "D05 RAW-13a RAW-14"},
	{"unknown flags are masked off", []edit{{
		"broker/control.go",
		"switch f.Header.Flags {\n\tcase codec.LayoutJSON:",
		"switch f.Header.Flags & codec.KnownFlags {\n\tcase codec.LayoutJSON:",
	}}, "RAW-07b VEC-invalid/unknown_flags"},
	{"flags in a combination that is not defined are decoded", []edit{{
		"broker/control.go",
		"default:\n\t\treturn ctl.refuse(codec.UnsupportedFlags)",
		"default:\n\t\tif f.Header.Flags&^codec.KnownFlags == 0 {\n\t\t\treturn ctl.message(f)\n\t\t}\n\t\treturn ctl.refuse(codec.UnsupportedFlags)",
	}}, "D32a D32b VEC-invalid/flag_combination"},
	{"a bad acked body ends the stream", []edit{{
		"broker/publish.go",
		"return ctl.nack(id, codec.MalformedBatch)",
		"ctl.nack(id, codec.MalformedBatch)\n\t\treturn errorEnd",
	}}, "RAW-23 RAW-10f"},
	{"a duplicate subscription id is accepted", []edit{{
		"broker/subscription.go", "} else if c.takenLocked(s.id) {", "} else if false {",
	}}, "D11a"},
	{"the tenant of messages is not compared", []edit{{
		"broker/control.go", "if string(m.Tenant) != ctl.identity.Tenant {", "if false {",
	}}, "RAW-26f S9-01b S9-01c"},
	{"the permission of acked batches is not checked", []edit{{
		"broker/publish.go",
		"case !ctl.resolve(p.tenant, p.namespace, p.stream):\n\t\treturn ctl.nack(",
		"case !ctl.resolve(p.tenant, p.namespace, p.stream) && ctl.scope.name == nil:\n\t\treturn ctl.nack(",
	}}, "RAW-26d RAW-16g"},
	{"an empty batch is refused", []edit{{
		"broker/publish.go",
		"return nil // acknowledged, and publishes nothing",
		"return errStreamNotFound",
	}}, "RAW-34"},
	{"a miss is written without a value", []edit{{
		"codec/encode.go", `dst = append(name(dst, "value"), "null"...)`, "_ = value",
	}}, "RAW-50b"},
	{"auth with client_flags is answered by ok", []edit{{
		"broker/control.go", "if !m.HasClientFlags {", "if !m.HasExt {",
	}}, "RAW-12a RAW-12b"},
	{"a subscribe keeps its stream", []edit{{
		"broker/subscription.go", "made = nil\n\treturn cleanEnd", "made = nil\n\treturn keep",
	}}, "RAW-37"},
	{"a failed look-up is remembered", []edit{{
		"broker/publish.go", "if sc.allowed && sc.topic == nil {", "if sc.allowed && !known {",
	}}, "D21"},
	{"a handshake with ALPN ends the listener", []edit{{
		"quicx/listen.go",
		"l.rules = tlsRules(tlsConf)\n",
		`l.rules = tlsRules(tlsConf)
	l.rules.GetConfigForClient = func(info *tls.ClientHelloInfo) (*tls.Config, error) {
		if len(info.SupportedProtos) > 0 {
			l.refusing.Store(true)
		}
		return nil, nil
	}
`,
	}}, "D35a"},
	{"a second auth is accepted", []edit{{
		"broker/control.go", "if ctl.identity != nil {\n\t\treturn ctl.refuse(codec.AuthEstablished)", "if false {\n\t\treturn ctl.refuse(codec.AuthEstablished)",
	}}, "RAW-14 VEC-client_to_broker/auth"},
	{"a lifetime of 0 is no lifetime", []edit{{
		"broker/cacherequests.go", "if m.HasTTL {", "if m.HasTTL && m.TTL > 0 {",
	}, {
		"broker/cacheframes.go", "if ms == codec.CacheForever {", "if ms == codec.CacheForever || ms == 0 {",
	}}, "RAW-51c"},
	{"a publish stream ignores unknown flags", []edit{{
		"broker/uni.go", "if err := f.Header.Flags.CheckNegotiated(agreed); err != nil {", "f.Header.Flags &= codec.FlagPublishBatch\n\tif err := f.Header.Flags.CheckNegotiated(agreed); err != nil {",
	}}, "D10b"},
	{"earliest begins at the tail", []edit{{
		"broker/subscription.go", "return fanout.From{Earliest: true}", "return fanout.From{}",
	}}, "RAW-42d IC-42"},
	{"a reply may exceed the frame limit", []edit{{
		"broker/cacherequests.go", "if ctl.payloadLen+cacheValueExtra > ctl.c.b.cfg.MaxFrameBytes {", "if ctl.payloadLen < 0 {",
	}}, "W1-01"},
	{"a cache request without an id keeps its stream", []edit{{
		"broker/cacherequests.go", "ctl.reply(codec.AppendOK(ctl.w.Buffer()))\n\t\treturn cleanEnd", "ctl.reply(codec.AppendOK(ctl.w.Buffer()))\n\t\treturn keep",
	}}, "RAW-52a"},
}

// TestMutants shows that the cases notice: each mutant is built and judged by the cases that it must fail.
func TestMutants(t *testing.T) {
	if os.Getenv("FELIX_MUTANTS") != "1" {
		t.Skip("builds a program for each mutant: make prove T=mutants")
	}
	for _, m := range mutants {
		t.Run(m.name, func(t *testing.T) { m.judge(t) })
	}
}

// TestMutantsApply notices mutants that no longer match the sources, at no cost.
func TestMutantsApply(t *testing.T) {
	for _, m := range mutants {
		for _, e := range m.edits {
			e.apply(t)
		}
	}
}

// root is the module's.
const root = ".."

// apply returns the file with the snippet replaced.
func (e edit) apply(t *testing.T) string {
	t.Helper()
	content, err := os.ReadFile(filepath.Join(root, e.file))
	if err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(string(content), e.old); n != 1 {
		t.Fatalf("the snippet occurs %d times in %s, want once; adapt the mutant to the source:\n%s", n, e.file, e.old)
	}
	return strings.Replace(string(content), e.old, e.new, 1)
}

// judge builds the program with the embedded broker and runs it.
func (m mutant) judge(t *testing.T) {
	dir := t.TempDir()
	replace := make(map[string]string)
	for _, e := range m.edits {
		path, err := filepath.Abs(filepath.Join(root, e.file))
		if err != nil {
			t.Fatal(err)
		}
		replace[path] = filepath.Join(dir, filepath.Base(e.file))
		write(t, replace[path], []byte(e.apply(t)))
	}
	overlay, err := json.Marshal(map[string]any{"Replace": replace})
	if err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(dir, "overlay.json"), overlay)
	binary := filepath.Join(dir, "conformance")
	build := exec.CommandContext(t.Context(), "go", "build", "-overlay", filepath.Join(dir, "overlay.json"), "-o", binary, "./cmd/conformance")
	build.Dir = root
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("building the mutant: %v\n%s", err, out)
	}

	ids := strings.Fields(m.cases)
	pattern := "^(" + strings.Join(ids, "|") + ") "
	run := exec.CommandContext(t.Context(), binary, "--embedded", "--timeout", "2s", "--run", pattern, "--json", "-")
	out, err := run.Output()
	if run.ProcessState == nil || run.ProcessState.ExitCode() != 1 {
		t.Errorf("status of the program: %v, want 1", err)
	}
	var report conformance.Report
	if err := json.Unmarshal(out, &report); err != nil {
		t.Fatalf("the report does not parse: %v\n%s", err, out)
	}
	if len(report.Results) != len(ids) {
		t.Errorf("%d cases ran, want %v:\n%s", len(report.Results), ids, out)
	}
	for _, r := range report.Results {
		if r.Status != conformance.Failed {
			t.Errorf("%s %s: %s, although %s", r.ID, r.Name, r.Status, m.name)
			continue
		}
		t.Logf("%s %s: expected %s, saw %s", r.ID, r.Name, r.Expected, r.Seen)
	}
}

func write(t *testing.T, path string, content []byte) {
	t.Helper()
	if err := os.WriteFile(path, content, 0o600); err != nil {
		t.Fatal(err)
	}
}
