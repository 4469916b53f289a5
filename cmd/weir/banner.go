package main

import (
	"fmt"
	"io"
	"maps"
	"net"
	"net/url"
	"slices"
	"strings"
)

// clientURL is what clients on this machine, or everywhere if public_url says
// so, call a node that listens on addr.
func (c *Config) clientURL(addr net.Addr) string {
	if c.PublicURL != "" {
		return strings.TrimSuffix(c.PublicURL, "/")
	}
	host, port, _ := net.SplitHostPort(addr.String())
	if ip := net.ParseIP(host); ip == nil || ip.IsUnspecified() {
		host = "127.0.0.1"
	}
	return "http://" + net.JoinHostPort(host, port)
}

// printHelp prints what to paste where, now that base answers.
func printHelp(w io.Writer, c *Config, base string, npm bool) {
	fmt.Fprintf(w, "weir %s is serving on %s, data in %s\n", version, base, c.Data)
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
	for _, name := range names[:min(2, len(names))] {
		fmt.Fprintf(w, "\ncontainerd, in /etc/containerd/certs.d/%s/hosts.toml:\n  server = %q\n  [host.%q]\n    capabilities = [\"pull\", \"resolve\"]\n",
			name, c.OCI.Upstreams[name].URL, base)
	}
	for _, name := range names[:min(2, len(names))] {
		fmt.Fprintf(w, "\npodman, skopeo, buildah, in /etc/containers/registries.conf:\n  [[registry]]\n  location = %q\n  [[registry.mirror]]\n  location = %q\n",
			name, host+"/"+name)
		if insecure {
			fmt.Fprintf(w, "  insecure = true\n")
		}
	}
	fmt.Fprintf(w, "\ncrane and others, by path:\n  crane pull %s/%s/REPOSITORY:TAG image.tar\n", host, names[0])
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
