package loadgen

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/felix-mq/felix/broker"
	"github.com/felix-mq/felix/loadgen/brokerproc"
	"github.com/felix-mq/felix/quicx"
	"github.com/felix-mq/felix/ring"
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
	dev, err := newDev(bc, cfg.Topics)
	if err != nil {
		return nil, err
	}
	served := make(chan error, 1)
	go func() { served <- dev.Serve(context.Background()) }() // ends with stop
	info := infoOf("embedded", dev.Addr().String(), bc.QueuePolicy.String(), dev.Socket())
	return &startedBroker{
		target: &Target{
			Addr: info.Addr, Tenant: dev.Tenant, Namespace: dev.Namespace, Stream: stream, Token: dev.Token, TLS: dev.ClientTLS(),
		},
		info: info,
		sample: func() brokerSample {
			counters, _ := countersOf(dev) // a sample that fails is missing
			return brokerSample{BrokerCounters: counters}
		},
		stop: func() (BrokerCounters, error) { return shutDown(dev, served) },
	}, nil
}

// infoOf tells of a broker that was started for a run.
func infoOf(kind, addr, policy string, s quicx.SocketInfo) BrokerInfo {
	return BrokerInfo{
		Kind: kind, Addr: addr, Policy: policy, ReceiveBuffer: s.RecvBufferGranted, SendBuffer: s.SendBufferGranted, GRO: s.GRO, GSO: s.GSO,
		ReceiveBufferAsked: s.RecvBufferAsked, SendBufferAsked: s.SendBufferAsked,
	}
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

// newDev makes a development broker on loopback.
func newDev(cfg broker.Config, topics int) (*broker.Dev, error) {
	dev, err := broker.NewDev(cfg, broker.DevOptions{Streams: topicNames(topics)})
	if err != nil {
		return nil, fmt.Errorf("loadgen: starting a broker: %w", err)
	}
	return dev, nil
}

// topicNames are the streams of a broker with so many topics, at least one.
func topicNames(topics int) []string {
	names := make([]string, max(topics, 1))
	for i := range names {
		names[i] = topicName(stream, i, len(names))
	}
	return names
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
	metrics, err := brokerproc.Metrics(dev.Broker)
	return countersIn(metrics), err
}

func countersIn(metrics map[string]float64) BrokerCounters {
	return BrokerCounters{
		DroppedEvents: uint64(metrics["felix_dropped_events_total"]),
		PublishWaits:  uint64(metrics["felix_publish_waits_total"]),
		Stalled:       uint64(metrics["felix_subscriptions_stalled_total"]),
		PacketsSent:   uint64(metrics["felix_quic_packets_sent_total"]),
		PacketsLost:   uint64(metrics["felix_quic_packets_lost_total"]),
	}
}

// spawn starts a broker in another process of this program.
func spawn(ctx context.Context, policy ring.Overflow, topics int) (*startedBroker, error) {
	p, err := brokerproc.StartWith(ctx, brokerproc.Options{Streams: topicNames(topics), Policy: &policy})
	if err != nil {
		return nil, fmt.Errorf("loadgen: starting a broker: %w", err)
	}
	info := infoOf("process", p.Addr, p.Policy, p.Socket)
	return &startedBroker{
		target: TargetOf(p, stream),
		info:   info,
		sample: func() (s brokerSample) {
			defer time.AfterFunc(stopTimeout, func() { _ = p.Kill() }).Stop()
			metrics, err := p.Metrics() // a sample that fails is missing; the end says why
			if r, rErr := p.Resources(); err == nil && rErr == nil {
				s = brokerSample{BrokerCounters: countersIn(metrics), Resources: &r}
			}
			return s
		},
		stop: func() (BrokerCounters, error) {
			metrics, err := p.StopAndCount()
			return countersIn(metrics), err
		},
	}, nil
}

// TargetOf is a broker in a process of its own, of which one stream, or cache, is to be loaded.
func TargetOf(p *brokerproc.Process, stream string) *Target {
	return &Target{Addr: p.Addr, Tenant: p.Tenant, Namespace: p.Namespace, Stream: stream, Token: p.Token, TLS: p.TLS}
}
