package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/felix-mq/felix/internal/dev"
)

// missingError says that this machine does not have a server.
type missingError struct{ program string }

func (e *missingError) Error() string { return e.program + " is not installed" }

// files is the directory of a foreign server, and the port that it has to listen on.
type files struct {
	dir, port string
	cert, key string // files of PEM; the certificate signs itself
}

// startServer starts a server program with the arguments that args returns, and waits until it listens on a port of
// loopback. It has a directory with a certificate, which goes with it. It ends with ctx or stop.
func startServer(ctx context.Context, program string, args func(f files) ([]string, error)) (*server, error) {
	path, err := exec.LookPath(program)
	if err != nil {
		return nil, &missingError{program}
	}
	dir, err := os.MkdirTemp("", "felix-peers-")
	if err != nil {
		return nil, err
	}
	s, err := serverIn(ctx, dir, path, args)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("%s: %w", program, err), os.RemoveAll(dir))
	}
	return s, nil
}

func serverIn(ctx context.Context, dir, path string, args func(f files) ([]string, error)) (*server, error) {
	f := files{dir: dir, cert: filepath.Join(dir, "cert.pem"), key: filepath.Join(dir, "key.pem")}
	conf, err := f.writeCertificate()
	if err != nil {
		return nil, err
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	addr := l.Addr().String()
	if err := l.Close(); err != nil {
		return nil, err
	}
	_, f.port, _ = net.SplitHostPort(addr)
	argv, err := args(f)
	if err != nil {
		return nil, err
	}
	cmd := exec.CommandContext(ctx, path, argv...)
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	s := &server{addr: addr, tls: conf, stop: func() error {
		_ = cmd.Process.Kill()
		_ = cmd.Wait() // that it was killed is no news
		return os.RemoveAll(dir)
	}}
	for range 2000 { // 20 s
		if c, err := net.Dial("tcp", addr); err == nil {
			return s, c.Close()
		}
		select {
		case <-time.After(10 * time.Millisecond):
		case <-ctx.Done():
			return nil, errors.Join(context.Cause(ctx), s.stop())
		}
	}
	return nil, errors.Join(errors.New("it does not listen"), s.stop())
}

// writeCertificate writes a certificate and its key, and returns what a client needs to trust it.
func (f files) writeCertificate() (*tls.Config, error) {
	cert, _, err := dev.SelfSigned()
	if err != nil {
		return nil, err
	}
	key, err := dev.KeyPEM(cert)
	if err != nil {
		return nil, err
	}
	certPEM := dev.CertPEM(cert.Leaf)
	if err := errors.Join(os.WriteFile(f.cert, certPEM, 0o600), os.WriteFile(f.key, key, 0o600)); err != nil {
		return nil, err
	}
	return dev.ClientTLS(certPEM)
}

// versionOf returns the word that follows a word in the output of a program, if it is installed.
func versionOf(before string, program string, args ...string) (string, error) {
	path, err := exec.LookPath(program)
	if err != nil {
		return "", &missingError{program}
	}
	out, _ := exec.Command(path, args...).Output() // mosquitto -h fails
	words := strings.Fields(string(out))
	for i, word := range words[:max(0, len(words)-1)] {
		if word == before {
			return words[i+1], nil
		}
		if v, ok := strings.CutPrefix(word, before+"="); ok {
			return v, nil
		}
	}
	return "", fmt.Errorf("%s does not tell its version", program)
}
