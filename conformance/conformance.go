// Package conformance judges a broker by the protocol alone: it connects to any live broker, sends frames written by
// hand, and compares what comes back with what the protocol document says (docs/protocol, and
// docs/protocol/conformance.md#what-is-judged for defects that a broker must not have and for the checklist). It knows
// nothing of package broker; a mutilated broker must fail it, which TestMutants shows.
//
// The order of reading: [Run] runs cases one by one and returns a [Report]. A case is a function on a probe (probe.go),
// which opens connections and says what was expected and what was seen; most cases of one request and its consequence
// are rows of a table (exchange.go). The files case_*.go hold the cases, by subject; vectors.go sends every vector of
// package testvectors and predicts the answer by a model of its own. Replies are compared as text, in the notation of
// reply.go, so that a failure reads as a conversation.
//
// skipped.txt says which cases do not run, when and why. It is the only cause of a skip.
//
// A client is judged by package conformance/script, from the other side of the wire.
package conformance

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"regexp"
	"time"

	"github.com/felix-mq/felix/codec"
	"github.com/felix-mq/felix/quicx"
)

// Target is the broker to judge.
type Target struct {
	// Addr is its UDP address, host:port.
	Addr string
	// TLS is how its certificate is verified; nil means as the fixture says.
	TLS *tls.Config
	// Fixture is what the broker was set up with. It is checked again: it need not come from [ReadFixture].
	Fixture Fixture
}

// Options say which cases run. The zero value runs all quick ones.
type Options struct {
	// Match chooses the cases whose "ID name" it matches; nil chooses all.
	Match *regexp.Regexp
	// Long also runs the cases that take more than a second or two.
	Long bool
	// CreateStream makes a stream of the fixture's namespace in the broker. Nil if there is no way to.
	CreateStream func(name string) error
	// ReplyTimeout bounds each wait for something that has to come; zero means 10 s.
	ReplyTimeout time.Duration
	// OnResult is called with each result as it comes; nil for nobody.
	OnResult func(Result)
}

// Case is one row of the report.
type Case struct {
	// ID begins with RAW, IB or IC and the number in the interop checklist
	// (docs/protocol/conformance.md#the-interop-checklist), with S and a section
	// (docs/protocol/conformance.md#what-is-judged), with D and the number of a defect
	// (docs/start/from-the-reference.md#defects), or with VEC for test vectors.
	ID   string
	Name string

	timeout time.Duration // zero means caseTimeout
	run     func(*probe)  // nil for what cannot be judged from here: skipped.txt says why
}

// Title returns what identifies the case to people and to [Options.Match].
func (c Case) Title() string { return c.ID + " " + c.Name }

// Defaults of the time that a case may take as a whole, and that each wait for something that has to come may take.
// They only cost time where a broker is silent.
const (
	caseTimeout  = 30 * time.Second
	replyTimeout = 10 * time.Second
)

// Cases lists all cases in the order in which they run.
func Cases() []Case {
	f := Fixture{Tenant: "t1", Namespace: "default", Stream: "demo", OtherStream: "other", Cache: "primary"}
	return casesFor(&f)
}

func casesFor(f *Fixture) []Case {
	var all []Case
	for _, group := range [][]Case{
		transportCases(f), authCases(f), publishCases(f), subscribeCases(f), cacheCases(f), errorCases(f),
		robustnessCases(), clientCases(), durableCases(), vectorCases(), elsewhere,
	} {
		all = append(all, group...)
	}
	return all
}

// elsewhere are the rows of the checklist that are not judged here, so that the report has all of them.
var elsewhere = []Case{
	{ID: "IB-02", Name: "reference client with default pools"},
	{ID: "IB-03", Name: "codec against the reference's vectors"},
	{ID: "IC-17", Name: "client against a broker that answers plain ok"},
	{ID: "IB-18", Name: "reference client, broker advertising 7"},
	{ID: "IC-32", Name: "client gets acknowledgements out of order"},
	{ID: "IC-36", Name: "hello and events before subscribed"},
	{ID: "RAW-44", Name: "wrong subscription id in a 0x0002 frame"},
	{ID: "IC-49", Name: "idle for 60 s with keep-alive"},
	{ID: "IB-56", Name: "broker shutdown with open subscriptions"},
}

// Run runs the chosen cases one after the other, each on connections of its own and within a bounded time, and returns
// what came of them. It blocks until they are done or ctx ends. [Report.Err] says why cases are missing: the fixture is
// unusable, the broker cannot be reached or refuses the token, or ctx has ended.
func Run(ctx context.Context, target Target, o Options) (report Report) {
	report = Report{Subject: target.Addr, Started: time.Now()}
	defer func() { report.Took = time.Since(report.Started) }()
	f := &target.Fixture
	if err := f.prepare(); err != nil {
		report.Err = fmt.Errorf("conformance: fixture: %w", err)
		return report
	}
	if target.TLS == nil {
		target.TLS, _ = f.tls() // prepare has seen that it works
	}
	cases := casesFor(f)
	skips, err := skipsFor(cases, f, o)
	if err != nil {
		report.Err = err
		return report
	}
	setDefault(&o.ReplyTimeout, replyTimeout)
	if r := runCase(ctx, Case{run: reachable}, target, o); r.Status == Failed {
		report.Err = fmt.Errorf("conformance: no use of the broker at %s: expected %s, saw %s", target.Addr, r.Expected, r.Seen)
		return report
	}
	for _, c := range cases {
		if o.Match != nil && !o.Match.MatchString(c.Title()) {
			continue
		}
		if ctx.Err() != nil {
			report.Err = fmt.Errorf("conformance: ended early: %w", context.Cause(ctx))
			break
		}
		r := Result{ID: c.ID, Name: c.Name, Status: Skipped}
		if reason, skip := skips[c.ID]; skip {
			r.Reason = reason
		} else {
			r = runCase(ctx, c, target, o)
		}
		report.Results = append(report.Results, r)
		if o.OnResult != nil {
			o.OnResult(r)
		}
	}
	if len(report.Results) == 0 && report.Err == nil {
		report.Err = errors.New("conformance: no case matches")
	}
	return report
}

// reachable fails for a broker of which no case can tell anything.
func reachable(p *probe) {
	s := p.stream()
	s.send(codec.AppendAuth(nil, p.fx.Tenant, p.fx.token(allActions...), codec.KnownFlags, true, 0))
	if got := s.recv(); got != "ok" && !matches("auth_ok …", got) {
		p.fail("auth_ok", got)
	}
}

func runCase(ctx context.Context, c Case, target Target, o Options) (r Result) {
	setDefault(&c.timeout, caseTimeout)
	ctx, cancel := context.WithTimeout(ctx, c.timeout)
	defer cancel()
	r = Result{ID: c.ID, Name: c.Name, Status: Passed}
	start := time.Now()
	p := newProbe(ctx, &target, o)
	defer func() { r.Took = time.Since(start) }()
	defer p.close()
	if f := p.attempt(func() { c.run(p) }); f != nil {
		r.Status, r.Expected, r.Seen = Failed, f.expected, f.seen
	}
	return r
}

// plain is how a case dials when nothing about the connection matters.
var plain = quicx.Config{}
