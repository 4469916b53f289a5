package main

import (
	"errors"
	"fmt"
	"net"
	"net/url"
	"path/filepath"
	"slices"
	"strings"
)

// Addresses is one address, or a list of them.
type Addresses []string

// What may be done when no node behind this one answers.
const (
	bypassUpstream = "upstream"
	bypassNone     = "none"
)

// TLSConfig is certificates from elsewhere, for connections between nodes,
// instead of those that "weir tiers join" fetches. The files are PEM and are
// read again when they change.
type TLSConfig struct {
	// Cert is this node's certificate, and what leads to the CA.
	Cert string `yaml:"cert"`
	// Key is the certificate's private key.
	Key string `yaml:"key"`
	// CA is what certificates of other nodes must be signed by.
	CA string `yaml:"ca"`
}

// given reports whether any of it is set.
func (t TLSConfig) given() bool { return t != TLSConfig{} }

// PeersConfig is about nodes in the same place, which share their disks: each
// large blob is kept by one of them, and small ones by each.
type PeersConfig struct {
	// Self is what the others call this node: "https://10.0.0.1:5001".
	Self string `yaml:"self"`
	// Nodes are the others; this one may be among them, so that all nodes can
	// have the same list.
	Nodes []string `yaml:"nodes"`
}

// OriginConfig is about where blobs are kept for good.
type OriginConfig struct {
	// Blobs is "file:///var/lib/weir-origin" (a directory, which is made
	// beforehand; its path alone will do), "s3://bucket/prefix?region=…"
	// or "gs://bucket/prefix". What upstreams gave is kept there, so that
	// other regions fill from it. Default: none.
	Blobs string `yaml:"blobs"`
	// Metadata is the database of accounts, tokens and grants: a file
	// ("file:///var/lib/weir/metadata.db"; its path alone will do), or
	// "dynamodb://table?region=…" or "spanner://projects/…", which several nodes
	// can share. It counts at nodes that have none behind them. Default:
	// metadata.db under data.
	Metadata string `yaml:"metadata"`
}

// DiskConfig is one disk of several.
type DiskConfig struct {
	// Path is a directory on it, of weir's own.
	Path string `yaml:"path"`
	// Size is how much blobs may take of it.
	Size Size `yaml:"size"`
}

// checkChain checks what is about other nodes and the stores behind.
func (c *Config) checkChain() error {
	for i, next := range c.Next {
		if err := checkNode(fmt.Sprintf("next[%d]", i), next); err != nil {
			return err
		}
	}
	if twice(c.Next) {
		return errors.New("next: an address is there twice")
	}
	if c.Bypass != bypassUpstream && c.Bypass != bypassNone {
		return fmt.Errorf("bypass: %q is neither %s nor %s", c.Bypass, bypassUpstream, bypassNone)
	}
	if c.Tiers != "" {
		if err := checkAddr("tiers", c.Tiers); err != nil {
			return err
		}
		if _, port, _ := net.SplitHostPort(c.Tiers); port != "0" && (c.Tiers == c.Listen || c.Tiers == c.Ops) {
			return fmt.Errorf("tiers: the same address as listen or ops, %s", c.Tiers)
		}
	}
	if t := c.TLS; t.given() && (t.Cert == "" || t.Key == "" || t.CA == "") {
		return errors.New("tls: cert, key and ca belong together, and one is missing")
	}
	if self := c.tierAddress(); slices.Contains(nodes(c.Next), nodes([]string{self})[0]) {
		return fmt.Errorf("next: %s is this node itself", self)
	}
	if err := c.checkPeers(); err != nil {
		return err
	}
	return c.checkDisks()
}

// twice reports whether an address is in list twice, however it is written.
func twice(list []string) bool {
	return len(slices.Compact(slices.Sorted(slices.Values(nodes(list))))) < len(list)
}

func (c *Config) checkPeers() error {
	p := c.Peers
	if len(p.Nodes) == 0 && p.Self == "" {
		return nil
	}
	if len(p.Nodes) == 0 || p.Self == "" {
		return errors.New("peers: self and nodes belong together, and one is missing")
	}
	if c.Tiers == "" {
		return errors.New("peers: the others reach this node at its tiers address, and tiers is not set")
	}
	if err := checkNode("peers.self", p.Self); err != nil {
		return err
	}
	for i, node := range p.Nodes {
		if err := checkNode(fmt.Sprintf("peers.nodes[%d]", i), node); err != nil {
			return err
		}
		if slices.Contains(nodes(c.Next), nodes([]string{node})[0]) {
			return fmt.Errorf("peers.nodes[%d]: %s is in next too; a node is behind this one or beside it", i, node)
		}
	}
	if twice(p.Nodes) {
		return errors.New("peers.nodes: an address is there twice")
	}
	return nil
}

// checkNode checks the address of another node: https, a host, and nothing else.
func checkNode(key, text string) error {
	u, err := url.Parse(text)
	switch {
	case err != nil || u.Scheme != "https" || u.Hostname() == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "":
		return fmt.Errorf(`%s: %q is not the address of a node, such as "https://shield.example.com:5001"`, key, text)
	case u.Path != "" && u.Path != "/":
		return fmt.Errorf("%s: %q has a path; nodes have none", key, text)
	case u.Port() == "":
		return fmt.Errorf("%s: %q has no port; the port is the one of that node's tiers address", key, text)
	}
	return nil
}

// checkDisks checks cache.disks, which is instead of cache.disk.
func (c *Config) checkDisks() error {
	seen := map[string]bool{}
	for i, d := range c.Cache.Disks {
		path := filepath.Clean(d.Path)
		switch {
		case d.Path == "":
			return fmt.Errorf("cache.disks[%d]: no path", i)
		case d.Size < 1<<20:
			return fmt.Errorf("cache.disks[%d]: %v is less than 1MiB", i, d.Size)
		case seen[path]:
			return fmt.Errorf("cache.disks[%d]: %s is there twice", i, d.Path)
		}
		seen[path] = true
	}
	return nil
}

// nodes is the addresses in one form, without a slash at the end, so that all
// nodes count the same one as the same.
func nodes(list []string) []string {
	out := make([]string, len(list))
	for i, a := range list {
		out[i] = strings.TrimSuffix(a, "/")
	}
	return out
}
