package conformance_test

import (
	"bytes"
	"encoding/json"
	"encoding/xml"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/felix-mq/felix/conformance"
)

func sample() conformance.Report {
	return conformance.Report{
		Subject: "127.0.0.1:5000", Started: time.Unix(0, 0), Took: 1500 * time.Millisecond,
		Results: []conformance.Result{
			{ID: "RAW-01", Name: "first", Status: conformance.Passed, Took: time.Second},
			{ID: "RAW-02", Name: "second & more", Status: conformance.Failed, Expected: `error "a"`, Seen: "FIN"},
			{ID: "RAW-03", Name: "third", Status: conformance.Skipped, Reason: "needs a <disk>"},
		},
	}
}

func TestReportText(t *testing.T) {
	report := sample()
	var b bytes.Buffer
	if err := report.WriteText(&b); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"RAW-01", "pass", "FAIL", `expected error "a"`, "saw      FIN", "needs a <disk>", "1 passed, 1 failed, 1 skipped in 1.5s"} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("no %q in\n%s", want, b.String())
		}
	}
	if report.OK() {
		t.Error("a report with a failure is OK")
	}
}

func TestReportJSON(t *testing.T) {
	report := sample()
	report.Err = errors.New("cut short")
	var b bytes.Buffer
	if err := report.WriteJSON(&b); err != nil {
		t.Fatal(err)
	}
	var got struct {
		Failed  int
		Error   string
		Results []conformance.Result
	}
	if err := json.Unmarshal(b.Bytes(), &got); err != nil {
		t.Fatal(err)
	}
	if got.Failed != 1 || got.Error != "cut short" || len(got.Results) != 3 || got.Results[1] != report.Results[1] {
		t.Errorf("read back %+v", got)
	}
}

func TestReportJUnit(t *testing.T) {
	report := sample()
	report.Err = errors.New("cut short")
	var b bytes.Buffer
	if err := report.WriteJUnit(&b); err != nil {
		t.Fatal(err)
	}
	var got struct {
		Tests    int `xml:"tests,attr"`
		Failures int `xml:"failures,attr"`
		Cases    []struct {
			Name    string `xml:"name,attr"`
			Failure *struct {
				Message string `xml:"message,attr"`
				Text    string `xml:",chardata"`
			} `xml:"failure"`
		} `xml:"testcase"`
	}
	if err := xml.Unmarshal(b.Bytes(), &got); err != nil {
		t.Fatal(err)
	}
	if got.Tests != 4 || got.Failures != 2 || got.Cases[1].Failure.Message != `expected error "a"` || got.Cases[1].Failure.Text != "saw FIN" {
		t.Errorf("read back %+v", got)
	}
	if got.Cases[3].Failure == nil {
		t.Error("a run that was cut short has no failure")
	}
}

func TestEmptyReportIsNotOK(t *testing.T) {
	report := conformance.Report{Err: errors.New("unreachable")}
	if report.OK() {
		t.Error("a run that did not happen is OK")
	}
}
