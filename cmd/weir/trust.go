package main

import (
	"log/slog"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"slices"

	"github.com/weir-registry/weir/registry"
	"github.com/weir-registry/weir/registry/trust"
)

// trustOptions is how c says that this node meets others.
func (c *Config) trustOptions(log *slog.Logger, meter registry.Meter) trust.Options {
	return trust.Options{
		Dir:    c.tiersDir(),
		Listen: c.Tiers != "",
		Hosts:  c.tierHosts(),
		Files:  trust.Files{Cert: c.TLS.Cert, Key: c.TLS.Key, CA: c.TLS.CA},
		Equals: slices.Concat(nodes(c.Peers.Nodes), nodes(c.Next)),
		Meter:  meter,
		Log:    log,
	}
}

// openTrust opens what a node that serves needs to know of others: nothing is
// made unless it listens for them. The caller runs it (Trust.Run).
func openTrust(c *Config, log *slog.Logger, meter registry.Meter) (*trust.Trust, error) {
	return trust.Open(c.trustOptions(log, meter))
}

// editTrust is openTrust for a command that works on the files: it makes
// nothing by itself.
func editTrust(c *Config, log *slog.Logger) (*trust.Trust, error) {
	o := c.trustOptions(log, nil)
	o.Listen = false
	return trust.Open(o)
}

// tiersDir is where a node keeps what it knows of others.
func (c *Config) tiersDir() string { return filepath.Join(c.Data, "tiers") }

// tierHosts are the names and addresses that others reach this node by, as far
// as the configuration says.
func (c *Config) tierHosts() []string {
	var hosts []string
	if u, err := url.Parse(c.Peers.Self); err == nil && u.Hostname() != "" {
		hosts = append(hosts, u.Hostname())
	}
	host, _, _ := net.SplitHostPort(c.Tiers)
	if ip := net.ParseIP(host); host != "" && (ip == nil || !ip.IsUnspecified()) {
		return append(hosts, host)
	}
	if c.Tiers == "" {
		return hosts
	}
	// Every address of this machine: those it has now, and its name.
	addrs, _ := net.InterfaceAddrs()
	for _, a := range addrs {
		if n, ok := a.(*net.IPNet); ok && n.IP.IsGlobalUnicast() {
			hosts = append(hosts, n.IP.String())
		}
	}
	return hosts
}

// tierAddress is how others reach this node, as far as the configuration says;
// "" if it does not.
func (c *Config) tierAddress() string {
	if c.Peers.Self != "" {
		return c.Peers.Self
	}
	host, port, err := net.SplitHostPort(c.Tiers)
	if err != nil || port == "0" || host == "" {
		return ""
	}
	if ip := net.ParseIP(host); ip != nil && ip.IsUnspecified() {
		return ""
	}
	return "https://" + net.JoinHostPort(host, port)
}

// tierGuess is an address to show where one has to be given.
func (c *Config) tierGuess() string {
	host, _ := os.Hostname()
	_, port, _ := net.SplitHostPort(c.Tiers)
	if host == "" {
		host = "shield.example.com"
	}
	if port == "" || port == "0" {
		port = "5001"
	}
	return "https://" + net.JoinHostPort(host, port)
}
