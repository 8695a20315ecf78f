package broker

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"time"

	"github.com/felix-mq/felix/auth"
	"github.com/felix-mq/felix/catalog"
	"github.com/felix-mq/felix/internal/dev"
)

// DevOptions name what a development broker begins with. Zero values mean those of [DefaultDevOptions].
type DevOptions struct {
	Tenant    string        `env:"FELIX_DEV_TENANT" doc:"tenant of development mode"`
	Namespace string        `env:"FELIX_DEV_NAMESPACE" doc:"namespace of development mode"`
	Streams   []string      `env:"FELIX_DEV_STREAMS" doc:"streams of development mode"`
	Cache     string        `env:"FELIX_DEV_CACHE" doc:"cache of development mode"`
	TokenLife time.Duration `env:"FELIX_DEV_TOKEN_LIFETIME" min:"1s" max:"87600h" doc:"lifetime of the development token"`
	Hosts     []string      `env:"FELIX_DEV_HOSTS" doc:"names and addresses in the certificate of development mode, in addition to localhost"`

	// Key signs the tokens; nil makes one afresh. Its kid is [DevKeyID].
	Key ed25519.PrivateKey
	// Certificate is what the broker shows its clients; nil makes one afresh, for localhost and Hosts. It must be
	// self-signed.
	Certificate *tls.Certificate
}

// DefaultDevOptions returns the names that a development broker begins with if it is given no others.
func DefaultDevOptions() DevOptions {
	return DevOptions{Tenant: "t1", Namespace: "default", Streams: []string{"demo"}, Cache: "primary", TokenLife: 24 * time.Hour}
}

func (o *DevOptions) ensureDefaults() {
	d := DefaultDevOptions()
	setDefault(&o.Tenant, d.Tenant)
	setDefault(&o.Namespace, d.Namespace)
	setDefault(&o.Cache, d.Cache)
	setDefault(&o.TokenLife, d.TokenLife)
	if len(o.Streams) == 0 {
		o.Streams = d.Streams
	}
}

// Validate reports every name that is none, by the key of its setting.
func (o DevOptions) Validate() error {
	o.ensureDefaults()
	var errs []error
	check := func(key string, valid func(string) error, name string) {
		if err := valid(name); err != nil {
			errs = append(errs, fmt.Errorf("broker: %s: %w", key, err))
		}
	}
	check("dev_tenant", auth.ValidTenant, o.Tenant)
	check("dev_namespace", auth.ValidName, o.Namespace)
	check("dev_cache", auth.ValidName, o.Cache)
	for _, s := range o.Streams {
		check("dev_streams", auth.ValidName, s)
	}
	return errors.Join(errs...)
}

// DevKeyID is the kid of the key that signs development tokens.
const DevKeyID = "dev-1"

// Dev is a broker that can be used at once, and what its clients need: for trying things out, for tests and for load
// generators. What it makes afresh lives in memory only.
type Dev struct {
	*Broker
	DevOptions

	// Token lets its bearer do everything in the tenant.
	Token string
	// Roots trusts the broker's certificate; CertPEM is that certificate, for clients in other processes. Both are nil
	// if the configuration came with one.
	Roots   *x509.CertPool
	CertPEM []byte

	signer *auth.Signer
}

// NewDev makes a broker as [New] does, with a tenant, a namespace, streams, a cache and a token of its own, and with a
// certificate, which lives in memory only, unless cfg.TLS has one. Keys in cfg is overwritten. With a data directory in
// cfg its streams are durable.
func NewDev(cfg Config, o DevOptions) (*Dev, error) {
	o.ensureDefaults()
	if err := o.Validate(); err != nil {
		return nil, err
	}
	if o.Key == nil {
		_, key, err := ed25519.GenerateKey(rand.Reader)
		if err != nil {
			return nil, fmt.Errorf("broker: making a development key: %w", err)
		}
		o.Key = key
	}
	signer, err := auth.NewSigner(o.Key, DevKeyID)
	if err != nil {
		return nil, fmt.Errorf("broker: development mode: %w", err)
	}
	var roots *x509.CertPool
	var certPEM []byte
	if cfg.TLS == nil {
		if o.Certificate == nil {
			cert, _, err := dev.SelfSigned(dev.Localhost(o.Hosts...)...)
			if err != nil {
				return nil, fmt.Errorf("broker: making a development certificate: %w", err)
			}
			o.Certificate = &cert
		}
		certPEM = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: o.Certificate.Certificate[0]})
		roots = x509.NewCertPool()
		roots.AppendCertsFromPEM(certPEM)
		cfg.TLS = &tls.Config{Certificates: []tls.Certificate{*o.Certificate}}
	}
	cfg.Keys = auth.StaticKeys{o.Tenant: auth.KeySet{signer.Key()}}
	b, err := New(cfg)
	if err != nil {
		return nil, err
	}
	d := &Dev{
		Broker: b, DevOptions: o, Roots: roots, signer: signer,
		CertPEM: certPEM,
	}
	var errs []error
	for _, s := range o.Streams {
		errs = append(errs, b.PutStream(o.Tenant, o.Namespace, s, catalog.Stream{Durable: cfg.Storage.Dir != ""}))
	}
	errs = append(errs, b.AddCache(o.Tenant, o.Namespace, o.Cache))
	d.Token, err = d.Mint(
		"stream.publish:stream:"+o.Tenant+"/*", "stream.subscribe:stream:"+o.Tenant+"/*",
		"cache.read:cache:"+o.Tenant+"/*", "cache.write:cache:"+o.Tenant+"/*",
	)
	if err := errors.Join(append(errs, err)...); err != nil {
		b.closeAll(context.Background())
		return nil, err
	}
	return d, nil
}

// Mint makes a token of the development tenant with the given permissions (docs/protocol/tokens.md#permissions).
func (d *Dev) Mint(permissions ...string) (string, error) {
	now := d.cfg.Now()
	return d.signer.Mint(auth.Claims{
		Tenant: d.Tenant, Subject: "dev", IssuedAt: now, Expires: now.Add(d.TokenLife), Permissions: permissions,
	})
}

// ClientTLS returns the configuration with which a client trusts the broker.
func (d *Dev) ClientTLS() *tls.Config {
	return &tls.Config{RootCAs: d.Roots, ServerName: "localhost", MinVersion: tls.VersionTLS13}
}
