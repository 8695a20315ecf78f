package broker_test

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"slices"
	"testing"

	"github.com/felix-mq/felix/broker"
	"github.com/felix-mq/felix/ring"
)

func TestStreams(t *testing.T) {
	d := start(t, func(c *broker.Config) { c.QueuePolicy = ring.DropNew; c.QueueBytes = 4096 })
	c := connect(t, d)
	ctx := testContext(t)
	s := subscribe(t, c, "demo")
	if err := c.Publisher("default", "demo").Publish(ctx, []byte("one"), []byte("two")); err != nil {
		t.Fatal(err)
	}
	wantEvents(ctx, t, s, "one", "two")

	answer := httptest.NewRecorder()
	d.ServeStreams(answer, httptest.NewRequestWithContext(ctx, http.MethodGet, broker.StreamsPath, nil))
	var got []broker.StreamStats
	if err := json.Unmarshal(answer.Body.Bytes(), &got); err != nil {
		t.Fatalf("%s: %v", answer.Body, err)
	}
	want := []broker.StreamStats{
		{Tenant: "t1", Namespace: "default", Stream: "demo", Events: 2, Subscriptions: 1},
		{Tenant: "t1", Namespace: "default", Stream: "other"},
	}
	if !slices.Equal(got, want) {
		t.Errorf("got %+v, want %+v", got, want)
	}

	// A subscription that nobody reads lags, and loses what does not fit in its queue.
	payload := make([]byte, 1000)
	for range 2000 { // more than the windows and the queue hold
		if err := c.Publisher("default", "demo").Send(ctx, payload); err != nil {
			t.Fatal(err)
		}
	}
	if err := c.Flush(ctx); err != nil {
		t.Fatal(err)
	}
	if err := c.Publisher("default", "demo").Publish(ctx, nil); err != nil { // after all others
		t.Fatal(err)
	}
	demo := d.StreamStats()[0]
	if demo.Events != 2003 || demo.DroppedEvents == 0 || demo.LagBytes == 0 || demo.LagBytes != demo.QueuedBytes {
		t.Errorf("with a reader that has stopped: %+v", demo)
	}
}
