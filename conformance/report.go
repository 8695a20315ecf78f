package conformance

import (
	"encoding/json"
	"encoding/xml"
	"fmt"
	"io"
	"text/tabwriter"
	"time"
)

// Status is what came of a case.
type Status string

// The statuses.
const (
	Passed  Status = "pass"
	Failed  Status = "fail"
	Skipped Status = "skip"
)

// Result is what came of one case.
type Result struct {
	ID       string        `json:"id"`
	Name     string        `json:"name"`
	Status   Status        `json:"status"`
	Expected string        `json:"expected,omitempty"` // of one that failed
	Seen     string        `json:"seen,omitempty"`     // instead
	Reason   string        `json:"reason,omitempty"`   // of a skip
	Took     time.Duration `json:"took_ns"`
}

// Report is what came of a run.
type Report struct {
	Subject string        `json:"subject"` // what was judged: the address of a broker, or a client
	Started time.Time     `json:"started"`
	Took    time.Duration `json:"took_ns"`
	Results []Result      `json:"results"`
	// Err says why cases are missing; nil if none are.
	Err error `json:"-"`
}

// OK reports whether all chosen cases ran or were skipped for a listed reason, and none failed.
func (r *Report) OK() bool { return r.Err == nil && r.Count(Failed) == 0 }

// Count returns the number of results with a status.
func (r *Report) Count(s Status) int {
	n := 0
	for i := range r.Results {
		if r.Results[i].Status == s {
			n++
		}
	}
	return n
}

// WriteText writes the report as a table for people.
func (r *Report) WriteText(w io.Writer) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for i := range r.Results {
		r.Results[i].writeRow(t)
	}
	if err := t.Flush(); err != nil {
		return err
	}
	_, err := fmt.Fprintf(w, "\n%s: %d passed, %d failed, %d skipped in %v\n",
		r.Subject, r.Count(Passed), r.Count(Failed), r.Count(Skipped), r.Took.Round(time.Millisecond))
	if r.Err != nil {
		_, err = fmt.Fprintln(w, r.Err)
	}
	return err
}

// writeRow writes to a tabwriter, which keeps errors for its Flush.
func (r *Result) writeRow(w io.Writer) {
	switch r.Status {
	case Skipped:
		_, _ = fmt.Fprintf(w, "%s\t%s\tskip\t%s\n", r.ID, r.Name, r.Reason)
	case Failed:
		_, _ = fmt.Fprintf(w, "%s\t%s\tFAIL\t\n\texpected %s\n\tsaw      %s\n", r.ID, r.Name, r.Expected, r.Seen)
	default:
		_, _ = fmt.Fprintf(w, "%s\t%s\tpass\t\n", r.ID, r.Name)
	}
}

// WriteJSON writes the report as one JSON object.
func (r *Report) WriteJSON(w io.Writer) error {
	type plainReport Report // without methods
	object := struct {
		*plainReport
		Passed  int    `json:"passed"`
		Failed  int    `json:"failed"`
		Skipped int    `json:"skipped"`
		Error   string `json:"error,omitempty"`
	}{(*plainReport)(r), r.Count(Passed), r.Count(Failed), r.Count(Skipped), ""}
	if r.Err != nil {
		object.Error = r.Err.Error()
	}
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	return enc.Encode(object)
}

// WriteJUnit writes the report as JUnit XML. A run that ended early has a case of its own that failed.
func (r *Report) WriteJUnit(w io.Writer) error {
	type message struct {
		Message string `xml:"message,attr"`
		Text    string `xml:",chardata"`
	}
	type testcase struct {
		Class   string   `xml:"classname,attr"`
		Name    string   `xml:"name,attr"`
		Time    float64  `xml:"time,attr"`
		Failure *message `xml:"failure"`
		Skipped *message `xml:"skipped"`
	}
	suite := struct {
		XMLName  xml.Name   `xml:"testsuite"`
		Name     string     `xml:"name,attr"`
		Tests    int        `xml:"tests,attr"`
		Failures int        `xml:"failures,attr"`
		Skipped  int        `xml:"skipped,attr"`
		Time     float64    `xml:"time,attr"`
		Started  string     `xml:"timestamp,attr"`
		Cases    []testcase `xml:"testcase"`
	}{
		Name: "conformance of " + r.Subject, Failures: r.Count(Failed), Skipped: r.Count(Skipped),
		Time: r.Took.Seconds(), Started: r.Started.UTC().Format("2006-01-02T15:04:05"),
	}
	for i := range r.Results {
		c := &r.Results[i]
		row := testcase{Class: "conformance", Name: c.ID + " " + c.Name, Time: c.Took.Seconds()}
		switch c.Status {
		case Failed:
			row.Failure = &message{"expected " + c.Expected, "saw " + c.Seen}
		case Skipped:
			row.Skipped = &message{Message: c.Reason}
		case Passed:
		}
		suite.Cases = append(suite.Cases, row)
	}
	if r.Err != nil {
		suite.Failures++
		suite.Cases = append(suite.Cases, testcase{Class: "conformance", Name: "run", Failure: &message{Message: r.Err.Error()}})
	}
	suite.Tests = len(suite.Cases)
	if _, err := io.WriteString(w, xml.Header); err != nil {
		return err
	}
	enc := xml.NewEncoder(w)
	enc.Indent("", "  ")
	if err := enc.Encode(suite); err != nil {
		return err
	}
	_, err := io.WriteString(w, "\n")
	return err
}
