package main

import (
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/felix-mq/felix/auth"
	"github.com/felix-mq/felix/broker"
	"github.com/felix-mq/felix/catalog"
	"github.com/felix-mq/felix/internal/dev"
)

// Files that felix dev keeps in its directory.
const (
	fileCA    = "ca.pem"
	fileCAKey = "ca-key.pem"
	fileCert  = "cert.pem"
	fileKey   = "key.pem"
	// With fileSigningKey tokens are signed; fileToken is one for everything.
	fileSigningKey = "signing-key.pem"
	fileToken      = "token"
	fileCatalog    = "catalog.yaml"
	fileLock       = "lock"
)

// devContext is the context that felix dev makes. A second one at the same time makes devContext-2, and so on.
const devContext = "dev"

// devHome is where a felix dev keeps what it makes, and the context that leads to it. Nobody else has them while it
// runs.
type devHome struct {
	context string // empty for none
	dir     string // empty for none: everything is in memory and in the context
	locks   []*os.File

	// What goes with the process. A context that was there before is put back: see restoreContext.
	removeDir, removeContext bool
	before                   *connection
	madeCurrent              bool // the context was not in use before
}

// openHome finds a context and a directory that no other felix dev has. The context may be named, and so may the
// directory unless dir is nil.
func openHome(named string, dir *string, noContext bool, errOut io.Writer) (*devHome, error) {
	h := &devHome{}
	err := h.open(named, dir, noContext, errOut)
	if err != nil {
		h.close()
		return nil, err
	}
	return h, nil
}

func (h *devHome) open(named string, dir *string, noContext bool, errOut io.Writer) error {
	if !noContext {
		_, err := contextsPath()
		if err == nil {
			if err = h.takeContext(named); isUsage(err) {
				return err
			}
		}
		if err != nil {
			fmt.Fprintf(errOut, "no context is made: %s\n", plain(err))
			h.context, h.removeContext = "", false
		}
	}
	var err error
	switch {
	case dir != nil && (*dir != "" || h.context != ""):
		h.dir = *dir
	case h.context != "":
		if h.dir, err = keptDir(h.context); err != nil {
			return err
		}
	default:
		h.removeDir = true
		h.dir, err = os.MkdirTemp("", "felix-dev-")
		return err
	}
	if h.dir == "" {
		h.removeContext = true // it holds the token and the certificate of this process alone
		return nil
	}
	if err := os.MkdirAll(h.dir, 0o755); err != nil { // what is secret has a mode of its own
		return err
	}
	lock, err := lockFile(filepath.Join(h.dir, fileLock))
	if err == nil && lock == nil {
		err = usageError{fmt.Errorf("%s is in use by another felix dev", h.dir), "another broker? With another --dir and --bind there can be both"}
	}
	if err != nil {
		return err
	}
	h.locks = append(h.locks, lock)
	return nil
}

// takeContext takes the context of a name, or the first of dev, dev-2 and so on that no felix dev has and that felix
// dev may replace.
func (h *devHome) takeContext(named string) error {
	all, err := loadContexts()
	if err != nil {
		return err
	}
	kept := filepath.Join(filepath.Dir(all.path), "brokers")
	if err := os.MkdirAll(kept, 0o700); err != nil {
		return err
	}
	for n := 1; ; n++ {
		name := named
		if named == "" {
			name = devContext
		}
		if n > 1 {
			name = fmt.Sprintf("%s-%d", devContext, n)
		}
		old, exists := all.Contexts[name]
		if exists && !old.Dev {
			if named != "" {
				return usagef("context %q was not made by felix dev: use --context with another name", name)
			}
			continue
		}
		if err := auth.ValidName(name); err != nil {
			return usageError{error: err}
		}
		lock, err := lockFile(filepath.Join(kept, name+".lock"))
		if err != nil {
			return err
		}
		if lock == nil {
			if named != "" {
				return usagef("context %q belongs to a felix dev that runs: use --context with another name", name)
			}
			continue
		}
		h.locks = append(h.locks, lock)
		h.context, h.removeContext = name, n > 1
		if exists {
			h.before = &old
		}
		return all.check() // so that it is known now if it cannot be saved
	}
}

// keptDir is the directory of a context that felix dev makes.
func keptDir(context string) (string, error) {
	path, err := contextsPath()
	return filepath.Join(filepath.Dir(path), "brokers", context), err
}

// close gives back what the home holds.
func (h *devHome) close() {
	if h.removeDir && h.dir != "" {
		_ = os.RemoveAll(h.dir)
	}
	if h.removeContext {
		_ = editContexts(h.context, h.restoreContext) // somebody may have removed it
	}
	for _, lock := range h.locks {
		_ = lock.Close()
	}
}

// restoreContext leaves the context as it was before this felix dev. One that somebody else has made of it meanwhile
// stays.
func (h *devHome) restoreContext(all *contexts) {
	switch {
	case !all.Contexts[h.context].Dev:
	case h.before != nil && h.dir == "":
		all.Contexts[h.context] = *h.before
		if h.madeCurrent && all.Current == h.context {
			all.Current = ""
		}
	default:
		all.remove(h.context)
	}
}

// readKept completes o by what the directory holds from the last time: what it serves, unless that was named, and its
// keys. Certificates and keys that are missing, expired or for other hosts are made.
func (h *devHome) readKept(o *broker.DevOptions, ownCertificate bool, streamsNamed, cacheNamed bool, errOut io.Writer) (*tls.Certificate, error) {
	kept, err := catalog.Load(filepath.Join(h.dir, fileCatalog))
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return nil, usageError{error: err}
	default:
		serveAgain(o, kept, streamsNamed, cacheNamed)
	}
	if o.Key == nil {
		if o.Key, err = dev.ReadOrMakeKey(filepath.Join(h.dir, fileSigningKey)); err != nil {
			return nil, err
		}
	}
	if !ownCertificate {
		return nil, nil
	}
	return keptCertificate(h.dir, dev.Localhost(o.Hosts...), errOut)
}

// serveAgain takes names that were not given from a catalog that felix dev has written.
func serveAgain(o *broker.DevOptions, kept *catalog.Catalog, streamsNamed, cacheNamed bool) {
	only := func(name string, n int) bool { return name == "" && n == 1 }
	for tenant, t := range kept.Tenants {
		if only(o.Tenant, len(kept.Tenants)) {
			o.Tenant = tenant
		}
		for namespace, n := range t.Namespaces {
			if only(o.Namespace, len(t.Namespaces)) {
				o.Namespace = namespace
			}
			if tenant != o.Tenant || namespace != o.Namespace {
				continue
			}
			if !streamsNamed && len(n.Streams) > 0 {
				o.Streams = names(n.Streams, o.Streams)
			}
			if caches := names(n.Caches, []string{o.Cache}); !cacheNamed && len(caches) > 0 {
				o.Cache = caches[0]
			}
		}
	}
}

// names returns the names in a map: those of first that are there, in their order, and then the others.
func names[T any](in map[string]T, first []string) (all []string) {
	for _, name := range first {
		if _, ok := in[name]; ok {
			all = append(all, name)
		}
	}
	known := len(all)
	for name := range in {
		if !slices.Contains(all[:known], name) {
			all = append(all, name)
		}
	}
	slices.Sort(all[known:])
	return all
}

// renewBefore is how long a certificate has to be valid yet when a broker starts with it.
const renewBefore = 15 * 24 * time.Hour

// keptCertificate returns the certificate of a directory. If its authority is there, one that expires soon or lacks a
// host is replaced by another of the same authority, so that clients trust it as well.
func keptCertificate(dir string, hosts []string, errOut io.Writer) (*tls.Certificate, error) {
	path := func(name string) string { return filepath.Join(dir, name) }
	cert, pairErr := tls.LoadX509KeyPair(path(fileCert), path(fileKey))
	there := pairErr == nil
	left := time.Duration(0)
	if there {
		left = time.Until(cert.Leaf.NotAfter)
	}
	ca, err := dev.ReadCA(path(fileCA), path(fileCAKey))
	switch {
	case errors.Is(err, fs.ErrNotExist) && there && left > time.Hour:
		return &cert, nil // made elsewhere
	case err != nil && !errors.Is(err, fs.ErrNotExist):
		return nil, fmt.Errorf("%s with %s: %w", path(fileCA), path(fileCAKey), err)
	case err != nil && !there && !errors.Is(pairErr, fs.ErrNotExist): // with the authority another pair is made
		return nil, fmt.Errorf("%s with %s: %w", path(fileCert), path(fileKey), pairErr)
	case err != nil || ca.Expired(renewBefore):
		if there {
			fmt.Fprintf(errOut, "%s has expired: there is another authority now, for which clients have to be started again\n", path(fileCA))
		}
		if ca, err = dev.NewCA(); err != nil {
			return nil, err
		}
	case there && left > renewBefore && ca.Issued(cert.Leaf) && isFor(&cert, hosts):
		return &cert, nil
	}
	return issue(ca, dir, hosts, true)
}

// isFor reports whether a certificate is for all hosts.
func isFor(cert *tls.Certificate, hosts []string) bool {
	return !slices.ContainsFunc(hosts, func(host string) bool { return cert.Leaf.VerifyHostname(host) != nil })
}

// issue makes a certificate of an authority and writes it to the directory, with the certificate of the authority
// and, if it is to be kept, its key.
func issue(ca *dev.CA, dir string, hosts []string, keep bool) (*tls.Certificate, error) {
	cert, err := ca.Issue(hosts...)
	if err != nil {
		return nil, err
	}
	key, err := dev.KeyPEM(cert)
	if err != nil {
		return nil, err
	}
	path := func(name string) string { return filepath.Join(dir, name) }
	if keep {
		caKey, err := ca.KeyPEM()
		if err != nil {
			return nil, err
		}
		if err := writeFile(path(fileCAKey), caKey); err != nil {
			return nil, err
		}
	} else if err := os.Remove(path(fileCAKey)); err != nil && !errors.Is(err, fs.ErrNotExist) { // of another authority
		return nil, err
	}
	return &cert, errors.Join(
		writePublic(path(fileCA), ca.CertPEM()), writeFile(path(fileKey), key), writePublic(path(fileCert), dev.CertPEM(cert.Leaf)),
	)
}

// writeCatalog writes what the broker serves, as others can serve it.
func writeCatalog(file string, o broker.DevOptions, durable bool) error {
	signer, err := auth.NewSigner(o.Key, broker.DevKeyID)
	if err != nil {
		return err
	}
	streams := make(map[string]catalog.Stream)
	for _, name := range o.Streams {
		streams[name] = catalog.Stream{Durable: durable}
	}
	namespace := catalog.Namespace{Streams: streams, Caches: map[string]catalog.Cache{o.Cache: {}}}
	return catalog.Write(file, &catalog.Catalog{Tenants: map[string]catalog.Tenant{
		o.Tenant: {Keys: auth.KeySet{signer.Key()}, Namespaces: map[string]catalog.Namespace{o.Namespace: namespace}},
	}})
}
