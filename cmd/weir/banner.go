package main

import (
	"fmt"
	"io"
	"maps"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/weir-registry/weir/registry/account"
)

// clientURL is what clients call a node that listens on addr: what public_url
// says, else the address, else, if it is every address of this machine, the
// machine's name.
func (c *Config) clientURL(addr net.Addr) string {
	if c.PublicURL != "" {
		return strings.TrimSuffix(c.PublicURL, "/")
	}
	host, port, _ := net.SplitHostPort(addr.String())
	if ip := net.ParseIP(host); ip == nil || ip.IsUnspecified() {
		if host, _ = os.Hostname(); host == "" {
			host = "127.0.0.1"
		}
	}
	return "http://" + net.JoinHostPort(host, port)
}

// isLoopback reports whether only this machine can reach a host, which is an
// address or a name.
func isLoopback(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

// printHelp prints what to paste where, now that there is a listener on addr.
func printHelp(w io.Writer, c *Config, addr net.Addr, npm bool) {
	base := c.clientURL(addr)
	fmt.Fprintf(w, "weir %s is serving on %s, data in %s\n", version, base, c.Data)
	if host, _, _ := net.SplitHostPort(addr.String()); !isLoopback(host) {
		fmt.Fprintf(w, "anyone who can reach this port can pull what access.anonymous allows: %s\n", strings.Join(c.Access.Anonymous, ", "))
	}
	if len(c.Next) == 0 && c.Ops != opsOff {
		fmt.Fprintf(w, "accounts: weir user add NAME; the administrator's token is in %s\n", filepath.Join(c.Data, account.AdminFile))
	}
	if c.Tiers != "" {
		fmt.Fprintf(w, "nodes in front connect to %s; invite one with: weir tiers invite NAME\n", c.Tiers)
	}
	if len(c.OCI.Upstreams) > 0 {
		printOCIHelp(w, c, base)
	}
	if npm {
		fmt.Fprintf(w, "\nnpm, pnpm, yarn, bun:\n  npm config set registry %s/npm/\n", base)
	}
	if c.Ops != opsOff {
		fmt.Fprintf(w, "\nmetrics and health: http://%s/metrics /healthz /readyz\n", c.Ops)
	}
}

func printOCIHelp(w io.Writer, c *Config, base string) {
	u, err := url.Parse(base)
	if err != nil {
		return
	}
	insecure := u.Scheme == "http"
	host := u.Host + u.Path
	if *c.OCI.Default == "docker.io" {
		fmt.Fprintf(w, "\ndocker, in /etc/docker/daemon.json, then restart docker:\n  { \"registry-mirrors\": [%q] }\n", base)
	}
	names := slices.Sorted(maps.Keys(c.OCI.Upstreams))
	// docker.io and one other show all there is to it.
	slices.SortStableFunc(names, func(a, b string) int { return rank(a) - rank(b) })
	shown, others := names[:min(2, len(names))], names[min(2, len(names)):]
	for _, name := range shown {
		fmt.Fprintf(w, "\ncontainerd, in /etc/containerd/certs.d/%s/hosts.toml:\n  server = %q\n  [host.%q]\n    capabilities = [\"pull\", \"resolve\"]\n",
			name, c.OCI.Upstreams[name].URL, base)
	}
	for _, name := range shown {
		fmt.Fprintf(w, "\npodman, skopeo, buildah, in /etc/containers/registries.conf.d/weir.conf:\n  [[registry]]\n  location = %q\n  [[registry.mirror]]\n  location = %q\n",
			name, host+"/"+name)
		if insecure {
			fmt.Fprintf(w, "  insecure = true\n")
		}
	}
	if len(others) > 0 {
		fmt.Fprintf(w, "\nthe same for %s, each with its own name and address\n", strings.Join(others, ", "))
	}
	flag := ""
	if insecure && !isLoopback(u.Hostname()) {
		flag = "--insecure " // crane asks by HTTPS unless it sees that the address is private
	}
	fmt.Fprintf(w, "\ncrane and others, by path:\n  crane pull %s%s/%s/REPOSITORY:TAG image.tar\n", flag, host, names[0])
}

func rank(name string) int {
	switch name {
	case "docker.io":
		return 0
	case "ghcr.io":
		return 1
	}
	return 2
}
