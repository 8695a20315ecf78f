package conformance

import (
	"bytes"
	"crypto/ed25519"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"os"

	"github.com/felix-mq/felix/codec"
)

// Fixture is what a broker was set up with, and what is known of it: names, the key that signs its tenant's tokens, how
// to trust its certificate, and limits. It is read from a JSON file; README of the members:
// docs/protocol/conformance.md.
//
// Nobody else may use the streams while the cases run.
type Fixture struct {
	Tenant    string `json:"tenant"`
	Namespace string `json:"namespace"`
	// Stream and OtherStream exist; streams and caches whose names begin with "conformance-" do not.
	Stream      string `json:"stream"`
	OtherStream string `json:"other_stream"`
	Cache       string `json:"cache"`
	// DurableStream exists and is durable; empty means that the broker has none, and skips what needs one.
	DurableStream string `json:"durable_stream"`

	// SigningKey is an Ed25519 private key, PKCS #8 in PEM, whose public half the broker knows for Tenant, under KeyID.
	SigningKey string `json:"signing_key"`
	KeyID      string `json:"kid"`

	// ServerName is what the certificate has to be valid for; empty means the host of the address. CA are the
	// certificates to trust, in PEM; empty means the system's. Insecure trusts any.
	ServerName string `json:"server_name"`
	CA         string `json:"ca"`
	Insecure   bool   `json:"insecure"`

	// MaxFrameBytes is the broker's limit for a payload; zero means 16 MiB.
	MaxFrameBytes int `json:"max_frame_bytes"`
	// MaxStreams is how many bi-directional streams the broker allows on a connection; zero means 1024.
	MaxStreams int `json:"max_streams"`
	// MaxSubscriptions is how many active subscriptions it allows on a connection; zero means 4096.
	MaxSubscriptions int `json:"max_subscriptions"`
	// ReplayBytes and ReplayEvents bound what the broker keeps of a stream for replay: after more than both was
	// published, the older part is gone. Zero means 1 MiB and 1024.
	ReplayBytes  int `json:"replay_bytes"`
	ReplayEvents int `json:"replay_events"`

	// Reference says that the broker is the reference implementation: an error before the error end of a stream may be
	// lost, and what docs/start/from-the-reference.md#defects lists as its defects is not asked for.
	Reference bool `json:"reference"`

	key ed25519.PrivateKey
}

// Defaults of [Fixture].
const (
	defaultMaxStreams       = 1024
	defaultMaxSubscriptions = 4096
	defaultReplayBytes      = 1 << 20
	defaultReplayEvents     = 1024
)

// ReadFixture reads a fixture from a file. Unknown members are an error that names the member.
func ReadFixture(path string) (Fixture, error) {
	content, err := os.ReadFile(path)
	if err != nil {
		return Fixture{}, fmt.Errorf("conformance: reading the fixture: %w", err)
	}
	f, err := ParseFixture(content)
	if err != nil {
		return Fixture{}, fmt.Errorf("conformance: fixture %s: %w", path, err)
	}
	return f, nil
}

// ParseFixture reads a fixture as [ReadFixture] does, and reports every problem at once.
func ParseFixture(content []byte) (Fixture, error) {
	var f Fixture
	dec := json.NewDecoder(bytes.NewReader(content))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&f); err != nil {
		return Fixture{}, err
	}
	if dec.More() {
		return Fixture{}, errors.New("something follows the object")
	}
	return f, f.prepare()
}

// prepare fills in the defaults, parses the key and reports every problem at once.
func (f *Fixture) prepare() error {
	setDefault(&f.MaxFrameBytes, codec.DefaultMaxFrame)
	setDefault(&f.MaxStreams, defaultMaxStreams)
	setDefault(&f.MaxSubscriptions, defaultMaxSubscriptions)
	setDefault(&f.ReplayBytes, defaultReplayBytes)
	setDefault(&f.ReplayEvents, defaultReplayEvents)
	var errs []error
	for _, m := range []struct{ name, value string }{
		{"tenant", f.Tenant},
		{"namespace", f.Namespace},
		{"stream", f.Stream},
		{"other_stream", f.OtherStream},
		{"cache", f.Cache},
		{"signing_key", f.SigningKey},
		{"kid", f.KeyID},
	} {
		if m.value == "" {
			errs = append(errs, fmt.Errorf("%q is missing", m.name))
		}
	}
	if f.DurableStream != "" && (f.DurableStream == f.Stream || f.DurableStream == f.OtherStream) {
		errs = append(errs, errors.New(`"durable_stream" is one of the other streams`))
	}
	if f.Stream != "" && f.Stream == f.OtherStream {
		errs = append(errs, errors.New(`"stream" and "other_stream" are the same`))
	}
	for _, m := range []struct {
		name  string
		value int
	}{
		{"max_frame_bytes", f.MaxFrameBytes},
		{"max_streams", f.MaxStreams},
		{"max_subscriptions", f.MaxSubscriptions},
		{"replay_bytes", f.ReplayBytes},
		{"replay_events", f.ReplayEvents},
	} {
		if m.value < 0 {
			errs = append(errs, fmt.Errorf("%q is negative", m.name))
		}
	}
	if f.SigningKey != "" {
		key, err := parseKey(f.SigningKey)
		if err != nil {
			errs = append(errs, fmt.Errorf(`"signing_key": %w`, err))
		}
		f.key = key
	}
	if _, err := f.tls(); err != nil {
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

func setDefault[T comparable](field *T, value T) {
	var zero T
	if *field == zero {
		*field = value
	}
}

func parseKey(text string) (ed25519.PrivateKey, error) {
	block, _ := pem.Decode([]byte(text))
	if block == nil {
		return nil, errors.New("no PEM block")
	}
	parsed, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, err
	}
	key, ok := parsed.(ed25519.PrivateKey)
	if !ok {
		return nil, fmt.Errorf("a key of type %T, want Ed25519", parsed)
	}
	return key, nil
}

// EncodeKey returns a private key in the form of [Fixture.SigningKey].
func EncodeKey(key ed25519.PrivateKey) (string, error) {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return "", fmt.Errorf("conformance: %w", err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})), nil
}

func (f *Fixture) tls() (*tls.Config, error) {
	conf := &tls.Config{ServerName: f.ServerName, InsecureSkipVerify: f.Insecure, MinVersion: tls.VersionTLS13}
	if f.CA != "" {
		conf.RootCAs = x509.NewCertPool()
		if !conf.RootCAs.AppendCertsFromPEM([]byte(f.CA)) {
			return nil, errors.New(`"ca" holds no certificate`)
		}
	}
	return conf, nil
}
