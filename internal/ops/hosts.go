package ops

import (
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"strings"
)

// A page in a browser can make its own name lead to 127.0.0.1 (DNS rebinding) and read what a server there answers. Its
// requests have that name as their host. A server on loopback therefore answers to names of loopback alone, to the
// address that it is bound to, and to the names of Settings.Hosts. Elsewhere names are checked if Settings.Hosts says
// which.

// hosts are the names that a server answers to.
type hosts struct {
	bound netip.Addr      // that the listener has
	names map[string]bool // lower case
	below []string        // suffixes that begin with a dot
}

// newHosts returns nil if every name will do.
func newHosts(s Settings, listener net.Listener) *hosts {
	h := &hosts{names: map[string]bool{"localhost": true}, below: []string{".localhost"}}
	if tcp, ok := listener.Addr().(*net.TCPAddr); ok {
		h.bound = plain(tcp.AddrPort().Addr())
	}
	if len(s.Hosts) == 0 && !h.bound.IsLoopback() {
		return nil
	}
	if name, _, err := net.SplitHostPort(s.Bind); err == nil && name != "" {
		if _, err := netip.ParseAddr(name); err != nil { // an address is h.bound
			h.names[normal(name)] = true
		}
	}
	for _, name := range s.Hosts {
		switch name = normal(name); {
		case name == "*":
			return nil
		case strings.HasPrefix(name, "*."):
			h.below = append(h.below, name[1:])
		default:
			h.names[name] = true
		}
	}
	return h
}

// checkHost reports what is wrong with an entry of Settings.Hosts.
func checkHost(entry string) error {
	if entry == "*" {
		return nil
	}
	name := strings.TrimPrefix(entry, "*.")
	if _, err := netip.ParseAddr(name); err == nil && name == entry {
		return nil
	}
	if strings.Trim(name, ".") == "" || strings.ContainsAny(name, ":/*[]@?# \t") {
		return fmt.Errorf("%q is no host name: want a name or an IP address without a port, *.NAME for those below a name, or *", entry)
	}
	return nil
}

func normal(name string) string { return strings.TrimSuffix(strings.ToLower(name), ".") }

func plain(ip netip.Addr) netip.Addr { return ip.Unmap().WithZone("") }

// allow reports whether the server answers to the host of a request. A request without one is not from a browser.
func (h *hosts) allow(r *http.Request) bool {
	if h == nil || r.Host == "" {
		return true
	}
	name, err := hostName(r.Host)
	if err != nil {
		return false
	}
	if h.names[name] {
		return true
	}
	if ip, err := netip.ParseAddr(name); err == nil {
		ip = plain(ip)
		return ip.IsLoopback() || ip == h.bound && !ip.IsUnspecified() || ip == local(r) || h.names[ip.String()]
	}
	for _, suffix := range h.below {
		if strings.HasSuffix(name, suffix) {
			return true
		}
	}
	return false
}

// local is the address at which the request came in: that of a pod, if its kubelet asks.
func local(r *http.Request) netip.Addr {
	if tcp, ok := r.Context().Value(http.LocalAddrContextKey).(*net.TCPAddr); ok {
		return plain(tcp.AddrPort().Addr())
	}
	return netip.Addr{}
}

// hostName takes the port off a host. The error is for text of any other form.
func hostName(host string) (string, error) {
	name, port, _ := strings.Cut(host, ":")
	letters := "abcdefghijklmnopqrstuvwxyz0123456789-_."
	if inner, rest, closed := strings.Cut(host, "]"); closed && strings.HasPrefix(inner, "[") {
		name, letters = inner[1:], letters+":%"
		var found bool
		if port, found = strings.CutPrefix(rest, ":"); !found && rest != "" {
			return "", errHost
		}
	}
	name = normal(name)
	if !consistsOf(name, letters) || !consistsOf(port, "0123456789") {
		return "", errHost
	}
	return name, nil
}

var errHost = errors.New("ops: no host name")

func consistsOf(text, letters string) bool {
	return !strings.ContainsFunc(text, func(r rune) bool { return !strings.ContainsRune(letters, r) })
}

// onlyHosts refuses requests for other hosts.
func (s *Server) onlyHosts(next http.Handler) http.Handler {
	if s.hosts == nil {
		return next
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if s.hosts.allow(r) {
			next.ServeHTTP(w, r)
			return
		}
		s.cfg.Log.Warn("metrics host refused", "host", r.Host, "from", r.RemoteAddr, "hint", "FELIX_METRICS_ALLOWED_HOSTS")
		http.Error(w, "this server does not answer to that host name; see metrics_allowed_hosts", http.StatusMisdirectedRequest)
	})
}
