package main

import (
	"bufio"
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"sync"

	"github.com/eclipse/paho.golang/paho"
)

const (
	mosquittoName    = "mosquitto"
	mosquittoProgram = "mosquitto"
)

var mosquittoPeer = peer{
	title: "Mosquitto",
	setup: "mosquitto of the system, persistence and $SYS off, no log, TCP_NODELAY, no limit on queued messages (the window is one), QoS 0. " +
		"Client paho.golang (MQTT 5) on a connection with buffers of 64 KiB, since it makes several reads and writes for each message: a publisher's is flushed after all that the window allows, 1 MiB at most.",
	knobs: []knob{
		inFlightKnob, loadProcsKnob,
		{name: writeBuffer, about: "of each connection of the client, and as much to read", values: []int{64 << 10, 256 << 10}, bytes: true},
		{name: noDelay, about: "TCP_NODELAY of the server's sockets", values: []int{1, 0}},
		socketBufferKnob,
	},
	version: func() (string, error) { return versionOf("version", mosquittoProgram, "-h") },
	start:   startMosquitto,
	connect: connectMosquitto,
}

func startMosquitto(ctx context.Context, secure bool, set settings) (*server, error) {
	s, err := startServer(ctx, mosquittoProgram, func(f files) ([]string, error) {
		conf := "listener " + f.port + " 127.0.0.1\nallow_anonymous true\npersistence false\nlog_type none\nsys_interval 0\n" +
			"set_tcp_nodelay " + strconv.FormatBool(set[noDelay] != 0) + "\nmax_queued_messages 0\nuser root\n" // as who started it: others cannot read the directory
		if secure {
			conf += "tls_version tlsv1.3\ncertfile " + f.cert + "\nkeyfile " + f.key + "\n"
		}
		file := filepath.Join(f.dir, "mosquitto.conf")
		return []string{"-c", file}, os.WriteFile(file, []byte(conf), 0o600)
	})
	if err == nil && !secure {
		s.tls = nil
	}
	return s, err
}

type mosquittoSession struct {
	c          *paho.Client
	conn       *bufferedConn
	subscribed bool
	done       context.CancelFunc // before the connection is closed on purpose
}

func connectMosquitto(ctx context.Context, s *server, set settings, fail func(error)) (session, error) {
	raw, err := set.dial(ctx, s.addr)
	if err != nil {
		return nil, err
	}
	if s.tls != nil {
		raw = tls.Client(raw, s.tls)
	}
	open, done := context.WithCancel(ctx)
	failed := func(err error) {
		if open.Err() == nil {
			fail(fmt.Errorf("mosquitto: connection: %w", err))
		}
	}
	m := &mosquittoSession{conn: newBufferedConn(raw, set[writeBuffer]), done: done}
	m.c = paho.NewClient(paho.ClientConfig{
		Conn:               m.conn,
		OnClientError:      failed,
		OnServerDisconnect: func(d *paho.Disconnect) { failed(fmt.Errorf("reason %d", d.ReasonCode)) },
	})
	ack, err := m.c.Connect(ctx, &paho.Connect{CleanStart: true})
	if err == nil && ack.ReasonCode != 0 {
		err = fmt.Errorf("refused with reason %d", ack.ReasonCode)
	}
	if err != nil {
		done()
		_ = raw.Close()
		return nil, err
	}
	return m, nil
}

func (m *mosquittoSession) subscribe(ctx context.Context, receive func([]byte)) error {
	if m.subscribed {
		return errOneSubscription
	}
	m.subscribed = true
	m.c.AddOnPublishReceived(func(p paho.PublishReceived) (bool, error) {
		receive(p.Packet.Payload)
		return true, nil
	})
	_, err := m.c.Subscribe(ctx, &paho.Subscribe{Subscriptions: []paho.SubscribeOptions{{Topic: subject}}})
	return err
}

func (m *mosquittoSession) publish(ctx context.Context, events [][]byte) error {
	m.conn.hold()
	for _, event := range events {
		if _, err := m.c.Publish(ctx, &paho.Publish{Topic: subject, Payload: event}); err != nil {
			return err
		}
	}
	return m.conn.flush()
}

func (m *mosquittoSession) close() {
	m.done()
	_ = m.c.Disconnect(&paho.Disconnect{})
}

// bufferedConn is a connection for package paho, which locks it for each packet.
type bufferedConn struct {
	net.Conn
	in *bufio.Reader

	mu   sync.Mutex
	out  *bufio.Writer // guarded by mu
	held bool          // guarded by mu; packets wait for flush
}

func newBufferedConn(c net.Conn, size int) *bufferedConn {
	return &bufferedConn{Conn: c, in: bufio.NewReaderSize(c, size), out: bufio.NewWriterSize(c, size)}
}

func (c *bufferedConn) Read(b []byte) (int, error) { return c.in.Read(b) }

// Write is called with the lock held.
func (c *bufferedConn) Write(b []byte) (int, error) { return c.out.Write(b) }

func (c *bufferedConn) Lock() { c.mu.Lock() }

// Unlock ends a packet.
func (c *bufferedConn) Unlock() {
	if !c.held {
		_ = c.out.Flush() // what is wrong with the connection shows when it is read
	}
	c.mu.Unlock()
}

func (c *bufferedConn) hold() {
	c.mu.Lock()
	c.held = true
	c.mu.Unlock()
}

func (c *bufferedConn) flush() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.held = false
	return c.out.Flush()
}
