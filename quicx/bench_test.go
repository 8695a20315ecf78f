package quicx

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"testing"

	"github.com/quic-go/quic-go"
)

// BenchmarkPipe sends one stream over loopback within one process. "socket=plain" is quic-go on an ordinary UDP socket,
// "raw" ours without GRO.
func BenchmarkPipe(b *testing.B) {
	for _, mode := range []string{"plain", "raw", "gro"} {
		b.Run("socket="+mode, func(b *testing.B) {
			client := benchConnect(b, mode)
			s, err := client.OpenUniStream()
			if err != nil {
				b.Fatal(err)
			}
			data := make([]byte, 64<<10)
			b.SetBytes(int64(len(data)))
			b.ReportAllocs()
			for b.Loop() {
				if _, err := s.Write(data); err != nil {
					b.Fatal(err)
				}
			}
			stats := client.ConnectionStats()
			b.ReportMetric(float64(stats.PacketsLost)/float64(b.N), "lost/op")
		})
	}
}

// BenchmarkRoundTrip sends a small message there and back.
func BenchmarkRoundTrip(b *testing.B) {
	for _, mode := range []string{"plain", "raw", "gro"} {
		b.Run("socket="+mode, func(b *testing.B) {
			client := benchConnect(b, mode)
			s, err := client.OpenStream()
			if err != nil {
				b.Fatal(err)
			}
			data := make([]byte, 1<<10)
			b.ReportAllocs()
			for b.Loop() {
				if _, err := s.Write(data); err != nil {
					b.Fatal(err)
				}
				if _, err := io.ReadFull(s, data); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// benchConnect returns a connection to a peer that reads every unidirectional stream and echoes every other.
func benchConnect(b *testing.B, mode string) *quic.Conn {
	b.Helper()
	cfg := Config{DisableGRO: mode == "raw"}.withDefaults()
	serverConf, clientConf := devTLS(b)
	transport := func() *quic.Transport {
		conn, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
		if err != nil {
			b.Fatal(err)
		}
		b.Cleanup(func() { conn.Close() })
		tr := &quic.Transport{Conn: conn}
		if mode != "plain" {
			sock, err := newSocket(conn, cfg)
			if err != nil {
				b.Fatal(err)
			}
			tr.Conn = sock
		}
		b.Cleanup(func() { tr.Close() })
		return tr
	}
	server := transport()
	ln, err := server.Listen(tlsRules(serverConf), cfg.quic())
	if err != nil {
		b.Fatal(err)
	}
	go func() {
		conn, err := ln.Accept(b.Context())
		if err != nil {
			return
		}
		go func() {
			for {
				s, err := conn.AcceptStream(b.Context())
				if err != nil {
					return
				}
				go io.Copy(s, s) //nolint:errcheck // until the connection ends
			}
		}()
		for {
			s, err := conn.AcceptUniStream(b.Context())
			if err != nil {
				return
			}
			go io.CopyBuffer(struct{ io.Writer }{io.Discard}, struct{ io.Reader }{s}, make([]byte, 64<<10)) //nolint:errcheck // until the connection ends
		}
	}()
	clientConf = tlsRules(clientConf)
	clientConf.ServerName = "localhost"
	client, err := transport().Dial(b.Context(), ln.Addr(), clientConf, cfg.quic())
	if err != nil {
		b.Fatal(err)
	}
	return client
}

// BenchmarkFrameReader reads frames from memory, in pieces as a busy stream delivers them.
func BenchmarkFrameReader(b *testing.B) {
	for _, size := range []int{256, 4 << 10, 64 * 4104} {
		b.Run(fmt.Sprintf("size=%d", size), func(b *testing.B) {
			frame := appendFrame(nil, 0, make([]byte, size))
			src := newFakeStream(b, bytes.Repeat(frame, 1+(1<<20)/len(frame)))
			src.loop = true
			src.split = func(have int) int { return min(have, 60_000) }
			r := newFrameReader(src, 0)
			defer r.Close()
			b.SetBytes(int64(len(frame)))
			b.ReportAllocs()
			for b.Loop() {
				if _, err := r.Next(); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkFramesOverQUIC sends frames in batches of 64 through a writer and a reader.
func BenchmarkFramesOverQUIC(b *testing.B) {
	for _, size := range []int{256, 4 << 10, 64 * 4104} {
		b.Run(fmt.Sprintf("size=%d", size), func(b *testing.B) {
			server, client := connect(b, Config{}, Config{})
			send, acceptRecv := uniStream(b, client, server)
			frame := appendFrame(nil, 0, make([]byte, size))
			batch := make([][]byte, max(1, min(64, (256<<10)/size)))
			for i := range batch {
				batch[i] = frame
			}
			go func() {
				w := NewFrameWriter(send, 0)
				for w.WriteBatch(batch) == nil {
				}
			}()
			r := NewFrameReader(acceptRecv(), 0)
			defer r.Close()
			b.SetBytes(int64(len(frame)))
			b.ReportAllocs()
			for b.Loop() {
				if _, err := r.Next(); err != nil {
					b.Fatal(err)
				}
			}
			client.Close(0, "")
		})
	}
}
