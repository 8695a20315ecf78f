package loadgen

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/felix-mq/felix/broker"
	"github.com/felix-mq/felix/internal/child"
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

// brokerRole is the role of a process that is a broker. It answers each question with a [brokerSample], and its account
// is the last one.
const brokerRole = "loadgen-broker"

// brokerJob says how such a process differs from others.
type brokerJob struct {
	Policy ring.Overflow
	Topics int
}

// ready is what such a process says when it serves.
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
	child.Serve(brokerRole, func(_ context.Context, job brokerJob, parent *child.Parent) (any, error) {
		counters, err := serveBroker(job, tune, parent)
		fmt.Fprint(os.Stderr, telemetry.Text())
		return brokerSample{BrokerCounters: counters}, err
	})
}

func serveBroker(job brokerJob, tune func(*broker.Config) error, parent *child.Parent) (BrokerCounters, error) {
	cfg, err := brokerConfig(job.Policy, tune)
	if err != nil {
		return BrokerCounters{}, err
	}
	cfg.TuneRuntime() // as cmd/broker does
	dev, info, err := newDev(cfg, job.Topics)
	if err != nil {
		return BrokerCounters{}, err
	}
	served := make(chan error, 1)
	go func() { served <- dev.Serve(context.Background()) }()
	err = parent.Send(info)
	for err == nil {
		if err = parent.Receive(new(struct{})); err != nil {
			break
		}
		var s brokerSample
		if s.BrokerCounters, err = countersOf(dev); err == nil {
			s.Resources = new(resources())
			err = parent.Send(s)
		}
	}
	if errors.Is(err, io.EOF) {
		err = nil
	}
	counters, stopErr := shutDown(dev, served)
	return counters, errors.Join(err, stopErr)
}

// spawn starts a broker in another process of this program.
func spawn(ctx context.Context, policy ring.Overflow, topics int) (*startedBroker, error) {
	var r ready
	p, err := child.Start(ctx, brokerRole, brokerJob{policy, topics}, nil, &r)
	if err != nil {
		return nil, fmt.Errorf("loadgen: starting a broker: %w", err)
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(r.CertPEM) {
		return nil, errors.Join(errors.New("loadgen: the broker process sent no certificate"), p.Stop(nil))
	}
	r.Kind = "process"
	return &startedBroker{
		target: &Target{
			Addr: r.Addr, Tenant: r.Tenant, Namespace: r.Namespace, Stream: stream, Token: r.Token,
			TLS: &tls.Config{RootCAs: roots, ServerName: "localhost", MinVersion: tls.VersionTLS13},
		},
		info: r.BrokerInfo,
		sample: func() (s brokerSample) {
			defer time.AfterFunc(stopTimeout, func() { _ = p.Kill() }).Stop()
			_ = p.Ask(struct{}{}, &s) // a sample that fails is missing; the end says why
			return s
		},
		stop: func() (BrokerCounters, error) {
			var last brokerSample
			err := p.Stop(&last)
			return last.BrokerCounters, err
		},
	}, nil
}
