package loadgen

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strconv"
	"time"

	"github.com/felix-mq/felix/broker"
	"github.com/felix-mq/felix/internal/selfproc"
	"github.com/felix-mq/felix/ring"
	"github.com/felix-mq/felix/telemetry"
)

// BrokerInfo says what broker a run was made against.
type BrokerInfo struct {
	Kind   string `json:"kind"`             // "embedded", "process" or "external"
	Addr   string `json:"addr"`             // host:port
	Policy string `json:"policy,omitempty"` // of its queues, if it was started for the run

	// What the kernel granted its socket, and what was asked of it, if it was started for the run.
	ReceiveBuffer      int  `json:"receive_buffer_bytes,omitempty"`
	SendBuffer         int  `json:"send_buffer_bytes,omitempty"`
	ReceiveBufferAsked int  `json:"receive_buffer_asked_bytes,omitempty"`
	SendBufferAsked    int  `json:"send_buffer_asked_bytes,omitempty"`
	GRO                bool `json:"gro,omitempty"`
	GSO                bool `json:"gso,omitempty"`

	BrokerCounters
}

// BrokerCounters are counters of a broker that was started for the run, from its start to its end.
type BrokerCounters struct {
	DroppedEvents uint64 `json:"dropped_events"` // by queues that were full, those of slow subscriptions included
	PublishWaits  uint64 `json:"publish_waits"`  // publishes that waited for space
	Stalled       uint64 `json:"stalled_subscriptions"`
	PacketsSent   uint64 `json:"packets_sent"`
	PacketsLost   uint64 `json:"packets_lost"` // of these, as QUIC sees it
}

// String says in one line what broker it was.
func (b *BrokerInfo) String() string {
	switch b.Kind {
	case "":
		return "not Felix"
	case "external":
		return "at " + b.Addr
	case "process":
		return b.started("in a process of its own")
	}
	return b.started("in this process")
}

// losses tells how many packets the broker lost of how many, if it was started for the run.
func (b *BrokerInfo) losses() string {
	if b.Kind == "external" {
		return "an unknown number"
	}
	return fmt.Sprintf("%d of %d", b.PacketsLost, b.PacketsSent)
}

func (b *BrokerInfo) started(where string) string {
	s := fmt.Sprintf("%s, queue policy %s", where, b.Policy)
	if b.ReceiveBuffer > 0 {
		s += fmt.Sprintf(", socket buffers %d of %d KiB in and %d of %d KiB out",
			b.ReceiveBuffer>>10, b.ReceiveBufferAsked>>10, b.SendBuffer>>10, b.SendBufferAsked>>10)
	}
	onOff := map[bool]string{true: "on", false: "off"}
	return s + ", GRO " + onOff[b.GRO] + ", GSO " + onOff[b.GSO]
}

// startedBroker is a broker to load. stop ends it if it was started for the run.
type startedBroker struct {
	target *Target
	info   BrokerInfo
	// sample reads its state; what cannot be read is zero. Of a broker that was there before, that is all.
	sample func() brokerSample
	stop   func() (BrokerCounters, error)
}

// brokerSample is the state of a broker at one moment.
type brokerSample struct {
	BrokerCounters
	Resources *Resources `json:"resources,omitempty"` // of its process, if it has one of its own
}

// stream is the stream that a broker is started with.
const stream = "loadgen"

// stopTimeout bounds the end of a broker, whose connections have ended before.
const stopTimeout = 10 * time.Second

func startBroker(ctx context.Context, cfg Config) (*startedBroker, error) {
	policy := ring.Block
	if cfg.AllowDrops || cfg.SlowSubs > 0 {
		policy = ring.DropNew
	}
	switch {
	case cfg.Target != nil:
		return &startedBroker{
			target: cfg.Target,
			info:   BrokerInfo{Kind: "external", Addr: cfg.Target.Addr},
			sample: func() brokerSample { return brokerSample{} },
			stop:   func() (BrokerCounters, error) { return BrokerCounters{}, nil },
		}, nil
	case cfg.Processes == 2:
		return spawn(ctx, policy, cfg.Topics)
	}
	bc, err := brokerConfig(policy, cfg.Tune)
	if err != nil {
		return nil, err
	}
	dev, info, err := newDev(bc, cfg.Topics)
	if err != nil {
		return nil, err
	}
	served := make(chan error, 1)
	go func() { served <- dev.Serve(context.Background()) }() // ends with stop
	info.Kind = "embedded"
	return &startedBroker{
		target: &Target{
			Addr: info.Addr, Tenant: dev.Tenant, Namespace: dev.Namespace, Stream: stream, Token: dev.Token, TLS: dev.ClientTLS(),
		},
		info: info.BrokerInfo,
		sample: func() brokerSample {
			counters, _ := countersOf(dev) // a sample that fails is missing
			return brokerSample{BrokerCounters: counters}
		},
		stop: func() (BrokerCounters, error) { return shutDown(dev, served) },
	}, nil
}

// brokerConfig returns the settings of a broker that is started for a run.
func brokerConfig(policy ring.Overflow, tune func(*broker.Config) error) (broker.Config, error) {
	cfg := broker.DefaultConfig()
	cfg.QueuePolicy = policy
	if tune != nil {
		if err := tune(&cfg); err != nil {
			return cfg, fmt.Errorf("loadgen: settings of the broker: %w", err)
		}
	}
	cfg.Bind = "127.0.0.1:0"
	return cfg, nil
}

// newDev makes a development broker on loopback and says what others need to know of it.
func newDev(cfg broker.Config, topics int) (*broker.Dev, ready, error) {
	streams := make([]string, max(topics, 1))
	for i := range streams {
		streams[i] = topicName(stream, i, len(streams))
	}
	dev, err := broker.NewDev(cfg, broker.DevOptions{Streams: streams})
	if err != nil {
		return nil, ready{}, fmt.Errorf("loadgen: starting a broker: %w", err)
	}
	socket := dev.Socket()
	return dev, ready{
		BrokerInfo: BrokerInfo{
			Addr: dev.Addr().String(), Policy: cfg.QueuePolicy.String(),
			ReceiveBuffer: socket.RecvBufferGranted, SendBuffer: socket.SendBufferGranted, GRO: socket.GRO, GSO: socket.GSO,
			ReceiveBufferAsked: socket.RecvBufferAsked, SendBufferAsked: socket.SendBufferAsked,
		},
		Tenant: dev.Tenant, Namespace: dev.Namespace, Token: dev.Token, CertPEM: dev.CertPEM,
	}, nil
}

func shutDown(dev *broker.Dev, served <-chan error) (BrokerCounters, error) {
	ctx, cancel := context.WithTimeout(context.Background(), stopTimeout)
	defer cancel()
	err := dev.Shutdown(ctx)
	if serveErr := <-served; !errors.Is(serveErr, broker.ErrShutdown) {
		err = errors.Join(err, serveErr)
	}
	if err != nil {
		return BrokerCounters{}, fmt.Errorf("loadgen: stopping the broker: %w", err)
	}
	return countersOf(dev)
}

func countersOf(dev *broker.Dev) (BrokerCounters, error) {
	families, err := dev.Registry().Gather()
	if err != nil {
		return BrokerCounters{}, fmt.Errorf("loadgen: reading the broker's metrics: %w", err)
	}
	var c BrokerCounters
	for _, f := range families {
		var field *uint64
		switch f.GetName() {
		case "felix_dropped_events_total":
			field = &c.DroppedEvents
		case "felix_publish_waits_total":
			field = &c.PublishWaits
		case "felix_subscriptions_stalled_total":
			field = &c.Stalled
		case "felix_quic_packets_sent_total":
			field = &c.PacketsSent
		case "felix_quic_packets_lost_total":
			field = &c.PacketsLost
		default:
			continue
		}
		for _, m := range f.GetMetric() {
			*field += uint64(m.GetCounter().GetValue())
		}
	}
	return c, nil
}

// serveArg is the first argument of a process that is a broker; the policy of its queues and the number of its topics
// follow.
const serveArg = "__serve-loadgen-broker"

// ready is the first line that such a process prints. It answers each line that it reads with a [brokerSample], and the
// end of its input with the last one.
type ready struct {
	BrokerInfo
	Tenant    string `json:"tenant"`
	Namespace string `json:"namespace"`
	Token     string `json:"token"`
	CertPEM   []byte `json:"cert_pem"`
}

// ServeBroker makes [Config.Processes] = 2 possible: the broker's process is another instance of this program, and a
// program that wants it calls ServeBroker before anything else in main. In the broker's process it serves and exits;
// in any other it returns at once. tune, if not nil, changes the settings of that broker.
func ServeBroker(tune func(*broker.Config) error) {
	if len(os.Args) != 4 || os.Args[1] != serveArg {
		return
	}
	// An interrupt from the terminal goes to both processes. This one ends when the other closes its input.
	signal.Ignore(os.Interrupt)
	if err := serveBroker(os.Args[2], os.Args[3], tune, selfproc.Input(), os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	fmt.Fprint(os.Stderr, telemetry.Text())
	os.Exit(0)
}

func serveBroker(policyName, topicsText string, tune func(*broker.Config) error, stdin io.Reader, stdout io.Writer) error {
	var policy ring.Overflow
	if err := policy.UnmarshalText([]byte(policyName)); err != nil {
		return fmt.Errorf("loadgen: %w", err)
	}
	topics, err := strconv.Atoi(topicsText)
	if err != nil {
		return fmt.Errorf("loadgen: number of topics: %w", err)
	}
	cfg, err := brokerConfig(policy, tune)
	if err != nil {
		return err
	}
	cfg.TuneRuntime() // as cmd/broker does
	dev, info, err := newDev(cfg, topics)
	if err != nil {
		return err
	}
	served := make(chan error, 1)
	go func() { served <- dev.Serve(context.Background()) }()
	out := json.NewEncoder(stdout)
	err = out.Encode(info)
	for in := bufio.NewScanner(stdin); err == nil && in.Scan(); { // until it is closed, however
		var s brokerSample
		if s.BrokerCounters, err = countersOf(dev); err == nil {
			s.Resources = new(resources())
			err = out.Encode(s)
		}
	}
	counters, stopErr := shutDown(dev, served)
	if err = errors.Join(err, stopErr); err != nil {
		return err
	}
	return out.Encode(brokerSample{BrokerCounters: counters})
}

// spawn starts a broker in another process of this program.
func spawn(ctx context.Context, policy ring.Overflow, topics int) (_ *startedBroker, err error) {
	p, err := selfproc.Start(nil, serveArg, policy.String(), strconv.Itoa(topics))
	if err != nil {
		return nil, fmt.Errorf("loadgen: starting a broker process: %w", err)
	}
	in := json.NewDecoder(bufio.NewReader(p.Out))
	// bound kills it unless it is called off in time.
	bound := func() *time.Timer {
		return time.AfterFunc(stopTimeout+time.Second, func() { _ = p.Process.Kill() })
	}
	stop := func() (BrokerCounters, error) {
		defer bound().Stop()
		_ = p.In.Close()
		var last brokerSample
		err := in.Decode(&last)
		if errors.Is(err, io.EOF) {
			err = nil // the exit status says why it printed nothing
		}
		if err = errors.Join(err, p.Wait()); err != nil {
			return BrokerCounters{}, fmt.Errorf("loadgen: broker process: %w", err)
		}
		return last.BrokerCounters, nil
	}
	var r ready
	unblock := context.AfterFunc(ctx, func() { _ = p.Process.Kill() })
	err = in.Decode(&r)
	unblock()
	roots := x509.NewCertPool()
	if err == nil && !roots.AppendCertsFromPEM(r.CertPEM) {
		err = errors.New("it sent no certificate")
	}
	if err != nil {
		_, stopErr := stop()
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		return nil, errors.Join(fmt.Errorf("loadgen: the broker process did not begin to serve: %w", err), stopErr)
	}
	r.Kind = "process"
	return &startedBroker{
		target: &Target{
			Addr: r.Addr, Tenant: r.Tenant, Namespace: r.Namespace, Stream: stream, Token: r.Token,
			TLS: &tls.Config{RootCAs: roots, ServerName: "localhost", MinVersion: tls.VersionTLS13},
		},
		info: r.BrokerInfo,
		sample: func() (s brokerSample) {
			defer bound().Stop()
			if _, err := io.WriteString(p.In, "\n"); err == nil {
				_ = in.Decode(&s) // a sample that fails is missing; the end says why
			}
			return s
		},
		stop: stop,
	}, nil
}
